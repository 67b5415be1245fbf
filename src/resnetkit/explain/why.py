"""Why a part of a network is there, in plain words with its numbers. Every sentence stands in this one table.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from resnetkit.architecture.operations import (
    AveragePooling,
    AverageTo,
    Blurring,
    Convolution,
    DropBranch,
    DropOut,
    MaxPooling,
    Normalisation,
    SqueezeAndExcite,
    WeighByNeighbours,
    ZeroPad,
    ordinal,
)
from resnetkit.architecture.plan import Node, Place, Plan, block_number, stage_number
from resnetkit.architecture.rules import block_stride
from resnetkit.architecture.spec import (
    MLP,
    OPTION_A,
    OPTION_A_END,
    OPTION_B,
    OPTION_C,
    OPTION_D,
    Adapter,
    BatchNorm,
    Bottleneck,
    FoldedNorm,
    GroupNorm,
    Identity,
    Linear,
    NoNorm,
    NoShortcuts,
    PooledProjection,
    Projection,
    Shortcuts,
    Stage,
    Subsampled,
    ZeroPadded,
)
from resnetkit.formatting import counted
from resnetkit.weights.layer_aliases import resolve

T = TypeVar("T")


def why(plan: Plan, path: str) -> str:
    """The answer for one path, one sentence a line; an unknown path raises `UsageError` with the nearest ones.

    What another library calls the place (``layer1.0.downsample``, ``conv2_block1_0_conv``) is understood.
    """
    part = plan[resolve(plan, path)]
    answer = SENTENCES[part.role](plan, part)
    return "\n".join(line for line in [answer, *_sizes(part), _cost(plan, part)] if line)


# ----------------------------------------------------------------------------------------------------------- places


def _network(plan: Plan, part: Place | Node) -> str:
    stem = "the stem counts one, " * bool(plan.spec.stem.convs)
    return (
        f"A network of depth {plan.depth}: {stem}each convolution of a branch and each linear layer one; shortcuts, "
        "norms and attention count none."
    )


def _stem(plan: Plan, part: Place | Node) -> str:
    turned = f"The stem turns the image into {part.output[0]} channels"
    if part.stride == 1:
        small = ": a small image has no pixel to lose" * (max(part.input[1:]) <= 64)
        return f"{turned} and keeps its size, {_map(part.output)}{small}."
    sizes = f"from {_map(part.input)} to {_map(part.output)}"
    return f"{turned} and shrinks it {part.stride} times, {sizes}, so that the blocks work on small maps."


def _stage(plan: Plan, part: Place | Node) -> str:
    field, blocks = part.receptive_field, counted(_stage_of(plan, part).blocks, "block")
    return (
        f"{blocks} with {part.output[0]} channels: {_shape(part.input)} come in, {_shape(part.output)} go out, and one "
        f"pixel behind it sees {field}x{field} pixels of the image."
    )


def _block(plan: Plan, part: Place | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        formula = "branch(activation(x))" if _activates_first(plan) else "activation(branch(x))"
        return f"A block of a plain network: {formula}, with no way around the branch."
    if _activates_first(plan):
        return _pre_block(part)
    return "A block is activation(branch(x) + shortcut(x)): the branch only has to learn what differs from its input."


def _activates_first(plan: Plan) -> bool:
    return plan.spec.order == "norm-act-conv"


def _pre_block(part: Place | Node) -> str:
    roles = {node.role for node in part.nodes}
    if "projection" in roles:
        return (
            "A pre-activation block with a projection: x is normed and activated once, and branch and projection both "
            "begin from that; nothing follows the addition."
        )
    kept = "" if roles & {"shortcut-pool", "shortcut-pad"} else ", and what comes in reaches the end unchanged"
    return f"A pre-activation block is branch(activation(norm(x))) + shortcut(x): nothing follows the addition{kept}."


def _pre(plan: Plan, part: Place | Node) -> str:
    after = "" if isinstance(plan.spec.shortcuts, NoShortcuts) else ", so that no activation has to follow the addition"
    return f"Norm and activation come before the convolutions here{after}."


def _branch(plan: Plan, part: Place | Node) -> str:
    stage = _stage_of(plan, part)
    if isinstance(stage.branch, Bottleneck):
        width, channels = stage.branch.width, stage.channels
        groups = stage.branch.groups
        apart = f" in {groups} groups" * (groups > 1)
        return (
            f"A bottleneck: a 1x1 convolution goes to width {width}, the 3x3 works there{apart}, a 1x1 goes to "
            f"{channels}. The 3x3 has {9 * width * width // groups:,} weights instead of "
            f"{9 * channels * channels // groups:,} on {channels} channels{apart}."
        )
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return "The branch is the only way through a block of a plain network."
    return "The branch computes what is added to the shortcut; no activation stands between its end and the addition."


def _shortcut(plan: Plan, part: Place | Node) -> str:
    assert isinstance(part, Place)
    return f"{_answer(plan, part)} {_condition(plan, part)}"


def _condition(plan: Plan, part: Place) -> str:
    """When an adapter stands here, and which of the causes this network has at all."""
    assert isinstance(plan.spec.shortcuts, Shortcuts)
    blocks = [place for place in plan.parts.values() if isinstance(place, Place) and place.role == "shortcut"]
    alone = [place.path for place in blocks if place.input[0] == place.output[0] and _written_stride(plan, place) > 1]
    if part.nodes and part.input[0] == part.output[0] and _written_stride(plan, part) == 1:
        return "Where nothing differs, options A and B have the identity."
    word = describe_adapter(plan.spec.shortcuts.smaller)
    if not part.nodes:
        wider = describe_adapter(plan.spec.shortcuts.wider)
        both = f"Other channels would ask for {wider}, a stride alone for {word}."
        return f"Other channels or a stride would ask for {word}." if wider == word else both
    if alone:
        return f"Either cause is enough; a stride alone, without other channels, is answered at {alone[0]} by {word}."
    return f"Either cause is enough; no block of this network has a stride alone, which would ask for {word}."


def describe_adapter(adapter: Adapter) -> str:
    """An adapter in two or three words."""
    return {
        Identity: "the identity",
        ZeroPadded: "zeros (a padded identity)",
        Projection: "a projection",
        PooledProjection: "a pooled projection",
        Subsampled: "a pooled identity",
    }[type(adapter)]


def _answer(plan: Plan, part: Place) -> str:
    before, causes = part.input, _causes(part, _written_stride(plan, part))
    kinds = {node.role: node for node in part.nodes}
    if not kinds:
        return f"{before[0]} channels at {_map(before)} on both ways, so the identity, which costs nothing."
    if "projection" in kinds:
        return f"{causes}, so {_projection(plan, kinds['projection'], 'shortcut-pool' in kinds)}."
    op = part.nodes[0].op
    if isinstance(op, ZeroPad):
        zeros = f"{op.before} channels of zeros before and {op.after} after"
        picked = f"every {ordinal(op.stride)} pixel of the input with " if op.stride > 1 else "the input with "
        option = f" (option {_option(plan)})" * bool(_option(plan))
        return f"{causes}, so {picked}{zeros}: an identity that costs no weight{option}."
    return f"{causes}, so a {op} picks from the input: an identity that costs no weight."


def _causes(part: Place, stride: int) -> str:
    """What differs between the two ways; ``stride`` is the written one."""
    before, after = part.input, part.output
    if before[0] == after[0] and stride == 1:
        return f"{before[0]} channels at {_map(before)} on both ways, but this network asks for it in every block"
    if stride == 1:
        return f"The branch hands on {after[0]} channels and the block receives {before[0]}, same {_map(before)}"
    return part.reason[0].upper() + part.reason[1:].replace(":", ",")


def _stage_of(plan: Plan, part: Place | Node) -> Stage:
    return plan.spec.stages[stage_number(part.path) - 1]


def _written_stride(plan: Plan, part: Place | Node) -> int:
    return block_stride(_stage_of(plan, part), block_number(part.path))


def _projection(plan: Plan, node: Node, pooled: bool) -> str:
    op = node.op
    assert isinstance(op, Convolution)
    pool = "an average pool and " if pooled else ""
    normed = not (_activates_first(plan) or isinstance(plan.spec.norm, NoNorm | FoldedNorm))
    more = ["a bias"] * op.bias + ["a norm"] * normed
    option = _option(plan)
    if plan.spec.shortcuts == OPTION_D and not pooled:
        option = "D: pooled only where there is a stride"
    cost = " and ".join([f"{op.weights:,} weights", *more]) + f"; option {option}" * bool(option)
    return f"{pool}a 1x1 projection {op.inputs} -> {op.outputs} with stride {op.stride} ({cost})"


def _option(plan: Plan) -> str:
    return OPTIONS.get(plan.spec.shortcuts, "")


OPTIONS: dict[Shortcuts | NoShortcuts, str] = {
    OPTION_A: "A of the paper",
    OPTION_A_END: "A of the paper, zeros at the end",
    OPTION_B: "B of the paper",
    OPTION_C: "C of the paper",
    OPTION_D: "D: pooled before it is projected",
}


def _head(plan: Plan, part: Place | Node) -> str:
    averaged = f"The head averages each of the {part.input[0]} maps to one number"
    if isinstance(plan.spec.head, MLP):
        return f"The head averages over {plan.spec.head.pool}x{plan.spec.head.pool} windows; linear layers do the rest."
    linear = isinstance(plan.spec.head, Linear)
    return averaged + (f", and a linear layer makes {part.output[0]} answers of them." if linear else ".")


# ------------------------------------------------------------------------------------------------------- operations


def _stem_conv(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Convolution)
    return f"A {op.kernel}x{op.kernel} convolution of the stem: {op.inputs} -> {op.outputs} channels. {_bias(plan, op)}"


def _branch_conv(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Convolution)
    job = (
        f"looks at a {op.kernel}x{op.kernel} window around each pixel"
        if op.kernel > 1
        else "mixes channels pixel by pixel"
    )
    stride = f" It has the stride of its block, {op.stride}." * (op.stride > 1)
    groups = f" Each of its {op.groups} groups sees {op.inputs // op.groups} of the channels." * (op.groups > 1)
    dilation = f" Its taps lie {op.dilation} apart: the stride was kept as dilation." * (op.dilation > 1)
    return f"This convolution {job}, {op.inputs} -> {op.outputs} channels.{groups}{stride}{dilation} {_bias(plan, op)}"


def _projection_conv(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Convolution)
    if op.inputs == op.outputs:
        return (
            f"The projection of a shortcut: it mixes the {op.inputs} channels and keeps their number. {_bias(plan, op)}"
        )
    made = f"it makes {op.outputs} channels of {op.inputs}, so that the ways can be added"
    return f"The projection of a shortcut: {made}. {_bias(plan, op)}"


def _bias(plan: Plan, op: Convolution) -> str:
    if op.bias and plan.spec.bias == "always":
        followed = "though a norm that follows subtracts it again" * (not isinstance(plan.spec.norm, NoNorm))
        return f"It has a bias, as every convolution of this network{', ' * bool(followed)}{followed}."
    if op.bias:
        return "It has a bias because no norm follows it."
    if plan.spec.bias == "never":
        return "It has no bias, as no convolution of this network."
    if isinstance(plan.spec.norm, BatchNorm):
        return "It has no bias: the norm that follows subtracts any constant and adds its own."
    return "It has no bias: the norm that follows adds one of its own to each channel."


def _norm(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Normalisation)
    if isinstance(op.norm, GroupNorm):
        groups = f"{op.norm.groups} groups of the {op.channels} channels"
        return f"A norm over {groups}, image by image; each channel then has a scale and a shift."
    return f"A norm brings each of the {op.channels} channels to a mean and a spread that it learns."


def _pre_norm(plan: Plan, part: Place | Node) -> str:
    return f"{_norm(plan, part)} It stands before the convolutions: pre-activation."


def _head_norm(plan: Plan, part: Place | Node) -> str:
    return (
        f"{_norm(plan, part)} Blocks that activate first leave their last sum without one, so the head begins with it."
    )


def _last_norm(plan: Plan, part: Place | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return _norm(plan, part)
    reason = "a branch cut to positive values could only add"
    return f"{_norm(plan, part)} No activation follows before the addition: {reason}."


def _act(plan: Plan, part: Place | Node) -> str:
    return "An activation between two convolutions: without it both would be one linear map."


def _stem_act(plan: Plan, part: Place | Node) -> str:
    return "The activation of the stem: what follows starts from a non-linear map."


def _block_act(plan: Plan, part: Place | Node) -> str:
    where = "that ends the block" if isinstance(plan.spec.shortcuts, NoShortcuts) else "behind the addition"
    return f"The activation {where}: what follows starts from a non-linear map."


def _stem_pool(plan: Plan, part: Place | Node) -> str:
    op = _op(part, MaxPooling)
    kept = f"The pool of the stem keeps the strongest of each {op.kernel}x{op.kernel} window"
    if op.stride == 1 and plan.spec.stem.blur:
        return f"{kept}; the blur behind it makes the map smaller."
    share = 1 - math.prod(part.output[1:]) / math.prod(part.input[1:])
    sizes = f"{_map(part.output)} instead of {_map(part.input)}"
    smaller = f" The blocks work on a map of {sizes}: {share:.0%} fewer MACs in them."
    return f"{kept} and has no weight.{smaller * (share > 0)}{_edge(op)}"


def _edge(op: MaxPooling) -> str:
    told = {
        "padded": "",
        "zeros": " Around the map it sees zeros, as Keras pads it: without a ReLU before it, that is not torch's pool.",
        "ceil": " Its last windows hang over the end, as in Caffe: the grid lies one pixel beside torch's.",
    }
    return told[op.edge]


def _stage_pool(plan: Plan, part: Place | Node) -> str:
    op = _op(part, MaxPooling)
    return f"The stage ends with a pool that keeps the strongest of each {op.kernel}x{op.kernel} window, as in VGG."


def _blur(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Blurring)
    return (
        f"A fixed {op.kernel}x{op.kernel} filter smooths the map before every {ordinal(op.stride)} pixel is kept: what "
        "is too fine for the smaller map would turn into false patterns, and a shifted image into other answers."
    )


def _attention(plan: Plan, part: Place | Node) -> str:
    if isinstance(part, Node) and isinstance(part.op, SqueezeAndExcite):
        op = part.op
        return (
            f"Each of the {op.channels} channels is weighed by 0 to 1: their averages over the map go through "
            f"{op.reduced} numbers and back, so that the whole image decides which channels count."
        )
    near = _op(part, WeighByNeighbours)
    return (
        f"Each of the {near.channels} channels is weighed by 0 to 1, decided by its average over the map and those of "
        f"{near.kernel - 1} channels beside it: {near.kernel} weights in all."
    )


def _drop(plan: Plan, part: Place | Node) -> str:
    rate = _op(part, DropBranch).rate
    return f"In training this branch is left out {rate:.1%} of the time (stochastic depth); in evaluation never."


def _shortcut_pool(plan: Plan, part: Place | Node) -> str:
    if isinstance(part, Node) and isinstance(part.op, AveragePooling):
        return "This pool averages the pixels that the stride would drop, so that the shortcut sees them all."
    op = _op(part, MaxPooling)
    if op.kernel == 1:
        return f"This pool picks every {ordinal(_written_stride(plan, part))} pixel, so that the input fits the branch."
    return f"This pool keeps the largest of each {op.kernel}x{op.kernel} window, so that the input fits the branch."


def _shortcut_pad(plan: Plan, part: Place | Node) -> str:
    return "Channels of zeros make the identity as wide as the branch; they have no weight and no cost."


def _add(plan: Plan, part: Place | Node) -> str:
    return f"Branch and shortcut meet here: {_shape(part.output)} on both ways."


def _pre_act(plan: Plan, part: Place | Node) -> str:
    return "The branch starts from an activated map."


def _head_act(plan: Plan, part: Place | Node) -> str:
    if len(part.output) == 1:
        return "An activation between two linear layers: without it both would be one linear map."
    return "What the last block hands on was not activated yet."


def _average_to(plan: Plan, part: Place | Node) -> str:
    side = _op(part, AverageTo).side
    return f"Averages over {side}x{side} windows make a vector of {part.output[0]} of any map, as one after the other."


def _hidden(plan: Plan, part: Place | Node) -> str:
    return (
        f"A linear layer of {part.input[0]} x {part.output[0]} weights: {part.params / plan.params:.0%} of all params "
        "of this network. Residual networks average over the map instead."
    )


def _head_drop(plan: Plan, part: Place | Node) -> str:
    return f"In training {_op(part, DropOut).rate:.0%} of these numbers are left out; in evaluation none."


def _average(plan: Plan, part: Place | Node) -> str:
    return f"The average over {_map(part.input)} makes a vector of {part.output[0]}, for any size of image."


def _classifier(plan: Plan, part: Place | Node) -> str:
    return f"One linear layer turns {part.input[0]} features into {part.output[0]} answers."


SENTENCES: dict[str, Callable[[Plan, Place | Node], str]] = {
    "network": _network,
    "stem": _stem,
    "stage": _stage,
    "block": _block,
    "pre": _pre,
    "branch": _branch,
    "shortcut": _shortcut,
    "head": _head,
    "stem-conv": _stem_conv,
    "stem-norm": _norm,
    "stem-act": _stem_act,
    "stem-pool": _stem_pool,
    "stem-blur": _blur,
    "pre-norm": _pre_norm,
    "pre-act": _pre_act,
    "branch-conv": _branch_conv,
    "branch-norm": _norm,
    "branch-last-norm": _last_norm,
    "branch-act": _act,
    "branch-blur": _blur,
    "branch-attention": _attention,
    "branch-drop": _drop,
    "projection": _projection_conv,
    "projection-norm": _norm,
    "shortcut-pool": _shortcut_pool,
    "shortcut-pad": _shortcut_pad,
    "add": _add,
    "block-act": _block_act,
    "stage-pool": _stage_pool,
    "head-norm": _head_norm,
    "head-act": _head_act,
    "global-average": _average,
    "average": _average_to,
    "hidden": _hidden,
    "head-drop": _head_drop,
    "classifier": _classifier,
}

# ------------------------------------------------------------------------------------------------------ what they share


def _sizes(part: Place | Node) -> list[str]:
    """The size formula with its numbers, for an operation that moves a window."""
    if not isinstance(part, Node) or part.op.window == (1, 1, 1) or len(part.output) == 1:
        return []
    n, out = part.input[1], part.output[1]
    both = f" (height; width {part.input[2]} -> {part.output[2]})" if part.input[1] != part.input[2] else ""
    match part.op:
        case Convolution() | Blurring() | MaxPooling():
            op = part.op
            rounded = "ceil" if isinstance(op, MaxPooling) and op.edge == "ceil" else "floor"
            inside = f"({n} + 2*{op.padding} - {op.dilation}*({op.kernel}-1) - 1) / {op.stride}"
            return [f"size: {rounded}({inside}) + 1 = {out}{both}"]
    stride = part.op.window[1]
    return [f"size: ceil({n} / {stride}) = {out}{both}"]


def _cost(plan: Plan, part: Place | Node) -> str:
    if not part.params and not part.macs:
        return ""
    return f"cost: {part.params:,} params, {part.macs:,} MACs ({part.macs / plan.macs:.1%} of the network)"


def _op(part: Place | Node, kind: type[T]) -> T:
    assert isinstance(part, Node) and isinstance(part.op, kind)
    return part.op


def _map(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:])) if len(shape) == 3 else "a vector"


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels at {_map(shape)}" if len(shape) == 3 else f"a vector of {shape[0]}"
