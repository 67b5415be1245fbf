"""SIGINT and SIGTERM as a question that is asked where stopping costs nothing.

Only the command line installs this: a library leaves the signals of its host alone.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from resnetkit.errors import Stopped

Stop = Callable[[], int]


class Signals:
    """Whether a signal has come. Before the question is first put, and from the second one on, a signal stops at once.

    ``number`` is that of the first signal, 0 before it. What comes within ``same`` seconds of it is the same: what a
    scheduler sends to all processes, torchrun passes on to its own once more.
    """

    def __init__(self, same: float = 0.0) -> None:
        self.number = 0
        self._heeded, self._same, self._when = False, same, 0.0

    def __call__(self) -> int:
        self._heeded = True
        return self.number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def heard(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.number and time.monotonic() - self._when < self._same:
            return
        at_once = self.number or not self._heeded
        self.number, self._when = self.number or number, self._when or time.monotonic()
        if at_once:
            raise Stopped("stopped at once")


@contextlib.contextmanager
def listening(same: float = 0.0) -> Iterator[Signals]:
    """Both signals ask for as long as the body runs; elsewhere than in the main thread nothing is installed."""
    asked = Signals(same)
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, asked.heard) for number in (signal.SIGINT, signal.SIGTERM) if mine}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
