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

from resnetkit.errors import PictureError

START = b"\xff\xd8\xff"
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_MOST_SCANS, _MOST_SEGMENTS = 200, 2000  # each costs time, however small it is; progressive pictures have about ten
_SEGMENT = re.compile(rb"[^\xff]{0,1000}\xff{1,1000}([^\0\xff])", re.DOTALL)
_ALONE = b"\x01" + bytes(range(0xD0, 0xD9))  # markers that nothing follows
_SEQUENTIAL = b"\xc0\xc1"  # frames whose blocks are complete one after the other, in Huffman's code
_RGB = b"RGB"  # what the channels of a frame are called that are no luma and chroma


@dataclass(frozen=True)
class Header:
    """What stands before the pixels; ``plain`` is the usual sort, of which `_looks_cut` knows what is missing.

    It has all channels in one scan, so that each block is there or not, and as many pixels of luma as of the picture.
    """

    scan: int
    plain: bool


def judged(content: bytes) -> Header:
    """Refuse what would take any time: headers without end, and thousands of scans over the same pixels."""
    at, frame = 2, b""
    for _ in range(_MOST_SEGMENTS):
        found = _SEGMENT.match(content, at)
        if found is None:
            raise PictureError("damaged, or of a rare sort: its JPEG header cannot be read")
        if found[1] in (_SCAN[1:], _END[1:]):
            break
        length = 0 if found[1] in _ALONE else max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
        at = found.end() + length
        if found[1] in _SEQUENTIAL:
            frame = content[found.end() : at]
    else:
        raise PictureError(f"its header has more than {_MOST_SEGMENTS:,} parts")
    plain = _is_plain(frame, content[found.end() + 2 : found.end() + 3])
    if not plain and _count(content, _SCAN) > _MOST_SCANS:  # of a plain one libjpeg reads no second scan
        raise PictureError(f"it has more than {_MOST_SCANS} scans")
    return Header(found.end(), plain)


def _count(content: bytes, mark: bytes) -> int:
    """`bytes.count` of two bytes, in a tenth of its time: at even places and at odd ones."""
    value = int.from_bytes(mark, "little")
    pairs = (np.frombuffer(content, "<u2", (len(content) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(part == value)) for part in pairs)


def _is_plain(frame: bytes, scanned: bytes) -> bool:
    """Whether all channels of a frame (its length is told first) are in a scan of so many, the first at full size."""
    names, sampled = frame[8::3], [(each >> 4, each & 15) for each in frame[9::3]]
    if len(sampled) not in (1, 3) or frame[7:8] != scanned or scanned != bytes([len(sampled)]):
        return False
    across, down = sampled[0]
    return names != _RGB and all(wide <= across and high <= down for wide, high in sampled)


def load(image: ImageFile.ImageFile, content: bytes, header: Header, shorter: int) -> None:
    """Decode a picture whose header was judged, reduced where ``shorter`` allows it, and refuse one without its end."""
    plain = header.plain and image.info.get("adobe_transform") != 0  # 0: red, green and blue
    reduced = _reduction(image, shorter) if plain else 1
    if reduced > 1:
        image.draft(None, (image.width // reduced, image.height // reduced))
    image.decodermaxblock = len(content)  # all at once, as it is in memory
    image.load()
    seek = content.find if plain and image.format == "MPO" else content.rfind  # of several the first; rfind is quick
    end = seek(_END, header.scan)
    if end < 0:
        raise PictureError("damaged: its end is missing")
    if not plain and _ends_grey(image):
        _require_all(content, end)
    elif plain and (content[end - 1] == _HALF or _looks_cut(image, content, reduced)):
        _require_all(content, _end_of_data(content, header.scan))


_HALF = 0xFF  # among data it is always followed by a zero


def _end_of_data(content: bytes, scan: int) -> int:
    """The place of the first marker behind a scan that does not belong to it."""
    found = _MARKER.search(content, scan)
    return found.start() if found else len(content)


_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


def _reduction(image: Image.Image, shorter: int) -> int:
    """8, 4, 2 or 1: the sides are multiples of it, as part of a pixel at the edge would move the middle."""
    least = min(image.size)
    needed = shorter * (_LEFT_OF_LARGE if least >= _LARGE else _LEFT)
    fits = (by for by in (8, 4, 2) if image.width % by == image.height % by == 0 and least >= by * needed)
    return next(fits, 1) if shorter else 1


# How many times of what is needed a reduction leaves for the resize to average. 1/8 takes one coefficient of each block
# and is the quickest; what cameras make may leave less, so that it is read so.
_LEFT, _LEFT_OF_LARGE, _LARGE = 2.0, 1.4, 2000


def _looks_cut(image: Image.Image, content: bytes, reduced: int) -> bool:
    """Whether the last block has the luma of one that is missing; its colour may be mixed with that of neighbours.

    Many pictures end in a grey that is near to it. What RGB has rounded away is in the luma as it is stored.
    """
    luma = _last_luma(image, reduced)
    if image.mode == "L" or not all(abs(value - _MISSING) <= _ROUNDED for value in luma):
        return luma == (_MISSING, _MISSING)
    with Image.open(BytesIO(content), formats=("JPEG",)) as stored:
        stored.draft("L", image.size)
        return _last_luma(stored, reduced) == (_MISSING, _MISSING)


_MISSING, _ROUNDED = 128, 1


def _last_luma(image: Image.Image, reduced: int) -> tuple[int, int]:
    """The least and the most of the last block."""
    side = 8 // reduced
    start = (image.width - 1) // side * side, (image.height - 1) // side * side
    return cast(tuple[int, int], image.crop((*start, *image.size)).convert("L").getextrema())


def _ends_grey(image: Image.Image) -> bool:
    corner = image.getpixel((image.width - 1, image.height - 1))
    return all(value in _GREY for value in (corner if isinstance(corner, tuple) else (corner,)))


_GREY = range(120, 137)  # what is missing is grey of 128, in any colour space; its colour blends with the row above


def _require_all(content: bytes, end: int) -> None:
    """Where the data are complete, more of them change nothing. In full size, as a reduced block may hide a change."""
    whole, more = (Image.open(BytesIO(data), formats=("JPEG",)) for data in (content, content[:end] + _MORE))
    if ImageChops.difference(whole, more).getbbox():
        raise PictureError("damaged: its data stop before its pixels do")


# more data of a JPEG, and each mark that may be due among them: enough for one block at least that is not grey
_MORE = b"".join(bytes((*bytes(512), 0xFF, 0xD0 + i % 8)) for i in range(16)) + _END
