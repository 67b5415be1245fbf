"""Finish a run: evaluate the best epoch, write the results and the report, remove the checkpoints."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, ReportedMetric
from resnetkit.data.loader import ImageLoader
from resnetkit.errors import ImageError
from resnetkit.evaluation.metrics import build_evaluation
from resnetkit.evaluation.result import Evaluation
from resnetkit.images.decode import try_read
from resnetkit.images.prepare import encode_thumbnail
from resnetkit.runtime.environment import collect_environment
from resnetkit.serialization import to_data, to_json
from resnetkit.training import run_folder
from resnetkit.training.report import build_run_report
from resnetkit.training.run_folder import Results, Run, Thumbnail, read_run
from resnetkit.training.session import TrainSession
from resnetkit.training.validation import evaluate_split


def finish_run(session: TrainSession, stop_reason: str) -> Run:
    """Evaluate the best model on ``test``, or on ``val`` without it, and finish the run folder.

    Args:
        session: The session, whose validation model has the best weights.
        stop_reason: Why training ended early; empty if it did not.
    """
    run, state, card, dist = session.run, session.state, session.run.card, session.dist
    split = "test" if "test" in run.loaders else "val"
    loader, counts = run.loaders[split], evaluate_split(session, split)
    evaluation = build_evaluation(card, run.recipe.data, split, counts, loader, classes=card.classes)
    source = f"{evaluation.correct} of {evaluation.n}, this run"
    if split == "val":
        source += f"; {run_folder.VAL_BIAS_NOTE}"
    metric = ReportedMetric(f"top-1 on {split}", evaluation.top1, source)
    session.eval_model.model.card = card = replace(card, metrics=(metric,))
    results = Results(
        best_epoch=state.best_epoch,
        seconds=time.perf_counter() - session.start_time,
        device=run.device,
        precision=run.precision,
        split_sizes=tuple((name, len(images)) for name, images in run.dataset.splits.items()),
        notes=(*run.notes, *state.changes),
        evaluation=evaluation,
        thumbnails=make_thumbnails(evaluation, loader) if dist.is_main else (),
        stop_reason=stop_reason,
    )
    dist.run_on_main(lambda: write_results(session, results))
    if dist.is_main:
        return read_run(run.out)
    return Run(run.out, run.recipe, card, state.epochs, results, collect_environment())


def write_results(session: TrainSession, results: Results) -> None:
    """Write the card with its accuracy, then the results, which mark the run as finished, then the report.

    Args:
        session: The session of the run.
        results: The results.
    """
    folder = session.run.out
    session.metrics_log.sync()
    files.write_text(folder / "model" / CARD_FILE, to_json(session.eval_model.model.card))
    files.write_text(folder / run_folder.RESULTS_FILE, json.dumps(to_data(results), ensure_ascii=False) + "\n")
    finalize_run(folder)


def finalize_run(folder: Path) -> Run:
    """Write the report of a finished run if it is missing, remove its checkpoints, and return the run."""
    run = read_run(folder)
    if not (folder / run_folder.REPORT_FILE).exists():
        files.write_text(folder / run_folder.REPORT_FILE, build_run_report([run]))
    files.remove_folder(folder / run_folder.STATE_FOLDER)
    files.remove_temporary(folder)
    return run


def make_thumbnails(evaluation: Evaluation, loader: ImageLoader) -> tuple[Thumbnail, ...]:
    """Make thumbnails of the images in the report.

    Args:
        evaluation: The evaluation; a thumbnail's index is that of the prediction.
        loader: The images of the evaluated split.
    """
    indices = loader.select_readable(np.arange(len(loader)))
    limit = run_folder.THUMBNAILS_PER_GROUP
    positions = sorted({*evaluation.find_mistakes(limit), *evaluation.find_least_confident(limit)})
    images = {i: try_read(loader.images.load_image, int(indices[i])) for i in positions}
    return tuple(
        Thumbnail(i, encode_thumbnail(image)) for i, image in images.items() if not isinstance(image, ImageError)
    )
