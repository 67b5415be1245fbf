"""A network as a picture, drawn from its plan: a block is a box, as high as its map and as wide as its channels ask.

Sizes are to scale by their square roots, so that 7x7 can still be seen beside 224x224. Shortcuts are arcs: grey where
they are the input itself, orange where weights or zeros had to be added.

This module imports no torch.
"""

from __future__ import annotations

import math

from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.html.svg import document, element, title, words

_WIDTH, _HEIGHT, _MIDDLE, _TALLEST = 1000.0, 352.0, 158.0, 170.0
_COLOURS = ("#dbe4ff", "#c5d6ff", "#a5bdfb", "#7f9df2", "#5f80e6")
_INK, _SOFT, _PLAIN, _MARKED = "#1c2733", "#5d6b7a", "#8b98a5", "#d9480f"
_GAP, _STAGE_GAP, _MARGIN = 3.0, 34.0, 40.0


def picture(plan: Plan, name: str) -> str:
    """An SVG document."""
    groups = [_boxes(place) for place in plan.root.children]
    crowd = sum(len(group) - 1 for group in groups)
    gap = min(_GAP, 0.15 * _WIDTH / max(crowd, 1))
    free = _WIDTH - 2 * _MARGIN - _STAGE_GAP * (len(groups) - 1)
    free -= gap * crowd
    unit = free / sum(_ask(part) for group in groups for part in group)
    marks, x = [], _MARGIN
    for i, (place, group) in enumerate(zip(plan.root.children, groups, strict=True)):
        start = x
        for part in group:
            marks.append(_box(plan, part, x, unit * _ask(part), i))
            x += unit * _ask(part) + gap
        marks.append(_caption(plan, place, (start + x - gap) / 2))
        x += _STAGE_GAP - gap
    heading = words(f"{name}: {plan.params:,} params, {plan.macs:,} MACs, depth {plan.depth}", _MARGIN, 26.0,
                    fill=_INK, font_size=15, font_weight=600)  # fmt: skip
    paper = element("rect", width=_WIDTH, height=_HEIGHT, rx=10, fill="#ffffff")
    return document(_WIDTH, _HEIGHT, f"The network {name}", paper, heading, *_key(plan), *marks) + "\n"


def _boxes(place: Place | Node) -> list[Place | Node]:
    """What is drawn as one box each: blocks, and stem and head whole."""
    return list(place.children) if isinstance(place, Place) and place.role == "stage" else [place]


def _ask(part: Place | Node) -> float:
    return math.sqrt(max(part.output[0], 48)) if len(part.output) == 3 else math.sqrt(48)


def _tall(plan: Plan, part: Place | Node) -> float:
    side = part.output[1] if len(part.output) == 3 else 1
    largest = max(child.output[1] for child in plan.root.children if len(child.output) == 3)
    return max(10.0, _TALLEST * math.sqrt(side / largest))


def _box(plan: Plan, part: Place | Node, x: float, width: float, stage: int) -> str:
    tall = _tall(plan, part)
    note = f"{part.path}: {'x'.join(map(str, part.output))}, {part.params:,} params, {part.macs:,} MACs"
    colour = _COLOURS[min(stage, len(_COLOURS) - 1)]
    box = element("rect", title(note), x=x, y=_MIDDLE - tall / 2, width=width, height=tall, rx=2, fill=colour,
                  stroke="#ffffff", stroke_width=0.5)  # fmt: skip
    shortcut = next((child for child in getattr(part, "children", ()) if child.role == "shortcut"), None)
    return element("g", box, _arc(shortcut, x, width, _MIDDLE - tall / 2) if shortcut else "")


def _arc(shortcut: Place, x: float, width: float, top: float) -> str:
    costs = bool(shortcut.nodes)
    bend = min(26.0, 8.0 + width * 0.6)
    end, foot, peak = x + width, top - 2, top - bend
    path = f"M {x:.1f} {foot:.1f} C {x:.1f} {peak:.1f}, {end:.1f} {peak:.1f}, {end:.1f} {foot:.1f}"
    note = title(f"{shortcut.path}: {describe_shortcut(shortcut)}, {shortcut.reason}")
    colour = _MARKED if costs else _PLAIN
    return element("path", note, d=path, fill="none", stroke=colour, stroke_width=2.2 if costs else 1.3)


def _caption(plan: Plan, place: Place | Node, middle: float) -> str:
    below = _MIDDLE + _TALLEST / 2 + 26
    shape = "x".join(map(str, place.output[1:])) if len(place.output) == 3 else ""
    told = [place.path, f"{place.output[0]} x {shape}" if shape else str(place.output[0])]
    told += [f"{place.macs / plan.macs:.0%} of MACs"] if place.role == "stage" else []
    return "".join(
        words(line, middle, below + 18 * i, text_anchor="middle", fill=_INK if i == 0 else _SOFT,
              font_weight=600 if i == 0 else 400)
        for i, line in enumerate(told)
    )  # fmt: skip


def _key(plan: Plan) -> list[str]:
    kinds = {bool(part.nodes) for part in plan.parts.values() if part.role == "shortcut"}
    entries = [(_PLAIN, "shortcut: the input itself")] * (False in kinds)
    entries += [(_MARKED, "shortcut with an adapter")] * (True in kinds)
    marks, x = [], _MARGIN
    for colour, label in entries:
        marks.append(
            element("line", x1=x, x2=x + 18, y1=_HEIGHT - 18, y2=_HEIGHT - 18, stroke=colour, stroke_width=2.5)
        )
        marks.append(words(label, x + 24, _HEIGHT - 14, fill=_SOFT))
        x += 200.0
    return marks
