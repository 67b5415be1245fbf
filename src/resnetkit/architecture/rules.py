"""The rules of a valid spec: each is a generator of faults, and `find_spec_faults` runs them all.

Faults that depend on the image size (an empty feature map) are found by the planner, which raises the same error.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from resnetkit.architecture import spec as specs
from resnetkit.architecture.spec import Network, Shortcuts, Stage, get_stride_at, list_steps
from resnetkit.errors import Fault, SpecError
from resnetkit.serialization import find_type_faults, to_data

# A file must not describe a network that no machine can plan. ResNet-1202 has 600 blocks.
MAX_BLOCKS, MAX_CONVOLUTIONS = 2_000, 10_000
MAX_CHANNELS, MAX_CLASSES, MAX_SIDE, MAX_WINDOW = 2**20, 2**24, 2**16, 255
MAX_HIDDEN = 64


def check_spec(spec: Network) -> None:
    """Check a spec against all rules.

    Raises:
        SpecError: with all faults of the spec.
    """
    spec_faults = find_spec_faults(spec)
    if spec_faults:
        raise SpecError("this network cannot be built", spec_faults, fix="correct these fields of the spec")


def find_spec_faults(spec: Network) -> list[Fault]:
    """Return all faults of a spec; only the wrong types if there are any, because the rules rely on types."""
    wrong_types = find_type_faults(Network, to_data(spec))
    return wrong_types or list(dict.fromkeys(fault for rule in RULES for fault in rule(spec)))


def _check_input(spec: Network) -> Iterator[Fault]:
    for name, value in zip(("channels", "height", "width"), spec.input, strict=True):
        yield from _check_range(f"input.{name}", value, MAX_CHANNELS if name == "channels" else MAX_SIDE)


def _check_stem(spec: Network) -> Iterator[Fault]:
    for i, conv in enumerate(spec.stem.convs, 1):
        path = f"stem.conv{i}"
        yield from _check_range(f"{path}.channels", conv.channels, MAX_CHANNELS)
        yield from _check_odd(f"{path}.kernel", conv.kernel)
        yield from _check_range(f"{path}.stride", conv.stride, MAX_WINDOW)
    for name, layers in (("pool", spec.stem.pool), ("blur", spec.stem.blur)):
        if len(layers) > 1:
            yield Fault(f"stem.{name}", f"{len(layers)} {name}s", f"one {name} or none")
    for pool in spec.stem.pool:
        yield from _check_range("stem.pool.kernel", pool.kernel, MAX_WINDOW)
        yield from _check_range("stem.pool.stride", pool.stride, MAX_WINDOW)
    for blur in spec.stem.blur:
        yield from _check_blur("stem.blur.kernel", blur.kernel, blur.stride)
        yield from _check_range("stem.blur.stride", blur.stride, MAX_WINDOW)


def _check_stages(spec: Network) -> Iterator[Fault]:
    if not spec.stages:
        yield Fault("stages", "no stages", "at least one")
    n_blocks = sum(stage.blocks for stage in spec.stages)
    if n_blocks > MAX_BLOCKS:
        yield Fault("stages", f"{n_blocks:,} blocks", f"at most {MAX_BLOCKS:,}")
    n_convolutions = len(spec.stem.convs) + sum(s.blocks * len(list_steps(s.branch, s.channels)) for s in spec.stages)
    if n_convolutions > MAX_CONVOLUTIONS:
        yield Fault("stages", f"{n_convolutions:,} convolutions", f"at most {MAX_CONVOLUTIONS:,}")
    for i, stage in enumerate(spec.stages, 1):
        yield from _check_range(f"stage{i}.blocks", stage.blocks, MAX_BLOCKS)
        yield from _check_range(f"stage{i}.channels", stage.channels, MAX_CHANNELS)
        yield from _check_range(f"stage{i}.reduce.stride", stage.reduce.stride, MAX_WINDOW)
        if isinstance(stage.reduce, specs.BlurredFirstBlock):
            is_dilated = any(other_stage.reduce.atrous for other_stage in spec.stages)
            stride = 1 if is_dilated else stage.reduce.stride  # an even blur cannot be dilated in place
            yield from _check_blur(f"stage{i}.reduce.blur", stage.reduce.blur, stride)
        if len(stage.attention) > 1:
            yield Fault(f"stage{i}.attention", f"{len(stage.attention)} layers", "one or none")
        for attention in stage.attention:
            if isinstance(attention, specs.SqueezeExcite):
                yield from _check_range(f"stage{i}.attention.reduction", attention.reduction, MAX_CHANNELS)


def _check_branches(spec: Network) -> Iterator[Fault]:
    for i, (stage, in_channels) in enumerate(zip(spec.stages, list_stage_input_channels(spec), strict=True), 1):
        yield from _check_branch(f"stage{i}.branch", stage, in_channels)


def _check_branch(path: str, stage: Stage, in_channels: int) -> Iterator[Fault]:
    chain = list_steps(stage.branch, stage.channels)
    if not chain:
        yield Fault(f"{path}.steps", "no steps", "at least one")
        return
    if not 1 <= get_stride_at(stage.branch) <= len(chain):
        yield Fault(f"{path}.stride_at", str(get_stride_at(stage.branch)), f"1 to {len(chain)}, one of the steps")
    if chain[-1].channels != stage.channels:
        allowed = f"{stage.channels}, the stage's channels"
        yield Fault(f"{path}.step{len(chain)}.channels", str(chain[-1].channels), allowed)
    if not isinstance(stage.branch, specs.Chain):
        yield from _check_range(f"{path}.width", stage.branch.width, MAX_CHANNELS)
    step_in_channels = in_channels
    for i, step in enumerate(chain, 1):
        step_path = path
        if isinstance(stage.branch, specs.Chain):
            step_path = f"{path}.step{i}"
            yield from _check_range(f"{step_path}.channels", step.channels, MAX_CHANNELS)
            yield from _check_odd(f"{step_path}.kernel", step.kernel)
        yield from _check_groups(f"{step_path}.groups", step.groups, step_in_channels, step.channels)
        step_in_channels = step.channels


def _check_groups(path: str, groups: int, in_channels: int, out_channels: int) -> Iterator[Fault]:
    if groups < 1 or in_channels % groups or out_channels % groups:
        is_same = in_channels == out_channels
        channels = f"the {in_channels} channels" if is_same else f"{in_channels} channels in and {out_channels} out"
        yield Fault(path, str(groups), f"a number that divides {channels}")


def _check_shortcuts(spec: Network) -> Iterator[Fault]:
    if isinstance(spec.shortcuts, specs.NoShortcuts):
        return
    for i, (stage, in_channels) in enumerate(zip(spec.stages, list_stage_input_channels(spec), strict=True), 1):
        for b, channels, stride in _list_distinct_blocks(stage, in_channels):
            cause = find_shortcut_cause(channels, stage.channels, stride)
            adapter = select_adapter(spec.shortcuts, channels, stage.channels, stride)
            allowed = _suggest_adapters(adapter, channels, stage.channels, stride)
            if allowed:
                value = f"{type(adapter).__name__} for {_format_change(channels, stage.channels, stride)}"
                yield Fault(f"stage{i}.block{b}.shortcut", value, f"shortcuts.{cause} = {allowed}")
    for cause in ("wider", "smaller", "same"):
        adapter = getattr(spec.shortcuts, cause)
        if isinstance(adapter, specs.Subsampled):
            yield from _check_odd(f"shortcuts.{cause}.kernel", adapter.kernel)


def _list_distinct_blocks(stage: Stage, in_channels: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, input channels, stride) of the blocks that can differ: first, second, last."""
    for b in sorted({1, min(2, stage.blocks), stage.blocks}) if stage.blocks > 0 else ():
        yield b, in_channels if b == 1 else stage.channels, get_block_stride(stage, b)


def _suggest_adapters(adapter: specs.Adapter, in_channels: int, out_channels: int, stride: int) -> str:
    """Return the adapters that are possible if this one is not; "" if it is."""
    if isinstance(adapter, specs.Identity) and (in_channels != out_channels or stride > 1):
        subsampled = ", subsampled" if in_channels == out_channels else ""
        return f"an adapter: projection, pooled-projection, zero-padded{subsampled}"
    if isinstance(adapter, specs.ZeroPadded) and out_channels < in_channels:
        return "projection or pooled-projection: zeros can add channels, not remove them"
    if isinstance(adapter, specs.Subsampled) and in_channels != out_channels:
        return "projection, pooled-projection or zero-padded: a max pool keeps the channels"
    return ""


def _format_change(in_channels: int, out_channels: int, stride: int) -> str:
    change = f"channels {in_channels} -> {out_channels}" if in_channels != out_channels else ""
    return " and ".join(filter(None, [change, f"stride {stride}" if stride > 1 else ""]))


def _check_norm(spec: Network) -> Iterator[Fault]:
    if not isinstance(spec.norm, specs.NoNorm) and not spec.norm.eps > 0:
        yield Fault("norm.eps", str(spec.norm.eps), "more than 0")
    if isinstance(spec.norm, specs.FoldedNorm) and spec.order == "conv-norm-act":
        yield Fault("norm", "folded-norm", "no-norm, because every norm after a convolution can be folded")
    if isinstance(spec.norm, specs.BatchNorm | specs.FoldedNorm) and not 0 <= spec.norm.momentum <= 1:
        yield Fault("norm.momentum", str(spec.norm.momentum), "0 to 1")
    if isinstance(spec.norm, specs.GroupNorm):
        yield from _check_group_norm(spec, spec.norm.groups)


def _check_group_norm(spec: Network, groups: int) -> Iterator[Fault]:
    normalized = [(f"stem.conv{i}", conv.channels) for i, conv in enumerate(spec.stem.convs, 1)]
    if spec.order == "norm-act-conv":
        normalized += [(f"stage{i}", channels) for i, channels in enumerate(list_stage_input_channels(spec), 1)]
    for i, stage in enumerate(spec.stages, 1):
        widths = sorted({step.channels for step in list_steps(stage.branch, stage.channels)} | {stage.channels})
        normalized += [(f"stage{i}", width) for width in widths]
    for path, channels in normalized:
        if groups < 1 or channels % groups:
            yield Fault("norm.groups", str(groups), f"a number that divides the {channels} channels of {path}")


def _check_head(spec: Network) -> Iterator[Fault]:
    if isinstance(spec.head, specs.Linear | specs.MLP):
        yield from _check_range("head.classes", spec.head.classes, MAX_CLASSES)
    if isinstance(spec.head, specs.Features):
        n_stages, stages = len(spec.stages), spec.head.stages
        if list(stages) != sorted({i for i in stages if 1 <= i <= n_stages}) or stages[-1:] != (n_stages,):
            allowed = f"stages of 1 to {n_stages} in ascending order, with {n_stages}"
            yield Fault("head.stages", str(list(stages)), allowed)
    if isinstance(spec.head, specs.MLP):
        yield from _check_range("head.pool", spec.head.pool, MAX_WINDOW)
        yield from _check_fraction("head.dropout", spec.head.dropout)
        for i, width in enumerate(spec.head.hidden, 1):
            yield from _check_range(f"head.hidden{i}", width, MAX_CHANNELS)
        if len(spec.head.hidden) > MAX_HIDDEN:
            yield Fault("head.hidden", f"{len(spec.head.hidden)} layers", f"at most {MAX_HIDDEN}")


def _check_stochastic_depth(spec: Network) -> Iterator[Fault]:
    yield from _check_fraction("stochastic_depth", spec.stochastic_depth)
    if spec.stochastic_depth and isinstance(spec.shortcuts, specs.NoShortcuts):
        allowed = "0, because a block without a shortcut has only its branch"
        yield Fault("stochastic_depth", str(spec.stochastic_depth), allowed)


def _check_fraction(path: str, value: float) -> Iterator[Fault]:
    if not 0 <= value < 1:
        yield Fault(path, str(value), "0 to below 1")


Rule = Callable[[Network], Iterator[Fault]]
RULES: Sequence[Rule] = (
    _check_input, _check_stem, _check_stages, _check_branches, _check_shortcuts, _check_norm, _check_head,
    _check_stochastic_depth,
)  # fmt: skip


def _check_range(path: str, value: int, maximum: int) -> Iterator[Fault]:
    if value < 1:
        yield Fault(path, str(value), "1 or more")
    if value > maximum:
        yield Fault(path, f"{value:,}", f"at most {maximum:,}")


def _check_odd(path: str, kernel: int) -> Iterator[Fault]:
    if kernel < 1 or kernel % 2 == 0:
        yield Fault(path, str(kernel), "an odd number, so that the padding is the same on both sides")
    yield from _check_range(path, max(kernel, 1), MAX_WINDOW)


def _check_blur(path: str, kernel: int, stride: int) -> Iterator[Fault]:
    """Yield a fault if a blur is neither odd nor an average pool as large as its stride."""
    if kernel != specs.AVERAGE_KERNEL:
        yield from _check_odd(path, kernel)
    elif stride != specs.AVERAGE_KERNEL:
        yield Fault(path, f"kernel {kernel} with stride {stride}", f"stride {kernel}, or an odd kernel")


# ------------------------------------------------------------------------------------- facts that rules and plan share


def list_stage_input_channels(spec: Network) -> list[int]:
    """Return the input channels of the first block of each stage."""
    stem_channels = [conv.channels for conv in spec.stem.convs]
    stage_channels = [stage.channels for stage in spec.stages]
    return [stem_channels[-1] if stem_channels else spec.input[0], *stage_channels[:-1]] if stage_channels else []


def get_block_stride(stage: Stage, block: int) -> int:
    """Return the stride of a block in the spec, which an atrous stage turns into dilation.

    Args:
        stage: the stage of the block.
        block: the number of the block, from 1.
    """
    strided_block = {specs.LastBlock: stage.blocks, specs.PoolAfter: 0}.get(type(stage.reduce), 1)
    return stage.reduce.stride if block == strided_block else 1


def find_shortcut_cause(in_channels: int, out_channels: int, stride: int) -> str:
    """Return the field of `Shortcuts` that applies to a block.

    Args:
        in_channels: the input channels of the block.
        out_channels: the output channels of the block.
        stride: the stride of the block in the spec.
    """
    return "wider" if in_channels != out_channels else "smaller" if stride > 1 else "same"


def select_adapter(shortcuts: Shortcuts, in_channels: int, out_channels: int, stride: int) -> specs.Adapter:
    """Return the adapter of a block.

    Args:
        shortcuts: the adapter for each cause.
        in_channels: the input channels of the block.
        out_channels: the output channels of the block.
        stride: the stride of the block in the spec.
    """
    adapter: specs.Adapter = getattr(shortcuts, find_shortcut_cause(in_channels, out_channels, stride))
    return adapter


def has_weights(adapter: specs.Adapter) -> bool:
    """Return True if a shortcut has weights; in a pre-activation block it then gets the activated map."""
    return isinstance(adapter, specs.Projection | specs.PooledProjection)


def compute_reduced_channels(channels: int, reduction: int) -> int:
    """Return the hidden units of squeeze and excite: the nearest multiple of 8, at least 8 (timm's rule).

    Args:
        channels: the channels of the branch.
        reduction: divide the channels by this number.
    """
    return max(8, (channels // reduction + 4) // 8 * 8) if reduction else 8


def compute_eca_kernel(channels: int) -> int:
    """Return the odd kernel of efficient channel attention (arXiv 1910.03151, equation 12)."""
    kernel = int(abs(math.log2(channels) + 1) / 2)
    return max(kernel + (kernel + 1) % 2, 3)
