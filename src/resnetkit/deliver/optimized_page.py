"""What `optimize` found, as a page: speed against agreement. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnetkit.deliver.optimized import HEADINGS, Kept, Optimized, Row, best_of_each, cells, left_out, plain
from resnetkit.pages import html
from resnetkit.pages.chart import Dot, dots

_PURPOSES = {
    "latency": "one picture at a time",
    "throughput": "many pictures",
    "start": "from nothing to the first answer",
}


def optimized_page(name: str, found: Optimized) -> str:
    """The whole page; every name in it is text, never markup."""
    compared = [row for row in found.rows if row.error is not None and row.images_per_second]
    best = best_of_each(found)
    reasons = left_out(best)
    sections = [
        ("", html.figures(list(_kept(found)))),
        ("Speed against agreement", _drawn(compared) + html.note(_HOW)) if compared else ("", ""),
        ("The best of each engine", _table(found, best) + html.note(_TWICE)),
        *[("Left out", html.items(reasons))] * bool(reasons),
        ("Everything that was tried", _table(found, found.rows)),
    ]
    lead = f"Measured on {found.processor}; answers compared on {found.checked}."
    return html.page(f"engines of {name}", lead, [section for section in sections if section[1]])


_HOW = (
    "Each dot is a way to compute: an engine, a precision, a batch, and so many calls beside each other. Up is faster; "
    "left is nearer to the logits of fp32 (the largest difference, as a share of the largest logit). Hollow ones were "
    "left out. Hold the pointer over a dot to see which it is."
)


_TWICE = "Ways with seconds to start were measured twice, the second time side by side; the others were looked at once."


def _table(found: Optimized, rows: Sequence[Row]) -> str:
    """Of what was measured; the reasons stand in a list of their own."""
    return html.table(HEADINGS, (cells(row, found.kept) for row in rows if row.images_per_second))


def _kept(found: Optimized) -> Iterator[tuple[str, str]]:
    for kept in found.kept:
        yield f"{kept.purpose}: {_PURPOSES[kept.purpose]}", f"{figure(kept)}, {kept.row.choice}"
    compared = plain(found.rows)
    if compared:
        yield (
            "to compare: eager fp32, norms folded",
            f"{compared.images_per_second or 0:,.1f} images/s, {compared.choice}",
        )


def figure(kept: Kept) -> str:
    """What a choice was made for, with its unit."""
    row = kept.row
    return {
        "latency": f"{row.milliseconds or 0:,.2f} ms",
        "throughput": f"{row.images_per_second or 0:,.1f} images/s",
        "start": f"{row.seconds_to_start or 0:.2f} s",
    }[kept.purpose]


def _drawn(rows: list[Row]) -> str:
    placed = [
        Dot(row.choice.engine, row.error or 0.0, row.images_per_second or 0.0, _note(row), bool(row.why))
        for row in rows
    ]
    across = "images/s, by the largest difference of a logit from fp32"
    return dots("images per second against the difference from fp32", across, placed)


def _note(row: Row) -> str:
    why = f" ({row.why})" * bool(row.why)
    return f"{row.choice}: {row.images_per_second or 0:,.1f} images/s, {row.error or 0:.1e}{why}"
