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

from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain.page_facts import split_into_boxes
from resnetkit.html.svg import build_element, build_svg, build_text, build_title

WIDTH = 1184.0
_LEFT_MARGIN, _RIGHT_MARGIN, _CAPTION_WIDTH, _GROUP_GAP = 128.0, 8.0, 92.0, 18.0
_IMAGE_X = 20
_MIN_BOX_WIDTH, _MAX_UNIT = 4.0, 3.4
_ARC_HEIGHT, _BARS_HEIGHT, _CAPTION_HEIGHT = 30.0, 34.0, 66.0
SHORTCUT_LABELS = {  # the lines in the key: what each kind of shortcut is
    "identity": "shortcut: the input itself",
    "projection": "projection: a 1x1 convolution",
    "pooled projection": "pooled, then projected",
    "padded identity": "padded with channels of zeros",
    "pooled identity": "pooled: the channels stay",
}


@dataclass(frozen=True, slots=True)
class _Box:
    """Where a part stands: its left edge, its width, and its row."""

    part: Section | Node
    group: int
    x: float
    width: float
    row: int = 0


@dataclass(frozen=True, slots=True)
class _Scale:
    """``tallest`` is the height of the image; ``unit`` the width of one channel, by its square root."""

    image_height: float
    unit: float
    gap: float
    is_wrapped: bool = False

    @property
    def row_height(self) -> float:
        """From one row to the next."""
        return _ARC_HEIGHT + self.image_height + _BARS_HEIGHT + _CAPTION_HEIGHT

    def get_box_width(self, part: Section | Node) -> float:
        """Wide enough to be met by a pointer."""
        return max(_MIN_BOX_WIDTH, self.unit * _get_width_units(part))

    def get_center_y(self, row: int) -> float:
        return _ARC_HEIGHT + self.image_height / 2 + row * self.row_height

    def get_box_height(self, side: int, image_side: int) -> float:
        return max(6.0, self.image_height * math.sqrt(side / image_side))


def draw_interactive(plan: Plan, name: str) -> str:
    """An SVG element; everything that a reader can choose carries its path."""
    groups = [split_into_boxes(part) for part in plan.root.children]
    scale = _fit_scale(groups)
    placed_boxes = _place_boxes(groups, scale)
    n_rows = max(box.row for box in placed_boxes) + 1
    max_macs = max(box.part.macs for box in placed_boxes) or 1
    elements = [_draw_wire(placed_boxes, scale, row) for row in range(n_rows)]
    elements += [
        _draw_image(scale),
        *(_draw_box(plan, box, scale, max_macs) for box in placed_boxes),
        *_draw_captions(plan, placed_boxes, scale),
    ]
    root = build_element("g", SCENE, *elements, id="marks", data_tallest=scale.image_height, data_bars=_BARS_HEIGHT - 8)
    return build_svg(WIDTH, scale.row_height * n_rows, f"The network {name}, drawn to scale", root)


def render_legend_items(plan: Plan) -> str:
    """What the lines mean; only those that are there."""
    kinds = {
        describe_shortcut(part) for part in plan.parts.values() if isinstance(part, Section) and _is_shortcut(part)
    }
    order = dict.fromkeys([*SHORTCUT_LABELS, *sorted(kinds)])
    return "".join(_render_legend_item(kind, SHORTCUT_LABELS.get(kind, kind)) for kind in order if kind in kinds)


def _is_shortcut(part: Section | Node) -> bool:
    return part.role == "shortcut"


def _render_legend_item(kind: str, label: str) -> str:
    line = build_element("path", d="M 1 15 V 8 Q 1 2 7 2 H 31 Q 37 2 37 8 V 15", class_=_get_css_class(kind))
    icon = build_element("svg", line, width=38, height=16, viewBox="0 0 38 16", aria_hidden="true")
    return f"<li>{icon}<span>{escape(label)}</span></li>"


def _get_css_class(kind: str) -> str:
    return "way " + kind.replace(" ", "-")


# ------------------------------------------------------------------------------------------------------------ layout


def _fit_scale(groups: list[tuple[Section | Node, ...]]) -> _Scale:
    """The largest unit at which one row holds everything; where none does, rows of the smallest boxes."""
    n_boxes = sum(map(len, groups))
    gap = max(1.6, min(9.0, 216.0 / n_boxes))
    low, high = _MIN_BOX_WIDTH / min(_get_width_units(part) for part in max(groups, key=len)), _MAX_UNIT
    available_width = WIDTH - _LEFT_MARGIN - _RIGHT_MARGIN
    if _compute_total_width(groups, _Scale(0, low, gap)) > available_width:
        return _Scale(132.0, low, gap, is_wrapped=True)
    for _ in range(30):
        mid = (low + high) / 2
        low, high = (mid, high) if _compute_total_width(groups, _Scale(0, mid, gap)) <= available_width else (low, mid)
    return _Scale(256.0, low, gap)


def _compute_total_width(groups: list[tuple[Section | Node, ...]], scale: _Scale) -> float:
    return sum(max(_CAPTION_WIDTH, _compute_group_width(group, scale)) for group in groups) + _GROUP_GAP * (
        len(groups) - 1
    )


def _compute_group_width(group: tuple[Section | Node, ...], scale: _Scale) -> float:
    return sum(scale.get_box_width(part) + scale.gap for part in group) - scale.gap


def _get_width_units(part: Section | Node) -> float:
    """A vector of a thousand numbers has no map and need not be the widest of all."""
    return math.sqrt(max(part.output[0], 16)) if len(part.output) == 3 else 6.0


def _place_boxes(groups: list[tuple[Section | Node, ...]], scale: _Scale) -> list[_Box]:
    placed_boxes: list[_Box] = []
    x, row = _LEFT_MARGIN, 0
    for i, group in enumerate(groups):
        padding = max(0.0, _CAPTION_WIDTH - _compute_group_width(group, scale)) / 2
        x += padding
        for part in group:
            width = scale.get_box_width(part)
            if scale.is_wrapped and x + width + padding > WIDTH - _RIGHT_MARGIN:
                x, row = _RIGHT_MARGIN + padding, row + 1
            placed_boxes.append(_Box(part, i, x, width, row))
            x += width + scale.gap
        x += padding + _GROUP_GAP - scale.gap
    return placed_boxes if scale.is_wrapped else _center_boxes(placed_boxes)


def _center_boxes(placed_boxes: list[_Box]) -> list[_Box]:
    """One short row stands in the middle of the room beside the image."""
    offset = max(0.0, WIDTH - _CAPTION_WIDTH / 2 - placed_boxes[-1].x - placed_boxes[-1].width) / 2
    return [replace(box, x=box.x + offset) for box in placed_boxes]


# ------------------------------------------------------------------------------------------------------------- marks


def _draw_box(plan: Plan, box: _Box, scale: _Scale, max_macs: int) -> str:
    part, center_y = box.part, scale.get_center_y(box.row)
    height = scale.get_box_height(get_longer_side(part.output), max(plan.input[1:]))
    top = center_y - height / 2
    face = build_element(
        "rect", class_="face", x=box.x, y=top, width=box.width, height=height, rx=min(3.0, box.width / 4)
    )
    bar_y = center_y + scale.image_height / 2 + 6
    bar_height = (_BARS_HEIGHT - 8) * part.macs / max_macs
    bar_width = min(box.width, 10.0)
    bar = build_element(
        "rect", class_="bar", x=box.x + (box.width - bar_width) / 2, y=bar_y, width=bar_width, height=bar_height
    )
    hit_area = build_element("rect", class_="reach", x=box.x - scale.gap / 2, y=bar_y - scale.image_height - 6 - _ARC_HEIGHT,
                    width=box.width + scale.gap, height=scale.image_height + _ARC_HEIGHT + _BARS_HEIGHT)  # fmt: skip
    kinds = [describe_shortcut(c) for c in getattr(part, "children", ()) if _is_shortcut(c)]
    ends = (box.x - scale.gap * 0.3, box.x + box.width + scale.gap * 0.3)
    arcs = [
        build_element("path", class_=_get_css_class(kind), d=_build_arc_path(*ends, top, center_y)) for kind in kinds
    ]
    return build_element("g", build_title(format_tooltip(part)), hit_area, *arcs, face, bar, class_=f"box {_get_hue_class(plan, box.group)}",
                   data_path=part.path, data_middle=center_y, data_ends="{:.2f} {:.2f}".format(*ends))  # fmt: skip


def _build_arc_path(start: float, end: float, top: float, center_y: float) -> str:
    """Up from the wire, over the box, and down to the wire again."""
    peak, radius = top - 14, min(11.0, (end - start) / 2)
    numbers = (
        start,
        center_y,
        peak + radius,
        start,
        peak,
        start + radius,
        peak,
        end - radius,
        end,
        peak,
        end,
        peak + radius,
    )
    path = "M {:.2f} {:.2f} V {:.2f} Q {:.2f} {:.2f} {:.2f} {:.2f} H {:.2f} Q {:.2f} {:.2f} {:.2f} {:.2f} V {:.2f}"
    return path.format(*numbers, center_y)


def _draw_wire(placed_boxes: list[_Box], scale: _Scale, row: int) -> str:
    row_boxes = [box for box in placed_boxes if box.row == row]
    start, end = _IMAGE_X + 0.15 * scale.image_height if row == 0 else 0.0, row_boxes[-1].x + row_boxes[-1].width + 10
    wire = build_element(
        "line", class_="wire", x1=start, x2=end, y1=scale.get_center_y(row), y2=scale.get_center_y(row)
    )
    ground_y = scale.get_center_y(row) + scale.image_height / 2 + 5.5
    ground = build_element("line", class_="ground", x1=row_boxes[0].x - 8, x2=end, y1=ground_y, y2=ground_y)
    return wire + ground


def _draw_image(scale: _Scale) -> str:
    """The image, turned a little, in front of the wire."""
    matrix = f"matrix(0.3 -0.1 0 1 {_IMAGE_X} {scale.get_center_y(0) - scale.image_height / 2 + 0.05 * scale.image_height:.1f})"
    scene = build_element("use", href="#scene", width=scale.image_height, height=scale.image_height)
    return build_element("g", scene, transform=matrix, class_="image")


def _draw_captions(plan: Plan, placed_boxes: list[_Box], scale: _Scale) -> Iterable[str]:
    for i, part in enumerate(plan.root.children):
        group_boxes = [box for box in placed_boxes if box.group == i]
        row_boxes = [box for box in group_boxes if box.row == group_boxes[0].row]
        center_x = (row_boxes[0].x + row_boxes[-1].x + row_boxes[-1].width) / 2
        yield _draw_caption(
            plan, part, center_x, scale.get_center_y(group_boxes[0].row) + scale.image_height / 2 + _BARS_HEIGHT + 20
        )
    image_x = _IMAGE_X + 0.15 * scale.image_height
    y = scale.get_center_y(0) + scale.image_height / 2 + _BARS_HEIGHT + 20
    lines = [
        build_text("image", image_x, y, class_="name"),
        build_text(typeset_shape(plan.input), image_x, y + 17, id="image-shape"),
    ]
    yield build_element("g", *lines, text_anchor="middle", class_="plain")


def _draw_caption(plan: Plan, part: Section | Node, center_x: float, y: float) -> str:
    hit_area = build_element(
        "rect", class_="reach", x=center_x - _CAPTION_WIDTH / 2, y=y - 16, width=_CAPTION_WIDTH, height=58, rx=6
    )
    share = f"{part.macs / plan.macs:.1%} of MACs" if part.macs else ""
    lines = [
        build_text(part.path, center_x, y, class_="name"),
        build_text(typeset_shape(part.output), center_x, y + 17),
        build_text(share, center_x, y + 34),
    ]
    return build_element("g", hit_area, *lines, text_anchor="middle", class_="caption", data_path=part.path)


def _get_hue_class(plan: Plan, group: int) -> str:
    """Stem and head are grey; the stages go from light to dark."""
    if plan.root.children[group].role != "stage":
        return "end"
    stages = [i for i, part in enumerate(plan.root.children) if part.role == "stage"]
    return f"hue{min(stages.index(group), 5) + (1 if len(stages) > 3 else 2)}"


def format_tooltip(part: Section | Node) -> str:
    """What a box says when it is asked what it is."""
    return f"{part.path}: {typeset_shape(part.output)}"


def typeset_shape(sizes: tuple[int, ...]) -> str:
    """Channels, height and width with the sign for times between them."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, sizes))


def get_longer_side(sizes: tuple[int, ...]) -> int:
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
