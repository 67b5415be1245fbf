"""Parts of a network in a few words, as tables, sentences and pictures show them.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resnetkit.architecture.operations import ActivationOp, AddOp, ConvOp, LinearOp, NormOp, Shape, ZeroPadOp
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut

MINOR_OPS = (NormOp, ActivationOp, AddOp)  # stand behind nearly every operation, and are told apart from the others


def format_shape(shape: Shape) -> str:
    """``64x56x56``, or ``1000`` for a vector."""
    return "x".join(map(str, shape))


def format_convolution(op: ConvOp) -> str:
    """``3x3/2 128``, with groups and dilation where there are any."""
    text = f"{op.kernel}x{op.kernel}" + f"/{op.stride}" * (op.stride > 1) + f" {op.out_channels}"
    return text + f" in {op.groups} groups" * (op.groups > 1) + f", dilation {op.dilation}" * (op.dilation > 1)


def format_operation(node: Node) -> str:
    """One operation."""
    if isinstance(node.op, ConvOp):
        return format_convolution(node.op)
    return f"linear {node.op.out_features}" if isinstance(node.op, LinearOp) else str(node.op)


def format_chain(nodes: Iterable[Node]) -> str:
    """Operations in a row; norms, activations and additions aside."""
    return ", ".join(format_operation(node) for node in nodes if not isinstance(node.op, MINOR_OPS))


def find_shortcut(block: Section | Node) -> Section | None:
    """The shortcut of a block, if it has one."""
    children = block.children if isinstance(block, Section) else ()
    return next((child for child in children if isinstance(child, Section) and child.role == "shortcut"), None)


def format_shortcut(part: Section) -> str:
    """Which adapter a shortcut is, and where its zeros and strides lie."""
    ops = [node.op for node in part.nodes]
    pads = [f", {op.before} + {op.after} zeros" for op in ops if isinstance(op, ZeroPadOp)]
    strides = [f"/{op.window[1]}" for op in ops if op.window[1] > 1]
    return describe_shortcut(part) + "".join(strides) + "".join(pads)


def select_main_path(block: Section | Node) -> tuple[Node, ...]:
    """The operations of a block outside its shortcut."""
    shortcut_part = find_shortcut(block)
    skipped = {id(node) for node in shortcut_part.nodes} if shortcut_part else set()
    return tuple(node for node in block.nodes if id(node) not in skipped)


def list_stages(plan: Plan) -> list[Section]:
    """The stages of a network."""
    return [child for child in plan.root.children if isinstance(child, Section) and child.role == "stage"]


def list_blocks(stage: Section) -> list[Section]:
    """The blocks of a stage."""
    return [child for child in stage.children if isinstance(child, Section) and child.role == "block"]


def compute_signature(part: Section | Node) -> tuple[object, ...]:
    """What a part computes, wherever it stands: equal for two parts that differ in nothing but their path."""
    return tuple((node.path[len(part.path) :], node.op, node.input, node.output) for node in part.nodes)


def format_path_range(names: Sequence[str]) -> str:
    """``stage3.block2`` to ``stage3.block6`` as ``stage3.block2 to block6``."""
    first, last = names[0], names[-1]
    return first if first == last else f"{first} to {last.rpartition('.')[2]}"
