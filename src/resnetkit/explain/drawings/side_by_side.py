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
    AvgPoolOp,
    ConvOp,
    GlobalAvgPoolOp,
    LinearOp,
    MaxPoolOp,
    Shape,
    ZeroPadOp,
)
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.errors import UsageError
from resnetkit.explain import describe as words
from resnetkit.html import svg

MAX_HEIGHT = 1800.0  # pixels, as long as there is something left to fold
_LEGEND_HEIGHT = 100.0  # of which the legend may take so many
_FOLD_THRESHOLDS = (10_000, 20, 10, 6, 5, 4, 3, 2)  # equal blocks in a row that are drawn once, from this number on

_TEXT_COLOR, _MUTED_COLOR, _LINE_COLOR, _BAND_COLOR = "#1c2733", "#5d6b7a", "#b4bec8", "#f5f7fa"
_STEM_COLOR, _THIN_COLOR = "#dfe5ec", "#eceff3"
_STAGE_COLORS = ("#ddd3fa", "#c9eed8", "#fbd5de", "#cbe3fb", "#f8ebad", "#d3f0f2")
_IDENTITY_COLOR, _PROJECTION_COLOR, _PADDED_COLOR = "#8b98a5", "#d9480f", "#1864ab"

_MARGIN, _GUTTER, _HEADING_HEIGHT, _ARC_WIDTH = 20.0, 36.0, 92.0, 34.0
_OP_GAP, _BLOCK_GAP, _BAND_PAD = 6.0, 15.0, 15.0  # between convolutions, between blocks, at both ends of a size of map
_FONT_SIZE, _SMALL_FONT_SIZE = 12.0, 11.0


@dataclass(frozen=True, slots=True)
class _Box:
    """An operation that is drawn; ``gap`` lies above it."""

    kind: str
    label: str
    note: str
    size: Shape
    color: str
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
    label: str
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
    center: float = 0.0

    @property
    def heading_lines(self) -> tuple[str, str, str, str]:
        counts = f"{self.plan.params:,} params", f"{self.plan.macs:,} MACs"
        return self.name, f"depth {self.plan.depth:,}", *counts

    @property
    def box_width(self) -> float:
        """How wide its boxes are."""
        return max(76.0, *(_estimate_text_width(box.label, _FONT_SIZE) + 16 for box in self.boxes))

    @property
    def left_width(self) -> float:
        """What it takes on the left of its middle."""
        return max(self.box_width / 2 + 46.0 * bool(self.folds), self._half_heading_width)

    @property
    def right_width(self) -> float:
        """What it takes on the right of its middle."""
        label_width = max(
            (_ARC_WIDTH + _estimate_text_width(arc.label, _SMALL_FONT_SIZE) for arc in self.arcs), default=0.0
        )
        return max(self.box_width / 2 + label_width, self._half_heading_width)

    @property
    def _half_heading_width(self) -> float:
        name, *rest = self.heading_lines
        return max(_estimate_text_width(name, 16.5), *(_estimate_text_width(line, _FONT_SIZE) for line in rest)) / 2

    def get_bottom(self, index: int) -> float:
        return self.tops[index] + self.boxes[index].height


def draw_side_by_side(plans: Mapping[str, Plan]) -> str:
    """An SVG document: a column for each network, by its name. Without a network it raises `UsageError`."""
    if not plans:
        raise UsageError("there is no network to draw", where="figure", fix="name one or more")
    for fold_threshold in _FOLD_THRESHOLDS:
        columns = [_build_column(_format_heading(name), plan, fold_threshold) for name, plan in plans.items()]
        bands = _layout_bands(columns)
        if bands[-1].bottom + _LEGEND_HEIGHT <= MAX_HEIGHT:
            break
    return _build_document(columns, bands)


def _format_heading(name: str) -> str:
    """A name as a heading: what cannot be printed is a question mark, what is too long is cut."""
    name = "".join(char if char.isprintable() else "?" for char in name)
    return name if len(name) <= 28 else name[:27] + "…"


# ---------------------------------------------------------------------------------------------------- what is drawn


def _build_column(name: str, plan: Plan, fold_threshold: int) -> _Column:
    column = _Column(name, plan)
    note = f"an image of {words.format_shape(plan.input)}"
    column.boxes.append(_Box("image", "image", note, plan.input[1:], "none", 0.0))
    stage_index = 0
    for child in plan.root.children:
        if isinstance(child, Section) and child.role == "stage":
            _draw_stage(column, child, _STAGE_COLORS[stage_index % len(_STAGE_COLORS)], fold_threshold)
            stage_index += 1
        else:
            _draw_nodes(column, child.nodes, _STEM_COLOR)
    return column


def _draw_stage(column: _Column, stage: Section, color: str, fold_threshold: int) -> None:
    """Runs of ``least`` or more equal blocks are drawn once."""
    for _, run in groupby(stage.children, words.compute_signature):
        parts = list(run)
        drawn_parts = parts[:1] if len(parts) >= fold_threshold else parts
        first_box = len(column.boxes)
        prefix = (
            f"{words.format_path_range([part.path for part in parts])}, each like "
            if len(drawn_parts) < len(parts)
            else ""
        )
        for part in drawn_parts:
            _draw_part(column, part, color, prefix)
        if prefix:
            column.folds.append(_Fold(first_box, len(column.boxes) - 1, len(parts)))


def _draw_part(column: _Column, part: Section | Node, color: str, prefix: str) -> None:
    """A block with its shortcut, or whatever else stands in a stage."""
    first_box = len(column.boxes)
    shortcut = words.find_shortcut(part)
    _draw_nodes(column, words.select_main_path(part), color, prefix, has_shortcut=shortcut is not None)
    if shortcut and len(column.boxes) > first_box:
        kind = describe_shortcut(shortcut)
        note = f"{prefix}{shortcut.path}: {kind}, {shortcut.reason}, {_format_costs(shortcut)}"
        column.arcs.append(_Arc(first_box, len(column.boxes) - 1, kind, _format_arc_label(shortcut), note))


def _format_arc_label(shortcut: Section) -> str:
    """What is written beside an arc that is more than the input itself."""
    labels = [
        _format_zero_pad(node.op) if isinstance(node.op, ZeroPadOp) else _format_label(node)
        for node in shortcut.nodes
        if _classify_node(node)
    ]
    return ", ".join(labels)


def _format_zero_pad(op: ZeroPadOp) -> str:
    return f"{op.before + op.after} zeros" + f", /{op.stride}" * (op.stride > 1)


def _draw_nodes(
    column: _Column, nodes: Sequence[Node], color: str, prefix: str = "", *, has_shortcut: bool = False
) -> None:
    """A box each; several in a row, and those with a shortcut, stand ``apart`` from what comes before."""
    drawn_nodes = [node for node in nodes if _classify_node(node)]
    for i, node in enumerate(drawn_nodes):
        fill = _THIN_COLOR if _classify_node(node) == "thin" else color
        note = f"{prefix}{node.path}: {node.op}, {_format_costs(node)}"
        gap = _BLOCK_GAP if i == 0 and (has_shortcut or len(drawn_nodes) > 1) else _OP_GAP
        column.boxes.append(_Box(_classify_node(node), _format_label(node), note, node.output[1:], fill, gap))


def _classify_node(node: Node) -> str:
    """``conv``, ``linear`` or ``thin``; empty for what is not drawn: norms, and what neither weighs nor reshapes."""
    if isinstance(node.op, ConvOp):
        return "conv"
    if isinstance(node.op, LinearOp):
        return "linear"
    is_visible = node.params or node.input != node.output or isinstance(node.op, MaxPoolOp | AvgPoolOp)
    return "thin" if is_visible and not isinstance(node.op, words.MINOR_OPS) else ""


def _format_label(node: Node) -> str:
    match node.op:
        case ConvOp() as op:
            suffix = f", /{op.stride}" * (op.stride > 1) + f", dilation {op.dilation}" * (op.dilation > 1)
            return f"{op.kernel}x{op.kernel}, {op.out_channels}" + f", {op.groups} groups" * (op.groups > 1) + suffix
        case LinearOp() as op:
            return f"linear, {op.out_features}"
        case MaxPoolOp(kernel, stride) | AvgPoolOp(kernel, stride):
            name = "max pool" if isinstance(node.op, MaxPoolOp) else "average pool"
            return f"{name} {kernel}x{kernel}" + f", /{stride}" * (stride > 1)
        case GlobalAvgPoolOp():
            return "average"
    return str(node.op).split(",")[0][:24]


def _format_costs(part: Section | Node) -> str:
    return f"{words.format_shape(part.output)}, {part.params:,} params, {part.macs:,} MACs"


# ------------------------------------------------------------------------------------------------- where it is drawn


@dataclass(frozen=True, slots=True)
class _Band:
    """All that has one size of map, in every column."""

    size: Shape
    top: float
    bottom: float


def _layout_bands(columns: Sequence[_Column]) -> list[_Band]:
    """One for each size, the largest first; every box gets its place. A vector comes last."""
    bands: list[_Band] = []
    top = _HEADING_HEIGHT
    for size in sorted({box.size for column in columns for box in column.boxes}, key=_get_sort_key, reverse=True):
        bottom = max(_stack_boxes(column, size, top + _BAND_PAD) for column in columns) + _BAND_PAD
        bands.append(_Band(size, top, bottom))
        top = bottom
    for column in columns:
        _push_down(column, {band.size: band.bottom - _BAND_PAD for band in bands})
    return bands


def _push_down(column: _Column, band_bottoms: Mapping[Shape, float]) -> None:
    """Of a block that shrinks the map on its way, put the first boxes down to where the next size begins."""
    for arc in column.arcs:
        size = column.boxes[arc.first].size
        indices = [i for i in range(arc.first, arc.last + 1) if column.boxes[i].size == size]
        if indices[-1] < arc.last:
            offset = band_bottoms[size] - column.get_bottom(indices[-1])
            for i in indices:
                column.tops[i] += offset


def _get_sort_key(size: Shape) -> tuple[int, Shape]:
    return (size[0] * size[1] if len(size) == 2 else 0), size


def _stack_boxes(column: _Column, size: Shape, top: float) -> float:
    """Put the boxes of one size below each other; where they end."""
    if not column.tops:
        column.tops = [0.0] * len(column.boxes)
    y = top
    for i, box in enumerate(column.boxes):
        if box.size == size:
            column.tops[i] = y if y == top else y + box.gap
            y = column.tops[i] + box.height
    return y


def _estimate_text_width(text: str, font_size: float) -> float:
    """How wide a text gets, at most; wide letters are as wide as they are high."""
    return sum(font_size * (1.0 if ord(char) > 0x2E7F else 0.62) for char in text)


# --------------------------------------------------------------------------------------------------------- the marks


def _build_document(columns: Sequence[_Column], bands: Sequence[_Band]) -> str:
    x = _MARGIN + max(_estimate_text_width(_format_size(band.size), _FONT_SIZE) for band in bands)
    for column in columns:
        column.center = x + _GUTTER + column.left_width
        x = column.center + column.right_width
    width = max(x + _MARGIN, 460.0)
    legend, height = _draw_legend(columns, width, bands[-1].bottom + 30)
    background = svg.build_element("rect", width=width, height=height, rx=10, fill="#ffffff")
    marks = [mark for column in columns for mark in _draw_column(column)]
    label = "The networks " + ", ".join(column.name for column in columns) if len(columns) > 1 else columns[0].name
    shading = [mark for i, band in enumerate(bands) for mark in _draw_band(band, width, is_shaded=i % 2 == 0)]
    return svg.build_svg(width, height, label, background, *shading, *marks, *legend) + "\n"


def _format_size(size: Shape) -> str:
    return words.format_shape(size) or "vector"


def _draw_band(band: _Band, width: float, *, is_shaded: bool) -> Iterator[str]:
    if is_shaded:
        yield svg.build_element("rect", x=0.0, y=band.top, width=width, height=band.bottom - band.top, fill=_BAND_COLOR)
    y = (band.top + band.bottom) / 2 + 4
    yield svg.build_text(_format_size(band.size), _MARGIN, y, fill=_MUTED_COLOR, font_size=_FONT_SIZE, font_weight=600)


def _draw_column(column: _Column) -> Iterator[str]:
    for i, line in enumerate(column.heading_lines):
        style = (
            {"fill": _MUTED_COLOR, "font_size": _FONT_SIZE}
            if i
            else {"fill": _TEXT_COLOR, "font_size": 15, "font_weight": 600}
        )
        yield svg.build_text(line, column.center, 26.0 + 17 * i, text_anchor="middle", **style)
    yield from (_draw_arrow(column, i) for i in range(1, len(column.boxes)))
    yield from (_draw_arc(column, arc) for arc in column.arcs)
    yield from (_draw_box(column, i) for i in range(len(column.boxes)))
    yield from (_draw_fold(column, fold) for fold in column.folds)


def _draw_arrow(column: _Column, i: int) -> str:
    """The line from a box to the next, with an arrow's head."""
    x, start, end = column.center, column.get_bottom(i - 1), column.tops[i]
    arrow_head = f"M {x - 3:.1f} {end - 4.5:.1f} L {x:.1f} {end - 0.5:.1f} L {x + 3:.1f} {end - 4.5:.1f}"
    return svg.build_element(
        "path", d=f"M {x:.1f} {start:.1f} V {end - 1:.1f} {arrow_head}", fill="none", stroke=_LINE_COLOR
    )


def _draw_box(column: _Column, i: int) -> str:
    box, top, width = column.boxes[i], column.tops[i], column.box_width
    border = {"stroke": _LINE_COLOR, "stroke_dasharray": "3 3"} if box.kind == "image" else {"stroke": "#8795a3"}
    frame = svg.build_element("rect", svg.build_title(box.note), x=column.center - width / 2, y=top, width=width, height=box.height,
                        rx=3, fill=box.color, stroke_width=0.8, data_part=box.kind, **border)  # fmt: skip
    font_size = _FONT_SIZE if box.height > 16 else _FONT_SIZE - 1.5
    label = svg.build_text(box.label, column.center, top + box.height / 2 + font_size * 0.36, text_anchor="middle",
                     fill=_TEXT_COLOR, font_size=font_size, pointer_events="none")  # fmt: skip
    return svg.build_element("g", frame, label)


def _draw_arc(column: _Column, arc: _Arc) -> str:
    """From the line above the block, around its boxes, to the line below, where a dot stands for the addition."""
    x, edge = column.center, column.center + column.box_width / 2
    start, end, control_x = column.tops[arc.first] - 5, column.get_bottom(arc.last) + 5, edge + _ARC_WIDTH
    path = f"M {x:.1f} {start:.1f} H {edge:.1f} C {control_x:.1f} {start:.1f} {control_x:.1f} {end:.1f} {edge:.1f} {end:.1f} H {x:.1f}"
    line = svg.build_element(
        "path", svg.build_title(arc.note), d=path, fill="none", data_part="arc", **_get_arc_style(arc.kind)
    )
    dot = svg.build_element("circle", cx=x, cy=end, r=2.6, fill=_get_arc_style(arc.kind)["stroke"])
    label = svg.build_text(arc.label, edge + _ARC_WIDTH * 0.75 + 5, (start + end) / 2 + 4, font_size=_SMALL_FONT_SIZE,
                     fill=_get_arc_style(arc.kind)["stroke"]) if arc.label else ""  # fmt: skip
    return svg.build_element("g", line, dot, label)


def _get_arc_style(kind: str) -> dict[str, str]:
    """Grey is the input itself, dashed what was changed to fit: with weights in orange, without in blue."""
    if kind == "identity":
        return {"stroke": _IDENTITY_COLOR, "stroke_width": "1.4"}
    color = _PROJECTION_COLOR if "projection" in kind else _PADDED_COLOR
    return {"stroke": color, "stroke_width": "1.9", "stroke_dasharray": "6 3"}


def _draw_fold(column: _Column, fold: _Fold) -> str:
    x, top, end = (
        column.center - column.box_width / 2 - 5,
        column.tops[fold.first] - 2,
        column.get_bottom(fold.last) + 2,
    )
    line = svg.build_element("path", d=f"M {x:.1f} {top:.1f} h -4 V {end:.1f} h 4", fill="none", stroke=_TEXT_COLOR)
    label = svg.build_text(f"x {fold.count}", x - 8, (top + end) / 2 + 4, text_anchor="end", fill=_TEXT_COLOR,
                     font_size=_FONT_SIZE, font_weight=600)  # fmt: skip
    return svg.build_element("g", line, label)


# ------------------------------------------------------------------------------------------------------- the legend


def _draw_legend(columns: Sequence[_Column], width: float, top: float) -> tuple[list[str], float]:
    """What the marks mean, line by line; and where it ends."""
    marks, x, y = [], _MARGIN, top
    for kind, label in _collect_legend_entries(columns):
        entry_width = 30 + _estimate_text_width(label, _FONT_SIZE) + 18
        if x > _MARGIN and x + entry_width > width:
            x, y = _MARGIN, y + 22
        marks += [_draw_sample(kind, x, y), svg.build_text(label, x + 30, y, fill=_MUTED_COLOR, font_size=_FONT_SIZE)]
        x += entry_width
    return marks, y + 20


def _collect_legend_entries(columns: Sequence[_Column]) -> list[tuple[str, str]]:
    """(sample, words) of what is in the picture: colours, kinds of shortcuts, folds."""
    n_stages = max(len(words.list_stages(column.plan)) for column in columns)
    entries = [(_STAGE_COLORS[i], f"stage{i + 1}") for i in range(min(n_stages, len(_STAGE_COLORS)))]
    kinds = {arc.kind for column in columns for arc in column.arcs}
    entries += [
        (kind, _SHORTCUT_LABELS.get(kind, f"shortcut: {kind}"))
        for kind in sorted(kinds, key=lambda k: (k != "identity", k))
    ]
    has_folds = any(column.folds for column in columns)
    return entries + [("fold", "so many equal blocks in a row, drawn once")] * has_folds


_SHORTCUT_LABELS = {
    "identity": "shortcut: the input itself",
    "projection": "shortcut with a 1x1 convolution",
    "pooled projection": "shortcut with an average pool and a 1x1 convolution",
    "padded identity": "shortcut with zeros for the channels it lacks",
    "pooled identity": "shortcut with a max pool",
}


def _draw_sample(kind: str, x: float, y: float) -> str:
    if kind.startswith("#"):
        return svg.build_element("rect", x=x, y=y - 11, width=24, height=13, rx=3, fill=kind, stroke="#8795a3",
                           stroke_width=0.8)  # fmt: skip
    if kind == "fold":
        return svg.build_text("x 2", x, y, fill=_TEXT_COLOR, font_size=_FONT_SIZE, font_weight=600)
    return svg.build_element("line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, **_get_arc_style(kind))
