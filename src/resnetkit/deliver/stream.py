"""From files to what is said of each: decoded, prepared and asked about beside each other. No torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.architecture.card import Preparation
from resnetkit.deliver.inputs import Input
from resnetkit.errors import PictureError
from resnetkit.images.decode import attempt_named
from resnetkit.images.prepare import Pixels, open_prepared
from resnetkit.learn import workers
from resnetkit.learn.ranks import cores
from resnetkit.learn.workers import Pool, StuckError

Numbers = NDArray[Any]
Ask = Callable[[Pixels], Numbers]
Row = tuple[Input, Numbers | PictureError]
_AHEAD = 2  # chunks of each reader that are on their way: one in its hands, one that waits to be read
_GRACE = 1.0  # seconds in which readers leave the pictures that nobody will see; one that hangs is left alone


def streamed(
    inputs: Sequence[Input], preparation: Preparation, ask: Ask, batch: int, streams: int
) -> Generator[list[Row], None, None]:
    """What ``ask`` says of each input, or why it cannot be read, in order, ``batch`` inputs at once.

    Each reader takes the next chunk, decodes it and waits for its answer, while others decode on the same cores. The
    same ``streams`` threads ask from the first chunk to the last, as libraries keep something for each that does. A
    chunk without a picture asks nothing. An error of a thread is raised in its turn; a picture that is not read in
    `workers.PATIENCE` is a `MachineError`.
    """
    count = max(cores(), streams)
    readers, askers = Pool(count), Pool(streams)
    work, waiting = _Work(preparation, ask, askers), deque[tuple[_Chunk, Future[list[Row]]]]()
    try:
        for start in range(0, len(inputs), batch):
            chunk = _Chunk(inputs[start : start + batch])
            waiting.append((chunk, readers.submit(partial(work, chunk))))
            if len(waiting) >= _AHEAD * count:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        work.ended.set()
        for pool in (readers, askers):
            pool.end()
        readers.join(_GRACE)
        askers.join()  # who computes comes to an end, and a process that ended before would tear its library down


@dataclass
class _Chunk:
    """Some inputs on their way; ``reading`` is which of them is read now, and since when."""

    inputs: Sequence[Input]
    reading: tuple[int, float] | None = None

    def watched(self) -> Iterator[Input]:
        """Each of them, to be read before the next is asked for."""
        for place, one in enumerate(self.inputs):
            self.reading = (place, time.monotonic())
            yield one
        self.reading = None

    def patience(self) -> float:
        """How many seconds are left to what is read now; raises `MachineError` where there are none."""
        if self.reading is None:
            return workers.PATIENCE
        place, since = self.reading
        left = since + workers.PATIENCE - time.monotonic()
        if left <= 0:
            raise StuckError(place, self.inputs[place].name)
        return left


@dataclass(frozen=True)
class _Work:
    """What a reader does with a chunk."""

    preparation: Preparation
    ask: Ask
    askers: Pool
    ended: Event = field(default_factory=Event)

    def __call__(self, chunk: _Chunk) -> list[Row]:
        read = [(one, self._read(one)) for one in chunk.watched()]
        good = [pixels for _, pixels in read if not isinstance(pixels, PictureError)]
        said = iter(self.askers.submit(partial(self.ask, np.stack(good))).result() if good else ())
        return [(one, pixels if isinstance(pixels, PictureError) else next(said)) for one, pixels in read]

    def _read(self, one: Input) -> Pixels | PictureError:
        """Raises `CancelledError` where nobody waits for it any more, so that nobody hears of that."""
        if self.ended.is_set():
            raise CancelledError
        return attempt_named(partial(_open, self.preparation), _name, one)


def _name(one: Input) -> str:
    return one.name


def _open(preparation: Preparation, one: Input) -> Pixels:
    return open_prepared(Path(one.name) if one.content is None else one.content, preparation)


def _result(chunk: _Chunk, future: Future[list[Row]]) -> list[Row]:
    """As soon as it is there, while its reading goes on."""
    while True:
        try:
            return future.result(chunk.patience())
        except TimeoutError:
            if future.done():  # the asking itself failed so
                return future.result()
