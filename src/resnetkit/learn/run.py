"""What a run tells while it goes on, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Plan
from resnetkit.learn.data import Data
from resnetkit.learn.evaluate import Evaluation
from resnetkit.learn.recipe import Recipe

RECIPE_FILE, NETWORK_FILE = "run.toml", "network.toml"
METRICS_FILE, ENVIRONMENT_FILE, REPORT_FILE = "metrics.jsonl", "environment.json", "report.html"


@dataclass(frozen=True)
class Prepared:
    """A run that is about to start: everything that was decided."""

    recipe: Recipe
    data: Data
    card: Card
    plan: Plan
    device: str
    precision: str
    out: Path


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
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """A finished run. ``evaluation`` is of ``test`` where the data has it, else of ``val``."""

    path: Path
    recipe: Recipe
    card: Card
    epochs: tuple[Epoch, ...]
    best: int
    evaluation: Evaluation
    seconds: float


Watch = Callable[[Prepared | Step | Epoch], None]
