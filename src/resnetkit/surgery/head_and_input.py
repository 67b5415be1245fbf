"""What goes in and what comes out: channels of the image, classes, heads, and where the network ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation
from resnetkit.architecture.operations import Convolution
from resnetkit.architecture.plan import Place, block_number, stage_number
from resnetkit.architecture.rules import block_stride, require
from resnetkit.architecture.spec import (
    Features,
    FirstBlock,
    Head,
    NoHead,
    NoShortcuts,
    PoolAfter,
    Pooled,
    Stage,
    class_count,
    with_classes,
)
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError, suggestion
from resnetkit.formatting import counted
from resnetkit.network.build import class_names
from resnetkit.network.layers import Network
from resnetkit.network.report import Proof
from resnetkit.surgery.select import find
from resnetkit.surgery.select import stages as chosen_stages
from resnetkit.surgery.transfer import Adapted, Edited, carry, edit, edited, told
from resnetkit.surgery.verify import EXACT, Maps, answer, at, compared, finished, images, in_rows, rounded

_CLASSIFIER = ("head.linear.weight", "head.linear.bias")

# ------------------------------------------------------------------------------------------------------------ classes


@edit
def classes(model: Network, classes: int | Sequence[str], *, seed: int = 0) -> Edited:
    """Another classifier, behind the same hidden layers: a number of classes, or their names.

    Classes that the network knows by name keep their rows, and so their logits (proved); the others start from
    ``seed``. Raises `UsageError` for what are no classes.
    """
    names, count = class_names(classes)
    card = model.card
    made = edited(card, with_classes(card.spec, count), "with a new classifier", classes=names)
    places = {name: i for i, name in enumerate(card.classes)}
    known = [(new, places[name]) for new, name in enumerate(names) if name in places]
    fresh = carry(model, made, anew="head.linear.", seed=seed)
    if not known:
        told(model, fresh)
        return finished(fresh)
    changed = carry(model, made, _rows(model, fresh, known), anew="head.linear.", seed=seed)
    told(model, changed)
    new, old = ([pair[i] for pair in known] for i in (0, 1))
    what = f"the logits of {counted(len(known), 'class')} that stayed"
    return finished(changed, compared(what, model, changed, EXACT, before=_columns(old), after=_columns(new)))


def _rows(model: Network, fresh: Network, known: Sequence[tuple[int, int]]) -> Adapted:
    """The new classifier with the rows of classes that are known, as (new, old) numbers."""
    how, brought = f"{len(known)} of {class_count(fresh.card.spec.head)} rows kept, by name", {}
    new, old = ([pair[i] for pair in known] for i in (0, 1))
    before, after = model.state_dict(), fresh.state_dict()
    for key in _CLASSIFIER:
        tensor = after[key].clone()
        tensor[new] = before[key][old]
        brought[key] = (tensor, how)
    return brought


def _columns(chosen: list[int]) -> Maps:
    return lambda network, x: network(x)[:, chosen]


# ------------------------------------------------------------------------------------------------------ input channels

_WAYS = ("zero", "mean", "cyclic")


@edit
def input_channels(model: Network, channels: int, *, how: str = "zero") -> Edited:
    """The same network for images of so many channels; raises `UsageError` where that cannot be.

    One channel has the sum of the weights of all: the answers are those for an image whose channels are alike. From
    one to several each has its share. Beside several, new channels are ``zero``, so that they have no influence; or
    ``mean``: each has the mean of the others, and all are made smaller, so that an image of equal channels is answered
    as before; or ``cyclic``: they repeat the others in turn, which share their weights, so that an image whose
    channels repeat in the same way is. All of that is proved.
    """
    card, before = model.card, model.card.spec.input[0]
    _require_channels(model, channels, how)
    if channels == before:
        made = carry(model, card)
        return finished(made)
    first = f"{model.plan.nodes[0].path}.weight"
    what = f"for {counted(channels, 'input channel')}"
    kept = tuple(line for line in card.assumed if not line.startswith(("an image is ", "images are ")))
    new = edited(card, replace(card.spec, input=(channels, *card.spec.input[1:])), what,
                 preparation=_prepared(card.preparation, channels), assumed=kept)  # fmt: skip
    weight = model.state_dict()[first]
    tensor, said = _for_channels(weight.double(), channels, how)
    made = carry(model, new, {first: (tensor.to(weight.dtype), said)})
    told(model, made, [_GREY] * (channels == 1))
    return finished(made, _same_answers(model, made, how))


_GREY = "a grey picture is prepared with the mean of the channels' statistics, which no repeated one is: a little apart"


def _require_channels(model: Network, channels: int, how: str) -> None:
    before = model.card.spec.input[0]
    if how not in _WAYS:
        what = f"there is no way called {str(how)!r}"
        raise UsageError(what, where="input_channels", fix=suggestion(str(how), _WAYS))
    if type(channels) is not int or channels < 1 or 1 < channels < before:
        what = f"a network for {before} channels is not made one for {str(channels)[:20]}"
        raise UsageError(what, where="input_channels", fix=f"1, or more than {before}")
    require(replace(model.card.spec, input=(channels, *model.card.spec.input[1:])))
    alone = model.card.spec.stem.convs or isinstance(model.card.spec.shortcuts, NoShortcuts)
    op = model.plan.nodes[0].op
    if not (alone and isinstance(op, Convolution) and op.groups == 1):
        what = "this network has no convolution that alone sees the image, so there is none to adapt"
        raise UsageError(what, where="input_channels", fix="a network with a stem")


def _for_channels(weight: Tensor, channels: int, how: str) -> tuple[Tensor, str]:
    before = weight.shape[1]
    more = channels - before
    if channels == 1:
        return weight.sum(1, keepdim=True), f"the sum of {before} channels"
    if before == 1:
        return weight.expand(-1, channels, -1, -1) / channels, f"1/{channels} for each channel"
    if how == "mean":
        mean = weight.mean(1, keepdim=True).expand(-1, more, -1, -1)
        said = f"the mean for {more} more channels, {before}/{channels} of all"
        return torch.cat([weight, mean], 1) * (before / channels), said
    if how == "cyclic":
        turn = torch.arange(channels) % before
        shares = torch.bincount(turn)[turn].to(weight)[:, None, None]
        return weight[:, turn] / shares, f"{before} channels in turn, which share their weights"
    zeros = weight.new_zeros(weight.shape[0], more, *weight.shape[2:])
    return torch.cat([weight, zeros], 1), f"zeros for {more} more channels"


def _same_answers(model: Network, made: Network, how: str) -> Proof:
    """On images for which old and new network are the same function."""
    before, after = model.card.spec.input[0], made.card.spec.input[0]
    grey = 1 in (before, after) or how == "mean"
    seen = [x[:, :1] if grey else x for x in images(model.card.spec)]
    what = "the answers for an image of equal channels" if grey else "the answers for an image whose channels repeat"
    what = what if grey or how == "cyclic" else f"the answers, whatever the {after - before} new channels hold"
    limit, why = rounded(model)

    def old(network: Network, x: Tensor) -> Tensor:
        return answer(network, x.expand(-1, before, -1, -1) if grey else x)

    def new(network: Network, x: Tensor) -> Tensor:
        return answer(network, _shown(x, after, how, grey=grey))

    return compared(what, model, made, limit, why=why, before=old, after=new, given=seen)


def _shown(x: Tensor, channels: int, how: str, *, grey: bool) -> Tensor:
    if grey:
        return x.expand(-1, channels, -1, -1)
    if how == "cyclic":
        return x[:, torch.arange(channels) % x.shape[1]]
    draw = torch.Generator().manual_seed(1)
    more = torch.randn(len(x), channels - x.shape[1], *x.shape[2:], generator=draw, dtype=x.dtype)
    return torch.cat([x, more.to(x.device)], 1)


def _prepared(how: Preparation, channels: int) -> Preparation:
    """For so many channels: the mean of the statistics, the same ones again, or none for what is added."""
    more = channels - len(how.mean)
    if channels == 1:
        return replace(how, mean=(sum(how.mean) / len(how.mean),), std=(sum(how.std) / len(how.std),))
    if len(how.mean) == 1:
        return replace(how, mean=how.mean * channels, std=how.std * channels)
    return replace(how, mean=(*how.mean, *(0.0,) * more), std=(*how.std, *(1.0,) * more))


# ------------------------------------------------------------------------------------------------ heads, cuts, features

_HEADS: dict[str, Head] = {"none": NoHead(), "pooled": Pooled()}


@edit
def head(model: Network, kind: str) -> Edited:
    """Without the classifier: ``pooled`` hands on the average of the last map (N C), ``none`` the map itself (N C H W).

    What it hands on is what the whole network has there, which is proved. `classes` gives it a classifier again.
    """
    if str(kind) not in _HEADS:
        fix = suggestion(str(kind), list(_HEADS), "none or pooled; classes gives a classifier")
        raise UsageError(f"there is no head called {str(kind)!r}", where="head", fix=fix)
    spec = replace(model.card.spec, head=_HEADS[kind])
    made = carry(model, edited(model.card, spec, "without its classifier", classes=()))
    told(model, made)
    last = f"stage{len(spec.stages)}"
    if kind == "none":
        return finished(made, compared(f"the maps of {last}", model, made, EXACT, before=at(last)))
    behind = "head.act" if made.card.spec.order == "norm-act-conv" else last
    if behind not in model.plan.parts:  # the norm that ends a pre-activation network is part of its head, and new
        return finished(made)
    return finished(made, compared("the averages of the last maps", model, made, EXACT, before=_averaged(behind)))


def _averaged(place: str) -> Maps:
    return lambda network, x: at(place)(network, x).mean((2, 3))


@edit
def cut(model: Network, place: str) -> Edited:
    """The network up to a stage or a block, which hands on the map that it has there (proved: the same numbers)."""
    (found,) = find(model.plan, [place], ("stage", "block"))
    spec = _until(model.card.spec, found)
    made = carry(model, edited(model.card, replace(spec, head=NoHead()), f"cut behind {found}", classes=()))
    told(model, made)
    return finished(made, compared(f"the maps of {found}", model, made, EXACT, before=at(found)))


def _until(spec: Spec, place: str) -> Spec:
    """The stages up to a place; one that is cut has neither a pool behind it nor a stride in a block that is gone."""
    number = stage_number(place)
    kept = list(spec.stages[:number])
    if "." in place:
        kept[-1] = shortened(kept[-1], block_number(place))
    return replace(spec, stages=tuple(kept))


def shortened(stage: Stage, blocks: int) -> Stage:
    """The first ``blocks`` of a stage."""
    whole = blocks == stage.blocks and not isinstance(stage.reduce, PoolAfter)
    keeps = whole or block_stride(stage, 1) > 1
    return replace(stage, blocks=blocks, reduce=stage.reduce if keeps else FirstBlock())


@edit
def features(model: Network, stages: Iterable[int | str] | int | str) -> Edited:
    """A backbone: it hands on the maps of some stages, ``{"stage2": N C H W, ...}``, and ends behind the last of them.

    ``model.maps`` tells of each its ``output`` (channels, height, width), ``stride`` and ``receptive_field``. The maps
    are those of the whole network, which is proved. Raises `UsageError`.
    """
    numbers = chosen_stages(model.plan, stages)
    spec = replace(model.card.spec, stages=model.card.spec.stages[: numbers[-1]], head=Features(tuple(numbers)))
    made = carry(model, edited(model.card, spec, f"as a backbone of {counted(len(numbers), 'map')}", classes=()))
    told(model, made, [_described(name, place) for name, place in made.maps.items()])
    names = list(made.maps)

    def before(network: Network, x: Tensor) -> Tensor:
        return in_rows(network.features(x, names))

    return finished(made, compared("the maps of " + ", ".join(names), model, made, EXACT, before=before))


def _described(name: str, place: Place) -> str:
    return f"{name}: {place.output[0]} channels, stride {place.stride}, each pixel sees {place.receptive_field}"
