"""Parts of a network in a few words, as tables, sentences and pictures show them.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from resnetkit.architecture.operations import Activate, Add, Convolution, FullyConnected, Normalisation, Shape, ZeroPad
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.summary import describe_shortcut

QUIET = (Normalisation, Activate, Add)  # stand behind nearly every operation, and are told apart from the others


def size(shape: Shape) -> str:
    """``64x56x56``, or ``1000`` for a vector."""
    return "x".join(map(str, shape))


def convolution(op: Convolution) -> str:
    """``3x3/2 128``, with groups and dilation where there are any."""
    text = f"{op.kernel}x{op.kernel}" + f"/{op.stride}" * (op.stride > 1) + f" {op.outputs}"
    return text + f" in {op.groups} groups" * (op.groups > 1) + f", dilation {op.dilation}" * (op.dilation > 1)


def operation(node: Node) -> str:
    """One operation."""
    if isinstance(node.op, Convolution):
        return convolution(node.op)
    return f"linear {node.op.outputs}" if isinstance(node.op, FullyConnected) else str(node.op)


def chain(nodes: Iterable[Node]) -> str:
    """Operations in a row; norms, activations and additions aside."""
    return ", ".join(operation(node) for node in nodes if not isinstance(node.op, QUIET))


def shortcut_of(block: Place | Node) -> Place | None:
    """The shortcut of a block, if it has one."""
    children = block.children if isinstance(block, Place) else ()
    return next((child for child in children if isinstance(child, Place) and child.role == "shortcut"), None)


def shortcut(place: Place) -> str:
    """Which adapter a shortcut is, and where its zeros and strides lie."""
    ops = [node.op for node in place.nodes]
    pads = [f", {op.before} + {op.after} zeros" for op in ops if isinstance(op, ZeroPad)]
    strides = [f"/{op.window[1]}" for op in ops if op.window[1] > 1]
    return describe_shortcut(place) + "".join(strides) + "".join(pads)


def ways(block: Place | Node) -> tuple[Node, ...]:
    """The operations of a block outside its shortcut."""
    apart = shortcut_of(block)
    skipped = {id(node) for node in apart.nodes} if apart else set()
    return tuple(node for node in block.nodes if id(node) not in skipped)


def stages(plan: Plan) -> list[Place]:
    """The stages of a network."""
    return [child for child in plan.root.children if isinstance(child, Place) and child.role == "stage"]


def blocks(stage: Place) -> list[Place]:
    """The blocks of a stage."""
    return [child for child in stage.children if isinstance(child, Place) and child.role == "block"]


def signature(part: Place | Node) -> tuple[object, ...]:
    """What a part computes, wherever it stands: equal for two parts that differ in nothing but their path."""
    return tuple((node.path[len(part.path) :], node.op, node.input, node.output) for node in part.nodes)


def listed(names: Sequence[str]) -> str:
    """``stage3.block2`` to ``stage3.block6`` as ``stage3.block2 to block6``."""
    first, last = names[0], names[-1]
    return first if first == last else f"{first} to {last.rpartition('.')[2]}"
