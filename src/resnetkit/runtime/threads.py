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
MAX_WORKERS = 1024
READ_TIMEOUT = 120.0  # seconds for one picture: the largest that is read takes a few, also from a slow disk
SIGNAL_POLL_SECONDS = 0.5  # seconds of a wait: Python hears of a signal that comes just before one at its end only


_DISK_HINT = "look after the disk or the network that it is read from; resnetkit check reads every picture once"


def map_ordered(
    read: Callable[[T], Result], items: Sequence[T], workers: int, describe: Callable[[T], str] = str
) -> Iterator[Result]:
    """``read`` of each item, in order; with 0 workers, or where no thread can be started, by the caller itself.

    Raises `MachineError` for an item whose reading does not end; ``where`` names it.
    """
    futures: list[Future[Result]] = [Future() for _ in items]
    indices = iter(range(len(items)))

    def read_items() -> None:
        for index in indices:  # the next one that nobody has: asking is one step that no thread interrupts
            complete_future(futures[index], partial(read, items[index]))

    if not _start_threads(read_items, min(workers, len(items))):
        yield from map(read, items)
        return
    try:
        for item, future in zip(items, futures, strict=True):
            yield wait_for_read(future, item, describe)
    finally:
        deque(indices, 0)  # what nobody waits for is not begun


def complete_future(future: Future[Result], task: Callable[[], Result]) -> None:
    """Do it, and give ``future`` what comes of it."""
    try:
        future.set_result(task())
    except BaseException as error:  # noqa: BLE001  whoever asks for the result gets it
        future.set_exception(error)


def wait_for_result(future: Future[Result], timeout: float = math.inf) -> Result:
    """Its result; raises `TimeoutError` after so many seconds, in which signals are heard."""
    deadline = time.monotonic() + timeout
    while not future.done() and (remaining := deadline - time.monotonic()) > 0:
        wait([future], min(remaining, SIGNAL_POLL_SECONDS))
    return future.result(0)


def wait_for_read(future: Future[Result], item: T, describe: Callable[[T], str]) -> Result:
    """What was read of an item; raises `MachineError` where that takes more than `PATIENCE` from now on."""
    try:
        return wait_for_result(future, READ_TIMEOUT)
    except TimeoutError:
        if future.done():  # the reading itself failed so
            return future.result()
        what = f"reading took more than {READ_TIMEOUT:.0f} seconds"
        raise MachineError(what, where=describe(item), fix=_DISK_HINT) from None


def _start_threads(run: Callable[[], None], count: int) -> list[threading.Thread]:
    """Those that run; a machine that gives fewer than asked for is slower, and the results are the same."""
    threads: list[threading.Thread] = []
    for number in range(count):
        thread = threading.Thread(target=run, name=f"reader {number + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the limit of the system or of a container
            break
        threads.append(thread)
    return threads


class WorkerPool:
    """So many threads that do what is submitted, first come, first served; where none can be started, who submits."""

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._threads = _start_threads(self._run_tasks, count)

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """What will be its result."""
        future: Future[Result] = Future()
        run_task = partial(complete_future, future, partial(self._run_unless_stopped, task))
        with self._lock:  # nothing comes behind the end
            if self._threads and not self._stopped.is_set():
                self._tasks.put(run_task)
                return future
        run_task()
        return future

    def shutdown(self) -> None:
        """Begin nothing more: what waits to be begun has a `CancelledError` as its result."""
        with self._lock:
            self._stopped.set()
            for _ in self._threads:
                self._tasks.put(None)

    def join(self, timeout: float | None = None) -> None:
        """Wait for what was begun before the `end`, so many seconds at most."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _run_tasks(self) -> None:
        while task := self._tasks.get():
            task()

    def _run_unless_stopped(self, task: Callable[[], Result]) -> Result:
        if self._stopped.is_set():
            raise CancelledError
        return task()


def prefetch(tasks: Sequence[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """The results in order, each task begun while the result before it is in use; as it is asked for with 0 workers.

    For tasks that decode. One that computes with torch would only take the network's threads from it.
    """
    if not workers:
        yield from (task() for task in tasks)
        return
    pending = [_start_task(task) for task in tasks[:1]]
    for task in [*tasks[1:], None]:
        next_pending = [_start_task(task)] if task else []
        if pending:
            yield wait_for_result(pending[0])
        pending = next_pending


def _start_task(task: Callable[[], Result]) -> Future[Result]:
    """A task in a thread of its own, or done at once where none can be started."""
    future: Future[Result] = Future()
    if not _start_threads(partial(complete_future, future, task), 1):
        complete_future(future, task)
    return future
