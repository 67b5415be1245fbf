"""Build the JSON data of a network's page: the geometry of every operation, and every sentence once.

The script of the page applies the size formula to this geometry and decides nothing else. Equal blocks share one tree,
so that 600 blocks take no more space than their paths.

This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from resnetkit.architecture import operations as ops
from resnetkit.architecture.plan import Node, Plan, Section, plan
from resnetkit.architecture.spec import Network, PoolAfter
from resnetkit.architecture.summary import describe_part, describe_shortcut
from resnetkit.errors import ResnetkitError, SpecError
from resnetkit.explain.describe import split_into_boxes
from resnetkit.explain.sentences import format_sentence

OUTPUT_STRIDES = (16, 8)
T = TypeVar("T")


def get_size_rule(op: ops.Op) -> dict[str, Any]:
    """Return the rule by which the script computes the output side of an operation from its input side.

    The rules are ``window`` (the size formula with ``padding``), ``window-ceil`` (windows may extend beyond the map),
    ``window-reflect`` (needs more pixels than padding), ``divide-ceil`` (the side divided by the stride, rounded up),
    ``vector`` (no side) and ``same``.

    Raises:
        ResnetkitError: the operation moves a window, but no rule covers it; it needs a case in this function.
    """
    match op:
        case ops.MaxPoolOp(edge="ceil"):
            return {"rule": "window-ceil", "padding": op.padding}
        case ops.BlurOp():
            return {"rule": "window-reflect", "padding": op.padding}
        case ops.ConvOp() | ops.MaxPoolOp():
            return {"rule": "window", "padding": op.padding}
        case ops.AvgPoolOp() | ops.ZeroPadOp():
            return {"rule": "divide-ceil"}
        case ops.GlobalAvgPoolOp() | ops.AdaptiveAvgPoolOp() | ops.LinearOp():
            return {"rule": "vector"}
    if op.window != (1, 1, 1):
        message = f"no size rule for {op}"
        raise ResnetkitError(message, where="explain/page_facts.py", fix="add a case to get_size_rule()")
    return {"rule": "same"}


def plan_stride_variants(spec: Network) -> tuple[Plan, ...]:
    """Plan the network as it is, then with each smaller output stride that dilation can produce."""
    original = plan(spec)
    dilated = [_plan_dilated(spec, target) for target in OUTPUT_STRIDES if original.root.stride > target]
    return original, *(variant for variant in dilated if variant)


def _plan_dilated(spec: Network, target: int) -> Plan | None:
    """Replace strides of the last stages by dilation until the output stride is ``target``."""
    stages = list(spec.stages)
    for i, stage in reversed(list(enumerate(stages))):
        if isinstance(stage.reduce, PoolAfter):
            return None  # a dilated pool without padding would make the map smaller
        stages[i] = replace(stage, reduce=replace(stage.reduce, atrous=stage.reduce.stride > 1))
        try:
            candidate = plan(replace(spec, stages=tuple(stages)))
        except SpecError:
            return None
        if candidate.root.stride == target:
            return candidate
    return None


def build_page_data(name: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """Build the data of a page as plain values.

    Args:
        name: name of the network.
        plans: plans that differ only in dilation; the first one is the network as it is.
    """
    tables = _SharedTables()
    variants = [{"output_stride": variant.root.stride, "parts": _build_parts(variant, tables)} for variant in plans]
    return {
        "name": name,
        "input": plans[0].input,
        "variants": variants,
        "trees": [json.loads(tree) for tree in tables.trees],
        "operations": [_build_operation(*key) for key in tables.operations],
        "sentences": list(tables.sentences),
    }


def encode_script_json(data: object) -> str:
    """Encode JSON for a script element, so that no character of it can end the element."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so the separators U+2028 and U+2029 are escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------------------------------------------- parts of the data


@dataclass
class _SharedTables:
    """Values that are stored once and referenced by index; a dict keeps the order of insertion."""

    trees: dict[str, int] = field(default_factory=dict)
    operations: dict[tuple[ops.Op, int], int] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)


def _add_once(table: dict[T, int], value: T) -> int:
    """Add a value unless the table has it, and return its index."""
    return table.setdefault(value, len(table))


def _build_parts(network_plan: Plan, tables: _SharedTables) -> list[dict[str, Any]]:
    return [
        _describe(network_plan, part, part.path, tables)
        | {"boxes": [(box.path, _add_box(network_plan, box, tables)) for box in split_into_boxes(part)]}
        for part in network_plan.root.children
    ]


def _add_box(network_plan: Plan, box: Section | Node, tables: _SharedTables) -> int:
    return _add_once(tables.trees, json.dumps(_build_tree(network_plan, box, box.path, tables)))


def _describe(network_plan: Plan, part: Section | Node, path: str, tables: _SharedTables) -> dict[str, Any]:
    description = typeset_arrows(describe_part(network_plan, part))
    why_index = _add_once(tables.sentences, explain_part(network_plan, part))
    return {"path": path, "role": part.role, "description": description, "why": why_index}


def _build_tree(network_plan: Plan, part: Section | Node, box_path: str, tables: _SharedTables) -> dict[str, Any]:
    """Describe a part with paths relative to its box, so that equal blocks have equal trees."""
    data = _describe(network_plan, part, part.path.removeprefix(box_path), tables)
    data["reason"] = _add_once(tables.sentences, typeset_arrows(part.reason))
    if isinstance(part, Node):
        return data | {"operation": _add_once(tables.operations, (part.op, part.output[0]))}
    if part.role == "shortcut":
        data["shortcut_kind"] = describe_shortcut(part)
    return data | {"children": [_build_tree(network_plan, child, box_path, tables) for child in part.children]}


def explain_part(network_plan: Plan, part: Section | Node) -> str:
    """Explain a part without sizes and costs; the script computes those for any image size.

    Args:
        network_plan: plan of the network.
        part: a part of it.
    """
    return typeset_arrows(format_sentence(network_plan, part))


def typeset_arrows(text: str) -> str:
    """Replace ``->`` by an arrow of one character, which no line break can split."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def _build_operation(op: ops.Op, channels: int) -> dict[str, Any]:
    """Describe an operation; its MACs are linear in the number of output pixels."""
    kernel, stride, dilation = op.window
    macs_one_pixel, macs_two_pixels = op.count_macs((channels, 1, 1)), op.count_macs((channels, 1, 2))
    macs = {"macs_per_pixel": macs_two_pixels - macs_one_pixel, "macs_fixed": 2 * macs_one_pixel - macs_two_pixels}
    window = {"kernel": kernel, "stride": stride, "dilation": dilation}
    text = typeset_arrows(str(op))
    return {"text": text, "channels": channels, "params": op.params} | macs | window | get_size_rule(op)
