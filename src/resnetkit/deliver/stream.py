"""From files to what is said of each: decoded, prepared and asked about beside each other. No torch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.architecture.card import Preparation
from resnetkit.deliver.inputs import Input
from resnetkit.errors import PictureError
from resnetkit.images.decode import attempt
from resnetkit.images.prepare import Pixels, open_prepared
from resnetkit.learn.ranks import cores

Numbers = NDArray[Any]
Ask = Callable[[Pixels], Numbers]
Row = tuple[Input, Numbers | PictureError]
_AHEAD = 2  # chunks of each worker that are on their way: one in its hands, one that waits to be read


def streamed(
    inputs: Sequence[Input], preparation: Preparation, ask: Ask, batch: int, streams: int
) -> Generator[list[Row], None, None]:
    """What ``ask`` says of each input, or why it cannot be read, in order, ``batch`` inputs at once.

    Each worker takes the next chunk, decodes it and asks; at most ``streams`` of them ask at once, and the others
    decode meanwhile on the same cores. A chunk without a picture asks nothing. An error of a worker is raised in its
    turn.
    """
    workers = max(cores(), streams)
    work = _Work(preparation, ask, threading.Semaphore(streams))
    pool, waiting = ThreadPoolExecutor(workers), deque[Future[list[Row]]]()
    try:
        for start in range(0, len(inputs), batch):
            waiting.append(pool.submit(work, inputs[start : start + batch]))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        work.ended.set()
        pool.shutdown(cancel_futures=True)  # who interrupts does not wait for pictures that nobody will see


@dataclass(frozen=True)
class _Work:
    """What a worker does with a chunk."""

    preparation: Preparation
    ask: Ask
    turn: threading.Semaphore
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunk: Sequence[Input]) -> list[Row]:
        read = [(one, self._read(one)) for one in chunk]
        good = [pixels for _, pixels in read if not isinstance(pixels, PictureError)]
        said = iter(self._asked(np.stack(good)) if good else ())
        return [(one, pixels if isinstance(pixels, PictureError) else next(said)) for one, pixels in read]

    def _read(self, one: Input) -> Pixels | PictureError:
        self._require_wanted()
        return attempt(partial(_open, self.preparation), one)

    def _asked(self, pixels: Pixels) -> Numbers:
        with self.turn:
            self._require_wanted()
            return self.ask(pixels)

    def _require_wanted(self) -> None:
        """Raise where nobody waits for this chunk any more, so that nobody hears of it."""
        if self.ended.is_set():
            raise CancelledError


def _open(preparation: Preparation, one: Input) -> Pixels:
    return open_prepared(Path(one.name) if one.content is None else one.content, preparation)
