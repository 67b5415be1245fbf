"""One way to change a network: a new card, a new plan, a new module, and every tensor that still fits, by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.card import Card, Preparation
from resnetkit.architecture.rules import require
from resnetkit.architecture.spec import with_classes as with_class_count
from resnetkit.architecture.tensors import STEM
from resnetkit.errors import UsageError
from resnetkit.network.build import build, class_names
from resnetkit.network.layers import Network
from resnetkit.network.report import Report

Adapted = Mapping[str, tuple[Tensor, str]]


def carry(model: Network, card: Card, adapted: Adapted | None = None, *, anew: str = "", seed: int = 0) -> Network:
    """A new network of this card, on the same device, in the same type and mode; ``model`` stays as it is.

    Tensors of equal path and shape are kept; ``adapted`` brings others, and says how; the rest, and what begins with
    ``anew``, is as `build` starts it from ``seed``. ``report`` accounts for each of them.
    """
    first = next(model.parameters(), torch.empty(0))
    made = build(card.spec, seed=seed, device=first.device, dtype=first.dtype)
    made.card = card
    old, new, brought = model.state_dict(), made.state_dict(), dict(adapted or {})
    fits = [key for key in new if key in old and key not in brought and old[key].shape == new[key].shape]
    kept = [key for key in fits if not (anew and key.startswith(anew))]
    with torch.no_grad():
        for key, value in new.items():
            if key in brought:
                value.copy_(brought[key][0])
            elif key in kept:
                value.copy_(old[key])
    started = [key for key in new if key not in brought and key not in kept]
    made.report = Report(
        tuple(kept),
        {},
        {key: how for key, (_, how) in brought.items()},
        dict.fromkeys(started, "new"),
        tuple(key for key in old if key not in new),
    )
    return made.train(model.training)


def with_classes(model: Network, classes: int | Sequence[str], *, seed: int = 0) -> Network:
    """The same network with a new classifier, behind its hidden layers; raises `UsageError` for what are no classes."""
    names, count = class_names(classes)
    card = model.card
    spec = with_class_count(card.spec, count)
    require(spec)
    origin = f"{card.origin}, with a new classifier"
    return carry(
        model, replace(card, spec=spec, classes=names, figures=(), origin=origin), anew="head.linear.", seed=seed
    )


def with_input_channels(model: Network, channels: int) -> Network:
    """The same network for images of so many channels; raises `UsageError` where that cannot be.

    One channel has the sum of the weights of all: the same answers as an image whose channels are alike where they
    reach the network. From one to several each has its share; beside several, new channels have zeros: the same
    answers, whatever they hold.
    """
    card, before = model.card, model.card.spec.input[0]
    weight = model.state_dict().get(STEM)
    if channels == before:
        return model
    if weight is None:
        raise UsageError("this network has no convolution in its stem to adapt", where="input_channels")
    if type(channels) is not int or channels < 1 or 1 < channels < before:
        what = f"a network for {before} channels is not made one for {str(channels)[:20]}"
        raise UsageError(what, where="input_channels", fix=f"1, or more than {before}")
    spec = replace(card.spec, input=(channels, *card.spec.input[1:]))
    require(spec)
    made, how = _for_channels(weight, channels)
    origin = f"{card.origin}, for {channels} input channel{'s' * (channels > 1)}"
    said = tuple(line for line in card.assumed if not line.startswith(("an image is ", "images are ")))
    told = replace(card, spec=spec, preparation=_prepared(card.preparation, channels), origin=origin, assumed=said)
    return carry(model, told, {STEM: (made, how)})


def _for_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True), f"the sum of {before} channels"
    if before == 1:
        return weight.expand(-1, channels, -1, -1) / channels, f"1/{channels} for each channel"
    more = weight.new_zeros(weight.shape[0], channels - before, *weight.shape[2:])
    return torch.cat([weight, more], 1), f"zeros for {channels - before} more channels"


def _prepared(how: Preparation, channels: int) -> Preparation:
    """For so many channels: the mean of the statistics, the same ones again, or none for what is added."""
    more = channels - len(how.mean)
    if channels == 1:
        return replace(how, mean=(sum(how.mean) / len(how.mean),), std=(sum(how.std) / len(how.std),))
    if len(how.mean) == 1:
        return replace(how, mean=how.mean * channels, std=how.std * channels)
    return replace(how, mean=(*how.mean, *(0.0,) * more), std=(*how.std, *(1.0,) * more))
