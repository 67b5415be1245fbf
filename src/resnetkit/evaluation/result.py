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

_Z = 1.959963984540054  # of the normal distribution, 95 % within


@dataclass(frozen=True)
class Answers:
    """An entry for each picture in every column, in the order of the data. Classes are numbers."""

    names: tuple[str, ...] = ()
    truth: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Bin:
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
    part: str
    classes: tuple[str, ...]
    answers: Answers
    top5: int
    loss: float
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many pictures."""
        return len(self.answers)

    @cached_property
    def correct(self) -> int:
        """How many of them were named rightly."""
        return sum(a == b for a, b in zip(self.answers.truth, self.answers.answer, strict=True))

    @property
    def top1(self) -> float:
        """The share that was right, 0 to 1."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies that one would find on any number of such pictures: 95 %, see `interval`."""
        return interval(self.correct, self.n)

    @cached_property
    def confusion(self) -> tuple[tuple[int, ...], ...]:
        """``confusion[true][answer]``."""
        counts = [[0] * len(self.classes) for _ in self.classes]
        for truth, answer in zip(self.answers.truth, self.answers.answer, strict=True):
            counts[truth][answer] += 1
        return tuple(map(tuple, counts))

    def per_class(self) -> list[tuple[str, int, int]]:
        """(class, pictures, correct) of every class that has pictures."""
        pairs = zip(self.answers.truth, self.answers.answer, strict=True)
        pictures, right = Counter(self.answers.truth), Counter(truth for truth, answer in pairs if truth == answer)
        return [(name, pictures[i], right[i]) for i, name in enumerate(self.classes) if pictures[i]]

    def mistakes(self, most: int) -> list[int]:
        """Numbers of the pictures that were named wrongly, the most confident first."""
        wrong = [i for i in range(self.n) if self.answers.truth[i] != self.answers.answer[i]]
        return sorted(wrong, key=lambda i: -self.answers.confidence[i])[:most]

    def unsure(self, most: int) -> list[int]:
        """Numbers of the pictures with the least confident answers."""
        return sorted(range(self.n), key=lambda i: self.answers.confidence[i])[:most]

    def calibration(self, bins: int = 10) -> list[Bin]:
        """Bins of equal width, those without pictures left out (Guo et al., arXiv 1706.04599, section 2)."""
        members: list[list[int]] = [[] for _ in range(bins)]
        for i, confidence in enumerate(self.answers.confidence):
            members[min(bins - 1, int(confidence * bins))].append(i)
        return [self._bin(k / bins, (k + 1) / bins, chosen) for k, chosen in enumerate(members) if chosen]

    def calibration_error(self, bins: int = 10) -> float:
        """The mean distance of confidence and accuracy, over the same bins."""
        return sum(b.n * abs(b.confidence - b.accuracy) for b in self.calibration(bins)) / max(self.n, 1)

    def faults(self) -> list[Fault]:
        """What contradicts itself, in an evaluation that was read from a file."""
        answers, known = self.answers, range(len(self.classes))
        columns = (answers.names, answers.truth, answers.answer, answers.confidence)
        limits = [
            ("answers", "columns of other lengths", len(set(map(len, columns))) == 1, "as many of each"),
            ("answers", "a class of no name", all(i in known for i in (*answers.truth, *answers.answer)), "its number"),
            ("answers.confidence", "a share out of range", all(0 <= c <= 1 for c in answers.confidence), "0 to 1"),
            ("top5", str(self.top5), 0 <= self.top5 <= self.n, f"0 to {self.n}"),
        ]
        return [Fault(f"evaluation.{path}", came, allowed) for path, came, fits, allowed in limits if not fits]

    def _bin(self, low: float, high: float, chosen: Sequence[int]) -> Bin:
        answers = self.answers
        sure = sum(answers.confidence[i] for i in chosen) / len(chosen)
        right = sum(answers.truth[i] == answers.answer[i] for i in chosen) / len(chosen)
        return Bin(low, high, len(chosen), sure, right)


def interval(correct: int, n: int) -> tuple[float, float]:
    """Bounds that hold the true share in 95 of 100 such samples (Wilson, JASA 22, 1927)."""
    if n == 0:
        return 0.0, 1.0
    share, square = correct / n, _Z**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def told(correct: int, n: int) -> str:
    """``93.50% (95% interval 89.2% to 96.2%)``."""
    low, high = interval(correct, n)
    return f"{correct / n:.2%} (95% interval {low:.1%} to {high:.1%})" if n else "no pictures"
