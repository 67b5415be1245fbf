"""JPEG: how much of one is decoded, and what is damaged though libjpeg says nothing.

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
_MAX_SCANS, _MAX_SEGMENTS = 200, 2000  # each costs time, however small it is; progressive pictures have about ten
_SEGMENT = re.compile(rb"[^\xff]{0,1000}\xff{1,1000}([^\0\xff])", re.DOTALL)
_STANDALONE_MARKERS = b"\x01" + bytes(range(0xD0, 0xD9))  # markers that nothing follows
_SEQUENTIAL_SOF = b"\xc0\xc1"  # frames whose blocks are complete one after the other, in Huffman's code
_RGB_IDS = b"RGB"  # what the channels of a frame are called that are no luma and chroma


@dataclass(frozen=True)
class JpegHeader:
    """What stands before the pixels; ``plain`` is the usual sort, of which `_looks_cut` knows what is missing.

    It has all channels in one scan, so that each block is there or not, and as many pixels of luma as of the picture.
    """

    scan_start: int
    is_single_scan: bool


def parse_jpeg_header(content: bytes) -> JpegHeader:
    """Refuse what would take any time: headers without end, and thousands of scans over the same pixels."""
    position, frame = 2, b""
    for _ in range(_MAX_SEGMENTS):
        match = _SEGMENT.match(content, position)
        if match is None:
            raise ImageError("damaged, or of a rare sort: its JPEG header cannot be read")
        if match[1] in (_SOS[1:], _EOI[1:]):
            break
        length = (
            0
            if match[1] in _STANDALONE_MARKERS
            else max(2, int.from_bytes(content[match.end() : match.end() + 2], "big"))
        )
        position = match.end() + length
        if match[1] in _SEQUENTIAL_SOF:
            frame = content[match.end() : position]
    else:
        raise ImageError(f"its header has more than {_MAX_SEGMENTS:,} parts")
    is_single_scan = _is_single_scan(frame, content[match.end() + 2 : match.end() + 3])
    if not is_single_scan and _count_marker(content, _SOS) > _MAX_SCANS:  # of a plain one libjpeg reads no second scan
        raise ImageError(f"it has more than {_MAX_SCANS} scans")
    return JpegHeader(match.end(), is_single_scan)


def _count_marker(content: bytes, marker: bytes) -> int:
    """`bytes.count` of two bytes, in a tenth of its time: at even places and at odd ones."""
    value = int.from_bytes(marker, "little")
    pairs = (np.frombuffer(content, "<u2", (len(content) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(array == value)) for array in pairs)


def _is_single_scan(frame: bytes, n_scanned: bytes) -> bool:
    """Whether all channels of a frame (its length is told first) are in a scan of so many, the first at full size."""
    component_ids, samplings = frame[8::3], [(factor >> 4, factor & 15) for factor in frame[9::3]]
    if len(samplings) not in (1, 3) or frame[7:8] != n_scanned or n_scanned != bytes([len(samplings)]):
        return False
    max_h, max_v = samplings[0]
    return component_ids != _RGB_IDS and all(h <= max_h and v <= max_v for h, v in samplings)


def load_jpeg(image: ImageFile.ImageFile, content: bytes, header: JpegHeader, shorter_side: int) -> None:
    """Decode a picture whose header was judged, reduced where ``shorter`` allows it, and refuse one without its end."""
    is_simple = header.is_single_scan and image.info.get("adobe_transform") != 0  # 0: red, green and blue
    reduction = _choose_reduction(image, shorter_side) if is_simple else 1
    if reduction > 1:
        image.draft(None, (image.width // reduction, image.height // reduction))
    image.decodermaxblock = len(content)  # all at once, as it is in memory
    image.load()
    find_marker = (
        content.find if is_simple and image.format == "MPO" else content.rfind
    )  # of several the first; rfind is quick
    end = find_marker(_EOI, header.scan_start)
    if end < 0:
        raise ImageError("damaged: its end is missing")
    if not is_simple and _has_gray_corner(image):
        _check_complete(content, end)
    elif is_simple and (content[end - 1] == _MARKER_PREFIX or _has_missing_last_block(image, content, reduction)):
        _check_complete(content, _find_data_end(content, header.scan_start))


_MARKER_PREFIX = 0xFF  # among data it is always followed by a zero


def _find_data_end(content: bytes, scan_start: int) -> int:
    """The place of the first marker behind a scan that does not belong to it."""
    match = _MARKER.search(content, scan_start)
    return match.start() if match else len(content)


_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


def _choose_reduction(image: Image.Image, shorter_side: int) -> int:
    """8, 4, 2 or 1: the sides are multiples of it, as part of a pixel at the edge would move the middle."""
    min_side = min(image.size)
    required_side = shorter_side * (_MIN_OVERSAMPLING_LARGE if min_side >= _LARGE_SIDE else _MIN_OVERSAMPLING)
    factors = (
        factor
        for factor in (8, 4, 2)
        if image.width % factor == image.height % factor == 0 and min_side >= factor * required_side
    )
    return next(factors, 1) if shorter_side else 1


# How many times of what is needed a reduction leaves for the resize to average. 1/8 takes one coefficient of each block
# and is the quickest; what cameras make may leave less, so that it is read so.
_MIN_OVERSAMPLING, _MIN_OVERSAMPLING_LARGE, _LARGE_SIDE = 2.0, 1.4, 2000


def _has_missing_last_block(image: Image.Image, content: bytes, reduction: int) -> bool:
    """Whether the last block has the luma of one that is missing; its colour may be mixed with that of neighbours.

    Many pictures end in a grey that is near to it. What RGB has rounded away is in the luma as it is stored.
    """
    luma = _get_last_block_extrema(image, reduction)
    if image.mode == "L" or not all(abs(value - _MISSING_LUMA) <= _ROUNDING_ERROR for value in luma):
        return luma == (_MISSING_LUMA, _MISSING_LUMA)
    with Image.open(BytesIO(content), formats=("JPEG",)) as luma_image:
        luma_image.draft("L", image.size)
        return _get_last_block_extrema(luma_image, reduction) == (_MISSING_LUMA, _MISSING_LUMA)


_MISSING_LUMA, _ROUNDING_ERROR = 128, 1


def _get_last_block_extrema(image: Image.Image, reduction: int) -> tuple[int, int]:
    """The least and the most of the last block."""
    side = 8 // reduction
    corner = (image.width - 1) // side * side, (image.height - 1) // side * side
    return cast(tuple[int, int], image.crop((*corner, *image.size)).convert("L").getextrema())


def _has_gray_corner(image: Image.Image) -> bool:
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return all(value in _GRAY_LEVELS for value in (pixel if isinstance(pixel, tuple) else (pixel,)))


_GRAY_LEVELS = range(
    120, 137
)  # what is missing is grey of 128, in any colour space; its colour blends with the row above


def _check_complete(content: bytes, end: int) -> None:
    """Where the data are complete, more of them change nothing. In full size, as a reduced block may hide a change."""
    original, extended = (
        Image.open(BytesIO(data), formats=("JPEG",)) for data in (content, content[:end] + _EXTRA_DATA)
    )
    if ImageChops.difference(original, extended).getbbox():
        raise ImageError("damaged: its data stop before its pixels do")


# more data of a JPEG, and each mark that may be due among them: enough for one block at least that is not grey
_EXTRA_DATA = b"".join(bytes((*bytes(512), 0xFF, 0xD0 + i % 8)) for i in range(16)) + _EOI
