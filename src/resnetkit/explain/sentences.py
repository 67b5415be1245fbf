"""Explain why a part of a network exists, in sentences with its numbers; all sentences are in this module.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from resnetkit.architecture import operations as ops
from resnetkit.architecture import spec as s
from resnetkit.architecture.operations import format_ordinal
from resnetkit.architecture.plan import Node, Plan, Section, parse_block_number, parse_stage_number
from resnetkit.architecture.rules import get_block_stride
from resnetkit.explain.describe import format_shape, list_shortcuts
from resnetkit.formatting import pluralize

T = TypeVar("T")


def format_reason(plan: Plan, part: Section | Node) -> str:
    """Explain a part: why it exists, its size formula and its cost, one line each.

    Args:
        plan: plan of the network.
        part: a part of it.
    """
    return "\n".join(filter(None, [format_sentence(plan, part), *format_size_formula(part), _format_cost(plan, part)]))


def format_sentence(plan: Plan, part: Section | Node) -> str:
    """Explain in one line why a part exists.

    Args:
        plan: plan of the network.
        part: a part of it.
    """
    sentence = SENTENCES[part.role]
    return _fill_template(sentence, plan, part) if isinstance(sentence, str) else sentence(plan, part)


def _fill_template(template: str, plan: Plan, part: Section | Node) -> str:
    assert isinstance(part, Node)
    texts = {"input_map": _format_map(part.input), "output_text": _describe_shape(part.output)}
    texts["bias"] = _bias(plan, part.op) if isinstance(part.op, ops.ConvOp) else ""
    numbers = {"nth": format_ordinal(part.op.window[1]), "share": part.params / plan.params}
    return template.format(op=part.op, input=part.input, output=part.output, **texts, **numbers)


# ---------------------------------------------------------------------------------------------------------- sections


def _network(plan: Plan, part: Section | Node) -> str:
    stem = "the stem as one, " if plan.spec.stem.convs else ""
    return (
        f"The network has depth {plan.depth}. Depth counts {stem}each convolution of a branch and each linear layer. "
        "Shortcuts, norms and attention do not count."
    )


def _stem(plan: Plan, part: Section | Node) -> str:
    start, size = f"The stem turns the image into {part.output[0]} channels", _format_map(part.output)
    if part.stride == 1:
        note = " Small images need no reduction." if max(part.input[1:]) <= 64 else ""
        return f"{start} and keeps its size, {size}.{note}"
    return (
        f"{start} and reduces it by a factor of {part.stride}, from {_format_map(part.input)} to {size}. "
        "The blocks then work on smaller maps."
    )


def _stage(plan: Plan, part: Section | Node) -> str:
    blocks = pluralize(_get_stage(plan, part).blocks, "block")
    return (
        f"The stage has {blocks} with {part.output[0]} channels. Its input is {_describe_shape(part.input)}, its "
        f"output {_describe_shape(part.output)}. {describe_receptive_field(plan, part)}"
    )


def describe_receptive_field(plan: Plan, part: Section | Node) -> str:
    """Say how many pixels of the image one output pixel sees, and how many of them lie inside the image.

    Args:
        plan: plan of the network.
        part: a part of it whose output is a map.
    """
    field, sides = part.receptive_field, plan.input[1:]
    if field <= min(sides):
        return f"One output pixel sees {field}x{field} pixels of the image."
    inside = f"at most {format_shape(tuple(min(field, side) for side in sides))} lie inside"
    seen_part = "the whole" if field >= max(sides) else "a part of the"
    return f"One output pixel sees {seen_part} image: of its field of {field}x{field} pixels, {inside}."


def _block(plan: Plan, part: Section | Node) -> str:
    if isinstance(plan.spec.shortcuts, s.NoShortcuts):
        formula = "branch(activation(x))" if _is_pre_activation(plan) else "activation(branch(x))"
        return f"A block of a plain network computes {formula}. It has no shortcut."
    if _is_pre_activation(plan):
        return _pre_activation_block(part)
    return "A block computes activation(branch(x) + shortcut(x)). The branch only learns the difference from its input."


def _is_pre_activation(plan: Plan) -> bool:
    return plan.spec.order == "norm-act-conv"


def _pre_activation_block(part: Section | Node) -> str:
    roles = {node.role for node in part.nodes}
    formula = "A pre-activation block computes branch(activation(norm(x))) + shortcut(x)."
    if "projection" in roles:
        formula = (
            "A pre-activation block with a projection normalizes and activates x once. Branch and projection both "
            "start from the result."
        )
    changes_input = roles & {"projection", "shortcut-pool", "shortcut-pad"}
    note = "" if changes_input else ", so the input reaches the end unchanged"
    return f"{formula} Nothing follows the addition{note}."


def _pre(plan: Plan, part: Section | Node) -> str:
    has_addition = not isinstance(plan.spec.shortcuts, s.NoShortcuts)
    note = ", so no activation has to follow the addition" if has_addition else ""
    return f"Norm and activation come before the convolutions{note}."


def _branch(plan: Plan, part: Section | Node) -> str:
    stage = _get_stage(plan, part)
    if isinstance(stage.branch, s.Bottleneck):
        width, channels, groups = stage.branch.width, stage.channels, stage.branch.groups
        in_groups = f" in {groups} groups" if groups > 1 else ""
        return (
            f"The branch is a bottleneck. A 1x1 maps to width {width}, the 3x3 works there{in_groups}, and "
            f"a 1x1 maps to {channels} channels. The 3x3 has {9 * width * width // groups:,} weights. On {channels} "
            f"channels{in_groups} it would have {9 * channels * channels // groups:,}."
        )
    if isinstance(plan.spec.shortcuts, s.NoShortcuts):
        return "The branch is the only path through a block of a plain network."
    return "The branch computes what is added to the shortcut. No activation stands between its end and the addition."


def _shortcut(plan: Plan, part: Section | Node) -> str:
    assert isinstance(part, Section)
    return f"{_adapter_reason(plan, part)} {_adapter_condition(plan, part)}"


def _adapter_condition(plan: Plan, part: Section) -> str:
    """Return when a shortcut needs an adapter, with the cases that occur in this network."""
    shortcuts = plan.spec.shortcuts
    assert isinstance(shortcuts, s.Shortcuts)
    smaller, wider = _ADAPTER_NAMES[type(shortcuts.smaller)], _ADAPTER_NAMES[type(shortcuts.wider)]
    if not part.nodes:
        if wider == smaller:
            return f"Different channels or a stride would need {smaller}."
        return f"Different channels would need {wider}, a stride alone {smaller}."
    if part.input[0] == part.output[0] and _get_spec_stride(plan, part) == 1:
        return "Options A and B use the identity if nothing differs."
    stride_only = [shortcut.path for shortcut in list_shortcuts(plan)
                   if shortcut.input[0] == shortcut.output[0] and _get_spec_stride(plan, shortcut) > 1]  # fmt: skip
    start = "Different channels alone are enough, and so is a stride."
    if stride_only:
        return f"{start} At {stride_only[0]} a stride alone needs {smaller}."
    return f"{start} No block of this network has a stride alone; it would need {smaller}."


_ADAPTER_NAMES: dict[type[s.Adapter], str] = {
    s.Identity: "the identity",
    s.ZeroPadded: "zeros (a padded identity)",
    s.Projection: "a projection",
    s.PooledProjection: "a pooled projection",
    s.Subsampled: "a pooled identity",
}


def _adapter_reason(plan: Plan, part: Section) -> str:
    nodes_by_role = {node.role: node for node in part.nodes}
    if not nodes_by_role:
        shape = _describe_shape(part.input)
        return f"Branch and shortcut both have {shape}, so the shortcut is the identity and costs nothing."
    cause = _describe_cause(part, _get_spec_stride(plan, part))
    if "projection" in nodes_by_role:
        is_pooled = "shortcut-pool" in nodes_by_role
        return f"{cause} {_describe_projection(plan, nodes_by_role['projection'], is_pooled=is_pooled)}"
    op = part.nodes[0].op
    if not isinstance(op, ops.ZeroPadOp):
        return f"{cause} The shortcut is therefore a {op} of its input. It has no weights."
    pixels = f"every {format_ordinal(op.stride)} pixel of its input" if op.stride > 1 else "its input"
    option = _format_option(OPTION_NAMES.get(plan.spec.shortcuts))
    return (
        f"{cause} The shortcut therefore takes {pixels} and adds {op.before} channels of zeros before and {op.after} "
        f"after. It has no weights{option}."
    )


def _describe_cause(part: Section, stride: int) -> str:
    """Describe how input and output of a block differ; ``stride`` is that of the spec."""
    shape, out_channels = part.input, part.output[0]
    if shape[0] == out_channels and stride == 1:
        return f"Input and output both have {_describe_shape(shape)}, but every block of this network has an adapter."
    if stride == 1:
        size = _format_map(shape)
        return f"The branch outputs {out_channels} channels and the block receives {shape[0]}, both at {size}."
    return f"Branch and input differ: {part.reason.replace(':', ',')}."


def _get_stage(plan: Plan, part: Section | Node) -> s.Stage:
    return plan.spec.stages[parse_stage_number(part.path) - 1]


def _get_spec_stride(plan: Plan, part: Section | Node) -> int:
    return get_block_stride(_get_stage(plan, part), parse_block_number(part.path))


def _describe_projection(plan: Plan, node: Node, *, is_pooled: bool) -> str:
    op = _get_op(node, ops.ConvOp)
    pool = "an average pool and " if is_pooled else ""
    has_norm = not (_is_pre_activation(plan) or isinstance(plan.spec.norm, s.NoNorm | s.FoldedNorm))
    extras = " and ".join(name for name, exists in (("a bias", op.bias), ("a norm", has_norm)) if exists)
    costs = f"{op.weights:,} weights plus {extras}" if extras else f"{op.weights:,} weights"
    is_unpooled_d = plan.spec.shortcuts == s.OPTION_D and not is_pooled
    option = "D: pooled only if there is a stride" if is_unpooled_d else OPTION_NAMES.get(plan.spec.shortcuts)
    return (
        f"The shortcut is therefore {pool}a 1x1 projection {op.in_channels} -> {op.out_channels} with stride "
        f"{op.stride}. It has {costs}{_format_option(option)}."
    )


def _format_option(option: str | None) -> str:
    return f" (option {option})" if option else ""


OPTION_NAMES: dict[s.Shortcuts | s.NoShortcuts, str] = {
    s.OPTION_A: "A of the paper",
    s.OPTION_A_END: "A of the paper, zeros at the end",
    s.OPTION_B: "B of the paper",
    s.OPTION_C: "C of the paper",
    s.OPTION_D: "D: pooled before projection",
}


def _head(plan: Plan, part: Section | Node) -> str:
    if isinstance(plan.spec.head, s.MLP):
        return f"The head averages over {plan.spec.head.pool}x{plan.spec.head.pool} windows. Linear layers follow."
    linear = f" A linear layer turns them into {part.output[0]} logits." if isinstance(plan.spec.head, s.Linear) else ""
    return f"The head averages each of the {part.input[0]} maps to one number.{linear}"


# -------------------------------------------------------------------------------------------------------- operations


def _branch_conv(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ops.ConvOp)
    window = f"combines a {op.kernel}x{op.kernel} window around each pixel"
    action = window if op.kernel > 1 else "mixes channels pixel by pixel"
    sentences = [f"This convolution {action}, {op.in_channels} -> {op.out_channels} channels."]
    if op.groups > 1:
        sentences.append(f"Each of its {op.groups} groups sees {op.in_channels // op.groups} of the channels.")
    if op.stride > 1:
        sentences.append(f"It has the stride of its block, {op.stride}.")
    if op.dilation > 1:
        sentences.append(f"Its taps are {op.dilation} pixels apart, because a stride was kept as dilation.")
    return " ".join([*sentences, _bias(plan, op)])


def _projection_conv(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ops.ConvOp)
    effect = f"maps {op.in_channels} channels to {op.out_channels}, so that branch and shortcut can be added"
    if op.in_channels == op.out_channels:
        effect = f"mixes the {op.in_channels} channels and keeps their number"
    return f"The projection of a shortcut {effect}. {_bias(plan, op)}"


def _bias(plan: Plan, op: ops.ConvOp) -> str:
    if plan.spec.bias != "without-norm":
        is_subtracted = op.bias and not isinstance(plan.spec.norm, s.NoNorm)
        note = " A norm that follows subtracts it again." if is_subtracted else ""
        return f"It has {'a' if op.bias else 'no'} bias, like every convolution of this network.{note}"
    if op.bias:
        return "It has a bias because no norm follows it."
    is_batch_norm = isinstance(plan.spec.norm, s.BatchNorm)
    effect = "subtracts any constant and adds its own" if is_batch_norm else "adds its own to each channel"
    return f"It has no bias: the norm that follows {effect}."


def _norm(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ops.NormOp)
    over = f"each of the {op.channels} channels"
    if isinstance(op.norm, s.GroupNorm):
        over = f"each image in {op.norm.groups} groups of the {op.channels} channels"
    note = _NORM_NOTES.get(part.role, "")
    if part.role == "branch-last-norm" and isinstance(plan.spec.shortcuts, s.NoShortcuts):
        note = ""
    return f"This norm normalizes {over}. A learned scale and shift of each channel follow.{note}"


_NORM_NOTES = {
    "pre-norm": " It comes before the convolutions (pre-activation).",
    "head-norm": " Pre-activation blocks end without a norm, so the head starts with one.",
    "branch-last-norm": " No activation follows before the addition: a branch without negative values could only "
    "increase the sum.",
}
_BETWEEN_LAYERS = "An activation between two {}. Without it both would be one linear map."


def _block_act(plan: Plan, part: Section | Node) -> str:
    position = "at the end of the block" if isinstance(plan.spec.shortcuts, s.NoShortcuts) else "after the addition"
    return f"The activation {position}. The next part starts from a non-linear map."


def _stem_pool(plan: Plan, part: Section | Node) -> str:
    op = _get_op(part, ops.MaxPoolOp)
    start = f"The pool of the stem keeps the maximum of each {op.kernel}x{op.kernel} window"
    if op.stride == 1 and plan.spec.stem.blur:
        return f"{start}. The blur after it reduces the map."
    reduction, benefit = 1 - math.prod(part.output[1:]) / math.prod(part.input[1:]), ""
    if reduction > 0:
        sizes = f"{_format_map(part.output)} instead of {_format_map(part.input)}"
        benefit = f" The blocks work on a map of {sizes}: {reduction:.0%} fewer MACs."
    return f"{start} and has no weights.{benefit}{_EDGE_SENTENCES[op.edge]}"


_EDGE_SENTENCES = {
    "padded": "",
    "zeros": " It pads with zeros, as Keras does. Without a ReLU before it, the result differs from torch's pool.",
    "ceil": " Its last windows extend beyond the map, as in Caffe. Its grid is shifted by one pixel from torch's.",
}


_BLUR = (
    "A fixed {op.kernel}x{op.kernel} filter smooths the map before every {nth} pixel is kept. "
    "Otherwise fine detail would alias, and a shift of the image would change the output."
)


def _attention(plan: Plan, part: Section | Node) -> str:
    assert isinstance(part, Node) and isinstance(part.op, ops.SqueezeExciteOp | ops.EfficientChannelsOp)
    op, start = part.op, f"Each of the {part.op.channels} channels is multiplied by a weight from 0 to 1."
    if isinstance(op, ops.SqueezeExciteOp):
        steps = f"The channel averages go through {op.reduced} numbers and back"
        return f"{start} {steps}, so the whole image decides the weights."
    sources = f"the average of the channel and those of {op.kernel - 1} neighbors"
    return f"{start} It depends on {sources}, with {op.kernel} weights in all."


def _shortcut_pool(plan: Plan, part: Section | Node) -> str:
    if isinstance(part, Node) and isinstance(part.op, ops.AvgPoolOp):
        return "This pool averages the pixels that the stride would drop, so the shortcut uses all of them."
    op = _get_op(part, ops.MaxPoolOp)
    action = f"keeps the maximum of each {op.kernel}x{op.kernel} window"
    if op.kernel == 1:
        action = f"picks every {format_ordinal(_get_spec_stride(plan, part))} pixel"
    return f"This pool {action}, so that the input fits the branch."


def _head_act(plan: Plan, part: Section | Node) -> str:
    if len(part.output) == 1:
        return _BETWEEN_LAYERS.format("linear layers")
    return "The last block ends without an activation, so the head applies one."


# Templates use the operation `op`, the shapes `input` and `output`, and the values of `_fill_template`.
SENTENCES: dict[str, str | Callable[[Plan, Section | Node], str]] = {
    "network": _network,
    "stem": _stem,
    "stage": _stage,
    "block": _block,
    "pre": _pre,
    "branch": _branch,
    "shortcut": _shortcut,
    "head": _head,
    "stem-conv": "A {op.kernel}x{op.kernel} convolution of the stem, {input[0]} -> {output[0]} channels. {bias}",
    "stem-norm": _norm,
    "stem-act": "The activation of the stem. The stages start from a non-linear map.",
    "stem-pool": _stem_pool,
    "stem-blur": _BLUR,
    "pre-norm": _norm,
    "pre-act": "The branch starts from an activated map.",
    "branch-conv": _branch_conv,
    "branch-norm": _norm,
    "branch-last-norm": _norm,
    "branch-act": _BETWEEN_LAYERS.format("convolutions"),
    "branch-blur": _BLUR,
    "branch-attention": _attention,
    "branch-drop": "In training, stochastic depth skips this branch {op.rate:.1%} of the time; in evaluation never.",
    "projection": _projection_conv,
    "projection-norm": _norm,
    "shortcut-pool": _shortcut_pool,
    "shortcut-pad": "Channels of zeros make the identity as wide as the branch, without weights or MACs.",
    "add": "Branch and shortcut are added here. Both have {output_text}.",
    "block-act": _block_act,
    "stage-pool": "The stage ends with a pool that keeps the maximum of each {op.kernel}x{op.kernel} window, as in "
    "VGG.",
    "head-norm": _norm,
    "head-act": _head_act,
    "global-average": "The average over {input_map} makes a vector of {output[0]}, for any image size.",
    "average": "An adaptive average pool reduces any map to {op.side}x{op.side} and flattens it to a vector of "
    "{output[0]}.",
    "hidden": "A linear layer with {input[0]} x {output[0]} weights. It has {share:.0%} of all params of this "
    "network. Residual networks average over the map instead.",
    "head-drop": "In training, dropout sets {op.rate:.0%} of these numbers to zero; in evaluation none.",
    "classifier": "One linear layer turns {input[0]} features into {output[0]} logits.",
}

# ----------------------------------------------------------------------------------------------------------- helpers


def format_size_formula(part: Section | Node) -> list[str]:
    """Return the size formula with its numbers if the operation moves a window."""
    if not isinstance(part, Node) or part.op.window == (1, 1, 1) or len(part.output) == 1:
        return []
    n, out = part.input[1], part.output[1]
    width_note = f" (height; width {part.input[2]} -> {part.output[2]})" if part.input[1] != part.input[2] else ""
    if isinstance(op := part.op, ops.ConvOp | ops.BlurOp | ops.MaxPoolOp):
        rounding = "ceil" if isinstance(op, ops.MaxPoolOp) and op.edge == "ceil" else "floor"
        expression = f"({n} + 2*{op.padding} - {op.dilation}*({op.kernel}-1) - 1) / {op.stride}"
        return [f"size: {rounding}({expression}) + 1 = {out}{width_note}"]
    return [f"size: ceil({n} / {op.window[1]}) = {out}{width_note}"]


def _format_cost(plan: Plan, part: Section | Node) -> str:
    if not part.params and not part.macs:
        return ""
    return f"cost: {part.params:,} params, {part.macs:,} MACs ({part.macs / plan.macs:.1%} of the network)"


def _get_op(part: Section | Node, op_type: type[T]) -> T:
    assert isinstance(part, Node) and isinstance(part.op, op_type)
    return part.op


def _format_map(shape: ops.Shape) -> str:
    return format_shape(shape[1:]) or "a vector"


def _describe_shape(shape: ops.Shape) -> str:
    return f"{shape[0]} channels at {_format_map(shape)}" if len(shape) == 3 else f"a vector of {shape[0]}"
