"""Evaluate a model with its network, or with an engine that `optimize` has saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resnetkit.data.bad_files import parse_bad_files_policy
from resnetkit.data.options import DataOptions
from resnetkit.engines.base import Engine
from resnetkit.engines.reference import open_tensor_inference, open_torch_engine
from resnetkit.engines.select import DEFAULT_BATCH_SIZE, EngineCandidates, EngineChoice, select_engine
from resnetkit.evaluation.metrics import prepare_evaluation
from resnetkit.evaluation.result import Evaluation
from resnetkit.network.inference import LogitsFunction, inference
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import Precision, parse_precision, select_device
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.weights.load import load_network

_MANY_IMAGES = 10_000  # select the engine by its throughput and not by its start-up time


def evaluate(
    model: str | os.PathLike[str] | NetworkModule,
    data: str | Path,
    *,
    split: str | None = None,
    engine: str = "torch",
    device: str = "auto",
    precision: Precision = "fp32",
    bad_files: str | None = None,
    max_bad: str | float | None = None,
    on_progress: ProgressCallback | None = None,
    **options: Any,
) -> Evaluation:
    """Measure the accuracy of a model on one split of a dataset; classes are matched by name.

    Args:
        model: a network, a run folder, a model folder or a weights file.
        data: a dataset.
        split: train, val, test or all. By default, if the model was trained on this dataset, the split that was held
            out from training; else the first of test, val and all that the dataset has. Contents decide, not names.
        engine: ``torch`` runs the network itself; ``auto`` the fastest engine that `optimize` has saved; a name such as
            ``openvino-int8`` that engine. ``notes`` of the result name the engine.
        device: cpu, cuda or auto; for ``torch``.
        precision: fp32, bf16 or auto; for ``torch``.
        bad_files: ``error`` or ``skip`` for unreadable images; ``skip`` lists them in the result.
        max_bad: the largest share of images to skip; 0.01 by default.
        on_progress: called with (images read, images in all).
        **options: the fields of `DataOptions`, such as ``merge_classes=True`` or ``label_column="species"``.

    Raises:
        DataError: the dataset has a class that the model does not have, or an unreadable image.
        UsageError: the engine was never saved, or an option is not valid.
        MachineError: the engine cannot run on this machine.
    """
    policy = parse_bad_files_policy(bad_files, max_bad)
    candidates = select_eval_engine(model, EngineChoice(engine, device, parse_precision(precision)))
    network = model if isinstance(model, NetworkModule) else load_network(model)
    prepared = prepare_evaluation(network, data, split, policy, on_progress=on_progress, options=DataOptions(**options))
    with open_inference(candidates, network, device, precision) as (compute_logits, notes):
        evaluation = prepared.run(compute_logits, on_progress)
    return replace(evaluation, notes=(*evaluation.notes, *notes))


def select_eval_engine(
    model: object, choice: EngineChoice, weights_options: Sequence[str] = (), dist: ProcessGroup = SINGLE_PROCESS
) -> EngineCandidates:
    """Select the engine for an evaluation.

    Args:
        model: a network, or the path of a model.
        choice: the engine, device and precision that the user selects; fp32 is the default precision.
        weights_options: command-line options about the weights file.
        dist: the process group.
    """
    explicit_choice = replace(choice, precision="") if choice.precision == "fp32" else choice
    return select_engine(model, _MANY_IMAGES, explicit_choice.apply_weights_options(weights_options), dist)


@contextlib.contextmanager
def open_inference(
    candidates: EngineCandidates, network: NetworkModule, device: str, precision: Precision
) -> Iterator[tuple[LogitsFunction, list[str]]]:
    """Open the selected engine, or the network itself, for the duration of the body.

    Args:
        candidates: the result of `select_eval_engine`.
        network: the network of the same model.
        device: cpu, cuda or auto.
        precision: fp32, bf16 or auto.

    Returns:
        A function from pixels to logits, and notes: on the engine, unless it is the network itself, and later on each
        engine that fails.
    """
    notes: list[str] = []
    if not candidates.saved_engines:
        if candidates.reason:
            notes.append(f"engine: torch {precision}; {candidates.reason}")
        with inference(network, select_device(device), precision) as compute_logits:
            yield compute_logits, notes
        return

    def open_torch() -> contextlib.AbstractContextManager[Engine]:
        return open_torch_engine(network, device, precision, DEFAULT_BATCH_SIZE)

    with (
        candidates.open_saved_engines(open_torch, network.card, notes.append) as engine,
        open_tensor_inference(engine) as compute_logits,
    ):
        description = str(engine.config) if engine.saved else f"torch {precision}"
        notes.insert(0, f"engine: {description}{f'; {engine.reason}' if engine.reason else ''}")
        yield compute_logits, notes
