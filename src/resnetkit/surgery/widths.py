"""Wider and narrower branches: channels copied so that nothing changes, or the least ones left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import stage_number
from resnetkit.architecture.spec import Basic, Bottleneck, Chain, GroupNorm, Stage
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import Fault, UsageError
from resnetkit.network.layers import Network
from resnetkit.surgery.select import refuse, whole
from resnetkit.surgery.select import stages as chosen_stages
from resnetkit.surgery.strides import NOTHING
from resnetkit.surgery.transfer import Edited, carry, edit, edited, told
from resnetkit.surgery.verify import compared, finished, rounded

Choose = Callable[[str, int], Tensor]  # (path of a branch, number of a convolution) -> which units it has from now on


@edit
def widen(model: Network, stage: int | str, width: int, *, seed: int = 0) -> Edited:
    """Branches of a stage with more channels inside, the function unchanged (Net2Net, arXiv 1511.05641): proved.

    New channels are copies of others, drawn from ``seed``, and what reads them shares the weights among the copies.
    Of a grouped convolution whole groups are copied. Raises `UsageError` where that cannot be.
    """
    whole(width, "widen")
    number, *more = chosen_stages(model.plan, stage)
    if more:
        raise UsageError("one stage is widened at a time", where="widen", fix=f"stage{number}, then the others")
    spec = model.card.spec
    refuse("this stage cannot be widened so", _unable(spec, number, width, grows=True))
    before, unit = _width(spec.stages[number - 1]), _unit(spec.stages[number - 1])
    draw = torch.Generator().manual_seed(seed)

    def choose(path: str, conv: int) -> Tensor:
        more = torch.randint(before // unit, ((width - before) // unit,), generator=draw)
        return torch.cat([torch.arange(before // unit), more])

    return _rewidened(model, {number: width}, choose, f"stage{number} {width} wide", exact=True)


@edit
def prune(model: Network, keep: float, *, stages: Iterable[int | str] | int | str | None = None) -> Edited:
    """Branches with the share ``keep`` of their channels, those whose filters have the largest norm.

    The norm is that of the filter with the norm behind it folded in. What a stage hands on keeps its channels, as the
    shortcuts tie those of all its blocks together. Of a grouped convolution whole groups go. Nothing is promised of
    the answers; the plan tells what is saved. Raises `UsageError`.
    """
    spec = model.card.spec
    if not (isinstance(keep, float) and 0 < keep < 1):
        what = f"{str(keep)[:20]} of the channels cannot be kept"
        raise UsageError(what, where="prune", fix="a share above 0 and below 1")
    numbers = chosen_stages(model.plan, range(1, len(spec.stages) + 1) if stages is None else stages)
    widths = {i: _share(spec.stages[i - 1], keep) for i in numbers if not isinstance(spec.stages[i - 1].branch, Chain)}
    faults = [fault for i in numbers for fault in _unable(spec, i, widths.get(i, 0), grows=False)]
    refuse("these stages cannot be pruned so", faults)
    tensors = model.state_dict()

    def choose(path: str, conv: int) -> Tensor:
        number = stage_number(path)
        unit = _unit(spec.stages[number - 1])
        strength = _strength(tensors, path, conv).reshape(-1, unit).sum(1)
        return strength.topk(widths[number] // unit).indices.sort().values.cpu()

    return _rewidened(model, widths, choose, f"with {keep:g} of the channels in its branches", exact=False)


def _share(stage: Stage, keep: float) -> int:
    unit = _unit(stage)
    return max(1, round(_width(stage) / unit * keep)) * unit


def _width(stage: Stage) -> int:
    return 0 if isinstance(stage.branch, Chain) else stage.branch.width


def _unit(stage: Stage) -> int:
    """How many channels are copied or left out together: those of a group."""
    return _width(stage) // stage.branch.groups if isinstance(stage.branch, Bottleneck) and _grouped(stage) else 1


def _grouped(stage: Stage) -> bool:
    return isinstance(stage.branch, Bottleneck) and stage.branch.groups > 1


def _unable(spec: Spec, number: int, width: int, *, grows: bool) -> list[Fault]:
    """Why a stage cannot have this width; empty where it can."""
    stage, path = spec.stages[number - 1], f"stage{number}.branch"
    if isinstance(stage.branch, Chain):
        return [Fault(path, "a chain, whose steps have widths of their own", "basic or bottleneck")]
    unit, have = _unit(stage), _width(stage)
    whole = f"a multiple of {unit}, the channels of a group" if unit > 1 else "more"
    limits = [
        (f"{path}.width", f"{width}, now {have}", not grows or width > have, f"more than {have}"),
        (f"{path}.width", str(width), width % unit == 0, whole),
        ("norm", "group norm", not (grows and isinstance(spec.norm, GroupNorm)), "batch norm, or none"),
    ]
    return [Fault(where, came, allowed) for where, came, fits, allowed in limits if not fits]


# --------------------------------------------------------------------------------------------- tensors of other widths


@dataclass(frozen=True)
class _Rewidth:
    """Which channels a convolution of a branch has from now on, and how often each of the old ones is there."""

    index: Tensor

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor.index_select(0, self.index.to(tensor.device))

    def columns(self, weight: Tensor) -> Tensor:
        """Of what reads them (O I H W): copies share the weight."""
        index = self.index.to(weight.device)
        shares = torch.bincount(index)[index].to(weight)[:, None, None]
        return weight.index_select(1, index) / shares


def _rewidened(model: Network, widths: dict[int, int], choose: Choose, what: str, *, exact: bool) -> Edited:
    spec = model.card.spec
    stages = [_with_width(s, widths[i]) if i in widths else s for i, s in enumerate(spec.stages, 1)]
    card = edited(model.card, replace(spec, stages=tuple(stages)), what)
    tensors = model.state_dict()
    how = "copies that share the weights of what reads them" if exact else "the strongest channels"
    brought = {
        key: (tensor, how)
        for i in widths
        for b in range(1, spec.stages[i - 1].blocks + 1)
        for key, tensor in _branch(tensors, f"stage{i}.block{b}.branch", spec.stages[i - 1], choose).items()
    }
    made = carry(model, card, brought)
    told(model, made, [] if exact else [NOTHING])
    limit, why = rounded(model)
    return finished(made, *[compared("the answers", model, made, limit, why=why)] * exact)


def _with_width(stage: Stage, width: int) -> Stage:
    match stage.branch:
        case Basic():
            return replace(stage, branch=Basic(width))
        case Bottleneck(groups=groups) as branch:
            groups = width // _unit(stage) if groups > 1 else 1
            return replace(stage, branch=replace(branch, width=width, groups=groups))
    return stage


def _branch(tensors: Mapping[str, Tensor], path: str, stage: Stage, choose: Choose) -> dict[str, Tensor]:
    """The tensors of a branch whose inner channels are others, in the order of its convolutions."""
    unit, inner = _unit(stage), [_whole(choose(path, 1), _unit(stage))]
    if isinstance(stage.branch, Bottleneck):
        inner += inner if _grouped(stage) else [_whole(choose(path, 2), unit)]
    old = {key: value for key, value in tensors.items() if key.startswith(path + ".")}
    made: dict[str, Tensor] = {}
    for i, chosen in enumerate(inner, 1):
        for key, value in old.items():
            if key.startswith((f"{path}.conv{i}.", f"{path}.norm{i}.")) and value.ndim:
                made[key] = chosen.rows(made.get(key, value))
        following = f"{path}.conv{i + 1}.weight"
        if not (_grouped(stage) and i == 1):  # a group reads its own channels, as many as before
            made[following] = chosen.columns(made.get(following, old[following]))
    return made


def _whole(units: Tensor, size: int) -> _Rewidth:
    """Groups as the channels that they are made of."""
    return _Rewidth((units[:, None] * size + torch.arange(size)).flatten())


def _strength(tensors: dict[str, Tensor], path: str, conv: int) -> Tensor:
    """The norm of each filter of a convolution, with the norm behind it folded in."""
    size: Tensor = tensors[f"{path}.conv{conv}.weight"].double().flatten(1).norm(dim=1)
    scale = tensors.get(f"{path}.norm{conv}.weight")
    spread = tensors.get(f"{path}.norm{conv}.running_var")
    size = size if scale is None else size * scale.double().abs()
    return size if spread is None else size / (spread.double() + 1e-12).sqrt()
