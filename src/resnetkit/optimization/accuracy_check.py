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
_MAX_ERROR = {"fp32": 1e-3, "bf16": 5e-2}
_MAX_ERROR_UNTRAINED = 0.2
_MIN_MATCH_RATE = 0.98
MAX_LOSS = 0.2


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """``error``: the largest difference of a logit, as a share of the largest logit. ``same``: the share of pictures
    with the same answer. ``lost``: points of accuracy. ``why`` it is not enough, or empty. What cannot be told is None.
    """

    logit_error: float | None
    match_rate: float | None = None
    accuracy_drop: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Fp32Reference:
    """What answers are compared with: logits in fp32 (N K), the names of the pictures, and their classes if known.

    Where ``answers`` mean nothing, as those of a network that was not trained and those about made pictures, only the
    logits are compared.
    """

    logits: Logits
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    has_predictions: bool = True
    max_loss: float = MAX_LOSS

    def take_first(self, n: int) -> Fp32Reference:
        """A judge of the first ``n`` pictures alone."""
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, logits=self.logits[:n], names=self.names[:n], labels=labels)

    def compare(self, logits: Logits, precision: str) -> EngineComparison:
        """The verdict on the logits of the same pictures."""
        if logits.shape != self.logits.shape:
            return EngineComparison(
                None, reason=f"it gives {_format_shape(logits)} logits for {_format_shape(self.logits)}"
            )
        differences = np.abs(logits - self.logits).max(1)
        if not np.isfinite(differences).all():
            return EngineComparison(None, reason="its logits are not finite")
        logit_error = float(differences.max() / max(float(np.abs(self.logits).max()), 1e-30))
        match_rate, n_fewer_correct = self._compare_predictions(logits) if self.has_predictions else (None, None)
        worst_name = self.names[int(differences.argmax())]
        accuracy_drop = None if n_fewer_correct is None else 100 * n_fewer_correct / len(logits)
        return EngineComparison(
            logit_error,
            match_rate,
            accuracy_drop,
            "; ".join(self._find_faults(precision, logit_error, match_rate, n_fewer_correct, worst_name)),
        )

    def _compare_predictions(self, logits: Logits) -> tuple[float, int | None]:
        """(share of the same answers, how many fewer are right)."""
        ours, theirs = self.logits.argmax(1), logits.argmax(1)
        match_rate = float((ours == theirs).mean())
        if self.labels is None:
            return match_rate, None
        return match_rate, int((ours == self.labels).sum()) - int((theirs == self.labels).sum())

    def _find_faults(
        self, precision: str, logit_error: float, match_rate: float | None, n_fewer_correct: int | None, worst_name: str
    ) -> list[str]:
        limit = _MAX_ERROR.get(precision, _MAX_ERROR_UNTRAINED if match_rate is None else np.inf)
        faults, n = [], len(self.names)
        if logit_error > limit:
            faults.append(f"logits differ by {logit_error:.2g} of the largest (limit {limit:g}), most at {worst_name}")
        if n_fewer_correct is not None and n_fewer_correct > max(
            n * self.max_loss / 100 + 1e-9, precision in _MAX_ERROR
        ):
            message = f"{n_fewer_correct:,} fewer of {n:,} pictures are right"
            faults.append(f"{message}, {100 * n_fewer_correct / n:.2f} points (--max-loss {self.max_loss:g})")
        if n_fewer_correct is None and match_rate is not None and match_rate < _MIN_MATCH_RATE:
            faults.append(f"only {match_rate:.1%} of the answers are the same (limit {_MIN_MATCH_RATE:.0%})")
        return faults


def _format_shape(logits: Logits) -> str:
    return " x ".join(map(str, logits.shape))
