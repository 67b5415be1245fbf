"""What a run leaves when it has come to its end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, Card
from resnetkit.data.loader import PixelSource
from resnetkit.errors import PictureError
from resnetkit.evaluation.result import Evaluation
from resnetkit.images.decode import attempt
from resnetkit.images.thumbnail import thumbnail
from resnetkit.serialization import to_data, to_json
from resnetkit.training.checkpoint import STATE_FOLDER
from resnetkit.training.report import report
from resnetkit.training.run_folder import REPORT_FILE, RESULTS_FILE, SHOWN, Results, Run, Thumbnail, read_run


def leave_results(folder: Path, card: Card, results: Results) -> Run:
    """The card with its figures, then the results, which say that the run has finished, then what is made from them."""
    files.write_text(folder / "model" / CARD_FILE, to_json(card))
    files.write_text(folder / RESULTS_FILE, json.dumps(to_data(results), ensure_ascii=False) + "\n")
    return tidied(folder)


def tidied(folder: Path) -> Run:
    """A finished run, with its page and without what it needed to go on."""
    run = read_run(folder)
    if not (folder / REPORT_FILE).exists():
        files.write_text(folder / REPORT_FILE, report([run]))
    files.remove_folder(folder / STATE_FOLDER)
    files.sweep(folder)
    return run


def thumbnails(evaluation: Evaluation, source: PixelSource) -> tuple[Thumbnail, ...]:
    """The pictures that the report shows, by their numbers in the evaluation."""
    numbers = source.readable(np.arange(len(source)))
    chosen = sorted({*evaluation.mistakes(SHOWN), *evaluation.unsure(SHOWN)})
    images = {i: attempt(source.pictures.image, int(numbers[i])) for i in chosen}
    return tuple(Thumbnail(i, thumbnail(im)) for i, im in images.items() if not isinstance(im, PictureError))
