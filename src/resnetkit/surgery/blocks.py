"""Edit the number of blocks and the shortcuts around them; new parts start as the identity if possible."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture import spec as specs
from resnetkit.architecture.plan import parse_block_number, parse_stage_number, plan
from resnetkit.architecture.rules import get_block_stride, list_stage_input_channels, select_adapter
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import Fault, UsageError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import as_list, check_integer, find_paths, raise_faults
from resnetkit.surgery.transfer import NO_ORIGIN, EditResult, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import OUTPUT_CHANGED_NOTE, finish_edit, verify_rounded

InitialTensors = dict[str, tuple[Tensor, str]]
_IDENTITY_NOTE = "so that the block starts as the identity"

# ------------------------------------------------------------------------------------------------------------- insert


@check_model_argument
def insert(model: NetworkModule, after: str, blocks: int = 1) -> EditResult:
    """Return the network with new blocks in a stage that start as the identity.

    The outputs stay, which is verified. The branch of a new block ends in zeros, so that the block returns its input.
    This holds behind a ReLU, because ReLU keeps the output of a ReLU, and in pre-activation. A plain block gets kernels
    that copy each channel.

    Args:
        model: The network; it does not change.
        after: The block before the new ones. Raises `UsageError` if they cannot start as the identity there.
        blocks: The number of new blocks.
    """
    (path,) = find_paths(model.plan, [after], ("block",))
    check_integer(blocks, "insert")
    added_blocks = {parse_stage_number(path): (parse_block_number(path), blocks)}
    return _add_blocks(model, added_blocks, f"{pluralize(blocks, 'block')} more behind {path}")


@check_model_argument
def deepen(model: NetworkModule, blocks: Sequence[int]) -> EditResult:
    """Return the network with more blocks in its stages, which start as the identity (arXiv 1511.05641).

    The outputs stay, which is verified. New blocks stand at the end of a stage, or before a last block that has the
    stride. `insert` describes them.

    Args:
        model: The network; it does not change.
        blocks: The number of blocks of each stage.

    Raises:
        UsageError: a stage would lose blocks, or new ones cannot start as the identity.
    """
    stages, blocks = model.card.spec.stages, as_list(blocks)  # type: ignore[assignment]
    for count in blocks:
        check_integer(count, "deepen")
    if len(blocks) != len(stages) or any(count < stage.blocks for stage, count in zip(stages, blocks, strict=True)):
        current, wanted = "-".join(str(stage.blocks) for stage in stages), "-".join(map(str, blocks)) or "no"
        fix = f"{len(stages)} numbers, none smaller than now"
        raise UsageError(f"a network of {current} blocks cannot grow to {wanted} blocks", where="deepen", fix=fix)
    added_blocks = {
        i: (stage.blocks - _has_final_stride(stage), count - stage.blocks)
        for i, (stage, count) in enumerate(zip(stages, blocks, strict=True), 1)
        if count > stage.blocks
    }
    return _add_blocks(model, added_blocks, "deepened to " + "-".join(map(str, blocks)) + " blocks")


def _add_blocks(model: NetworkModule, added_blocks: Mapping[int, tuple[int, int]], change: str) -> EditResult:
    """Add blocks to stages by number, each given as (block before the new ones, number of new ones)."""
    spec = model.card.spec
    faults = [
        fault
        for i, (position, count) in added_blocks.items()
        for fault in _find_identity_faults(spec, i, position, count)
    ]
    raise_faults("a new block cannot start as the identity in this place", faults)
    stages = [replace(s, blocks=s.blocks + added_blocks.get(i, (0, 0))[1]) for i, s in enumerate(spec.stages, 1)]
    card = edit_card(model.card, replace(spec, stages=tuple(stages)), change)
    old_paths = {
        new_path: old_path
        for i, (position, n) in added_blocks.items()
        for new_path, old_path in _shift_blocks(spec.stages[i - 1], i, position, n)
    }
    new_paths = [path for path, origin in old_paths.items() if origin == NO_ORIGIN]
    new_model = transfer(model, card, _make_identity_tensors(card.spec, new_paths), old_paths=old_paths)
    return finish_edit(model, new_model, verify_rounded(model, new_model))


def _shift_blocks(stage: specs.Stage, number: int, position: int, count: int) -> list[tuple[str, str]]:
    """Return (path, old path) of every new block and of every block behind them."""
    names = [f"stage{number}.block{b}" for b in range(stage.blocks + count + 1)]
    new_blocks = [(names[b], NO_ORIGIN) for b in range(position + 1, position + count + 1)]
    return new_blocks + [(names[b + count], names[b]) for b in range(position + 1, stage.blocks + 1)]


def _find_identity_faults(spec: specs.Network, number: int, position: int, count: int) -> list[Fault]:
    """Return why new blocks cannot start as the identity behind a position."""
    stage, path = spec.stages[number - 1], f"stage{number}"
    is_last = _has_final_stride(stage) and position in (0, stage.blocks)
    keeps_identity = spec.order == "norm-act-conv" or spec.activation == "relu"
    adapter = specs.Identity() if isinstance(spec.shortcuts, specs.NoShortcuts) else spec.shortcuts.same
    copies_input = _find_channel_offset(adapter, 1, 1) is not None or _can_project_identity(spec, adapter)
    end = f"the end of a stage whose last block has the stride {stage.reduce.stride}"
    checks = [
        (path, f"{count} blocks", count >= 1, "1 or more"),
        (f"{path}.block{position}", end, not is_last, "behind a block before it"),
        (path, f"activation {spec.activation}", keeps_identity, "relu, which keeps its own output; or pre-activation"),
        *_build_plain_checks(spec, stage, path),
        (path, f"{type(adapter).__name__} for equal shapes", copies_input, "shortcuts.same = identity"),
    ]
    return [Fault(location, actual, allowed) for location, actual, is_valid, allowed in checks if not is_valid]


def _has_final_stride(stage: specs.Stage) -> bool:
    return isinstance(stage.reduce, specs.LastBlock) and stage.reduce.stride > 1


IdentityChecks = list[tuple[str, str, bool, str]]


def _build_plain_checks(spec: specs.Network, stage: specs.Stage, path: str) -> IdentityChecks:
    """Return the checks for a branch without a shortcut, which must copy its input itself."""
    if not isinstance(spec.shortcuts, specs.NoShortcuts):
        return []
    steps = specs.list_steps(stage.branch, stage.channels)
    n_channels, enough = min(step.channels for step in steps), f"{stage.channels} or more"
    has_group_norm = isinstance(spec.norm, specs.GroupNorm)
    return [
        (path, f"a branch of {n_channels} channels and no shortcut", n_channels >= stage.channels, enough),
        (path, "a branch in groups", all(step.groups == 1 for step in steps), "one group"),
        (path, "a plain network of pre-activation", spec.order == "conv-norm-act", "norms behind convolutions"),
        (path, "group norm and no shortcut", not has_group_norm, "batch norm, or none"),
        (path, "attention and no shortcut", not stage.attention, "no attention, which scales channels"),
    ]


def _can_project_identity(spec: specs.Network, adapter: specs.Adapter) -> bool:
    """Return whether a projection can start as the identity: only without a norm or statistics before it."""
    reads_input = spec.order == "conv-norm-act" and not isinstance(spec.norm, specs.GroupNorm)
    return isinstance(adapter, specs.Projection) and reads_input


# ------------------------------------------------------------------------------------- tensors that make an identity


def _make_identity_tensors(spec: specs.Network, blocks: Sequence[str]) -> InitialTensors:
    """Return the tensors of new blocks that start as the identity."""
    shapes, tensors = get_tensor_shapes(plan(spec)), InitialTensors()
    is_plain = isinstance(spec.shortcuts, specs.NoShortcuts)
    for path in blocks:
        block_shapes = _select_within(shapes, path)
        tensors |= _make_passthrough_tensors(block_shapes, spec) if is_plain else _zero_last_layer(block_shapes, path)
        tensors |= _make_passthrough_tensors(_select_within(block_shapes, f"{path}.shortcut"), spec)
    return tensors


def _select_within(shapes: Mapping[str, tuple[int, ...]], path: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if key.startswith(f"{path}.")}


def _zero_last_layer(shapes: Mapping[str, tuple[int, ...]], path: str) -> InitialTensors:
    """Return zeros for the last norm of a branch, or for its last convolution if no norm follows it."""
    branch_keys = [key for key in shapes if key.startswith(f"{path}.branch.") and ".attention." not in key]
    last_layer = branch_keys[-1].rpartition(".")[0]
    zero_keys = [key for key in (f"{last_layer}.weight", f"{last_layer}.bias") if key in shapes]
    return {key: (torch.zeros(shapes[key]), f"zeros, {_IDENTITY_NOTE}") for key in zero_keys}


def _make_passthrough_tensors(
    shapes: Mapping[str, tuple[int, ...]], spec: specs.Network, offset: int = 0
) -> InitialTensors:
    """Return convolutions that copy each channel to ``offset`` channels later, and norms without effect."""
    tensors = {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            tensors[key] = _make_passthrough_kernel(shape, offset)
        elif ".norm" in key and key.endswith("weight") and isinstance(spec.norm, specs.BatchNorm):
            tensors[key] = torch.full(shape, math.sqrt(1 + spec.norm.eps), dtype=torch.float64)
    return {key: (tensor, f"copies its input, {_IDENTITY_NOTE}") for key, tensor in tensors.items()}


def _make_passthrough_kernel(shape: tuple[int, ...], offset: int) -> Tensor:
    """Return a kernel (O, I, H, W) whose output ``offset + i`` is its input ``i``."""
    weight = torch.zeros(shape)
    count, center = min(shape[1], shape[0] - offset), shape[-1] // 2
    indices = torch.arange(count)
    weight[indices + offset, indices, center, center] = 1
    return weight


# ------------------------------------------------------------------------------------------------------------- remove


@check_model_argument
def remove(model: NetworkModule, *paths: str) -> EditResult:
    """Return the network without some blocks or stages; its outputs change and are not verified.

    A block that has the stride of its stage, or changes the number of channels, can only be removed with its stage.
    Behind a removed stage, a layer whose number of input channels changes starts again.

    Args:
        model: The network; it does not change.
        *paths: Blocks and stages.

    Raises:
        UsageError: nothing is named, or a part cannot be removed.
    """
    if not paths:
        raise UsageError("nothing is named to remove", where="remove", fix="a stage, or a block")
    spec, removed = model.card.spec, set(find_paths(model.plan, paths, ("stage", "block")))
    raise_faults("these parts cannot be removed", _find_removal_faults(spec, removed))
    remaining = _select_remaining(spec, removed)
    stages = [replace(spec.stages[i - 1], blocks=len(blocks)) for i, blocks in remaining.items()]
    old_paths = {
        f"stage{new_number}.block{b}": f"stage{i}.block{old_block}"
        for new_number, (i, blocks) in enumerate(remaining.items(), 1)
        for b, old_block in enumerate(blocks, 1)
    } | {f"stage{new_number}": f"stage{i}" for new_number, i in enumerate(remaining, 1)}
    new_spec = replace(spec, stages=tuple(stages), head=_renumber_head(spec.head, list(remaining)))
    card = edit_card(model.card, new_spec, "without " + ", ".join(sorted(removed)))
    return finish_edit(model, transfer(model, card, old_paths=old_paths), notes=[OUTPUT_CHANGED_NOTE])


def _renumber_head(head: specs.Head, remaining: list[int]) -> specs.Head:
    """Return the head with the new numbers of the stages whose maps a backbone returns."""
    if not isinstance(head, specs.Features):
        return head
    return specs.Features(tuple(new for new, old in enumerate(remaining, 1) if old in head.stages))


def _select_remaining(spec: specs.Network, removed: set[str]) -> dict[int, list[int]]:
    """Return the blocks that stay, by the number of their stage; a stage without blocks is removed."""
    blocks = {
        i: [b for b in range(1, stage.blocks + 1) if f"stage{i}.block{b}" not in removed]
        for i, stage in enumerate(spec.stages, 1)
        if f"stage{i}" not in removed
    }
    return {i: block_numbers for i, block_numbers in blocks.items() if block_numbers}


def _find_removal_faults(spec: specs.Network, removed: set[str]) -> list[Fault]:
    """Return the parts that cannot be removed, and why."""
    remaining, stage_in_channels = _select_remaining(spec, removed), list_stage_input_channels(spec)
    faults = [] if remaining else [Fault("stages", "no stage left", "at least one")]
    for i, blocks in remaining.items():
        stage = spec.stages[i - 1]
        for b in sorted({1, stage.blocks} - set(blocks)):
            in_channels = stage_in_channels[i - 1] if b == 1 else stage.channels
            stride, changes = get_block_stride(stage, b), []
            if in_channels != stage.channels:
                changes.append(f"channels {in_channels} -> {stage.channels}")
            if stride > 1:
                changes.append(f"stride {stride}")
            if changes:
                problem = f"a block with {' and '.join(changes)}"
                faults.append(Fault(f"stage{i}.block{b}", problem, "another block, or the whole stage"))
    return faults


# ---------------------------------------------------------------------------------------------------------- shortcuts

_OPTIONS: dict[str, specs.Shortcuts | specs.NoShortcuts] = {
    "A": specs.OPTION_A,
    "B": specs.OPTION_B,
    "C": specs.OPTION_C,
    "D": specs.OPTION_D,
    "none": specs.NoShortcuts(),
}


@check_model_argument
def shortcuts(model: NetworkModule, option: str | specs.Shortcuts | specs.NoShortcuts) -> EditResult:
    """Return the network with other shortcuts; projections that it has already keep their weights.

    A projection in place of an identity or of zero padding starts as what it replaces. If nothing else changes, the
    outputs stay, which is verified in evaluation mode (in training mode its norm uses batch statistics).

    Args:
        model: The network; it does not change.
        option: ``A``, ``B``, ``C``, ``D``, ``none``, or the adapter for each cause.

    Raises:
        UsageError: the option is unknown.
    """
    if not isinstance(option, specs.Shortcuts | specs.NoShortcuts) and str(option) not in _OPTIONS:
        fix = suggest_fix(str(option), list(_OPTIONS))
        raise UsageError(f"unknown option {str(option)!r}", where="shortcuts", fix=fix)
    spec = model.card.spec
    new_spec = replace(spec, shortcuts=_OPTIONS[option] if isinstance(option, str) else option)
    card = edit_card(model.card, new_spec, "with other shortcuts")
    tensors, is_exact = _make_projection_tensors(spec, new_spec)
    new_model = transfer(model, card, tensors)
    if is_exact:
        return finish_edit(model, new_model, verify_rounded(model, new_model))
    return finish_edit(model, new_model, notes=[OUTPUT_CHANGED_NOTE])


def _make_projection_tensors(old_spec: specs.Network, new_spec: specs.Network) -> tuple[InitialTensors, bool]:
    """Return the tensors of projections that start as what they replace, and whether nothing else changes."""
    shapes, tensors, is_exact = get_tensor_shapes(plan(new_spec)), InitialTensors(), True
    for path, *geometry in _list_blocks(new_spec):
        old_adapter, new_adapter = (_find_adapter(spec, *geometry) for spec in (old_spec, new_spec))
        offset = _find_channel_offset(old_adapter, *geometry[:2])
        if old_adapter == new_adapter:
            continue
        if offset is not None and new_adapter is not None and _can_project_identity(new_spec, new_adapter):
            tensors |= _make_passthrough_tensors(_select_within(shapes, f"{path}.shortcut"), new_spec, offset)
        else:
            is_exact = False
    return tensors, is_exact


def _list_blocks(spec: specs.Network) -> list[tuple[str, int, int, int]]:
    """Return (path, input channels, output channels, stride) of every block."""
    return [
        (f"stage{i}.block{b}", in_channels if b == 1 else stage.channels, stage.channels, get_block_stride(stage, b))
        for i, (stage, in_channels) in enumerate(zip(spec.stages, list_stage_input_channels(spec), strict=True), 1)
        for b in range(1, stage.blocks + 1)
    ]


def _find_adapter(spec: specs.Network, in_channels: int, out_channels: int, stride: int) -> specs.Adapter | None:
    if isinstance(spec.shortcuts, specs.NoShortcuts):
        return None
    return select_adapter(spec.shortcuts, in_channels, out_channels, stride)


def _find_channel_offset(adapter: specs.Adapter | None, in_channels: int, out_channels: int) -> int | None:
    """Return the output channel of the first input channel; None if a shortcut does more than select."""
    if isinstance(adapter, specs.ZeroPadded):
        return (out_channels - in_channels) // 2 if adapter.side == "both" else 0
    return 0 if isinstance(adapter, specs.Identity) or adapter == specs.Subsampled(1) else None
