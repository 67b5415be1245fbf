"""The drawing of a page: boxes on a wire, as high as their map and as wide as their channels, by square roots.

A shortcut leaves the wire before its block and comes back behind it. Beneath each box hangs a bar: its share of MACs.
Where the boxes do not fit into one row they go on in the next, like words. The script moves what depends on the size of
the image, by the numbers that stand in the `data-` attributes here.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from html import escape

from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain.page_facts import boxes
from resnetkit.html.svg import document, element, title, words

WIDTH = 1184.0
_LEFT, _RIGHT, _CAPTION, _GROUP_GAP = 128.0, 8.0, 92.0, 18.0
_IMAGE = 20
_NARROWEST, _LARGEST_UNIT = 4.0, 3.4
_ARC, _BARS, _BELOW = 30.0, 34.0, 66.0
KINDS = {  # the lines in the key: what each kind of shortcut is
    "identity": "shortcut: the input itself",
    "projection": "projection: a 1x1 convolution",
    "pooled projection": "pooled, then projected",
    "padded identity": "padded with channels of zeros",
    "pooled identity": "pooled: the channels stay",
}


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a part stands: its left edge, its width, and its row."""

    part: Place | Node
    group: int
    x: float
    width: float
    row: int = 0


@dataclass(frozen=True, slots=True)
class _Scale:
    """``tallest`` is the height of the image; ``unit`` the width of one channel, by its square root."""

    tallest: float
    unit: float
    gap: float
    wraps: bool = False

    @property
    def pitch(self) -> float:
        """From one row to the next."""
        return _ARC + self.tallest + _BARS + _BELOW

    def wide(self, part: Place | Node) -> float:
        """Wide enough to be met by a pointer."""
        return max(_NARROWEST, self.unit * _ask(part))

    def middle(self, row: int) -> float:
        return _ARC + self.tallest / 2 + row * self.pitch

    def tall(self, side: int, image: int) -> float:
        return max(6.0, self.tallest * math.sqrt(side / image))


def drawing(plan: Plan, name: str) -> str:
    """An SVG element; everything that a reader can choose carries its path."""
    groups = [boxes(part) for part in plan.root.children]
    scale = _scale(groups)
    placed = _placed(groups, scale)
    rows = max(box.row for box in placed) + 1
    heaviest = max(box.part.macs for box in placed) or 1
    marks = [_wire(placed, scale, row) for row in range(rows)]
    marks += [_picture(scale), *(_draw(plan, box, scale, heaviest) for box in placed), *_captions(plan, placed, scale)]
    drawn = element("g", SCENE, *marks, id="marks", data_tallest=scale.tallest, data_bars=_BARS - 8)
    return document(WIDTH, scale.pitch * rows, f"The network {name}, drawn to scale", drawn)


def key(plan: Plan) -> str:
    """What the lines mean; only those that are there."""
    there = {describe_shortcut(part) for part in plan.parts.values() if isinstance(part, Place) and _is_way(part)}
    order = dict.fromkeys([*KINDS, *sorted(there)])
    return "".join(_entry(kind, KINDS.get(kind, kind)) for kind in order if kind in there)


def _is_way(part: Place | Node) -> bool:
    return part.role == "shortcut"


def _entry(kind: str, label: str) -> str:
    line = element("path", d="M 1 15 V 8 Q 1 2 7 2 H 31 Q 37 2 37 8 V 15", class_=_class(kind))
    drawn = element("svg", line, width=38, height=16, viewBox="0 0 38 16", aria_hidden="true")
    return f"<li>{drawn}<span>{escape(label)}</span></li>"


def _class(kind: str) -> str:
    return "way " + kind.replace(" ", "-")


# ------------------------------------------------------------------------------------------------------------ layout


def _scale(groups: list[tuple[Place | Node, ...]]) -> _Scale:
    """The largest unit at which one row holds everything; where none does, rows of the smallest boxes."""
    count = sum(map(len, groups))
    gap = max(1.6, min(9.0, 216.0 / count))
    low, high = _NARROWEST / min(_ask(part) for part in max(groups, key=len)), _LARGEST_UNIT
    room = WIDTH - _LEFT - _RIGHT
    if _needed(groups, _Scale(0, low, gap)) > room:
        return _Scale(132.0, low, gap, wraps=True)
    for _ in range(30):
        half = (low + high) / 2
        low, high = (half, high) if _needed(groups, _Scale(0, half, gap)) <= room else (low, half)
    return _Scale(256.0, low, gap)


def _needed(groups: list[tuple[Place | Node, ...]], scale: _Scale) -> float:
    return sum(max(_CAPTION, _long(group, scale)) for group in groups) + _GROUP_GAP * (len(groups) - 1)


def _long(group: tuple[Place | Node, ...], scale: _Scale) -> float:
    return sum(scale.wide(part) + scale.gap for part in group) - scale.gap


def _ask(part: Place | Node) -> float:
    """A vector of a thousand numbers has no map and need not be the widest of all."""
    return math.sqrt(max(part.output[0], 16)) if len(part.output) == 3 else 6.0


def _placed(groups: list[tuple[Place | Node, ...]], scale: _Scale) -> list[_Box]:
    placed: list[_Box] = []
    x, row = _LEFT, 0
    for i, group in enumerate(groups):
        room = max(0.0, _CAPTION - _long(group, scale)) / 2
        x += room
        for part in group:
            width = scale.wide(part)
            if scale.wraps and x + width + room > WIDTH - _RIGHT:
                x, row = _RIGHT + room, row + 1
            placed.append(_Box(part, i, x, width, row))
            x += width + scale.gap
        x += room + _GROUP_GAP - scale.gap
    return placed if scale.wraps else _centred(placed)


def _centred(placed: list[_Box]) -> list[_Box]:
    """One short row stands in the middle of the room beside the image."""
    spare = max(0.0, WIDTH - _CAPTION / 2 - placed[-1].x - placed[-1].width) / 2
    return [replace(box, x=box.x + spare) for box in placed]


# ------------------------------------------------------------------------------------------------------------- marks


def _draw(plan: Plan, box: _Box, scale: _Scale, heaviest: int) -> str:
    part, middle = box.part, scale.middle(box.row)
    tall = scale.tall(side(part.output), max(plan.input[1:]))
    top = middle - tall / 2
    face = element("rect", class_="face", x=box.x, y=top, width=box.width, height=tall, rx=min(3.0, box.width / 4))
    floor = middle + scale.tallest / 2 + 6
    share = (_BARS - 8) * part.macs / heaviest
    thin = min(box.width, 10.0)
    bar = element("rect", class_="bar", x=box.x + (box.width - thin) / 2, y=floor, width=thin, height=share)
    reach = element("rect", class_="reach", x=box.x - scale.gap / 2, y=floor - scale.tallest - 6 - _ARC,
                    width=box.width + scale.gap, height=scale.tallest + _ARC + _BARS)  # fmt: skip
    kinds = [describe_shortcut(c) for c in getattr(part, "children", ()) if _is_way(c)]
    ends = (box.x - scale.gap * 0.3, box.x + box.width + scale.gap * 0.3)
    ways = [element("path", class_=_class(kind), d=_way(*ends, top, middle)) for kind in kinds]
    return element("g", title(told(part)), reach, *ways, face, bar, class_=f"box {_hue(plan, box.group)}",
                   data_path=part.path, data_middle=middle, data_ends="{:.2f} {:.2f}".format(*ends))  # fmt: skip


def _way(start: float, end: float, top: float, middle: float) -> str:
    """Up from the wire, over the box, and down to the wire again."""
    high, bend = top - 14, min(11.0, (end - start) / 2)
    numbers = (start, middle, high + bend, start, high, start + bend, high, end - bend, end, high, end, high + bend)
    path = "M {:.2f} {:.2f} V {:.2f} Q {:.2f} {:.2f} {:.2f} {:.2f} H {:.2f} Q {:.2f} {:.2f} {:.2f} {:.2f} V {:.2f}"
    return path.format(*numbers, middle)


def _wire(placed: list[_Box], scale: _Scale, row: int) -> str:
    there = [box for box in placed if box.row == row]
    start, end = _IMAGE + 0.15 * scale.tallest if row == 0 else 0.0, there[-1].x + there[-1].width + 10
    wire = element("line", class_="wire", x1=start, x2=end, y1=scale.middle(row), y2=scale.middle(row))
    floor = scale.middle(row) + scale.tallest / 2 + 5.5
    ground = element("line", class_="ground", x1=there[0].x - 8, x2=end, y1=floor, y2=floor)
    return wire + ground


def _picture(scale: _Scale) -> str:
    """The image, turned a little, in front of the wire."""
    matrix = f"matrix(0.3 -0.1 0 1 {_IMAGE} {scale.middle(0) - scale.tallest / 2 + 0.05 * scale.tallest:.1f})"
    scene = element("use", href="#scene", width=scale.tallest, height=scale.tallest)
    return element("g", scene, transform=matrix, class_="image")


def _captions(plan: Plan, placed: list[_Box], scale: _Scale) -> Iterable[str]:
    for i, part in enumerate(plan.root.children):
        there = [box for box in placed if box.group == i]
        first = [box for box in there if box.row == there[0].row]
        middle = (first[0].x + first[-1].x + first[-1].width) / 2
        yield _caption(plan, part, middle, scale.middle(there[0].row) + scale.tallest / 2 + _BARS + 20)
    image = _IMAGE + 0.15 * scale.tallest
    below = scale.middle(0) + scale.tallest / 2 + _BARS + 20
    lines = [words("image", image, below, class_="name"), words(shape(plan.input), image, below + 17, id="image-shape")]
    yield element("g", *lines, text_anchor="middle", class_="plain")


def _caption(plan: Plan, part: Place | Node, middle: float, below: float) -> str:
    reach = element("rect", class_="reach", x=middle - _CAPTION / 2, y=below - 16, width=_CAPTION, height=58, rx=6)
    share = f"{part.macs / plan.macs:.1%} of MACs" if part.macs else ""
    lines = [
        words(part.path, middle, below, class_="name"),
        words(shape(part.output), middle, below + 17),
        words(share, middle, below + 34),
    ]
    return element("g", reach, *lines, text_anchor="middle", class_="caption", data_path=part.path)


def _hue(plan: Plan, group: int) -> str:
    """Stem and head are grey; the stages go from light to dark."""
    if plan.root.children[group].role != "stage":
        return "end"
    stages = [i for i, part in enumerate(plan.root.children) if part.role == "stage"]
    return f"hue{min(stages.index(group), 5) + (1 if len(stages) > 3 else 2)}"


def told(part: Place | Node) -> str:
    """What a box says when it is asked what it is."""
    return f"{part.path}: {shape(part.output)}"


def shape(sizes: tuple[int, ...]) -> str:
    """Channels, height and width with the sign for times between them."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def side(sizes: tuple[int, ...]) -> int:
    """The longer side of a map; a vector counts as one pixel."""
    return max(sizes[1:], default=1)


# An invented photograph, 100 by 100: sky, sun, mountains, a lake, meadows, a tree and a house.
SCENE = """<symbol id="scene" viewBox="0 0 100 100" preserveAspectRatio="xMidYMid slice">
<rect width="100" height="100" fill="#a9d3ee"/><rect width="100" height="34" fill="#8fc3e8"/>
<rect y="34" width="100" height="14" fill="#c9e4ef"/><circle cx="76" cy="19" r="8" fill="#ffe08a"/>
<path d="M8 22q3-5 8-3 3-5 8-1 5-1 6 4z" fill="#f4fafd"/><path d="M46 13q2-3 5-2 2-3 5-1 4 0 4 3z" fill="#f4fafd"/>
<path d="M0 56 20 30 33 45 46 33 70 58H0z" fill="#8199b5"/><path d="M20 30l-6 8 5-1 3 3 4-2z" fill="#eef4f8"/>
<path d="M46 33l-5 5 5 0 4 2 1-2z" fill="#eef4f8"/><path d="M52 58 78 37 100 54v6H52z" fill="#6d8aa6"/>
<path d="M0 55q30-6 55 0t45-1v16H0z" fill="#5fa3b8"/>
<path d="M14 61h20M44 64h26M22 66h14" stroke="#bfe0e8" stroke-width=".8"/>
<path d="M0 62q22-3 40 5t60 2v31H0z" fill="#7fae62"/><path d="M0 76q30-8 60 2t40-2v24H0z" fill="#5f964f"/>
<path d="M0 90q40-9 100 0v10H0z" fill="#4a8044"/>
<path d="M58 58h17v13H58z" fill="#f3e3cf"/><path d="M55 59l11.500-10L78 59z" fill="#b8523a"/>
<path d="M64 63h5v8h-5z" fill="#7a4a35"/><path d="M71 62h2.500v3H71z" fill="#5f86a8"/>
<path d="M25 66h4v20h-4z" fill="#6e4a32"/><circle cx="27" cy="55" r="12" fill="#3f7a45"/>
<circle cx="19" cy="60" r="8" fill="#4a8a4d"/><circle cx="35" cy="60" r="8" fill="#376d3e"/>
<circle cx="24" cy="50" r="6" fill="#5c9c58"/></symbol>"""
