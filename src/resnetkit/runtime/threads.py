"""Threads that read pictures while the network computes.

Threads and no processes: they share the memory of the loop (so /dev/shm is not used, however small it is), none can be
killed alone, and what a picture becomes depends on its number, never on who read it. Pillow decodes without the lock of
Python, so they run beside each other. They are daemons: one that hangs in a read does not keep a process alive.

This module imports no torch.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from resnetkit.errors import MachineError

T = TypeVar("T")
Result = TypeVar("Result")
MOST = 1024
PATIENCE = 120.0  # seconds for one picture: the largest that is read takes a few, also from a slow disk
SHORT = 0.5  # seconds of a wait: Python hears of a signal that comes just before one at its end only


_DISK = "look after the disk or the network that it is read from; resnetkit check reads every picture once"


def each(
    read: Callable[[T], Result], items: Sequence[T], workers: int, where: Callable[[T], str] = str
) -> Iterator[Result]:
    """``read`` of each item, in order; with 0 workers, or where no thread can be started, by the caller itself.

    Raises `MachineError` for an item whose reading does not end; ``where`` names it.
    """
    found: list[Future[Result]] = [Future() for _ in items]
    places = iter(range(len(items)))

    def work() -> None:
        for place in places:  # the next one that nobody has: asking is one step that no thread interrupts
            settle(found[place], partial(read, items[place]))

    if not _started(work, min(workers, len(items))):
        yield from map(read, items)
        return
    try:
        for item, future in zip(items, found, strict=True):
            yield patiently(future, item, where)
    finally:
        deque(places, 0)  # what nobody waits for is not begun


def settle(future: Future[Result], task: Callable[[], Result]) -> None:
    """Do it, and give ``future`` what comes of it."""
    try:
        future.set_result(task())
    except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
        future.set_exception(error)


def outcome(future: Future[Result], patience: float = math.inf) -> Result:
    """Its result; raises `TimeoutError` after so many seconds, in which signals are heard."""
    until = time.monotonic() + patience
    while not future.done() and (left := until - time.monotonic()) > 0:
        wait([future], min(left, SHORT))
    return future.result(0)


def patiently(future: Future[Result], item: T, where: Callable[[T], str]) -> Result:
    """What was read of an item; raises `MachineError` where that takes more than `PATIENCE` from now on."""
    try:
        return outcome(future, PATIENCE)
    except TimeoutError:
        if future.done():  # the reading itself failed so
            return future.result()
        what = f"reading took more than {PATIENCE:.0f} seconds"
        raise MachineError(what, where=where(item), fix=_DISK) from None


def _started(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Those that run; a machine that gives fewer than asked for is slower, and the results are the same."""
    threads: list[threading.Thread] = []
    for number in range(count):
        thread = threading.Thread(target=work, name=f"reader {number + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the limit of the system or of a container
            break
        threads.append(thread)
    return threads


class Pool:
    """So many threads that do what is submitted, first come, first served; where none can be started, who submits."""

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._threads = _started(self._work, count)

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """What will be its result."""
        found: Future[Result] = Future()
        begin = partial(settle, found, partial(self._unless_ended, task))
        with self._lock:  # nothing comes behind the end
            if self._threads and not self._ended.is_set():
                self._tasks.put(begin)
                return found
        begin()
        return found

    def end(self) -> None:
        """Begin nothing more: what waits to be begun has a `CancelledError` as its result."""
        with self._lock:
            self._ended.set()
            for _ in self._threads:
                self._tasks.put(None)

    def join(self, patience: float | None = None) -> None:
        """Wait for what was begun before the `end`, so many seconds at most."""
        until = None if patience is None else time.monotonic() + patience
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while task := self._tasks.get():
            task()

    def _unless_ended(self, task: Callable[[], Result]) -> Result:
        if self._ended.is_set():
            raise CancelledError
        return task()


def ahead(tasks: Sequence[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """The results in order, each task begun while the result before it is in use; as it is asked for with 0 workers.

    For tasks that decode. One that computes with torch would only take the network's threads from it.
    """
    if not workers:
        yield from (task() for task in tasks)
        return
    waiting = [_begun(task) for task in tasks[:1]]
    for task in [*tasks[1:], None]:
        following = [_begun(task)] if task else []
        if waiting:
            yield outcome(waiting[0])
        waiting = following


def _begun(task: Callable[[], Result]) -> Future[Result]:
    """A task in a thread of its own, or done at once where none can be started."""
    found: Future[Result] = Future()
    if not _started(partial(settle, found, task), 1):
        settle(found, task)
    return found
