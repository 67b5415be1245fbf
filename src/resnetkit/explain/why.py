"""Why a part of a network is there, in plain words with its numbers. Every sentence stands in this one table.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from resnetkit.architecture.operations import (
    AdaptiveAvgPoolOp,
    AvgPoolOp,
    BlurOp,
    ConvOp,
    DropoutOp,
    EfficientChannelsOp,
    MaxPoolOp,
    NormOp,
    SqueezeExciteOp,
    StochasticDepthOp,
    ZeroPadOp,
    format_ordinal,
)
from resnetkit.architecture.plan import Node, Plan, Section, parse_block_number, parse_stage_number
from resnetkit.architecture.rules import get_block_stride
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
from resnetkit.formatting import pluralize
from resnetkit.weights.layer_aliases import resolve_path

T = TypeVar("T")


def why(plan: Plan, path: str) -> str:
    """The answer for one path, one sentence a line; an unknown path raises `UsageError` with the nearest ones.

    What another library calls the place (``layer1.0.downsample``, ``conv2_block1_0_conv``) is understood.
    """
    part = plan[resolve_path(plan, path)]
    sentence = SENTENCES[part.role](plan, part)
    return "\n".join(line for line in [sentence, *_format_size_formula(part), _format_cost(plan, part)] if line)


# ----------------------------------------------------------------------------------------------------------- places


def _network(plan: Plan, part: Section | Node) -> str:
    stem = "the stem counts one, " * bool(plan.spec.stem.convs)
    return (
        f"A network of depth {plan.depth}: {stem}each convolution of a branch and each linear layer one; shortcuts, "
        "norms and attention count none."
    )


def _stem(plan: Plan, part: Section | Node) -> str:
    start = f"The stem turns the image into {part.output[0]} channels"
    if part.stride == 1:
        note = ": a small image has no pixel to lose" * (max(part.input[1:]) <= 64)
        return f"{start} and keeps its size, {_format_map(part.output)}{note}."
    sizes = f"from {_format_map(part.input)} to {_format_map(part.output)}"
    return f"{start} and shrinks it {part.stride} times, {sizes}, so that the blocks work on small maps."


def _stage(plan: Plan, part: Section | Node) -> str:
    field, blocks = part.receptive_field, pluralize(_get_stage(plan, part).blocks, "block")
    return (
        f"{blocks} with {part.output[0]} channels: {_format_shape(part.input)} come in, {_format_shape(part.output)} go out, and one "
        f"pixel behind it sees {field}x{field} pixels of the image."
    )


def _block(plan: Plan, part: Section | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        formula = "branch(activation(x))" if _is_pre_activation(plan) else "activation(branch(x))"
        return f"A block of a plain network: {formula}, with no way around the branch."
    if _is_pre_activation(plan):
        return _pre_activation_block(part)
    return "A block is activation(branch(x) + shortcut(x)): the branch only has to learn what differs from its input."


def _is_pre_activation(plan: Plan) -> bool:
    return plan.spec.order == "norm-act-conv"


def _pre_activation_block(part: Section | Node) -> str:
    roles = {node.role for node in part.nodes}
    if "projection" in roles:
        return (
            "A pre-activation block with a projection: x is normed and activated once, and branch and projection both "
            "begin from that; nothing follows the addition."
        )
    suffix = "" if roles & {"shortcut-pool", "shortcut-pad"} else ", and what comes in reaches the end unchanged"
    return f"A pre-activation block is branch(activation(norm(x))) + shortcut(x): nothing follows the addition{suffix}."


def _pre(plan: Plan, part: Section | Node) -> str:
    suffix = (
        "" if isinstance(plan.spec.shortcuts, NoShortcuts) else ", so that no activation has to follow the addition"
    )
    return f"Norm and activation come before the convolutions here{suffix}."


def _branch(plan: Plan, part: Section | Node) -> str:
    stage = _get_stage(plan, part)
    if isinstance(stage.branch, Bottleneck):
        width, channels = stage.branch.width, stage.channels
        groups = stage.branch.groups
        in_groups = f" in {groups} groups" * (groups > 1)
        return (
            f"A bottleneck: a 1x1 convolution goes to width {width}, the 3x3 works there{in_groups}, a 1x1 goes to "
            f"{channels}. The 3x3 has {9 * width * width // groups:,} weights instead of "
            f"{9 * channels * channels // groups:,} on {channels} channels{in_groups}."
        )
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return "The branch is the only way through a block of a plain network."
    return "The branch computes what is added to the shortcut; no activation stands between its end and the addition."


def _shortcut(plan: Plan, part: Section | Node) -> str:
    assert isinstance(part, Section)
    return f"{_adapter_reason(plan, part)} {_adapter_condition(plan, part)}"


def _adapter_condition(plan: Plan, part: Section) -> str:
    """When an adapter stands here, and which of the causes this network has at all."""
    assert isinstance(plan.spec.shortcuts, Shortcuts)
    shortcuts = [
        shortcut for shortcut in plan.parts.values() if isinstance(shortcut, Section) and shortcut.role == "shortcut"
    ]
    stride_only = [
        shortcut.path
        for shortcut in shortcuts
        if shortcut.input[0] == shortcut.output[0] and _get_spec_stride(plan, shortcut) > 1
    ]
    if part.nodes and part.input[0] == part.output[0] and _get_spec_stride(plan, part) == 1:
        return "Where nothing differs, options A and B have the identity."
    smaller = describe_adapter(plan.spec.shortcuts.smaller)
    if not part.nodes:
        wider = describe_adapter(plan.spec.shortcuts.wider)
        text = f"Other channels would ask for {wider}, a stride alone for {smaller}."
        return f"Other channels or a stride would ask for {smaller}." if wider == smaller else text
    if stride_only:
        return f"Either cause is enough; a stride alone, without other channels, is answered at {stride_only[0]} by {smaller}."
    return f"Either cause is enough; no block of this network has a stride alone, which would ask for {smaller}."


def describe_adapter(adapter: Adapter) -> str:
    """An adapter in two or three words."""
    return {
        Identity: "the identity",
        ZeroPadded: "zeros (a padded identity)",
        Projection: "a projection",
        PooledProjection: "a pooled projection",
        Subsampled: "a pooled identity",
    }[type(adapter)]


def _adapter_reason(plan: Plan, part: Section) -> str:
    shape, causes = part.input, _causes(part, _get_spec_stride(plan, part))
    nodes_by_role = {node.role: node for node in part.nodes}
    if not nodes_by_role:
        return f"{shape[0]} channels at {_format_map(shape)} on both ways, so the identity, which costs nothing."
    if "projection" in nodes_by_role:
        return f"{causes}, so {_projection(plan, nodes_by_role['projection'], 'shortcut-pool' in nodes_by_role)}."
    op = part.nodes[0].op
    if isinstance(op, ZeroPadOp):
        zeros = f"{op.before} channels of zeros before and {op.after} after"
        source = f"every {format_ordinal(op.stride)} pixel of the input with " if op.stride > 1 else "the input with "
        option = f" (option {_get_option_name(plan)})" * bool(_get_option_name(plan))
        return f"{causes}, so {source}{zeros}: an identity that costs no weight{option}."
    return f"{causes}, so a {op} picks from the input: an identity that costs no weight."


def _causes(part: Section, stride: int) -> str:
    """What differs between the two ways; ``stride`` is the written one."""
    input_shape, output_shape = part.input, part.output
    if input_shape[0] == output_shape[0] and stride == 1:
        return f"{input_shape[0]} channels at {_format_map(input_shape)} on both ways, but this network asks for it in every block"
    if stride == 1:
        return f"The branch hands on {output_shape[0]} channels and the block receives {input_shape[0]}, same {_format_map(input_shape)}"
    return part.reason[0].upper() + part.reason[1:].replace(":", ",")


def _get_stage(plan: Plan, part: Section | Node) -> Stage:
    return plan.spec.stages[parse_stage_number(part.path) - 1]


def _get_spec_stride(plan: Plan, part: Section | Node) -> int:
    return get_block_stride(_get_stage(plan, part), parse_block_number(part.path))


def _projection(plan: Plan, node: Node, is_pooled: bool) -> str:
    op = node.op
    assert isinstance(op, ConvOp)
    pool = "an average pool and " if is_pooled else ""
    has_norm = not (_is_pre_activation(plan) or isinstance(plan.spec.norm, NoNorm | FoldedNorm))
    extras = ["a bias"] * op.bias + ["a norm"] * has_norm
    option = _get_option_name(plan)
    if plan.spec.shortcuts == OPTION_D and not is_pooled:
        option = "D: pooled only where there is a stride"
    cost = " and ".join([f"{op.weights:,} weights", *extras]) + f"; option {option}" * bool(option)
    return f"{pool}a 1x1 projection {op.in_channels} -> {op.out_channels} with stride {op.stride} ({cost})"


def _get_option_name(plan: Plan) -> str:
    return OPTION_NAMES.get(plan.spec.shortcuts, "")


OPTION_NAMES: dict[Shortcuts | NoShortcuts, str] = {
    OPTION_A: "A of the paper",
    OPTION_A_END: "A of the paper, zeros at the end",
    OPTION_B: "B of the paper",
    OPTION_C: "C of the paper",
    OPTION_D: "D: pooled before it is projected",
}


def _head(plan: Plan, part: Section | Node) -> str:
    start = f"The head averages each of the {part.input[0]} maps to one number"
    if isinstance(plan.spec.head, MLP):
        return f"The head averages over {plan.spec.head.pool}x{plan.spec.head.pool} windows; linear layers do the rest."
    has_linear = isinstance(plan.spec.head, Linear)
    return start + (f", and a linear layer makes {part.output[0]} answers of them." if has_linear else ".")


# ------------------------------------------------------------------------------------------------------- operations


def _stem_conv(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ConvOp)
    return f"A {op.kernel}x{op.kernel} convolution of the stem: {op.in_channels} -> {op.out_channels} channels. {_bias(plan, op)}"


def _branch_conv(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ConvOp)
    action = (
        f"looks at a {op.kernel}x{op.kernel} window around each pixel"
        if op.kernel > 1
        else "mixes channels pixel by pixel"
    )
    stride = f" It has the stride of its block, {op.stride}." * (op.stride > 1)
    groups = f" Each of its {op.groups} groups sees {op.in_channels // op.groups} of the channels." * (op.groups > 1)
    dilation = f" Its taps lie {op.dilation} apart: the stride was kept as dilation." * (op.dilation > 1)
    return f"This convolution {action}, {op.in_channels} -> {op.out_channels} channels.{groups}{stride}{dilation} {_bias(plan, op)}"


def _projection_conv(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ConvOp)
    if op.in_channels == op.out_channels:
        return f"The projection of a shortcut: it mixes the {op.in_channels} channels and keeps their number. {_bias(plan, op)}"
    effect = f"it makes {op.out_channels} channels of {op.in_channels}, so that the ways can be added"
    return f"The projection of a shortcut: {effect}. {_bias(plan, op)}"


def _bias(plan: Plan, op: ConvOp) -> str:
    if op.bias and plan.spec.bias == "always":
        suffix = "though a norm that follows subtracts it again" * (not isinstance(plan.spec.norm, NoNorm))
        return f"It has a bias, as every convolution of this network{', ' * bool(suffix)}{suffix}."
    if op.bias:
        return "It has a bias because no norm follows it."
    if plan.spec.bias == "never":
        return "It has no bias, as no convolution of this network."
    if isinstance(plan.spec.norm, BatchNorm):
        return "It has no bias: the norm that follows subtracts any constant and adds its own."
    return "It has no bias: the norm that follows adds one of its own to each channel."


def _norm(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, NormOp)
    if isinstance(op.norm, GroupNorm):
        groups = f"{op.norm.groups} groups of the {op.channels} channels"
        return f"A norm over {groups}, image by image; each channel then has a scale and a shift."
    return f"A norm brings each of the {op.channels} channels to a mean and a spread that it learns."


def _pre_norm(plan: Plan, part: Section | Node) -> str:
    return f"{_norm(plan, part)} It stands before the convolutions: pre-activation."


def _head_norm(plan: Plan, part: Section | Node) -> str:
    return (
        f"{_norm(plan, part)} Blocks that activate first leave their last sum without one, so the head begins with it."
    )


def _last_norm(plan: Plan, part: Section | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return _norm(plan, part)
    reason = "a branch cut to positive values could only add"
    return f"{_norm(plan, part)} No activation follows before the addition: {reason}."


def _act(plan: Plan, part: Section | Node) -> str:
    return "An activation between two convolutions: without it both would be one linear map."


def _stem_act(plan: Plan, part: Section | Node) -> str:
    return "The activation of the stem: what follows starts from a non-linear map."


def _block_act(plan: Plan, part: Section | Node) -> str:
    position = "that ends the block" if isinstance(plan.spec.shortcuts, NoShortcuts) else "behind the addition"
    return f"The activation {position}: what follows starts from a non-linear map."


def _stem_pool(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, MaxPoolOp)
    start = f"The pool of the stem keeps the strongest of each {op.kernel}x{op.kernel} window"
    if op.stride == 1 and plan.spec.stem.blur:
        return f"{start}; the blur behind it makes the map smaller."
    reduction = 1 - math.prod(part.output[1:]) / math.prod(part.input[1:])
    sizes = f"{_format_map(part.output)} instead of {_format_map(part.input)}"
    benefit = f" The blocks work on a map of {sizes}: {reduction:.0%} fewer MACs in them."
    return f"{start} and has no weight.{benefit * (reduction > 0)}{_edge(op)}"


def _edge(op: MaxPoolOp) -> str:
    sentences = {
        "padded": "",
        "zeros": " Around the map it sees zeros, as Keras pads it: without a ReLU before it, that is not torch's pool.",
        "ceil": " Its last windows hang over the end, as in Caffe: the grid lies one pixel beside torch's.",
    }
    return sentences[op.edge]


def _stage_pool(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, MaxPoolOp)
    return f"The stage ends with a pool that keeps the strongest of each {op.kernel}x{op.kernel} window, as in VGG."


def _blur(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, BlurOp)
    return (
        f"A fixed {op.kernel}x{op.kernel} filter smooths the map before every {format_ordinal(op.stride)} pixel is kept: what "
        "is too fine for the smaller map would turn into false patterns, and a shifted image into other answers."
    )


def _attention(plan: Plan, part: Section | Node) -> str:
    if isinstance(part, Node) and isinstance(part.op, SqueezeExciteOp):
        op = part.op
        return (
            f"Each of the {op.channels} channels is weighed by 0 to 1: their averages over the map go through "
            f"{op.reduced} numbers and back, so that the whole image decides which channels count."
        )
    eca = _get_op(part, EfficientChannelsOp)
    return (
        f"Each of the {eca.channels} channels is weighed by 0 to 1, decided by its average over the map and those of "
        f"{eca.kernel - 1} channels beside it: {eca.kernel} weights in all."
    )


def _drop(plan: Plan, part: Section | Node) -> str:
    rate = _get_op(part, StochasticDepthOp).rate
    return f"In training this branch is left out {rate:.1%} of the time (stochastic depth); in evaluation never."


def _shortcut_pool(plan: Plan, part: Section | Node) -> str:
    if isinstance(part, Node) and isinstance(part.op, AvgPoolOp):
        return "This pool averages the pixels that the stride would drop, so that the shortcut sees them all."
    op = _get_op(part, MaxPoolOp)
    if op.kernel == 1:
        return f"This pool picks every {format_ordinal(_get_spec_stride(plan, part))} pixel, so that the input fits the branch."
    return f"This pool keeps the largest of each {op.kernel}x{op.kernel} window, so that the input fits the branch."


def _shortcut_pad(plan: Plan, part: Section | Node) -> str:
    return "Channels of zeros make the identity as wide as the branch; they have no weight and no cost."


def _add(plan: Plan, part: Section | Node) -> str:
    return f"Branch and shortcut meet here: {_format_shape(part.output)} on both ways."


def _pre_act(plan: Plan, part: Section | Node) -> str:
    return "The branch starts from an activated map."


def _head_act(plan: Plan, part: Section | Node) -> str:
    if len(part.output) == 1:
        return "An activation between two linear layers: without it both would be one linear map."
    return "What the last block hands on was not activated yet."


def _average_to(plan: Plan, part: Section | Node) -> str:
    side = _get_op(part, AdaptiveAvgPoolOp).side
    return f"Averages over {side}x{side} windows make a vector of {part.output[0]} of any map, as one after the other."


def _hidden(plan: Plan, part: Section | Node) -> str:
    return (
        f"A linear layer of {part.input[0]} x {part.output[0]} weights: {part.params / plan.params:.0%} of all params "
        "of this network. Residual networks average over the map instead."
    )


def _head_drop(plan: Plan, part: Section | Node) -> str:
    return f"In training {_get_op(part, DropoutOp).rate:.0%} of these numbers are left out; in evaluation none."


def _average(plan: Plan, part: Section | Node) -> str:
    return f"The average over {_format_map(part.input)} makes a vector of {part.output[0]}, for any size of image."


def _classifier(plan: Plan, part: Section | Node) -> str:
    return f"One linear layer turns {part.input[0]} features into {part.output[0]} answers."


SENTENCES: dict[str, Callable[[Plan, Section | Node], str]] = {
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


def _format_size_formula(part: Section | Node) -> list[str]:
    """The size formula with its numbers, for an operation that moves a window."""
    if not isinstance(part, Node) or part.op.window == (1, 1, 1) or len(part.output) == 1:
        return []
    n, out = part.input[1], part.output[1]
    width_note = f" (height; width {part.input[2]} -> {part.output[2]})" if part.input[1] != part.input[2] else ""
    match part.op:
        case ConvOp() | BlurOp() | MaxPoolOp():
            op = part.op
            rounding = "ceil" if isinstance(op, MaxPoolOp) and op.edge == "ceil" else "floor"
            expression = f"({n} + 2*{op.padding} - {op.dilation}*({op.kernel}-1) - 1) / {op.stride}"
            return [f"size: {rounding}({expression}) + 1 = {out}{width_note}"]
    stride = part.op.window[1]
    return [f"size: ceil({n} / {stride}) = {out}{width_note}"]


def _format_cost(plan: Plan, part: Section | Node) -> str:
    if not part.params and not part.macs:
        return ""
    return f"cost: {part.params:,} params, {part.macs:,} MACs ({part.macs / plan.macs:.1%} of the network)"


def _get_op(part: Section | Node, op_type: type[T]) -> T:
    assert isinstance(part, Node) and isinstance(part.op, op_type)
    return part.op


def _format_map(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:])) if len(shape) == 3 else "a vector"


def _format_shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels at {_format_map(shape)}" if len(shape) == 3 else f"a vector of {shape[0]}"
