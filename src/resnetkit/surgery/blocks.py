"""More or fewer blocks, and other shortcuts around them. New parts start as the identity where that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import block_number, plan, stage_number
from resnetkit.architecture.rules import answer as answer_of
from resnetkit.architecture.rules import block_stride, received_channels
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
    steps,
)
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import Fault, UsageError, suggestion
from resnetkit.formatting import counted
from resnetkit.network.layers import Network
from resnetkit.surgery.select import find, refuse, several, whole
from resnetkit.surgery.strides import NOTHING
from resnetkit.surgery.transfer import NOWHERE, Edited, carry, edit, edited, told
from resnetkit.surgery.verify import compared, finished, rounded

Brought = dict[str, tuple[Tensor, str]]
_AS_IDENTITY = "so that the block starts as the identity"

# ------------------------------------------------------------------------------------------------------------- insert


@edit
def insert(model: Network, after: str, blocks: int = 1) -> Edited:
    """More blocks behind one of a stage, that start as the identity: the answers stay, which is proved.

    The branch of a new block ends in zeros, so that the block hands on what it receives: behind a ReLU, whose answers
    another ReLU keeps, and in pre-activation. A plain block gets kernels that hand on each channel. Raises
    `UsageError` with the reason where a new block cannot start so.
    """
    (found,) = find(model.plan, [after], ("block",))
    whole(blocks, "insert")
    more = {stage_number(found): (block_number(found), blocks)}
    return _grown(model, more, f"{counted(blocks, 'block')} more behind {found}")


@edit
def deepen(model: Network, blocks: Sequence[int]) -> Edited:
    """As many blocks in each stage as ``blocks`` says, of which the new ones start as the identity (arXiv 1511.05641).

    `insert` says how, and what cannot be. They stand at the end of a stage, or before a last block with the stride.
    """
    have, blocks = [stage.blocks for stage in model.card.spec.stages], several(blocks)  # type: ignore[assignment]
    for count in blocks:
        whole(count, "deepen")
    if len(blocks) != len(have) or any(b < a for a, b in zip(have, blocks, strict=True)):
        what = f"{'-'.join(map(str, blocks)) or 'no'} blocks are not what {'-'.join(map(str, have))} blocks can grow to"
        raise UsageError(what, where="deepen", fix=f"{len(have)} numbers, none smaller than now")
    ends = [stage.blocks - _ends_in_stride(stage) for stage in model.card.spec.stages]
    more = {i: (end, b - a) for i, (end, a, b) in enumerate(zip(ends, have, blocks, strict=True), 1) if b > a}
    return _grown(model, more, "deepened to " + "-".join(map(str, blocks)) + " blocks")


def _grown(model: Network, more: Mapping[int, tuple[int, int]], what: str) -> Edited:
    """``more`` has (block that comes before, how many new ones) for stages by number."""
    spec = model.card.spec
    faults = [fault for i, (at, count) in more.items() for fault in _no_identity(spec, i, at, count)]
    refuse("a new block cannot start as the identity here", faults)
    grown = [replace(s, blocks=s.blocks + more.get(i, (0, 0))[1]) for i, s in enumerate(spec.stages, 1)]
    card = edited(model.card, replace(spec, stages=tuple(grown)), what)
    moved = {new: old for i, (at, n) in more.items() for new, old in _shifted(spec.stages[i - 1], i, at, n)}
    started = [path for path, origin in moved.items() if origin == NOWHERE]
    made = carry(model, card, _identities(card.spec, started), moved=moved)
    told(model, made)
    limit, why = rounded(model)
    return finished(made, compared("the answers", model, made, limit, why=why))


def _shifted(stage: Stage, number: int, at: int, count: int) -> list[tuple[str, str]]:
    """(path, path before) of every block behind the place of new ones, and of those."""
    names = [f"stage{number}.block{b}" for b in range(stage.blocks + count + 1)]
    new = [(names[b], NOWHERE) for b in range(at + 1, at + count + 1)]
    return new + [(names[b + count], names[b]) for b in range(at + 1, stage.blocks + 1)]


def _no_identity(spec: Spec, number: int, at: int, count: int) -> list[Fault]:
    """Why blocks cannot start as the identity there; empty where they can."""
    stage, path = spec.stages[number - 1], f"stage{number}"
    limits = [
        (path, f"{count} blocks", count >= 1, "1 or more"),
        (f"{path}.block{at}", f"the end of a stage whose last block has the stride {stage.reduce.stride}",
         not (_ends_in_stride(stage) and at in (0, stage.blocks)), "behind a block before it"),
        (path, f"activation {spec.activation}", spec.order == "norm-act-conv" or spec.activation == "relu",
         "relu, or pre-activation: activated twice, numbers change"),
        *_plain_limits(spec, stage, path),
        *_shortcut_limits(spec, path),
    ]  # fmt: skip
    return [Fault(where, came, allowed) for where, came, fits, allowed in limits if not fits]


def _ends_in_stride(stage: Stage) -> bool:
    return isinstance(stage.reduce, LastBlock) and stage.reduce.stride > 1


Limits = list[tuple[str, str, bool, str]]


def _plain_limits(spec: Spec, stage: Stage, path: str) -> Limits:
    """Without a shortcut the branch itself has to hand on what it receives."""
    if not isinstance(spec.shortcuts, NoShortcuts):
        return []
    narrow = min(step.channels for step in steps(stage.branch, stage.channels))
    return [
        (
            path,
            f"a branch of {narrow} channels and no shortcut",
            narrow >= stage.channels,
            f"{stage.channels} or more",
        ),
        (path, "a branch in groups", all(s.groups == 1 for s in steps(stage.branch, stage.channels)), "one group"),
        (path, "a plain network of pre-activation", spec.order == "conv-norm-act", "norms behind convolutions"),
        (path, "group norm and no shortcut", not isinstance(spec.norm, GroupNorm), "batch norm, or none"),
        (path, "attention and no shortcut", not stage.attention, "none: it weighs channels"),
    ]


def _shortcut_limits(spec: Spec, path: str) -> Limits:
    same = Identity() if isinstance(spec.shortcuts, NoShortcuts) else spec.shortcuts.same
    able = _offset(same, 1, 1) is not None or _projects_as_identity(spec, same)
    return [(path, f"{type(same).__name__} where nothing differs", able, "shortcuts.same = identity")]


def _projects_as_identity(spec: Spec, adapter: Adapter) -> bool:
    """Whether a projection can start as the identity: it must see the input itself, and no statistics of an image."""
    sees_input = spec.order == "conv-norm-act" and not isinstance(spec.norm, GroupNorm)
    return isinstance(adapter, Projection) and sees_input


# ------------------------------------------------------------------------------------- tensors that make an identity


def _identities(spec: Spec, blocks: Sequence[str]) -> Brought:
    """The tensors of new blocks that start as the identity."""
    shapes, made = tensors_of(plan(spec)), Brought()
    plain = isinstance(spec.shortcuts, NoShortcuts)
    for path in blocks:
        own = {key: shape for key, shape in shapes.items() if key.startswith(path + ".")}
        made |= _handing_on(own, spec) if plain else _zero_ending(own, path)
        made |= _handing_on({key: shape for key, shape in own.items() if key.startswith(f"{path}.shortcut.")}, spec)
    return made


def _zero_ending(shapes: Mapping[str, tuple[int, ...]], path: str) -> Brought:
    """Zeros for the last norm of a branch, or for its last convolution where no norm follows it."""
    inside = [key for key in shapes if key.startswith(f"{path}.branch.") and ".attention." not in key]
    last = inside[-1].rpartition(".")[0]
    ending = [key for key in (f"{last}.weight", f"{last}.bias") if key in shapes]
    return {key: (torch.zeros(shapes[key]), f"zeros, {_AS_IDENTITY}") for key in ending}


def _handing_on(shapes: Mapping[str, tuple[int, ...]], spec: Spec, before: int = 0) -> Brought:
    """Convolutions that hand on each channel, behind ``before`` others, and norms that change nothing."""
    made = {}
    for key, shape in shapes.items():
        if len(shape) == 4:
            made[key] = _hand_on(shape, before)
        elif ".norm" in key and key.endswith("weight") and isinstance(spec.norm, BatchNorm):
            made[key] = torch.full(shape, math.sqrt(1 + spec.norm.eps), dtype=torch.float64)
    return {key: (tensor, f"handing on what comes, {_AS_IDENTITY}") for key, tensor in made.items()}


def _hand_on(shape: tuple[int, ...], before: int) -> Tensor:
    """A kernel (O I H W) whose output ``before + i`` is its input ``i``."""
    weight = torch.zeros(shape)
    count, middle = min(shape[1], shape[0] - before), shape[-1] // 2
    which = torch.arange(count)
    weight[which + before, which, middle, middle] = 1
    return weight


# ------------------------------------------------------------------------------------------------------------- remove


@edit
def remove(model: Network, *places: str) -> Edited:
    """The network without some blocks or stages. Nothing is promised of the answers.

    A block that has the stride of its stage, or changes the number of channels, stays as long as others of the stage
    do. Behind a stage that went, what receives another number of channels starts anew. Raises `UsageError`.
    """
    if not places:
        raise UsageError("nothing is named to be removed", where="remove", fix="a stage, or a block")
    spec, gone = model.card.spec, set(find(model.plan, places, ("stage", "block")))
    refuse("these parts cannot be removed", _needed(spec, gone))
    kept = _remaining(spec, gone)
    stages = [replace(spec.stages[i - 1], blocks=len(blocks)) for i, blocks in kept.items()]
    moved = {
        f"stage{now}.block{b}": f"stage{i}.block{old}"
        for now, (i, blocks) in enumerate(kept.items(), 1)
        for b, old in enumerate(blocks, 1)
    } | {f"stage{now}": f"stage{i}" for now, i in enumerate(kept, 1)}
    left = replace(spec, stages=tuple(stages), head=_handing(spec.head, list(kept)))
    card = edited(model.card, left, "without " + ", ".join(sorted(gone)))
    made = carry(model, card, moved=moved)
    told(model, made, [NOTHING])
    return finished(made)


def _handing(head: Head, kept: list[int]) -> Head:
    """The head behind the stages that are left: the maps of a backbone are named by their numbers."""
    if not isinstance(head, Features):
        return head
    return Features(tuple(now for now, before in enumerate(kept, 1) if before in head.stages))


def _remaining(spec: Spec, gone: set[str]) -> dict[int, list[int]]:
    """The blocks that stay, by the number of their stage; a stage without blocks is gone."""
    blocks = {
        i: [b for b in range(1, stage.blocks + 1) if f"stage{i}.block{b}" not in gone]
        for i, stage in enumerate(spec.stages, 1)
        if f"stage{i}" not in gone
    }
    return {i: left for i, left in blocks.items() if left}


def _needed(spec: Spec, gone: set[str]) -> list[Fault]:
    """What cannot go, and why."""
    kept, received = _remaining(spec, gone), received_channels(spec)
    faults = [] if kept else [Fault("stages", "none is left", "one at least")]
    for i, blocks in kept.items():
        stage = spec.stages[i - 1]
        for b in sorted({1, stage.blocks} - set(blocks)):
            inputs = received[i - 1] if b == 1 else stage.channels
            if block_stride(stage, b) > 1 or inputs != stage.channels:
                change = [f"channels {inputs} -> {stage.channels}"] * (inputs != stage.channels)
                change += [f"stride {block_stride(stage, b)}"] * (block_stride(stage, b) > 1)
                allowed = "another block, or the whole stage"
                faults.append(Fault(f"stage{i}.block{b}", f"it has {' and '.join(change)}", allowed))
    return faults


# ---------------------------------------------------------------------------------------------------------- shortcuts

_OPTIONS: dict[str, Shortcuts | NoShortcuts] = {
    "A": OPTION_A, "B": OPTION_B, "C": OPTION_C, "D": OPTION_D, "none": NoShortcuts(),
}  # fmt: skip


@edit
def shortcuts(model: Network, option: str | Shortcuts | NoShortcuts) -> Edited:
    """Other shortcuts: ``A``, ``B``, ``C``, ``D``, ``none``, or which adapter answers which cause.

    A projection in place of an identity, or of zeros around it, starts as just that: where all changes are of this
    kind the answers stay, which is proved (in evaluation; in training its norm sees batches). Projections that were
    there keep their weights. Raises `UsageError`.
    """
    if not isinstance(option, Shortcuts | NoShortcuts) and str(option) not in _OPTIONS:
        what = f"there is no option called {str(option)!r}"
        raise UsageError(what, where="shortcuts", fix=suggestion(str(option), list(_OPTIONS)))
    new = _OPTIONS[option] if isinstance(option, str) else option
    spec = model.card.spec
    card = edited(model.card, replace(spec, shortcuts=new), "with other shortcuts")
    brought, exact = _answered(spec, card.spec)
    made = carry(model, card, brought)
    told(model, made, [] if exact else [NOTHING])
    limit, why = rounded(model)
    return finished(made, *[compared("the answers", model, made, limit, why=why)] * exact)


def _answered(old: Spec, new: Spec) -> tuple[Brought, bool]:
    """The tensors of projections that stand for what was there, and whether they are all that changes."""
    shapes, brought, exact = tensors_of(plan(new)), Brought(), True
    for path, inputs, outputs, stride in _blocks(new):
        before, now = _adapter(old, inputs, outputs, stride), _adapter(new, inputs, outputs, stride)
        offset = _offset(before, inputs, outputs)
        if before == now:
            continue
        if offset is not None and now is not None and _projects_as_identity(new, now):
            own = {key: shape for key, shape in shapes.items() if key.startswith(f"{path}.shortcut.")}
            brought |= _handing_on(own, new, offset)
        else:
            exact = False
    return brought, exact


def _blocks(spec: Spec) -> list[tuple[str, int, int, int]]:
    """(path, channels received, channels handed on, stride) of every block."""
    return [
        (f"stage{i}.block{b}", received if b == 1 else stage.channels, stage.channels, block_stride(stage, b))
        for i, (stage, received) in enumerate(zip(spec.stages, received_channels(spec), strict=True), 1)
        for b in range(1, stage.blocks + 1)
    ]


def _adapter(spec: Spec, inputs: int, outputs: int, stride: int) -> Adapter | None:
    return None if isinstance(spec.shortcuts, NoShortcuts) else answer_of(spec.shortcuts, inputs, outputs, stride)


def _offset(adapter: Adapter | None, inputs: int, outputs: int) -> int | None:
    """Where the channels of an input begin in what a shortcut hands on; None where it is no picking of pixels."""
    if isinstance(adapter, ZeroPadded):
        return (outputs - inputs) // 2 if adapter.side == "both" else 0
    return 0 if isinstance(adapter, Identity) or adapter == Subsampled(1) else None
