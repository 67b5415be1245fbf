"""The result of an evaluation: the prediction for each image, and the metrics that follow from them.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from resnetkit.errors import Fault

NO_PREDICTION = -1  # the predicted class of an image whose logits are NaN or infinite; it counts as wrong
_MAX_IMBALANCE = 3  # largest class divided by the smallest, above which the accuracy needs a baseline
_Z_95 = 1.959963984540054  # 95% of a normal distribution lie within this many standard deviations


def count_equal(labels: Sequence[int], predicted: Sequence[int]) -> int:
    """Return how many predictions equal their label.

    Args:
        labels: true classes, as indices.
        predicted: predicted classes, as indices.
    """
    return sum(label == prediction for label, prediction in zip(labels, predicted, strict=True))


@dataclass(frozen=True)
class Predictions:
    """One entry per image in every column, in the order of the dataset.

    Attributes:
        names: file names, relative to the dataset.
        labels: true classes, as indices into the classes of the evaluation.
        predicted: predicted classes, as indices; `NO_PREDICTION` if the logits were NaN or infinite.
        confidence: probability of the predicted class, 0 to 1.
    """

    names: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    predicted: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence lies in an interval.

    Attributes:
        low: lower bound of the confidence.
        high: upper bound of the confidence.
        n: number of images.
        confidence: mean confidence, 0 to 1.
        accuracy: top-1 accuracy, 0 to 1.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on one split.

    Attributes:
        model: name of the model.
        data: path or name of the dataset.
        split: train, val, test or all.
        classes: class names; predictions hold indices into them.
        predictions: label, predicted class and confidence of each image.
        top5_correct: number of images whose true class is among the five most probable ones.
        loss: mean cross entropy in nats.
        skipped: (file, reason) of each unreadable image; no metric includes them.
        notes: what was skipped, reasons why the accuracy may mislead, and the engine that was used.
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
        """The number of images."""
        return len(self.predictions)

    @cached_property
    def correct(self) -> int:
        """The number of correct top-1 predictions."""
        return count_equal(self.predictions.labels, self.predictions.predicted)

    @property
    def top1(self) -> float:
        """The top-1 accuracy, 0 to 1."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the top-1 accuracy, as two numbers from 0 to 1."""
        return compute_wilson_interval(self.correct, self.n)

    @cached_property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """The confusion matrix: ``confusion[label][prediction]`` is a number of images."""
        counts = Counter(zip(self.predictions.labels, self.predictions.predicted, strict=True))
        indices = range(len(self.classes))
        return tuple(tuple(counts[label, prediction] for prediction in indices) for label in indices)

    def count_per_class(self) -> list[tuple[str, int, int]]:
        """Return (class, images, correct predictions) of every class that has images."""
        n_images, pairs = Counter(self.predictions.labels), zip(self.classes, self.confusion, strict=True)
        return [(name, n_images[i], row[i]) for i, (name, row) in enumerate(pairs) if n_images[i]]

    @cached_property
    def majority(self) -> tuple[str, int]:
        """The class with the most images, and their number: what always answering it gets right."""
        return max(((name, n) for name, n, _ in self.count_per_class()), key=lambda row: row[1], default=("", 0))

    @cached_property
    def balanced_accuracy(self) -> float:
        """The mean of the accuracies of the classes that have images, 0 to 1."""
        accuracies = [n_correct / n for _, n, n_correct in self.count_per_class()]
        return math.fsum(accuracies) / max(len(accuracies), 1)

    @property
    def is_uneven(self) -> bool:
        """Whether the largest class has more than three times the images of the smallest that has any."""
        return self.majority[1] > _MAX_IMBALANCE * min((n for _, n, _ in self.count_per_class()), default=0)

    @property
    def n_nonfinite(self) -> int:
        """The number of images whose logits were NaN or infinite."""
        return self.predictions.predicted.count(NO_PREDICTION)

    def describe_predictions(self) -> tuple[str, ...]:
        """Describe predictions that make the accuracy mislead: NaN, or always the same class."""
        notes, predicted = [], set(self.predictions.predicted) - {NO_PREDICTION}
        if self.n_nonfinite:
            notes.append(f"{self.n_nonfinite:,} of {self.n:,} images count as wrong: their logits are NaN or infinite")
        if len(predicted) == 1 and len(set(self.predictions.labels)) > 1:
            notes.append(f"the model only ever predicts {self.classes[predicted.pop()]}")
        return tuple(notes)

    def find_mistakes(self, limit: int) -> list[int]:
        """Return the indices of up to ``limit`` wrong predictions, the most confident first."""
        wrong = [i for i in range(self.n) if self.predictions.labels[i] != self.predictions.predicted[i]]
        return sorted(wrong, key=lambda i: -self.predictions.confidence[i])[:limit]

    def find_least_confident(self, limit: int) -> list[int]:
        """Return the indices of up to ``limit`` images, the least confident prediction first."""
        return sorted(range(self.n), key=lambda i: self.predictions.confidence[i])[:limit]

    def compute_calibration(self, n_bins: int = 10) -> list[CalibrationBin]:
        """Divide the images into bins of equal confidence width, and omit empty bins.

        Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
        """
        members: list[list[int]] = [[] for _ in range(n_bins)]
        for i, confidence in enumerate(self.predictions.confidence):
            members[min(n_bins - 1, int(confidence * n_bins))].append(i)
        return [self._make_bin(k / n_bins, (k + 1) / n_bins, indices) for k, indices in enumerate(members) if indices]

    def compute_calibration_error(self, n_bins: int = 10) -> float:
        """Return the expected calibration error, 0 to 1: the mean distance of confidence and accuracy."""
        return sum(b.n * abs(b.confidence - b.accuracy) for b in self.compute_calibration(n_bins)) / max(self.n, 1)

    def find_faults(self) -> list[Fault]:
        """Return the contradictions in an evaluation that was read from a file."""
        p, n_classes = self.predictions, len(self.classes)
        lengths = {len(column) for column in (p.names, p.labels, p.predicted, p.confidence)}
        has_valid_classes = all(0 <= i < n_classes for i in p.labels) and all(-1 <= i < n_classes for i in p.predicted)
        has_valid_confidence = all(0 <= c <= 1 for c in p.confidence)
        checks = (
            (len(lengths) == 1, "predictions", "columns of different lengths", "one entry per image in each column"),
            (has_valid_classes, "predictions", "an index without a class", f"0 to {n_classes - 1}"),
            (has_valid_confidence, "predictions.confidence", "a value out of range", "0 to 1"),
            (0 <= self.top5_correct <= self.n, "top5_correct", str(self.top5_correct), f"0 to {self.n}"),
        )
        return [Fault(f"evaluation.{path}", value, allowed) for ok, path, value, allowed in checks if not ok]

    def _make_bin(self, low: float, high: float, indices: Sequence[int]) -> CalibrationBin:
        p, n = self.predictions, len(indices)
        n_correct = sum(p.labels[i] == p.predicted[i] for i in indices)
        return CalibrationBin(low, high, n, sum(p.confidence[i] for i in indices) / n, n_correct / n)


def compute_wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a proportion (Wilson, JASA 22, 1927).

    Args:
        correct: the number of correct predictions.
        n: the number of predictions.
    """
    if n == 0:
        return 0.0, 1.0
    proportion, z_squared = correct / n, _Z_95**2
    center = (proportion + z_squared / (2 * n)) / (1 + z_squared / n)
    half_width = _Z_95 / (1 + z_squared / n) * math.sqrt(proportion * (1 - proportion) / n + z_squared / (4 * n**2))
    return max(0.0, center - half_width), min(1.0, center + half_width)


def format_accuracy(correct: int, n: int) -> str:
    """Return text such as ``93.50% (95% interval 89.2% to 96.2%)``.

    Args:
        correct: the number of correct predictions.
        n: the number of predictions.
    """
    low, high = compute_wilson_interval(correct, n)
    return f"{correct / n:.2%} (95% interval {low:.1%} to {high:.1%})" if n else "no images"
