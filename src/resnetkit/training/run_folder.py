"""What a run tells while it goes on, and what it leaves behind.

A run folder holds ``run.toml`` (the recipe), ``network.toml`` (a network that is not of the catalogue),
``environment.json``, ``metrics.jsonl`` (a line for each step and each epoch), ``state/`` (checkpoints) until it has
finished, ``trackers/`` where there are any, and then ``model/`` (a model folder: the epoch that was best on ``val``),
``results.json`` and ``report.html``, which is made from the others.

This module imports no torch.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnetkit.architecture.card import Card, read_card
from resnetkit.architecture.plan import Plan
from resnetkit.data.dataset import Dataset
from resnetkit.errors import Fault, TextError, UsageError, WeightsError
from resnetkit.evaluation.result import Evaluation
from resnetkit.serialization import from_data, from_toml, parse_json, read_text
from resnetkit.training.recipe import Recipe, check_recipe
from resnetkit.weights.model_source import is_model_folder

RECIPE_FILE, NETWORK_FILE = "run.toml", "network.toml"
METRICS_FILE, ENVIRONMENT_FILE, REPORT_FILE = "metrics.jsonl", "environment.json", "report.html"
RESULTS_FILE = "results.json"
THUMBNAILS_PER_GROUP = 24  # pictures on the page: of the mistakes, and of the least sure answers
VAL_BIAS_NOTE = "val also chose the epoch, so this is kind"
_MAX_CHARS = 256 * 2**20


@dataclass(frozen=True)
class RunSetup:
    """A run that is about to start: everything that was decided. ``own_input`` is what the network is made for.

    ``resumed`` says where a run goes on, and what is set otherwise than it was; empty for a new one. ``memory`` is what
    it will need, and what there is.
    """

    recipe: Recipe
    dataset: Dataset
    card: Card
    spec_input: tuple[int, int, int]
    plan: Plan
    device: str
    precision: str
    out: Path
    notes: tuple[str, ...]
    resume_notes: tuple[str, ...] = ()
    world_size: int = 1
    memory_line: str = ""


@dataclass(frozen=True)
class StepMetrics:
    """After a step: where the run stands, the means over the epoch so far, and the step's learning rate."""

    epoch: int
    step: int
    steps_per_epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    lr: float = 0.0


@dataclass(frozen=True)
class EpochMetrics:
    """A line of ``metrics.jsonl`` of the kind ``epoch``.

    Accuracies are 0 to 1; the training one is measured on augmented pictures.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    val_n: int
    val_correct: int
    val_accuracy: float
    val_loss: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of the evaluated part, by its number: a JPEG in base64."""

    index: int
    jpeg: str


@dataclass(frozen=True)
class Results:
    """``results.json``: what a run came to. ``ended`` says why it did not go on, where it ended early."""

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
    """A finished run. Its evaluation is of ``test`` where the data has it, else of ``val``."""

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
        """Of the epoch that was best on ``val``."""
        return self.results.evaluation

    @property
    def best_epoch(self) -> int:
        """That epoch, from 1."""
        return self.results.best_epoch


EventCallback = Callable[[RunSetup | StepMetrics | EpochMetrics], None]


def is_run_finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return is_model_folder(folder / "model") and (folder / RESULTS_FILE).is_file()


def format_resume_command(folder: str | Path) -> str:
    """The command that goes on with a run."""
    return f"resnetkit train --resume {shlex.quote(str(folder))}"


def has_run(out: str | Path | None) -> bool:
    """Whether a run stands there, to which processes that were started again go back; raises `UsageError`."""
    if out is None:
        fix = "name the folder of the run: --out RUN"
        raise UsageError("processes that are started again do not know which run was theirs", where="--out", fix=fix)
    return (Path(out) / RECIPE_FILE).is_file()


def check_run_folder(folder: Path) -> None:
    """Raise `UsageError` where no run has begun."""
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError("this is no run folder", where=str(folder), fix="name a folder that `resnetkit train` wrote")


def check_new_or_resume(data: object, out: object, resume: object) -> None:
    """Raise `UsageError` unless there is a run to begin, or one to go on with."""
    if not data and not resume:
        fix = "name DATA, a folder of pictures, or go on with a run: --resume RUN"
        raise UsageError("there is nothing to train on", where="resnetkit train", fix=fix)
    if out and resume:
        raise UsageError("a run goes on in its own folder", where=f"--out {out}", fix="leave --out out")


def read_recipe(folder: Path) -> Recipe:
    """How a run was begun; raises `TextError`."""
    path = folder / RECIPE_FILE
    return check_recipe(from_toml(Recipe, read_text(path, "this recipe"), str(path)))


def read_run(folder: str | Path) -> Run:
    """A run from its folder; raises `UsageError` where it is none, or has not finished."""
    path = Path(folder)
    check_run_folder(path)
    if not is_run_finished(path):
        what = "this run has not finished, so there is nothing to report"
        raise UsageError(what, where=str(folder), fix=format_resume_command(folder))
    try:
        results = from_data(Results, _read_json(path / RESULTS_FILE), str(path / RESULTS_FILE))
        environment = _read_json(path / ENVIRONMENT_FILE)
        epochs = _read_epochs(path / METRICS_FILE)
        run = Run(path, read_recipe(path), read_card(path / "model"), epochs, results, environment)
        if faults := _find_faults(run):
            raise TextError(f"{path} does not describe a run", faults)
    except TextError as error:
        raise WeightsError(error.what, where=error.where, fix="copy the whole run folder again") from None
    return run


def _find_faults(run: Run) -> list[Fault]:
    """What contradicts itself in a run that was read."""
    limits = [
        ("metrics", f"{len(run.epochs)} epochs", bool(run.epochs), "one at least"),
        ("best", str(run.best_epoch), 1 <= run.best_epoch <= len(run.epochs), f"1 to {len(run.epochs)}"),
        ("environment", "no table", _is_environment(run.environment), "names and values"),
    ]
    faults = [Fault(path, value, allowed) for path, value, is_valid, allowed in limits if not is_valid]
    return faults + run.evaluation.find_faults()


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("packages", {}), dict)


def _read_json(path: Path) -> Any:
    """An answer for each of a million pictures is a long text."""
    return parse_json(read_text(path, "this file", _MAX_CHARS), str(path), _MAX_CHARS)


def _read_epochs(path: Path) -> tuple[EpochMetrics, ...]:
    """Those lines that are no steps, of which there are thousands; a line without a kind is from before there were."""
    lines = enumerate(read_text(path, "this file", _MAX_CHARS).splitlines(), 1)
    records = [parse_json(line, f"line {i} of {path}") for i, line in lines if not line.startswith(_STEP_PREFIX)]
    epoch_records = [
        {k: v for k, v in line.items() if k != "kind"} if isinstance(line, dict) else line for line in records
    ]
    return tuple(from_data(EpochMetrics, line, str(path)) for line in epoch_records)


def format_step_line(epoch: int, step: int, lr: float, loss: float) -> str:
    """A line of ``metrics.jsonl`` of the kind ``step``; a loss that is no number is none."""
    values = {"epoch": epoch, "step": step, "lr": lr, "loss": loss if math.isfinite(loss) else None}
    return json.dumps({"kind": "step", **values})


def format_epoch_line(epoch: EpochMetrics) -> str:
    """A line of the kind ``epoch``."""
    return json.dumps({"kind": "epoch", **asdict(epoch)})


_STEP_PREFIX = '{"kind": "step"'
