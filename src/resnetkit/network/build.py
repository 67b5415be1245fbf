"""From a spec to a module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from resnetkit.architecture.card import Card, make_card
from resnetkit.architecture.catalog import get_network_name, spec
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Features, count_classes, replace_classes
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError
from resnetkit.network.init import initialize_weights
from resnetkit.network.layers import Backbone, NetworkModule, build_module, get_child_name


def build(
    network: str | Path | Spec,
    classes: int | Sequence[str] | None = None,
    *,
    seed: int = 0,
    zero_last_norm: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NetworkModule:
    """An `nn.Module` for a name, a ``.toml`` or ``.json`` file, or a spec; N C H W in, N classes out.

    ``classes`` is a number or the names. On the ``meta`` device there are shapes and no numbers. Raises `SpecError`
    with every fault of the spec and `UsageError` for an unknown name.
    """
    network_spec = spec(network)
    names: tuple[str, ...] = ()
    if classes is not None:
        names, n_classes = parse_classes(classes)
        if not count_classes(network_spec.head):
            raise UsageError("this network has no classifier to give classes to", where="classes")
        network_spec = replace_classes(network_spec, n_classes)
    model = build_meta_network(make_card(get_network_name(network), network_spec, names)).to(dtype)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    initialize_weights(model, seed=seed, zero_last_norm=zero_last_norm)
    return model


def parse_classes(classes: int | Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The names of classes, if they have any, and how many there are; raises `UsageError` for what are no classes."""
    names = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
    n_classes = classes if isinstance(classes, int) and not isinstance(classes, bool) else len(names)
    is_valid = all(isinstance(name, str) and name and name.isprintable() for name in names)
    if n_classes < 1 or not is_valid or len(names) != len(set(names)):
        what = "a classifier needs a number of classes, or a list of names, each once"
        raise UsageError(what, where="classes", fix="1 or more")
    return names, n_classes


def build_meta_network(card: Card, network_plan: Plan | None = None) -> NetworkModule:
    """The module of a card on the meta device: every shape, no number, no time. ``worked_out`` is its known plan."""
    network_plan = network_plan or plan(card.spec)
    network_class = Backbone if isinstance(card.spec.head, Features) else NetworkModule
    return network_class(
        network_plan, card, [(get_child_name(part), build_module(part)) for part in network_plan.root.children]
    )
