"""Where a run stands between two steps, beside its tensors: ``state.json`` of a checkpoint.

This module imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnetkit.errors import Fault, TextError, WeightsError
from resnetkit.serialization import from_data, parse_json, read_text, to_data
from resnetkit.training.run_folder import EpochMetrics

_MAX_CHARS = 64 * 2**20  # an epoch takes 300 characters, a picture that cannot be read 100
_MAX_COUNT = 2**53  # of a count


@dataclass(frozen=True)
class EpochTotals:
    """Over the sound steps of an epoch so far; ``loss`` is a sum over pictures, ``lr`` that of the last step.

    ``right`` is a number of pictures; one that was mixed of two is right by the share of the class that was named.
    """

    n_images: int = 0
    n_correct: float = 0.0
    loss_sum: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0

    def add_step(self, n_images: int, n_correct: float, loss: float) -> EpochTotals:
        """With one more step."""
        return replace(
            self,
            n_images=self.n_images + n_images,
            n_correct=self.n_correct + n_correct,
            loss_sum=self.loss_sum + loss * n_images,
        )

    @property
    def mean_loss(self) -> float:
        """Of a picture; 0 before the first."""
        return self.loss_sum / max(self.n_images, 1)

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return self.n_correct / max(self.n_images, 1)

    @property
    def images_per_second(self) -> float:
        """Pictures in a second."""
        return self.n_images / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class TrainState:
    """``steps`` counts all steps of the run; ``epoch`` (from 1) goes on after ``step`` steps of ``batch_size``.

    ``bad_steps`` are those in a row whose loss was no number. ``best`` is the best of the ``epochs`` that were
    measured, 0 before the first. ``unreadable`` has (picture, reason), ``metrics`` the length of ``metrics.jsonl`` in
    bytes, ``changes`` what was changed when the run was resumed, ``circumstances`` what else decides its numbers.
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
    environment: tuple[tuple[str, str], ...] = ()

    def advance_epoch(self, epoch: EpochMetrics, best_epoch: int) -> TrainState:
        """At the beginning of the next epoch."""
        next_epoch = self.epoch + 1
        return replace(
            self, epoch=next_epoch, step=0, totals=EpochTotals(), epochs=(*self.epochs, epoch), best_epoch=best_epoch
        )

    def rescale(self, steps_per_epoch: int, batch_size: int) -> TrainState:
        """The same place where an epoch has ``steps`` of ``batch_size``: rounded down, so that no picture is missed."""
        step = self.step if self.batch_size == batch_size else self.step * self.batch_size // batch_size
        return replace(self, step=min(step, steps_per_epoch), batch_size=batch_size)

    def find_faults(self) -> Iterator[Fault]:
        """What contradicts itself."""
        counts: dict[str, float] = {
            "global_step": self.global_step,
            "step": self.step,
            "bad_steps": self.bad_steps,
            "metrics_bytes": self.metrics_bytes,
        }
        counts |= {"totals.n_images": self.totals.n_images, "totals.n_correct": self.totals.n_correct}
        n_epochs = len(self.epochs)
        limits = [(name, n, 0 <= n < _MAX_COUNT, "0 or more") for name, n in counts.items()]
        limits += [
            ("epoch", self.epoch, self.epoch == n_epochs + 1, f"{n_epochs + 1}, after {n_epochs} measured ones"),
            (
                "best_epoch",
                self.best_epoch,
                bool(n_epochs) <= self.best_epoch <= n_epochs,
                f"{min(n_epochs, 1)} to {n_epochs}",
            ),
            ("step", self.step, self.step <= self.global_step, f"{self.global_step} at most, all steps of the run"),
            ("batch_size", self.batch_size, 1 <= self.batch_size <= 65_536, "1 to 65,536"),
        ]
        yield from (Fault(path, str(value), allowed) for path, value, is_valid, allowed in limits if not is_valid)


def serialize_state(state: TrainState) -> str:
    """As JSON in ASCII, which also holds the names of files that are no text."""
    return json.dumps(to_data(state), allow_nan=False) + "\n"


def read_state(path: Path) -> TrainState:
    """From its file; raises `WeightsError`."""
    try:
        state = from_data(
            TrainState, parse_json(read_text(path, "this file", _MAX_CHARS), path.name, _MAX_CHARS), path.name
        )
        if faults := list(state.find_faults()):
            raise TextError(f"{path.name} does not describe a state", faults)
    except TextError as error:
        raise WeightsError(error.what, where=[str(path), *error.where[:5]]) from None
    return state


def diff_settings(
    previous: Mapping[str, Any], current: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(path, before, now) of every value that differs between two nested tables."""
    for key in dict.fromkeys([*previous, *current]):
        old, new, key_path = previous.get(key), current.get(key), f"{path}.{key}".lstrip(".")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from diff_settings(old, new, key_path)
        elif old != new:
            yield key_path, _format_value(old), _format_value(new)


def _format_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
