"""What `check` found, as a page with thumbnails.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnetkit.data.check import Checked, Look, Twins
from resnetkit.errors import PictureError
from resnetkit.html import page as html
from resnetkit.images.decode import attempt
from resnetkit.images.thumbnail import thumbnail

_MOST_GROUPS, _MOST_LINES, _MOST_CLASSES, _SAMPLE = 30, 200, 24, 6


def check_page(checked: Checked) -> str:
    """The whole page; every name in it is text, never markup."""
    found = checked.findings
    lead = f"{len(checked.looks):,} pictures in {len(checked.data.classes):,} classes: "
    lead += f"{len(found)} kinds of findings." if found else "nothing was found that is wrong."
    groups = (
        ("In several parts: what is learnt from is also measured on", [t for t in checked.twins if t.leak]),
        ("In several classes: the same picture under two names", [t for t in checked.twins if t.contradiction]),
        ("Duplicates", [t for t in checked.twins if not t.leak and not t.contradiction]),
    )
    sections = [
        ("Findings", _findings(checked)),
        *[("Unreadable", _unreadable(checked.unreadable))] * bool(checked.unreadable),
        *[(title, _groups(checked, twins)) for title, twins in groups if twins],
        ("Classes", _counts(checked)),
        ("Sizes", html.table(("", "width", "height"), checked.sizes())),
        *[("To know", html.items(checked.notes))] * bool(checked.notes),
        ("A few of each class", "".join(_samples(checked))),
    ]
    return html.page(f"check of {checked.data.name}", lead, sections)


def _findings(checked: Checked) -> str:
    told = [f"{found.kind}: {found.count:,}; the first is {found.examples[0]}" for found in checked.findings]
    return html.items(told) if told else html.note("None.")


def _unreadable(looks: Sequence[Look]) -> str:
    more = html.note(f"... and {len(looks) - _MOST_LINES:,} more") if len(looks) > _MOST_LINES else ""
    return html.items(f"{look.where}: {look.error}" for look in looks[:_MOST_LINES]) + more


def _groups(checked: Checked, twins: Sequence[Twins]) -> str:
    shown = [html.gallery(_figures(checked, group.looks[:6])) for group in twins[:_MOST_GROUPS]]
    more = html.note(f"... and {len(twins) - _MOST_GROUPS:,} more") if len(twins) > _MOST_GROUPS else ""
    return "<hr>".join(shown) + more


def _figures(checked: Checked, looks: Sequence[Look]) -> Iterator[tuple[str, str, str]]:
    for look in looks:
        image = attempt(checked.data.parts[look.part].image, look.number)
        if not isinstance(image, PictureError):
            told = f"{look.part}: {checked.data.classes[look.label]}"
            yield thumbnail(image), told, f"{look.where}, {look.width}x{look.height}"


def _counts(checked: Checked) -> str:
    rows = [
        (name, *(f"{counts[label]:,}" for counts in checked.counts.values()))
        for label, name in enumerate(checked.data.classes)
    ]
    return html.table(("class", *checked.counts), rows)


def _samples(checked: Checked) -> Iterator[str]:
    """The first pictures of the first classes."""
    for label in range(min(_MOST_CLASSES, len(checked.data.classes))):
        first = [look for look in checked.looks if look.label == label and not look.error][:_SAMPLE]
        yield html.gallery(_figures(checked, first)) + "<hr>"
