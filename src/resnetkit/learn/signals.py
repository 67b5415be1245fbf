"""SIGINT and SIGTERM as a question that is asked where stopping costs nothing. No torch.

Only the command line installs this: a library leaves the signals of its host alone.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from resnetkit.errors import Stopped

Stop = Callable[[], bool]


class Signals:
    """Whether a signal has come. Before the question is first put, and from the second one on, a signal stops at once.

    ``number`` is that of the first signal, 0 before it.
    """

    def __init__(self) -> None:
        self.number = 0
        self._heeded = False

    def __call__(self) -> bool:
        self._heeded = True
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.number or signal.SIGINT)

    def heard(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        at_once = self.number or not self._heeded
        self.number = self.number or number
        if at_once:
            raise Stopped("stopped at once")


@contextlib.contextmanager
def listening() -> Iterator[Signals]:
    """Both signals ask for as long as the body runs; elsewhere than in the main thread nothing is installed."""
    asked = Signals()
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, asked.heard) for number in (signal.SIGINT, signal.SIGTERM) if mine}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
