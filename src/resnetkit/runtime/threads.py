"""Threads that read images while the network computes.

These are threads and not processes for three reasons. They share the memory of the training loop, so that a small
/dev/shm is enough; none of them can be killed alone; and Pillow decodes without holding the interpreter lock, so that
they run in parallel. The result for an image depends on its index and never on the thread that read it. The threads are
daemons: one that hangs in a read does not keep the process alive.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from resnetkit.errors import MachineError
from resnetkit.runtime.deadline import Deadline

T = TypeVar("T")
Result = TypeVar("Result")
MAX_WORKERS = 1024
READ_TIMEOUT = 120.0  # seconds for an image: the largest ones take a few seconds, even from a slow disk
SIGNAL_POLL_SECONDS = 0.5  # the longest wait in one call: Python may handle a signal only after the call returns

_DISK_HINT = "check the disk or network drive that holds it; resnetkit check reads every image once"


def map_ordered(
    read: Callable[[T], Result], items: Sequence[T], workers: int, describe: Callable[[T], str] = str
) -> Iterator[Result]:
    """Apply ``read`` to every item on several threads and yield the results in the order of the items.

    If ``workers`` is 0, or if the system starts no thread, the calling thread reads the items itself. If the caller
    closes the iterator, items that no thread has begun are not read.

    Args:
        read: the function; its exceptions are raised at the item's position.
        items: the arguments of ``read``.
        workers: the largest number of threads.
        describe: returns the location of an item for an error message.

    Raises:
        MachineError: a read does not finish within `READ_TIMEOUT`.
    """
    pool = WorkerPool(min(workers, len(items)))
    if not pool.threads:
        yield from map(read, items)
        return
    try:
        futures = [pool.submit(partial(read, item)) for item in items]
        for item, future in zip(items, futures, strict=True):
            yield wait_for_read(future, item, describe)
    finally:
        pool.shutdown()


def complete_future(future: Future[Result], task: Callable[[], Result]) -> None:
    """Run a task and store its result or its exception in a future.

    Args:
        future: receives the result.
        task: the function to run.
    """
    try:
        future.set_result(task())
    except BaseException as error:  # noqa: BLE001  future.result() raises it
        future.set_exception(error)


def wait_for_result(future: Future[Result], timeout: float = math.inf) -> Result:
    """Return the result of a future; signals are handled during the wait.

    Args:
        future: the future.
        timeout: seconds.

    Raises:
        TimeoutError: the future has no result after ``timeout`` seconds.
    """
    deadline = Deadline(timeout)
    while not future.done() and not deadline.is_expired:
        wait([future], min(deadline.remaining, SIGNAL_POLL_SECONDS))
    return future.result(0)


def wait_for_read(future: Future[Result], item: T, describe: Callable[[T], str]) -> Result:
    """Return the result of a read, and name the item if it does not finish.

    Args:
        future: the future of the read.
        item: the item that is read.
        describe: returns the location of an item for the error message.

    Raises:
        MachineError: the read does not finish within `READ_TIMEOUT`.
    """
    try:
        return wait_for_result(future, READ_TIMEOUT)
    except TimeoutError:
        if future.done():  # the read itself raised TimeoutError
            return future.result()
        what = f"the read did not finish within {READ_TIMEOUT:g} seconds"
        raise MachineError(what, where=describe(item), fix=_DISK_HINT) from None


def _start_threads(run: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start ``count`` threads, or as many as the limits of the system or container allow."""
    threads: list[threading.Thread] = []
    with contextlib.suppress(RuntimeError):
        for number in range(count):
            thread = threading.Thread(target=run, name=f"reader {number + 1}", daemon=True)
            thread.start()
            threads.append(thread)
    return threads


class WorkerPool:
    """A fixed number of daemon threads that run tasks in the order of submission.

    If the system starts fewer threads, the pool is slower and the results are the same. Without any thread, `submit`
    runs the task itself.

    Args:
        count: the number of threads.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_stopped, self._lock = threading.Event(), threading.Lock()
        self.threads = _start_threads(self._run_tasks, count)

    def submit(self, task: Callable[[], Result]) -> Future[Result]:
        """Queue a task and return the future of its result."""
        future: Future[Result] = Future()
        run_task = partial(complete_future, future, partial(self._run_unless_stopped, task))
        with self._lock:  # no task may be queued after the end marks of `shutdown`
            if self.threads and not self._is_stopped.is_set():
                self._tasks.put(run_task)
                return future
        run_task()
        return future

    def shutdown(self) -> None:
        """Start no more tasks: a queued task gets `CancelledError` as its result."""
        with self._lock:
            self._is_stopped.set()
            for _ in self.threads:
                self._tasks.put(None)

    def join(self, timeout: float = math.inf) -> None:
        """Wait up to ``timeout`` seconds for the tasks that were started before `shutdown`."""
        deadline = Deadline(timeout)
        for thread in self.threads:
            thread.join(min(deadline.remaining, threading.TIMEOUT_MAX))

    def _run_tasks(self) -> None:
        while task := self._tasks.get():
            task()

    def _run_unless_stopped(self, task: Callable[[], Result]) -> Result:
        if self._is_stopped.is_set():
            raise CancelledError
        return task()


def prefetch(tasks: Sequence[Callable[[], Result]], workers: int) -> Iterator[Result]:
    """Yield the results of tasks in order; each task runs while the caller uses the result before it.

    Tasks should decode images. A task that computes with torch would compete with the network for its threads.

    Args:
        tasks: the functions to run.
        workers: with 0, the calling thread runs each task when its result is requested.
    """
    if not workers:
        yield from (task() for task in tasks)
        return
    pool, pending = WorkerPool(2), deque[Future[Result]]()
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) > 1:
                yield wait_for_result(pending.popleft())
        yield from map(wait_for_result, pending)
    finally:
        pool.shutdown()
