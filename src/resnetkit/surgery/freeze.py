"""What learns, and what is kept for it: frozen stages and norms, and stages that are run again for gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resnetkit.architecture.plan import Section
from resnetkit.errors import UsageError
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import as_list, find_paths, select_stages
from resnetkit.surgery.transfer import EditResult, add_notes, check_model_argument, make_recomputed_stage, transfer
from resnetkit.surgery.verify import EXACT, compute_output, finish_edit, get_device, make_test_images, relative_error


@check_model_argument
def freeze(model: NetworkModule, stages: Iterable[int | str] | int | str, *, norms: bool = True) -> EditResult:
    """Places that do not learn: stages by number, ``stem``, ``head``, or all up to one as ``range(1, 3)``.

    Their parameters ask for no gradient; with ``norms`` their batch norms keep their statistics too, whatever
    ``.train()`` says later, which is proved. A saved model does not tell what was frozen. Raises `UsageError`.
    """
    paths = find_paths(model.plan, as_list(stages), ("stem", "stage", "head", "block"))
    if not paths:
        raise UsageError("nothing is named to be frozen", where="stages", fix="stem, or numbers of stages")
    return _freeze_paths(model, paths, [path for path in _find_batch_norms(model) if norms and _is_within(path, paths)])


@check_model_argument
def freeze_norms(model: NetworkModule) -> EditResult:
    """Batch norms that neither learn nor move their statistics, everywhere, whatever ``.train()`` says later."""
    norms = _find_batch_norms(model)
    if not norms:
        raise UsageError("this network has no batch norms", where="norm", fix="freeze with stages")
    return _freeze_paths(model, norms, norms)


def _freeze_paths(model: NetworkModule, paths: list[str], norms: list[str]) -> EditResult:
    new_model = transfer(model, model.card)
    new_model.frozen_paths = model.frozen_paths | set(norms)
    for key, parameter in new_model.named_parameters():
        if _is_within(key, paths):
            parameter.requires_grad = False
    for path in norms:
        new_model.get_submodule(path).eval()
    n_frozen = sum(p.numel() for p in new_model.parameters() if not p.requires_grad)
    norm_note = f"{len(new_model.frozen_paths)} norms keep their statistics"
    add_notes(model, new_model, [f"{n_frozen:,} of {new_model.plan.params:,} params do not learn, {norm_note}"])
    return finish_edit(
        new_model,
        _verify_statistics(
            new_model, [key for key, _ in new_model.named_buffers() if _is_within(key, list(new_model.frozen_paths))]
        ),
    )


def _verify_statistics(model: NetworkModule, buffers: list[str]) -> Verification:
    """Statistics after a batch in training mode, beside those before."""
    old, new = copy.deepcopy(model).double().train(), copy.deepcopy(model).double().train()
    with _preserve_rng(model), torch.no_grad():
        for x in _make_batches(model):
            new(x)
    old_state, new_state = old.state_dict(), new.state_dict()
    errors = [relative_error(new_state[key].double(), old_state[key].double()) for key in buffers]
    return Verification("frozen statistics after a batch in training mode", max(errors, default=0.0), 0.0)


def _preserve_rng(model: NetworkModule) -> AbstractContextManager[None]:
    """What is drawn inside leaves the dice of the process as they are."""
    device = get_device(model)
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _make_batches(model: NetworkModule) -> list[Tensor]:
    return [x.to(get_device(model)) for x in make_test_images(model.card.spec, 2)[:1]]


def _find_batch_norms(model: NetworkModule) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def _is_within(path: str, parents: Iterable[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


@check_model_argument
def checkpoint(model: NetworkModule, stages: Iterable[int | str] | int | str) -> EditResult:
    """Stages that keep only their input for the backward pass and run again there: less memory, more time.

    Gradients are those without it, and statistics of norms move once for a batch, both of which is proved. A saved
    model does not tell of it. Raises `UsageError`.
    """
    names = [f"stage{i}" for i in select_stages(model.plan, stages)]
    new_model = transfer(model, model.card)
    for name in names:
        setattr(new_model, name, make_recomputed_stage(new_model, name))
    add_notes(model, new_model, list(_describe_memory(model, names)))
    return finish_edit(new_model, _verify_gradients(model, new_model))


def _describe_memory(model: NetworkModule, names: list[str]) -> Iterator[str]:
    stages = [stage for name in names if isinstance(stage := model.plan[name], Section)]
    n_recomputed = sum(stage.activations for stage in stages)
    n_stored = sum(math.prod(stage.input) for stage in stages)
    yield f"{', '.join(names)}: {n_stored:,} numbers are kept for each image instead of {n_recomputed:,}, and they run twice"


def _verify_gradients(model: NetworkModule, new_model: NetworkModule) -> Verification:
    """Gradients and statistics after one step on the same batch, with and without."""
    (x,) = _make_batches(model)
    pairs = list(zip(_run_training_step(model, x), _run_training_step(new_model, x), strict=True))
    return Verification("gradients and statistics after a batch", max(relative_error(b, a) for a, b in pairs), EXACT)


def _run_training_step(model: NetworkModule, x: Tensor) -> list[Tensor]:
    with _preserve_rng(model), torch.enable_grad():
        torch.manual_seed(0)
        model_copy = copy.deepcopy(model).double().train()
        loss = compute_output(model_copy, x).square().mean()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model_copy.parameters() if p.grad is not None]
    return [*gradients, *(buffer.double() for buffer in model_copy.buffers())]
