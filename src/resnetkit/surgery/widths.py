"""Wider and narrower branches: channels copied so that nothing changes, or the least ones left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import parse_stage_number
from resnetkit.architecture.spec import Basic, Bottleneck, Chain, GroupNorm, Stage
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import Fault, UsageError
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import check_integer, raise_faults, select_stages
from resnetkit.surgery.strides import OUTPUT_CHANGED_NOTE
from resnetkit.surgery.transfer import EditResult, add_notes, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import finish_edit, select_rounding_limit, verify_equal

ChannelSelector = Callable[
    [str, int], Tensor
]  # (path of a branch, number of a convolution) -> which units it has from now on


@check_model_argument
def widen(model: NetworkModule, stage: int | str, width: int, *, seed: int = 0) -> EditResult:
    """Branches of a stage with more channels inside, the function unchanged (Net2Net, arXiv 1511.05641): proved.

    New channels are copies of others, drawn from ``seed``, and what reads them shares the weights among the copies.
    Of a grouped convolution whole groups are copied. Raises `UsageError` where that cannot be.
    """
    check_integer(width, "widen")
    number, *other_stages = select_stages(model.plan, stage)
    if other_stages:
        raise UsageError("one stage is widened at a time", where="widen", fix=f"stage{number}, then the others")
    spec = model.card.spec
    raise_faults("this stage cannot be widened so", _find_width_faults(spec, number, width, grows=True))
    old_width, group_size = _get_width(spec.stages[number - 1]), _get_group_size(spec.stages[number - 1])
    rng = torch.Generator().manual_seed(seed)

    def select_channels(path: str, conv: int) -> Tensor:
        copies = torch.randint(old_width // group_size, ((width - old_width) // group_size,), generator=rng)
        return torch.cat([torch.arange(old_width // group_size), copies])

    return _apply_widths(model, {number: width}, select_channels, f"stage{number} {width} wide", exact=True)


@check_model_argument
def prune(model: NetworkModule, keep: float, *, stages: Iterable[int | str] | int | str | None = None) -> EditResult:
    """Branches with the share ``keep`` of their channels, those whose filters have the largest norm.

    The norm is that of the filter with the norm behind it folded in. What a stage hands on keeps its channels, as the
    shortcuts tie those of all its blocks together. Of a grouped convolution whole groups go. Nothing is promised of
    the answers; the plan tells what is saved. Raises `UsageError`.
    """
    spec = model.card.spec
    if not (isinstance(keep, float) and 0 < keep < 1):
        message = f"{str(keep)[:20]} of the channels cannot be kept"
        raise UsageError(message, where="prune", fix="a share above 0 and below 1")
    numbers = select_stages(model.plan, range(1, len(spec.stages) + 1) if stages is None else stages)
    widths = {
        i: _scale_width(spec.stages[i - 1], keep) for i in numbers if not isinstance(spec.stages[i - 1].branch, Chain)
    }
    faults = [fault for i in numbers for fault in _find_width_faults(spec, i, widths.get(i, 0), grows=False)]
    raise_faults("these stages cannot be pruned so", faults)
    tensors = model.state_dict()

    def select_channels(path: str, conv: int) -> Tensor:
        number = parse_stage_number(path)
        group_size = _get_group_size(spec.stages[number - 1])
        norms = _compute_filter_norms(tensors, path, conv).reshape(-1, group_size).sum(1)
        return norms.topk(widths[number] // group_size).indices.sort().values.cpu()

    return _apply_widths(model, widths, select_channels, f"with {keep:g} of the channels in its branches", exact=False)


def _scale_width(stage: Stage, keep: float) -> int:
    group_size = _get_group_size(stage)
    return max(1, round(_get_width(stage) / group_size * keep)) * group_size


def _get_width(stage: Stage) -> int:
    return 0 if isinstance(stage.branch, Chain) else stage.branch.width


def _get_group_size(stage: Stage) -> int:
    """How many channels are copied or left out together: those of a group."""
    return (
        _get_width(stage) // stage.branch.groups if isinstance(stage.branch, Bottleneck) and _is_grouped(stage) else 1
    )


def _is_grouped(stage: Stage) -> bool:
    return isinstance(stage.branch, Bottleneck) and stage.branch.groups > 1


def _find_width_faults(spec: Spec, number: int, width: int, *, grows: bool) -> list[Fault]:
    """Why a stage cannot have this width; empty where it can."""
    stage, path = spec.stages[number - 1], f"stage{number}.branch"
    if isinstance(stage.branch, Chain):
        return [Fault(path, "a chain, whose steps have widths of their own", "basic or bottleneck")]
    group_size, current_width = _get_group_size(stage), _get_width(stage)
    allowed_width = f"a multiple of {group_size}, the channels of a group" if group_size > 1 else "more"
    checks = [
        (
            f"{path}.width",
            f"{width}, now {current_width}",
            not grows or width > current_width,
            f"more than {current_width}",
        ),
        (f"{path}.width", str(width), width % group_size == 0, allowed_width),
        ("norm", "group norm", not (grows and isinstance(spec.norm, GroupNorm)), "batch norm, or none"),
    ]
    return [Fault(location, actual, allowed) for location, actual, is_valid, allowed in checks if not is_valid]


# --------------------------------------------------------------------------------------------- tensors of other widths


@dataclass(frozen=True)
class _ChannelSelection:
    """Which channels a convolution of a branch has from now on, and how often each of the old ones is there."""

    indices: Tensor

    def select_rows(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(0, self.indices.to(tensor.device))

    def select_columns(self, weight: Tensor) -> Tensor:
        """Of what reads them (O I H W): copies share the weight."""
        indices = self.indices.to(weight.device)
        counts = torch.bincount(indices)[indices].to(weight)[:, None, None]
        return weight.index_select(1, indices) / counts


def _apply_widths(
    model: NetworkModule, widths: dict[int, int], select_channels: ChannelSelector, change: str, *, exact: bool
) -> EditResult:
    spec = model.card.spec
    stages = [_set_width(s, widths[i]) if i in widths else s for i, s in enumerate(spec.stages, 1)]
    card = edit_card(model.card, replace(spec, stages=tuple(stages)), change)
    tensors = model.state_dict()
    note = "copies that share the weights of what reads them" if exact else "the strongest channels"
    new_tensors = {
        key: (tensor, note)
        for i in widths
        for b in range(1, spec.stages[i - 1].blocks + 1)
        for key, tensor in _resize_branch(
            tensors, f"stage{i}.block{b}.branch", spec.stages[i - 1], select_channels
        ).items()
    }
    new_model = transfer(model, card, new_tensors)
    add_notes(model, new_model, [] if exact else [OUTPUT_CHANGED_NOTE])
    limit, reason = select_rounding_limit(model)
    return finish_edit(new_model, *[verify_equal("the answers", model, new_model, limit, reason=reason)] * exact)


def _set_width(stage: Stage, width: int) -> Stage:
    match stage.branch:
        case Basic():
            return replace(stage, branch=Basic(width))
        case Bottleneck(groups=groups) as branch:
            groups = width // _get_group_size(stage) if groups > 1 else 1
            return replace(stage, branch=replace(branch, width=width, groups=groups))
    return stage


def _resize_branch(
    tensors: Mapping[str, Tensor], path: str, stage: Stage, select_channels: ChannelSelector
) -> dict[str, Tensor]:
    """The tensors of a branch whose inner channels are others, in the order of its convolutions."""
    group_size, selections = _get_group_size(stage), [_expand_groups(select_channels(path, 1), _get_group_size(stage))]
    if isinstance(stage.branch, Bottleneck):
        selections += selections if _is_grouped(stage) else [_expand_groups(select_channels(path, 2), group_size)]
    old_tensors = {key: value for key, value in tensors.items() if key.startswith(path + ".")}
    new_tensors: dict[str, Tensor] = {}
    for i, selection in enumerate(selections, 1):
        for key, value in old_tensors.items():
            if key.startswith((f"{path}.conv{i}.", f"{path}.norm{i}.")) and value.ndim:
                new_tensors[key] = selection.select_rows(new_tensors.get(key, value))
        next_key = f"{path}.conv{i + 1}.weight"
        if not (_is_grouped(stage) and i == 1):  # a group reads its own channels, as many as before
            new_tensors[next_key] = selection.select_columns(new_tensors.get(next_key, old_tensors[next_key]))
    return new_tensors


def _expand_groups(group_indices: Tensor, group_size: int) -> _ChannelSelection:
    """Groups as the channels that they are made of."""
    return _ChannelSelection((group_indices[:, None] * group_size + torch.arange(group_size)).flatten())


def _compute_filter_norms(tensors: dict[str, Tensor], path: str, conv: int) -> Tensor:
    """The norm of each filter of a convolution, with the norm behind it folded in."""
    norms: Tensor = tensors[f"{path}.conv{conv}.weight"].double().flatten(1).norm(dim=1)
    scale = tensors.get(f"{path}.norm{conv}.weight")
    variance = tensors.get(f"{path}.norm{conv}.running_var")
    norms = norms if scale is None else norms * scale.double().abs()
    return norms if variance is None else norms / (variance.double() + 1e-12).sqrt()
