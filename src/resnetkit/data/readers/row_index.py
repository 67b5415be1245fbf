"""Images stored in rows of files; the index holds the position of each row, so that any row costs one read.

The index takes 16 bytes of memory per row. Rows are read from the file and not through a memory map. If a file was
truncated or a disk fails, a read fails for one row; a memory map would end the process.

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
from resnetkit.images.decode import MAX_IMAGE_BYTES, TOO_MANY_BYTES, decode, describe_read_error

Indices = NDArray[np.int64]
NO_BYTES, PATH_ONLY = -1, -2  # sizes of rows without bytes: an empty row, or a row that only has a file name
_MISSING_REASONS = {
    NO_BYTES: "the row has no image",
    PATH_ONLY: "the row has no bytes, only a file name; resnetkit opens no file that another file names",
}


@dataclass(frozen=True)
class Shard:
    """A file of M rows.

    Attributes:
        name: The name relative to the dataset.
        path: The file that the user named.
        content_path: The file that holds the bytes: ``path`` itself, or its copy for random access.
        stamp: The size and the modification time of ``content_path``; a different stamp means another file.
        starts: The offset of each row in bytes (M,).
        sizes: The size of each row in bytes (M,), or `NO_BYTES` or `PATH_ONLY`.
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
        """Read the bytes of a row.

        Raises:
            ImageError: the row has no bytes, or the file has changed.
            OSError: the file cannot be read.
        """
        start, size = int(self.starts[row]), int(self.sizes[row])
        if size < 0 or size > MAX_IMAGE_BYTES:
            raise ImageError(_MISSING_REASONS.get(size, TOO_MANY_BYTES))
        with self.content_path.open("rb", buffering=0) as file:
            if get_file_stamp(os.fstat(file.fileno())) != self.stamp:
                raise ImageError("the file has changed since it was opened")
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise ImageError(f"reading the file returned {len(content):,} of {size:,} bytes")
        return content


def get_file_stamp(status: os.stat_result) -> tuple[int, int]:
    """Return (size, modification time); a file with another stamp is another file."""
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ImageRows:
    """N images in rows of files: the row of each, counted through all shards (N,), and int64 labels (N,)."""

    shards: tuple[Shard, ...]
    row_indices: Indices
    labels: Indices

    def __len__(self) -> int:
        return len(self.row_indices)

    @property
    def names(self) -> Sequence[str]:
        """The names of the images, built on demand, because a million names need more memory than the index."""
        return _RowNames(self)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """Decode an image.

        Args:
            i: The index of the image.
            color_mode: ``RGB`` or ``L``.
            shorter_side: The size to which the caller resizes, as in `decode`.

        Raises:
            ImageError: the image cannot be read.
        """
        try:
            return decode(self.read_content(i), color_mode, shorter_side)
        except ImageError as error:
            raise ImageError(error.what, where=self.format_location(i), fix=error.fix) from None

    def read_content(self, i: int) -> bytes:
        """Read the bytes of image ``i``.

        Raises:
            ImageError: they cannot be read.
        """
        shard, row = self.locate_row(i)
        try:
            return shard.read_row(row)
        except OSError as error:
            raise ImageError(describe_read_error(error)) from error

    def format_location(self, i: int) -> str:
        """Return the file and the row (from 0, as in Hugging Face datasets) of image ``i``, for messages."""
        shard, row = self.locate_row(i)
        return f"{shard.path} row {row}"

    def get_byte_size(self, i: int) -> int:
        """Return the size of image ``i`` in bytes; negative if there are none."""
        shard, row = self.locate_row(i)
        return int(shard.sizes[row])

    def locate_row(self, i: int) -> tuple[Shard, int]:
        """Find the shard and the row in it of image ``i``."""
        row_index = int(self.row_indices[i])
        shard_index = int(np.searchsorted(self._shard_ends, row_index, side="right"))
        return self.shards[shard_index], row_index - int(self._shard_ends[shard_index]) + len(self.shards[shard_index])

    @cached_property
    def _shard_ends(self) -> Indices:
        return np.cumsum([len(shard) for shard in self.shards])

    def take(self, indices: Indices) -> ImageRows:
        """Select images by index, in that order."""
        return ImageRows(self.shards, self.row_indices[indices], self.labels[indices])


@dataclass(frozen=True)
class _RowNames(Sequence[str]):
    rows: ImageRows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        shard, row = self.rows.locate_row(i)  # the IndexError after the last row ends an iteration
        return f"{shard.name} row {row}"


def concatenate_rows(splits: Sequence[ImageRows]) -> ImageRows:
    """Join the images of several splits."""
    starts = np.cumsum([0, *(sum(map(len, split.shards)) for split in splits)])
    row_indices = np.concatenate([split.row_indices + start for split, start in zip(splits, starts[:-1], strict=True)])
    shards = tuple(shard for split in splits for shard in split.shards)
    return ImageRows(shards, row_indices, np.concatenate([split.labels for split in splits]))
