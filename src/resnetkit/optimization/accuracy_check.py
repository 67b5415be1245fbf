"""How far the answers of an engine are from those of the network in fp32, and whether that is near enough.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resnetkit.engines.base import Logits

# Of the largest logit. Numbers of fp32 are only added in another order; bf16 keeps 8 bits of each product's factors.
# Eight bits for every map can change a logit by more and leave the answer as it is, so int8 is judged by answers, where
# there are any; an untrained network has none, and 0.2 is far below what a fault makes. Where logits have a limit one
# answer may change: of few pictures it is more than any loss that can be meant.
_MOST_ERROR = {"fp32": 1e-3, "bf16": 5e-2}
_MOST_ERROR_UNTRAINED = 0.2
_LEAST_SAME = 0.98
MAX_LOSS = 0.2


@dataclass(frozen=True, slots=True)
class Agreement:
    """``error``: the largest difference of a logit, as a share of the largest logit. ``same``: the share of pictures
    with the same answer. ``lost``: points of accuracy. ``why`` it is not enough, or empty. What cannot be told is None.
    """

    error: float | None
    same: float | None = None
    lost: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Judge:
    """What answers are compared with: logits in fp32 (N K), the names of the pictures, and their classes if known.

    Where ``answers`` mean nothing, as those of a network that was not trained and those about made pictures, only the
    logits are compared.
    """

    logits: Logits
    names: Sequence[str]
    truth: NDArray[np.int64] | None = None
    answers: bool = True
    max_loss: float = MAX_LOSS

    def first(self, n: int) -> Judge:
        """A judge of the first ``n`` pictures alone."""
        truth = None if self.truth is None else self.truth[:n]
        return replace(self, logits=self.logits[:n], names=self.names[:n], truth=truth)

    def judge(self, found: Logits, precision: str) -> Agreement:
        """The verdict on the logits of the same pictures."""
        if found.shape != self.logits.shape:
            return Agreement(None, why=f"it gives {_sizes(found)} logits for {_sizes(self.logits)}")
        apart = np.abs(found - self.logits).max(1)
        if not np.isfinite(apart).all():
            return Agreement(None, why="its logits are not finite")
        error = float(apart.max() / max(float(np.abs(self.logits).max()), 1e-30))
        same, fewer = self._answers(found) if self.answers else (None, None)
        where = self.names[int(apart.argmax())]
        lost = None if fewer is None else 100 * fewer / len(found)
        return Agreement(error, same, lost, "; ".join(self._faults(precision, error, same, fewer, where)))

    def _answers(self, found: Logits) -> tuple[float, int | None]:
        """(share of the same answers, how many fewer are right)."""
        ours, theirs = self.logits.argmax(1), found.argmax(1)
        same = float((ours == theirs).mean())
        if self.truth is None:
            return same, None
        return same, int((ours == self.truth).sum()) - int((theirs == self.truth).sum())

    def _faults(self, precision: str, error: float, same: float | None, fewer: int | None, where: str) -> list[str]:
        limit = _MOST_ERROR.get(precision, _MOST_ERROR_UNTRAINED if same is None else np.inf)
        faults, n = [], len(self.names)
        if error > limit:
            faults.append(f"logits differ by {error:.2g} of the largest (limit {limit:g}), most at {where}")
        if fewer is not None and fewer > max(n * self.max_loss / 100 + 1e-9, precision in _MOST_ERROR):
            told = f"{fewer:,} fewer of {n:,} pictures are right"
            faults.append(f"{told}, {100 * fewer / n:.2f} points (--max-loss {self.max_loss:g})")
        if fewer is None and same is not None and same < _LEAST_SAME:
            faults.append(f"only {same:.1%} of the answers are the same (limit {_LEAST_SAME:.0%})")
        return faults


def _sizes(logits: Logits) -> str:
    return " x ".join(map(str, logits.shape))
