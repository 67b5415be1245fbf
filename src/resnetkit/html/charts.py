"""Charts as SVG: lines over steps, and a matrix of counts. Colours come from the page's style, with a fallback.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from resnetkit.html.svg import document, element, plot, title, words

_COLOURS = (
    "var(--one, #2563eb)",
    "var(--two, #d9480f)",
    "var(--three, #2b8a3e)",
    "var(--four, #9c36b5)",
    "var(--five, #0b7285)",
    "var(--six, #846a00)",
)
_INK, _SOFT, _LINE = "var(--ink, #1c2733)", "var(--soft, #5d6b7a)", "var(--line, #d5dce4)"
_LEFT, _RIGHT, _TOP, _WIDTH, _DEPTH = 46.0, 408.0, 14.0, 420.0, 190.0
_FAR = 1e12  # farther away than any figure worth a chart
_KEYS, _KEY_HEIGHT = 2, 18.0  # names in a row above the lines


def lines(
    label: str, across: str, series: Mapping[str, Sequence[tuple[float, float]]], low: float | None = None
) -> str:
    """Named series of (x, y) over a shared axis, which begins at ``low`` if that is given.

    Values that are not finite, or absurdly large, are left out.
    """
    shown = {
        name: [point for point in points if all(math.isfinite(value) and abs(value) < _FAR for value in point)]
        for name, points in series.items()
    }
    points = [point for line in shown.values() for point in line] or [(0.0, 0.0)]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points) if low is None else low, max(y for _, y in points))
    top = _TOP + _KEY_HEIGHT * math.ceil(len(shown) / _KEYS)
    bottom = top + _DEPTH

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        return _LEFT + across * (_RIGHT - _LEFT), bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * _DEPTH

    grid = [mark for tick in ticks for mark in _tick(tick, place(left, tick)[1])]
    ends = [
        words(f"{left:.4g}", _LEFT, bottom + 18, fill=_SOFT),
        words(f"{right:.4g}" * (right > left), _RIGHT, bottom + 18, fill=_SOFT, text_anchor="end"),
        words(across, (_LEFT + _RIGHT) / 2, bottom + 18, fill=_SOFT, text_anchor="middle"),
    ]
    drawn = [_line(i, name, [place(*point) for point in line]) for i, (name, line) in enumerate(shown.items())]
    return document(_WIDTH, bottom + 28, label, *grid, *ends, *drawn)


@dataclass(frozen=True)
class Dot:
    """A place in `dots`: coloured by its ``group``, shaped by its ``kind``, hollow where it is ``open``.

    ``note`` shows when one points at it; one with a ``mark`` has a ring around it, and the mark beside it.
    """

    group: str
    x: float
    y: float
    note: str
    open: bool = False
    kind: str = ""
    mark: str = ""


PLOT_STYLE = """
svg.plot { height: 360px; width: calc(100% - 60px); margin-left: 48px; overflow: visible; }
svg.plot svg { overflow: visible; }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .5rem 0; font-size: .85rem; }
.key span { display: inline-flex; align-items: center; gap: .35rem; white-space: nowrap; }
"""
_TALL, _HIGH, _LOW, _SHARE = (
    360.0,
    30.0,
    312.0,
    84.0,
)  # of a plot: its height, where y ends and begins, its part of 100 %
_MARKS = (  # what is drawn, around (0, 0)
    "circle",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6L5.5,4.5H-5.5z",
    "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
    "M0,6L5.5,-4.5H-5.5z",
)


def dots(label: str, axes: tuple[str, str], placed: Sequence[Dot]) -> str:
    """Points by the magnitude of x (a decade is as wide as the next) and by y, under a key to colours and shapes.

    ``axes`` names x and y. The picture is as wide as its frame; its page has `PLOT_STYLE`.
    """
    groups, kinds = (
        list(dict.fromkeys(names)) for names in zip(*((dot.group, dot.kind) for dot in placed), strict=True)
    )
    decades = [math.log10(max(dot.x, _LEAST)) for dot in placed]
    first, last = math.floor(min(decades)), math.ceil(max(*decades, math.floor(min(decades)) + 1))
    ticks = _ticks(0.0, max(dot.y for dot in placed))

    def across(decade: float) -> float:
        return 2 + (decade - first) / (last - first) * 96

    def up(y: float) -> float:
        return _LOW - y / ticks[-1] * (_LOW - _HIGH)

    grid = [mark for tick in ticks for mark in _rule(tick, up(tick))]
    each = 1 if last - first <= _MOST_DECADES else 2
    scale = [_decade(decade, across(decade)) for decade in range(first, last + 1, each)]
    names = [
        words(axes[1], -_LEFT, 12.0, fill=_SOFT),
        words(axes[0], "50%", _LOW + 42, fill=_SOFT, text_anchor="middle"),
    ]
    drawn = [
        _dot(_colour(groups, dot), kinds.index(dot.kind), across(decade), up(dot.y), dot)
        for decade, dot in zip(decades, placed, strict=True)
    ]
    marked = _labels([(across(decade), up(dot.y), dot.mark) for decade, dot in zip(decades, placed, strict=True)])
    return _keys(groups, kinds, placed) + plot(_TALL, label, *grid, *scale, *names, *drawn, *marked)


_LEAST = 1e-9  # stands for no difference at all
_MOST_DECADES = 6  # whose figures stand beside each other on a telephone


def _colour(groups: Sequence[str], dot: Dot) -> str:
    return _COLOURS[groups.index(dot.group) % len(_COLOURS)]


def _rule(value: float, y: float) -> tuple[str, str]:
    rule = element("line", x1=0, x2="100%", y1=y, y2=y, stroke=_LINE)
    return rule, words(f"{value:,g}", -6.0, y + 4, fill=_SOFT, text_anchor="end")


def _decade(decade: int, x: float) -> str:
    told = f"{10.0**decade:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return words(told, f"{x:.4g}%", _LOW + 20, fill=_SOFT, text_anchor="middle")


def _dot(colour: str, kind: int, x: float, y: float, dot: Dot) -> str:
    look = {"fill": "none", "stroke": colour, "stroke_width": 1.5} if dot.open else {"fill": colour}
    ring = [element("circle", r=9.5, fill="var(--paper, #ffffff)", stroke=_INK, stroke_width=1.5)] * bool(dot.mark)
    shape = _mark(_MARKS[kind % len(_MARKS)], title(dot.note), **look)
    return element("svg", *ring, shape, x=f"{x:.4g}%", y=y, overflow="visible")


def _mark(form: str, *inside: str, **look: Any) -> str:
    return element("circle", *inside, r=5, **look) if form == "circle" else element("path", *inside, d=form, **look)


def _labels(placed: Sequence[tuple[float, float, str]]) -> list[str]:
    """Marks beside their dots, on the side where there is room, none over another; the lowest stands where it is."""
    made, free = [], math.inf
    for x, y, mark in sorted((one for one in placed if one[2]), key=lambda one: -one[1]):
        free = min(y + 4, free - 16)
        side = {"dx": -14, "text_anchor": "end"} if x > 50 else {"dx": 14}
        halo = {"stroke": "var(--paper, #ffffff)", "stroke_width": 3, "paint_order": "stroke"}
        made.append(words(mark, f"{x:.4g}%", free, fill=_INK, font_weight=600, **halo, **side))
    return made


_Key = tuple[str, dict[str, Any], str]  # a name, and the look and the form of its mark


def _keys(groups: Sequence[str], kinds: Sequence[str], placed: Sequence[Dot]) -> str:
    """What colours and shapes mean, as lines that break where they must."""
    colours: list[_Key] = [(name, {"fill": _COLOURS[i % len(_COLOURS)]}, _MARKS[0]) for i, name in enumerate(groups)]
    shapes: list[_Key] = [(name, {"fill": _INK}, _MARKS[i % len(_MARKS)]) for i, name in enumerate(kinds)]
    hollow: list[_Key] = [("left out", {"fill": "none", "stroke": _INK}, _HOLLOW)] * any(dot.open for dot in placed)
    ring: list[_Key] = [("kept", {"fill": "none", "stroke": _INK, "stroke_width": 1.5}, _RING)] * any(
        dot.mark for dot in placed
    )
    return "".join(_key_row(row) for row in (colours, [one for one in [*shapes, *hollow, *ring] if one[0]]) if row)


_HOLLOW = "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
_RING = "M-8,0a8,8 0 1,0 16,0a8,8 0 1,0 -16,0z"


def _key_row(row: Sequence[_Key]) -> str:
    shown = [
        element("span", element("svg", _mark(form, **look), width=20, height=20, viewBox="-10 -10 20 20"),
                escape(name))
        for name, look, form in row
    ]  # fmt: skip
    return element("div", *shown, class_="key")


def _key_place(index: int) -> tuple[float, float]:
    return _LEFT + 185.0 * (index % _KEYS), 14.0 + _KEY_HEIGHT * (index // _KEYS)


def _key_name(name: str, x: float, y: float) -> str:
    return words(_short(name, 21), x + 24, y + 4, fill=_INK)


def _tick(value: float, y: float) -> tuple[str, str]:
    rule = element("line", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, stroke=_LINE)
    return rule, words(f"{value:g}", _LEFT - 6, y + 4, fill=_SOFT, text_anchor="end")


def _line(index: int, name: str, points: Sequence[tuple[float, float]]) -> str:
    colour, dash = _COLOURS[index % len(_COLOURS)], {"stroke_dasharray": "6 4"} if index >= len(_COLOURS) else {}
    x, y = _key_place(index)
    key = element("line", x1=x, x2=x + 18, y1=y, y2=y, stroke=colour, stroke_width=3, **dash)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = element("polyline", points=path, fill="none", stroke=colour, stroke_width=2, **dash)
    dots = [element("circle", cx=x, cy=y, r=2.5, fill=colour) for x, y in points] if len(points) <= 40 else []
    return element("g", key, _key_name(name, x, y), line, *dots)


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from below the lowest to above the highest value."""
    low, high = max(low, -_FAR), min(high, _FAR)
    span = max(high - low or abs(high), 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / about))
    step = next(m * magnitude for m in (1, 2, 5, 10) if span / (m * magnitude) <= about)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def matrix(label: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: a row per true class, a column per answer; the shade is the share of the row."""
    cell, longest = 34.0, min(16, max(len(name) for name in names))
    margin, top = 8.0 + 7.5 * longest, 22.0 + (7.5 * longest if longest > 3 else 14.0)
    marks = [words("true class, down; answer, across", margin, 14.0, fill=_SOFT)]
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        y, middle = top + 8 + cell * i, margin + cell * i + cell / 2
        marks.append(words(_short(name), margin - 6, y + cell / 2 + 4, fill=_INK, text_anchor="end"))
        turned = {"transform": f"rotate(-90 {middle + 4:g} {top:g})"} if longest > 3 else {"text_anchor": "middle"}
        marks.append(words(_short(name), middle + (4 if longest > 3 else 0), top, fill=_INK, **turned))
        for j, n in enumerate(row):
            share, note = n / max(sum(row), 1), f"{name} taken for {names[j]}: {n}"
            marks.append(_cell(margin + cell * j, y, size=cell, n=n, share=share, right=i == j, note=note))
    width = max(margin + cell * len(names) + 4, margin + 230.0)
    return document(width, top + 12 + cell * len(names), label, *marks)


def _cell(x: float, y: float, *, size: float, n: int, share: float, right: bool, note: str) -> str:
    colour, middle = _COLOURS[2] if right else _COLOURS[1], size / 2
    look = {"rx": 3, "fill": colour if n else _LINE, "fill_opacity": round(0.1 + 0.7 * share if n else 0.3, 3)}
    box = element("rect", title(note), x=x, y=y, width=size - 2, height=size - 2, **look)
    number = words(str(n), x + middle - 1, y + middle + 4, fill=_INK, text_anchor="middle", font_size=11)
    return element("g", box, number if n else "")


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
