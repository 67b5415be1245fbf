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

from resnetkit.architecture.operations import Activate, Convolution, FullyConnected, Normalisation, ZeroPad, ordinal
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain import describe as words
from resnetkit.explain.why import OPTIONS

Part = Literal["stem", "branches", "shortcuts", "head", "network"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs between ``name`` and ``first``.

    ``params`` and ``macs`` are how many more ``name`` has because of it, in its part of the network; ``None`` where
    other things differ that change the same cost, so that nobody can say which of them costs what.
    """

    name: str
    first: str
    part: Part
    text: str
    params: int | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class _Two:
    """The network that is looked at, and the one it is held against."""

    name: str
    plan: Plan
    first: str
    other: Plan

    def has(self, what: str, instead: str) -> str:
        return f"{self.name} has {what}; {self.first} {instead}"


def differences(name: str, plan: Plan, first: str, other: Plan) -> list[Difference]:
    """Everything that ``plan`` does otherwise than ``other``; empty where nothing differs."""
    two = _Two(name, plan, first, other)
    found = [(part, text) for part, read in FACTS for text in read(two)]
    if not found:
        found = [("network", text) for text in _rest(two)]
    return [Difference(name, first, part, text, *_cost(two, part, [p for p, _ in found])) for part, text in found]


def _cost(two: _Two, part: Part, parts: list[Part]) -> tuple[int, int] | tuple[None, None]:
    """Of the whole network where only one thing differs, of the part where nothing else can have changed its cost."""
    whole = two.plan.params - two.other.params, two.plan.macs - two.other.macs
    if len(parts) == 1 and part in ("network", "branches"):  # these decide what the other parts cost
        return whole
    if parts.count(part) > 1 or _DECIDED_BY[part] & set(parts):
        return None, None
    mine, theirs = _costs(two.plan), _costs(two.other)
    own = mine[part][0] - theirs[part][0], mine[part][1] - theirs[part][1]
    return own if len(parts) > 1 or own == whole else (None, None)


# whose channels, sizes of map and norms a part takes over, and with them some of its cost
_DECIDED_BY: dict[Part, set[Part]] = {
    "network": {"network"},
    "stem": {"network"},
    "branches": {"network", "stem"},
    "shortcuts": {"network", "stem", "branches"},
    "head": {"network", "stem", "branches"},
}


def _costs(plan: Plan) -> dict[Part, tuple[int, int]]:
    """Params and MACs, by part."""
    counted: dict[Part, list[Node]] = {"stem": [], "branches": [], "shortcuts": [], "head": []}
    for node in plan.nodes:
        counted[_part(node)].append(node)
    return {part: (sum(n.params for n in nodes), sum(n.macs for n in nodes)) for part, nodes in counted.items()}


def _part(node: Node) -> Part:
    places = node.path.split(".")
    if places[0] == "stem":
        return "stem"
    return "head" if places[0] == "head" else "shortcuts" if "shortcut" in places else "branches"


# ----------------------------------------------------------------------------------------------- the network as a whole


def _input(two: _Two) -> Iterator[str]:
    if two.plan.input != two.other.input:
        mine, theirs = words.size(two.plan.input), words.size(two.other.input)
        yield f"{two.name} takes images of {mine}; {two.first} of {theirs}"


def _norm(two: _Two) -> Iterator[str]:
    mine, theirs = ([node.op for node in p.nodes if isinstance(node.op, Normalisation)] for p in (two.plan, two.other))
    if {op.norm for op in mine} != {op.norm for op in theirs}:
        texts = [_several({str(op) for op in ops}, "no norm") for ops in (mine, theirs)]
        if texts[0] == texts[1]:
            texts = [_several({repr(op.norm) for op in ops}, "no norm") for ops in (mine, theirs)]
        yield two.has(*texts)


def _activation(two: _Two) -> Iterator[str]:
    mine, theirs = ({str(n.op) for n in p.nodes if isinstance(n.op, Activate)} for p in (two.plan, two.other))
    if mine != theirs:
        none = "no activation"
        yield two.has(f"the activation {_several(mine, none)}", _several(theirs, none))


def _bias(two: _Two) -> Iterator[str]:
    mine, theirs = (sum(n.op.bias for n in p.nodes if isinstance(n.op, Convolution)) for p in (two.plan, two.other))
    if mine != theirs:
        yield two.has(f"biases in {mine:,} convolutions", f"in {theirs:,}")


def _several(texts: set[str], none: str) -> str:
    return " and ".join(sorted(texts)) or none


# ---------------------------------------------------------------------------------------------------- stem and head


def _stem(two: _Two) -> Iterator[str]:
    mine, theirs = (words.chain(_place(p, "stem")) for p in (two.plan, two.other))
    if mine != theirs:
        yield two.has(f"the stem {mine}" if mine else "no stem", theirs or "none")


def _head(two: _Two) -> Iterator[str]:
    mine, theirs = ([words.operation(node) for node in _place(p, "head")] for p in (two.plan, two.other))
    if mine == theirs:
        return
    answers = [[n.op.outputs for n in _place(p, "head")[-1:] if isinstance(n.op, FullyConnected)]
               for p in (two.plan, two.other)]  # fmt: skip
    if mine[:-1] == theirs[:-1] and all(answers):
        yield f"{two.name} answers with {answers[0][0]:,} classes; {two.first} with {answers[1][0]:,}"
        return
    yield two.has(f"the head {', '.join(mine)}" if mine else "no head", ", ".join(theirs) or "none")


def _place(plan: Plan, name: str) -> tuple[Node, ...]:
    return plan.parts[name].nodes if name in plan.parts else ()


# --------------------------------------------------------------------------------------------------------- branches


def _blocks(two: _Two) -> Iterator[str]:
    yield from _listed(two, lambda stage: f"{len(words.blocks(stage))}", "stages of {} blocks")


def _channels(two: _Two) -> Iterator[str]:
    yield from _listed(two, lambda stage: str(stage.output[0]), "stages of {} channels")


def _width(two: _Two) -> Iterator[str]:
    yield from _listed(two, _inner, "branches of width {}")


def _inner(stage: Place) -> str:
    """What lies between the convolutions of a branch; a branch of one convolution has none."""
    return "-".join(dict.fromkeys(str(op.outputs) for op in _convolutions(stage)[:-1]))


def _listed(two: _Two, read: Callable[[Place], str], told: str) -> Iterator[str]:
    """A number for each stage."""
    mine, theirs = ([read(stage) for stage in words.stages(p)] for p in (two.plan, two.other))
    if mine != theirs and all(mine) and all(theirs):
        yield two.has(told.format(", ".join(mine)), "of " + ", ".join(theirs))


def _kernels(two: _Two) -> Iterator[str]:
    mine, theirs = (_by_stage([_row(stage) for stage in words.stages(p)]) for p in (two.plan, two.other))
    if mine != theirs:
        yield two.has(f"branches of {mine}", f"of {theirs}")


def _groups(two: _Two) -> Iterator[str]:
    mine, theirs = (_by_stage([_grouped(stage) for stage in words.stages(p)]) for p in (two.plan, two.other))
    if mine != theirs:
        yield two.has(f"branches with {mine}", f"with {theirs}")


def _row(stage: Place) -> str:
    return ", ".join(_kernel(op) for op in _convolutions(stage))


def _kernel(op: Convolution) -> str:
    return f"{op.kernel}x{op.kernel}"


def _grouped(stage: Place) -> str:
    most = max((op.groups for op in _convolutions(stage)), default=1)
    return f"{most} groups" if most > 1 else "no groups"


def _convolutions(stage: Place) -> list[Convolution]:
    """Of the first block: the blocks of a stage share them."""
    ops = [node.op for block in words.blocks(stage)[:1] for node in words.ways(block)]
    return [op for op in ops if isinstance(op, Convolution)]


def _by_stage(values: list[str]) -> str:
    if len(set(values)) == 1:
        return values[0]
    kinds = {value: [f"stage{i}" for i, other in enumerate(values, 1) if other == value] for value in values}
    return ", ".join(f"{value} in {' and '.join(where)}" for value, where in kinds.items())


# ------------------------------------------------------------------------------------------------- strides, dilation


def _strides(two: _Two) -> Iterator[str]:
    yield from _where(two, _stride_told)


def _dilations(two: _Two) -> Iterator[str]:
    yield from _where(two, lambda mine, theirs: (_dilation(mine), _dilation(theirs)))


def _where(two: _Two, told: Callable[[Place, Place], tuple[str, str]]) -> Iterator[str]:
    """What differs in stages that both have, told once for all the stages in which it is the same."""
    found: dict[tuple[str, str], list[str]] = {}
    for mine, theirs in zip(words.stages(two.plan), words.stages(two.other), strict=False):
        texts = told(mine, theirs)
        if texts[0] != texts[1]:
            found.setdefault(texts, []).append(mine.path)
    for (what, instead), stages in found.items():
        yield two.has(f"{what} in {', '.join(stages)}", instead.removeprefix("the stride "))


def _stride_told(mine: Place, theirs: Place) -> tuple[str, str]:
    """How large it is; where that is the same, in which block; where that is the same, at which operation."""
    a, b = _striding(mine), _striding(theirs)
    if _amount(a) != _amount(b):
        return f"stride {_amount(a)}", f"stride {_amount(b)}"
    if not a or not b:
        return "", ""
    blocks = _block_of(mine, a), _block_of(theirs, b)
    if blocks[0] != blocks[1]:
        return f"the stride in {blocks[0]}", f"the stride in {blocks[1]}"
    if _row(mine) != _row(theirs):
        return "", ""
    return f"the stride at {_which(mine, a[0])}", f"the stride at {_which(theirs, b[0])}"


def _striding(stage: Place) -> list[Node]:
    """The operations with a stride, those of shortcuts aside."""
    return [node for node in stage.nodes if node.op.window[1] > 1 and _part(node) != "shortcuts"]


def _amount(nodes: list[Node]) -> int:
    return math.prod(node.op.window[1] for node in nodes)


def _block_of(stage: Place, nodes: list[Node]) -> str:
    inside = [i for i, block in enumerate(words.blocks(stage)) if nodes[0] in block.nodes]
    if not inside:
        return "its pool"
    return "its first block" if inside == [0] else "its last block"


def _which(stage: Place, node: Node) -> str:
    """``the 3x3``; ``the first 1x1`` where there are several."""
    if not isinstance(node.op, Convolution):
        return f"the {str(node.op).split(',')[0]}"
    name, block = _kernel(node.op), next(block for block in words.blocks(stage) if node in block.nodes)
    alike = [n for n in words.ways(block) if isinstance(n.op, Convolution) and _kernel(n.op) == name]
    if len(alike) == 1:
        return f"the {name}"
    nth = "first" if node is alike[0] else "last" if node is alike[-1] else ordinal(alike.index(node) + 1)
    return f"the {nth} {name}"


def _dilation(stage: Place) -> str:
    most = max((node.op.window[2] for node in stage.nodes), default=1)
    return f"dilation {most}" if most > 1 else "no dilation"


def _extras(two: _Two) -> Iterator[str]:
    """Operations of blocks that are neither convolution, norm nor activation, and the order of the two."""
    mine, theirs = (_more(p) for p in (two.plan, two.other))
    if mine != theirs:
        yield two.has(_several(mine, "nothing more") + " in its blocks", _several(theirs, "nothing more"))


def _more(plan: Plan) -> set[str]:
    blocks = [block for stage in words.stages(plan) for block in words.blocks(stage)]
    told = {
        str(node.op).split(",")[0]
        for block in blocks
        for node in words.ways(block)
        if not isinstance(node.op, (*words.QUIET, Convolution))
    }
    early = any(child.path.endswith(".pre") for block in blocks for child in block.children)
    return told | ({"norm and activation before the branch"} if early else set())


# -------------------------------------------------------------------------------------------------------- shortcuts


def _shortcuts(two: _Two) -> Iterator[str]:
    """Told where a block that both have does otherwise; more blocks of the same kind are told as blocks."""
    mine, theirs = _adapters(two.plan), _adapters(two.other)
    if all(mine[path] == theirs[path] for path in mine if path in theirs):
        return
    options = _option(two.plan), _option(two.other)
    said = ("", "") if options[0] == options[1] else options
    yield two.has(_counted(mine) + said[0], _counted(theirs) + said[1])


def _adapters(plan: Plan) -> dict[str, str]:
    """The kind of shortcut of each block."""
    return {block.path: _adapter(block) for stage in words.stages(plan) for block in words.blocks(stage)}


def _adapter(block: Place) -> str:
    place = words.shortcut_of(block)
    if place is None:
        return ""
    pads = [node.op for node in place.nodes if isinstance(node.op, ZeroPad)]
    return describe_shortcut(place) + "".join(" (zeros at the end)" for op in pads if op.after > op.before + 1)


def _counted(adapters: dict[str, str]) -> str:
    """``13 identities and 3 projections``."""
    counts = Counter(kind for kind in adapters.values() if kind)
    told = [f"{n:,} {kind if n == 1 else _plural(kind)}" for kind, n in counts.most_common()]
    return " and ".join([", ".join(told[:-1]), told[-1]] if told[1:] else told) or "no shortcuts"


def _plural(kind: str) -> str:
    first, gap, rest = kind.partition(" (")
    return (first.removesuffix("y") + "ies" if first.endswith("y") else first + "s") + gap + rest


def _option(plan: Plan) -> str:
    """``, option B of the paper``; where the zeros lie is told beside their number."""
    option = OPTIONS.get(plan.spec.shortcuts, "")
    return f", option {option.split(',')[0]}" if option else ""


# ----------------------------------------------------------------------------------------------------------- the rest


def _rest(two: _Two) -> Iterator[str]:
    """The first operation that differs, where no fact speaks of it."""
    pairs = list(zip_longest(two.plan.nodes, two.other.nodes))
    apart = [pair for pair in pairs if _told(pair[0]) != _told(pair[1])]
    if apart:
        mine, theirs = (f"{node.op} at {node.path}" if node else "nothing" for node in apart[0])
        count = f", the first of {len(apart):,} operations that differ" if len(apart) > 1 else ""
        yield two.has(mine, theirs) + count


def _told(node: Node | None) -> object:
    return node and (node.path, node.op, node.input, node.output)


FACTS: tuple[tuple[Part, Callable[[_Two], Iterator[str]]], ...] = (
    ("network", _input),
    ("stem", _stem),
    ("branches", _blocks),
    ("branches", _kernels),
    ("branches", _channels),
    ("branches", _width),
    ("branches", _groups),
    ("branches", _strides),
    ("branches", _dilations),
    ("branches", _extras),
    ("shortcuts", _shortcuts),
    ("network", _norm),
    ("network", _activation),
    ("network", _bias),
    ("head", _head),
)
