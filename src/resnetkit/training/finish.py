"""What a run leaves when it has come to its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, Card
from resnetkit.data.loader import ImageLoader
from resnetkit.errors import ImageError
from resnetkit.evaluation.result import Evaluation
from resnetkit.images.decode import try_read
from resnetkit.images.prepare import encode_thumbnail
from resnetkit.serialization import to_data, to_json
from resnetkit.training.checkpoint import STATE_FOLDER
from resnetkit.training.report import build_run_report
from resnetkit.training.run_folder import (
    REPORT_FILE,
    RESULTS_FILE,
    THUMBNAILS_PER_GROUP,
    Results,
    Run,
    Thumbnail,
    read_run,
)


def write_results(folder: Path, card: Card, results: Results) -> Run:
    """The card with its figures, then the results, which say that the run has finished, then what is made from them."""
    files.write_text(folder / "model" / CARD_FILE, to_json(card))
    files.write_text(folder / RESULTS_FILE, json.dumps(to_data(results), ensure_ascii=False) + "\n")
    return finalize_run(folder)


def finalize_run(folder: Path) -> Run:
    """A finished run, with its page and without what it needed to go on."""
    run = read_run(folder)
    if not (folder / REPORT_FILE).exists():
        files.write_text(folder / REPORT_FILE, build_run_report([run]))
    files.remove_folder(folder / STATE_FOLDER)
    files.remove_temporary(folder)
    return run


def make_thumbnails(evaluation: Evaluation, loader: ImageLoader) -> tuple[Thumbnail, ...]:
    """The pictures that the report shows, by their numbers in the evaluation."""
    indices = loader.select_readable(np.arange(len(loader)))
    positions = sorted(
        {*evaluation.find_mistakes(THUMBNAILS_PER_GROUP), *evaluation.find_least_confident(THUMBNAILS_PER_GROUP)}
    )
    images = {i: try_read(loader.images.load_image, int(indices[i])) for i in positions}
    return tuple(
        Thumbnail(i, encode_thumbnail(image)) for i, image in images.items() if not isinstance(image, ImageError)
    )
