"""One way to change a network: a new card, a new plan, a new module, and every tensor that still fits, by path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

from resnetkit.architecture.card import Card
from resnetkit.architecture.catalog import row_of
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.rules import require
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError
from resnetkit.network.build import build
from resnetkit.network.layers import Network, RecomputedStage
from resnetkit.network.report import Report

Adapted = Mapping[str, tuple[Tensor, str]]
Moved = Mapping[str, str]
Edited = tuple[Network, Report]
P = ParamSpec("P")
NOWHERE = ""  # where a part that is new comes from


def edit(change: Callable[Concatenate[Network, P], Edited]) -> Callable[Concatenate[Network, P], Edited]:
    """A change of a network of ours; anything else is refused in a sentence."""

    @functools.wraps(change)
    def checked(model: Network, /, *words: P.args, **named: P.kwargs) -> Edited:
        if not isinstance(model, Network):
            what = f"a {type(model).__name__} is no network of resnetkit"
            raise UsageError(what, where="model", fix="resnetkit.load(model) makes one of it")
        return change(model, *words, **named)

    return checked


def carry(
    model: Network,
    card: Card,
    adapted: Adapted | None = None,
    *,
    moved: Moved | None = None,
    anew: str = "",
    seed: int = 0,
) -> Network:
    """A new network of this card, on the same device, in the same type and mode; ``model`` stays as it is.

    Operations whose tensors have their path and shapes are kept; ``moved`` tells of places the path that they had, or
    `NOWHERE`; ``adapted`` brings other tensors, and says how; the rest, and what begins with ``anew``, is as `build`
    starts it from ``seed``. ``report`` accounts for each of them.
    """
    first = next(model.parameters(), torch.empty(0))
    if first.is_meta:
        raise UsageError(
            "this network has shapes alone, and no numbers to carry over", where="meta", fix="device='cpu'"
        )
    made = build(card.spec, seed=seed, device=first.device, dtype=first.dtype)
    made.card = card
    old, new, brought = model.state_dict(), made.state_dict(), dict(adapted or {})
    came = {key: _origin(key, moved or {}) for key in new if not (anew and key.startswith(anew))}
    fits = {
        key: origin
        for key, origin in came.items()
        if key not in brought and origin in old and old[origin].shape == new[key].shape
    }
    unfit = {key.rpartition(".")[0] for key in new if key not in brought and key not in fits}
    fits = {key: origin for key, origin in fits.items() if key.rpartition(".")[0] not in unfit}
    with torch.no_grad():
        for key, value in new.items():
            if key in brought or key in fits:
                value.copy_(brought[key][0] if key in brought else old[fits[key]])
    made.report = _report(old, new, fits, brought, came)
    _settle(model, made, moved or {}, came)
    return made


def _origin(path: str, moved: Moved) -> str:
    """What a path was called before; `NOWHERE` for what is new."""
    parts = path.split(".")
    heads = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    head = next((head for head in heads if head in moved), None)
    if head is None:
        return path
    return moved[head] + path[len(head) :] if moved[head] else NOWHERE


def _report(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    fits: Mapping[str, str],
    brought: Adapted,
    came: Mapping[str, str],
) -> Report:
    started = [key for key in new if key not in brought and key not in fits]
    before = {key: came.get(key, key) for key in brought}
    used = {*fits.values(), *before.values()}
    return Report(
        tuple(key for key, origin in fits.items() if key == origin),
        {key: origin for key, origin in fits.items() if key != origin},
        {key: how for key, (_, how) in brought.items() if before[key] in old},
        {key: "of another shape" if came.get(key) in old else "new" for key in started}
        | {key: how for key, (_, how) in brought.items() if before[key] not in old},
        tuple(key for key in old if key not in used),
    )


def _settle(model: Network, made: Network, moved: Moved, came: Mapping[str, str]) -> None:
    """Mode, what learns, what is frozen, and what is run again for gradients: as each was before."""
    before, parameters = dict(model.named_modules()), dict(model.named_parameters())
    origins = {path: _origin(path, moved) for path, _ in made.named_modules()}
    made.frozen = frozenset(path for path, origin in origins.items() if origin in model.frozen)
    for path, module in made.named_modules():
        like = before.get(origins[path], model)
        module.training = like.training
        if isinstance(like, RecomputedStage) and path:
            made.add_module(path, recomputed(made, path))
    for key, parameter in made.named_parameters():
        if came.get(key) in parameters:
            parameter.requires_grad_(parameters[came[key]].requires_grad)


def recomputed(model: Network, path: str) -> RecomputedStage:
    """The stage at a path, as one that is run again for gradients."""
    stage = model.get_submodule(path)
    made = RecomputedStage()
    for name, block in stage.named_children():
        made.add_module(name, block)
    return made.train(stage.training)


def edited(card: Card, spec: Spec, what: str, **more: object) -> Card:
    """The card of a changed network: checked, its origin says what was changed, and its figures are gone."""
    require(spec)
    origin = f"{card.origin}, {what}"
    return replace(card, name=_name(card, spec), spec=spec, figures=(), origin=origin, **more)  # type: ignore[arg-type]


def _name(card: Card, spec: Spec) -> str:
    """The name it had, as long as the blocks are the same; another row's, where it became that one."""
    if _blocks(spec) == _blocks(card.spec):
        return card.name
    row = row_of(spec)
    return card.name.removesuffix(_CHANGED) + _CHANGED if row == "custom" else row


_CHANGED = "-changed"


def _blocks(spec: Spec) -> tuple[object, ...]:
    stages = [replace(stage, reduce=replace(stage.reduce, atrous=False)) for stage in spec.stages]
    return stages, spec.stem, spec.shortcuts, spec.order, isinstance(spec.norm, GroupNorm)


def told(model: Network, made: Network, notes: Iterable[str] = ()) -> None:
    """What was changed besides the tensors, in sentences, behind what the plans of the two count."""
    made.report = replace(made.report, notes=(*_counts(model.plan, made.plan), *notes))


def _counts(before: Plan, after: Plan) -> list[str]:
    counts = [("params", before.params, after.params), ("MACs", before.macs, after.macs)]
    changed = [f"{what} {a:,} -> {b:,}{_ratio(a, b)}" for what, a, b in counts if a != b]
    strides = before.root.stride, after.root.stride
    return changed + [f"output stride {strides[0]} -> {strides[1]}"] * (strides[0] != strides[1])


def _ratio(before: int, after: int) -> str:
    """Nothing where it would round to none."""
    told = f"{after / before:.3g}" if before else "1"
    return f" ({told} times)" * (told != "1")
