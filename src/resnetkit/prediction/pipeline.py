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
from resnetkit.errors import ImageError, MachineError
from resnetkit.images.decode import try_read_named
from resnetkit.images.prepare import Pixels, load_pixels
from resnetkit.prediction.inputs import ImageInput
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import WorkerPool, complete_future, wait_for_read, wait_for_result

Outputs = NDArray[Any]
InferFn = Callable[[Pixels], Outputs]
InputResult = tuple[ImageInput, Outputs | ImageError]
_JOIN_TIMEOUT = 1.0  # seconds in which readers leave the pictures that nobody will see; one that hangs is left alone


def run_pipeline(
    inputs: Sequence[ImageInput], preparation: Preparation, infer: InferFn, batch_size: int, streams: int
) -> Generator[list[InputResult], None, None]:
    """What ``ask`` says of each input, or why it cannot be read, in order, ``batch`` inputs at once.

    Pictures are read one by one, so that a few large ones keep all cores busy, and a chunk of them is asked about as
    soon as it is there, while others are read on the same cores. The same ``streams`` threads ask from the first chunk
    to the last, as libraries keep something for each that does. A chunk without a picture asks nothing. An error of a
    thread is raised in its turn; a picture that is not read in `workers.PATIENCE` is a `MachineError`.
    """
    n_readers = max(count_cores(), streams)
    # each that asks has a chunk in hand and one to go on with, each that reads likewise a picture
    max_in_flight = 2 * streams + math.ceil(2 * n_readers / batch_size)
    pools, pending = _Pools(preparation, infer, WorkerPool(n_readers), WorkerPool(streams)), deque[_Batch]()
    try:
        for start in range(0, len(inputs), batch_size):
            pending.append(_Batch(inputs[start : start + batch_size], pools))
            if len(pending) >= max_in_flight:
                yield pending.popleft().wait_for_results()
        while pending:
            yield pending.popleft().wait_for_results()
    finally:
        pools.shut_down()


def add_shape_check(engine: Engine, n_classes: int) -> InferFn:
    """What asks an engine; raises `MachineError` where its answers are not ``classes`` numbers for each picture."""

    def infer(pixels: Pixels) -> Outputs:
        outputs = engine(pixels)
        if outputs.shape != (len(pixels), n_classes):
            what = f"{engine.config.name} gives {_describe_shape(outputs)} for {len(pixels)} pictures and {n_classes} classes"
            raise MachineError(what, fix="resnetkit optimize makes it again; or --engine torch")
        return outputs

    return infer


def _describe_shape(outputs: Outputs) -> str:
    if not outputs.ndim:
        return "one number"
    inner = " x ".join(map(str, outputs.shape[1:]))
    return f"{len(outputs)} rows of {inner} numbers" if outputs.ndim == 2 else f"{len(outputs)} arrays of {inner}"


@dataclass(frozen=True)
class _Pools:
    """What is done with each picture and each chunk, and by whom."""

    preparation: Preparation
    infer: InferFn
    decode_pool: WorkerPool
    infer_pool: WorkerPool

    def decode(self, item: ImageInput) -> Pixels | ImageError:
        return try_read_named(partial(_load_pixels, self.preparation), _get_name, item)

    def shut_down(self) -> None:
        for pool in (self.decode_pool, self.infer_pool):
            pool.shutdown()
        self.decode_pool.join(_JOIN_TIMEOUT)
        self.infer_pool.join()  # who computes comes to an end, and a process that ended before would tear its library down


class _Batch:
    """Some inputs on their way. Each is read by itself; whoever reads the last one hands them to those who ask."""

    def __init__(self, inputs: Sequence[ImageInput], pools: _Pools) -> None:
        self._inputs, self._pools = inputs, pools
        self._pixels: list[Pixels | ImageError | None] = [None] * len(inputs)
        self._unread = iter(reversed(range(len(inputs))))  # how many are unread; a step of it no thread interrupts
        self._outputs: Future[Iterable[Outputs]] = Future()
        self._decoded = [pools.decode_pool.submit(partial(self._decode_item, index)) for index in range(len(inputs))]

    def _decode_item(self, index: int) -> None:
        self._pixels[index] = self._pools.decode(self._inputs[index])
        if next(self._unread) == 0:
            readable = [pixels for pixels in self._pixels if isinstance(pixels, np.ndarray)]
            task = partial(self._pools.infer, np.stack(readable)) if readable else list
            self._pools.infer_pool.submit(partial(complete_future, self._outputs, task))

    def wait_for_results(self) -> list[InputResult]:
        """As soon as they are there; raises what reading or asking has raised."""
        for item, future in zip(self._inputs, self._decoded, strict=True):
            wait_for_read(future, item, _get_name)
        outputs = iter(wait_for_result(self._outputs))
        return [
            (item, pixels if isinstance(pixels, ImageError) else next(outputs))
            for item, pixels in zip(self._inputs, self._pixels, strict=True)
        ]


def _get_name(item: ImageInput) -> str:
    return item.name


def _load_pixels(preparation: Preparation, item: ImageInput) -> Pixels:
    return load_pixels(Path(item.name) if item.content is None else item.content, preparation)
