"""From a spec to a module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from resnetkit.architecture.card import Card, card_for
from resnetkit.architecture.catalog import name_of, spec
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Features, class_count, with_classes
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError
from resnetkit.network.init import initialise
from resnetkit.network.layers import Backbone, Network, module, name


def build(
    network: str | Path | Spec,
    classes: int | Sequence[str] | None = None,
    *,
    seed: int = 0,
    zero_last_norm: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Network:
    """An `nn.Module` for a name, a ``.toml`` or ``.json`` file, or a spec; N C H W in, N classes out.

    ``classes`` is a number or the names. On the ``meta`` device there are shapes and no numbers. Raises `SpecError`
    with every fault of the spec and `UsageError` for an unknown name.
    """
    described = spec(network)
    names: tuple[str, ...] = ()
    if classes is not None:
        names, count = class_names(classes)
        if not class_count(described.head):
            raise UsageError("this network has no classifier to give classes to", where="classes")
        described = with_classes(described, count)
    model = shell(card_for(name_of(network), described, names)).to(dtype)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    initialise(model, seed=seed, zero_last_norm=zero_last_norm)
    return model


def class_names(classes: int | Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The names of classes, if they have any, and how many there are; raises `UsageError` for what are no classes."""
    names = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
    count = classes if isinstance(classes, int) and not isinstance(classes, bool) else len(names)
    plain = all(isinstance(name, str) and name and name.isprintable() for name in names)
    if count < 1 or not plain or len(names) != len(set(names)):
        what = "a classifier needs a number of classes, or a list of names, each once"
        raise UsageError(what, where="classes", fix="1 or more")
    return names, count


def shell(card: Card, worked_out: Plan | None = None) -> Network:
    """The module of a card on the meta device: every shape, no number, no time. ``worked_out`` is its known plan."""
    worked_out = worked_out or plan(card.spec)
    kind = Backbone if isinstance(card.spec.head, Features) else Network
    return kind(worked_out, card, [(name(part), module(part)) for part in worked_out.root.children])
