"""From pictures to batches of pixels: N H W C, 8 bits.

What fits is prepared once and kept in memory; the rest is read as it is needed, on all cores, one batch ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation
from resnetkit.errors import DataError, PictureError
from resnetkit.images.decode import attempt
from resnetkit.images.prepare import Pixels, prepare, random_crop
from resnetkit.learn.data import Indices, Pictures

KEPT_BYTES = 2 * 2**30
_BATCH = 256

T = TypeVar("T")
Tell = Callable[[int, int], None]


class PixelSource:
    """The prepared pictures of a part, by number."""

    def __init__(
        self, pictures: Pictures, preparation: Preparation, *, keep: bool = True, tell: Tell | None = None
    ) -> None:
        self.pictures = pictures
        self.preparation = preparation
        self.labels = torch.from_numpy(pictures.labels)
        height, width = preparation.crop
        size = len(pictures) * height * width * len(preparation.mean)
        self._kept = self._read_all(tell) if keep and size <= KEPT_BYTES else None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def in_memory(self) -> bool:
        """Whether reading them again costs nothing."""
        return self._kept is not None

    def prepared(self, indices: Indices) -> Tensor:
        """The pictures as evaluation sees them."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(indices)]
        return _stack(_on_all_cores(self._one, indices.tolist()))

    def cropped(self, indices: Indices, area: float, seed: Sequence[int]) -> Tensor:
        """Random windows; what is drawn for a picture depends on ``seed`` and its number alone."""
        return _stack(_on_all_cores(partial(self._crop, area, tuple(seed)), indices.tolist()))

    def batches(self, size: int = _BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order: (pixels, labels)."""
        chunks = [np.arange(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        return (
            (self._pair(chunk) for chunk in chunks) if self.in_memory else ahead(partial(self._pair, c) for c in chunks)
        )

    def _pair(self, chunk: Indices) -> tuple[Tensor, Tensor]:
        return self.prepared(chunk), self.labels[torch.from_numpy(chunk)]

    def _one(self, i: int) -> Pixels:
        return prepare(self.pictures.image(i, self.preparation.colour), self.preparation)

    def _crop(self, area: float, seed: tuple[int, ...], i: int) -> Pixels:
        draw = np.random.default_rng([*seed, i])
        return random_crop(self.pictures.image(i, self.preparation.colour), self.preparation, area, draw)

    def _read_all(self, tell: Tell | None) -> Tensor:
        return _stack(_on_all_cores(self._one, range(len(self)), tell))


def ahead(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results in order, each task begun while the result before it is in use.

    For tasks that decode. One that computes with torch would only take the network's threads from it.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[T] | None = None
        for task in tasks:
            following = pool.submit(task)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _on_all_cores(read: Callable[[int], Pixels], indices: Sequence[int], tell: Tell | None = None) -> list[Pixels]:
    """``read`` of each, in order; raises one `DataError` that names every picture that could not be read."""
    found: list[Pixels] = []
    bad: list[PictureError] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, result in enumerate(pool.map(partial(attempt, read), indices), 1):
            if isinstance(result, PictureError):
                bad.append(result)
            else:
                found.append(result)
            if tell:
                tell(done, len(indices))
    if bad:
        raise _unreadable(bad)
    return found


def _unreadable(bad: Sequence[PictureError]) -> DataError:
    told = [f"{error.where[0]}: {error.what}" for error in bad[:5]]
    more = [f"... and {len(bad) - 5} more"] * (len(bad) > 5)
    count = "1 picture" if len(bad) == 1 else f"{len(bad)} pictures"
    return DataError(f"{count} cannot be read", where=told + more, fix="repair or remove them; none was skipped")


def _stack(arrays: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
