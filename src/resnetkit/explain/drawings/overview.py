"""A network as a picture, drawn from its plan: a block is a box, as high as its map and as wide as its channels ask.

Sizes are to scale by their square roots, so that 7x7 can still be seen beside 224x224. Shortcuts are arcs: grey where
they are the input itself, orange where weights or zeros had to be added.

This module imports no torch.
"""

from __future__ import annotations

import math

from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.html.svg import build_element, build_svg, build_text, build_title

_WIDTH, _HEIGHT, _CENTER_Y, _MAX_BOX_HEIGHT = 1000.0, 352.0, 158.0, 170.0
_GROUP_COLORS = ("#dbe4ff", "#c5d6ff", "#a5bdfb", "#7f9df2", "#5f80e6")
_TEXT_COLOR, _MUTED_COLOR, _IDENTITY_COLOR, _ADAPTER_COLOR = "#1c2733", "#5d6b7a", "#8b98a5", "#d9480f"
_GAP, _STAGE_GAP, _MARGIN = 3.0, 34.0, 40.0


def draw_overview(plan: Plan, name: str) -> str:
    """An SVG document."""
    groups = [_split_into_boxes(child) for child in plan.root.children]
    n_gaps = sum(len(group) - 1 for group in groups)
    gap = min(_GAP, 0.15 * _WIDTH / max(n_gaps, 1))
    free_width = _WIDTH - 2 * _MARGIN - _STAGE_GAP * (len(groups) - 1)
    free_width -= gap * n_gaps
    unit = free_width / sum(_get_width_units(part) for group in groups for part in group)
    elements, x = [], _MARGIN
    for i, (child, group) in enumerate(zip(plan.root.children, groups, strict=True)):
        start = x
        for part in group:
            elements.append(_draw_box(plan, part, x, unit * _get_width_units(part), i))
            x += unit * _get_width_units(part) + gap
        elements.append(_draw_caption(plan, child, (start + x - gap) / 2))
        x += _STAGE_GAP - gap
    heading = build_text(f"{name}: {plan.params:,} params, {plan.macs:,} MACs, depth {plan.depth}", _MARGIN, 26.0,
                    fill=_TEXT_COLOR, font_size=15, font_weight=600)  # fmt: skip
    background = build_element("rect", width=_WIDTH, height=_HEIGHT, rx=10, fill="#ffffff")
    return build_svg(_WIDTH, _HEIGHT, f"The network {name}", background, heading, *_draw_legend(plan), *elements) + "\n"


def _split_into_boxes(part: Section | Node) -> list[Section | Node]:
    """What is drawn as one box each: blocks, and stem and head whole."""
    return list(part.children) if isinstance(part, Section) and part.role == "stage" else [part]


def _get_width_units(part: Section | Node) -> float:
    return math.sqrt(max(part.output[0], 48)) if len(part.output) == 3 else math.sqrt(48)


def _compute_height(plan: Plan, part: Section | Node) -> float:
    side = part.output[1] if len(part.output) == 3 else 1
    largest = max(child.output[1] for child in plan.root.children if len(child.output) == 3)
    return max(10.0, _MAX_BOX_HEIGHT * math.sqrt(side / largest))


def _draw_box(plan: Plan, part: Section | Node, x: float, width: float, group_index: int) -> str:
    height = _compute_height(plan, part)
    tooltip = f"{part.path}: {'x'.join(map(str, part.output))}, {part.params:,} params, {part.macs:,} MACs"
    color = _GROUP_COLORS[min(group_index, len(_GROUP_COLORS) - 1)]
    box = build_element("rect", build_title(tooltip), x=x, y=_CENTER_Y - height / 2, width=width, height=height, rx=2, fill=color,
                  stroke="#ffffff", stroke_width=0.5)  # fmt: skip
    shortcut = next((child for child in getattr(part, "children", ()) if child.role == "shortcut"), None)
    return build_element("g", box, _draw_arc(shortcut, x, width, _CENTER_Y - height / 2) if shortcut else "")


def _draw_arc(shortcut: Section, x: float, width: float, top: float) -> str:
    has_adapter = bool(shortcut.nodes)
    bend = min(26.0, 8.0 + width * 0.6)
    end, foot, peak = x + width, top - 2, top - bend
    path = f"M {x:.1f} {foot:.1f} C {x:.1f} {peak:.1f}, {end:.1f} {peak:.1f}, {end:.1f} {foot:.1f}"
    tooltip = build_title(f"{shortcut.path}: {describe_shortcut(shortcut)}, {shortcut.reason}")
    color = _ADAPTER_COLOR if has_adapter else _IDENTITY_COLOR
    return build_element("path", tooltip, d=path, fill="none", stroke=color, stroke_width=2.2 if has_adapter else 1.3)


def _draw_caption(plan: Plan, part: Section | Node, center_x: float) -> str:
    y = _CENTER_Y + _MAX_BOX_HEIGHT / 2 + 26
    shape = "x".join(map(str, part.output[1:])) if len(part.output) == 3 else ""
    lines = [part.path, f"{part.output[0]} x {shape}" if shape else str(part.output[0])]
    lines += [f"{part.macs / plan.macs:.0%} of MACs"] if part.role == "stage" else []
    return "".join(
        build_text(line, center_x, y + 18 * i, text_anchor="middle", fill=_TEXT_COLOR if i == 0 else _MUTED_COLOR,
              font_weight=600 if i == 0 else 400)
        for i, line in enumerate(lines)
    )  # fmt: skip


def _draw_legend(plan: Plan) -> list[str]:
    adapter_flags = {bool(part.nodes) for part in plan.parts.values() if part.role == "shortcut"}
    entries = [(_IDENTITY_COLOR, "shortcut: the input itself")] * (False in adapter_flags)
    entries += [(_ADAPTER_COLOR, "shortcut with an adapter")] * (True in adapter_flags)
    elements, x = [], _MARGIN
    for color, label in entries:
        elements.append(
            build_element("line", x1=x, x2=x + 18, y1=_HEIGHT - 18, y2=_HEIGHT - 18, stroke=color, stroke_width=2.5)
        )
        elements.append(build_text(label, x + 24, _HEIGHT - 14, fill=_MUTED_COLOR))
        x += 200.0
    return elements
