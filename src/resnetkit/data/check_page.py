"""Show the result of `check` as a web page with thumbnails.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnetkit.data.check import CheckResult, DuplicateGroup, ImageInfo
from resnetkit.errors import ImageError
from resnetkit.formatting import limit_lines, pluralize
from resnetkit.html import page as html
from resnetkit.images.decode import try_read
from resnetkit.images.prepare import encode_thumbnail

_MAX_GROUPS, _MAX_LINES, _MAX_CLASSES, _N_SAMPLES = 30, 200, 24, 6
_HEADINGS = {
    "leaks between splits": "Leaks between splits: training images that also measure the accuracy",
    "conflicting labels": "Conflicting labels: the same image in several classes",
    "duplicates": "Duplicates",
    "near duplicates: leaks between splits": "Near duplicates in different splits",
    "near duplicates: conflicting labels": "Near duplicates in several classes",
    "near duplicates: duplicates": "Near duplicates in one class",
}


def build_check_page(result: CheckResult) -> str:
    """Build the whole page; every name on it is escaped."""
    lead = f"{pluralize(len(result.images), 'image')} in {pluralize(len(result.dataset.classes), 'class')}: "
    lead += f"{pluralize(len(result.findings), 'kind')} of problems." if result.findings else "no problems."
    findings = [f"{finding.kind}: {finding.count:,}; first: {finding.examples[0]}" for finding in result.findings]
    sections = [
        ("Problems", html.render_html_list(findings) if findings else html.render_note("None.")),
        ("Unreadable images", _build_unreadable(result.unreadable)),
        *((_HEADINGS[kind], _build_duplicates(result, groups)) for kind, groups in result.duplicates_by_kind.items()),
        ("Classes", _build_class_table(result)),
        ("Sizes in pixels", html.render_html_table(("", "width", "height"), result.summarize_sizes())),
        ("Notes", html.render_html_list(result.notes) if result.notes else ""),
        ("Examples of each class", "".join(_iter_samples(result))),
    ]
    return html.render_html(f"check of {result.dataset.name}", lead, [section for section in sections if section[1]])


def _build_unreadable(images: Sequence[ImageInfo]) -> str:
    lines = limit_lines([f"{image.location}: {image.error}" for image in images], _MAX_LINES)
    return html.render_html_list(lines) if lines else ""


def _build_duplicates(result: CheckResult, groups: Sequence[DuplicateGroup]) -> str:
    galleries = [html.render_gallery(_iter_figures(result, group.images[:6])) for group in groups[:_MAX_GROUPS]]
    return "<hr>".join(limit_lines(galleries, _MAX_GROUPS, len(groups)))


def _iter_figures(result: CheckResult, images: Sequence[ImageInfo]) -> Iterator[tuple[str, str, str]]:
    for info in images:
        image = try_read(result.dataset.splits[info.split].load_image, info.index)
        if not isinstance(image, ImageError):
            caption = f"{info.split}: {result.dataset.classes[info.label]}"
            yield encode_thumbnail(image), caption, f"{info.location}, {info.width}x{info.height}"


def _build_class_table(result: CheckResult) -> str:
    columns = zip(result.dataset.classes, *result.counts.values(), strict=True)
    rows = [(name, *(f"{n:,}" for n in counts)) for name, *counts in columns]
    return html.render_html_table(("class", *result.counts), rows)


def _iter_samples(result: CheckResult) -> Iterator[str]:
    for label in range(min(_MAX_CLASSES, len(result.dataset.classes))):
        samples = [image for image in result.images if image.label == label and not image.error][:_N_SAMPLES]
        yield html.render_gallery(_iter_figures(result, samples)) + "<hr>"
