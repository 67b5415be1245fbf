"""What the page of a network carries as JSON: the geometry of every operation, and every sentence, each once.

The page's script folds the size formula over this geometry and decides nothing. Equal blocks share one tree, so that
600 blocks cost no more than their paths.

This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resnetkit.architecture.operations import (
    AdaptiveAvgPoolOp,
    AvgPoolOp,
    BlurOp,
    ConvOp,
    GlobalAvgPoolOp,
    LinearOp,
    MaxPoolOp,
    Op,
    ZeroPadOp,
)
from resnetkit.architecture.plan import Node, Plan, Section, plan
from resnetkit.architecture.spec import Network, PoolAfter
from resnetkit.architecture.summary import describe_part, describe_shortcut
from resnetkit.errors import ResnetkitError, SpecError
from resnetkit.explain.why import why

OUTPUT_STRIDES = (16, 8)


def get_size_rule(op: Op) -> dict[str, Any]:
    """How a side follows from the one before; the script has one line for each rule.

    ``window`` is the size formula with ``padding``, ``over`` the same with windows that hang over the end, ``mirror``
    one that needs more pixels than padding, ``ceil`` the side divided by the stride, rounded up, ``vector`` no side at
    all, ``same`` the side itself. An operation that belongs to none of them gets a case here; one that moves a window
    may not fall through.
    """
    match op:
        case MaxPoolOp(edge="ceil"):
            return {"rule": "over", "padding": op.padding}
        case BlurOp():
            return {"rule": "mirror", "padding": op.padding}
        case ConvOp() | MaxPoolOp():
            return {"rule": "window", "padding": op.padding}
        case AvgPoolOp() | ZeroPadOp():
            return {"rule": "ceil"}
        case GlobalAvgPoolOp() | AdaptiveAvgPoolOp() | LinearOp():
            return {"rule": "vector"}
    if op.window != (1, 1, 1):
        raise ResnetkitError(f"no size rule for {op}", where="explain/page_facts.py", fix="add a case to geometry()")
    return {"rule": "same"}


def plan_stride_variants(spec: Network) -> tuple[Plan, ...]:
    """The network as it is, then at each smaller output stride at which dilation can keep its map."""
    original = plan(spec)
    dilated = [_plan_dilated(spec, target) for target in OUTPUT_STRIDES if original.root.stride > target]
    return original, *(variant for variant in dilated if variant)


def _plan_dilated(spec: Network, target: int) -> Plan | None:
    """The last stages turned a trous until the output stride is ``target``; None where that cannot be met."""
    stages = list(spec.stages)
    for i in reversed(range(len(stages))):
        reduce = stages[i].reduce
        if isinstance(reduce, PoolAfter):
            return None  # without padding a dilated pool hands on a smaller map
        if reduce.stride == 1 or reduce.atrous:
            continue
        stages[i] = replace(stages[i], reduce=replace(reduce, atrous=True))
        candidate = _try_plan(replace(spec, stages=tuple(stages)))
        if candidate is None or candidate.root.stride <= target:
            return candidate if candidate and candidate.root.stride == target else None
    return None


def _try_plan(spec: Network) -> Plan | None:
    try:
        return plan(spec)
    except SpecError:
        return None


def build_page_data(name: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """Plain data of plans that differ only in dilation; the first is the network as it is."""
    tables, original = _SharedTables(), plans[0]
    strides = [
        {"stride": p.root.stride, "parts": [_build_part(p, child, tables) for child in p.root.children]} for p in plans
    ]
    return {
        "name": name,
        "input": original.input,
        "strides": strides,
        "trees": [json.loads(tree) for tree in tables.trees],
        "operations": [_build_operation(*key) for key in tables.operations],
        "sentences": list(tables.sentences),
    }


def split_into_boxes(part: Section | Node) -> tuple[Section | Node, ...]:
    """What is drawn as one box each: what stands directly in a stage; stem and head whole."""
    return part.children if isinstance(part, Section) and part.role == "stage" else (part,)


def encode_script_json(data: object) -> str:
    """JSON that may stand inside a script element: no character of it can end the element."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so the separators U+2028 and U+2029 are escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------------------------------------------- parts of the data


@dataclass
class _SharedTables:
    """What is told once and named by its number; a dict keeps the order in which things came."""

    trees: dict[str, int] = field(default_factory=dict)
    operations: dict[tuple[Op, int], int] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)

    def add_tree(self, tree: dict[str, Any]) -> int:
        return self.trees.setdefault(json.dumps(tree), len(self.trees))

    def add_operation(self, op: Op, channels: int) -> int:
        return self.operations.setdefault((op, channels), len(self.operations))

    def add_sentence(self, text: str) -> int:
        return self.sentences.setdefault(text, len(self.sentences))


def _build_part(network_plan: Plan, part: Section | Node, tables: _SharedTables) -> dict[str, Any]:
    box_rows = [
        [box.path, tables.add_tree(_build_tree(network_plan, box, box.path, tables))] for box in split_into_boxes(part)
    ]
    sentence_index = tables.add_sentence(explain_part(network_plan, part))
    description = typeset_arrows(describe_part(network_plan, part))
    return {"path": part.path, "role": part.role, "what": description, "why": sentence_index, "boxes": box_rows}


def _build_tree(network_plan: Plan, part: Section | Node, root: str, tables: _SharedTables) -> dict[str, Any]:
    """A part without the path of its box, so that equal blocks have equal trees."""
    data: dict[str, Any] = {
        "path": part.path.removeprefix(root),
        "role": part.role,
        "what": typeset_arrows(describe_part(network_plan, part)),
    }
    data |= {
        "why": tables.add_sentence(explain_part(network_plan, part)),
        "reason": tables.add_sentence(typeset_arrows(part.reason)),
    }
    if isinstance(part, Node):
        return data | {"operation": tables.add_operation(part.op, part.output[0])}
    if part.role == "shortcut":
        data |= {"forks": True, "kind": describe_shortcut(part)}  # it starts where its block starts
    return data | {"children": [_build_tree(network_plan, child, root, tables) for child in part.children]}


def explain_part(network_plan: Plan, part: Section | Node) -> str:
    """The answer alone: the page works out sizes and costs itself, for any image."""
    return typeset_arrows(why(network_plan, part.path).partition("\n")[0])


def typeset_arrows(text: str) -> str:
    """An arrow in one piece, which no line breaks."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def _build_operation(op: Op, channels: int) -> dict[str, Any]:
    """It hands on ``channels`` and takes ``pixel`` MACs for each pixel of them, and ``once`` whatever their number."""
    kernel, stride, dilation = op.window
    macs_one_pixel, macs_two_pixels = op.count_macs((channels, 1, 1)), op.count_macs((channels, 1, 2))
    counts = {
        "channels": channels,
        "params": op.params,
        "pixel": macs_two_pixels - macs_one_pixel,
        "once": 2 * macs_one_pixel - macs_two_pixels,
    }
    return (
        {"text": typeset_arrows(str(op)), "kernel": kernel, "stride": stride, "dilation": dilation}
        | counts
        | get_size_rule(op)
    )
