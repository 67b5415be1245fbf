"""From files to what is said of each: decoded, prepared and asked about beside each other.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.architecture.card import Preparation
from resnetkit.engines.base import Engine
from resnetkit.errors import MachineError, PictureError
from resnetkit.images.decode import attempt_named
from resnetkit.images.prepare import Pixels, open_prepared
from resnetkit.prediction.inputs import Input
from resnetkit.runtime.distributed import cores
from resnetkit.runtime.threads import Pool, outcome, patiently, settle

Numbers = NDArray[Any]
Ask = Callable[[Pixels], Numbers]
Row = tuple[Input, Numbers | PictureError]
_GRACE = 1.0  # seconds in which readers leave the pictures that nobody will see; one that hangs is left alone


def streamed(
    inputs: Sequence[Input], preparation: Preparation, ask: Ask, batch: int, streams: int
) -> Generator[list[Row], None, None]:
    """What ``ask`` says of each input, or why it cannot be read, in order, ``batch`` inputs at once.

    Pictures are read one by one, so that a few large ones keep all cores busy, and a chunk of them is asked about as
    soon as it is there, while others are read on the same cores. The same ``streams`` threads ask from the first chunk
    to the last, as libraries keep something for each that does. A chunk without a picture asks nothing. An error of a
    thread is raised in its turn; a picture that is not read in `workers.PATIENCE` is a `MachineError`.
    """
    count = max(cores(), streams)
    # each that asks has a chunk in hand and one to go on with, each that reads likewise a picture
    on_their_way = 2 * streams + math.ceil(2 * count / batch)
    work, waiting = _Work(preparation, ask, Pool(count), Pool(streams)), deque[_Chunk]()
    try:
        for start in range(0, len(inputs), batch):
            waiting.append(_Chunk(inputs[start : start + batch], work))
            if len(waiting) >= on_their_way:
                yield waiting.popleft().rows()
        while waiting:
            yield waiting.popleft().rows()
    finally:
        work.end()


def checked(engine: Engine, classes: int) -> Ask:
    """What asks an engine; raises `MachineError` where its answers are not ``classes`` numbers for each picture."""

    def ask(pixels: Pixels) -> Numbers:
        said = engine(pixels)
        if said.shape != (len(pixels), classes):
            what = f"{engine.choice.name} gives {_shape(said)} for {len(pixels)} pictures and {classes} classes"
            raise MachineError(what, fix="resnetkit optimize makes it again; or --engine torch")
        return said

    return ask


def _shape(said: Numbers) -> str:
    if not said.ndim:
        return "one number"
    inner = " x ".join(map(str, said.shape[1:]))
    return f"{len(said)} rows of {inner} numbers" if said.ndim == 2 else f"{len(said)} arrays of {inner}"


@dataclass(frozen=True)
class _Work:
    """What is done with each picture and each chunk, and by whom."""

    preparation: Preparation
    ask: Ask
    readers: Pool
    askers: Pool

    def read(self, one: Input) -> Pixels | PictureError:
        return attempt_named(partial(_open, self.preparation), _name, one)

    def end(self) -> None:
        for pool in (self.readers, self.askers):
            pool.end()
        self.readers.join(_GRACE)
        self.askers.join()  # who computes comes to an end, and a process that ended before would tear its library down


class _Chunk:
    """Some inputs on their way. Each is read by itself; whoever reads the last one hands them to those who ask."""

    def __init__(self, inputs: Sequence[Input], work: _Work) -> None:
        self._inputs, self._work = inputs, work
        self._pixels: list[Pixels | PictureError | None] = [None] * len(inputs)
        self._left = iter(reversed(range(len(inputs))))  # how many are unread; a step of it no thread interrupts
        self._said: Future[Iterable[Numbers]] = Future()
        self._read = [work.readers.submit(partial(self._one, place)) for place in range(len(inputs))]

    def _one(self, place: int) -> None:
        self._pixels[place] = self._work.read(self._inputs[place])
        if next(self._left) == 0:
            good = [pixels for pixels in self._pixels if isinstance(pixels, np.ndarray)]
            task = partial(self._work.ask, np.stack(good)) if good else list
            self._work.askers.submit(partial(settle, self._said, task))

    def rows(self) -> list[Row]:
        """As soon as they are there; raises what reading or asking has raised."""
        for one, read in zip(self._inputs, self._read, strict=True):
            patiently(read, one, _name)
        said = iter(outcome(self._said))
        return [
            (one, pixels if isinstance(pixels, PictureError) else next(said))
            for one, pixels in zip(self._inputs, self._pixels, strict=True)
        ]


def _name(one: Input) -> str:
    return one.name


def _open(preparation: Preparation, one: Input) -> Pixels:
    return open_prepared(Path(one.name) if one.content is None else one.content, preparation)
