"""Build the module of a spec."""

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
from resnetkit.network.layers import Backbone, NetworkModule, build_children


def build(
    network: str | Path | Spec,
    classes: int | Sequence[str] | None = None,
    *,
    seed: int = 0,
    zero_last_norm: bool = False,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> NetworkModule:
    """Build the network of a name, a ``.toml`` or ``.json`` file, or a spec, with random weights.

    The module takes (N, C, H, W) and returns (N, classes).

    Args:
        network: the name, file or spec.
        classes: the number of classes, or their names.
        seed: the seed of the random weights.
        zero_last_norm: start every block as its shortcut, see `initialize_weights`.
        device: the device; the default device of torch if None. On ``meta`` the tensors have shapes but no data.
        dtype: the type of the weights.

    Raises:
        SpecError: with all faults of the spec.
        UsageError: an unknown name, or classes that the network cannot have.
    """
    network_spec = spec(network)
    names: tuple[str, ...] = ()
    if classes is not None:
        names, n_classes = parse_classes(classes)
        if not count_classes(network_spec.head):
            raise UsageError("this network has no classifier, so it cannot have classes", where="classes")
        network_spec = replace_classes(network_spec, n_classes)
    model = build_meta_network(make_card(get_network_name(network), network_spec, names)).to(dtype)
    target = torch.get_default_device() if device is None else torch.device(device)
    if target.type == "meta":
        return model
    model.to_empty(device=target)
    initialize_weights(model, seed=seed, zero_last_norm=zero_last_norm)
    return model


def parse_classes(classes: int | Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return the class names, if they have any, and the number of classes.

    Raises:
        UsageError: no classes, or names that are empty, repeated or not printable.
    """
    names = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
    n_classes = classes if isinstance(classes, int) and not isinstance(classes, bool) else len(names)
    is_valid = all(isinstance(name, str) and name and name.isprintable() for name in names)
    if n_classes < 1 or not is_valid or len(names) != len(set(names)):
        what = "a classifier needs a number of classes, or a list of different names"
        raise UsageError(what, where="classes", fix="1 or more")
    return names, n_classes


def build_meta_network(card: Card, network_plan: Plan | None = None) -> NetworkModule:
    """Build the module of a card on the meta device, which takes no memory and little time.

    Args:
        card: the card.
        network_plan: the plan of its spec, if the caller has it.
    """
    network_plan = network_plan or plan(card.spec)
    network_class = Backbone if isinstance(card.spec.head, Features) else NetworkModule
    return network_class(network_plan, card, build_children(network_plan.root))
