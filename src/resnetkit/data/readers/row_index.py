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

from resnetkit.errors import ImageError
from resnetkit.images.decode import MAX_IMAGE_BYTES, decode, describe_read_error

Indices = NDArray[np.int64]
NO_BYTES, PATH_ONLY = -1, -2  # sizes of what has no bytes: nothing stands there, or the name of a file
_MISSING_REASONS = {
    NO_BYTES: "there is no picture in this row",
    PATH_ONLY: "there are no bytes in this row, only the name of a file, and none is opened by a name in another file",
}


@dataclass(frozen=True)
class Shard:
    """A file of rows: what it is called, where it is, and where in ``content`` the bytes of each row stand.

    ``content`` is the file itself, or the copy that can be read at any place; ``stamp`` is its size and its time, by
    which a file that was replaced meanwhile is known.
    """

    name: str
    path: Path
    content_path: Path
    stamp: tuple[int, int]
    starts: Indices
    sizes: Indices

    def __len__(self) -> int:
        return len(self.starts)

    def read_row(self, row: int) -> bytes:
        """The bytes of a row; raises `PictureError`, or `OSError`."""
        start, size = int(self.starts[row]), int(self.sizes[row])
        if size < 0 or size > MAX_IMAGE_BYTES:
            raise ImageError(_MISSING_REASONS.get(size, f"it has more than {MAX_IMAGE_BYTES:,} bytes"))
        with self.content_path.open("rb", buffering=0) as file:
            if get_file_stamp(os.fstat(file.fileno())) != self.stamp:
                raise ImageError("its file has changed since it was opened")
            file.seek(start)
            return _check_length(file.read(size), size)


def _check_length(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise ImageError(f"its file gave {len(content):,} bytes of {size:,}")
    return content


def get_file_stamp(status: os.stat_result) -> tuple[int, int]:
    """(size, time of the last change): another one is another file."""
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ImageRows:
    """Pictures in the rows of files: ``numbers`` are those of the rows, counted through all the files."""

    shards: tuple[Shard, ...]
    row_indices: Indices
    labels: Indices

    def __len__(self) -> int:
        return len(self.row_indices)

    @property
    def names(self) -> Sequence[str]:
        """What each picture is called, made as it is asked for: a million names are much larger than their numbers."""
        return _RowNames(self)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """The ``i``-th picture, reduced where ``shorter`` allows it as in `decode`; raises `PictureError`."""
        try:
            return decode(self.read_content(i), color_mode, shorter_side)
        except ImageError as error:
            raise ImageError(error.what, where=self.format_location(i), fix=error.fix) from None

    def read_content(self, i: int) -> bytes:
        """The bytes of the ``i``-th picture; raises `PictureError`."""
        shard, row = self.locate_row(i)
        try:
            return shard.read_row(row)
        except OSError as error:
            raise ImageError(describe_read_error(error)) from error

    def format_location(self, i: int) -> str:
        """Where the ``i``-th picture stands; rows are counted from 0, as datasets does."""
        shard, row = self.locate_row(i)
        return f"{shard.path} row {row}"

    def get_byte_size(self, i: int) -> int:
        """In bytes; negative where there are none."""
        shard, row = self.locate_row(i)
        return int(shard.sizes[row])

    def locate_row(self, i: int) -> tuple[Shard, int]:
        """The file and the row of the ``i``-th picture."""
        row_index = int(self.row_indices[i])
        shard_index = int(np.searchsorted(self._shard_ends, row_index, side="right"))
        return self.shards[shard_index], row_index - int(self._shard_ends[shard_index]) + len(self.shards[shard_index])

    @cached_property
    def _shard_ends(self) -> Indices:
        return np.cumsum([len(shard) for shard in self.shards])

    def take(self, indices: Indices) -> ImageRows:
        """Some of them."""
        return ImageRows(self.shards, self.row_indices[indices], self.labels[indices])


@dataclass(frozen=True)
class _RowNames(Sequence[str]):
    rows: ImageRows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        shard, row = self.rows.locate_row(i)  # raises IndexError behind the last one, which ends an iteration
        return f"{shard.name} row {row}"


def select_all_rows(shards: Sequence[Shard], labels: Indices) -> ImageRows:
    """Every row of some files."""
    return ImageRows(tuple(shards), np.arange(len(labels)), labels)


def concatenate_rows(splits: Sequence[ImageRows]) -> ImageRows:
    """Several parts as one."""
    starts = np.cumsum([0, *(sum(map(len, split.shards)) for split in splits)])
    row_indices = np.concatenate([split.row_indices + start for split, start in zip(splits, starts[:-1], strict=True)])
    shards = tuple(shard for split in splits for shard in split.shards)
    return ImageRows(shards, row_indices, np.concatenate([split.labels for split in splits]))
