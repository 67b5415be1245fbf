"""The run folder: create it, describe it, read it, remove it.

A run folder holds ``run.toml`` (the recipe), ``images.csv`` (split, class, name and digest of each image) and
``environment.json``. ``metrics.jsonl`` has a line for each step and epoch. ``network.toml`` is added for a network
that is not in the catalog, ``trackers/`` if there are trackers. Until the run has finished it also holds ``state/``
(checkpoints). A finished run has ``model/`` (a model folder: the epoch that was best on ``val``), ``results.json`` and
``report.html``, which is built from the other files.

This module imports no torch.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.architecture.card import Card, read_card
from resnetkit.architecture.catalog import CATALOG
from resnetkit.errors import Fault, MachineError, TextError, UsageError, WeightsError
from resnetkit.evaluation.result import Evaluation
from resnetkit.runtime.environment import collect_environment
from resnetkit.serialization import from_data, from_toml, parse_json, read_text, to_toml
from resnetkit.training.events import EpochMetrics, PreparedRun
from resnetkit.training.recipe import Recipe
from resnetkit.training.recipe_limits import check_recipe
from resnetkit.training.trackers.client import TRACKERS_FOLDER
from resnetkit.weights.model_source import is_model_folder

RECIPE_FILE, NETWORK_FILE, IMAGES_FILE = "run.toml", "network.toml", "images.csv"
METRICS_FILE, ENVIRONMENT_FILE, REPORT_FILE = "metrics.jsonl", "environment.json", "report.html"
RESULTS_FILE, STATE_FOLDER = "results.json", "state"
THUMBNAILS_PER_GROUP = 24  # images in the report: of the mistakes, and of the least confident predictions
VAL_BIAS_NOTE = "val also chose the epoch, so this accuracy is likely too high"
_MAX_CHARS = 256 * 2**20
_STEP_PREFIX = '{"kind": "step"'


@dataclass(frozen=True)
class Thumbnail:
    """A small image of the evaluated split: its index there, and a JPEG in base64."""

    index: int
    jpeg: str


@dataclass(frozen=True)
class Results:
    """The content of ``results.json``; ``stop_reason`` is empty unless training ended early."""

    best_epoch: int
    seconds: float
    device: str
    precision: str
    split_sizes: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    evaluation: Evaluation
    thumbnails: tuple[Thumbnail, ...] = ()
    stop_reason: str = ""


@dataclass(frozen=True)
class Run:
    """A finished run. Its evaluation is on ``test`` if the data has that split, else on ``val``."""

    path: Path
    recipe: Recipe
    card: Card
    epochs: tuple[EpochMetrics, ...]
    results: Results
    environment: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the epoch that was best on ``val``."""
        return self.results.evaluation

    @property
    def best_epoch(self) -> int:
        """The epoch that was best on ``val``, from 1."""
        return self.results.best_epoch


# ------------------------------------------------------------------------------------------------- the state of a run


def is_run_finished(folder: Path) -> bool:
    """Return whether a folder holds a finished run."""
    return is_model_folder(folder / "model") and (folder / RESULTS_FILE).is_file()


def format_resume_command(folder: str | Path) -> str:
    """Return the command that resumes a run."""
    return f"resnetkit train --resume {shlex.quote(str(folder))}"


def has_run(out: str | Path | None) -> bool:
    """Return whether ``out`` holds the run that restarted processes have to resume.

    Raises:
        UsageError: ``out`` is missing, so restarted processes do not know their run.
    """
    if out is None:
        fix = "name the run folder: --out RUN"
        raise UsageError("restarted processes need --out to know which run to resume", where="--out", fix=fix)
    return (Path(out) / RECIPE_FILE).is_file()


def check_run_folder(folder: Path) -> None:
    """Check that a folder holds a run.

    Raises:
        UsageError: it does not.
    """
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError("not a run folder", where=str(folder), fix="name a folder that `resnetkit train` wrote")


def check_new_or_resume(data: object, out: object, resume: object) -> None:
    """Check that there is data for a new run, or a run to resume.

    Args:
        data: The data of a new run, or an empty value.
        out: The folder of a new run, or an empty value.
        resume: The folder of a run to resume, or an empty value.

    Raises:
        UsageError: both data and run are missing, or a resumed run is given another folder.
    """
    if not data and not resume:
        fix = "name DATA, a folder of images, or resume a run: --resume RUN"
        raise UsageError("no training data was given", where="resnetkit train", fix=fix)
    if out and resume:
        raise UsageError("--out cannot be used with --resume", where=f"--out {out}", fix="omit --out")


# --------------------------------------------------------------------------------------------- creating and removing


def choose_run_folder(out: str | Path | None, recipe: Recipe, model_name: str) -> Path:
    """Return the folder for a new run.

    Args:
        out: The folder that the user named; None for the next free ``runs/DATA-MODEL-N``.
        recipe: The recipe of the run.
        model_name: The model's name for the folder's name.

    Raises:
        UsageError: the folder exists already, or lies inside the data and would be read as a class.
    """
    check_new_folder(out)
    path = _number_run_folder(recipe, model_name) if out is None else Path(out)
    if Path(recipe.data).is_dir() and path.absolute().is_relative_to(Path(recipe.data).absolute()):
        raise UsageError("the run folder is inside the data", where=str(path), fix="name a folder elsewhere: --out")
    return path


def check_new_folder(out: str | Path | None) -> None:
    """Check that a run can be written to the folder that the user named, if there is one.

    Raises:
        UsageError: the folder exists already.
    """
    if out is None:  # a numbered folder may appear meanwhile; `make_run_folder` then takes the next number
        return
    path = Path(out)
    if is_run_finished(path):
        raise UsageError("--out holds a finished run", where=str(path), fix="name another --out")
    if (path / RECIPE_FILE).exists():
        raise UsageError("--out holds an unfinished run", where=str(path), fix=format_resume_command(path))
    if path.exists():
        raise UsageError("--out exists already", where=str(path), fix="name a folder that does not exist")


def _number_run_folder(recipe: Recipe, model_name: str) -> Path:
    stem = f"{Path(recipe.data).name.partition('.')[0] or 'data'}-{model_name}"
    return next(path for i in range(1, 10**9) if not (path := Path("runs") / f"{stem}-{i}").exists())


def make_run_folder(out: Path, *, numbered: bool) -> tuple[Path, ...]:
    """Create a run folder, under the next number if another run took the name meanwhile.

    Args:
        out: The folder to create.
        numbered: Whether its name ends with a number that may be raised.

    Returns:
        The folder, and the parents that were created with it.

    Raises:
        MachineError: the folder cannot be created.
    """
    while True:
        try:
            return files.make_folder(out)
        except MachineError as error:
            if not numbered or not isinstance(error.__cause__, FileExistsError):
                raise
            stem, _, number = out.name.rpartition("-")
            out = out.with_name(f"{stem}-{int(number) + 1}")


def write_run_metadata(run: PreparedRun) -> None:
    """Write the recipe, the images, the network and the environment of a run into its folder."""
    files.write_text(run.out / RECIPE_FILE, to_toml(run.recipe))
    files.write_text(run.out / IMAGES_FILE, run.identity.table)
    if run.recipe.model not in CATALOG:  # the model's own file can change or disappear
        files.write_text(run.out / NETWORK_FILE, to_toml(run.card.spec))
    files.write_text(run.out / ENVIRONMENT_FILE, json.dumps(collect_environment(), indent=2) + "\n")


def remove_partial_run(created_folders: Sequence[Path]) -> None:
    """Delete a run folder that this process created and that holds no checkpoint, with its new parents."""
    folder = created_folders[0]
    for name in (RECIPE_FILE, NETWORK_FILE, IMAGES_FILE, ENVIRONMENT_FILE, METRICS_FILE):
        (folder / name).unlink(missing_ok=True)
    files.remove_folder(folder / STATE_FOLDER)
    files.remove_folder(folder / TRACKERS_FOLDER)
    files.remove_temporary(folder)
    files.remove_empty_folders(created_folders)


# ------------------------------------------------------------------------------------------------ reading and writing


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run; raises `TextError` if it is not valid."""
    path = folder / RECIPE_FILE
    return check_recipe(from_toml(Recipe, read_text(path, "this recipe"), str(path)))


def read_run(folder: str | Path) -> Run:
    """Read a finished run from its folder.

    Raises:
        UsageError: the folder holds no run, or an unfinished one.
        WeightsError: a file of the run is damaged; found as a TextError.
    """
    path = Path(folder)
    check_run_folder(path)
    if not is_run_finished(path):
        what = "this run has not finished, so there is nothing to report"
        raise UsageError(what, where=str(folder), fix=format_resume_command(folder))
    try:
        results = from_data(Results, _read_json(path / RESULTS_FILE), str(path / RESULTS_FILE))
        environment = _read_json(path / ENVIRONMENT_FILE)
        epochs = parse_epochs(read_text(path / METRICS_FILE, "this file", _MAX_CHARS), path / METRICS_FILE)
        run = Run(path, read_recipe(path), read_card(path / "model"), epochs, results, environment)
        if faults := _find_faults(run):
            raise TextError(f"{path} does not describe a run", faults)
    except TextError as error:
        raise WeightsError(error.what, where=error.where, fix="copy the whole run folder again") from None
    return run


def _find_faults(run: Run) -> list[Fault]:
    """Return the contradictions in a run that was read."""
    faults = []
    if not run.epochs:
        faults.append(Fault("metrics", "0 epochs", "at least one"))
    if not 1 <= run.best_epoch <= len(run.epochs):
        faults.append(Fault("best_epoch", str(run.best_epoch), f"1 to {len(run.epochs)}"))
    if not isinstance(run.environment, dict) or not isinstance(run.environment.get("packages", {}), dict):
        faults.append(Fault("environment", "no table", "names and values"))
    return faults + run.evaluation.find_faults()


def _read_json(path: Path) -> Any:
    """Read JSON of up to 256 MiB, enough for the predictions of a million images."""
    return parse_json(read_text(path, "this file", _MAX_CHARS), str(path), _MAX_CHARS)


def has_environment(folder: Path) -> bool:
    """Return whether the file of the environment can be read."""
    try:
        return isinstance(_read_json(folder / ENVIRONMENT_FILE), dict)
    except UsageError:
        return False


def parse_epochs(text: str, path: Path) -> tuple[EpochMetrics, ...]:
    """Parse the lines of epochs. Lines of steps are skipped unparsed, as there are thousands of them.

    Args:
        text: The lines of a file of metrics.
        path: The file, for an error.
    """
    lines = enumerate(text.splitlines(), 1)
    records = [parse_json(line, f"line {i} of {path}") for i, line in lines if not line.startswith(_STEP_PREFIX)]
    for record in records:
        if isinstance(record, dict):
            record.pop("kind", None)  # earlier versions wrote no kind
    return tuple(from_data(EpochMetrics, record, str(path)) for record in records)


def format_step_line(epoch: int, step: int, lr: float, loss: float) -> str:
    """Return a line of ``metrics.jsonl`` of the kind ``step``.

    Args:
        epoch: The epoch, from 1.
        step: The step in the epoch, from 1.
        lr: The learning rate of the step.
        loss: The mean loss; written as null if it is NaN or infinite.
    """
    values = {"epoch": epoch, "step": step, "lr": lr, "loss": loss if math.isfinite(loss) else None}
    return json.dumps({"kind": "step", **values})


def format_epoch_line(epoch: EpochMetrics) -> str:
    """Return a line of ``metrics.jsonl`` of the kind ``epoch``."""
    return json.dumps({"kind": "epoch", **asdict(epoch)})
