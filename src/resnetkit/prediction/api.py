"""Files to labels. Torch is imported where the network itself is asked, and nowhere else.

This module imports no torch.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnetkit.engines.base import Logits
from resnetkit.engines.select import DEFAULT_BATCH_SIZE, EngineChoice, InferenceSession, select_engine
from resnetkit.errors import ImageError
from resnetkit.prediction.formats import Prediction
from resnetkit.prediction.inputs import ImageInput, expand_inputs
from resnetkit.prediction.pipeline import InputResult, add_shape_check, run_pipeline
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule
    from resnetkit.runtime.progress import ProgressCallback

InputLike = str | Path | ImageInput


def predict(
    files: InputLike | Sequence[InputLike],
    model: str | os.PathLike[str] | NetworkModule,
    *,
    top: int = 5,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "",
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: ProgressCallback | None = None,
) -> list[Prediction]:
    """An `Answer` for each file, in order; a folder or a pattern stands for the pictures in it, by name.

    A file that cannot be read is a row with its reason, never an end of the others. ``engine`` is what `optimize` has
    kept in the model folder and is soonest done (``auto``), one of them by its name (``openvino-int8``), or ``torch``.
    To name a ``device`` or a ``precision`` (fp32, bf16, auto) is to ask torch, ``batch_size`` pictures at once.
    ``tell`` hears (done, all).
    """
    inputs = expand_inputs([files] if isinstance(files, InputLike) else files)
    candidates = select_engine(model, len(inputs), EngineChoice(engine, device, precision))
    with candidates.open_session(lambda: _load_network(model), batch_size) as session:
        return list(predict_inputs(inputs, session, top, on_progress=on_progress))


def _load_network(model: str | os.PathLike[str] | NetworkModule) -> NetworkModule:
    from resnetkit.weights.load import load_network

    return load_network(model)


# -------------------------------------------------------------------------------------------------------- who is asked


# ----------------------------------------------------------------------------------------------------- what is answered


def predict_inputs(
    inputs: Sequence[ImageInput],
    session: InferenceSession,
    top: int,
    *,
    on_progress: ProgressCallback | None = None,
    dist: ProcessGroup = SINGLE_PROCESS,
) -> Generator[Prediction, None, None]:
    """What `predict` gives for inputs that are expanded already, each answer as soon as it is there.

    Of W processes process r looks at the batches r, r + W ..., and each gets all answers, in order.
    """
    engine, card, batch_size = session.engine, session.card, session.engine.config.batch_size
    stride, n_done = batch_size * dist.world_size, 0
    starts = range(dist.rank * batch_size, len(inputs), stride)
    rank_inputs = inputs if dist.world_size == 1 else [item for i in starts for item in inputs[i : i + batch_size]]
    batches = run_pipeline(
        rank_inputs, card.preparation, add_shape_check(engine, len(card.labels)), batch_size, engine.config.streams
    )
    with contextlib.closing(batches):
        for _ in range(0, len(inputs), stride):
            rows = [
                (prediction.file, prediction.top, prediction.error)
                for prediction in _build_predictions(next(batches, []), card.labels, top)
            ]
            predictions = [
                Prediction(file, tuple(map(tuple, top_classes)), error)
                for rank_rows in dist.all_gather(rows)
                for file, top_classes, error in rank_rows
            ]
            yield from predictions
            n_done += len(predictions)
            if on_progress:
                on_progress(n_done, len(inputs))


def expand_on_main(files: Sequence[InputLike], dist: ProcessGroup) -> list[ImageInput]:
    """The inputs that the files stand for, as the first process finds them."""
    if dist.world_size == 1:
        return expand_inputs(files)
    encoded = dist.run_on_main(lambda: [(item.name, _encode_content(item.content)) for item in expand_inputs(files)])
    return [ImageInput(name, None if content is None else base64.b64decode(content)) for name, content in encoded]


def _encode_content(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _build_predictions(batch: list[InputResult], labels: Sequence[str], top: int) -> Iterator[Prediction]:
    for item, output in batch:
        if isinstance(output, ImageError):
            yield Prediction(item.name, error=output.what)
        elif not np.isfinite(output).all():
            yield Prediction(item.name, error="its logits are not finite")
        else:
            yield Prediction(item.name, tuple((labels[i], probability) for i, probability in select_top_k(output, top)))


def select_top_k(logits: Logits, top: int) -> list[tuple[int, float]]:
    """(class, probability) of the first ``top`` classes of one picture; of equal ones the lower comes first."""
    logits_fp64 = logits.astype(np.float64)
    probabilities = np.exp(logits_fp64 - logits_fp64.max())
    probabilities /= probabilities.sum()
    negated = -logits_fp64
    threshold = np.partition(negated, min(top, len(negated)) - 1)[min(top, len(negated)) - 1]
    candidates = np.flatnonzero(negated <= threshold)  # by class, and at least ``top`` of them
    indices = candidates[np.argsort(negated[candidates], kind="stable")][:top]
    return [(int(i), float(probabilities[i])) for i in indices]
