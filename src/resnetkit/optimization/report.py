"""What `optimize` found, as a page: speed against agreement.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from resnetkit.engines.base import Choice
from resnetkit.engines.saved import HEADINGS, Kept, Optimized, Row, best_of_each, cells, left_out, plain
from resnetkit.html import page as html
from resnetkit.html.charts import PLOT_STYLE, Dot, dots

_PURPOSES = {
    "latency": "one picture at a time",
    "throughput": "many pictures",
    "start": "from nothing to the first answer",
}
_STYLE = (
    PLOT_STYLE
    + """
.scroll { background: linear-gradient(to right, var(--paper) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--soft), transparent) left / .5rem 92% no-repeat scroll,
  linear-gradient(to left, var(--soft), transparent) right / .5rem 92% no-repeat scroll; }
"""
)


def name_of(folder: Path) -> str:
    """What a person calls a model folder: `model` in a run folder has the name of the run."""
    whole = folder.absolute()
    return whole.parent.name if whole.name == "model" and (whole.parent / "run.toml").is_file() else whole.name


def optimized_page(name: str, found: Optimized) -> str:
    """The whole page; every name in it is text, never markup."""
    compared = [row for row in found.rows if row.error is not None and row.images_per_second]
    best = best_of_each(found)
    reasons = left_out(best)
    sections = [
        ("", html.cards(_kept(found)) + html.note(_LOGITS_ALONE) * _by_logits_alone(compared)),
        ("Speed against agreement", _drawn(found, compared) + html.note(_HOW)) if compared else ("", ""),
        ("The best of each engine", _table(found, best) + html.note(_TWICE)),
        *[("Left out", html.items(reasons))] * bool(reasons),
        ("Everything that was tried", _table(found, found.rows)),
    ]
    lead = f"Measured on {found.processor}; answers compared on {found.checked}."
    return html.page(f"engines of {name}", lead, [section for section in sections if section[1]], style=_STYLE)


_HOW = (
    "Each mark is a way to compute: an engine, a precision, and how many pictures go at once. Higher is faster. "
    "Farther left is nearer to the network in fp32: the largest difference of a logit, as a share of the largest "
    "logit. Rest a pointer on a mark to read all of it."
)
_TWICE = (
    "batch 4 x 2: four pictures in a call, two calls beside each other. logits: the largest difference from fp32. "
    "same: the share of answers that are the same. points: accuracy compared with fp32; -0.10 is a tenth of a percent "
    "fewer right. Only what has seconds to start was measured twice, the second time taking turns."
)
_LOGITS_ALONE = (
    "Answers were not compared, since the network was not trained or no pictures were given (--data): every engine was "
    "judged by its logits alone."
)


def _by_logits_alone(compared: Sequence[Row]) -> bool:
    return bool(compared) and all(row.same is None for row in compared)


_FIRST = ("engine", "images/s", "kept for")  # what a narrow screen shows


def _table(found: Optimized, rows: Sequence[Row]) -> str:
    """Of what was measured, without a column that says nothing; the reasons stand in a list of their own."""
    named = [dict(zip(HEADINGS, cells(row, found.kept), strict=True)) for row in rows if row.images_per_second]
    ordered = sorted(HEADINGS, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    shown = [name for name in ordered if any(row[name] for row in named)]
    return html.table(shown, ([row[name] for name in shown] for row in named))


def _kept(found: Optimized) -> Iterator[tuple[str, str, str]]:
    compared = plain(found.rows)
    for kept in found.kept:
        faster = times(kept.row, compared) if kept.purpose == "throughput" else ""
        more = ", ".join(filter(None, (_PURPOSES[kept.purpose], _whole(kept.row.choice), faster)))
        yield kept.purpose, figure(kept), more
    if compared:
        speed = f"{compared.images_per_second or 0:,.1f} images/s"
        yield "to compare", speed, f"torch with norms folded, {_whole(compared.choice)}"


def times(row: Row, compared: Row | None) -> str:
    """How many times faster than the plain way, which was measured beside it; empty where that is not known."""
    if compared is None or not compared.images_per_second:
        return ""
    return _tied(f"{(row.images_per_second or 0) / compared.images_per_second:.1f} times") + " eager fp32"


def _whole(choice: Choice) -> str:
    """A choice that breaks behind its comma alone."""
    return ", ".join(map(_tied, str(choice).split(", ")))


def _tied(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def figure(kept: Kept) -> str:
    """What a choice was made for, with its unit."""
    row = kept.row
    return {
        "latency": f"{row.milliseconds or 0:,.2f} ms",
        "throughput": f"{row.images_per_second or 0:,.1f} images/s",
        "start": f"{row.seconds_to_start or 0:.2f} s",
    }[kept.purpose]


def _drawn(found: Optimized, rows: list[Row]) -> str:
    kept = {row.choice: ", ".join(one.purpose for one in found.kept if one.row.choice == row.choice) for row in rows}
    placed = [
        Dot(
            row.choice.engine,
            row.error or 0.0,
            row.images_per_second or 0.0,
            _note(row),
            bool(row.why),
            row.choice.precision,
            kept[row.choice],
        )
        for row in rows
    ]
    axes = ("largest difference of a logit from fp32", "images/s")
    return dots("images per second against the difference from fp32", axes, placed)


def _note(row: Row) -> str:
    why = f" ({row.why})" * bool(row.why)
    return f"{row.choice}: {row.images_per_second or 0:,.1f} images/s, {row.error or 0:.1e}{why}"
