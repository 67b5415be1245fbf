"""What a run tells while it goes on, and what it leaves behind. No torch.

A run folder holds ``run.toml`` (the recipe), ``network.toml`` (a network that is not of the catalogue),
``environment.json``, ``metrics.jsonl`` (a line for each epoch), and when it has finished ``model/`` (a model folder:
the epoch that was best on ``val``), ``results.json`` and ``report.html``, which is made from the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.architecture.card import Card, model_folder, read_card
from resnetkit.architecture.plan import Plan
from resnetkit.errors import Fault, TextError, UsageError, WeightsError
from resnetkit.learn.data import Data
from resnetkit.learn.evaluation import Evaluation
from resnetkit.learn.recipe import Recipe, check
from resnetkit.text import from_data, from_toml, parse_json, read_text

RECIPE_FILE, NETWORK_FILE = "run.toml", "network.toml"
METRICS_FILE, ENVIRONMENT_FILE, REPORT_FILE = "metrics.jsonl", "environment.json", "report.html"
RESULTS_FILE = "results.json"
SHOWN = 24  # pictures on the page: of the mistakes, and of the least sure answers
KIND = "val also chose the epoch, so this is kind"
_LONGEST = 256 * 2**20


@dataclass(frozen=True)
class Prepared:
    """A run that is about to start: everything that was decided. ``own_input`` is what the network is made for."""

    recipe: Recipe
    data: Data
    card: Card
    own_input: tuple[int, int, int]
    plan: Plan
    device: str
    precision: str
    out: Path
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """After a step: where the run stands, and the means over the epoch so far."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float


@dataclass(frozen=True)
class Epoch:
    """A line of ``metrics.jsonl``. Accuracies are 0 to 1; the training one is measured on augmented pictures."""

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


def read_run(folder: str | Path) -> Run:
    """A run from its folder; raises `UsageError` where it is none, or has not finished."""
    path = Path(folder)
    if not (path / RECIPE_FILE).is_file():
        raise UsageError("this is no run folder", where=str(folder), fix="name a folder that `resnetkit train` wrote")
    model = model_folder(path / "model")
    if model is None or not (path / RESULTS_FILE).is_file():
        raise UsageError("this run has not finished, so there is nothing to report", where=str(folder))
    try:
        recipe = check(from_toml(Recipe, read_text(path / RECIPE_FILE, "this recipe"), str(path / RECIPE_FILE)))
        results = from_data(Results, _json(path / RESULTS_FILE), str(path / RESULTS_FILE))
        environment = _json(path / ENVIRONMENT_FILE)
        run = Run(path, recipe, read_card(model), _epochs(path / METRICS_FILE), results, environment)
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
    lines = [parse_json(line, f"line {i} of {path}") for i, line in enumerate(_lines(path), 1)]
    return tuple(from_data(Epoch, line, str(path)) for line in lines)


def _lines(path: Path) -> list[str]:
    return read_text(path, "this file").splitlines()
