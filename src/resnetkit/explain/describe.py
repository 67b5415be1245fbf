"""Describe parts of a network in a few words, for tables, sentences and drawings.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from resnetkit.architecture.operations import ActivationOp, AddOp, ConvOp, LinearOp, NormOp, Shape, ZeroPadOp
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.formatting import pluralize

MINOR_OPS = (NormOp, ActivationOp, AddOp)  # follow nearly every operation, so lists of operations omit them


def format_shape(shape: Shape) -> str:
    """Return ``64x56x56``, or ``1000`` for a vector."""
    return "x".join(map(str, shape))


def format_costs(part: Section | Node) -> str:
    """Return ``256x56x56, 75,008 params, 231,211,008 MACs``."""
    return f"{format_shape(part.output)}, {part.params:,} params, {part.macs:,} MACs"


def _format_convolution(op: ConvOp) -> str:
    """Return ``3x3/2 128``, with groups and dilation if they differ from 1."""
    stride = f"/{op.stride}" if op.stride > 1 else ""
    groups = f" in {op.groups} groups" if op.groups > 1 else ""
    dilation = f", dilation {op.dilation}" if op.dilation > 1 else ""
    return f"{op.kernel}x{op.kernel}{stride} {op.out_channels}{groups}{dilation}"


def format_operation(node: Node) -> str:
    """Describe an operation without its input channels."""
    if isinstance(node.op, ConvOp):
        return _format_convolution(node.op)
    return f"linear {node.op.out_features}" if isinstance(node.op, LinearOp) else str(node.op)


def format_chain(nodes: Iterable[Node]) -> str:
    """Describe a sequence of operations without norms, activations and additions."""
    return ", ".join(format_operation(node) for node in nodes if not isinstance(node.op, MINOR_OPS))


def find_shortcut(block: Section | Node) -> Section | None:
    """Return the shortcut of a block, or None."""
    children = block.children if isinstance(block, Section) else ()
    return next((child for child in children if isinstance(child, Section) and child.role == "shortcut"), None)


def format_shortcut(part: Section) -> str:
    """Describe the adapter of a shortcut with its strides and channels of zeros."""
    ops = [node.op for node in part.nodes]
    strides = [f"/{op.window[1]}" for op in ops if op.window[1] > 1]
    pads = [f", {op.before} + {op.after} zeros" for op in ops if isinstance(op, ZeroPadOp)]
    return "".join([describe_shortcut(part), *strides, *pads])


def summarize_shortcuts(stage: Section | Node) -> str:
    """Return the shortcuts of a stage: ``block1 projection 64 -> 256, the others identity``."""
    blocks = list_blocks(stage) if isinstance(stage, Section) else []
    numbered = enumerate(map(format_adapter, blocks), 1)
    runs = [(text, [number for number, _ in run]) for text, run in groupby(numbered, key=lambda pair: pair[1])]
    if not any(text for text, _ in runs):
        return ""
    return ", ".join(f"{_format_blocks(numbers, i, len(runs))} {text}" for i, (text, numbers) in enumerate(runs))


def format_adapter(block: Section | Node) -> str:
    """Return ``projection/2 256 -> 512``, ``identity``, or an empty text without a shortcut."""
    shortcut = find_shortcut(block)
    if shortcut is None or not shortcut.nodes:
        return "" if shortcut is None else "identity"
    stride = math.prod(node.op.window[1] for node in shortcut.nodes)
    suffix = f"/{stride}" if stride > 1 else ""
    return f"{describe_shortcut(shortcut)}{suffix} {shortcut.input[0]} -> {shortcut.output[0]}"


def _format_blocks(numbers: Sequence[int], run: int, n_runs: int) -> str:
    """Name a run of equal shortcuts: ``block1``, ``the others``, ``block2 to block5`` or ``all``."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"block{first}"
    return ("all", "the others")[n_runs - 1] if run == n_runs - 1 < 2 else f"block{first} to block{last}"


def count_shortcuts(plan: Plan) -> dict[str, int]:
    """Count the shortcuts of a network by kind, the most frequent first."""
    return dict(Counter(map(describe_shortcut, list_shortcuts(plan))).most_common())


def format_shortcut_counts(plan: Plan) -> str:
    """Return ``16 shortcuts: 12 identities and 4 projections``, or ``no shortcuts``."""
    counts = count_shortcuts(plan)
    total = pluralize(sum(counts.values()), "shortcut")
    return f"{total}: {format_adapter_counts(counts)}" if counts else "no shortcuts"


def format_adapter_counts(counts: Mapping[str, int]) -> str:
    """Return ``13 identities and 3 projections``; a kind may end with a detail in parentheses."""
    texts = []
    for kind, n in counts.items():
        noun, gap, detail = kind.partition(" (")
        texts.append(pluralize(n, noun) + gap + detail)
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)


def select_main_path(block: Section | Node) -> tuple[Node, ...]:
    """Return the operations of a block outside its shortcut."""
    shortcut = find_shortcut(block)
    skipped = {id(node) for node in shortcut.nodes} if shortcut else set()
    return tuple(node for node in block.nodes if id(node) not in skipped)


def list_stages(plan: Plan) -> list[Section]:
    """Return the stages of a network."""
    return [child for child in plan.root.children if isinstance(child, Section) and child.role == "stage"]


def list_blocks(stage: Section) -> list[Section]:
    """Return the blocks of a stage."""
    return [child for child in stage.children if isinstance(child, Section) and child.role == "block"]


def list_all_blocks(plan: Plan) -> list[Section]:
    """Return the blocks of all stages of a network."""
    return [block for stage in list_stages(plan) for block in list_blocks(stage)]


def list_shortcuts(plan: Plan) -> list[Section]:
    """Return the shortcuts of all blocks of a network."""
    return [shortcut for block in list_all_blocks(plan) if (shortcut := find_shortcut(block))]


def split_into_boxes(part: Section | Node) -> tuple[Section | Node, ...]:
    """Return the parts that are drawn as one box each: the children of a stage, or the whole part."""
    return part.children if isinstance(part, Section) and part.role == "stage" else (part,)


def compute_signature(part: Section | Node) -> tuple[object, ...]:
    """Return a key that is equal for two parts that differ only in their path."""
    return tuple((node.path[len(part.path) :], node.op, node.input, node.output) for node in part.nodes)


def format_path_range(paths: Sequence[str]) -> str:
    """Return ``stage3.block2 to block6`` for the paths from ``stage3.block2`` to ``stage3.block6``."""
    first, last = paths[0], paths[-1]
    return first if first == last else f"{first} to {last.rpartition('.')[2]}"
