"""What learns, and what is kept for it: frozen stages and norms, and stages that are run again for gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resnetkit.architecture.plan import Place
from resnetkit.errors import UsageError
from resnetkit.network.layers import Network
from resnetkit.network.report import Proof
from resnetkit.surgery.select import find, several
from resnetkit.surgery.select import stages as chosen_stages
from resnetkit.surgery.transfer import Edited, carry, edit, recomputed, told
from resnetkit.surgery.verify import EXACT, answer, apart, device_of, finished, images


@edit
def freeze(model: Network, stages: Iterable[int | str] | int | str, *, norms: bool = True) -> Edited:
    """Places that do not learn: stages by number, ``stem``, ``head``, or all up to one as ``range(1, 3)``.

    Their parameters ask for no gradient; with ``norms`` their batch norms keep their statistics too, whatever
    ``.train()`` says later, which is proved. A saved model does not tell what was frozen. Raises `UsageError`.
    """
    places = find(model.plan, several(stages), ("stem", "stage", "head", "block"))
    if not places:
        raise UsageError("nothing is named to be frozen", where="stages", fix="stem, or numbers of stages")
    return _frozen(model, places, [path for path in _batch_norms(model) if norms and _within(path, places)])


@edit
def freeze_norms(model: Network) -> Edited:
    """Batch norms that neither learn nor move their statistics, everywhere, whatever ``.train()`` says later."""
    norms = _batch_norms(model)
    if not norms:
        raise UsageError("this network has no batch norms", where="norm", fix="freeze with stages")
    return _frozen(model, norms, norms)


def _frozen(model: Network, places: list[str], norms: list[str]) -> Edited:
    made = carry(model, model.card)
    made.frozen = model.frozen | set(norms)
    for key, parameter in made.named_parameters():
        if _within(key, places):
            parameter.requires_grad = False
    for path in norms:
        made.get_submodule(path).eval()
    still = sum(p.numel() for p in made.parameters() if not p.requires_grad)
    kept = f"{len(made.frozen)} norms keep their statistics"
    told(model, made, [f"{still:,} of {made.plan.params:,} params do not learn, {kept}"])
    return finished(made, _kept(made, [key for key, _ in made.named_buffers() if _within(key, list(made.frozen))]))


def _kept(made: Network, buffers: list[str]) -> Proof:
    """Statistics after a batch in training mode, beside those before."""
    old, new = copy.deepcopy(made).double().train(), copy.deepcopy(made).double().train()
    with _own_dice(made), torch.no_grad():
        for x in _batches(made):
            new(x)
    there, now = old.state_dict(), new.state_dict()
    figures = [apart(now[key].double(), there[key].double()) for key in buffers]
    return Proof("frozen statistics after a batch in training mode", max(figures, default=0.0), 0.0)


def _own_dice(model: Network) -> AbstractContextManager[None]:
    """What is drawn inside leaves the dice of the process as they are."""
    place = device_of(model)
    return torch.random.fork_rng([place] if place.type == "cuda" else [])


def _batches(model: Network) -> list[Tensor]:
    return [x.to(device_of(model)) for x in images(model.card.spec, 2)[:1]]


def _batch_norms(model: Network) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def _within(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)


@edit
def checkpoint(model: Network, stages: Iterable[int | str] | int | str) -> Edited:
    """Stages that keep only their input for the backward pass and run again there: less memory, more time.

    Gradients are those without it, and statistics of norms move once for a batch, both of which is proved. A saved
    model does not tell of it. Raises `UsageError`.
    """
    names = [f"stage{i}" for i in chosen_stages(model.plan, stages)]
    made = carry(model, model.card)
    for name in names:
        setattr(made, name, recomputed(made, name))
    told(model, made, list(_saved(model, names)))
    return finished(made, _alike(model, made))


def _saved(model: Network, names: list[str]) -> Iterator[str]:
    parts = [part for name in names if isinstance(part := model.plan[name], Place)]
    inside = sum(part.activations for part in parts)
    kept = sum(math.prod(part.input) for part in parts)
    yield f"{', '.join(names)}: {kept:,} numbers are kept for each image instead of {inside:,}, and they run twice"


def _alike(model: Network, made: Network) -> Proof:
    """Gradients and statistics after one step on the same batch, with and without."""
    (x,) = _batches(model)
    pairs = list(zip(_after_a_step(model, x), _after_a_step(made, x), strict=True))
    return Proof("gradients and statistics after a batch", max(apart(b, a) for a, b in pairs), EXACT)


def _after_a_step(model: Network, x: Tensor) -> list[Tensor]:
    with _own_dice(model), torch.enable_grad():
        torch.manual_seed(0)
        mine = copy.deepcopy(model).double().train()
        loss = answer(mine, x).square().mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in mine.parameters() if p.grad is not None]
    return [*gradients, *(buffer.double() for buffer in mine.buffers())]
