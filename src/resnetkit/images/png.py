"""Reject damaged PNGs that Pillow accepts: wrong checksums, and data that end before the last row.

This module imports no torch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from resnetkit.errors import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> samples per pixel
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_MAX_DEFLATE_RATIO = 1032  # 258 bytes in two bits
_INFLATED_BYTES = 2**20
_ANCILLARY_BIT = 0x20  # of the first letter of a chunk's name


@dataclass(frozen=True)
class PngData:
    """The compressed pixels of a PNG, the bytes that they must inflate to, and whether their rows are interlaced."""

    chunks: tuple[memoryview, ...]
    n_bytes: int
    is_interlaced: bool

    @property
    def min_file_bytes(self) -> int:
        """The bytes that the file needs at least, if it is compressed as well as possible."""
        return self.n_bytes // _MAX_DEFLATE_RATIO


def parse_png(content: bytes) -> PngData:
    """Check the critical chunks of a PNG before it is decoded.

    Raises:
        ImageError: a checksum is wrong.
    """
    chunks = []
    n_bytes, is_interlaced = 0, False
    for name, payload, checksum in _iterate_chunks(content):
        if not name[0] & _ANCILLARY_BIT and zlib.crc32(payload, zlib.crc32(name)) != checksum:
            raise ImageError(f"damaged: wrong checksum of {name.decode('latin-1')}")
        if name == b"IHDR" and len(payload) == 13:
            width, height, depth, color_type, *_, interlacing = struct.unpack(">IIBBBBB", payload)
            is_interlaced = bool(interlacing)
            n_bytes = _count_bytes(width, height, depth * _CHANNELS.get(color_type, 0), is_interlaced)
        elif name == b"IDAT":
            chunks.append(payload)
    return PngData(tuple(chunks), n_bytes, is_interlaced)


def check_rows(image: Image.Image, data: PngData) -> None:
    """Check that a decoded PNG has all its rows; Pillow leaves missing ones at zero.

    Args:
        image: The decoded image.
        data: The result of `parse_png`.

    Raises:
        ImageError: rows are missing.
    """
    has_last_row = np.asarray(image.crop((0, image.height - 1, *image.size))).any() and not data.is_interlaced
    if not has_last_row and _count_inflated(data) < data.n_bytes:
        raise ImageError("damaged: the data stop before the last pixel")


def _iterate_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield (name, payload, checksum) of each chunk up to the end mark; Pillow refuses a broken sequence."""
    position, view = len(SIGNATURE), memoryview(content)
    while position + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        if end + 4 > len(content):
            return
        yield name, view[position + 8 : end], int.from_bytes(view[end : end + 4], "big")
        if name == b"IEND":
            return
        position = end + 4


def _count_bytes(width: int, height: int, bits_per_pixel: int, is_interlaced: bool) -> int:
    """Count the bytes of all rows before compression; each starts with the number of its filter."""
    sizes = [(width, height)]
    if is_interlaced:
        sizes = [(-(-(width - x) // x_step), -(-(height - y) // y_step)) for x, y, x_step, y_step in _ADAM7]
    return sum(rows * (1 + -(-columns * bits_per_pixel // 8)) for columns, rows in sizes if columns > 0)


def _count_inflated(data: PngData) -> int:
    """Inflate the data piece by piece, and count the bytes up to the promised number."""
    inflater, count = zlib.decompressobj(), 0
    for chunk in data.chunks:
        remaining = bytes(chunk)
        while remaining and count < data.n_bytes:
            count += len(inflater.decompress(remaining, _INFLATED_BYTES))
            remaining = inflater.unconsumed_tail
    return count + len(inflater.flush())
