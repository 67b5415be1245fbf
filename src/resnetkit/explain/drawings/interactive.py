"""Draw a network for its page: boxes on a line, as high as their map and as wide as their channels, by square roots.

A shortcut leaves the line before its block and returns after it. The bar below each box is its share of the MACs. If
the boxes do not fit into one row, they continue in the next one. The script of the page updates what depends on the
image size; it reads the geometry from the ``data-`` attributes written here.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files

from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Node, Plan, Section, parse_stage_number
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain import describe
from resnetkit.explain.drawings import scale
from resnetkit.html.svg import build_element, build_svg, build_text, build_title

WIDTH = 1184.0
_LEFT_MARGIN, _RIGHT_MARGIN, _CAPTION_WIDTH, _GROUP_GAP = 128.0, 8.0, 92.0, 18.0
_IMAGE_X = 20
_MIN_BOX_WIDTH, _MAX_UNIT = 4.0, 3.4  # pixels; the smallest box is still wide enough for a pointer
_ARC_HEIGHT, _BARS_HEIGHT, _CAPTION_HEIGHT = 30.0, 34.0, 66.0
_MAX_BAR_HEIGHT = _BARS_HEIGHT - 8

_Group = tuple[Section | Node, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    """A part with its group, its left edge and width in pixels, and its row."""

    part: Section | Node
    group: int
    x: float
    width: float
    row: int = 0

    @property
    def end(self) -> float:
        return self.x + self.width


@dataclass(frozen=True, slots=True)
class _Layout:
    """The geometry of the drawing in pixels; ``unit`` is the width of a box with one channel."""

    image_height: float
    unit: float
    gap: float
    is_wrapped: bool = False

    @property
    def row_height(self) -> float:
        """The distance from one row to the next."""
        return _ARC_HEIGHT + self.image_height + _BARS_HEIGHT + _CAPTION_HEIGHT

    @property
    def image_center_x(self) -> float:
        return _IMAGE_X + 0.15 * self.image_height

    def get_box_width(self, part: Section | Node) -> float:
        return max(_MIN_BOX_WIDTH, self.unit * _get_width_units(part))

    def get_group_width(self, group: _Group) -> float:
        return sum(self.get_box_width(part) + self.gap for part in group) - self.gap

    def get_total_width(self, groups: Sequence[_Group]) -> float:
        return sum(max(_CAPTION_WIDTH, self.get_group_width(group)) + _GROUP_GAP for group in groups) - _GROUP_GAP

    def get_center_y(self, row: int) -> float:
        return _ARC_HEIGHT + self.image_height / 2 + row * self.row_height

    def get_bars_y(self, row: int) -> float:
        return self.get_center_y(row) + self.image_height / 2 + 6

    def get_caption_y(self, row: int) -> float:
        return self.get_bars_y(row) + _BARS_HEIGHT + 14


def draw_interactive(plan: Plan, name: str) -> str:
    """Draw a network as an SVG element; boxes and captions carry the path of their part in ``data-path``.

    Args:
        plan: the network.
        name: its name in the label of the drawing; text, never markup.
    """
    groups = [describe.split_into_boxes(part) for part in plan.root.children]
    layout = _fit_layout(groups)
    boxes = _place_boxes(groups, layout)
    n_rows = max(box.row for box in boxes) + 1
    max_macs = max(box.part.macs for box in boxes) or 1
    elements = [_draw_row_lines(boxes, layout, row) for row in range(n_rows)]
    elements += [_draw_image(layout), *(_draw_box(plan, box, layout, max_macs) for box in boxes)]
    elements += _draw_captions(plan, boxes, layout)
    geometry = {"data_max_height": layout.image_height, "data_max_bar_height": _MAX_BAR_HEIGHT}
    root = build_element("g", _read_scene(), *elements, id="drawing", **geometry)
    return build_svg(WIDTH, layout.row_height * n_rows, f"The network {name}, drawn to scale", root)


def _read_scene() -> str:
    """Read the image that the drawing shows: a made-up photograph of 100 by 100 units."""
    return files("resnetkit.explain.drawings").joinpath("scene.svg").read_text(encoding="utf-8").strip()


def render_legend_items(plan: Plan) -> str:
    """Render list items that explain the kinds of shortcuts in the network."""
    return "".join(_render_legend_item(kind) for kind in scale.list_shortcut_kinds(plan))


def _render_legend_item(kind: str) -> str:
    line = build_element("path", d="M 1 15 V 8 Q 1 2 7 2 H 31 Q 37 2 37 8 V 15", class_=_get_arc_class(kind))
    icon = build_element("svg", line, width=38, height=16, viewBox="0 0 38 16", aria_hidden="true")
    return f"<li>{icon}<span>{escape(scale.SHORTCUT_LABELS[kind])}</span></li>"


def _get_arc_class(kind: str) -> str:
    return "arc " + kind.replace(" ", "-")


# ----------------------------------------------------------------------------------------------------------- layout


def _get_width_units(part: Section | Node) -> float:
    return scale.compute_width_units(part.output, 16, 6.0)


def _fit_layout(groups: Sequence[_Group]) -> _Layout:
    """Find the largest unit that fits all boxes into one row, else wrap rows of the smallest boxes."""
    gap = max(1.6, min(9.0, 216.0 / sum(map(len, groups))))
    low, high = _MIN_BOX_WIDTH / min(_get_width_units(part) for part in max(groups, key=len)), _MAX_UNIT
    available_width = WIDTH - _LEFT_MARGIN - _RIGHT_MARGIN
    if _Layout(0, low, gap).get_total_width(groups) > available_width:
        return _Layout(132.0, low, gap, is_wrapped=True)
    for _ in range(30):  # bisection
        mid = (low + high) / 2
        fits = _Layout(0, mid, gap).get_total_width(groups) <= available_width
        low, high = (mid, high) if fits else (low, mid)
    return _Layout(256.0, low, gap)


def _place_boxes(groups: Sequence[_Group], layout: _Layout) -> list[_Box]:
    boxes: list[_Box] = []
    x, row = _LEFT_MARGIN, 0
    for i, group in enumerate(groups):
        padding = max(0.0, _CAPTION_WIDTH - layout.get_group_width(group)) / 2
        x += padding
        for part in group:
            width = layout.get_box_width(part)
            if layout.is_wrapped and x + width + padding > WIDTH - _RIGHT_MARGIN:
                x, row = _RIGHT_MARGIN + padding, row + 1
            boxes.append(_Box(part, i, x, width, row))
            x += width + layout.gap
        x += padding + _GROUP_GAP - layout.gap
    if layout.is_wrapped:
        return boxes
    offset = max(0.0, WIDTH - _CAPTION_WIDTH / 2 - boxes[-1].x - boxes[-1].width) / 2  # centers a short row
    return [replace(box, x=box.x + offset) for box in boxes]


# ---------------------------------------------------------------------------------------------------------- drawing


def _draw_box(plan: Plan, box: _Box, layout: _Layout, max_macs: int) -> str:
    part, center_y, bars_y = box.part, layout.get_center_y(box.row), layout.get_bars_y(box.row)
    height = scale.scale_height(scale.get_longer_side(part.output), max(plan.input[1:]), layout.image_height, 6.0)
    top, radius = center_y - height / 2, min(3.0, box.width / 4)
    body = build_element("rect", class_="body", x=box.x, y=top, width=box.width, height=height, rx=radius)
    bar_height, bar_width = _MAX_BAR_HEIGHT * part.macs / max_macs, min(box.width, 10.0)
    bar_x = box.x + (box.width - bar_width) / 2
    bar = build_element("rect", class_="bar", x=bar_x, y=bars_y, width=bar_width, height=bar_height)
    hit_area = build_element("rect", class_="hit-area", x=box.x - layout.gap / 2, width=box.width + layout.gap,
                             y=bars_y - layout.image_height - 6 - _ARC_HEIGHT,
                             height=layout.image_height + _ARC_HEIGHT + _BARS_HEIGHT)  # fmt: skip
    shortcut = describe.find_shortcut(part)
    ends, arc = (box.x - layout.gap * 0.3, box.end + layout.gap * 0.3), ""
    if shortcut:
        path = _build_arc_path(*ends, top, center_y)
        arc = build_element("path", class_=_get_arc_class(describe_shortcut(shortcut)), d=path)
    tooltip = build_title(f"{part.path}: {typeset_shape(part.output)}")
    geometry = {"data_center_y": center_y, "data_arc_ends": "{:.2f} {:.2f}".format(*ends)}
    css_class = f"box {_get_color_class(plan, part.path)}"
    return build_element("g", tooltip, hit_area, arc, body, bar, class_=css_class, data_path=part.path, **geometry)


def _build_arc_path(start: float, end: float, top: float, center_y: float) -> str:
    """Return a path up from the line, over the box, and down to the line again."""
    peak, radius = top - 14, min(11.0, (end - start) / 2)
    left = f"V {peak + radius:.2f} Q {start:.2f} {peak:.2f} {start + radius:.2f} {peak:.2f}"
    right = f"H {end - radius:.2f} Q {end:.2f} {peak:.2f} {end:.2f} {peak + radius:.2f}"
    return f"M {start:.2f} {center_y:.2f} {left} {right} V {center_y:.2f}"


def _draw_row_lines(boxes: Sequence[_Box], layout: _Layout, row: int) -> str:
    """Draw the line through the boxes of a row and the line above their bars."""
    row_boxes = [box for box in boxes if box.row == row]
    start, end, y = layout.image_center_x if row == 0 else 0.0, row_boxes[-1].end + 10, layout.get_center_y(row)
    data_line = build_element("line", class_="data-line", x1=start, x2=end, y1=y, y2=y)
    bars_y = layout.get_bars_y(row) - 0.5
    return data_line + build_element("line", class_="bar-line", x1=row_boxes[0].x - 8, x2=end, y1=bars_y, y2=bars_y)


def _draw_image(layout: _Layout) -> str:
    """Draw the image in perspective, in front of the line."""
    height = layout.image_height
    y = layout.get_center_y(0) - height / 2 + 0.05 * height
    scene = build_element("use", href="#scene", width=height, height=height)
    return build_element("g", scene, transform=f"matrix(0.3 -0.1 0 1 {_IMAGE_X} {y:.1f})", class_="image")


def _draw_captions(plan: Plan, boxes: Sequence[_Box], layout: _Layout) -> Iterator[str]:
    for i, part in enumerate(plan.root.children):
        group = [box for box in boxes if box.group == i]
        row_boxes = [box for box in group if box.row == group[0].row]
        yield _draw_caption(plan, part, (row_boxes[0].x + row_boxes[-1].end) / 2, layout.get_caption_y(group[0].row))
    x, y = layout.image_center_x, layout.get_caption_y(0)
    shape = build_text(typeset_shape(plan.input), x, y + 17, id="image-shape")
    yield build_element("g", build_text("image", x, y, class_="caption-title"), shape, text_anchor="middle")


def _draw_caption(plan: Plan, part: Section | Node, x: float, y: float) -> str:
    hit_area = build_element("rect", class_="hit-area", x=x - _CAPTION_WIDTH / 2, y=y - 16, width=_CAPTION_WIDTH,
                             height=58, rx=6)  # fmt: skip
    share = f"{part.macs / plan.macs:.1%} of MACs" if part.macs else ""
    title = build_text(part.path, x, y, class_="caption-title")
    lines = build_text(typeset_shape(part.output), x, y + 17), build_text(share, x, y + 34)
    return build_element("g", hit_area, title, *lines, text_anchor="middle", class_="caption", data_path=part.path)


def _get_color_class(plan: Plan, path: str) -> str:
    """Return the class of a part: gray in stem and head, from light to dark for the stages."""
    if not path.startswith("stage"):
        return "gray"
    return f"color{min(parse_stage_number(path), 6) + (0 if len(plan.spec.stages) > 3 else 1)}"


def typeset_shape(shape: Shape) -> str:
    """Return channels, height and width with multiplication signs between them."""
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))
