"""One way to change a network: a new card, a new plan, a new module, and every tensor that still fits, by path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.card import Card, Preparation
from resnetkit.architecture.spec import Linear
from resnetkit.errors import UsageError
from resnetkit.network.build import build
from resnetkit.network.layers import Network
from resnetkit.network.report import Report

Adapted = Mapping[str, tuple[Tensor, str]]
_STEM = "stem.conv1.weight"


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
    """The same body with a new linear classifier."""
    names = () if isinstance(classes, int) else tuple(classes)
    count = classes if isinstance(classes, int) else len(names)
    if count < 1:
        raise UsageError("a classifier needs a class or more", where="classes", fix="1 or more")
    spec = replace(model.card.spec, head=Linear(count))
    return carry(model, replace(model.card, spec=spec, classes=names), anew="head.", seed=seed)


def with_input_channels(model: Network, channels: int) -> Network:
    """The same network for images of so many channels.

    One channel has the sum of the weights of all: the same answers as an image whose channels are all like it. From one
    to several each has its share; beside several, new channels have zeros: the same answers, whatever they hold.
    """
    spec = model.card.spec
    before = spec.input[0]
    if channels == before:
        return model
    weight = model.state_dict().get(_STEM)
    if channels < 1 or 1 < channels < before or weight is None:
        what = f"a network for {before} channels is not made one for {channels}"
        raise UsageError(what, where="input_channels", fix=f"1, or more than {before}")
    if channels == 1:
        made, how = weight.sum(1, keepdim=True), f"the sum of {before} channels"
    elif before == 1:
        made, how = weight.expand(-1, channels, -1, -1) / channels, f"1/{channels} for each channel"
    else:
        more = weight.new_zeros(weight.shape[0], channels - before, *weight.shape[2:])
        made, how = torch.cat([weight, more], 1), f"zeros for {channels - before} more channels"
    image = (channels, *spec.input[1:])
    prepared = _prepared(model.card.preparation, channels)
    return carry(
        model, replace(model.card, spec=replace(spec, input=image), preparation=prepared), {_STEM: (made, how)}
    )


def _prepared(how: Preparation, channels: int) -> Preparation:
    """For so many channels: the mean of the statistics, the same ones again, or none for what is added."""
    more = channels - len(how.mean)
    if channels == 1:
        return replace(how, mean=(sum(how.mean) / len(how.mean),), std=(sum(how.std) / len(how.std),))
    if len(how.mean) == 1:
        return replace(how, mean=how.mean * channels, std=how.std * channels)
    return replace(how, mean=(*how.mean, *(0.0,) * more), std=(*how.std, *(1.0,) * more))
