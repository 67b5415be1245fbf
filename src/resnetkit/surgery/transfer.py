"""The one way to edit a network: a new card, plan and module, and every tensor that still fits, by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from resnetkit.architecture.card import Card
from resnetkit.architecture.catalog import find_catalog_name
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.rules import check_spec
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError
from resnetkit.network.build import build
from resnetkit.network.compare import get_device, get_dtype
from resnetkit.network.consistency import check_editable, unwrap_network
from resnetkit.network.layers import CheckpointedStage, NetworkModule
from resnetkit.network.report import TensorReport

AdaptedTensors = Mapping[str, tuple[Tensor, str]]
PathMap = Mapping[str, str]
EditResult = tuple[NetworkModule, TensorReport]
P = ParamSpec("P")
NO_ORIGIN = ""  # the old path of a part that is new
_CHANGED_SUFFIX = "-changed"


def check_model_argument(
    fn: Callable[Concatenate[NetworkModule, P], EditResult],
) -> Callable[Concatenate[NetworkModule, P], EditResult]:
    """Decorate an edit so that it unwraps its network and refuses one that differs from its card."""

    @functools.wraps(fn)
    def wrapper(model: NetworkModule, /, *args: P.args, **kwargs: P.kwargs) -> EditResult:
        network = unwrap_network(model)
        check_editable(network)
        with torch.device("cpu"):  # new tensors are made here, whatever the default device of torch is
            return fn(network, *args, **kwargs)

    return wrapper


def edit(
    model: NetworkModule, spec: Spec, change: str, adapted: AdaptedTensors | None = None, **card_fields: object
) -> NetworkModule:
    """Return a network of another spec with the tensors that still fit.

    Args:
        model: The network to edit; it does not change.
        spec: The new spec.
        change: The change, for the origin on the card.
        adapted: Tensors that do not stay as they are, and how each was made.
        **card_fields: Other fields of the new card.
    """
    return transfer(model, edit_card(model.card, spec, change, **card_fields), adapted)


def transfer(
    model: NetworkModule,
    card: Card,
    adapted: AdaptedTensors | None = None,
    *,
    old_paths: PathMap | None = None,
    reinit_prefix: str = "",
    seed: int = 0,
) -> NetworkModule:
    """Return a network of a card with every tensor of another one that still fits.

    Device, type and modes stay. An operation keeps its tensors if its path and all their shapes are the same.
    ``report`` accounts for each tensor.

    Args:
        model: The old network; it does not change.
        card: The card of the new network.
        adapted: Tensors that do not stay as they are, and how each was made.
        old_paths: The old path of each part that has moved, or `NO_ORIGIN`.
        reinit_prefix: Tensors with this prefix start again as `build` starts them.
        seed: The seed for tensors that `build` starts.

    Raises:
        UsageError: the old network is on the meta device.
    """
    device = get_device(model)
    if device.type == "meta":
        raise UsageError("a network on the meta device has no weights to keep", where="meta", fix="device='cpu'")
    new_model = build(card.spec, seed=seed, device=device, dtype=get_dtype(model))
    new_model.card = card
    old_tensors, new_tensors, adapted_tensors = model.state_dict(), new_model.state_dict(), dict(adapted or {})
    origins = {
        key: _find_origin(key, old_paths or {})
        for key in new_tensors
        if not (reinit_prefix and key.startswith(reinit_prefix))
    }
    matches = _match_tensors(old_tensors, new_tensors, adapted_tensors, origins)
    sources = {key: old_tensors[origin] for key, origin in matches.items()}
    sources |= {key: tensor for key, (tensor, _) in adapted_tensors.items()}
    with torch.no_grad():
        for key, tensor in sources.items():
            new_tensors[key].copy_(tensor)
    new_model.report = _build_report(old_tensors, new_tensors, matches, adapted_tensors, origins)
    _copy_modes(model, new_model, old_paths or {}, origins)
    return new_model


def _match_tensors(
    old_tensors: Mapping[str, Tensor],
    new_tensors: Mapping[str, Tensor],
    adapted_tensors: AdaptedTensors,
    origins: Mapping[str, str],
) -> dict[str, str]:
    """Return the old key of each tensor that stays; an operation keeps all of its tensors or none."""
    matches = {
        key: origin
        for key, origin in origins.items()
        if key not in adapted_tensors and origin in old_tensors and old_tensors[origin].shape == new_tensors[key].shape
    }
    incomplete = {key.rpartition(".")[0] for key in new_tensors if key not in adapted_tensors and key not in matches}
    return {key: origin for key, origin in matches.items() if key.rpartition(".")[0] not in incomplete}


def _find_origin(path: str, old_paths: PathMap) -> str:
    """Return the old path of a part; `NO_ORIGIN` for a new part."""
    if path in old_paths or "." not in path:
        return old_paths.get(path, path)
    parent, _, name = path.rpartition(".")
    origin = _find_origin(parent, old_paths)
    return f"{origin}.{name}" if origin else NO_ORIGIN


def _build_report(
    old_tensors: Mapping[str, Tensor],
    new_tensors: Mapping[str, Tensor],
    matches: Mapping[str, str],
    adapted_tensors: AdaptedTensors,
    origins: Mapping[str, str],
) -> TensorReport:
    initialized = [key for key in new_tensors if key not in adapted_tensors and key not in matches]
    adapted_origins = {key: origins.get(key, key) for key in adapted_tensors}
    used_keys = {*matches.values(), *adapted_origins.values()}
    notes = {key: note for key, (_, note) in adapted_tensors.items()}
    return TensorReport(
        tuple(key for key, origin in matches.items() if key == origin),
        {key: origin for key, origin in matches.items() if key != origin},
        {key: note for key, note in notes.items() if adapted_origins[key] in old_tensors},
        {key: "of another shape" if origins.get(key) in old_tensors else "new" for key in initialized}
        | {key: note for key, note in notes.items() if adapted_origins[key] not in old_tensors},
        tuple(key for key in old_tensors if key not in used_keys),
    )


def _copy_modes(
    model: NetworkModule, new_model: NetworkModule, old_paths: PathMap, tensor_origins: Mapping[str, str]
) -> None:
    """Copy modes, gradients, frozen norms and stages that recompute activations."""
    old_modules, old_parameters = dict(model.named_modules()), dict(model.named_parameters())
    module_origins = {path: _find_origin(path, old_paths) for path, _ in new_model.named_modules()}
    new_model.frozen_paths = frozenset(path for path, origin in module_origins.items() if origin in model.frozen_paths)
    for path, module in new_model.named_modules():
        old_module = old_modules.get(module_origins[path], model)
        module.training = old_module.training
        if isinstance(old_module, CheckpointedStage) and path:
            new_model.add_module(path, make_recomputed_stage(new_model, path))
    for key, parameter in new_model.named_parameters():
        if tensor_origins.get(key) in old_parameters:
            parameter.requires_grad_(old_parameters[tensor_origins[key]].requires_grad)


def make_recomputed_stage(model: NetworkModule, path: str) -> CheckpointedStage:
    """Return a stage with the blocks of an existing one that recomputes its activations.

    Args:
        model: The network.
        path: The path of the stage.
    """
    stage = model.get_submodule(path)
    return CheckpointedStage(dict(stage.named_children())).train(stage.training)


def edit_card(card: Card, spec: Spec, change: str, **fields: object) -> Card:
    """Return the checked card of an edited network: its origin tells the change, and it has no metrics.

    Args:
        card: The card of the old network.
        spec: The new spec.
        change: What changes.
        **fields: Other fields of the card.
    """
    check_spec(spec)
    origin = f"{card.origin}, {change}"
    return replace(card, name=_select_name(card, spec), spec=spec, metrics=(), origin=origin, **fields)  # type: ignore[arg-type]


def _select_name(card: Card, spec: Spec) -> str:
    """Return the old name if the blocks are the same, or that of the catalog network it has become."""
    if _get_architecture_key(spec) == _get_architecture_key(card.spec):
        return card.name
    catalog_name = find_catalog_name(spec)
    return card.name.removesuffix(_CHANGED_SUFFIX) + _CHANGED_SUFFIX if catalog_name == "custom" else catalog_name


def _get_architecture_key(spec: Spec) -> tuple[object, ...]:
    stages = [replace(stage, reduce=replace(stage.reduce, atrous=False)) for stage in spec.stages]
    return stages, spec.stem, spec.shortcuts, spec.order, isinstance(spec.norm, GroupNorm)


def describe_plan_changes(old_plan: Plan, new_plan: Plan) -> list[str]:
    """Return a line for each change in parameters, MACs and output stride.

    Args:
        old_plan: The plan before the edit.
        new_plan: The plan after it.
    """
    counts = [("params", old_plan.params, new_plan.params), ("MACs", old_plan.macs, new_plan.macs)]
    lines = [f"{name} {a:,} -> {b:,}{_format_ratio(a, b)}" for name, a, b in counts if a != b]
    strides = old_plan.root.stride, new_plan.root.stride
    return lines if strides[0] == strides[1] else [*lines, f"output stride {strides[0]} -> {strides[1]}"]


def _format_ratio(old: int, new: int) -> str:
    """Return the ratio in parentheses; nothing if it rounds to 1."""
    ratio = f"{new / old:.3g}" if old else "1"
    return "" if ratio == "1" else f" ({ratio} times)"
