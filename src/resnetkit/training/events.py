"""Events of a run: the records that `on_event` receives.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Plan
from resnetkit.data.dataset import Dataset
from resnetkit.data.identity import DatasetIdentity
from resnetkit.training.recipe import Recipe

if TYPE_CHECKING:
    from resnetkit.data.loader import ImageLoader
    from resnetkit.network.layers import NetworkModule
    from resnetkit.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class PreparedRun:
    """Everything that training starts with, decided and loaded; the first event of a run.

    Attributes:
        recipe: The training configuration.
        dataset: The images, divided into splits.
        identity: The digests of the images.
        card: The card of the model that the run trains.
        spec_input: The input size (C, H, W) in the spec of the named model.
        plan: The plan of the network.
        device: The torch device.
        precision: ``fp32`` or ``bf16``.
        model: The network with its first weights.
        out: The run folder.
        notes: Sentences about the data and the fine-tuning.
        resume_notes: The checkpoint's position and the changed settings; empty for a new run.
        world_size: The number of processes.
        memory_line: The estimated and the free memory.
        environment: Versions and hardware that decide the result of the run beside its recipe.
        loaders: The images of each split as pixels.
        created_folders: The run folder and the parents that this process created.
        checkpoint: The checkpoint to resume from; None at the beginning of a run.
    """

    recipe: Recipe
    dataset: Dataset
    identity: DatasetIdentity
    card: Card
    spec_input: tuple[int, int, int]
    plan: Plan
    device: str
    precision: str
    model: NetworkModule
    out: Path = Path()
    notes: tuple[str, ...] = ()
    resume_notes: tuple[str, ...] = ()
    world_size: int = 1
    memory_line: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    loaders: dict[str, ImageLoader] = field(default_factory=dict)
    created_folders: tuple[Path, ...] = ()
    checkpoint: Checkpoint | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the run ends, if it is resumed, with the weights of an uninterrupted run."""
        return self.device == "cpu" and not (self.checkpoint and self.checkpoint.state.is_overridden)


@dataclass(frozen=True)
class StepMetrics:
    """The position after a step, the means over the epoch so far, and the step's learning rate."""

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

    Accuracies are 0 to 1; the training accuracy is measured on augmented images.
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


EventCallback = Callable[[PreparedRun | StepMetrics | EpochMetrics], None]
