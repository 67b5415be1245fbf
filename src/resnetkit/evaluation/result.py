"""What came out of an evaluation: an answer for each picture, and the counts that follow from them.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from resnetkit.errors import Fault

_Z_95 = 1.959963984540054  # of the normal distribution, 95 % within


@dataclass(frozen=True)
class Predictions:
    """An entry for each picture in every column, in the order of the data. Classes are numbers."""

    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    predicted: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class CalibrationBin:
    """The pictures whose confidence lies between two bounds: how sure the network was, how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """``top5`` counts the true class among the first five, ``loss`` is the mean cross entropy.

    ``skipped`` holds (picture, reason) of those that could not be read; nothing is counted for them. ``notes`` say what
    makes the figures kinder than they look.
    """

    model: str
    data: str
    split: str
    classes: tuple[str, ...]
    predictions: Predictions
    top5_correct: int
    loss: float
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many pictures."""
        return len(self.predictions)

    @cached_property
    def correct(self) -> int:
        """How many of them were named rightly."""
        return sum(a == b for a, b in zip(self.predictions.labels, self.predictions.predicted, strict=True))

    @property
    def top1(self) -> float:
        """The share that was right, 0 to 1."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies that one would find on any number of such pictures: 95 %, see `interval`."""
        return compute_wilson_interval(self.correct, self.n)

    @cached_property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """``confusion[true][answer]``."""
        counts = [[0] * len(self.classes) for _ in self.classes]
        for label, predicted in zip(self.predictions.labels, self.predictions.predicted, strict=True):
            counts[label][predicted] += 1
        return tuple(map(tuple, counts))

    def count_per_class(self) -> list[tuple[str, int, int]]:
        """(class, pictures, correct) of every class that has pictures."""
        pairs = zip(self.predictions.labels, self.predictions.predicted, strict=True)
        n_images, n_correct = (
            Counter(self.predictions.labels),
            Counter(label for label, predicted in pairs if label == predicted),
        )
        return [(name, n_images[i], n_correct[i]) for i, name in enumerate(self.classes) if n_images[i]]

    def find_mistakes(self, limit: int) -> list[int]:
        """Numbers of the pictures that were named wrongly, the most confident first."""
        wrong = [i for i in range(self.n) if self.predictions.labels[i] != self.predictions.predicted[i]]
        return sorted(wrong, key=lambda i: -self.predictions.confidence[i])[:limit]

    def find_least_confident(self, limit: int) -> list[int]:
        """Numbers of the pictures with the least confident answers."""
        return sorted(range(self.n), key=lambda i: self.predictions.confidence[i])[:limit]

    def compute_calibration(self, n_bins: int = 10) -> list[CalibrationBin]:
        """Bins of equal width, those without pictures left out (Guo et al., arXiv 1706.04599, section 2)."""
        members: list[list[int]] = [[] for _ in range(n_bins)]
        for i, confidence in enumerate(self.predictions.confidence):
            members[min(n_bins - 1, int(confidence * n_bins))].append(i)
        return [self._make_bin(k / n_bins, (k + 1) / n_bins, indices) for k, indices in enumerate(members) if indices]

    def compute_calibration_error(self, n_bins: int = 10) -> float:
        """The mean distance of confidence and accuracy, over the same bins."""
        return sum(b.n * abs(b.confidence - b.accuracy) for b in self.compute_calibration(n_bins)) / max(self.n, 1)

    def find_faults(self) -> list[Fault]:
        """What contradicts itself, in an evaluation that was read from a file."""
        predictions, class_indices = self.predictions, range(len(self.classes))
        columns = (predictions.names, predictions.labels, predictions.predicted, predictions.confidence)
        checks = [
            ("answers", "columns of other lengths", len(set(map(len, columns))) == 1, "as many of each"),
            (
                "answers",
                "a class of no name",
                all(i in class_indices for i in (*predictions.labels, *predictions.predicted)),
                "its number",
            ),
            ("answers.confidence", "a share out of range", all(0 <= c <= 1 for c in predictions.confidence), "0 to 1"),
            ("top5", str(self.top5_correct), 0 <= self.top5_correct <= self.n, f"0 to {self.n}"),
        ]
        return [
            Fault(f"evaluation.{path}", value, allowed) for path, value, is_valid, allowed in checks if not is_valid
        ]

    def _make_bin(self, low: float, high: float, indices: Sequence[int]) -> CalibrationBin:
        predictions = self.predictions
        confidence = sum(predictions.confidence[i] for i in indices) / len(indices)
        accuracy = sum(predictions.labels[i] == predictions.predicted[i] for i in indices) / len(indices)
        return CalibrationBin(low, high, len(indices), confidence, accuracy)


def compute_wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Bounds that hold the true share in 95 of 100 such samples (Wilson, JASA 22, 1927)."""
    if n == 0:
        return 0.0, 1.0
    proportion, z_squared = correct / n, _Z_95**2
    center = (proportion + z_squared / (2 * n)) / (1 + z_squared / n)
    half_width = _Z_95 / (1 + z_squared / n) * math.sqrt(proportion * (1 - proportion) / n + z_squared / (4 * n**2))
    return max(0.0, center - half_width), min(1.0, center + half_width)


def format_accuracy(correct: int, n: int) -> str:
    """``93.50% (95% interval 89.2% to 96.2%)``."""
    low, high = compute_wilson_interval(correct, n)
    return f"{correct / n:.2%} (95% interval {low:.1%} to {high:.1%})" if n else "no pictures"
