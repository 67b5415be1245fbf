"""Edit the width of branches: copy channels so that nothing changes, or remove the weakest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import parse_stage_number
from resnetkit.architecture.spec import Bottleneck, Chain, GroupNorm, Stage
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import Fault, UsageError
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import check_integer, raise_faults, select_stages
from resnetkit.surgery.transfer import EditResult, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import OUTPUT_CHANGED_NOTE, finish_edit, verify_rounded

# (path of a branch, number of a convolution) -> the group indices that it has from now on
GroupSelector = Callable[[str, int], Tensor]


@check_model_argument
def widen(model: NetworkModule, stage: int | str, width: int, *, seed: int = 0) -> EditResult:
    """Return the network with wider branches in a stage (Net2Net, arXiv 1511.05641).

    The outputs stay, which is verified. New channels are random copies of old ones; the layer that reads them divides
    its weights among the copies. In a grouped convolution whole groups are copied.

    Args:
        model: The network; it does not change.
        stage: The stage, by number or path.
        width: The new number of channels inside the branches.
        seed: The seed for the choice of copies.

    Raises:
        UsageError: several stages are named, or the stage cannot have this width.
    """
    check_integer(width, "widen")
    number, *further_stages = select_stages(model.plan, stage)
    if further_stages:
        raise UsageError("widen takes one stage at a time", where="widen", fix=f"stage{number}, then the next")
    spec = model.card.spec
    raise_faults("this stage cannot be widened", _find_width_faults(spec, number, width, grows=True))
    old_width, group_size = _get_width(spec.stages[number - 1]), _get_group_size(spec.stages[number - 1])
    rng = torch.Generator().manual_seed(seed)

    def select_groups(path: str, conv: int) -> Tensor:
        copies = torch.randint(old_width // group_size, ((width - old_width) // group_size,), generator=rng)
        return torch.cat([torch.arange(old_width // group_size), copies])

    note = "copies that share the weights of the layer that reads them"
    new_model = _apply_widths(model, {number: width}, select_groups, f"stage{number} {width} wide", note)
    return finish_edit(model, new_model, verify_rounded(model, new_model))


@check_model_argument
def prune(model: NetworkModule, keep: float, *, stages: Iterable[int | str] | int | str | None = None) -> EditResult:
    """Return the network with fewer channels inside its branches; its outputs change and are not verified.

    The filters with the largest norms stay; the norm includes the batch norm behind the filter. The channels of a
    stage stay, because the shortcuts tie them together. In a grouped convolution whole groups are removed.

    Args:
        model: The network; it does not change.
        keep: The fraction of channels to keep.
        stages: Stages by number or path; all if None.

    Raises:
        UsageError: ``keep`` is not between 0 and 1, or a stage cannot be pruned.
    """
    spec = model.card.spec
    if not (isinstance(keep, float) and 0 < keep < 1):
        message = f"{str(keep)[:20]} is not a fraction of channels"
        raise UsageError(message, where="prune", fix="a number above 0 and below 1")
    numbers = select_stages(model.plan, range(1, len(spec.stages) + 1) if stages is None else stages)
    widths = {i: _scale_width(spec.stages[i - 1], keep) for i in numbers}
    faults = [fault for i in numbers for fault in _find_width_faults(spec, i, widths[i], grows=False)]
    raise_faults("these stages cannot be pruned", faults)
    tensors = model.state_dict()

    def select_groups(path: str, conv: int) -> Tensor:
        number = parse_stage_number(path)
        group_size = _get_group_size(spec.stages[number - 1])
        norms = _compute_filter_norms(tensors, path, conv).reshape(-1, group_size).sum(1)
        return norms.topk(widths[number] // group_size).indices.sort().values.cpu()

    change = f"with {keep:g} of the channels in its branches"
    new_model = _apply_widths(model, widths, select_groups, change, "the strongest channels")
    return finish_edit(model, new_model, notes=[OUTPUT_CHANGED_NOTE])


def _scale_width(stage: Stage, keep: float) -> int:
    group_size = _get_group_size(stage)
    return max(1, round(_get_width(stage) / group_size * keep)) * group_size


def _get_width(stage: Stage) -> int:
    return 0 if isinstance(stage.branch, Chain) else stage.branch.width


def _get_group_size(stage: Stage) -> int:
    """Return the number of channels that are copied or removed together: those of a group."""
    return _get_width(stage) // _get_groups(stage) if _get_groups(stage) > 1 else 1


def _get_groups(stage: Stage) -> int:
    return stage.branch.groups if isinstance(stage.branch, Bottleneck) else 1


def _find_width_faults(spec: Spec, number: int, width: int, *, grows: bool) -> list[Fault]:
    """Return why a stage cannot have this width."""
    stage, path = spec.stages[number - 1], f"stage{number}.branch"
    if isinstance(stage.branch, Chain):
        return [Fault(path, "a chain, whose steps have their own widths", "basic or bottleneck")]
    size, current = _get_group_size(stage), _get_width(stage)
    faults = []
    if grows and width <= current:
        faults.append(Fault(f"{path}.width", f"{width}, now {current}", f"more than {current}"))
    if width % size:
        faults.append(Fault(f"{path}.width", str(width), f"a multiple of {size}, the channels of a group"))
    if grows and isinstance(spec.norm, GroupNorm):
        faults.append(Fault("norm", "group norm", "batch norm, or none"))
    return faults


# --------------------------------------------------------------------------------------------- tensors of other widths


def repeat_channels(weight: Tensor, channels: Tensor) -> Tensor:
    """Return a kernel for other input channels; copies of a channel share its weights equally.

    Args:
        weight: The kernel (O, I, H, W).
        channels: The old index of each new input channel.
    """
    return weight[:, channels] / torch.bincount(channels)[channels].to(weight)[:, None, None]


def _apply_widths(
    model: NetworkModule, widths: dict[int, int], select_groups: GroupSelector, change: str, note: str
) -> NetworkModule:
    spec, tensors = model.card.spec, model.state_dict()
    stages = [_set_width(s, widths[i]) if i in widths else s for i, s in enumerate(spec.stages, 1)]
    card = edit_card(model.card, replace(spec, stages=tuple(stages)), change)  # checked before tensors are made
    branches = [
        (f"stage{i}.block{b}.branch", spec.stages[i - 1])
        for i in widths
        for b in range(1, spec.stages[i - 1].blocks + 1)
    ]
    new_tensors = {
        key: (tensor, note)
        for path, stage in branches
        for key, tensor in _resize_branch(tensors, path, stage, select_groups).items()
    }
    return transfer(model, card, new_tensors)


def _set_width(stage: Stage, width: int) -> Stage:
    groups = {"groups": width // _get_group_size(stage)} if _get_groups(stage) > 1 else {}
    changes = {"width": width, **groups}
    return replace(stage, branch=replace(stage.branch, **changes))  # type: ignore[arg-type]


def _resize_branch(
    tensors: Mapping[str, Tensor], path: str, stage: Stage, select_groups: GroupSelector
) -> dict[str, Tensor]:
    """Return the tensors of a branch with other inner channels, in the order of its convolutions."""
    group_size = _get_group_size(stage)
    selections = [_expand_groups(select_groups(path, 1), group_size)]
    if isinstance(stage.branch, Bottleneck):
        selections += selections if _get_groups(stage) > 1 else [_expand_groups(select_groups(path, 2), group_size)]
    old_tensors = {key: value for key, value in tensors.items() if key.startswith(path + ".")}
    new_tensors: dict[str, Tensor] = {}
    for i, channels in enumerate(selections, 1):
        for key, value in old_tensors.items():
            if key.startswith((f"{path}.conv{i}.", f"{path}.norm{i}.")) and value.ndim:
                new_tensors[key] = new_tensors.get(key, value)[channels]
        next_key = f"{path}.conv{i + 1}.weight"
        if _get_groups(stage) == 1 or i > 1:  # a group reads its own channels, as many as before
            new_tensors[next_key] = repeat_channels(new_tensors.get(next_key, old_tensors[next_key]), channels)
    return new_tensors


def _expand_groups(group_indices: Tensor, group_size: int) -> Tensor:
    """Return the indices of the channels of groups."""
    return (group_indices[:, None] * group_size + torch.arange(group_size)).flatten()


def _compute_filter_norms(tensors: dict[str, Tensor], path: str, conv: int) -> Tensor:
    """Return the norm of each filter of a convolution, with the batch norm behind it folded in."""
    norms: Tensor = tensors[f"{path}.conv{conv}.weight"].double().flatten(1).norm(dim=1)
    scale = tensors.get(f"{path}.norm{conv}.weight")
    variance = tensors.get(f"{path}.norm{conv}.running_var")
    norms = norms if scale is None else norms * scale.double().abs()
    return norms if variance is None else norms / (variance.double() + 1e-12).sqrt()
