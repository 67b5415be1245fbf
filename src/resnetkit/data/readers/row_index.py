"""Pictures in the rows of files: where the bytes of each stand, so that any row costs one small read.

What is kept in memory is 16 bytes a row, however large the pictures are. They are read from the file and not through a
memory map: where a file was cut meanwhile, or a disk fails, a read is an error of one row, and a map ends the process.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.errors import PictureError
from resnetkit.images.decode import MOST_BYTES, decode, reason

Indices = NDArray[np.int64]
NONE, NAMED = -1, -2  # sizes of what has no bytes: nothing stands there, or the name of a file
_ABSENT = {
    NONE: "there is no picture in this row",
    NAMED: "there are no bytes in this row, only the name of a file, and none is opened by a name in another file",
}


@dataclass(frozen=True)
class Shard:
    """A file of rows: what it is called, where it is, and where in ``content`` the bytes of each row stand.

    ``content`` is the file itself, or the copy that can be read at any place; ``stamp`` is its size and its time, by
    which a file that was replaced meanwhile is known.
    """

    name: str
    path: Path
    content: Path
    stamp: tuple[int, int]
    starts: Indices
    sizes: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, row: int) -> bytes:
        """The bytes of a row; raises `PictureError`, or `OSError`."""
        start, size = int(self.starts[row]), int(self.sizes[row])
        if size < 0 or size > MOST_BYTES:
            raise PictureError(_ABSENT.get(size, f"it has more than {MOST_BYTES:,} bytes"))
        with self.content.open("rb", buffering=0) as file:
            if stamp(os.fstat(file.fileno())) != self.stamp:
                raise PictureError("its file has changed since it was opened")
            file.seek(start)
            return _all_of(file.read(size), size)


def _all_of(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise PictureError(f"its file gave {len(content):,} bytes of {size:,}")
    return content


def stamp(known: os.stat_result) -> tuple[int, int]:
    """(size, time of the last change): another one is another file."""
    return known.st_size, known.st_mtime_ns


@dataclass(frozen=True)
class Rows:
    """Pictures in the rows of files: ``numbers`` are those of the rows, counted through all the files."""

    shards: tuple[Shard, ...]
    numbers: Indices
    labels: Indices

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def names(self) -> Sequence[str]:
        """What each picture is called, made as it is asked for: a million names are much larger than their numbers."""
        return _Names(self)

    def image(self, i: int, colour: str = "RGB", shorter: int = 0) -> Image.Image:
        """The ``i``-th picture, reduced where ``shorter`` allows it as in `decode`; raises `PictureError`."""
        try:
            return decode(self.content(i), colour, shorter)
        except PictureError as error:
            raise PictureError(error.what, where=self.where(i), fix=error.fix) from None

    def content(self, i: int) -> bytes:
        """The bytes of the ``i``-th picture; raises `PictureError`."""
        shard, row = self.place(i)
        try:
            return shard.read(row)
        except OSError as error:
            raise PictureError(reason(error)) from error

    def where(self, i: int) -> str:
        """Where the ``i``-th picture stands; rows are counted from 0, as datasets does."""
        shard, row = self.place(i)
        return f"{shard.path} row {row}"

    def size(self, i: int) -> int:
        """In bytes; negative where there are none."""
        shard, row = self.place(i)
        return int(shard.sizes[row])

    def place(self, i: int) -> tuple[Shard, int]:
        """The file and the row of the ``i``-th picture."""
        number = int(self.numbers[i])
        at = int(np.searchsorted(self._ends, number, side="right"))
        return self.shards[at], number - int(self._ends[at]) + len(self.shards[at])

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum([len(shard) for shard in self.shards])

    def take(self, indices: Indices) -> Rows:
        """Some of them."""
        return Rows(self.shards, self.numbers[indices], self.labels[indices])


@dataclass(frozen=True)
class _Names(Sequence[str]):
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        shard, row = self.rows.place(i)  # raises IndexError behind the last one, which ends an iteration
        return f"{shard.name} row {row}"


def all_rows(shards: Sequence[Shard], labels: Indices) -> Rows:
    """Every row of some files."""
    return Rows(tuple(shards), np.arange(len(labels)), labels)


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Several parts as one."""
    before = np.cumsum([0, *(sum(map(len, part.shards)) for part in parts)])
    numbers = np.concatenate([part.numbers + start for part, start in zip(parts, before[:-1], strict=True)])
    shards = tuple(shard for part in parts for shard in part.shards)
    return Rows(shards, numbers, np.concatenate([part.labels for part in parts]))
