"""Draw a network from its plan: one box for each block, as high as its map and as wide as its channels.

Sizes are to scale by their square roots, so that a 7x7 map is still visible next to a 224x224 one. Shortcuts are arcs:
gray for the identity, orange for an adapter (weights or zeros).

This module imports no torch.
"""

from __future__ import annotations

import math

from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain import describe
from resnetkit.explain.drawings import scale
from resnetkit.html.svg import build_element, build_svg, build_text, build_title

_WIDTH, _HEIGHT, _CENTER_Y, _MAX_BOX_HEIGHT = 1000.0, 352.0, 158.0, 170.0
_GROUP_COLORS = ("#dbe4ff", "#c5d6ff", "#a5bdfb", "#7f9df2", "#5f80e6")
_GAP, _STAGE_GAP, _MARGIN = 3.0, 34.0, 40.0
_LEGEND_LABELS = {False: (scale.IDENTITY_COLOR, scale.SHORTCUT_LABELS["identity"]),
                  True: (scale.PROJECTION_COLOR, "shortcut with an adapter")}  # fmt: skip


def draw_overview(plan: Plan, name: str) -> str:
    """Draw a network as an SVG document.

    Args:
        plan: the network.
        name: its name in the heading; text, never markup.
    """
    groups = [describe.split_into_boxes(child) for child in plan.root.children]
    n_gaps = sum(len(group) - 1 for group in groups)
    gap = min(_GAP, 0.15 * _WIDTH / max(n_gaps, 1))
    free_width = _WIDTH - 2 * _MARGIN - _STAGE_GAP * (len(groups) - 1) - gap * n_gaps
    unit = free_width / sum(_get_width_units(part) for group in groups for part in group)
    elements, x = [], _MARGIN
    for i, (child, group) in enumerate(zip(plan.root.children, groups, strict=True)):
        start, color = x, _GROUP_COLORS[min(i, len(_GROUP_COLORS) - 1)]
        for part in group:
            elements.append(_draw_box(plan, part, x, unit * _get_width_units(part), color))
            x += unit * _get_width_units(part) + gap
        elements.append(_draw_caption(plan, child, (start + x - gap) / 2))
        x += _STAGE_GAP - gap
    text = f"{name}: {plan.params:,} params, {plan.macs:,} MACs, depth {plan.depth}"
    heading = build_text(text, _MARGIN, 26.0, fill=scale.TEXT_COLOR, font_size=15, font_weight=600)
    background = build_element("rect", width=_WIDTH, height=_HEIGHT, rx=10, fill="#ffffff")
    return build_svg(_WIDTH, _HEIGHT, f"The network {name}", background, heading, *_draw_legend(plan), *elements) + "\n"


def _get_width_units(part: Section | Node) -> float:
    return scale.compute_width_units(part.output, 48, math.sqrt(48))


def _draw_box(plan: Plan, part: Section | Node, x: float, width: float, color: str) -> str:
    largest_side = max(scale.get_longer_side(child.output) for child in plan.root.children)
    height = scale.scale_height(scale.get_longer_side(part.output), largest_side, _MAX_BOX_HEIGHT, 10.0)
    top = _CENTER_Y - height / 2
    tooltip = build_title(f"{part.path}: {describe.format_costs(part)}")
    box = build_element("rect", tooltip, x=x, y=top, width=width, height=height, rx=2, fill=color,
                        stroke="#ffffff", stroke_width=0.5)  # fmt: skip
    shortcut = describe.find_shortcut(part)
    return build_element("g", box, _draw_arc(shortcut, x, width, top) if shortcut else "")


def _draw_arc(shortcut: Section, x: float, width: float, top: float) -> str:
    end, foot, peak = x + width, top - 2, top - min(26.0, 8.0 + width * 0.6)
    path = f"M {x:.1f} {foot:.1f} C {x:.1f} {peak:.1f}, {end:.1f} {peak:.1f}, {end:.1f} {foot:.1f}"
    tooltip = build_title(f"{shortcut.path}: {describe_shortcut(shortcut)}, {shortcut.reason}")
    has_adapter = bool(shortcut.nodes)
    style = {"stroke": _LEGEND_LABELS[has_adapter][0], "stroke_width": 2.2 if has_adapter else 1.3}
    return build_element("path", tooltip, d=path, fill="none", **style)


def _draw_caption(plan: Plan, part: Section | Node, center_x: float) -> str:
    y = _CENTER_Y + _MAX_BOX_HEIGHT / 2 + 26
    lines = [" x ".join(filter(None, (str(part.output[0]), describe.format_shape(part.output[1:]))))]
    if part.role == "stage":
        lines.append(f"{part.macs / plan.macs:.0%} of MACs")
    title = build_text(part.path, center_x, y, text_anchor="middle", fill=scale.TEXT_COLOR, font_weight=600)
    style = {"text_anchor": "middle", "fill": scale.MUTED_COLOR, "font_weight": 400}
    return title + "".join(build_text(line, center_x, y + 18 * i, **style) for i, line in enumerate(lines, 1))


def _draw_legend(plan: Plan) -> list[str]:
    elements, y = [], _HEIGHT - 18
    adapter_flags = {bool(shortcut.nodes) for shortcut in describe.list_shortcuts(plan)}
    for i, (color, label) in enumerate(_LEGEND_LABELS[flag] for flag in sorted(adapter_flags)):
        x = _MARGIN + 200.0 * i
        elements.append(build_element("line", x1=x, x2=x + 18, y1=y, y2=y, stroke=color, stroke_width=2.5))
        elements.append(build_text(label, x + 24, _HEIGHT - 14, fill=scale.MUTED_COLOR))
    return elements
