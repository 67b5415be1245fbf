"""The HTML report of `optimize`: throughput against logit error, and tables.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from resnetkit.engines import saved
from resnetkit.engines.base import EngineConfig
from resnetkit.html import page as html
from resnetkit.html.charts import SCATTER_STYLE, ScatterPoint, draw_scatter_plot

_PURPOSES = {
    "latency": "one image at a time",
    "throughput": "many images",
    "startup": "start-up to the first prediction",
}
_SCROLL_STYLE = """
.scroll { background: linear-gradient(to right, var(--paper) 30%, transparent) left / 2rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 2rem 100% no-repeat local,
  linear-gradient(to right, var(--soft), transparent) left / .5rem 92% no-repeat scroll,
  linear-gradient(to left, var(--soft), transparent) right / .5rem 92% no-repeat scroll; }
"""
_CHART_NOTE = (
    "Each mark is a configuration: an engine, a precision, a batch size and a number of streams. Higher is faster. "
    "Farther left is closer to the network in fp32. The logit error is the largest difference of a logit, divided by "
    "the largest logit. Point at a mark to read its values."
)
_TABLE_NOTE = (
    "Batch 4 x 2 means four images per call and two calls in parallel. The logit error is the largest difference from "
    "fp32. An accuracy change of -0.10 means that a tenth of a percent fewer images are correct. "
    "Rows with a start-up time were measured again in the final round, in turns."
)
_LOGITS_ONLY_NOTE = "Only logits were compared, because the network is not trained or no images were given (--data)."
_FIRST_COLUMNS = ("engine", "throughput (images/s)", "chosen for")  # what a narrow screen shows


def get_model_name(folder: Path) -> str:
    """Return the name of a model folder; for the folder ``model`` of a run, the name of the run."""
    path = folder.absolute()
    return path.parent.name if path.name == "model" and (path.parent / "run.toml").is_file() else path.name


def render_optimize_report(name: str, result: saved.OptimizeResult) -> str:
    """Render the report as one HTML page; all text in it is escaped.

    Args:
        name: the name of the model.
        result: what `optimize` measured and chose.
    """
    plotted = [row for row in result.measurements if row.comparison.logit_error is not None and row.throughput]
    best = saved.select_best_per_engine(result)
    sections = [("", html.render_stats(_build_cards(result)))]
    if plotted and all(row.comparison.match_rate is None for row in plotted):
        sections.append(("", html.render_note(_LOGITS_ONLY_NOTE)))
    if plotted:
        sections.append(
            ("Throughput against logit error", _draw_chart(result, plotted) + html.render_note(_CHART_NOTE))
        )
    sections.append(("The best of each engine", _render_table(result, best) + html.render_note(_TABLE_NOTE)))
    if reasons := saved.group_skip_reasons(best):
        sections.append(("Skipped", html.render_html_list(reasons)))
    sections.append(("All measurements", _render_table(result, result.measurements)))
    lead = f"Measured on {result.machine}; predictions compared on {result.comparison_data}."
    return html.render_html(f"engines of {name}", lead, sections, style=SCATTER_STYLE + _SCROLL_STYLE)


def _render_table(result: saved.OptimizeResult, rows: Sequence[saved.Measurement]) -> str:
    """Render the measured rows, without empty columns."""
    cells = (saved.format_table_row(row, result) for row in rows if row.throughput)
    records = [dict(zip(saved.HEADINGS, row_cells, strict=True)) for row_cells in cells]
    ordered = [*_FIRST_COLUMNS, *(name for name in saved.HEADINGS if name not in _FIRST_COLUMNS)]
    columns = [name for name in ordered if any(row[name] for row in records)]
    return html.render_html_table(columns, ([row[name] for name in columns] for row in records))


def _build_cards(result: saved.OptimizeResult) -> Iterator[tuple[str, str, str]]:
    baseline = saved.find_baseline(result.measurements)
    for engine in result.engines:
        speedup = format_speedup(engine.measurement, baseline) if engine.purpose == "throughput" else ""
        details = ", ".join(filter(None, (_PURPOSES[engine.purpose], _format_config(engine.config), speedup)))
        yield engine.purpose, format_headline(engine), details
    if baseline:
        details = f"PyTorch with folded norms, {_format_config(baseline.config)}"
        yield "baseline", f"{baseline.throughput:,.1f} images/s", details


def format_speedup(row: saved.Measurement, baseline: saved.Measurement | None) -> str:
    """Return the speedup over the baseline, which was measured in the same round; empty if unknown.

    Args:
        row: the measurement.
        baseline: the measurement to divide by.
    """
    if baseline is None or not baseline.throughput:
        return ""
    return _use_nonbreaking_spaces(f"{row.throughput / baseline.throughput:.1f} times") + " eager fp32"


def _format_config(config: EngineConfig) -> str:
    """Return a configuration that may break only after its comma."""
    return ", ".join(map(_use_nonbreaking_spaces, str(config).split(", ")))


def _use_nonbreaking_spaces(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def format_headline(engine: saved.SavedEngine) -> str:
    """Return the number that a saved engine was chosen for, with its unit."""
    row = engine.measurement
    return {
        "latency": f"{row.latency_ms or 0:,.2f} ms",
        "throughput": f"{row.throughput:,.1f} images/s",
        "startup": f"{row.startup_seconds or 0:.2f} s",
    }[engine.purpose]


def _draw_chart(result: saved.OptimizeResult, rows: list[saved.Measurement]) -> str:
    points = [
        ScatterPoint(
            color_group=row.config.engine,
            x=row.comparison.logit_error or 0.0,
            y=row.throughput,
            tooltip=_format_tooltip(row),
            is_hollow=bool(row.reason),
            shape_group=row.config.precision,
            label=result.list_purposes(row.config),
        )
        for row in rows
    ]
    return draw_scatter_plot("throughput against logit error", ("logit error", "images/s"), points)


def _format_tooltip(row: saved.Measurement) -> str:
    reason = f" ({row.reason})" if row.reason else ""
    return f"{row.config}: {row.throughput:,.1f} images/s, logit error {row.comparison.logit_error or 0:.1e}{reason}"
