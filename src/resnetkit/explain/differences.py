"""Find what differs between two networks, in words, from facts of their plans: part by part.

A fact never depends on the family of a network. It counts kernels, channels, strides and adapters if there are any. If
no fact differs, the first operation that differs is named by its path, so different networks are never called equal.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, TypeVar

from resnetkit.architecture.operations import ActivationOp, ConvOp, LinearOp, NormOp, ZeroPadOp, format_ordinal
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain import describe
from resnetkit.explain.sentences import OPTION_NAMES

NetworkPart = Literal["stem", "branches", "shortcuts", "head", "network"]
_CostChange = tuple[int, int] | tuple[None, None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the network ``name`` and ``baseline``.

    ``params`` and ``macs`` are how many more ``name`` has because of it, in its part of the network. They are None if
    other differences change the same costs.
    """

    name: str
    baseline: str
    part: NetworkPart
    text: str
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class _PlanPair:
    """A network and the baseline that it is compared with."""

    name: str
    plan: Plan
    base_name: str
    base: Plan

    def map(self, function: Callable[[Plan], T]) -> tuple[T, T]:
        return function(self.plan), function(self.base)

    def format_contrast(self, ours: str, theirs: str, predicate: str = "has") -> str:
        return f"{self.name} {predicate} {ours}; {self.base_name} {theirs}"


def find_differences(name: str, plan: Plan, base_name: str, base: Plan) -> list[Difference]:
    """Find everything that differs between a network and a baseline; the list is empty if they are equal.

    Args:
        name: name of the network.
        plan: its plan.
        base_name: name of the baseline.
        base: plan of the baseline.
    """
    pair = _PlanPair(name, plan, base_name, base)
    findings = [(part, text) for part, compare in COMPARATORS for text in compare(pair)]
    if not findings:
        findings = [("network", text) for text in _compare_nodes(pair)]
    parts = [part for part, _ in findings]
    return [
        Difference(name, base_name, part, text, *_compute_cost_change(pair, part, parts)) for part, text in findings
    ]


def _compute_cost_change(pair: _PlanPair, part: NetworkPart, parts: list[NetworkPart]) -> _CostChange:
    """Return the change of params and MACs that this difference alone explains, or (None, None)."""
    total_change = pair.plan.params - pair.base.params, pair.plan.macs - pair.base.macs
    if len(parts) == 1 and part in ("network", "branches"):  # these decide what the other parts cost
        return total_change
    if parts.count(part) > 1 or _DEPENDS_ON[part] & set(parts):
        return None, None
    (params, macs), (base_params, base_macs) = pair.map(lambda plan: _count_costs(plan, part))
    part_change = params - base_params, macs - base_macs
    return part_change if len(parts) > 1 or part_change == total_change else (None, None)


# Parts whose channels, map sizes and norms another part takes over, and with them some of its cost.
_DEPENDS_ON: dict[NetworkPart, set[NetworkPart]] = {
    "network": {"network"},
    "stem": {"network"},
    "branches": {"network", "stem"},
    "shortcuts": {"network", "stem", "branches"},
    "head": {"network", "stem", "branches"},
}


def _count_costs(plan: Plan, part: NetworkPart) -> tuple[int, int]:
    """Return the params and MACs of one part."""
    nodes = [node for node in plan.nodes if _classify_part(node) == part]
    return sum(node.params for node in nodes), sum(node.macs for node in nodes)


def _classify_part(node: Node) -> NetworkPart:
    section, *names = node.path.split(".")
    ends: dict[str, NetworkPart] = {"stem": "stem", "head": "head"}
    return ends.get(section, "shortcuts" if "shortcut" in names else "branches")


# ------------------------------------------------------------------------------------------------- the whole network


def _compare_norm(pair: _PlanPair) -> Iterator[str]:
    norms = pair.map(lambda plan: [node.op for node in plan.nodes if isinstance(node.op, NormOp)])
    ours, theirs = ({op.norm for op in ops} for ops in norms)
    if ours != theirs:
        texts = [_join_texts({str(op) for op in ops}, "no norm") for ops in norms]
        if texts[0] == texts[1]:  # they differ in eps or momentum
            texts = [_join_texts({repr(op.norm) for op in ops}, "no norm") for ops in norms]
        yield pair.format_contrast(*texts)


def _list_activations(plan: Plan) -> str:
    return _join_texts({str(node.op) for node in plan.nodes if isinstance(node.op, ActivationOp)}, "no activation")


def _count_biases(plan: Plan) -> str:
    return f"{sum(node.op.bias for node in plan.nodes if isinstance(node.op, ConvOp)):,}"


def _join_texts(texts: set[str], default: str) -> str:
    return " and ".join(sorted(texts)) or default


# ---------------------------------------------------------------------------------------------------- stem and head


def _compare_stem(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = pair.map(lambda plan: describe.format_chain(_get_nodes(plan, "stem")))
    if ours != theirs:
        yield pair.format_contrast(f"the stem {ours}" if ours else "no stem", theirs or "none")


def _compare_head(pair: _PlanPair) -> Iterator[str]:
    ours, theirs = pair.map(lambda plan: [describe.format_operation(node) for node in _get_nodes(plan, "head")])
    if ours == theirs:
        return
    n_classes = pair.map(_get_n_classes)
    if ours[:-1] == theirs[:-1] and all(n_classes):
        yield pair.format_contrast(f"{n_classes[0]:,} classes", f"{n_classes[1]:,}")
        return
    yield pair.format_contrast(f"the head {', '.join(ours)}" if ours else "no head", ", ".join(theirs) or "none")


def _get_n_classes(plan: Plan) -> int:
    ops = [node.op for node in _get_nodes(plan, "head")[-1:]]
    return sum(op.out_features for op in ops if isinstance(op, LinearOp))


def _get_nodes(plan: Plan, name: str) -> tuple[Node, ...]:
    return plan.parts[name].nodes if name in plan.parts else ()


# --------------------------------------------------------------------------------------------------------- branches


def _join_by_stage(plan: Plan, format_stage: Callable[[Section], object]) -> str:
    """Join one number for each stage; if a stage has none, there is nothing to compare."""
    values = [str(format_stage(stage)) for stage in describe.list_stages(plan)]
    return ", ".join(values) if all(values) else ""


def _count_blocks(stage: Section) -> int:
    return len(describe.list_blocks(stage))


def _get_channels(stage: Section) -> int:
    return stage.output[0]


def _format_widths(stage: Section) -> str:
    """Return the channels between the convolutions of a branch; a branch of one convolution has none."""
    return "-".join(dict.fromkeys(str(op.out_channels) for op in _select_convolutions(stage)[:-1]))


def _format_kernels(stage: Section) -> str:
    return ", ".join(_format_kernel(op) for op in _select_convolutions(stage))


def _format_kernel(op: ConvOp) -> str:
    return f"{op.kernel}x{op.kernel}"


def _format_groups(stage: Section) -> str:
    n_groups = max((op.groups for op in _select_convolutions(stage)), default=1)
    return f"{n_groups} groups" if n_groups > 1 else "no groups"


def _select_convolutions(stage: Section) -> list[ConvOp]:
    """Return the convolutions of the first block; the blocks of a stage share them."""
    nodes = [node for block in describe.list_blocks(stage)[:1] for node in describe.select_main_path(block)]
    return [node.op for node in nodes if isinstance(node.op, ConvOp)]


def _format_by_stage(plan: Plan, format_stage: Callable[[Section], str]) -> str:
    values = [format_stage(stage) for stage in describe.list_stages(plan)]
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
    """Compare the stages that both networks have; equal differences of several stages are one sentence."""
    stages_by_texts: dict[tuple[str, str], list[str]] = {}
    for ours, theirs in zip(*pair.map(describe.list_stages), strict=False):
        texts = format_pair(ours, theirs)
        if texts[0] != texts[1]:
            stages_by_texts.setdefault(texts, []).append(ours.path)
    for (ours_text, theirs_text), stages in stages_by_texts.items():
        yield pair.format_contrast(f"{ours_text} in {', '.join(stages)}", theirs_text.removeprefix("the stride "))


def _format_strides(ours: Section, theirs: Section) -> tuple[str, str]:
    """Compare the size of the strides; if it is equal, their block; if that is equal, their operation."""
    a, b = _select_strided(ours), _select_strided(theirs)
    strides = _multiply_strides(a), _multiply_strides(b)
    if strides[0] != strides[1] or not a:
        return f"stride {strides[0]}", f"stride {strides[1]}"
    blocks = _describe_block(ours, a), _describe_block(theirs, b)
    if blocks[0] != blocks[1] or _format_kernels(ours) != _format_kernels(theirs):
        return f"the stride in {blocks[0]}", f"the stride in {blocks[1]}"
    return f"the stride at {_describe_node(ours, a[0])}", f"the stride at {_describe_node(theirs, b[0])}"


def _select_strided(stage: Section) -> list[Node]:
    """Return the operations with a stride outside the shortcuts."""
    return [node for node in stage.nodes if node.op.window[1] > 1 and _classify_part(node) != "shortcuts"]


def _multiply_strides(nodes: list[Node]) -> int:
    return math.prod(node.op.window[1] for node in nodes)


def _describe_block(stage: Section, nodes: list[Node]) -> str:
    indices = [i for i, block in enumerate(describe.list_blocks(stage)) if nodes[0] in block.nodes]
    if not indices:
        return "its pool"
    return "its first block" if indices == [0] else "its last block"


def _describe_node(stage: Section, node: Node) -> str:
    """Return ``the 3x3``, or ``the first 1x1`` if there are several."""
    if not isinstance(node.op, ConvOp):
        return f"the {str(node.op).split(',')[0]}"
    name, block = _format_kernel(node.op), next(block for block in describe.list_blocks(stage) if node in block.nodes)
    nodes = describe.select_main_path(block)
    matches = [n for n in nodes if isinstance(n.op, ConvOp) and _format_kernel(n.op) == name]
    if len(matches) == 1:
        return f"the {name}"
    nth = "first" if node is matches[0] else "last" if node is matches[-1] else format_ordinal(matches.index(node) + 1)
    return f"the {nth} {name}"


def _format_dilation(stage: Section) -> str:
    dilation = max((node.op.window[2] for node in stage.nodes), default=1)
    return f"dilation {dilation}" if dilation > 1 else "no dilation"


def _list_extras(plan: Plan) -> str:
    """List the operations of blocks except convolutions, norms and activations; name pre-activation."""
    blocks = describe.list_all_blocks(plan)
    ops = [node.op for block in blocks for node in describe.select_main_path(block)]
    names = {str(op).split(",")[0] for op in ops if not isinstance(op, (*describe.MINOR_OPS, ConvOp))}
    if any(child.path.endswith(".pre") for block in blocks for child in block.children):
        names.add("norm and activation before the branch")
    return _join_texts(names, "nothing else")


# -------------------------------------------------------------------------------------------------------- shortcuts


def _compare_shortcuts(pair: _PlanPair) -> Iterator[str]:
    """Compare the shortcuts of the blocks that both networks have."""
    ours, theirs = pair.map(_collect_adapters)
    if all(ours[path] == theirs[path] for path in ours if path in theirs):
        return
    options = pair.map(_format_option)
    suffixes = ("", "") if options[0] == options[1] else options
    yield pair.format_contrast(_format_adapters(ours) + suffixes[0], _format_adapters(theirs) + suffixes[1])


def _collect_adapters(plan: Plan) -> dict[str, str]:
    """Return the kind of shortcut of each block by path."""
    return {block.path: _describe_adapter(block) for block in describe.list_all_blocks(plan)}


def _describe_adapter(block: Section) -> str:
    shortcut = describe.find_shortcut(block)
    if shortcut is None:
        return ""
    ops = [node.op for node in shortcut.nodes]
    pads_at_end = any(isinstance(op, ZeroPadOp) and op.after > op.before + 1 for op in ops)
    return describe_shortcut(shortcut) + (" (zeros at the end)" if pads_at_end else "")


def _format_adapters(adapters: dict[str, str]) -> str:
    counts = Counter(kind for kind in adapters.values() if kind)
    return describe.format_adapter_counts(dict(counts.most_common())) or "no shortcuts"


def _format_option(plan: Plan) -> str:
    """Return ``, option B of the paper``; the position of zeros is named with their number instead."""
    option = OPTION_NAMES.get(plan.spec.shortcuts, "")
    return f", option {option.split(',')[0]}" if option else ""


# ---------------------------------------------------------------------------------------------------- everything else


def _compare_nodes(pair: _PlanPair) -> Iterator[str]:
    """Name the first operation that differs."""
    pairs = list(zip_longest(pair.plan.nodes, pair.base.nodes))
    differing = [nodes for nodes in pairs if _get_signature(nodes[0]) != _get_signature(nodes[1])]
    if differing:
        ours, theirs = (f"{node.op} at {node.path}" if node else "nothing" for node in differing[0])
        suffix = f", the first of {len(differing):,} operations that differ" if len(differing) > 1 else ""
        yield pair.format_contrast(ours, theirs) + suffix


def _get_signature(node: Node | None) -> object:
    return node and (node.path, node.op, node.input, node.output)


def _make_comparator(
    describe_plan: Callable[[Plan], str], ours: str, theirs: str = "{}", predicate: str = "has"
) -> Callable[[_PlanPair], Iterator[str]]:
    """Return a function that compares one text for each network, if both have it.

    Args:
        describe_plan: describes a network; an empty text means that it has nothing to compare.
        ours: the words around the text of the network.
        theirs: the words around the text of the baseline.
        predicate: ``has`` or ``takes``.
    """

    def compare(pair: _PlanPair) -> Iterator[str]:
        texts = pair.map(describe_plan)
        if texts[0] != texts[1] and all(texts):
            yield pair.format_contrast(ours.format(texts[0]), theirs.format(texts[1]), predicate)

    return compare


COMPARATORS: tuple[tuple[NetworkPart, Callable[[_PlanPair], Iterator[str]]], ...] = (
    (
        "network",
        _make_comparator(lambda plan: describe.format_shape(plan.input), "images of {}", "of {}", "takes"),
    ),
    ("stem", _compare_stem),
    ("branches", _make_comparator(lambda plan: _join_by_stage(plan, _count_blocks), "stages of {} blocks", "of {}")),
    ("branches", _make_comparator(lambda plan: _format_by_stage(plan, _format_kernels), "branches of {}", "of {}")),
    ("branches", _make_comparator(lambda plan: _join_by_stage(plan, _get_channels), "stages of {} channels", "of {}")),
    ("branches", _make_comparator(lambda plan: _join_by_stage(plan, _format_widths), "branches of width {}", "of {}")),
    ("branches", _make_comparator(lambda plan: _format_by_stage(plan, _format_groups), "branches with {}", "with {}")),
    ("branches", _compare_strides),
    ("branches", _compare_dilations),
    ("branches", _make_comparator(_list_extras, "{} in its blocks")),
    ("shortcuts", _compare_shortcuts),
    ("network", _compare_norm),
    ("network", _make_comparator(_list_activations, "the activation {}")),
    ("network", _make_comparator(_count_biases, "biases in {} convolutions", "in {}")),
    ("head", _compare_head),
)
