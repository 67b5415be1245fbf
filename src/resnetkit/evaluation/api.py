"""How often a model is right, as the network itself answers or an engine that `optimize` has kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from resnetkit.data.bad_files import parse_bad_files_policy
from resnetkit.engines.reference import open_tensor_inference
from resnetkit.engines.select import EngineCandidates, EngineChoice, select_engine
from resnetkit.evaluation.metrics import prepare_evaluation
from resnetkit.evaluation.result import Evaluation
from resnetkit.network.inference import LogitsFunction, inference
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import Precision, parse_precision, select_device
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.weights.load import load_network

_MANY_IMAGES = 10_000  # pictures: what counts is how many in a second, not how soon the first


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
) -> Evaluation:
    """Count how often ``model`` is right about ``data``, or about one ``part`` of it.

    Without ``part``: if the model was trained on this very data, what was held out from it; else ``test`` where the
    data has it, or ``val``, or all of it. Classes are matched by name. A picture that cannot be read is an error, or
    with ``bad_files="skip"`` it is left out and named, up to the share ``max_bad`` (0.01). ``engine`` is the network
    itself (``torch``, in ``precision`` on ``device``), the fastest of those that `optimize` has kept (``auto``), or one
    of them by its name (``openvino-int8``); ``notes`` of what comes back name it. ``tell`` hears of pictures read
    (done, all).

    Raises `DataError` where the data has a class that the model has not, and `UsageError` or `MachineError` for an
    engine that is not there.
    """
    bad_files_policy, candidates = (
        parse_bad_files_policy(bad_files, max_bad),
        select_eval_engine(model, EngineChoice(engine, device, parse_precision(precision))),
    )
    network = model if isinstance(model, NetworkModule) else load_network(model)
    prepared = prepare_evaluation(network, data, split, bad_files_policy, on_progress=on_progress)
    with open_inference(candidates, network, device, precision) as (infer, note):
        evaluation = prepared.run(infer, on_progress)
    return replace(evaluation, notes=(*evaluation.notes, *[f"engine: {note}"] * bool(note)))


def select_eval_engine(
    model: object, choice: EngineChoice, weights_options: Sequence[str] = (), dist: ProcessGroup = SINGLE_PROCESS
) -> EngineCandidates:
    """Who is asked; ``words`` say how weights are to be read. fp32 is what is meant where nothing else is said."""
    explicit_choice = replace(choice, precision="" if choice.precision == "fp32" else choice.precision)
    return select_engine(model, _MANY_IMAGES, explicit_choice.apply_weights_options(weights_options), dist)


@contextlib.contextmanager
def open_inference(
    candidates: EngineCandidates, network: NetworkModule, device: str, precision: Precision
) -> Iterator[tuple[LogitsFunction, str]]:
    """What answers for ``network``, as evaluation asks, and a sentence where there is something to say of it."""
    with candidates.open_saved_engine() as (engine, _, reason):
        if engine:
            context, description = open_tensor_inference(engine), str(engine.config)
        else:
            context, description = (
                inference(network, select_device(device), precision),
                f"torch {precision}" * bool(reason),
            )
        with context as infer:
            yield infer, f"{description}{f', as {reason}' if reason else ''}"
