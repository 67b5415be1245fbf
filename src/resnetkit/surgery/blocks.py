"""More or fewer blocks, and other shortcuts around them. New parts start as the identity where that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import parse_block_number, parse_stage_number, plan
from resnetkit.architecture.rules import get_block_stride, list_stage_input_channels, select_adapter
from resnetkit.architecture.spec import (
    OPTION_A,
    OPTION_B,
    OPTION_C,
    OPTION_D,
    Adapter,
    BatchNorm,
    Features,
    GroupNorm,
    Head,
    Identity,
    LastBlock,
    NoShortcuts,
    Projection,
    Shortcuts,
    Stage,
    Subsampled,
    ZeroPadded,
    list_steps,
)
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import Fault, UsageError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import as_list, check_integer, find_paths, raise_faults
from resnetkit.surgery.strides import OUTPUT_CHANGED_NOTE
from resnetkit.surgery.transfer import NO_ORIGIN, EditResult, add_notes, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import finish_edit, select_rounding_limit, verify_equal

InitialTensors = dict[str, tuple[Tensor, str]]
_IDENTITY_NOTE = "so that the block starts as the identity"

# ------------------------------------------------------------------------------------------------------------- insert


@check_model_argument
def insert(model: NetworkModule, after: str, blocks: int = 1) -> EditResult:
    """More blocks behind one of a stage, that start as the identity: the answers stay, which is proved.

    The branch of a new block ends in zeros, so that the block hands on what it receives: behind a ReLU, whose answers
    another ReLU keeps, and in pre-activation. A plain block gets kernels that hand on each channel. Raises
    `UsageError` with the reason where a new block cannot start so.
    """
    (path,) = find_paths(model.plan, [after], ("block",))
    check_integer(blocks, "insert")
    added_blocks = {parse_stage_number(path): (parse_block_number(path), blocks)}
    return _add_blocks(model, added_blocks, f"{pluralize(blocks, 'block')} more behind {path}")


@check_model_argument
def deepen(model: NetworkModule, blocks: Sequence[int]) -> EditResult:
    """As many blocks in each stage as ``blocks`` says, of which the new ones start as the identity (arXiv 1511.05641).

    `insert` says how, and what cannot be. They stand at the end of a stage, or before a last block with the stride.
    """
    current_blocks, blocks = [stage.blocks for stage in model.card.spec.stages], as_list(blocks)  # type: ignore[assignment]
    for count in blocks:
        check_integer(count, "deepen")
    if len(blocks) != len(current_blocks) or any(b < a for a, b in zip(current_blocks, blocks, strict=True)):
        message = f"{'-'.join(map(str, blocks)) or 'no'} blocks are not what {'-'.join(map(str, current_blocks))} blocks can grow to"
        raise UsageError(message, where="deepen", fix=f"{len(current_blocks)} numbers, none smaller than now")
    positions = [stage.blocks - _has_final_stride(stage) for stage in model.card.spec.stages]
    added_blocks = {
        i: (position, b - a)
        for i, (position, a, b) in enumerate(zip(positions, current_blocks, blocks, strict=True), 1)
        if b > a
    }
    return _add_blocks(model, added_blocks, "deepened to " + "-".join(map(str, blocks)) + " blocks")


def _add_blocks(model: NetworkModule, added_blocks: Mapping[int, tuple[int, int]], change: str) -> EditResult:
    """``more`` has (block that comes before, how many new ones) for stages by number."""
    spec = model.card.spec
    faults = [
        fault
        for i, (position, count) in added_blocks.items()
        for fault in _find_identity_faults(spec, i, position, count)
    ]
    raise_faults("a new block cannot start as the identity here", faults)
    stages = [replace(s, blocks=s.blocks + added_blocks.get(i, (0, 0))[1]) for i, s in enumerate(spec.stages, 1)]
    card = edit_card(model.card, replace(spec, stages=tuple(stages)), change)
    old_paths = {
        new_path: old_path
        for i, (position, n) in added_blocks.items()
        for new_path, old_path in _shift_blocks(spec.stages[i - 1], i, position, n)
    }
    new_paths = [path for path, origin in old_paths.items() if origin == NO_ORIGIN]
    new_model = transfer(model, card, _make_identity_tensors(card.spec, new_paths), old_paths=old_paths)
    add_notes(model, new_model)
    limit, reason = select_rounding_limit(model)
    return finish_edit(new_model, verify_equal("the answers", model, new_model, limit, reason=reason))


def _shift_blocks(stage: Stage, number: int, position: int, count: int) -> list[tuple[str, str]]:
    """(path, path before) of every block behind the place of new ones, and of those."""
    names = [f"stage{number}.block{b}" for b in range(stage.blocks + count + 1)]
    new_blocks = [(names[b], NO_ORIGIN) for b in range(position + 1, position + count + 1)]
    return new_blocks + [(names[b + count], names[b]) for b in range(position + 1, stage.blocks + 1)]


def _find_identity_faults(spec: Spec, number: int, position: int, count: int) -> list[Fault]:
    """Why blocks cannot start as the identity there; empty where they can."""
    stage, path = spec.stages[number - 1], f"stage{number}"
    checks = [
        (path, f"{count} blocks", count >= 1, "1 or more"),
        (f"{path}.block{position}", f"the end of a stage whose last block has the stride {stage.reduce.stride}",
         not (_has_final_stride(stage) and position in (0, stage.blocks)), "behind a block before it"),
        (path, f"activation {spec.activation}", spec.order == "norm-act-conv" or spec.activation == "relu",
         "relu, or pre-activation: activated twice, numbers change"),
        *_build_plain_checks(spec, stage, path),
        *_build_shortcut_checks(spec, path),
    ]  # fmt: skip
    return [Fault(location, actual, allowed) for location, actual, is_valid, allowed in checks if not is_valid]


def _has_final_stride(stage: Stage) -> bool:
    return isinstance(stage.reduce, LastBlock) and stage.reduce.stride > 1


IdentityChecks = list[tuple[str, str, bool, str]]


def _build_plain_checks(spec: Spec, stage: Stage, path: str) -> IdentityChecks:
    """Without a shortcut the branch itself has to hand on what it receives."""
    if not isinstance(spec.shortcuts, NoShortcuts):
        return []
    min_channels = min(step.channels for step in list_steps(stage.branch, stage.channels))
    return [
        (
            path,
            f"a branch of {min_channels} channels and no shortcut",
            min_channels >= stage.channels,
            f"{stage.channels} or more",
        ),
        (path, "a branch in groups", all(s.groups == 1 for s in list_steps(stage.branch, stage.channels)), "one group"),
        (path, "a plain network of pre-activation", spec.order == "conv-norm-act", "norms behind convolutions"),
        (path, "group norm and no shortcut", not isinstance(spec.norm, GroupNorm), "batch norm, or none"),
        (path, "attention and no shortcut", not stage.attention, "none: it weighs channels"),
    ]


def _build_shortcut_checks(spec: Spec, path: str) -> IdentityChecks:
    adapter = Identity() if isinstance(spec.shortcuts, NoShortcuts) else spec.shortcuts.same
    starts_as_identity = _find_channel_offset(adapter, 1, 1) is not None or _can_project_identity(spec, adapter)
    return [(path, f"{type(adapter).__name__} where nothing differs", starts_as_identity, "shortcuts.same = identity")]


def _can_project_identity(spec: Spec, adapter: Adapter) -> bool:
    """Whether a projection can start as the identity: it must see the input itself, and no statistics of an image."""
    sees_input = spec.order == "conv-norm-act" and not isinstance(spec.norm, GroupNorm)
    return isinstance(adapter, Projection) and sees_input


# ------------------------------------------------------------------------------------- tensors that make an identity


def _make_identity_tensors(spec: Spec, blocks: Sequence[str]) -> InitialTensors:
    """The tensors of new blocks that start as the identity."""
    shapes, tensors = get_tensor_shapes(plan(spec)), InitialTensors()
    is_plain = isinstance(spec.shortcuts, NoShortcuts)
    for path in blocks:
        block_shapes = {key: shape for key, shape in shapes.items() if key.startswith(path + ".")}
        tensors |= _make_passthrough_tensors(block_shapes, spec) if is_plain else _zero_last_layer(block_shapes, path)
        tensors |= _make_passthrough_tensors(
            {key: shape for key, shape in block_shapes.items() if key.startswith(f"{path}.shortcut.")}, spec
        )
    return tensors


def _zero_last_layer(shapes: Mapping[str, tuple[int, ...]], path: str) -> InitialTensors:
    """Zeros for the last norm of a branch, or for its last convolution where no norm follows it."""
    branch_keys = [key for key in shapes if key.startswith(f"{path}.branch.") and ".attention." not in key]
    last_layer = branch_keys[-1].rpartition(".")[0]
    zero_keys = [key for key in (f"{last_layer}.weight", f"{last_layer}.bias") if key in shapes]
    return {key: (torch.zeros(shapes[key]), f"zeros, {_IDENTITY_NOTE}") for key in zero_keys}


def _make_passthrough_tensors(shapes: Mapping[str, tuple[int, ...]], spec: Spec, offset: int = 0) -> InitialTensors:
    """Convolutions that hand on each channel, behind ``before`` others, and norms that change nothing."""
    tensors = {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            tensors[key] = _make_passthrough_kernel(shape, offset)
        elif ".norm" in key and key.endswith("weight") and isinstance(spec.norm, BatchNorm):
            tensors[key] = torch.full(shape, math.sqrt(1 + spec.norm.eps), dtype=torch.float64)
    return {key: (tensor, f"handing on what comes, {_IDENTITY_NOTE}") for key, tensor in tensors.items()}


def _make_passthrough_kernel(shape: tuple[int, ...], offset: int) -> Tensor:
    """A kernel (O I H W) whose output ``before + i`` is its input ``i``."""
    weight = torch.zeros(shape)
    count, center = min(shape[1], shape[0] - offset), shape[-1] // 2
    indices = torch.arange(count)
    weight[indices + offset, indices, center, center] = 1
    return weight


# ------------------------------------------------------------------------------------------------------------- remove


@check_model_argument
def remove(model: NetworkModule, *paths: str) -> EditResult:
    """The network without some blocks or stages. Nothing is promised of the answers.

    A block that has the stride of its stage, or changes the number of channels, stays as long as others of the stage
    do. Behind a stage that went, what receives another number of channels starts anew. Raises `UsageError`.
    """
    if not paths:
        raise UsageError("nothing is named to be removed", where="remove", fix="a stage, or a block")
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
    new_model = transfer(model, card, old_paths=old_paths)
    add_notes(model, new_model, [OUTPUT_CHANGED_NOTE])
    return finish_edit(new_model)


def _renumber_head(head: Head, remaining: list[int]) -> Head:
    """The head behind the stages that are left: the maps of a backbone are named by their numbers."""
    if not isinstance(head, Features):
        return head
    return Features(
        tuple(new_number for new_number, old_number in enumerate(remaining, 1) if old_number in head.stages)
    )


def _select_remaining(spec: Spec, removed: set[str]) -> dict[int, list[int]]:
    """The blocks that stay, by the number of their stage; a stage without blocks is gone."""
    blocks = {
        i: [b for b in range(1, stage.blocks + 1) if f"stage{i}.block{b}" not in removed]
        for i, stage in enumerate(spec.stages, 1)
        if f"stage{i}" not in removed
    }
    return {i: block_numbers for i, block_numbers in blocks.items() if block_numbers}


def _find_removal_faults(spec: Spec, removed: set[str]) -> list[Fault]:
    """What cannot go, and why."""
    remaining, stage_in_channels = _select_remaining(spec, removed), list_stage_input_channels(spec)
    faults = [] if remaining else [Fault("stages", "none is left", "one at least")]
    for i, blocks in remaining.items():
        stage = spec.stages[i - 1]
        for b in sorted({1, stage.blocks} - set(blocks)):
            in_channels = stage_in_channels[i - 1] if b == 1 else stage.channels
            if get_block_stride(stage, b) > 1 or in_channels != stage.channels:
                changes = [f"channels {in_channels} -> {stage.channels}"] * (in_channels != stage.channels)
                changes += [f"stride {get_block_stride(stage, b)}"] * (get_block_stride(stage, b) > 1)
                allowed = "another block, or the whole stage"
                faults.append(Fault(f"stage{i}.block{b}", f"it has {' and '.join(changes)}", allowed))
    return faults


# ---------------------------------------------------------------------------------------------------------- shortcuts

_OPTIONS: dict[str, Shortcuts | NoShortcuts] = {
    "A": OPTION_A, "B": OPTION_B, "C": OPTION_C, "D": OPTION_D, "none": NoShortcuts(),
}  # fmt: skip


@check_model_argument
def shortcuts(model: NetworkModule, option: str | Shortcuts | NoShortcuts) -> EditResult:
    """Other shortcuts: ``A``, ``B``, ``C``, ``D``, ``none``, or which adapter answers which cause.

    A projection in place of an identity, or of zeros around it, starts as just that: where all changes are of this
    kind the answers stay, which is proved (in evaluation; in training its norm sees batches). Projections that were
    there keep their weights. Raises `UsageError`.
    """
    if not isinstance(option, Shortcuts | NoShortcuts) and str(option) not in _OPTIONS:
        message = f"there is no option called {str(option)!r}"
        raise UsageError(message, where="shortcuts", fix=suggest_fix(str(option), list(_OPTIONS)))
    new_shortcuts = _OPTIONS[option] if isinstance(option, str) else option
    spec = model.card.spec
    card = edit_card(model.card, replace(spec, shortcuts=new_shortcuts), "with other shortcuts")
    tensors, exact = _make_projection_tensors(spec, card.spec)
    new_model = transfer(model, card, tensors)
    add_notes(model, new_model, [] if exact else [OUTPUT_CHANGED_NOTE])
    limit, reason = select_rounding_limit(model)
    return finish_edit(new_model, *[verify_equal("the answers", model, new_model, limit, reason=reason)] * exact)


def _make_projection_tensors(old_spec: Spec, new_spec: Spec) -> tuple[InitialTensors, bool]:
    """The tensors of projections that stand for what was there, and whether they are all that changes."""
    shapes, tensors, exact = get_tensor_shapes(plan(new_spec)), InitialTensors(), True
    for path, in_channels, out_channels, stride in _list_blocks(new_spec):
        old_adapter, new_adapter = (
            _find_adapter(old_spec, in_channels, out_channels, stride),
            _find_adapter(new_spec, in_channels, out_channels, stride),
        )
        offset = _find_channel_offset(old_adapter, in_channels, out_channels)
        if old_adapter == new_adapter:
            continue
        if offset is not None and new_adapter is not None and _can_project_identity(new_spec, new_adapter):
            shortcut_shapes = {key: shape for key, shape in shapes.items() if key.startswith(f"{path}.shortcut.")}
            tensors |= _make_passthrough_tensors(shortcut_shapes, new_spec, offset)
        else:
            exact = False
    return tensors, exact


def _list_blocks(spec: Spec) -> list[tuple[str, int, int, int]]:
    """(path, channels received, channels handed on, stride) of every block."""
    return [
        (f"stage{i}.block{b}", in_channels if b == 1 else stage.channels, stage.channels, get_block_stride(stage, b))
        for i, (stage, in_channels) in enumerate(zip(spec.stages, list_stage_input_channels(spec), strict=True), 1)
        for b in range(1, stage.blocks + 1)
    ]


def _find_adapter(spec: Spec, in_channels: int, out_channels: int, stride: int) -> Adapter | None:
    return (
        None
        if isinstance(spec.shortcuts, NoShortcuts)
        else select_adapter(spec.shortcuts, in_channels, out_channels, stride)
    )


def _find_channel_offset(adapter: Adapter | None, in_channels: int, out_channels: int) -> int | None:
    """Where the channels of an input begin in what a shortcut hands on; None where it is no picking of pixels."""
    if isinstance(adapter, ZeroPadded):
        return (out_channels - in_channels) // 2 if adapter.side == "both" else 0
    return 0 if isinstance(adapter, Identity) or adapter == Subsampled(1) else None
