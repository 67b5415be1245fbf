"""Deadlines and polling, on a clock that a test can replace.

This module imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Clock:
    """A source of time: ``now`` returns seconds that never go backward, ``sleep`` waits that many seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


SYSTEM_CLOCK = Clock()


class Deadline:
    """The moment that lies a number of seconds after the construction of this object."""

    def __init__(self, seconds: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock, self._end = clock, clock.now() + seconds

    @property
    def remaining(self) -> float:
        """The seconds that are left, at least 0."""
        return max(0.0, self._end - self._clock.now())

    @property
    def is_expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining == 0

    def shorten(self, seconds: float) -> None:
        """Move the deadline to at most ``seconds`` from now."""
        self._end = min(self._end, self._clock.now() + seconds)

    def wait_until(self, condition: Callable[[], T]) -> T:
        """Poll ``condition`` until it returns a true value or the time is over; return its last value."""
        while not (value := condition()) and not self.is_expired:
            self._clock.sleep(POLL_SECONDS)
        return value
