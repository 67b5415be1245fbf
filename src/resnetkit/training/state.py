"""The state of a run between two steps, beside its tensors: ``state.json`` of a checkpoint.

This module imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from resnetkit.errors import Fault, TextError, WeightsError
from resnetkit.serialization import from_data, parse_json, read_text, to_data
from resnetkit.training.events import EpochMetrics
from resnetkit.training.recipe import Recipe

_MAX_CHARS = 64 * 2**20  # an epoch takes 300 characters, an unreadable image 100
_MAX_COUNT = 2**53


@dataclass(frozen=True)
class EpochTotals:
    """The totals over the valid steps of an epoch so far; ``lr`` is that of the last step.

    ``n_correct`` counts images; a mixed image counts by the weight of the predicted class.
    """

    n_images: int = 0
    n_correct: float = 0.0
    loss_sum: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0

    def add_step(self, n_images: int, n_correct: float, loss: float) -> EpochTotals:
        """Return the totals with one more step.

        Args:
            n_images: The images of the step.
            n_correct: The correct predictions.
            loss: The mean loss.
        """
        correct, loss_sum = self.n_correct + n_correct, self.loss_sum + loss * n_images
        return replace(self, n_images=self.n_images + n_images, n_correct=correct, loss_sum=loss_sum)

    @property
    def mean_loss(self) -> float:
        """The mean loss over the images; 0 before the first step."""
        return self.loss_sum / max(self.n_images, 1)

    @property
    def accuracy(self) -> float:
        """The accuracy, 0 to 1."""
        return self.n_correct / max(self.n_images, 1)

    @property
    def images_per_second(self) -> float:
        """The throughput of training."""
        return self.n_images / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class TrainState:
    """The position and the history of a run.

    Attributes:
        global_step: The steps of the run so far.
        epoch: The epoch, from 1.
        step: The steps of the epoch so far.
        batch_size: The batch size that the step counts.
        totals: The totals over the epoch so far.
        bad_steps: The latest steps in a row whose loss or gradient was NaN or infinite.
        best_epoch: The best of the validated epochs; 0 before the first.
        epochs: The metrics of the validated epochs.
        seconds: The training time so far.
        unreadable: Unreadable images and the reasons.
        metrics_bytes: The size of ``metrics.jsonl``.
        changes: The settings that were changed when the run was resumed.
        is_overridden: Whether one of the changes makes the result differ from that of an uninterrupted run.
        environment: Versions, hardware and the digest of the images, which also decide the result of the run.
        recipe: The recipe of the run.
        classes: The class names.
    """

    global_step: int = 0
    epoch: int = 1
    step: int = 0
    batch_size: int = 0
    totals: EpochTotals = EpochTotals()
    bad_steps: int = 0
    best_epoch: int = 0
    epochs: tuple[EpochMetrics, ...] = ()
    seconds: float = 0.0
    unreadable: tuple[tuple[str, str], ...] = ()
    metrics_bytes: int = 0
    changes: tuple[str, ...] = ()
    is_overridden: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    recipe: Recipe | None = None
    classes: tuple[str, ...] = ()

    def advance_epoch(self, epoch: EpochMetrics, best_epoch: int) -> TrainState:
        """Return the state at the start of the next epoch.

        Args:
            epoch: The metrics of this epoch.
            best_epoch: The best epoch so far.
        """
        epochs = (*self.epochs, epoch)
        return replace(self, epoch=self.epoch + 1, step=0, totals=EpochTotals(), epochs=epochs, best_epoch=best_epoch)

    def rescale(self, steps_per_epoch: int, batch_size: int) -> TrainState:
        """Return the same position for another batch size, rounded down so that no image is missed.

        Args:
            steps_per_epoch: The steps of an epoch with that batch size.
            batch_size: The batch size.
        """
        step = self.step if self.batch_size == batch_size else self.step * self.batch_size // batch_size
        return replace(self, step=min(step, steps_per_epoch), batch_size=batch_size)

    def find_faults(self) -> Iterator[Fault]:
        """Find contradictions in the state."""
        n_epochs, totals = len(self.epochs), self.totals
        counts: dict[str, float] = {
            **{name: getattr(self, name) for name in ("global_step", "step", "bad_steps", "metrics_bytes")},
            "totals.n_images": totals.n_images,
            "totals.n_correct": totals.n_correct,
        }
        limits = [(name, n, 0 <= n < _MAX_COUNT, "0 or more") for name, n in counts.items()]
        best_is_valid = bool(n_epochs) <= self.best_epoch <= n_epochs
        limits += [
            ("epoch", self.epoch, self.epoch == n_epochs + 1, f"{n_epochs + 1}, after {n_epochs} validated epochs"),
            ("best_epoch", self.best_epoch, best_is_valid, f"{min(n_epochs, 1)} to {n_epochs}"),
            ("step", self.step, self.step <= self.global_step, f"at most {self.global_step}, the steps of the run"),
            ("batch_size", self.batch_size, 1 <= self.batch_size <= 65_536, "1 to 65,536"),
        ]
        yield from (Fault(path, str(value), allowed) for path, value, is_valid, allowed in limits if not is_valid)


def serialize_state(state: TrainState) -> str:
    """Serialize a state as ASCII JSON, which also holds file names that are not UTF-8."""
    return json.dumps(to_data(state), allow_nan=False) + "\n"


def read_state(path: Path) -> TrainState:
    """Read a state from its file.

    Raises:
        WeightsError: the file is damaged, or contradicts itself; found as a TextError.
    """
    try:
        data = parse_json(read_text(path, "this file", _MAX_CHARS), path.name, _MAX_CHARS)
        state = from_data(TrainState, data, path.name)
        if faults := list(state.find_faults()):
            raise TextError(f"{path.name} does not describe a state", faults)
    except TextError as error:
        raise WeightsError(error.what, where=[str(path), *error.where[:5]]) from None
    return state


class SettingChange(NamedTuple):
    """A setting that differs: its path, and both values as text."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def diff_settings(previous: Mapping[str, Any], current: Mapping[str, Any], path: str = "") -> Iterator[SettingChange]:
    """Find the values that differ between two nested tables.

    Args:
        previous: The previous table.
        current: The current table.
        path: The path of both tables.
    """
    for key in dict.fromkeys([*previous, *current]):
        old, new, key_path = previous.get(key), current.get(key), f"{path}.{key}".lstrip(".")
        old, new = _number_tables(old, new)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from diff_settings(old, new, key_path)
        elif old != new:
            yield SettingChange(key_path, _format_value(old), _format_value(new))


def _number_tables(*values: Any) -> tuple[Any, ...]:
    """Turn lists of equally many tables, such as stages, into tables with the keys 1, 2 and so on."""
    if len({len(value) if isinstance(value, list) else -1 for value in values}) > 1:
        return values
    if not all(isinstance(value, list) and all(isinstance(item, Mapping) for item in value) for value in values):
        return values
    return tuple({str(i): item for i, item in enumerate(value, 1)} for value in values)


def _format_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
