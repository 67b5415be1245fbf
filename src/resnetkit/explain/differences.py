"""What differs between two networks, in plain words: facts that are read off their plans, part by part.

A fact never asks what kind of network it looks at: it counts kernels, channels, strides and adapters where there are
some. What no fact finds, `_rest` names by its path, so that two networks are never called alike that are not.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from resnetkit.architecture.operations import ActivationOp, ConvOp, LinearOp, NormOp, ZeroPadOp, format_ordinal
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain import describe as words
from resnetkit.explain.why import OPTION_NAMES

NetworkPart = Literal["stem", "branches", "shortcuts", "head", "network"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between ``name`` and ``first``.

    ``params`` and ``macs`` are how many more ``name`` has because of it, in its part of the network; ``None`` where
    other things differ that change the same cost, so that nobody can say which of them costs what.
    """

    name: str
    baseline: str
    part: NetworkPart
    text: str
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class _PlanPair:
    """The network that is looked at, and the one it is held against."""

    name: str
    plan: Plan
    base_name: str
    base: Plan

    def format_contrast(self, ours: str, theirs: str) -> str:
        return f"{self.name} has {ours}; {self.base_name} {theirs}"


def find_differences(name: str, plan: Plan, base_name: str, base: Plan) -> list[Difference]:
    """Everything that ``plan`` does otherwise than ``other``; empty where nothing differs."""
    pair = _PlanPair(name, plan, base_name, base)
    findings = [(part, text) for part, find in COMPARATORS for text in find(pair)]
    if not findings:
        findings = [("network", text) for text in _compare_nodes(pair)]
    return [
        Difference(name, base_name, part, text, *_compute_cost_change(pair, part, [p for p, _ in findings]))
        for part, text in findings
    ]


def _compute_cost_change(
    pair: _PlanPair, part: NetworkPart, parts: list[NetworkPart]
) -> tuple[int, int] | tuple[None, None]:
    """Of the whole network where only one thing differs, of the part where nothing else can have changed its cost."""
    total_change = pair.plan.params - pair.base.params, pair.plan.macs - pair.base.macs
    if len(parts) == 1 and part in ("network", "branches"):  # these decide what the other parts cost
        return total_change
    if parts.count(part) > 1 or _DEPENDS_ON[part] & set(parts):
        return None, None
    ours, theirs = _count_costs(pair.plan), _count_costs(pair.base)
    part_change = ours[part][0] - theirs[part][0], ours[part][1] - theirs[part][1]
    return part_change if len(parts) > 1 or part_change == total_change else (None, None)


# whose channels, sizes of map and norms a part takes over, and with them some of its cost
_DEPENDS_ON: dict[NetworkPart, set[NetworkPart]] = {
    "network": {"network"},
    "stem": {"network"},
    "branches": {"network", "stem"},
    "shortcuts": {"network", "stem", "branches"},
    "head": {"network", "stem", "branches"},
}


def _count_costs(plan: Plan) -> dict[NetworkPart, tuple[int, int]]:
    """Params and MACs, by part."""
    nodes_by_part: dict[NetworkPart, list[Node]] = {"stem": [], "branches": [], "shortcuts": [], "head": []}
    for node in plan.nodes:
        nodes_by_part[_classify_part(node)].append(node)
    return {part: (sum(n.params for n in nodes), sum(n.macs for n in nodes)) for part, nodes in nodes_by_part.items()}


def _classify_part(node: Node) -> NetworkPart:
    names = node.path.split(".")
    if names[0] == "stem":
        return "stem"
    return "head" if names[0] == "head" else "shortcuts" if "shortcut" in names else "branches"


# ----------------------------------------------------------------------------------------------- the network as a whole


def _compare_input(pair: _PlanPair) -> Iterator[str]:
    if pair.plan.input != pair.base.input:
        ours, theirs = words.format_shape(pair.plan.input), words.format_shape(pair.base.input)
        yield f"{pair.name} takes images of {ours}; {pair.base_name} of {theirs}"


def _compare_norm(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = ([node.op for node in p.nodes if isinstance(node.op, NormOp)] for p in (pair.plan, pair.base))
    if {op.norm for op in ours} != {op.norm for op in theirs}:
        texts = [_join_texts({str(op) for op in ops}, "no norm") for ops in (ours, theirs)]
        if texts[0] == texts[1]:
            texts = [_join_texts({repr(op.norm) for op in ops}, "no norm") for ops in (ours, theirs)]
        yield pair.format_contrast(*texts)


def _compare_activation(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = ({str(n.op) for n in p.nodes if isinstance(n.op, ActivationOp)} for p in (pair.plan, pair.base))
    if ours != theirs:
        default = "no activation"
        yield pair.format_contrast(f"the activation {_join_texts(ours, default)}", _join_texts(theirs, default))


def _compare_bias(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = (sum(n.op.bias for n in p.nodes if isinstance(n.op, ConvOp)) for p in (pair.plan, pair.base))
    if ours != theirs:
        yield pair.format_contrast(f"biases in {ours:,} convolutions", f"in {theirs:,}")


def _join_texts(texts: set[str], default: str) -> str:
    return " and ".join(sorted(texts)) or default


# ---------------------------------------------------------------------------------------------------- stem and head


def _compare_stem(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = (words.format_chain(_get_nodes(p, "stem")) for p in (pair.plan, pair.base))
    if ours != theirs:
        yield pair.format_contrast(f"the stem {ours}" if ours else "no stem", theirs or "none")


def _compare_head(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = ([words.format_operation(node) for node in _get_nodes(p, "head")] for p in (pair.plan, pair.base))
    if ours == theirs:
        return
    n_classes = [[n.op.out_features for n in _get_nodes(p, "head")[-1:] if isinstance(n.op, LinearOp)]
               for p in (pair.plan, pair.base)]  # fmt: skip
    if ours[:-1] == theirs[:-1] and all(n_classes):
        yield f"{pair.name} answers with {n_classes[0][0]:,} classes; {pair.base_name} with {n_classes[1][0]:,}"
        return
    yield pair.format_contrast(f"the head {', '.join(ours)}" if ours else "no head", ", ".join(theirs) or "none")


def _get_nodes(plan: Plan, name: str) -> tuple[Node, ...]:
    return plan.parts[name].nodes if name in plan.parts else ()


# --------------------------------------------------------------------------------------------------------- branches


def _compare_blocks(pair: _PlanPair) -> Iterator[str]:
    yield from _compare_stages(pair, lambda stage: f"{len(words.list_blocks(stage))}", "stages of {} blocks")


def _compare_channels(pair: _PlanPair) -> Iterator[str]:
    yield from _compare_stages(pair, lambda stage: str(stage.output[0]), "stages of {} channels")


def _compare_width(pair: _PlanPair) -> Iterator[str]:
    yield from _compare_stages(pair, _format_inner_widths, "branches of width {}")


def _format_inner_widths(stage: Section) -> str:
    """What lies between the convolutions of a branch; a branch of one convolution has none."""
    return "-".join(dict.fromkeys(str(op.out_channels) for op in _select_convolutions(stage)[:-1]))


def _compare_stages(pair: _PlanPair, format_stage: Callable[[Section], str], template: str) -> Iterator[str]:
    """A number for each stage."""
    ours, theirs = ([format_stage(stage) for stage in words.list_stages(p)] for p in (pair.plan, pair.base))
    if ours != theirs and all(ours) and all(theirs):
        yield pair.format_contrast(template.format(", ".join(ours)), "of " + ", ".join(theirs))


def _compare_kernels(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = (
        _format_by_stage([_format_kernels(stage) for stage in words.list_stages(p)]) for p in (pair.plan, pair.base)
    )
    if ours != theirs:
        yield pair.format_contrast(f"branches of {ours}", f"of {theirs}")


def _compare_groups(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = (
        _format_by_stage([_format_groups(stage) for stage in words.list_stages(p)]) for p in (pair.plan, pair.base)
    )
    if ours != theirs:
        yield pair.format_contrast(f"branches with {ours}", f"with {theirs}")


def _format_kernels(stage: Section) -> str:
    return ", ".join(_format_kernel(op) for op in _select_convolutions(stage))


def _format_kernel(op: ConvOp) -> str:
    return f"{op.kernel}x{op.kernel}"


def _format_groups(stage: Section) -> str:
    n_groups = max((op.groups for op in _select_convolutions(stage)), default=1)
    return f"{n_groups} groups" if n_groups > 1 else "no groups"


def _select_convolutions(stage: Section) -> list[ConvOp]:
    """Of the first block: the blocks of a stage share them."""
    ops = [node.op for block in words.list_blocks(stage)[:1] for node in words.select_main_path(block)]
    return [op for op in ops if isinstance(op, ConvOp)]


def _format_by_stage(values: list[str]) -> str:
    if len(set(values)) == 1:
        return values[0]
    stages_by_value = {value: [f"stage{i}" for i, item in enumerate(values, 1) if item == value] for value in values}
    return ", ".join(f"{value} in {' and '.join(stages)}" for value, stages in stages_by_value.items())


# ------------------------------------------------------------------------------------------------- strides, dilation


def _compare_strides(pair: _PlanPair) -> Iterator[str]:
    yield from _compare_stage_pairs(pair, _format_strides)


def _compare_dilations(pair: _PlanPair) -> Iterator[str]:
    yield from _compare_stage_pairs(pair, lambda ours, theirs: (_format_dilation(ours), _format_dilation(theirs)))


def _compare_stage_pairs(pair: _PlanPair, format_pair: Callable[[Section, Section], tuple[str, str]]) -> Iterator[str]:
    """What differs in stages that both have, told once for all the stages in which it is the same."""
    stages_by_texts: dict[tuple[str, str], list[str]] = {}
    for ours, theirs in zip(words.list_stages(pair.plan), words.list_stages(pair.base), strict=False):
        texts = format_pair(ours, theirs)
        if texts[0] != texts[1]:
            stages_by_texts.setdefault(texts, []).append(ours.path)
    for (ours_text, theirs_text), stages in stages_by_texts.items():
        yield pair.format_contrast(f"{ours_text} in {', '.join(stages)}", theirs_text.removeprefix("the stride "))


def _format_strides(ours: Section, theirs: Section) -> tuple[str, str]:
    """How large it is; where that is the same, in which block; where that is the same, at which operation."""
    a, b = _select_strided(ours), _select_strided(theirs)
    if _multiply_strides(a) != _multiply_strides(b):
        return f"stride {_multiply_strides(a)}", f"stride {_multiply_strides(b)}"
    if not a or not b:
        return "", ""
    blocks = _describe_block(ours, a), _describe_block(theirs, b)
    if blocks[0] != blocks[1]:
        return f"the stride in {blocks[0]}", f"the stride in {blocks[1]}"
    if _format_kernels(ours) != _format_kernels(theirs):
        return "", ""
    return f"the stride at {_describe_node(ours, a[0])}", f"the stride at {_describe_node(theirs, b[0])}"


def _select_strided(stage: Section) -> list[Node]:
    """The operations with a stride, those of shortcuts aside."""
    return [node for node in stage.nodes if node.op.window[1] > 1 and _classify_part(node) != "shortcuts"]


def _multiply_strides(nodes: list[Node]) -> int:
    return math.prod(node.op.window[1] for node in nodes)


def _describe_block(stage: Section, nodes: list[Node]) -> str:
    indices = [i for i, block in enumerate(words.list_blocks(stage)) if nodes[0] in block.nodes]
    if not indices:
        return "its pool"
    return "its first block" if indices == [0] else "its last block"


def _describe_node(stage: Section, node: Node) -> str:
    """``the 3x3``; ``the first 1x1`` where there are several."""
    if not isinstance(node.op, ConvOp):
        return f"the {str(node.op).split(',')[0]}"
    name, block = _format_kernel(node.op), next(block for block in words.list_blocks(stage) if node in block.nodes)
    matches = [n for n in words.select_main_path(block) if isinstance(n.op, ConvOp) and _format_kernel(n.op) == name]
    if len(matches) == 1:
        return f"the {name}"
    nth = "first" if node is matches[0] else "last" if node is matches[-1] else format_ordinal(matches.index(node) + 1)
    return f"the {nth} {name}"


def _format_dilation(stage: Section) -> str:
    dilation = max((node.op.window[2] for node in stage.nodes), default=1)
    return f"dilation {dilation}" if dilation > 1 else "no dilation"


def _compare_extras(pair: _PlanPair) -> Iterator[str]:
    """Operations of blocks that are neither convolution, norm nor activation, and the order of the two."""
    ours, theirs = (_collect_extras(p) for p in (pair.plan, pair.base))
    if ours != theirs:
        yield pair.format_contrast(
            _join_texts(ours, "nothing more") + " in its blocks", _join_texts(theirs, "nothing more")
        )


def _collect_extras(plan: Plan) -> set[str]:
    blocks = [block for stage in words.list_stages(plan) for block in words.list_blocks(stage)]
    names = {
        str(node.op).split(",")[0]
        for block in blocks
        for node in words.select_main_path(block)
        if not isinstance(node.op, (*words.MINOR_OPS, ConvOp))
    }
    has_pre_activation = any(child.path.endswith(".pre") for block in blocks for child in block.children)
    return names | ({"norm and activation before the branch"} if has_pre_activation else set())


# -------------------------------------------------------------------------------------------------------- shortcuts


def _compare_shortcuts(pair: _PlanPair) -> Iterator[str]:
    """Told where a block that both have does otherwise; more blocks of the same kind are told as blocks."""
    ours, theirs = _collect_adapters(pair.plan), _collect_adapters(pair.base)
    if all(ours[path] == theirs[path] for path in ours if path in theirs):
        return
    options = _format_option(pair.plan), _format_option(pair.base)
    suffixes = ("", "") if options[0] == options[1] else options
    yield pair.format_contrast(_format_adapters(ours) + suffixes[0], _format_adapters(theirs) + suffixes[1])


def _collect_adapters(plan: Plan) -> dict[str, str]:
    """The kind of shortcut of each block."""
    return {
        block.path: _describe_adapter(block) for stage in words.list_stages(plan) for block in words.list_blocks(stage)
    }


def _describe_adapter(block: Section) -> str:
    shortcut = words.find_shortcut(block)
    if shortcut is None:
        return ""
    pads = [node.op for node in shortcut.nodes if isinstance(node.op, ZeroPadOp)]
    return describe_shortcut(shortcut) + "".join(" (zeros at the end)" for op in pads if op.after > op.before + 1)


def _format_adapters(adapters: dict[str, str]) -> str:
    """``13 identities and 3 projections``."""
    counts = Counter(kind for kind in adapters.values() if kind)
    texts = [f"{n:,} {kind if n == 1 else _pluralize(kind)}" for kind, n in counts.most_common()]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts) or "no shortcuts"


def _pluralize(kind: str) -> str:
    first, gap, rest = kind.partition(" (")
    return (first.removesuffix("y") + "ies" if first.endswith("y") else first + "s") + gap + rest


def _format_option(plan: Plan) -> str:
    """``, option B of the paper``; where the zeros lie is told beside their number."""
    option = OPTION_NAMES.get(plan.spec.shortcuts, "")
    return f", option {option.split(',')[0]}" if option else ""


# ----------------------------------------------------------------------------------------------------------- the rest


def _compare_nodes(pair: _PlanPair) -> Iterator[str]:
    """The first operation that differs, where no fact speaks of it."""
    pairs = list(zip_longest(pair.plan.nodes, pair.base.nodes))
    differing = [nodes for nodes in pairs if _get_signature(nodes[0]) != _get_signature(nodes[1])]
    if differing:
        ours, theirs = (f"{node.op} at {node.path}" if node else "nothing" for node in differing[0])
        suffix = f", the first of {len(differing):,} operations that differ" if len(differing) > 1 else ""
        yield pair.format_contrast(ours, theirs) + suffix


def _get_signature(node: Node | None) -> object:
    return node and (node.path, node.op, node.input, node.output)


COMPARATORS: tuple[tuple[NetworkPart, Callable[[_PlanPair], Iterator[str]]], ...] = (
    ("network", _compare_input),
    ("stem", _compare_stem),
    ("branches", _compare_blocks),
    ("branches", _compare_kernels),
    ("branches", _compare_channels),
    ("branches", _compare_width),
    ("branches", _compare_groups),
    ("branches", _compare_strides),
    ("branches", _compare_dilations),
    ("branches", _compare_extras),
    ("shortcuts", _compare_shortcuts),
    ("network", _compare_norm),
    ("network", _compare_activation),
    ("network", _compare_bias),
    ("head", _compare_head),
)
