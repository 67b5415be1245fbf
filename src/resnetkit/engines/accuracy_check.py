"""Compare the predictions of an engine with those of the network in fp32, and decide if they match.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from resnetkit.engines.base import Logits
from resnetkit.engines.saved import EngineComparison

# Limits of the logit error. Engines in fp32 only add in another order; bf16 keeps 8 bits of each factor. int8 rounds
# every feature map to 8 bits, which can change logits more without changing predictions, so predictions decide. For an
# untrained network they mean nothing; then 0.2 is far below the error that a bug causes.
_MAX_ERROR = {"fp32": 1e-3, "bf16": 5e-2}
_MAX_ERROR_UNTRAINED = 0.2
_MIN_MATCH_RATE = 0.98
MAX_LOSS = 0.2  # percentage points


@dataclass(frozen=True)
class Fp32Reference:
    """Logits in fp32 (N, K), the names of the images, and their labels if they have any.

    ``has_predictions`` is False if only the logits mean something: for synthetic images or an untrained network.
    ``max_loss`` is the accuracy that an engine may lose, in percentage points.
    """

    logits: Logits
    names: Sequence[str]
    labels: NDArray[np.int64] | None = None
    has_predictions: bool = True
    max_loss: float = MAX_LOSS

    def take_first(self, n: int) -> Fp32Reference:
        """Return the reference for the first ``n`` images."""
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, logits=self.logits[:n], names=self.names[:n], labels=labels)

    def compare(self, logits: Logits, precision: str) -> EngineComparison:
        """Compare an engine's logits with the reference.

        Args:
            logits: logits of the same images (N, K).
            precision: the engine's precision, which sets the limit of the logit error.

        Returns:
            The comparison; its ``reason`` is empty if the predictions match fp32.
        """
        if logits.shape != self.logits.shape:
            reason = f"it returns {_format_shape(logits)} logits instead of {_format_shape(self.logits)}"
            return EngineComparison(reason=reason)
        differences = np.abs(logits - self.logits).max(1)
        if not np.isfinite(differences).all():
            return EngineComparison(reason="its logits are NaN or infinite")
        comparison = EngineComparison(
            float(differences.max() / max(float(np.abs(self.logits).max()), 1e-30)), *self._compare_predictions(logits)
        )
        faults = self._find_faults(precision, comparison, self.names[int(differences.argmax())])
        return replace(comparison, reason="; ".join(faults))

    def _compare_predictions(self, logits: Logits) -> tuple[float | None, float | None]:
        """Return the match rate and the change of accuracy in percentage points."""
        if not self.has_predictions:
            return None, None
        expected, predicted = self.logits.argmax(1), logits.argmax(1)
        match_rate = float((expected == predicted).mean())
        if self.labels is None:
            return match_rate, None
        n_gained = int((predicted == self.labels).sum()) - int((expected == self.labels).sum())
        return match_rate, 100 * n_gained / len(logits)

    def _find_faults(self, precision: str, comparison: EngineComparison, worst_name: str) -> list[str]:
        error, match_rate, change = comparison.logit_error, comparison.match_rate, comparison.accuracy_change
        limit, n = _MAX_ERROR.get(precision, _MAX_ERROR_UNTRAINED if match_rate is None else np.inf), len(self.names)
        faults = []
        if error is not None and error > limit:
            faults.append(f"logits differ by {error:.2g} of the largest (limit {limit:g}), most for {worst_name}")
        if change is not None:
            n_lost = round(-change * n / 100)
            # if logits have a limit, one prediction may change: among few images it exceeds any reasonable loss
            if n_lost > max(n * self.max_loss / 100 + 1e-9, precision in _MAX_ERROR):
                faults.append(f"{n_lost:,} fewer of {n:,} correct, {-change:.2f} points (--max-loss {self.max_loss:g})")
        elif match_rate is not None and match_rate < _MIN_MATCH_RATE:
            faults.append(f"only {match_rate:.1%} of the predictions match fp32 (limit {_MIN_MATCH_RATE:.0%})")
        return faults


def _format_shape(logits: Logits) -> str:
    return " x ".join(map(str, logits.shape))
