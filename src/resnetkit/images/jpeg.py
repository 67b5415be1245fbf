"""Decode JPEGs at a reduced size, and reject truncated ones that libjpeg accepts.

libjpeg fills missing blocks with gray and only warns. A JPEG is therefore checked in two steps:

1. The end marker must exist, and the header must be bounded, so that no file takes much time.
2. If the last block looks like a missing one, the image is decoded a second time with extra data appended.
   Extra data change the pixels only if the original data stop too early.

The check covers only the end of the data. A file that is damaged earlier, or whose last block happens to look intact,
passes. docs/decisions/023 describes the alternative `simplejpeg`.

This module imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import cast

import numpy as np
from PIL import Image, ImageChops, ImageFile

from resnetkit.errors import ImageError

SIGNATURE = b"\xff\xd8\xff"
_SOS, _EOI = b"\xff\xda", b"\xff\xd9"
_MARKER_PREFIX = 0xFF  # within entropy-coded data a zero always follows it
_MAX_SCANS, _MAX_SEGMENTS = 200, 2000  # each costs time even if it is tiny; progressive images have about ten scans
_SEGMENT = re.compile(rb"[^\xff]{0,1000}\xff{1,1000}([^\0\xff])", re.DOTALL)
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_STANDALONE_MARKERS = b"\x01" + bytes(range(0xD0, 0xD9))  # markers without a payload
_SEQUENTIAL_SOF = b"\xc0\xc1"  # frames that store complete blocks one after the other, Huffman-coded
_RGB_IDS = b"RGB"  # component ids of a frame that stores RGB instead of YCbCr

# The factor by which a reduced image must exceed the target, so that the resize has pixels to average. 1/8 reads one
# coefficient per block and is the fastest; large photographs, as cameras make them, need less.
_MIN_OVERSAMPLING, _MIN_OVERSAMPLING_LARGE, _LARGE_SIDE = 2.0, 1.4, 2000
_MISSING_LUMA, _ROUNDING_ERROR = 128, 1
_GRAY_LEVELS = range(120, 137)  # a missing block is gray 128; its chroma blends with the row above
# Extra data of a JPEG with every restart marker that may be due: at least one block of them is not gray.
_EXTRA_DATA = b"".join(bytes((*bytes(512), 0xFF, 0xD0 + i % 8)) for i in range(16)) + _EOI


@dataclass(frozen=True)
class JpegHeader:
    """The position of the first scan, and whether a single scan holds all channels with luma at full size."""

    scan_start: int
    is_single_scan: bool


def parse_jpeg_header(content: bytes) -> JpegHeader:
    """Parse the segments before the first scan.

    Raises:
        ImageError: the header is broken, or there are so many segments or scans that decoding takes very long.
    """
    position, frame = 2, b""
    for _ in range(_MAX_SEGMENTS):
        match = _SEGMENT.match(content, position)
        if match is None:
            raise ImageError("damaged, or an unusual variant: the JPEG header cannot be read")
        if match[1] in (_SOS[1:], _EOI[1:]):
            break
        length = int.from_bytes(content[match.end() : match.end() + 2], "big")
        position = match.end() + (0 if match[1] in _STANDALONE_MARKERS else max(2, length))
        if match[1] in _SEQUENTIAL_SOF:
            frame = content[match.end() : position]
    else:
        raise ImageError(f"the header has more than {_MAX_SEGMENTS:,} segments")
    is_single_scan = _is_single_scan(frame, content[match.end() + 2 : match.end() + 3])
    if not is_single_scan and _count_marker(content, _SOS) > _MAX_SCANS:  # libjpeg reads no second scan otherwise
        raise ImageError(f"the image has more than {_MAX_SCANS} scans")
    return JpegHeader(match.end(), is_single_scan)


def _count_marker(content: bytes, marker: bytes) -> int:
    """Count two bytes like `bytes.count` in a tenth of its time: at even and at odd positions."""
    value = int.from_bytes(marker, "little")
    pairs = (np.frombuffer(content, "<u2", (len(content) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(array == value)) for array in pairs)


def _is_single_scan(frame: bytes, n_scanned: bytes) -> bool:
    """Return whether one scan holds all channels of the frame, the first one at full size."""
    component_ids, samplings = frame[8::3], [(factor >> 4, factor & 15) for factor in frame[9::3]]
    if len(samplings) not in (1, 3) or frame[7:8] != n_scanned or n_scanned != bytes([len(samplings)]):
        return False
    max_h, max_v = samplings[0]
    return component_ids != _RGB_IDS and all(h <= max_h and v <= max_v for h, v in samplings)


def load_jpeg(image: ImageFile.ImageFile, content: bytes, header: JpegHeader, shorter_side: int) -> None:
    """Decode an opened JPEG, at a reduced size if ``shorter_side`` permits.

    Args:
        image: The image that Pillow opened; its pixels are loaded.
        content: All bytes of the file.
        header: The result of `parse_jpeg_header`.
        shorter_side: The shorter side in pixels to which the caller resizes, 0 for the full size.

    Raises:
        ImageError: the end marker is missing, or the data stop before the last pixel.
    """
    is_simple = header.is_single_scan and image.info.get("adobe_transform") != 0  # 0: RGB
    reduction = _choose_reduction(image, shorter_side) if is_simple else 1
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.decodermaxblock = len(content)  # decode in one call, as the file is in memory
    image.load()
    find_marker = content.find if is_simple and image.format == "MPO" else content.rfind  # MPO: several images
    end = find_marker(_EOI, header.scan_start)
    if end < 0:
        raise ImageError("damaged: the end marker is missing")
    if not is_simple and _has_gray_corner(image):
        _check_complete(content, end)
    elif is_simple and (content[end - 1] == _MARKER_PREFIX or _has_missing_last_block(image, content, reduction)):
        next_marker = _MARKER.search(content, header.scan_start)
        _check_complete(content, next_marker.start() if next_marker else len(content))


def _choose_reduction(image: Image.Image, shorter_side: int) -> int:
    """Choose 8, 4, 2 or 1; both sides are multiples of it, or the center would shift by part of a pixel."""
    min_side = min(image.size)
    required_side = shorter_side * (_MIN_OVERSAMPLING_LARGE if min_side >= _LARGE_SIDE else _MIN_OVERSAMPLING)
    for factor in (8, 4, 2) if shorter_side else ():
        if image.width % factor == image.height % factor == 0 and min_side >= factor * required_side:
            return factor
    return 1


def _has_missing_last_block(image: Image.Image, content: bytes, reduction: int) -> bool:
    """Return whether the last block has the luma of a missing one.

    Only luma is compared, since chroma may be blended with neighbor blocks. Many images end in a gray close to it, and
    RGB rounds the difference away, so the stored luma decides.
    """
    luma = _get_last_block_extrema(image, reduction)
    if image.mode == "L" or not all(abs(value - _MISSING_LUMA) <= _ROUNDING_ERROR for value in luma):
        return luma == (_MISSING_LUMA, _MISSING_LUMA)
    with Image.open(BytesIO(content), formats=("JPEG",)) as luma_image:
        luma_image.draft("L", image.size)
        return _get_last_block_extrema(luma_image, reduction) == (_MISSING_LUMA, _MISSING_LUMA)


def _get_last_block_extrema(image: Image.Image, reduction: int) -> tuple[int, int]:
    """Return the smallest and the largest luma of the last block."""
    side = 8 // reduction
    corner = (image.width - 1) // side * side, (image.height - 1) // side * side
    return cast(tuple[int, int], image.crop((*corner, *image.size)).convert("L").getextrema())


def _has_gray_corner(image: Image.Image) -> bool:
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return all(value in _GRAY_LEVELS for value in (pixel if isinstance(pixel, tuple) else (pixel,)))


def _check_complete(content: bytes, end: int) -> None:
    """Check that extra data change no pixel, in full size, because a reduced block may hide a change."""
    versions = (content, content[:end] + _EXTRA_DATA)
    if ImageChops.difference(*(Image.open(BytesIO(data), formats=("JPEG",)) for data in versions)).getbbox():
        raise ImageError("damaged: the data stop before the last pixel")
