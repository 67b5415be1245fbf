"""Predict the labels of images. It imports torch only if the engine is torch.

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
from resnetkit.prediction.pipeline import InputResult, run_pipeline
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
    """Predict the label of each image, in order; folders and patterns expand to their images by name.

    An unreadable image has a prediction with an error, and does not stop the others.

    Args:
        files: images, folders and patterns.
        model: a path, or a network.
        top: the number of classes per image.
        engine: auto (the saved engine that finishes soonest), a saved engine (``openvino-int8``), or torch.
        device: cpu, cuda, cuda:1 or auto; any but auto means torch.
        precision: fp32, bf16 or auto; any of them means torch.
        batch_size: the number of images per call of torch.
        on_progress: called with the number of images done, and of all images.
    """
    inputs = expand_inputs([files] if isinstance(files, InputLike) else files)
    candidates = select_engine(model, len(inputs), EngineChoice(engine, device, precision))
    with candidates.open_session(lambda: _load_network(model), batch_size) as session:
        return list(predict_inputs(inputs, session, top, on_progress=on_progress))


def _load_network(model: str | os.PathLike[str] | NetworkModule) -> NetworkModule:
    from resnetkit.weights.load import load_network

    return load_network(model)


def predict_inputs(
    inputs: Sequence[ImageInput],
    session: InferenceSession,
    top: int,
    *,
    on_progress: ProgressCallback | None = None,
    dist: ProcessGroup = SINGLE_PROCESS,
) -> Generator[Prediction, None, None]:
    """Yield the prediction of each input as soon as it is known, in order.

    With W processes, rank r computes the batches r, r + W, ..., and every rank gets all predictions.

    Args:
        inputs: the images.
        session: the open engine.
        top: the number of classes per image.
        on_progress: called with the number of images done, and of all images.
        dist: the process group.
    """
    engine, card, batch_size = session.engine, session.card, session.engine.config.batch_size
    stride, n_done = batch_size * dist.world_size, 0
    starts = range(dist.rank * batch_size, len(inputs), stride)
    rank_inputs = inputs if dist.world_size == 1 else [item for i in starts for item in inputs[i : i + batch_size]]
    batches = run_pipeline(rank_inputs, card.preparation, engine, batch_size, engine.config.streams)
    with contextlib.closing(batches):
        for _ in range(0, len(inputs), stride):
            rows = [(p.file, p.top, p.error) for p in _build_predictions(next(batches, []), card.labels, top)]
            for rank_rows in dist.all_gather(rows):
                for file, top_classes, error in rank_rows:
                    n_done += 1
                    yield Prediction(file, tuple(map(tuple, top_classes)), error)
            if on_progress:
                on_progress(n_done, len(inputs))


def expand_on_main(files: Sequence[InputLike], dist: ProcessGroup) -> list[ImageInput]:
    """Expand the files on the main process, and return the inputs on all.

    Args:
        files: images, folders and patterns.
        dist: the process group.
    """
    if dist.world_size == 1:
        return expand_inputs(files)
    encoded = dist.run_on_main(
        lambda: [
            (item.name, base64.b64encode(item.content or b"").decode(), item.error) for item in expand_inputs(files)
        ]
    )
    return [ImageInput(name, base64.b64decode(content) or None, error) for name, content, error in encoded]


def _build_predictions(batch: list[InputResult], labels: Sequence[str], top: int) -> Iterator[Prediction]:
    for item, output in batch:
        if isinstance(output, ImageError):
            yield Prediction(item.name, error=output.what)
        elif not np.isfinite(output).all():
            yield Prediction(item.name, error="the logits are NaN or infinite")
        else:
            yield Prediction(item.name, tuple((labels[i], probability) for i, probability in select_top_k(output, top)))


def select_top_k(logits: Logits, top: int) -> list[tuple[int, float]]:
    """Return the most probable classes of one image; of equal ones the lower index comes first.

    Args:
        logits: (K,).
        top: how many classes.

    Returns:
        (class index, probability), highest first.
    """
    logits_fp64 = logits.astype(np.float64)
    probabilities = np.exp(logits_fp64 - logits_fp64.max())
    probabilities /= probabilities.sum()
    negated, k = -logits_fp64, min(top, len(logits))
    candidates = np.flatnonzero(negated <= np.partition(negated, k - 1)[k - 1])  # in order, and at least k of them
    indices = candidates[np.argsort(negated[candidates], kind="stable")][:k]
    return [(int(i), float(probabilities[i])) for i in indices]
