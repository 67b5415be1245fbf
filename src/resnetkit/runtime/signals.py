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

from resnetkit.errors import ResnetkitInterrupt

StopSignal = Callable[[], int]


class SignalHandler:
    """Whether a signal has come. Before the question is first put, and from the second one on, a signal stops at once.

    ``number`` is that of the first signal, 0 before it. What comes within ``same`` seconds of it is the same: what a
    scheduler sends to all processes, torchrun passes on to its own once more.
    """

    def __init__(self, repeat_seconds: float = 0.0) -> None:
        self.number = 0
        self._is_polled, self._repeat_seconds, self._first_time = False, repeat_seconds, 0.0

    def __call__(self) -> int:
        self._is_polled = True
        return self.number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if self.number and time.monotonic() - self._first_time < self._repeat_seconds:
            return
        must_raise = self.number or not self._is_polled
        self.number, self._first_time = self.number or number, self._first_time or time.monotonic()
        if must_raise:
            raise ResnetkitInterrupt("stopped at once")


@contextlib.contextmanager
def handle_signals(repeat_seconds: float = 0.0) -> Iterator[SignalHandler]:
    """Both signals ask for as long as the body runs; elsewhere than in the main thread nothing is installed."""
    signal_handler = SignalHandler(repeat_seconds)
    is_main_thread = threading.current_thread() is threading.main_thread()
    previous_handlers = {
        number: signal.signal(number, signal_handler.handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if is_main_thread
    }
    try:
        yield signal_handler
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)
