"""What `optimize` found, as a page: speed against agreement.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from resnetkit.engines.base import EngineConfig
from resnetkit.engines.saved import (
    HEADINGS,
    Measurement,
    OptimizeResult,
    SavedEngine,
    find_baseline,
    format_table_row,
    group_skip_reasons,
    select_best_per_engine,
)
from resnetkit.html import page as html
from resnetkit.html.charts import SCATTER_STYLE, ScatterPoint, draw_scatter_plot

_PURPOSES = {
    "latency": "one picture at a time",
    "throughput": "many pictures",
    "start": "from nothing to the first answer",
}
_STYLE = (
    SCATTER_STYLE
    + """
.scroll { background: linear-gradient(to right, var(--paper) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--soft), transparent) left / .5rem 92% no-repeat scroll,
  linear-gradient(to left, var(--soft), transparent) right / .5rem 92% no-repeat scroll; }
"""
)


def get_model_name(folder: Path) -> str:
    """What a person calls a model folder: `model` in a run folder has the name of the run."""
    path = folder.absolute()
    return path.parent.name if path.name == "model" and (path.parent / "run.toml").is_file() else path.name


def render_optimize_report(name: str, result: OptimizeResult) -> str:
    """The whole page; every name in it is text, never markup."""
    plotted = [row for row in result.measurements if row.logit_error is not None and row.images_per_second]
    best = select_best_per_engine(result)
    reasons = group_skip_reasons(best)
    sections = [
        (
            "",
            html.render_stat_cards(_build_cards(result))
            + html.render_note(_LOGITS_ONLY_NOTE) * _is_logits_only(plotted),
        ),
        ("Speed against agreement", _draw_chart(result, plotted) + html.render_note(_CHART_NOTE))
        if plotted
        else ("", ""),
        ("The best of each engine", _render_table(result, best) + html.render_note(_TABLE_NOTE)),
        *[("Left out", html.render_html_list(reasons))] * bool(reasons),
        ("Everything that was tried", _render_table(result, result.measurements)),
    ]
    lead = f"Measured on {result.machine}; answers compared on {result.comparison_data}."
    return html.render_html(f"engines of {name}", lead, [section for section in sections if section[1]], style=_STYLE)


_CHART_NOTE = (
    "Each mark is a way to compute: an engine, a precision, and how many pictures go at once. Higher is faster. "
    "Farther left is nearer to the network in fp32: the largest difference of a logit, as a share of the largest "
    "logit. Rest a pointer on a mark to read all of it."
)
_TABLE_NOTE = (
    "batch 4 x 2: four pictures in a call, two calls beside each other. logits: the largest difference from fp32. "
    "same: the share of answers that are the same. points: accuracy compared with fp32; -0.10 is a tenth of a percent "
    "fewer right. Only what has seconds to start was measured twice, the second time taking turns."
)
_LOGITS_ONLY_NOTE = (
    "Answers were not compared, since the network was not trained or no pictures were given (--data): every engine was "
    "judged by its logits alone."
)


def _is_logits_only(rows: Sequence[Measurement]) -> bool:
    return bool(rows) and all(row.match_rate is None for row in rows)


_FIRST_COLUMNS = ("engine", "images/s", "kept for")  # what a narrow screen shows


def _render_table(result: OptimizeResult, rows: Sequence[Measurement]) -> str:
    """Of what was measured, without a column that says nothing; the reasons stand in a list of their own."""
    records = [
        dict(zip(HEADINGS, format_table_row(row, result.engines), strict=True)) for row in rows if row.images_per_second
    ]
    ordered = sorted(
        HEADINGS, key=lambda name: _FIRST_COLUMNS.index(name) if name in _FIRST_COLUMNS else len(_FIRST_COLUMNS)
    )
    columns = [name for name in ordered if any(row[name] for row in records)]
    return html.render_html_table(columns, ([row[name] for name in columns] for row in records))


def _build_cards(result: OptimizeResult) -> Iterator[tuple[str, str, str]]:
    baseline = find_baseline(result.measurements)
    for saved in result.engines:
        speedup = format_speedup(saved.measurement, baseline) if saved.purpose == "throughput" else ""
        details = ", ".join(filter(None, (_PURPOSES[saved.purpose], _format_config(saved.measurement.config), speedup)))
        yield saved.purpose, format_headline(saved), details
    if baseline:
        speed = f"{baseline.images_per_second or 0:,.1f} images/s"
        yield "to compare", speed, f"torch with norms folded, {_format_config(baseline.config)}"


def format_speedup(row: Measurement, baseline: Measurement | None) -> str:
    """How many times faster than the plain way, which was measured beside it; empty where that is not known."""
    if baseline is None or not baseline.images_per_second:
        return ""
    return (
        _use_nonbreaking_spaces(f"{(row.images_per_second or 0) / baseline.images_per_second:.1f} times")
        + " eager fp32"
    )


def _format_config(config: EngineConfig) -> str:
    """A choice that breaks behind its comma alone."""
    return ", ".join(map(_use_nonbreaking_spaces, str(config).split(", ")))


def _use_nonbreaking_spaces(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def format_headline(saved: SavedEngine) -> str:
    """What a choice was made for, with its unit."""
    row = saved.measurement
    return {
        "latency": f"{row.latency_ms or 0:,.2f} ms",
        "throughput": f"{row.images_per_second or 0:,.1f} images/s",
        "start": f"{row.seconds_to_start or 0:.2f} s",
    }[saved.purpose]


def _draw_chart(result: OptimizeResult, rows: list[Measurement]) -> str:
    purposes = {
        row.config: ", ".join(item.purpose for item in result.engines if item.measurement.config == row.config)
        for row in rows
    }
    points = [
        ScatterPoint(
            row.config.engine,
            row.logit_error or 0.0,
            row.images_per_second or 0.0,
            _format_tooltip(row),
            bool(row.reason),
            row.config.precision,
            purposes[row.config],
        )
        for row in rows
    ]
    axes = ("largest difference of a logit from fp32", "images/s")
    return draw_scatter_plot("images per second against the difference from fp32", axes, points)


def _format_tooltip(row: Measurement) -> str:
    reason = f" ({row.reason})" * bool(row.reason)
    return f"{row.config}: {row.images_per_second or 0:,.1f} images/s, {row.logit_error or 0:.1e}{reason}"
