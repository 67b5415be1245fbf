"""Draw networks side by side: one box for each convolution, one arc for each shortcut, as in the ResNet paper.

    draw_side_by_side({"plain34": plan(spec("plain34")), "resnet34": plan(spec("resnet34"))})

Maps of the same size stand at the same height, with the size written on the left (arXiv 1512.03385, figure 3). If the
drawing would become too tall, runs of equal blocks are folded: drawn once, with their number beside them.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, groupby

from resnetkit.architecture import operations as ops
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.errors import UsageError
from resnetkit.explain import describe
from resnetkit.explain.drawings import scale
from resnetkit.formatting import truncate
from resnetkit.html import svg

MAX_HEIGHT = 1800.0  # pixels; exceeded only if no more blocks can be folded
_LEGEND_HEIGHT = 100.0  # pixels of MAX_HEIGHT that are reserved for the legend
_FOLD_THRESHOLDS = (10_000, 20, 10, 6, 5, 4, 3, 2)  # shortest run of equal blocks that is folded; tried in this order

_LINE_COLOR, _BORDER_COLOR, _BAND_COLOR = "#b4bec8", "#8795a3", "#f5f7fa"
_STEM_COLOR, _THIN_COLOR = "#dfe5ec", "#eceff3"
_STAGE_COLORS = ("#ddd3fa", "#c9eed8", "#fbd5de", "#cbe3fb", "#f8ebad", "#d3f0f2")

_MARGIN, _GUTTER, _HEADING_HEIGHT, _ARC_WIDTH = 20.0, 36.0, 92.0, 34.0
_OP_GAP, _BLOCK_GAP, _BAND_PAD = 6.0, 15.0, 15.0  # between convolutions, between blocks, at both ends of a band
_FONT_SIZE, _SMALL_FONT_SIZE = 12.0, 11.0


@dataclass(frozen=True, slots=True)
class _Box:
    """An operation of the drawing; ``gap`` is the space above it."""

    kind: str
    label: str
    note: str
    size: ops.Shape
    color: str
    gap: float

    @property
    def height(self) -> float:
        return 18.0 if self.kind in ("conv", "linear") else 14.0


@dataclass(frozen=True, slots=True)
class _Arc:
    """A shortcut, from above the box with index ``first`` to below ``last``."""

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
    """A network of the drawing; the layout sets ``tops`` and ``center``."""

    name: str
    plan: Plan
    fold_threshold: int
    boxes: list[_Box] = field(default_factory=list)
    arcs: list[_Arc] = field(default_factory=list)
    folds: list[_Fold] = field(default_factory=list)
    tops: list[float] = field(default_factory=list)
    center: float = 0.0

    @property
    def heading_lines(self) -> tuple[str, ...]:
        counts = f"{self.plan.params:,} params", f"{self.plan.macs:,} MACs"
        return self.name, f"depth {self.plan.depth:,}", *counts

    @property
    def box_width(self) -> float:
        """The width of its boxes, which fits the longest label."""
        return max(76.0, *(_estimate_text_width(box.label, _FONT_SIZE) + 16 for box in self.boxes))

    @property
    def left_width(self) -> float:
        """The space on the left of its center."""
        fold_width = 46.0 if self.folds else 0.0
        return max(self.box_width / 2 + fold_width, self._half_heading_width)

    @property
    def right_width(self) -> float:
        """The space on the right of its center."""
        label_widths = (_ARC_WIDTH + _estimate_text_width(arc.label, _SMALL_FONT_SIZE) for arc in self.arcs)
        return max(self.box_width / 2 + max(label_widths, default=0.0), self._half_heading_width)

    @property
    def _half_heading_width(self) -> float:
        name, *rest = self.heading_lines
        return max(_estimate_text_width(name, 16.5), *(_estimate_text_width(line, _FONT_SIZE) for line in rest)) / 2

    def get_bottom(self, index: int) -> float:
        return self.tops[index] + self.boxes[index].height

    def add_stage(self, stage: Section, color: str) -> None:
        """Add the boxes of a stage; a run of ``fold_threshold`` or more equal blocks is added once."""
        for _, run in groupby(stage.children, describe.compute_signature):
            parts, first_box = list(run), len(self.boxes)
            if len(parts) < self.fold_threshold:
                for part in parts:
                    self.add_part(part, color)
            else:
                paths = describe.format_path_range([part.path for part in parts])
                self.add_part(parts[0], color, f"{paths}, each like ")
                self.folds.append(_Fold(first_box, len(self.boxes) - 1, len(parts)))

    def add_part(self, part: Section | Node, color: str, prefix: str = "") -> None:
        """Add a block with its shortcut, or another child of a stage."""
        first_box, shortcut = len(self.boxes), describe.find_shortcut(part)
        self.add_nodes(describe.select_main_path(part), color, prefix, has_shortcut=shortcut is not None)
        if shortcut and len(self.boxes) > first_box:
            kind = describe_shortcut(shortcut)
            label = ", ".join(_format_label(node) for node in shortcut.nodes if _classify_node(node))
            note = f"{prefix}{shortcut.path}: {kind}, {shortcut.reason}, {describe.format_costs(shortcut)}"
            self.arcs.append(_Arc(first_box, len(self.boxes) - 1, kind, label, note))

    def add_nodes(self, nodes: Sequence[Node], color: str, prefix: str = "", *, has_shortcut: bool = False) -> None:
        """Add a box for each visible operation; a block of several operations is set apart from the box above."""
        visible = [(node, kind) for node in nodes if (kind := _classify_node(node))]
        for i, (node, kind) in enumerate(visible):
            fill = _THIN_COLOR if kind == "thin" else color
            note = f"{prefix}{node.path}: {node.op}, {describe.format_costs(node)}"
            gap = _BLOCK_GAP if i == 0 and (has_shortcut or len(visible) > 1) else _OP_GAP
            self.boxes.append(_Box(kind, _format_label(node), note, node.output[1:], fill, gap))


def draw_side_by_side(plans: Mapping[str, Plan]) -> str:
    """Draw networks as an SVG document with one column for each.

    Args:
        plans: networks by name; names are text, never markup.

    Raises:
        UsageError: ``plans`` is empty.
    """
    if not plans:
        raise UsageError("no network to draw", where="draw_side_by_side", fix="pass at least one network")
    for fold_threshold in _FOLD_THRESHOLDS:
        columns = [_build_column(_format_heading(name), plan, fold_threshold) for name, plan in plans.items()]
        bands = _layout_bands(columns)
        if bands[-1].bottom + _LEGEND_HEIGHT <= MAX_HEIGHT:
            break
    return _build_document(columns, bands)


def _format_heading(name: str) -> str:
    """Replace characters that cannot be printed by question marks and truncate long names."""
    return truncate("".join(char if char.isprintable() else "?" for char in name), 28, "…")


def _build_column(name: str, plan: Plan, fold_threshold: int) -> _Column:
    column, stage_colors = _Column(name, plan, fold_threshold), cycle(_STAGE_COLORS)
    note = f"an image of {describe.format_shape(plan.input)}"
    column.boxes.append(_Box("image", "image", note, plan.input[1:], "none", 0.0))
    for child in plan.root.children:
        if isinstance(child, Section) and child.role == "stage":
            column.add_stage(child, next(stage_colors))
        else:
            column.add_nodes(child.nodes, _STEM_COLOR)
    column.tops = [0.0] * len(column.boxes)
    return column


# ----------------------------------------------------------------------------------------------------------- labels


def _classify_node(node: Node) -> str:
    """Return ``conv``, ``linear``, ``thin``, or an empty string for an operation that is not drawn.

    Norms are not drawn, nor operations without parameters that keep the shape, pools aside.
    """
    if isinstance(node.op, ops.ConvOp):
        return "conv"
    if isinstance(node.op, ops.LinearOp):
        return "linear"
    is_visible = node.params or node.input != node.output or isinstance(node.op, ops.MaxPoolOp | ops.AvgPoolOp)
    return "thin" if is_visible and not isinstance(node.op, describe.MINOR_OPS) else ""


def _format_label(node: Node) -> str:
    stride = f", /{node.op.window[1]}" if node.op.window[1] > 1 else ""
    match node.op:
        case ops.ConvOp() as op:
            dilation = f", dilation {op.dilation}" if op.dilation > 1 else ""
            groups = f", {op.groups} groups" if op.groups > 1 else ""
            return f"{op.kernel}x{op.kernel}, {op.out_channels}{groups}{stride}{dilation}"
        case ops.LinearOp() as op:
            return f"linear, {op.out_features}"
        case ops.MaxPoolOp(kernel) | ops.AvgPoolOp(kernel):
            name = "max pool" if isinstance(node.op, ops.MaxPoolOp) else "average pool"
            return f"{name} {kernel}x{kernel}{stride}"
        case ops.ZeroPadOp() as op:
            return f"{op.before + op.after} zeros{stride}"
        case ops.GlobalAvgPoolOp():
            return "average"
    return str(node.op).split(",")[0][:24]


# ----------------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True, slots=True)
class _Band:
    """The horizontal band of all boxes with one size of map, in every column."""

    size: ops.Shape
    top: float
    bottom: float

    @property
    def label(self) -> str:
        return describe.format_shape(self.size) or "vector"


def _layout_bands(columns: Sequence[_Column]) -> list[_Band]:
    """Place every box; return the bands, the largest maps first and vectors last."""
    bands: list[_Band] = []
    top = _HEADING_HEIGHT
    for size in sorted({box.size for column in columns for box in column.boxes}, key=_get_sort_key, reverse=True):
        bottom = max(_stack_boxes(column, size, top + _BAND_PAD) for column in columns) + _BAND_PAD
        bands.append(_Band(size, top, bottom))
        top = bottom
    for column in columns:
        _push_down(column, {band.size: band.bottom - _BAND_PAD for band in bands})
    return bands


def _push_down(column: _Column, band_bottoms: Mapping[ops.Shape, float]) -> None:
    """If a block reduces its map, move its first boxes down to the end of their band."""
    for arc in column.arcs:
        size = column.boxes[arc.first].size
        indices = [i for i in range(arc.first, arc.last + 1) if column.boxes[i].size == size]
        if indices[-1] < arc.last:
            offset = band_bottoms[size] - column.get_bottom(indices[-1])
            for i in indices:
                column.tops[i] += offset


def _get_sort_key(size: ops.Shape) -> tuple[int, ops.Shape]:
    return (size[0] * size[1] if len(size) == 2 else 0), size


def _stack_boxes(column: _Column, size: ops.Shape, top: float) -> float:
    """Stack the boxes of one size from ``top``; return where they end."""
    y = top
    for i, box in enumerate(column.boxes):
        if box.size == size:
            column.tops[i] = y if y == top else y + box.gap
            y = column.tops[i] + box.height
    return y


def _estimate_text_width(text: str, font_size: float) -> float:
    """Return an upper bound of the width of a text; East Asian letters are as wide as they are high."""
    return sum(font_size * (1.0 if ord(char) > 0x2E7F else 0.62) for char in text)


# ---------------------------------------------------------------------------------------------------------- drawing


def _build_document(columns: Sequence[_Column], bands: Sequence[_Band]) -> str:
    x = _MARGIN + max(_estimate_text_width(band.label, _FONT_SIZE) for band in bands)
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


def _draw_label(text: str, x: float, y: float, *, color: str = scale.MUTED_COLOR, **attributes: object) -> str:
    return svg.build_text(text, x, y, **{"fill": color, "font_size": _FONT_SIZE} | attributes)


def _draw_band(band: _Band, width: float, *, is_shaded: bool) -> Iterator[str]:
    if is_shaded:
        yield svg.build_element("rect", x=0.0, y=band.top, width=width, height=band.bottom - band.top, fill=_BAND_COLOR)
    yield _draw_label(band.label, _MARGIN, (band.top + band.bottom) / 2 + 4, font_weight=600)


def _draw_column(column: _Column) -> Iterator[str]:
    name, *lines = column.heading_lines
    style = {"text_anchor": "middle", "font_size": 15, "font_weight": 600}
    yield _draw_label(name, column.center, 26.0, color=scale.TEXT_COLOR, **style)
    yield from (_draw_label(line, column.center, 43.0 + 17 * i, text_anchor="middle") for i, line in enumerate(lines))
    yield from (_draw_arrow(column, i) for i in range(1, len(column.boxes)))
    yield from (_draw_arc(column, arc) for arc in column.arcs)
    yield from (_draw_box(column, i) for i in range(len(column.boxes)))
    yield from (_draw_fold(column, fold) for fold in column.folds)


def _draw_arrow(column: _Column, i: int) -> str:
    """Draw an arrow from the box before box ``i`` to box ``i``."""
    x, start, end = column.center, column.get_bottom(i - 1), column.tops[i]
    arrow_head = f"M {x - 3:.1f} {end - 4.5:.1f} L {x:.1f} {end - 0.5:.1f} L {x + 3:.1f} {end - 4.5:.1f}"
    path = f"M {x:.1f} {start:.1f} V {end - 1:.1f} {arrow_head}"
    return svg.build_element("path", d=path, fill="none", stroke=_LINE_COLOR)


def _draw_box(column: _Column, i: int) -> str:
    box, top, width = column.boxes[i], column.tops[i], column.box_width
    border = {"stroke": _BORDER_COLOR, "stroke_width": 0.8, "rx": 3, "data_part": box.kind}
    if box.kind == "image":
        border |= {"stroke": _LINE_COLOR, "stroke_dasharray": "3 3"}
    tooltip, x = svg.build_title(box.note), column.center - width / 2
    frame = svg.build_element("rect", tooltip, x=x, y=top, width=width, height=box.height, fill=box.color, **border)
    font_size = _FONT_SIZE if box.height > 16 else _FONT_SIZE - 1.5
    style = {"text_anchor": "middle", "font_size": font_size, "pointer_events": "none"}
    y = top + box.height / 2 + font_size * 0.36
    return svg.build_element("g", frame, _draw_label(box.label, column.center, y, color=scale.TEXT_COLOR, **style))


def _draw_arc(column: _Column, arc: _Arc) -> str:
    """Draw a shortcut around the boxes of its block; a dot below them marks the addition."""
    x, edge = column.center, column.center + column.box_width / 2
    start, end, control_x = column.tops[arc.first] - 5, column.get_bottom(arc.last) + 5, edge + _ARC_WIDTH
    curve = f"C {control_x:.1f} {start:.1f} {control_x:.1f} {end:.1f} {edge:.1f} {end:.1f}"
    path = f"M {x:.1f} {start:.1f} H {edge:.1f} {curve} H {x:.1f}"
    style = _get_arc_style(arc.kind)
    line = svg.build_element("path", svg.build_title(arc.note), d=path, fill="none", data_part="arc", **style)
    dot, label = svg.build_element("circle", cx=x, cy=end, r=2.6, fill=style["stroke"]), ""
    if arc.label:
        label_x, label_y = edge + _ARC_WIDTH * 0.75 + 5, (start + end) / 2 + 4
        label = _draw_label(arc.label, label_x, label_y, color=style["stroke"], font_size=_SMALL_FONT_SIZE)
    return svg.build_element("g", line, dot, label)


def _get_arc_style(kind: str) -> dict[str, str]:
    """Return gray for the identity, else dashed: orange for a projection, blue without weights."""
    if kind == "identity":
        return {"stroke": scale.IDENTITY_COLOR, "stroke_width": "1.4"}
    color = scale.PROJECTION_COLOR if "projection" in kind else scale.PADDED_COLOR
    return {"stroke": color, "stroke_width": "1.9", "stroke_dasharray": "6 3"}


def _draw_fold(column: _Column, fold: _Fold) -> str:
    x, top = column.center - column.box_width / 2 - 5, column.tops[fold.first] - 2
    end = column.get_bottom(fold.last) + 2
    path = f"M {x:.1f} {top:.1f} h -4 V {end:.1f} h 4"
    line = svg.build_element("path", d=path, fill="none", stroke=scale.TEXT_COLOR)
    style = {"text_anchor": "end", "font_weight": 600}
    label = _draw_label(f"x {fold.count}", x - 8, (top + end) / 2 + 4, color=scale.TEXT_COLOR, **style)
    return svg.build_element("g", line, label)


# ----------------------------------------------------------------------------------------------------------- legend


def _draw_legend(columns: Sequence[_Column], width: float, top: float) -> tuple[list[str], float]:
    """Draw the legend in lines of at most ``width``; return its elements and where it ends."""
    marks, x, y = [], _MARGIN, top
    for kind, label in _collect_legend_entries(columns):
        entry_width = 30 + _estimate_text_width(label, _FONT_SIZE) + 18
        if x > _MARGIN and x + entry_width > width:
            x, y = _MARGIN, y + 22
        marks += [_draw_legend_mark(kind, x, y), _draw_label(label, x + 30, y)]
        x += entry_width
    return marks, y + 20


def _collect_legend_entries(columns: Sequence[_Column]) -> list[tuple[str, str]]:
    """Return (mark, label) for the colors of stages, the kinds of shortcuts and the folds of the drawing."""
    n_stages = max(len(describe.list_stages(column.plan)) for column in columns)
    entries = [(color, f"stage{i}") for i, color in enumerate(_STAGE_COLORS[:n_stages], 1)]
    kinds = scale.list_shortcut_kinds(*(column.plan for column in columns))
    entries += [(kind, scale.SHORTCUT_LABELS[kind]) for kind in kinds]
    if any(column.folds for column in columns):
        entries.append(("fold", "equal blocks in a row, drawn once"))
    return entries


def _draw_legend_mark(kind: str, x: float, y: float) -> str:
    if kind.startswith("#"):
        border = {"stroke": _BORDER_COLOR, "stroke_width": 0.8}
        return svg.build_element("rect", x=x, y=y - 11, width=24, height=13, rx=3, fill=kind, **border)
    if kind == "fold":
        return _draw_label("x 2", x, y, color=scale.TEXT_COLOR, font_weight=600)
    return svg.build_element("line", x1=x, x2=x + 24, y1=y - 4, y2=y - 4, **_get_arc_style(kind))
