"""Why a part of a network is there, in plain words with its numbers. Every sentence stands in this one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from resnetkit.architecture.operations import AveragePooling, Convolution, MaxPooling, Normalisation, ZeroPad, ordinal
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.rules import block_stride
from resnetkit.architecture.spec import (
    OPTION_A,
    OPTION_A_END,
    OPTION_B,
    OPTION_C,
    OPTION_D,
    BatchNorm,
    Bottleneck,
    Linear,
    NoShortcuts,
    Shortcuts,
    Stage,
)

T = TypeVar("T")


def why(plan: Plan, path: str) -> str:
    """The answer for one path, one sentence a line; an unknown path raises `UsageError` with the nearest ones."""
    part = plan[path]
    answer = SENTENCES[part.role](plan, part)
    return "\n".join(line for line in [answer, *_sizes(part), _cost(plan, part)] if line)


# ----------------------------------------------------------------------------------------------------------- places


def _network(plan: Plan, part: Place | Node) -> str:
    return (
        f"A network of depth {plan.depth}: the stem counts one, each convolution of a branch one, the classifier one; "
        "shortcuts and norms count none."
    )


def _stem(plan: Plan, part: Place | Node) -> str:
    turned = f"The stem turns the image into {part.output[0]} channels"
    if part.stride == 1:
        return f"{turned} and keeps its size, {_map(part.output)}: a small image has no pixel to lose."
    sizes = f"from {_map(part.input)} to {_map(part.output)}"
    return f"{turned} and shrinks it {part.stride} times, {sizes}, so that the blocks work on small maps."


def _stage(plan: Plan, part: Place | Node) -> str:
    return (
        f"Blocks that share their channels: {_shape(part.input)} comes in, {_shape(part.output)} goes out, "
        f"and one pixel behind it sees {part.receptive_field} pixels of the image."
    )


def _block(plan: Plan, part: Place | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return "A block of a plain network: activation(branch(x)), with no way around the branch."
    return "A block is activation(branch(x) + shortcut(x)): the branch only has to learn what differs from its input."


def _branch(plan: Plan, part: Place | Node) -> str:
    stage = _stage_of(plan, part)
    if isinstance(stage.branch, Bottleneck):
        width, channels = stage.branch.width, stage.channels
        return (
            f"A bottleneck: a 1x1 convolution goes to width {width}, the 3x3 works there, a 1x1 goes to {channels}. "
            f"The 3x3 has {9 * width * width // stage.branch.groups:,} weights instead of "
            f"{9 * channels * channels:,} on {channels} channels."
        )
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return "The branch is the only way through a block of a plain network."
    return "The branch computes what is added to the shortcut; no activation stands between its end and the addition."


def _shortcut(plan: Plan, part: Place | Node) -> str:
    assert isinstance(part, Place)
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
    return plan.spec.stages[int(part.path.split(".")[0].removeprefix("stage")) - 1]


def _written_stride(plan: Plan, part: Place | Node) -> int:
    return block_stride(_stage_of(plan, part), int(part.path.split(".")[1].removeprefix("block")))


def _projection(plan: Plan, node: Node, pooled: bool) -> str:
    op = node.op
    assert isinstance(op, Convolution)
    pool = "an average pool and " if pooled else ""
    norm = " and a norm" if not op.bias else " and a bias"
    cost = f"{op.weights:,} weights{norm}" + f"; option {_option(plan)}" * bool(_option(plan))
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
    dilation = f" Its taps lie {op.dilation} apart: the stride was kept as dilation." * (op.dilation > 1)
    return f"This convolution {job}, {op.inputs} -> {op.outputs} channels.{stride}{dilation} {_bias(plan, op)}"


def _projection_conv(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Convolution)
    if op.inputs == op.outputs:
        return (
            f"The projection of a shortcut: it mixes the {op.inputs} channels and keeps their number. {_bias(plan, op)}"
        )
    made = f"it makes {op.outputs} channels of {op.inputs}, so that the ways can be added"
    return f"The projection of a shortcut: {made}. {_bias(plan, op)}"


def _bias(plan: Plan, op: Convolution) -> str:
    if op.bias:
        return "It has a bias because no norm follows it."
    if isinstance(plan.spec.norm, BatchNorm):
        return "It has no bias: the norm that follows subtracts any constant and adds its own."
    return "It has no bias: the norm that follows adds one of its own to each channel."


def _norm(plan: Plan, part: Place | Node) -> str:
    op = _op(part, Normalisation)
    return f"A norm brings each of the {op.channels} channels to a mean and a spread that it learns."


def _last_norm(plan: Plan, part: Place | Node) -> str:
    if isinstance(plan.spec.shortcuts, NoShortcuts):
        return _norm(plan, part)
    reason = "a branch cut to positive values could only add"
    return f"{_norm(plan, part)} No activation follows before the addition: {reason}."


def _act(plan: Plan, part: Place | Node) -> str:
    return "An activation between two convolutions: without it both would be one linear map."


def _block_act(plan: Plan, part: Place | Node) -> str:
    return "The activation behind the addition, so that the next block starts from a non-linear map."


def _stem_pool(plan: Plan, part: Place | Node) -> str:
    op = _op(part, MaxPooling)
    return (
        f"The pool of the stem keeps the strongest of each {op.kernel}x{op.kernel} window and shrinks the map cheaply."
    )


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


def _average(plan: Plan, part: Place | Node) -> str:
    return f"The average over {_map(part.input)} makes a vector of {part.output[0]}, for any size of image."


def _classifier(plan: Plan, part: Place | Node) -> str:
    return f"One linear layer turns {part.input[0]} features into {part.output[0]} answers."


SENTENCES: dict[str, Callable[[Plan, Place | Node], str]] = {
    "network": _network,
    "stem": _stem,
    "stage": _stage,
    "block": _block,
    "branch": _branch,
    "shortcut": _shortcut,
    "head": _head,
    "stem-conv": _stem_conv,
    "stem-norm": _norm,
    "stem-act": _act,
    "stem-pool": _stem_pool,
    "branch-conv": _branch_conv,
    "branch-norm": _norm,
    "branch-last-norm": _last_norm,
    "branch-act": _act,
    "projection": _projection_conv,
    "projection-norm": _norm,
    "shortcut-pool": _shortcut_pool,
    "shortcut-pad": _shortcut_pad,
    "add": _add,
    "block-act": _block_act,
    "global-average": _average,
    "classifier": _classifier,
}

# ------------------------------------------------------------------------------------------------------ what they share


def _sizes(part: Place | Node) -> list[str]:
    """The size formula with its numbers, for an operation that moves a window."""
    if not isinstance(part, Node) or not isinstance(part.op, Convolution | MaxPooling):
        return []
    op, n, out = part.op, part.input[1], part.output[1]
    return [
        f"size: floor(({n} + 2*{op.padding} - {op.dilation}*({op.kernel}-1) - 1) / {op.stride}) + 1 = {out}"
        + (f" (height; width {part.input[2]} -> {part.output[2]})" if part.input[1] != part.input[2] else "")
    ]


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
