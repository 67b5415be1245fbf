"""Charts as SVG: lines over steps, and a matrix of counts. Colours come from the page's style, with a fallback.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from resnetkit.html.svg import build_element, build_svg, build_text, build_title, build_wide_svg

_COLORS = (
    "var(--one, #2563eb)",
    "var(--two, #d9480f)",
    "var(--three, #2b8a3e)",
    "var(--four, #9c36b5)",
    "var(--five, #0b7285)",
    "var(--six, #846a00)",
)
_TEXT_COLOR, _MUTED_COLOR, _LINE_COLOR = "var(--ink, #1c2733)", "var(--soft, #5d6b7a)", "var(--line, #d5dce4)"
_LEFT, _RIGHT, _TOP, _WIDTH, _PLOT_HEIGHT = 46.0, 408.0, 14.0, 420.0, 190.0
_MAX_VALUE = 1e12  # farther away than any figure worth a chart
_LEGEND_COLUMNS, _LEGEND_ROW_HEIGHT = 2, 18.0  # names in a row above the lines


def draw_line_chart(
    label: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]], y_min: float | None = None
) -> str:
    """Named series of (x, y) over a shared axis, which begins at ``low`` if that is given.

    Values that are not finite, or absurdly large, are left out.
    """
    finite_series = {
        name: [point for point in points if all(math.isfinite(value) and abs(value) < _MAX_VALUE for value in point)]
        for name, points in series.items()
    }
    points = [point for line_points in finite_series.values() for point in line_points] or [(0.0, 0.0)]
    x_min, x_max = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _compute_ticks(min(y for _, y in points) if y_min is None else y_min, max(y for _, y in points))
    top = _TOP + _LEGEND_ROW_HEIGHT * math.ceil(len(finite_series) / _LEGEND_COLUMNS)
    bottom = top + _PLOT_HEIGHT

    def project(x: float, y: float) -> tuple[float, float]:
        fraction = (x - x_min) / (x_max - x_min) if x_max > x_min else 0.5
        return _LEFT + fraction * (_RIGHT - _LEFT), bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * _PLOT_HEIGHT

    grid = [mark for tick in ticks for mark in _draw_gridline(tick, project(x_min, tick)[1])]
    axis_labels = [
        build_text(f"{x_min:.4g}", _LEFT, bottom + 18, fill=_MUTED_COLOR),
        build_text(f"{x_max:.4g}" * (x_max > x_min), _RIGHT, bottom + 18, fill=_MUTED_COLOR, text_anchor="end"),
        build_text(x_label, (_LEFT + _RIGHT) / 2, bottom + 18, fill=_MUTED_COLOR, text_anchor="middle"),
    ]
    curves = [
        _draw_curve(i, name, [project(*point) for point in line_points])
        for i, (name, line_points) in enumerate(finite_series.items())
    ]
    return build_svg(_WIDTH, bottom + 28, label, *grid, *axis_labels, *curves)


@dataclass(frozen=True)
class ScatterPoint:
    """A place in `dots`: coloured by its ``group``, shaped by its ``kind``, hollow where it is ``open``.

    ``note`` shows when one points at it; one with a ``mark`` has a ring around it, and the mark beside it.
    """

    color_group: str
    x: float
    y: float
    tooltip: str
    is_hollow: bool = False
    shape_group: str = ""
    label: str = ""


SCATTER_STYLE = """
svg.plot { height: 360px; width: calc(100% - 60px); margin-left: 48px; overflow: visible; }
svg.plot svg { overflow: visible; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .5rem 0; font-size: .85rem; }
.key span { display: inline-flex; align-items: center; gap: .35rem; white-space: nowrap; }
"""
_SCATTER_HEIGHT, _SCATTER_TOP, _SCATTER_BOTTOM, _SCATTER_WIDTH = (
    360.0,
    30.0,
    312.0,
    84.0,
)  # of a plot: its height, where y ends and begins, its part of 100 %
_SHAPES = (  # what is drawn, around (0, 0)
    "circle",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6L5.5,4.5H-5.5z",
    "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
    "M0,6L5.5,-4.5H-5.5z",
)


def draw_scatter_plot(label: str, axis_labels: tuple[str, str], points: Sequence[ScatterPoint]) -> str:
    """Points by the magnitude of x (a decade is as wide as the next) and by y, under a key to colours and shapes.

    ``axes`` names x and y. The picture is as wide as its frame; its page has `PLOT_STYLE`.
    """
    color_groups, shape_groups = (
        list(dict.fromkeys(labels))
        for labels in zip(*((point.color_group, point.shape_group) for point in points), strict=True)
    )
    exponents = [math.log10(max(point.x, _MIN_X)) for point in points]
    first, last = math.floor(min(exponents)), math.ceil(max(*exponents, math.floor(min(exponents)) + 1))
    ticks = _compute_ticks(0.0, max(point.y for point in points))

    def to_x(exponent: float) -> float:
        return 2 + (exponent - first) / (last - first) * 96

    def to_y(y: float) -> float:
        return _SCATTER_BOTTOM - y / ticks[-1] * (_SCATTER_BOTTOM - _SCATTER_TOP)

    grid = [mark for tick in ticks for mark in _draw_scatter_gridline(tick, to_y(tick))]
    step = 1 if last - first <= _MAX_DECADES else 2
    x_ticks = [_draw_decade_label(exponent, to_x(exponent)) for exponent in range(first, last + 1, step)]
    labels = [
        build_text(axis_labels[1], -_LEFT, 12.0, fill=_MUTED_COLOR),
        build_text(axis_labels[0], "50%", _SCATTER_BOTTOM + 42, fill=_MUTED_COLOR, text_anchor="middle"),
    ]
    shapes = [
        _draw_point(
            _select_color(color_groups, point),
            shape_groups.index(point.shape_group),
            to_x(exponent),
            to_y(point.y),
            point,
        )
        for exponent, point in zip(exponents, points, strict=True)
    ]
    point_labels = _draw_point_labels(
        [(to_x(exponent), to_y(point.y), point.label) for exponent, point in zip(exponents, points, strict=True)]
    )
    return _draw_legend(color_groups, shape_groups, points) + build_wide_svg(
        _SCATTER_HEIGHT, label, *grid, *x_ticks, *labels, *shapes, *point_labels
    )


_MIN_X = 1e-9  # stands for no difference at all
_MAX_DECADES = 6  # whose figures stand beside each other on a telephone


def _select_color(color_groups: Sequence[str], point: ScatterPoint) -> str:
    return _COLORS[color_groups.index(point.color_group) % len(_COLORS)]


def _draw_scatter_gridline(value: float, y: float) -> tuple[str, str]:
    gridline = build_element("line", x1=0, x2="100%", y1=y, y2=y, stroke=_LINE_COLOR)
    return gridline, build_text(f"{value:,g}", -6.0, y + 4, fill=_MUTED_COLOR, text_anchor="end")


def _draw_decade_label(exponent: int, x: float) -> str:
    text = f"{10.0**exponent:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return build_text(text, f"{x:.4g}%", _SCATTER_BOTTOM + 20, fill=_MUTED_COLOR, text_anchor="middle")


def _draw_point(color: str, shape_index: int, x: float, y: float, point: ScatterPoint) -> str:
    style = {"fill": "none", "stroke": color, "stroke_width": 1.5} if point.is_hollow else {"fill": color}
    ring = [build_element("circle", r=9.5, fill="var(--paper, #ffffff)", stroke=_TEXT_COLOR, stroke_width=1.5)] * bool(
        point.label
    )
    shape = _draw_shape(_SHAPES[shape_index % len(_SHAPES)], build_title(point.tooltip), **style)
    return build_element("svg", *ring, shape, x=f"{x:.4g}%", y=y, overflow="visible")


def _draw_shape(shape: str, *children: str, **style: Any) -> str:
    return (
        build_element("circle", *children, r=5, **style)
        if shape == "circle"
        else build_element("path", *children, d=shape, **style)
    )


def _draw_point_labels(labeled_points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Marks beside their dots, on the side where there is room, none over another; the lowest stands where it is."""
    elements, next_y = [], math.inf
    for x, y, label in sorted((point for point in labeled_points if point[2]), key=lambda point: -point[1]):
        next_y = min(y + 4, next_y - 16)
        offset = {"dx": -14, "text_anchor": "end"} if x > 50 else {"dx": 14}
        halo = {"stroke": "var(--paper, #ffffff)", "stroke_width": 3, "paint_order": "stroke"}
        elements.append(build_text(label, f"{x:.4g}%", next_y, fill=_TEXT_COLOR, font_weight=600, **halo, **offset))
    return elements


_LegendEntry = tuple[str, dict[str, Any], str]  # a name, and the look and the form of its mark


def _draw_legend(color_groups: Sequence[str], shape_groups: Sequence[str], points: Sequence[ScatterPoint]) -> str:
    """What colours and shapes mean, as lines that break where they must."""
    colors: list[_LegendEntry] = [
        (name, {"fill": _COLORS[i % len(_COLORS)]}, _SHAPES[0]) for i, name in enumerate(color_groups)
    ]
    shapes: list[_LegendEntry] = [
        (name, {"fill": _TEXT_COLOR}, _SHAPES[i % len(_SHAPES)]) for i, name in enumerate(shape_groups)
    ]
    hollow: list[_LegendEntry] = [("left out", {"fill": "none", "stroke": _TEXT_COLOR}, _HOLLOW)] * any(
        point.is_hollow for point in points
    )
    ring: list[_LegendEntry] = [("kept", {"fill": "none", "stroke": _TEXT_COLOR, "stroke_width": 1.5}, _RING)] * any(
        point.label for point in points
    )
    return "".join(
        _draw_legend_row(row) for row in (colors, [entry for entry in [*shapes, *hollow, *ring] if entry[0]]) if row
    )


_HOLLOW = "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
_RING = "M-8,0a8,8 0 1,0 16,0a8,8 0 1,0 -16,0z"


def _draw_legend_row(row: Sequence[_LegendEntry]) -> str:
    entries = [
        build_element("span", build_element("svg", _draw_shape(shape, **style), width=20, height=20, viewBox="-10 -10 20 20"),
                escape(name))
        for name, style, shape in row
    ]  # fmt: skip
    return build_element("div", *entries, class_="key")


def _get_legend_position(index: int) -> tuple[float, float]:
    return _LEFT + 185.0 * (index % _LEGEND_COLUMNS), 14.0 + _LEGEND_ROW_HEIGHT * (index // _LEGEND_COLUMNS)


def _draw_legend_name(name: str, x: float, y: float) -> str:
    return build_text(_truncate(name, 21), x + 24, y + 4, fill=_TEXT_COLOR)


def _draw_gridline(value: float, y: float) -> tuple[str, str]:
    gridline = build_element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, stroke=_LINE_COLOR)
    return gridline, build_text(f"{value:g}", _LEFT - 6, y + 4, fill=_MUTED_COLOR, text_anchor="end")


def _draw_curve(index: int, name: str, points: Sequence[tuple[float, float]]) -> str:
    color, dash = _COLORS[index % len(_COLORS)], {"stroke_dasharray": "6 4"} if index >= len(_COLORS) else {}
    x, y = _get_legend_position(index)
    legend_line = build_element("line", x1=x, x2=x + 18, y1=y, y2=y, stroke=color, stroke_width=3, **dash)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    polyline = build_element("polyline", points=path, fill="none", stroke=color, stroke_width=2, **dash)
    markers = [build_element("circle", cx=x, cy=y, r=2.5, fill=color) for x, y in points] if len(points) <= 40 else []
    return build_element("g", legend_line, _draw_legend_name(name, x, y), polyline, *markers)


def _compute_ticks(low: float, high: float, n_ticks: int = 5) -> list[float]:
    """Round numbers from below the lowest to above the highest value."""
    low, high = max(low, -_MAX_VALUE), min(high, _MAX_VALUE)
    span = max(high - low or abs(high), 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / n_ticks))
    step = next(m * magnitude for m in (1, 2, 5, 10) if span / (m * magnitude) <= n_ticks)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def draw_confusion_matrix(label: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: a row per true class, a column per answer; the shade is the share of the row."""
    cell_size, max_length = 34.0, min(16, max(len(name) for name in classes))
    margin, top = 8.0 + 7.5 * max_length, 22.0 + (7.5 * max_length if max_length > 3 else 14.0)
    elements = [build_text("true class, down; answer, across", margin, 14.0, fill=_MUTED_COLOR)]
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        y, center = top + 8 + cell_size * i, margin + cell_size * i + cell_size / 2
        elements.append(
            build_text(_truncate(name), margin - 6, y + cell_size / 2 + 4, fill=_TEXT_COLOR, text_anchor="end")
        )
        rotation = {"transform": f"rotate(-90 {center + 4:g} {top:g})"} if max_length > 3 else {"text_anchor": "middle"}
        elements.append(
            build_text(_truncate(name), center + (4 if max_length > 3 else 0), top, fill=_TEXT_COLOR, **rotation)
        )
        for j, n in enumerate(row):
            fraction, tooltip = n / max(sum(row), 1), f"{name} taken for {classes[j]}: {n}"
            elements.append(
                _draw_cell(
                    margin + cell_size * j,
                    y,
                    size=cell_size,
                    n=n,
                    fraction=fraction,
                    is_correct=i == j,
                    tooltip=tooltip,
                )
            )
    width = max(margin + cell_size * len(classes) + 4, margin + 230.0)
    return build_svg(width, top + 12 + cell_size * len(classes), label, *elements)


def _draw_cell(x: float, y: float, *, size: float, n: int, fraction: float, is_correct: bool, tooltip: str) -> str:
    color, half = _COLORS[2] if is_correct else _COLORS[1], size / 2
    style = {"rx": 3, "fill": color if n else _LINE_COLOR, "fill_opacity": round(0.1 + 0.7 * fraction if n else 0.3, 3)}
    box = build_element("rect", build_title(tooltip), x=x, y=y, width=size - 2, height=size - 2, **style)
    number = build_text(str(n), x + half - 1, y + half + 4, fill=_TEXT_COLOR, text_anchor="middle", font_size=11)
    return build_element("g", box, number if n else "")


def _truncate(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
