"""What `check` found, as a page with thumbnails.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnetkit.data.check import CheckResult, DuplicateGroup, ImageInfo
from resnetkit.errors import ImageError
from resnetkit.html import page as html
from resnetkit.images.decode import try_read
from resnetkit.images.prepare import encode_thumbnail

_MAX_GROUPS, _MAX_LINES, _MAX_CLASSES, _N_SAMPLES = 30, 200, 24, 6


def build_check_page(result: CheckResult) -> str:
    """The whole page; every name in it is text, never markup."""
    findings = result.findings
    lead = f"{len(result.images):,} pictures in {len(result.dataset.classes):,} classes: "
    lead += f"{len(findings)} kinds of findings." if findings else "nothing was found that is wrong."
    duplicate_sections = (
        (
            "In several parts: what is learnt from is also measured on",
            [group for group in result.duplicates if group.is_leak],
        ),
        (
            "In several classes: the same picture under two names",
            [group for group in result.duplicates if group.has_conflicting_labels],
        ),
        (
            "Duplicates",
            [group for group in result.duplicates if not group.is_leak and not group.has_conflicting_labels],
        ),
    )
    sections = [
        ("Findings", _build_findings(result)),
        *[("Unreadable", _build_unreadable(result.unreadable))] * bool(result.unreadable),
        *[(title, _build_duplicates(result, duplicates)) for title, duplicates in duplicate_sections if duplicates],
        ("Classes", _build_class_table(result)),
        ("Sizes", html.render_html_table(("", "width", "height"), result.summarize_sizes())),
        *[("To know", html.render_html_list(result.notes))] * bool(result.notes),
        ("A few of each class", "".join(_iter_samples(result))),
    ]
    return html.render_html(f"check of {result.dataset.name}", lead, sections)


def _build_findings(result: CheckResult) -> str:
    lines = [f"{finding.kind}: {finding.count:,}; the first is {finding.examples[0]}" for finding in result.findings]
    return html.render_html_list(lines) if lines else html.render_note("None.")


def _build_unreadable(images: Sequence[ImageInfo]) -> str:
    remainder = html.render_note(f"... and {len(images) - _MAX_LINES:,} more") if len(images) > _MAX_LINES else ""
    return html.render_html_list(f"{image.location}: {image.error}" for image in images[:_MAX_LINES]) + remainder


def _build_duplicates(result: CheckResult, groups: Sequence[DuplicateGroup]) -> str:
    galleries = [html.render_gallery(_iter_figures(result, group.images[:6])) for group in groups[:_MAX_GROUPS]]
    remainder = html.render_note(f"... and {len(groups) - _MAX_GROUPS:,} more") if len(groups) > _MAX_GROUPS else ""
    return "<hr>".join(galleries) + remainder


def _iter_figures(result: CheckResult, image_infos: Sequence[ImageInfo]) -> Iterator[tuple[str, str, str]]:
    for info in image_infos:
        image = try_read(result.dataset.splits[info.split].load_image, info.index)
        if not isinstance(image, ImageError):
            caption = f"{info.split}: {result.dataset.classes[info.label]}"
            yield encode_thumbnail(image), caption, f"{info.location}, {info.width}x{info.height}"


def _build_class_table(result: CheckResult) -> str:
    rows = [
        (name, *(f"{counts[label]:,}" for counts in result.counts.values()))
        for label, name in enumerate(result.dataset.classes)
    ]
    return html.render_html_table(("class", *result.counts), rows)


def _iter_samples(result: CheckResult) -> Iterator[str]:
    """The first pictures of the first classes."""
    for label in range(min(_MAX_CLASSES, len(result.dataset.classes))):
        samples = [image for image in result.images if image.label == label and not image.error][:_N_SAMPLES]
        yield html.render_gallery(_iter_figures(result, samples)) + "<hr>"
