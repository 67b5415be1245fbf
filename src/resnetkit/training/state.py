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
from resnetkit.training.run_folder import Epoch

_LONGEST = 64 * 2**20  # an epoch takes 300 characters, a picture that cannot be read 100
_LARGEST = 2**53  # of a count


@dataclass(frozen=True)
class Sums:
    """Over the sound steps of an epoch so far; ``loss`` is a sum over pictures, ``lr`` that of the last step.

    ``right`` is a number of pictures; one that was mixed of two is right by the share of the class that was named.
    """

    seen: int = 0
    right: float = 0.0
    loss: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0

    def plus(self, seen: int, right: float, loss: float) -> Sums:
        """With one more step."""
        return replace(self, seen=self.seen + seen, right=self.right + right, loss=self.loss + loss * seen)

    @property
    def mean_loss(self) -> float:
        """Of a picture; 0 before the first."""
        return self.loss / max(self.seen, 1)

    @property
    def accuracy(self) -> float:
        """0 to 1."""
        return self.right / max(self.seen, 1)

    @property
    def pace(self) -> float:
        """Pictures in a second."""
        return self.seen / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class State:
    """``steps`` counts all steps of the run; ``epoch`` (from 1) goes on after ``step`` steps of ``batch_size``.

    ``bad_steps`` are those in a row whose loss was no number. ``best`` is the best of the ``epochs`` that were
    measured, 0 before the first. ``unreadable`` has (picture, reason), ``metrics`` the length of ``metrics.jsonl`` in
    bytes, ``changes`` what was changed when the run was resumed, ``circumstances`` what else decides its numbers.
    """

    steps: int = 0
    epoch: int = 1
    step: int = 0
    batch_size: int = 0
    sums: Sums = Sums()
    bad_steps: int = 0
    best: int = 0
    epochs: tuple[Epoch, ...] = ()
    seconds: float = 0.0
    unreadable: tuple[tuple[str, str], ...] = ()
    metrics: int = 0
    changes: tuple[str, ...] = ()
    circumstances: tuple[tuple[str, str], ...] = ()

    def after(self, epoch: Epoch, best: int) -> State:
        """At the beginning of the next epoch."""
        following = self.epoch + 1
        return replace(self, epoch=following, step=0, sums=Sums(), epochs=(*self.epochs, epoch), best=best)

    def among(self, steps: int, batch_size: int) -> State:
        """The same place where an epoch has ``steps`` of ``batch_size``: rounded down, so that no picture is missed."""
        step = self.step if self.batch_size == batch_size else self.step * self.batch_size // batch_size
        return replace(self, step=min(step, steps), batch_size=batch_size)

    def faults(self) -> Iterator[Fault]:
        """What contradicts itself."""
        counts: dict[str, float] = {
            "steps": self.steps,
            "step": self.step,
            "bad_steps": self.bad_steps,
            "metrics": self.metrics,
        }
        counts |= {"sums.seen": self.sums.seen, "sums.right": self.sums.right}
        measured = len(self.epochs)
        limits = [(name, n, 0 <= n < _LARGEST, "0 or more") for name, n in counts.items()]
        limits += [
            ("epoch", self.epoch, self.epoch == measured + 1, f"{measured + 1}, after {measured} measured ones"),
            ("best", self.best, bool(measured) <= self.best <= measured, f"{min(measured, 1)} to {measured}"),
            ("step", self.step, self.step <= self.steps, f"{self.steps} at most, all steps of the run"),
            ("batch_size", self.batch_size, 1 <= self.batch_size <= 65_536, "1 to 65,536"),
        ]
        yield from (Fault(path, str(came), allowed) for path, came, fits, allowed in limits if not fits)


def to_text(state: State) -> str:
    """As JSON in ASCII, which also holds the names of files that are no text."""
    return json.dumps(to_data(state), allow_nan=False) + "\n"


def read_state(path: Path) -> State:
    """From its file; raises `WeightsError`."""
    try:
        state = from_data(State, parse_json(read_text(path, "this file", _LONGEST), path.name, _LONGEST), path.name)
        if faults := list(state.faults()):
            raise TextError(f"{path.name} does not describe a state", faults)
    except TextError as error:
        raise WeightsError(error.what, where=[str(path), *error.where[:5]]) from None
    return state


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, before, now) of every value that differs between two nested tables."""
    for key in dict.fromkeys([*before, *now]):
        old, new, here = before.get(key), now.get(key), f"{path}.{key}".lstrip(".")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, here)
        elif old != new:
            yield here, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else str(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
