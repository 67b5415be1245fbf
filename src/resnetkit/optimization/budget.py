"""How long `optimize` may take, and how that time is divided.

This module imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from resnetkit.optimization.client import BenchmarkClient, open_benchmark_client

_FINALS_SHARE, _REFERENCE_SHARE = 0.3, 0.1
_MIN_SHARE = 0.25  # of the remaining search time; most engines need less and leave the rest to the others
_MIN_SECONDS = 0.2  # of a measurement
MIN_COMPARED_IMAGES = 100  # enough for fp32: the slowest precision, with errors far below the limit
_COMPARED_SHARES = {"fp32": 0.0, "bf16": 0.02}  # of the budget; the logits of both have a limit as well
_INT8_COMPARED_SHARE = 0.1
_TIMEOUT_FACTOR = 3  # times the expected duration


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search that rarely need to change; ``clock`` and ``open_client`` can be replaced in tests.

    The finals measure every finalist ``final_rounds`` times. A request to an engine's process may always take
    ``min_timeout`` seconds, however little time remains. ``clock`` returns seconds. ``open_client`` starts the process
    of an engine, from the model folder and a folder for its files.
    """

    final_rounds: int = 5
    min_timeout: float = 30.0
    clock: Callable[[], float] = time.monotonic
    open_client: Callable[[Path, Path], AbstractContextManager[BenchmarkClient]] = open_benchmark_client


class Budget:
    """The time of one search, in seconds; it starts when it is created."""

    def __init__(self, seconds: float, settings: SearchSettings) -> None:
        self.seconds, self.settings = seconds, settings
        self._end = settings.clock() + seconds

    @property
    def remaining(self) -> float:
        """The time that remains."""
        return self._end - self.settings.clock()

    @property
    def search_remaining(self) -> float:
        """The time that remains for the first round; the finals keep their share."""
        return self.remaining - _FINALS_SHARE * self.seconds

    @property
    def request_timeout(self) -> float:
        """The limit of one request; none may take all that remains."""
        return max(self.settings.min_timeout, self.search_remaining / 2)

    @property
    def measurement_seconds(self) -> float:
        """The duration of one measurement in the first round."""
        return min(1.0, max(_MIN_SECONDS, self.seconds / 300))

    @property
    def reference_seconds(self) -> float:
        """The time for the reference logits."""
        return _REFERENCE_SHARE * self.seconds

    def share(self, n_waiting: int) -> float:
        """Return the time of one engine in the first round while ``n_waiting`` others wait."""
        return self.search_remaining * max(_MIN_SHARE, 1 / (1 + n_waiting))

    def finals_seconds(self, n_finalists: int) -> float:
        """Return the duration of one measurement in the finals."""
        per_measurement = self.remaining / (self.settings.final_rounds * max(1, n_finalists))
        return max(_MIN_SECONDS, min(2 * self.measurement_seconds, per_measurement))

    def count_compared_images(self, precision: str, throughput: float) -> int:
        """Return how many images to compare; fewer in fp32 and bf16, whose logits have a limit as well.

        Args:
            precision: the engine's precision.
            throughput: the engine's images per second.
        """
        seconds = _COMPARED_SHARES.get(precision, _INT8_COMPARED_SHARE) * self.seconds
        return max(MIN_COMPARED_IMAGES, int(seconds * throughput))

    def comparison_timeout(self, n_images: int, throughput: float) -> float:
        """Return the limit of a request that computes the logits of many images.

        Args:
            n_images: the number of images.
            throughput: the engine's images per second.
        """
        return max(self.request_timeout, _TIMEOUT_FACTOR * n_images / throughput)
