"""What must hold in a spec. Every rule is a generator of faults; `faults` runs them all.

What depends on the size of the image (a map that vanishes) is found by the planner, which raises the same error.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from resnetkit.architecture.spec import (
    MLP,
    Adapter,
    BatchNorm,
    BlurredFirstBlock,
    Chain,
    Features,
    FoldedNorm,
    GroupNorm,
    Identity,
    LastBlock,
    Linear,
    Network,
    NoNorm,
    NoShortcuts,
    PoolAfter,
    PooledProjection,
    Projection,
    Shortcuts,
    SqueezeExcite,
    Stage,
    Subsampled,
    ZeroPadded,
    steps,
    stride_at,
)
from resnetkit.errors import Fault, SpecError
from resnetkit.serialization import to_data, type_faults

# A text must not be able to ask for more than a machine can work out. ResNet-1202 has 600 blocks.
MOST_BLOCKS, MOST_CONVOLUTIONS = 2_000, 10_000
MOST_CHANNELS, MOST_CLASSES, LARGEST_SIDE, LARGEST_WINDOW = 2**20, 2**24, 2**16, 255
MOST_HIDDEN = 64


def require(spec: Network) -> None:
    """Raise `SpecError` with every fault of the spec, if it has any."""
    found = faults(spec)
    if found:
        raise SpecError("this network cannot be built", found, fix="correct these places of the spec")


def faults(spec: Network) -> list[Fault]:
    """Every fault of the spec. Where a value has the wrong type, only those are told: nothing else can be asked."""
    wrong = type_faults(Network, to_data(spec))
    return wrong or list(dict.fromkeys(fault for rule in RULES for fault in rule(spec)))


def _input(spec: Network) -> Iterator[Fault]:
    for name, value in zip(("channels", "height", "width"), spec.input, strict=True):
        yield from _within(f"input.{name}", value, MOST_CHANNELS if name == "channels" else LARGEST_SIDE)


def _stem(spec: Network) -> Iterator[Fault]:
    for i, conv in enumerate(spec.stem.convs, 1):
        path = f"stem.conv{i}"
        yield from _within(f"{path}.channels", conv.channels, MOST_CHANNELS)
        yield from _odd(f"{path}.kernel", conv.kernel)
        yield from _within(f"{path}.stride", conv.stride, LARGEST_WINDOW)
    if len(spec.stem.pool) > 1:
        yield Fault("stem.pool", f"{len(spec.stem.pool)} pools", "one pool or none")
    for pool in spec.stem.pool:
        yield from _within("stem.pool.kernel", pool.kernel, LARGEST_WINDOW)
        yield from _within("stem.pool.stride", pool.stride, LARGEST_WINDOW)
    if len(spec.stem.blur) > 1:
        yield Fault("stem.blur", f"{len(spec.stem.blur)} blurs", "one blur or none")
    for blur in spec.stem.blur:
        yield from _odd("stem.blur.kernel", blur.kernel)
        yield from _within("stem.blur.stride", blur.stride, LARGEST_WINDOW)


def _stages(spec: Network) -> Iterator[Fault]:
    if not spec.stages:
        yield Fault("stages", "no stages", "at least one")
    total = sum(stage.blocks for stage in spec.stages)
    if total > MOST_BLOCKS:
        yield Fault("stages", f"{total:,} blocks", f"at most {MOST_BLOCKS:,}")
    convolutions = len(spec.stem.convs) + sum(s.blocks * len(steps(s.branch, s.channels)) for s in spec.stages)
    if convolutions > MOST_CONVOLUTIONS:
        yield Fault("stages", f"{convolutions:,} convolutions", f"at most {MOST_CONVOLUTIONS:,}")
    for i, stage in enumerate(spec.stages, 1):
        yield from _within(f"stage{i}.blocks", stage.blocks, MOST_BLOCKS)
        yield from _within(f"stage{i}.channels", stage.channels, MOST_CHANNELS)
        yield from _within(f"stage{i}.reduce.stride", stage.reduce.stride, LARGEST_WINDOW)
        if isinstance(stage.reduce, BlurredFirstBlock):
            yield from _odd(f"stage{i}.reduce.blur", stage.reduce.blur)
        if len(stage.attention) > 1:
            yield Fault(f"stage{i}.attention", f"{len(stage.attention)} of them", "one or none")
        for attention in stage.attention:
            if isinstance(attention, SqueezeExcite):
                yield from _within(f"stage{i}.attention.reduction", attention.reduction, MOST_CHANNELS)


def _branches(spec: Network) -> Iterator[Fault]:
    for i, (stage, received) in enumerate(zip(spec.stages, received_channels(spec), strict=True), 1):
        yield from _branch(f"stage{i}.branch", stage, received)


def _branch(path: str, stage: Stage, received: int) -> Iterator[Fault]:
    chain = steps(stage.branch, stage.channels)
    if not chain:
        yield Fault(f"{path}.steps", "no steps", "at least one")
        return
    if not 1 <= stride_at(stage.branch) <= len(chain):
        yield Fault(f"{path}.stride_at", str(stride_at(stage.branch)), f"1 to {len(chain)}, one of the steps")
    if chain[-1].channels != stage.channels:
        yield Fault(
            f"{path}.step{len(chain)}.channels", str(chain[-1].channels), f"{stage.channels}, the stage's channels"
        )
    if not isinstance(stage.branch, Chain):
        yield from _within(f"{path}.width", stage.branch.width, MOST_CHANNELS)
    inputs = received
    for i, step in enumerate(chain, 1):
        where = path
        if isinstance(stage.branch, Chain):
            where = f"{path}.step{i}"
            yield from _within(f"{where}.channels", step.channels, MOST_CHANNELS)
            yield from _odd(f"{where}.kernel", step.kernel)
        yield from _groups(f"{where}.groups", step.groups, inputs, step.channels)
        inputs = step.channels


def _groups(path: str, groups: int, inputs: int, outputs: int) -> Iterator[Fault]:
    if groups < 1 or inputs % groups or outputs % groups:
        both = f"{inputs} channels in and {outputs} out" if inputs != outputs else f"the {inputs} channels"
        yield Fault(path, str(groups), f"a number that divides {both}")


def _shortcuts(spec: Network) -> Iterator[Fault]:
    if isinstance(spec.shortcuts, NoShortcuts):
        return
    for i, (stage, received) in enumerate(zip(spec.stages, received_channels(spec), strict=True), 1):
        for b, channels, stride in _kinds_of_block(stage, received):
            cause, adapter = (
                cause_of(channels, stage.channels, stride),
                answer(spec.shortcuts, channels, stage.channels, stride),
            )
            allowed = _unable(adapter, channels, stage.channels, stride)
            if allowed:
                came = f"{type(adapter).__name__} for {_change(channels, stage.channels, stride)}"
                yield Fault(f"stage{i}.block{b}.shortcut", came, f"shortcuts.{cause} = {allowed}")


def _kinds_of_block(stage: Stage, received: int) -> Iterator[tuple[int, int, int]]:
    """(number, channels received, stride) of the blocks of a stage that can differ: first, second, last."""
    for b in sorted({1, min(2, stage.blocks), stage.blocks}) if stage.blocks > 0 else ():
        yield b, received if b == 1 else stage.channels, block_stride(stage, b)


def _unable(adapter: Adapter, inputs: int, outputs: int, stride: int) -> str:
    """What could answer instead, where this adapter cannot; empty where it can."""
    changes = inputs != outputs or stride > 1
    if isinstance(adapter, Identity) and changes:
        return "an adapter: projection, pooled-projection, zero-padded" + ", subsampled" * (inputs == outputs)
    if isinstance(adapter, ZeroPadded) and outputs < inputs:
        return "projection or pooled-projection: zeros can add channels, not remove them"
    if isinstance(adapter, Subsampled) and inputs != outputs:
        return "projection, pooled-projection or zero-padded: a max pool keeps the channels"
    return ""


def _change(inputs: int, outputs: int, stride: int) -> str:
    return " and ".join([f"channels {inputs} -> {outputs}"] * (inputs != outputs) + [f"stride {stride}"] * (stride > 1))


def _adapters(spec: Network) -> Iterator[Fault]:
    if isinstance(spec.shortcuts, NoShortcuts):
        return
    for cause in ("wider", "smaller", "same"):
        adapter = getattr(spec.shortcuts, cause)
        if isinstance(adapter, Subsampled):
            yield from _odd(f"shortcuts.{cause}.kernel", adapter.kernel)


def _norm(spec: Network) -> Iterator[Fault]:
    if not isinstance(spec.norm, NoNorm) and not spec.norm.eps > 0:
        yield Fault("norm.eps", str(spec.norm.eps), "more than 0")
    if isinstance(spec.norm, FoldedNorm) and spec.order == "conv-norm-act":
        yield Fault("norm", "folded-norm", "no-norm: behind convolutions every norm can be folded")
    if isinstance(spec.norm, BatchNorm | FoldedNorm) and not 0 <= spec.norm.momentum <= 1:
        yield Fault("norm.momentum", str(spec.norm.momentum), "0 to 1")
    if isinstance(spec.norm, GroupNorm):
        yield from _group_norm(spec, spec.norm.groups)


def _group_norm(spec: Network, groups: int) -> Iterator[Fault]:
    places = [(f"stem.conv{i}", conv.channels) for i, conv in enumerate(spec.stem.convs, 1)]
    if spec.order == "norm-act-conv":
        places += [(f"stage{i}", channels) for i, channels in enumerate(received_channels(spec), 1)]
    for i, stage in enumerate(spec.stages, 1):
        widths = sorted({step.channels for step in steps(stage.branch, stage.channels)} | {stage.channels})
        places += [(f"stage{i}", width) for width in widths]
    for path, channels in places:
        if groups < 1 or channels % groups:
            yield Fault("norm.groups", str(groups), f"a number that divides the {channels} channels of {path}")


def _head(spec: Network) -> Iterator[Fault]:
    if isinstance(spec.head, Linear | MLP):
        yield from _within("head.classes", spec.head.classes, MOST_CLASSES)
    if isinstance(spec.head, Features):
        last, chosen = len(spec.stages), spec.head.stages
        if list(chosen) != sorted({i for i in chosen if 1 <= i <= last}) or chosen[-1:] != (last,):
            yield Fault("head.stages", str(list(chosen)), f"stages of 1 to {last}, upwards, {last} among them")
    if isinstance(spec.head, MLP):
        yield from _within("head.pool", spec.head.pool, LARGEST_WINDOW)
        yield from _share("head.dropout", spec.head.dropout)
        for i, width in enumerate(spec.head.hidden, 1):
            yield from _within(f"head.hidden{i}", width, MOST_CHANNELS)
        if len(spec.head.hidden) > MOST_HIDDEN:
            yield Fault("head.hidden", f"{len(spec.head.hidden)} layers", f"at most {MOST_HIDDEN}")


def _stochastic_depth(spec: Network) -> Iterator[Fault]:
    yield from _share("stochastic_depth", spec.stochastic_depth)
    if spec.stochastic_depth and isinstance(spec.shortcuts, NoShortcuts):
        yield Fault("stochastic_depth", str(spec.stochastic_depth), "0: a block without a shortcut has nothing else")


def _share(path: str, value: float) -> Iterator[Fault]:
    if not 0 <= value < 1:
        yield Fault(path, str(value), "0 or more, and below 1")


Rule = Callable[[Network], Iterator[Fault]]
RULES: Sequence[Rule] = (_input, _stem, _stages, _branches, _shortcuts, _adapters, _norm, _head, _stochastic_depth)


def _within(path: str, value: int, most: int) -> Iterator[Fault]:
    if value < 1:
        yield Fault(path, str(value), "1 or more")
    if value > most:
        yield Fault(path, f"{value:,}", f"at most {most:,}")


def _odd(path: str, kernel: int) -> Iterator[Fault]:
    if kernel < 1 or kernel % 2 == 0:
        yield Fault(path, str(kernel), "an odd number, so that the padding is the same on both sides")
    yield from _within(path, max(kernel, 1), LARGEST_WINDOW)


# ------------------------------------------------------------------------------------- facts that rules and plan share


def received_channels(spec: Network) -> list[int]:
    """What the first block of each stage receives."""
    stem = [conv.channels for conv in spec.stem.convs]
    handed_on = [stage.channels for stage in spec.stages]
    return [stem[-1] if stem else spec.input[0], *handed_on[:-1]] if handed_on else []


def block_stride(stage: Stage, block: int) -> int:
    """The written stride of a block, counted from 1; an a trous stage keeps it written."""
    at = {LastBlock: stage.blocks, PoolAfter: 0}.get(type(stage.reduce), 1)
    return stage.reduce.stride if block == at else 1


def cause_of(inputs: int, outputs: int, stride: int) -> str:
    """Which field of `Shortcuts` answers."""
    return "wider" if inputs != outputs else "smaller" if stride > 1 else "same"


def answer(shortcuts: Shortcuts, inputs: int, outputs: int, stride: int) -> Adapter:
    """The adapter of a block that receives ``inputs`` channels and hands on ``outputs``."""
    adapter: Adapter = getattr(shortcuts, cause_of(inputs, outputs, stride))
    return adapter


def has_weights(adapter: Adapter) -> bool:
    """Whether a shortcut learns; of a pre-activation block it then sees the activated map, else the input itself."""
    return isinstance(adapter, Projection | PooledProjection)


def reduced_channels(channels: int, reduction: int) -> int:
    """What squeeze and excite goes through: the nearest multiple of 8, at least 8 (timm's rule)."""
    return max(8, (channels // reduction + 4) // 8 * 8) if reduction else 8


def neighbours(channels: int) -> int:
    """The odd kernel of efficient channel attention (arXiv 1910.03151, equation 12)."""
    kernel = int(abs(math.log2(channels) + 1) / 2)
    return max(kernel + (kernel + 1) % 2, 3)
