"""Decode and prepare images in parallel with inference.

This module imports no torch.
"""

from __future__ import annotations

import math
import operator
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.architecture.card import Preparation
from resnetkit.errors import ImageError
from resnetkit.images.decode import try_read_named
from resnetkit.images.prepare import Pixels, load_pixels
from resnetkit.prediction.inputs import ImageInput
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import WorkerPool, complete_future, wait_for_read, wait_for_result

Outputs = NDArray[Any]
InferFn = Callable[[Pixels], Outputs]
InputResult = tuple[ImageInput, Outputs | ImageError]
_get_name = operator.attrgetter("name")
JOIN_TIMEOUT = 1.0  # seconds that readers get to finish; a reader that hangs is abandoned


def run_pipeline(
    inputs: Sequence[ImageInput], preparation: Preparation, infer: InferFn, batch_size: int, streams: int
) -> Generator[list[InputResult], None, None]:
    """Yield the output of ``infer`` for each input, or the error of reading it, in order, batch by batch.

    Images are decoded one by one, so that a few large ones keep all cores busy. A batch is computed as soon as its
    images are decoded. The same ``streams`` threads call ``infer`` from the first batch to the last, because libraries
    keep state for each thread. A batch without a readable image is not computed.

    Args:
        inputs: the images.
        preparation: how to prepare them.
        infer: computes a batch (N, H, W, C).
        batch_size: the number of inputs of a batch.
        streams: the number of threads that call ``infer``.

    Raises:
        MachineError: reading an image takes longer than `threads.READ_TIMEOUT`.
    """
    n_readers = max(count_cores(), streams)
    # two batches for each stream and two images for each reader: one in work, one waiting
    max_in_flight = 2 * streams + math.ceil(2 * n_readers / batch_size)
    decode_pool, infer_pool, pending = WorkerPool(n_readers), WorkerPool(streams), deque[_Batch]()
    decode = partial(try_read_named, partial(load_image, preparation), _get_name)
    try:
        for start in range(0, len(inputs), batch_size):
            pending.append(_Batch(inputs[start : start + batch_size], decode, decode_pool, infer, infer_pool))
            if len(pending) >= max_in_flight:
                yield pending.popleft().wait_for_results()
        while pending:
            yield pending.popleft().wait_for_results()
    finally:
        decode_pool.shutdown()
        infer_pool.shutdown()
        decode_pool.join(JOIN_TIMEOUT)
        infer_pool.join()  # a process that ends earlier would unload the library during a call


def load_image(preparation: Preparation, item: ImageInput) -> Pixels:
    """Decode and prepare an image.

    Args:
        preparation: how to prepare it.
        item: the image.

    Returns:
        (H, W, C), uint8.

    Raises:
        ImageError: the image cannot be read.
    """
    if item.error:
        raise ImageError(item.error, where=item.name)
    return load_pixels(Path(item.name) if item.content is None else item.content, preparation)


class _Batch:
    """Inputs in progress; the thread that decodes the last of them submits the batch."""

    def __init__(
        self,
        inputs: Sequence[ImageInput],
        decode: Callable[[ImageInput], Pixels | ImageError],
        decode_pool: WorkerPool,
        infer: InferFn,
        infer_pool: WorkerPool,
    ) -> None:
        self._inputs, self._decode, self._infer, self._infer_pool = inputs, decode, infer, infer_pool
        self._pixels: list[Pixels | ImageError | None] = [None] * len(inputs)
        self._lock, self._n_unread = threading.Lock(), len(inputs)
        self._outputs: Future[Iterable[Outputs]] = Future()
        self._decoded = [decode_pool.submit(partial(self._decode_item, index)) for index in range(len(inputs))]

    def _decode_item(self, index: int) -> None:
        self._pixels[index] = self._decode(self._inputs[index])
        with self._lock:
            self._n_unread -= 1
            is_last = self._n_unread == 0
        if is_last:
            readable = [pixels for pixels in self._pixels if isinstance(pixels, np.ndarray)]
            task = partial(self._infer, np.stack(readable)) if readable else list
            self._infer_pool.submit(partial(complete_future, self._outputs, task))

    def wait_for_results(self) -> list[InputResult]:
        """Return the results; raise what a thread raised."""
        for item, future in zip(self._inputs, self._decoded, strict=True):
            wait_for_read(future, item, _get_name)
        outputs = iter(wait_for_result(self._outputs))
        return [
            (item, pixels if isinstance(pixels, ImageError) else next(outputs))
            for item, pixels in zip(self._inputs, self._pixels, strict=True)
        ]
