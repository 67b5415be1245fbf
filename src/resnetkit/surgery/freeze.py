"""Select what training changes: frozen stages and norms, and stages that recompute activations."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from resnetkit.architecture.plan import Section
from resnetkit.errors import UsageError
from resnetkit.network.compare import compute_output, get_device, make_test_images, relative_error
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import as_list, find_paths, select_stages
from resnetkit.surgery.transfer import EditResult, check_model_argument, make_recomputed_stage, transfer
from resnetkit.surgery.verify import EXACT, finish_edit


@check_model_argument
def freeze(model: NetworkModule, stages: Iterable[int | str] | int | str, *, norms: bool = True) -> EditResult:
    """Return the network with parts that do not train.

    A saved model does not record what was frozen.

    Args:
        model: The network; it does not change.
        stages: Stage numbers, ``stem``, ``head``, blocks by path; ``range(1, 3)`` for the first two stages.
        norms: Whether the batch norms in these parts keep their statistics too, whatever ``.train()`` sets later.
            This is verified.

    Raises:
        UsageError: nothing is selected, or a part does not exist.
    """
    paths = find_paths(model.plan, as_list(stages), ("stem", "stage", "head", "block"))
    if not paths:
        raise UsageError("nothing is selected to freeze", where="stages", fix="stem, or numbers of stages")
    return _freeze_paths(model, paths, [path for path in _find_batch_norms(model) if norms and _is_within(path, paths)])


@check_model_argument
def freeze_norms(model: NetworkModule) -> EditResult:
    """Return the network with the weights and statistics of all batch norms frozen.

    They stay frozen whatever ``.train()`` sets later.

    Raises:
        UsageError: the network has no batch norms.
    """
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
    note = f"{n_frozen:,} of {new_model.plan.params:,} params are frozen, {norm_note}"
    buffers = [key for key, _ in new_model.named_buffers() if _is_within(key, new_model.frozen_paths)]
    return finish_edit(model, new_model, _verify_statistics(new_model, buffers), notes=[note])


def _verify_statistics(model: NetworkModule, buffers: list[str]) -> Verification:
    """Compare statistics before and after a batch in training mode."""
    old, new = copy.deepcopy(model).double().train(), copy.deepcopy(model).double().train()
    with _preserve_rng(model), torch.no_grad():
        new(_make_batch(model))
    old_state, new_state = old.state_dict(), new.state_dict()
    errors = [relative_error(new_state[key].double(), old_state[key].double()) for key in buffers]
    return Verification("frozen statistics after a batch in training mode", max(errors, default=0.0), 0.0)


def _preserve_rng(model: NetworkModule) -> AbstractContextManager[None]:
    device = get_device(model)
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _make_batch(model: NetworkModule) -> Tensor:
    return make_test_images(model.card.spec, 2)[0].to(get_device(model))


def _find_batch_norms(model: NetworkModule) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def _is_within(path: str, parents: Iterable[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") for parent in parents)


@check_model_argument
def checkpoint(model: NetworkModule, stages: Iterable[int | str] | int | str) -> EditResult:
    """Return the network with stages that recompute activations in the backward pass.

    This takes less memory and more time. Gradients stay the same and the statistics of norms change once for a batch;
    both are verified. A saved model does not record this.

    Args:
        model: The network; it does not change.
        stages: Stage numbers or paths. Raises `UsageError` if a stage does not exist.
    """
    names = [f"stage{i}" for i in select_stages(model.plan, stages)]
    new_model = transfer(model, model.card)
    for name in names:
        setattr(new_model, name, make_recomputed_stage(new_model, name))
    sections = [section for name in names if isinstance(section := model.plan[name], Section)]
    n_recomputed = sum(section.activations for section in sections)
    n_stored = sum(math.prod(section.input) for section in sections)
    note = f"{', '.join(names)}: stores {n_stored:,} values for each image instead of {n_recomputed:,}, and runs twice"
    return finish_edit(model, new_model, _verify_gradients(model, new_model), notes=[note])


def _verify_gradients(model: NetworkModule, new_model: NetworkModule) -> Verification:
    """Compare gradients and statistics after one step on the same batch."""
    x = _make_batch(model)
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
