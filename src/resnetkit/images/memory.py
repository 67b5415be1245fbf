"""A budget of memory for decoded images, which all threads that read images share.

The largest images need hundreds of megabytes each. A thread reserves the bytes before it decodes, and waits until they
are free. The threads are served in their order, so that a large image waits no longer than the ones before it.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections import deque
from collections.abc import Iterator

from resnetkit.errors import UsageError
from resnetkit.runtime.free_memory import get_free_memory

MAX_DEFAULT_BYTES = 10**9
_FREE_FRACTION = 1 / 4
_LARGE_BYTES = 10**8
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", re.IGNORECASE)


class MemoryBudget:
    """The bytes that decoded images may use at once; an image that needs more is decoded alone.

    Args:
        max_bytes: the limit; None for the smaller of 1 GB and a quarter of the free memory.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._condition, self._queue, self._thread = threading.Condition(), deque[object](), threading.local()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep what `reserve` keeps until the end of the block, which uses one decoded image in this thread."""
        outer = getattr(self._thread, "held", None)
        self._thread.held = 0
        try:
            yield
        finally:
            self._release(self._thread.held)
            self._thread.held = outer

    @contextlib.contextmanager
    def reserve(self, n_bytes: int, n_kept: int) -> Iterator[None]:
        """Reserve memory for the time of the block; wait until other threads have released enough of it.

        Args:
            n_bytes: the most bytes that the block needs.
            n_kept: the bytes of its result, which stay reserved until the end of `hold`.
        """
        held = getattr(self._thread, "held", None)
        self._acquire(n_bytes, must_wait=not held)  # a thread that already holds an image would wait for itself
        kept = 0
        try:
            yield
            if held is not None:
                kept = n_kept
                self._thread.held += n_kept
        finally:
            self._release(n_bytes - kept)

    def _acquire(self, n_bytes: int, must_wait: bool) -> None:
        ticket = object()
        with self._condition:
            if self.max_bytes is None:
                self.max_bytes = int(min(MAX_DEFAULT_BYTES, get_free_memory() * _FREE_FRACTION))
            limit = self.max_bytes
            if must_wait:
                self._queue.append(ticket)
                try:
                    self._condition.wait_for(
                        lambda: self._queue[0] is ticket and self.used_bytes + n_bytes <= max(limit, n_bytes)
                    )
                finally:
                    self._queue.remove(ticket)
                    self._condition.notify_all()
            self.used_bytes += n_bytes
        if n_bytes >= _LARGE_BYTES:
            _return_freed_memory()

    def _release(self, n_bytes: int) -> None:
        with self._condition:
            self.used_bytes -= n_bytes
            self._condition.notify_all()


def _return_freed_memory() -> None:
    """Return memory that images before have freed to the system; glibc keeps it otherwise."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


DECODING_BUDGET = MemoryBudget()


def set_max_memory(text: str) -> None:
    """Set the memory for decoding images, in all threads of this process together.

    Args:
        text: a size such as ``500MB``; empty for the default.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.fullmatch(text or "0")
    n_bytes = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if text and not n_bytes:
        raise UsageError(f"{text!r} is not a size", where="--max-memory", fix="use a size such as 500MB or 2GB")
    DECODING_BUDGET.max_bytes = n_bytes or None
