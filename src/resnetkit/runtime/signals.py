"""SIGINT, SIGTERM and SIGHUP as a flag that is polled at points where stopping loses nothing.

Only the command line installs the handlers: a library leaves the signals of its host program alone.

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
_SIGNAL_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class SignalHandler:
    """A stop flag: calling it returns the number of the first signal, 0 before a signal.

    The first signal only sets the flag. It interrupts at once if nobody has polled the flag yet; so does a second
    signal. A signal that follows the first one within ``repeat_seconds`` is ignored: torchrun forwards to its
    processes what a scheduler has already sent to them.

    Args:
        repeat_seconds: seconds after the first signal during which more signals are ignored.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, repeat_seconds: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.number = 0
        self._is_polled, self._repeat_seconds, self._now, self._first_time = False, repeat_seconds, now, 0.0

    def __call__(self) -> int:
        self._is_polled = True
        return self.number

    @property
    def exit_code(self) -> int:
        """The exit code: 130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + (self.number or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, or interrupt at once.

        Args:
            number: the number of the signal.
            frame: unused; `signal.signal` passes it.

        Raises:
            ResnetkitInterrupt: the flag was never polled, or this is a second signal.
        """
        if self.number and self._now() - self._first_time < self._repeat_seconds:
            return
        must_raise = self.number or not self._is_polled
        self.number, self._first_time = self.number or number, self._first_time or self._now()
        if must_raise:
            raise ResnetkitInterrupt("stopped at once")


@contextlib.contextmanager
def handle_signals(repeat_seconds: float = 0.0) -> Iterator[SignalHandler]:
    """Handle SIGINT, SIGTERM and SIGHUP during the body; outside the main thread, install nothing.

    SIGHUP stays ignored if it was ignored before, as nohup does.

    Args:
        repeat_seconds: as in `SignalHandler`.
    """
    signal_handler = SignalHandler(repeat_seconds)
    is_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _SIGNAL_NAMES if hasattr(signal, name) and is_main_thread]
    numbers = [n for n in numbers if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) != signal.SIG_IGN]
    previous_handlers = {number: signal.signal(number, signal_handler.handle) for number in numbers}
    try:
        yield signal_handler
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)
