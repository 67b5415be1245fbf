"""Draw charts as SVG: lines, scatter plots and confusion matrices. Colors come from the page's style, with a fallback.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from resnetkit.formatting import truncate
from resnetkit.html.svg import build_element, build_svg, build_text, build_title, build_wide_svg

_HUES = {"one": "#2563eb", "two": "#d9480f", "three": "#2b8a3e", "four": "#9c36b5", "five": "#0b7285", "six": "#846a00"}
_COLORS = tuple(f"var(--{name}, {color})" for name, color in _HUES.items())
_TEXT_COLOR, _MUTED_COLOR, _LINE_COLOR = "var(--ink, #1c2733)", "var(--soft, #5d6b7a)", "var(--line, #d5dce4)"
_PAPER_COLOR = "var(--paper, #ffffff)"
_LEFT, _RIGHT, _TOP, _WIDTH, _PLOT_HEIGHT = 46.0, 408.0, 14.0, 420.0, 190.0
_MAX_VALUE = 1e12  # larger than any value worth a chart
_LEGEND_COLUMNS, _LEGEND_ROW_HEIGHT, _CELL_SIZE = 2, 18.0, 34.0
_SCATTER_HEIGHT, _SCATTER_TOP, _SCATTER_BOTTOM = 360.0, 30.0, 312.0  # the y axis reaches from bottom to top
_MIN_X = 1e-9  # where a scatter plot, whose x axis is logarithmic, draws 0
_MAX_DECADES = 6  # as many labels fit side by side on a phone
_SHAPES = (  # paths around (0, 0)
    "circle",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6L5.5,4.5H-5.5z",
    "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
    "M0,6L5.5,-4.5H-5.5z",
)
_HOLLOW = "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
_RING = "M-8,0a8,8 0 1,0 16,0a8,8 0 1,0 -16,0z"
SCATTER_STYLE = """
svg.plot { height: 360px; width: calc(100% - 60px); margin-left: 48px; overflow: visible; }
svg.plot svg { overflow: visible; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .5rem 0; font-size: .85rem; }
.key span { display: inline-flex; align-items: center; gap: .35rem; white-space: nowrap; }
"""


# --------------------------------------------------------------------------------------------------------------- lines


def draw_line_chart(
    label: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]], y_min: float | None = None
) -> str:
    """Draw named lines over a shared x axis; infinite, NaN and absurdly large values are omitted.

    Args:
        label: The description for screen readers.
        x_label: The name of the x axis.
        series: Name -> its (x, y) points.
        y_min: The lowest value of the y axis, by default the smallest y.
    """
    lines = {
        name: [point for point in points if all(math.isfinite(value) and abs(value) < _MAX_VALUE for value in point)]
        for name, points in series.items()
    }
    points = [point for line in lines.values() for point in line] or [(0.0, 0.0)]
    (x_min, y_low), (x_max, y_high) = map(min, zip(*points, strict=True)), map(max, zip(*points, strict=True))
    ticks = compute_ticks(y_low if y_min is None else y_min, y_high)
    bottom = _TOP + _LEGEND_ROW_HEIGHT * math.ceil(len(lines) / _LEGEND_COLUMNS) + _PLOT_HEIGHT

    def project(x: float, y: float) -> tuple[float, float]:
        fraction = (x - x_min) / (x_max - x_min) if x_max > x_min else 0.5
        return _LEFT + fraction * (_RIGHT - _LEFT), bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * _PLOT_HEIGHT

    def draw_x_label(text: str, x: float, **anchor: str) -> str:
        return build_text(text, x, bottom + 18, fill=_MUTED_COLOR, **anchor)

    elements = [mark for tick in ticks for mark in _draw_gridline(f"{tick:g}", project(x_min, tick)[1], _LEFT, _RIGHT)]
    elements += [draw_x_label(f"{x_min:.4g}", _LEFT), draw_x_label(x_label, (_LEFT + _RIGHT) / 2, text_anchor="middle")]
    if x_max > x_min:
        elements.append(draw_x_label(f"{x_max:.4g}", _RIGHT, text_anchor="end"))
    elements += [_draw_line(i, name, [project(*point) for point in lines[name]]) for i, name in enumerate(lines)]
    return build_svg(_WIDTH, bottom + 28, label, *elements)


def _draw_gridline(label: str, y: float, left: float, right: float | str) -> tuple[str, str]:
    gridline = build_element("line", x1=left, x2=right, y1=y, y2=y, stroke=_LINE_COLOR)
    return gridline, build_text(label, left - 6, y + 4, fill=_MUTED_COLOR, text_anchor="end")


def _draw_line(index: int, name: str, points: Sequence[tuple[float, float]]) -> str:
    color, dash = _COLORS[index % len(_COLORS)], {"stroke_dasharray": "6 4"} if index >= len(_COLORS) else {}
    x, y = _LEFT + 185.0 * (index % _LEGEND_COLUMNS), _TOP + _LEGEND_ROW_HEIGHT * (index // _LEGEND_COLUMNS)
    legend_line = build_element("line", x1=x, x2=x + 18, y1=y, y2=y, stroke=color, stroke_width=3, **dash)
    legend_name = build_text(truncate(name, 21, "…"), x + 24, y + 4, fill=_TEXT_COLOR)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    polyline = build_element("polyline", points=path, fill="none", stroke=color, stroke_width=2, **dash)
    markers = [build_element("circle", cx=x, cy=y, r=2.5, fill=color) for x, y in points] if len(points) <= 40 else []
    return build_element("g", legend_line, legend_name, polyline, *markers)


def compute_ticks(low: float, high: float, n_ticks: int = 5) -> list[float]:
    """Compute round numbers that enclose an interval.

    Args:
        low: The lowest value.
        high: The highest value.
        n_ticks: The largest number of steps between ticks that lie in the interval.
    """
    low, high = max(low, -_MAX_VALUE), min(high, _MAX_VALUE)
    span = max(high - low or abs(high), 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / n_ticks))
    step = next(m * magnitude for m in (1, 2, 5, 10) if span / (m * magnitude) <= n_ticks)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


# ------------------------------------------------------------------------------------------------------------- scatter


@dataclass(frozen=True)
class ScatterPoint:
    """A point of `draw_scatter_plot`.

    Attributes:
        color_group: The group that chooses the color.
        x: The value on the logarithmic x axis.
        y: The value on the y axis.
        tooltip: The text that a pointer shows.
        is_hollow: Whether only the outline is drawn, for excluded points.
        shape_group: The group that chooses the shape.
        label: The text next to the point; a point with a label also gets a ring.
    """

    color_group: str
    x: float
    y: float
    tooltip: str
    is_hollow: bool = False
    shape_group: str = ""
    label: str = ""


def draw_scatter_plot(label: str, axis_labels: tuple[str, str], points: Sequence[ScatterPoint]) -> str:
    """Draw points over a logarithmic x axis, below a legend of colors and shapes.

    The image is as wide as its frame; the page must include `SCATTER_STYLE`.

    Args:
        label: The description for screen readers.
        axis_labels: The names of x and y.
        points: The points; at least one.
    """
    color_groups = list(dict.fromkeys(point.color_group for point in points))
    shape_groups = list(dict.fromkeys(point.shape_group for point in points))
    exponents = [math.log10(max(point.x, _MIN_X)) for point in points]
    first = math.floor(min(exponents))
    last = math.ceil(max(*exponents, first + 1))
    ticks = compute_ticks(0.0, max(point.y for point in points))

    def to_x(exponent: float) -> float:
        return 2 + (exponent - first) / (last - first) * 96

    def to_y(y: float) -> float:
        return _SCATTER_BOTTOM - y / ticks[-1] * (_SCATTER_BOTTOM - _SCATTER_TOP)

    elements = [mark for tick in ticks for mark in _draw_gridline(f"{tick:,g}", to_y(tick), 0, "100%")]
    step = 1 if last - first <= _MAX_DECADES else 2
    elements += [_draw_decade_label(exponent, to_x(exponent)) for exponent in range(first, last + 1, step)]
    elements.append(build_text(axis_labels[1], -_LEFT, 12.0, fill=_MUTED_COLOR))
    elements.append(build_text(axis_labels[0], "50%", _SCATTER_BOTTOM + 42, fill=_MUTED_COLOR, text_anchor="middle"))
    places = [(to_x(exponent), to_y(point.y)) for exponent, point in zip(exponents, points, strict=True)]
    for point, (x, y) in zip(points, places, strict=True):
        color = _COLORS[color_groups.index(point.color_group) % len(_COLORS)]
        elements.append(_draw_point(color, _SHAPES[shape_groups.index(point.shape_group) % len(_SHAPES)], x, y, point))
    elements += _draw_point_labels([(*place, point.label) for place, point in zip(places, points, strict=True)])
    return _draw_legend(color_groups, shape_groups, points) + build_wide_svg(_SCATTER_HEIGHT, label, *elements)


def _draw_decade_label(exponent: int, x: float) -> str:
    text = f"{10.0**exponent:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return build_text(text, f"{x:.4g}%", _SCATTER_BOTTOM + 20, fill=_MUTED_COLOR, text_anchor="middle")


def _draw_point(color: str, shape: str, x: float, y: float, point: ScatterPoint) -> str:
    style = {"fill": "none", "stroke": color, "stroke_width": 1.5} if point.is_hollow else {"fill": color}
    marks = [_draw_shape(shape, build_title(point.tooltip), **style)]
    if point.label:
        marks.insert(0, build_element("circle", r=9.5, fill=_PAPER_COLOR, stroke=_TEXT_COLOR, stroke_width=1.5))
    return build_element("svg", *marks, x=f"{x:.4g}%", y=y, overflow="visible")


def _draw_shape(shape: str, *children: str, **style: Any) -> str:
    if shape == "circle":
        return build_element("circle", *children, r=5, **style)
    return build_element("path", *children, d=shape, **style)


def _draw_point_labels(labeled_points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Draw labels next to their points, on the side with more room; close labels move up."""
    elements, next_y = [], math.inf
    style: dict[str, Any] = {"stroke": _PAPER_COLOR, "stroke_width": 3, "paint_order": "stroke"}
    for x, y, label in sorted((point for point in labeled_points if point[2]), key=lambda point: -point[1]):
        next_y = min(y + 4, next_y - 16)
        offset = {"dx": -14, "text_anchor": "end"} if x > 50 else {"dx": 14}
        elements.append(build_text(label, f"{x:.4g}%", next_y, fill=_TEXT_COLOR, font_weight=600, **style, **offset))
    return elements


def _draw_legend(color_groups: Sequence[str], shape_groups: Sequence[str], points: Sequence[ScatterPoint]) -> str:
    outline = {"fill": "none", "stroke": _TEXT_COLOR}
    colors = [(name, "circle", {"fill": _COLORS[i % len(_COLORS)]}) for i, name in enumerate(color_groups)]
    shapes: list[tuple[str, str, dict[str, Any]]] = [
        (name, _SHAPES[i % len(_SHAPES)], {"fill": _TEXT_COLOR}) for i, name in enumerate(shape_groups) if name
    ]
    if any(point.is_hollow for point in points):
        shapes.append(("excluded", _HOLLOW, outline))
    if any(point.label for point in points):
        shapes.append(("chosen", _RING, outline | {"stroke_width": 1.5}))
    return "".join(_draw_legend_row(row) for row in (colors, shapes) if row)


def _draw_legend_row(entries: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    """Draw (name, shape, style) of each entry."""
    frame = {"width": 20, "height": 20, "viewBox": "-10 -10 20 20"}
    icons = [build_element("svg", _draw_shape(shape, **style), **frame) for _, shape, style in entries]
    spans = [build_element("span", icon, escape(name)) for icon, (name, _, _) in zip(icons, entries, strict=True)]
    return build_element("div", *spans, class_="key")


# --------------------------------------------------------------------------------------------------- confusion matrix


def draw_confusion_matrix(label: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draw a confusion matrix; the shade of a cell is its fraction of the row.

    Args:
        label: The description for screen readers.
        classes: The class names.
        counts: The number of images of each true class (row) and predicted class (column).
    """
    size, max_length = _CELL_SIZE, min(16, max(map(len, classes)))
    is_upright = max_length > 3  # long column headings are rotated
    left, top = 8.0 + 7.5 * max_length, 22.0 + (7.5 * max_length if is_upright else 14.0)
    elements = [build_text("rows: true, columns: predicted", left, 14.0, fill=_MUTED_COLOR)]
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        y, x = top + 8 + size * i, left + size * (i + 0.5) + (4 if is_upright else 0)
        style = {"transform": f"rotate(-90 {x:g} {top:g})"} if is_upright else {"text_anchor": "middle"}
        elements.append(
            build_text(truncate(name, 16, "…"), left - 6, y + size / 2 + 4, fill=_TEXT_COLOR, text_anchor="end")
        )
        elements.append(build_text(truncate(name, 16, "…"), x, top, fill=_TEXT_COLOR, **style))
        for j, n in enumerate(row):
            fraction, tooltip = n / max(sum(row), 1), f"{name} predicted as {classes[j]}: {n}"
            elements.append(_draw_cell(left + size * j, y, n, fraction, _COLORS[2 if i == j else 1], tooltip=tooltip))
    width = max(left + size * len(classes) + 4, left + 230.0)
    return build_svg(width, top + 12 + size * len(classes), label, *elements)


def _draw_cell(x: float, y: float, n: int, fraction: float, color: str, *, tooltip: str) -> str:
    style = {"rx": 3, "fill": color if n else _LINE_COLOR, "fill_opacity": round(0.1 + 0.7 * fraction if n else 0.3, 3)}
    box = build_element("rect", build_title(tooltip), x=x, y=y, width=_CELL_SIZE - 2, height=_CELL_SIZE - 2, **style)
    style = {"fill": _TEXT_COLOR, "text_anchor": "middle", "font_size": 11}
    count = build_text(str(n), x + _CELL_SIZE / 2 - 1, y + _CELL_SIZE / 2 + 4, **style) if n else ""
    return build_element("g", box, count)
