"""Validation: measure the model of an epoch on ``val``, and the best model at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch import Tensor

from resnetkit.data.dataset import Indices
from resnetkit.data.loader import sync_unreadable
from resnetkit.errors import DataError
from resnetkit.evaluation.metrics import NON_FINITE_LOSS, Counts, count_predictions
from resnetkit.network.inference import inference
from resnetkit.training.events import EpochMetrics
from resnetkit.training.session import DivergedError, TrainSession


def measure_epoch(session: TrainSession, start_time: float) -> EpochMetrics:
    """Return the metrics of the epoch that was just trained.

    Args:
        session: The session after the last step of the epoch.
        start_time: The time (`time.perf_counter`) at which the epoch started.

    Raises:
        DataError: no image of ``val`` is readable.
        DivergedError: the loss on ``val`` is NaN or infinite.
    """
    val, epoch, totals = evaluate_split(session, "val"), session.state.epoch, session.state.totals
    if not val.n:
        raise DataError("no image of val is readable", where=session.run.recipe.data)
    if val.loss >= NON_FINITE_LOSS:
        what = "the loss on val is NaN or infinite"
        raise DivergedError(what, where=f"epoch {epoch}", fix=session.divergence_fix)
    return EpochMetrics(
        epoch=epoch,
        lr=totals.lr,
        loss=totals.mean_loss,
        accuracy=totals.accuracy,
        val_n=val.n,
        val_correct=val.correct,
        val_accuracy=val.correct / val.n,
        val_loss=val.loss,
        images_per_second=totals.images_per_second,
        seconds=time.perf_counter() - start_time,
    )


def evaluate_split(session: TrainSession, split: str) -> Counts:
    """Count the predictions on a split in fp32, over all processes.

    Args:
        session: The session, whose validation model is used.
        split: The split.
    """
    run, dist = session.run, session.dist
    with inference(session.eval_model.model, session.device, "fp32") as forward:
        counts = count_predictions(forward, _iter_labeled_batches(session, split), len(run.card.classes)).gather(dist)
    sync_unreadable(run.loaders.values(), dist)
    return counts


def _iter_labeled_batches(session: TrainSession, split: str) -> Iterator[tuple[Tensor, Tensor, Indices]]:
    loader = session.run.loaders[split]
    for pixels, indices in loader.iter_batches(dist=session.dist):
        session.check_stop()
        yield pixels, loader.labels[indices], indices
