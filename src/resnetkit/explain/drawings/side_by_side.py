"""Networks side by side as a picture: a box for each convolution, an arc for each shortcut, as in the ResNet paper.

    figure({"plain34": plan(spec("plain34")), "resnet34": plan(spec("resnet34"))})

What has the same size of map stands at the same height, and the size is written at the left (arXiv 1512.03385, figure
3). Where the networks are so deep that the picture would get too tall, equal blocks in a row are drawn once, with their
number beside them.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from resnetkit.architecture.operations import (
    AveragePooling,
    Convolution,
    FullyConnected,
    GlobalAverage,
    MaxPooling,
    Shape,
    ZeroPad,
)
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.errors import UsageError
from resnetkit.explain import describe as words
from resnetkit.html import svg

TALLEST = 1800.0  # pixels, as long as there is something left to fold
_BELOW = 100.0  # of which the legend may take so many
_FOLDS = (10_000, 20, 10, 6, 5, 4, 3, 2)  # equal blocks in a row that are drawn once, from this number on

_INK, _SOFT, _LINE, _BAND = "#1c2733", "#5d6b7a", "#b4bec8", "#f5f7fa"
_STEM, _THIN = "#dfe5ec", "#eceff3"
_STAGES = ("#ddd3fa", "#c9eed8", "#fbd5de", "#cbe3fb", "#f8ebad", "#d3f0f2")
_IDENTITY, _PROJECTION, _PADDED = "#8b98a5", "#d9480f", "#1864ab"

_MARGIN, _GUTTER, _HEADING, _BULGE = 20.0, 36.0, 92.0, 34.0
_INNER, _BETWEEN, _PAD = 6.0, 15.0, 15.0  # between convolutions, between blocks, at both ends of a size of map
_LETTERS, _SMALL = 12.0, 11.0


@dataclass(frozen=True, slots=True)
class _Box:
    """An operation that is drawn; ``gap`` lies above it."""

    kind: str
    label: str
    note: str
    size: Shape
    colour: str
    gap: float

    @property
    def height(self) -> float:
        return 18.0 if self.kind in ("conv", "linear") else 14.0


@dataclass(frozen=True, slots=True)
class _Arc:
    """A shortcut, from above the box number ``first`` to below ``last``."""

    first: int
    last: int
    kind: str
    mark: str
    note: str


@dataclass(frozen=True, slots=True)
class _Fold:
    """Boxes ``first`` to ``last``, which stand for ``count`` equal blocks."""

    first: int
    last: int
    count: int


@dataclass
class _Column:
    """A network being drawn."""

    name: str
    plan: Plan
    boxes: list[_Box] = field(default_factory=list)
    arcs: list[_Arc] = field(default_factory=list)
    folds: list[_Fold] = field(default_factory=list)
    tops: list[float] = field(default_factory=list)
    middle: float = 0.0

    @property
    def heading(self) -> tuple[str, str, str, str]:
        counts = f"{self.plan.params:,} params", f"{self.plan.macs:,} MACs"
        return self.name, f"depth {self.plan.depth:,}", *counts

    @property
    def box(self) -> float:
        """How wide its boxes are."""
        return max(76.0, *(_room(box.label, _LETTERS) + 16 for box in self.boxes))

    @property
    def left(self) -> float:
        """What it takes on the left of its middle."""
        return max(self.box / 2 + 46.0 * bool(self.folds), self._title)

    @property
    def right(self) -> float:
        """What it takes on the right of its middle."""
        marks = max((_BULGE + _room(arc.mark, _SMALL) for arc in self.arcs), default=0.0)
        return max(self.box / 2 + marks, self._title)

    @property
    def _title(self) -> float:
        name, *rest = self.heading
        return max(_room(name, 16.5), *(_room(line, _LETTERS) for line in rest)) / 2

    def bottom(self, box: int) -> float:
        return self.tops[box] + self.boxes[box].height


def figure(plans: Mapping[str, Plan]) -> str:
    """An SVG document: a column for each network, by its name. Without a network it raises `UsageError`."""
    if not plans:
        raise UsageError("there is no network to draw", where="figure", fix="name one or more")
    for least in _FOLDS:
        columns = [_column(_shown(name), plan, least) for name, plan in plans.items()]
        bands = _bands(columns)
        if bands[-1].end + _BELOW <= TALLEST:
            break
    return _document(columns, bands)


def _shown(name: str) -> str:
    """A name as a heading: what cannot be printed is a question mark, what is too long is cut."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= 28 else name[:27] + "…"


# ---------------------------------------------------------------------------------------------------- what is drawn


def _column(name: str, plan: Plan, least: int) -> _Column:
    column = _Column(name, plan)
    image = f"an image of {words.size(plan.input)}"
    column.boxes.append(_Box("image", "image", image, plan.input[1:], "none", 0.0))
    stage = 0
    for child in plan.root.children:
        if isinstance(child, Place) and child.role == "stage":
            _draw_stage(column, child, _STAGES[stage % len(_STAGES)], least)
            stage += 1
        else:
            _draw_nodes(column, child.nodes, _STEM)
    return column


def _draw_stage(column: _Column, stage: Place, colour: str, least: int) -> None:
    """Runs of ``least`` or more equal blocks are drawn once."""
    for _, run in groupby(stage.children, words.signature):
        parts = list(run)
        drawn = parts[:1] if len(parts) >= least else parts
        first = len(column.boxes)
        each = f"{words.listed([part.path for part in parts])}, each like " if len(drawn) < len(parts) else ""
        for part in drawn:
            _draw_part(column, part, colour, each)
        if each:
            column.folds.append(_Fold(first, len(column.boxes) - 1, len(parts)))


def _draw_part(column: _Column, part: Place | Node, colour: str, each: str) -> None:
    """A block with its shortcut, or whatever else stands in a stage."""
    first = len(column.boxes)
    shortcut = words.shortcut_of(part)
    _draw_nodes(column, words.ways(part), colour, each, apart=shortcut is not None)
    if shortcut and len(column.boxes) > first:
        kind = describe_shortcut(shortcut)
        note = f"{each}{shortcut.path}: {kind}, {shortcut.reason}, {_costs(shortcut)}"
        column.arcs.append(_Arc(first, len(column.boxes) - 1, kind, _mark(shortcut), note))


def _mark(shortcut: Place) -> str:
    """What is written beside an arc that is more than the input itself."""
    told = [_added(node.op) if isinstance(node.op, ZeroPad) else _label(node) for node in shortcut.nodes if _kind(node)]
    return ", ".join(told)


def _added(op: ZeroPad) -> str:
    return f"{op.before + op.after} zeros" + f", /{op.stride}" * (op.stride > 1)


def _draw_nodes(column: _Column, nodes: Sequence[Node], colour: str, before: str = "", *, apart: bool = False) -> None:
    """A box each; several in a row, and those with a shortcut, stand ``apart`` from what comes before."""
    drawn = [node for node in nodes if _kind(node)]
    for i, node in enumerate(drawn):
        tint = _THIN if _kind(node) == "thin" else colour
        note = f"{before}{node.path}: {node.op}, {_costs(node)}"
        gap = _BETWEEN if i == 0 and (apart or len(drawn) > 1) else _INNER
        column.boxes.append(_Box(_kind(node), _label(node), note, node.output[1:], tint, gap))


def _kind(node: Node) -> str:
    """``conv``, ``linear`` or ``thin``; empty for what is not drawn: norms, and what neither weighs nor reshapes."""
    if isinstance(node.op, Convolution):
        return "conv"
    if isinstance(node.op, FullyConnected):
        return "linear"
    costs = node.params or node.input != node.output or isinstance(node.op, MaxPooling | AveragePooling)
    return "thin" if costs and not isinstance(node.op, words.QUIET) else ""


def _label(node: Node) -> str:
    match node.op:
        case Convolution() as op:
            more = f", /{op.stride}" * (op.stride > 1) + f", dilation {op.dilation}" * (op.dilation > 1)
            return f"{op.kernel}x{op.kernel}, {op.outputs}" + f", {op.groups} groups" * (op.groups > 1) + more
        case FullyConnected() as op:
            return f"linear, {op.outputs}"
        case MaxPooling(kernel, stride) | AveragePooling(kernel, stride):
            name = "max pool" if isinstance(node.op, MaxPooling) else "average pool"
            return f"{name} {kernel}x{kernel}" + f", /{stride}" * (stride > 1)
        case GlobalAverage():
            return "average"
    return str(node.op).split(",")[0][:24]


def _costs(part: Place | Node) -> str:
    return f"{words.size(part.output)}, {part.params:,} params, {part.macs:,} MACs"


# ------------------------------------------------------------------------------------------------- where it is drawn


@dataclass(frozen=True, slots=True)
class _Band:
    """All that has one size of map, in every column."""

    size: Shape
    top: float
    end: float


def _bands(columns: Sequence[_Column]) -> list[_Band]:
    """One for each size, the largest first; every box gets its place. A vector comes last."""
    bands: list[_Band] = []
    top = _HEADING
    for size in sorted({box.size for column in columns for box in column.boxes}, key=_area, reverse=True):
        end = max(_stack(column, size, top + _PAD) for column in columns) + _PAD
        bands.append(_Band(size, top, end))
        top = end
    for column in columns:
        _sink(column, {band.size: band.end - _PAD for band in bands})
    return bands


def _sink(column: _Column, ends: Mapping[Shape, float]) -> None:
    """Of a block that shrinks the map on its way, put the first boxes down to where the next size begins."""
    for arc in column.arcs:
        size = column.boxes[arc.first].size
        above = [i for i in range(arc.first, arc.last + 1) if column.boxes[i].size == size]
        if above[-1] < arc.last:
            free = ends[size] - column.bottom(above[-1])
            for i in above:
                column.tops[i] += free


def _area(size: Shape) -> tuple[int, Shape]:
    return (size[0] * size[1] if len(size) == 2 else 0), size


def _stack(column: _Column, size: Shape, top: float) -> float:
    """Put the boxes of one size below each other; where they end."""
    if not column.tops:
        column.tops = [0.0] * len(column.boxes)
    y = top
    for i, box in enumerate(column.boxes):
        if box.size == size:
            column.tops[i] = y if y == top else y + box.gap
            y = column.tops[i] + box.height
    return y


def _room(text: str, letters: float) -> float:
    """How wide a text gets, at most; wide letters are as wide as they are high."""
    return sum(letters * (1.0 if ord(letter) > 0x2E7F else 0.62) for letter in text)


# --------------------------------------------------------------------------------------------------------- the marks


def _document(columns: Sequence[_Column], bands: Sequence[_Band]) -> str:
    x = _MARGIN + max(_room(_size(band.size), _LETTERS) for band in bands)
    for column in columns:
        column.middle = x + _GUTTER + column.left
        x = column.middle + column.right
    width = max(x + _MARGIN, 460.0)
    legend, height = _legend(columns, width, bands[-1].end + 30)
    paper = svg.element("rect", width=width, height=height, rx=10, fill="#ffffff")
    marks = [mark for column in columns for mark in _marks(column)]
    label = "The networks " + ", ".join(column.name for column in columns) if len(columns) > 1 else columns[0].name
    shades = [mark for i, band in enumerate(bands) for mark in _shade(band, width, shaded=i % 2 == 0)]
    return svg.document(width, height, label, paper, *shades, *marks, *legend) + "\n"


def _size(size: Shape) -> str:
    return words.size(size) or "vector"


def _shade(band: _Band, width: float, *, shaded: bool) -> Iterator[str]:
    if shaded:
        yield svg.element("rect", x=0.0, y=band.top, width=width, height=band.end - band.top, fill=_BAND)
    middle = (band.top + band.end) / 2 + 4
    yield svg.words(_size(band.size), _MARGIN, middle, fill=_SOFT, font_size=_LETTERS, font_weight=600)


def _marks(column: _Column) -> Iterator[str]:
    for i, line in enumerate(column.heading):
        style = {"fill": _SOFT, "font_size": _LETTERS} if i else {"fill": _INK, "font_size": 15, "font_weight": 600}
        yield svg.words(line, column.middle, 26.0 + 17 * i, text_anchor="middle", **style)
    yield from (_flow(column, i) for i in range(1, len(column.boxes)))
    yield from (_arc(column, arc) for arc in column.arcs)
    yield from (_box(column, i) for i in range(len(column.boxes)))
    yield from (_bracket(column, fold) for fold in column.folds)


def _flow(column: _Column, i: int) -> str:
    """The line from a box to the next, with an arrow's head."""
    x, start, end = column.middle, column.bottom(i - 1), column.tops[i]
    head = f"M {x - 3:.1f} {end - 4.5:.1f} L {x:.1f} {end - 0.5:.1f} L {x + 3:.1f} {end - 4.5:.1f}"
    return svg.element("path", d=f"M {x:.1f} {start:.1f} V {end - 1:.1f} {head}", fill="none", stroke=_LINE)


def _box(column: _Column, i: int) -> str:
    box, top, wide = column.boxes[i], column.tops[i], column.box
    border = {"stroke": _LINE, "stroke_dasharray": "3 3"} if box.kind == "image" else {"stroke": "#8795a3"}
    frame = svg.element("rect", svg.title(box.note), x=column.middle - wide / 2, y=top, width=wide, height=box.height,
                        rx=3, fill=box.colour, stroke_width=0.8, data_part=box.kind, **border)  # fmt: skip
    letters = _LETTERS if box.height > 16 else _LETTERS - 1.5
    told = svg.words(box.label, column.middle, top + box.height / 2 + letters * 0.36, text_anchor="middle",
                     fill=_INK, font_size=letters, pointer_events="none")  # fmt: skip
    return svg.element("g", frame, told)


def _arc(column: _Column, arc: _Arc) -> str:
    """From the line above the block, around its boxes, to the line below, where a dot stands for the addition."""
    x, edge = column.middle, column.middle + column.box / 2
    start, end, far = column.tops[arc.first] - 5, column.bottom(arc.last) + 5, edge + _BULGE
    way = (
        f"M {x:.1f} {start:.1f} H {edge:.1f} C {far:.1f} {start:.1f} {far:.1f} {end:.1f} {edge:.1f} {end:.1f} H {x:.1f}"
    )
    line = svg.element("path", svg.title(arc.note), d=way, fill="none", data_part="arc", **_style(arc.kind))
    dot = svg.element("circle", cx=x, cy=end, r=2.6, fill=_style(arc.kind)["stroke"])
    told = svg.words(arc.mark, edge + _BULGE * 0.75 + 5, (start + end) / 2 + 4, font_size=_SMALL,
                     fill=_style(arc.kind)["stroke"]) if arc.mark else ""  # fmt: skip
    return svg.element("g", line, dot, told)


def _style(kind: str) -> dict[str, str]:
    """Grey is the input itself, dashed what was changed to fit: with weights in orange, without in blue."""
    if kind == "identity":
        return {"stroke": _IDENTITY, "stroke_width": "1.4"}
    colour = _PROJECTION if "projection" in kind else _PADDED
    return {"stroke": colour, "stroke_width": "1.9", "stroke_dasharray": "6 3"}


def _bracket(column: _Column, fold: _Fold) -> str:
    x, top, end = column.middle - column.box / 2 - 5, column.tops[fold.first] - 2, column.bottom(fold.last) + 2
    line = svg.element("path", d=f"M {x:.1f} {top:.1f} h -4 V {end:.1f} h 4", fill="none", stroke=_INK)
    told = svg.words(f"x {fold.count}", x - 8, (top + end) / 2 + 4, text_anchor="end", fill=_INK,
                     font_size=_LETTERS, font_weight=600)  # fmt: skip
    return svg.element("g", line, told)


# ------------------------------------------------------------------------------------------------------- the legend


def _legend(columns: Sequence[_Column], width: float, top: float) -> tuple[list[str], float]:
    """What the marks mean, line by line; and where it ends."""
    marks, x, y = [], _MARGIN, top
    for kind, label in _entries(columns):
        wide = 30 + _room(label, _LETTERS) + 18
        if x > _MARGIN and x + wide > width:
            x, y = _MARGIN, y + 22
        marks += [_sample(kind, x, y), svg.words(label, x + 30, y, fill=_SOFT, font_size=_LETTERS)]
        x += wide
    return marks, y + 20


def _entries(columns: Sequence[_Column]) -> list[tuple[str, str]]:
    """(sample, words) of what is in the picture: colours, kinds of shortcuts, folds."""
    stages = max(len(words.stages(column.plan)) for column in columns)
    found = [(_STAGES[i], f"stage{i + 1}") for i in range(min(stages, len(_STAGES)))]
    kinds = {arc.kind for column in columns for arc in column.arcs}
    found += [
        (kind, _KINDS.get(kind, f"shortcut: {kind}")) for kind in sorted(kinds, key=lambda k: (k != "identity", k))
    ]
    folded = any(column.folds for column in columns)
    return found + [("fold", "so many equal blocks in a row, drawn once")] * folded


_KINDS = {
    "identity": "shortcut: the input itself",
    "projection": "shortcut with a 1x1 convolution",
    "pooled projection": "shortcut with an average pool and a 1x1 convolution",
    "padded identity": "shortcut with zeros for the channels it lacks",
    "pooled identity": "shortcut with a max pool",
}


def _sample(kind: str, x: float, y: float) -> str:
    if kind.startswith("#"):
        return svg.element("rect", x=x, y=y - 11, width=24, height=13, rx=3, fill=kind, stroke="#8795a3",
                           stroke_width=0.8)  # fmt: skip
    if kind == "fold":
        return svg.words("x 2", x, y, fill=_INK, font_size=_LETTERS, font_weight=600)
    return svg.element("line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, **_style(kind))
