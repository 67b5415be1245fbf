"""One way to change a network: a new card, a new plan, a new module, and every tensor that still fits, by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
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
from resnetkit.network.layers import CheckpointedStage, NetworkModule
from resnetkit.network.report import TensorReport

AdaptedTensors = Mapping[str, tuple[Tensor, str]]
PathMap = Mapping[str, str]
EditResult = tuple[NetworkModule, TensorReport]
P = ParamSpec("P")
NO_ORIGIN = ""  # where a part that is new comes from


def check_model_argument(
    fn: Callable[Concatenate[NetworkModule, P], EditResult],
) -> Callable[Concatenate[NetworkModule, P], EditResult]:
    """A change of a network of ours; anything else is refused in a sentence."""

    @functools.wraps(fn)
    def wrapper(model: NetworkModule, /, *args: P.args, **kwargs: P.kwargs) -> EditResult:
        if not isinstance(model, NetworkModule):
            message = f"a {type(model).__name__} is no network of resnetkit"
            raise UsageError(message, where="model", fix="resnetkit.load(model) makes one of it")
        return fn(model, *args, **kwargs)

    return wrapper


def transfer(
    model: NetworkModule,
    card: Card,
    adapted: AdaptedTensors | None = None,
    *,
    old_paths: PathMap | None = None,
    reinit_prefix: str = "",
    seed: int = 0,
) -> NetworkModule:
    """A new network of this card, on the same device, in the same type and mode; ``model`` stays as it is.

    Operations whose tensors have their path and shapes are kept; ``moved`` tells of places the path that they had, or
    `NOWHERE`; ``adapted`` brings other tensors, and says how; the rest, and what begins with ``anew``, is as `build`
    starts it from ``seed``. ``report`` accounts for each of them.
    """
    parameter = next(model.parameters(), torch.empty(0))
    if parameter.is_meta:
        raise UsageError(
            "this network has shapes alone, and no numbers to carry over", where="meta", fix="device='cpu'"
        )
    new_model = build(card.spec, seed=seed, device=parameter.device, dtype=parameter.dtype)
    new_model.card = card
    old_tensors, new_tensors, adapted_tensors = model.state_dict(), new_model.state_dict(), dict(adapted or {})
    origins = {
        key: _find_origin(key, old_paths or {})
        for key in new_tensors
        if not (reinit_prefix and key.startswith(reinit_prefix))
    }
    matches = {
        key: origin
        for key, origin in origins.items()
        if key not in adapted_tensors and origin in old_tensors and old_tensors[origin].shape == new_tensors[key].shape
    }
    incomplete_modules = {
        key.rpartition(".")[0] for key in new_tensors if key not in adapted_tensors and key not in matches
    }
    matches = {key: origin for key, origin in matches.items() if key.rpartition(".")[0] not in incomplete_modules}
    with torch.no_grad():
        for key, value in new_tensors.items():
            if key in adapted_tensors or key in matches:
                value.copy_(adapted_tensors[key][0] if key in adapted_tensors else old_tensors[matches[key]])
    new_model.report = _build_report(old_tensors, new_tensors, matches, adapted_tensors, origins)
    _copy_modes(model, new_model, old_paths or {}, origins)
    return new_model


def _find_origin(path: str, old_paths: PathMap) -> str:
    """What a path was called before; `NOWHERE` for what is new."""
    parts = path.split(".")
    prefixes = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    prefix = next((prefix for prefix in prefixes if prefix in old_paths), None)
    if prefix is None:
        return path
    return old_paths[prefix] + path[len(prefix) :] if old_paths[prefix] else NO_ORIGIN


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
    return TensorReport(
        tuple(key for key, origin in matches.items() if key == origin),
        {key: origin for key, origin in matches.items() if key != origin},
        {key: note for key, (_, note) in adapted_tensors.items() if adapted_origins[key] in old_tensors},
        {key: "of another shape" if origins.get(key) in old_tensors else "new" for key in initialized}
        | {key: note for key, (_, note) in adapted_tensors.items() if adapted_origins[key] not in old_tensors},
        tuple(key for key in old_tensors if key not in used_keys),
    )


def _copy_modes(
    model: NetworkModule, new_model: NetworkModule, old_paths: PathMap, tensor_origins: Mapping[str, str]
) -> None:
    """Mode, what learns, what is frozen, and what is run again for gradients: as each was before."""
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
    """The stage at a path, as one that is run again for gradients."""
    stage = model.get_submodule(path)
    recomputed_stage = CheckpointedStage()
    for name, block in stage.named_children():
        recomputed_stage.add_module(name, block)
    return recomputed_stage.train(stage.training)


def edit_card(card: Card, spec: Spec, change: str, **fields: object) -> Card:
    """The card of a changed network: checked, its origin says what was changed, and its figures are gone."""
    check_spec(spec)
    origin = f"{card.origin}, {change}"
    return replace(card, name=_select_name(card, spec), spec=spec, metrics=(), origin=origin, **fields)  # type: ignore[arg-type]


def _select_name(card: Card, spec: Spec) -> str:
    """The name it had, as long as the blocks are the same; another row's, where it became that one."""
    if _get_architecture_key(spec) == _get_architecture_key(card.spec):
        return card.name
    catalog_name = find_catalog_name(spec)
    return card.name.removesuffix(_CHANGED_SUFFIX) + _CHANGED_SUFFIX if catalog_name == "custom" else catalog_name


_CHANGED_SUFFIX = "-changed"


def _get_architecture_key(spec: Spec) -> tuple[object, ...]:
    stages = [replace(stage, reduce=replace(stage.reduce, atrous=False)) for stage in spec.stages]
    return stages, spec.stem, spec.shortcuts, spec.order, isinstance(spec.norm, GroupNorm)


def add_notes(model: NetworkModule, new_model: NetworkModule, notes: Iterable[str] = ()) -> None:
    """What was changed besides the tensors, in sentences, behind what the plans of the two count."""
    new_model.report = replace(new_model.report, notes=(*_describe_plan_changes(model.plan, new_model.plan), *notes))


def _describe_plan_changes(old_plan: Plan, new_plan: Plan) -> list[str]:
    counts = [("params", old_plan.params, new_plan.params), ("MACs", old_plan.macs, new_plan.macs)]
    lines = [f"{name} {a:,} -> {b:,}{_format_ratio(a, b)}" for name, a, b in counts if a != b]
    strides = old_plan.root.stride, new_plan.root.stride
    return lines + [f"output stride {strides[0]} -> {strides[1]}"] * (strides[0] != strides[1])


def _format_ratio(old: int, new: int) -> str:
    """Nothing where it would round to none."""
    ratio = f"{new / old:.3g}" if old else "1"
    return f" ({ratio} times)" * (ratio != "1")
