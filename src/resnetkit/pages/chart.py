"""Charts as SVG: lines over steps, and a matrix of counts. Colours come from the page's style, with a fallback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnetkit.pages.svg import document, element, title, words

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
    """A place in `dots`: hollow where it is ``open``; ``note`` shows when one points at it."""

    group: str
    x: float
    y: float
    note: str
    open: bool = False


def dots(label: str, across: str, placed: Sequence[Dot]) -> str:
    """Points by the magnitude of x (a decade is as wide as the next) and by y, with a colour for each group."""
    groups = list(dict.fromkeys(dot.group for dot in placed))
    decades = [math.log10(max(dot.x, _LEAST)) for dot in placed] or [0.0]
    first, last = math.floor(min(decades)), math.ceil(max(*decades, math.floor(min(decades)) + 1))
    ticks = _ticks(0.0, max((dot.y for dot in placed), default=1.0))
    top = _TOP + _KEY_HEIGHT * math.ceil(len(groups) / _KEYS)
    bottom = top + _DEPTH

    def right(decade: float) -> float:
        return _LEFT + 8 + (decade - first) / (last - first) * (_RIGHT - _LEFT - 16)

    def up(y: float) -> float:
        return bottom - y / ticks[-1] * _DEPTH

    grid = [mark for tick in ticks for mark in _tick(tick, up(tick))]
    scale = [
        words(f"{10.0**decade:.0e}".replace("e-0", "e-").replace("e+0", "e"), right(decade), bottom + 18, fill=_SOFT,
              text_anchor="middle")
        for decade in range(first, last + 1)
    ]  # fmt: skip
    named = [_key(i, name) for i, name in enumerate(groups)]
    drawn = [
        _dot(groups.index(dot.group), right(decade), up(dot.y), dot)
        for decade, dot in zip(decades, placed, strict=True)
    ]
    middle = words(across, (_LEFT + _RIGHT) / 2, bottom + 36, fill=_SOFT, text_anchor="middle")
    return document(_WIDTH, bottom + 46, label, *grid, *scale, middle, *named, *drawn)


_LEAST = 1e-9  # stands for no difference at all


def _key(index: int, name: str) -> str:
    x, y = _key_place(index)
    mark = element("circle", cx=x + 9, cy=y, r=4, fill=_COLOURS[index % len(_COLOURS)])
    return element("g", mark, _key_name(name, x, y))


def _key_place(index: int) -> tuple[float, float]:
    return _LEFT + 185.0 * (index % _KEYS), 14.0 + _KEY_HEIGHT * (index // _KEYS)


def _key_name(name: str, x: float, y: float) -> str:
    return words(_short(name, 21), x + 24, y + 4, fill=_INK)


def _dot(index: int, x: float, y: float, dot: Dot) -> str:
    colour = _COLOURS[index % len(_COLOURS)]
    look = {"fill": "none", "stroke": colour, "stroke_width": 1.5} if dot.open else {"fill": colour}
    return element("circle", title(dot.note), cx=x, cy=y, r=4.5, **look)


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
