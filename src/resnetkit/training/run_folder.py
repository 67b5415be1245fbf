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

from resnetkit.architecture.card import Card, model_folder, read_card
from resnetkit.architecture.plan import Plan
from resnetkit.data.dataset import Data
from resnetkit.errors import Fault, TextError, UsageError, WeightsError
from resnetkit.evaluation.result import Evaluation
from resnetkit.serialization import from_data, from_toml, parse_json, read_text
from resnetkit.training.recipe import Recipe, check

RECIPE_FILE, NETWORK_FILE = "run.toml", "network.toml"
METRICS_FILE, ENVIRONMENT_FILE, REPORT_FILE = "metrics.jsonl", "environment.json", "report.html"
RESULTS_FILE = "results.json"
SHOWN = 24  # pictures on the page: of the mistakes, and of the least sure answers
KIND = "val also chose the epoch, so this is kind"
_LONGEST = 256 * 2**20


@dataclass(frozen=True)
class Prepared:
    """A run that is about to start: everything that was decided. ``own_input`` is what the network is made for.

    ``resumed`` says where a run goes on, and what is set otherwise than it was; empty for a new one. ``memory`` is what
    it will need, and what there is.
    """

    recipe: Recipe
    data: Data
    card: Card
    own_input: tuple[int, int, int]
    plan: Plan
    device: str
    precision: str
    out: Path
    notes: tuple[str, ...]
    resumed: tuple[str, ...] = ()
    processes: int = 1
    memory: str = ""


@dataclass(frozen=True)
class Step:
    """After a step: where the run stands, the means over the epoch so far, and the step's learning rate."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    lr: float = 0.0


@dataclass(frozen=True)
class Epoch:
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

    number: int
    jpeg: str


@dataclass(frozen=True)
class Results:
    """``results.json``: what a run came to. ``ended`` says why it did not go on, where it ended early."""

    best: int
    seconds: float
    device: str
    precision: str
    parts: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    evaluation: Evaluation
    thumbnails: tuple[Thumbnail, ...] = ()
    ended: str = ""


@dataclass(frozen=True)
class Run:
    """A finished run. Its evaluation is of ``test`` where the data has it, else of ``val``."""

    path: Path
    recipe: Recipe
    card: Card
    epochs: tuple[Epoch, ...]
    results: Results
    environment: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def evaluation(self) -> Evaluation:
        """Of the epoch that was best on ``val``."""
        return self.results.evaluation

    @property
    def best(self) -> int:
        """That epoch, from 1."""
        return self.results.best


Watch = Callable[[Prepared | Step | Epoch], None]


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    return model_folder(folder / "model") is not None and (folder / RESULTS_FILE).is_file()


def resuming(folder: str | Path) -> str:
    """The command that goes on with a run."""
    return f"resnetkit train --resume {shlex.quote(str(folder))}"


def begun_before(out: str | Path | None) -> bool:
    """Whether a run stands there, to which processes that were started again go back; raises `UsageError`."""
    if out is None:
        fix = "name the folder of the run: --out RUN"
        raise UsageError("processes that are started again do not know which run was theirs", where="--out", fix=fix)
    return (Path(out) / RECIPE_FILE).is_file()


def require_run(folder: Path) -> None:
    """Raise `UsageError` where no run has begun."""
    if not (folder / RECIPE_FILE).is_file():
        raise UsageError("this is no run folder", where=str(folder), fix="name a folder that `resnetkit train` wrote")


def require_one(data: object, out: object, run: object) -> None:
    """Raise `UsageError` unless there is a run to begin, or one to go on with."""
    if not data and not run:
        fix = "name DATA, a folder of pictures, or go on with a run: --resume RUN"
        raise UsageError("there is nothing to train on", where="resnetkit train", fix=fix)
    if out and run:
        raise UsageError("a run goes on in its own folder", where=f"--out {out}", fix="leave --out out")


def read_recipe(folder: Path) -> Recipe:
    """How a run was begun; raises `TextError`."""
    path = folder / RECIPE_FILE
    return check(from_toml(Recipe, read_text(path, "this recipe"), str(path)))


def read_run(folder: str | Path) -> Run:
    """A run from its folder; raises `UsageError` where it is none, or has not finished."""
    path = Path(folder)
    require_run(path)
    model = model_folder(path / "model")
    if model is None or not finished(path):
        what = "this run has not finished, so there is nothing to report"
        raise UsageError(what, where=str(folder), fix=resuming(folder))
    try:
        results = from_data(Results, _json(path / RESULTS_FILE), str(path / RESULTS_FILE))
        environment = _json(path / ENVIRONMENT_FILE)
        epochs = _epochs(path / METRICS_FILE)
        run = Run(path, read_recipe(path), read_card(model), epochs, results, environment)
        if contradictions := _faults(run):
            raise TextError(f"{path} does not describe a run", contradictions)
    except TextError as error:
        raise WeightsError(error.what, where=error.where, fix="copy the whole run folder again") from None
    return run


def _faults(run: Run) -> list[Fault]:
    """What contradicts itself in a run that was read."""
    limits = [
        ("metrics", f"{len(run.epochs)} epochs", bool(run.epochs), "one at least"),
        ("best", str(run.best), 1 <= run.best <= len(run.epochs), f"1 to {len(run.epochs)}"),
        ("environment", "no table", _is_environment(run.environment), "names and values"),
    ]
    faults = [Fault(path, came, allowed) for path, came, fits, allowed in limits if not fits]
    return faults + run.evaluation.faults()


def _is_environment(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("packages", {}), dict)


def _json(path: Path) -> Any:
    """An answer for each of a million pictures is a long text."""
    return parse_json(read_text(path, "this file", _LONGEST), str(path), _LONGEST)


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """Those lines that are no steps, of which there are thousands; a line without a kind is from before there were."""
    lines = enumerate(read_text(path, "this file", _LONGEST).splitlines(), 1)
    found = [parse_json(line, f"line {i} of {path}") for i, line in lines if not line.startswith(_STEP)]
    told = [{k: v for k, v in line.items() if k != "kind"} if isinstance(line, dict) else line for line in found]
    return tuple(from_data(Epoch, line, str(path)) for line in told)


def step_line(epoch: int, step: int, lr: float, loss: float) -> str:
    """A line of ``metrics.jsonl`` of the kind ``step``; a loss that is no number is none."""
    told = {"epoch": epoch, "step": step, "lr": lr, "loss": loss if math.isfinite(loss) else None}
    return json.dumps({"kind": "step", **told})


def epoch_line(epoch: Epoch) -> str:
    """A line of the kind ``epoch``."""
    return json.dumps({"kind": "epoch", **asdict(epoch)})


_STEP = '{"kind": "step"'
