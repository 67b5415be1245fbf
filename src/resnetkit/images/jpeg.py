"""Decode JPEGs, at a reduced size if possible, and reject damaged ones.

libjpeg fills missing blocks with gray and only warns, and Pillow hides the warning. simplejpeg decodes with the same
library and reports it, so every JPEG whose data stop early is rejected, at any size (docs/decisions/023). A few
variants that simplejpeg does not decode are decoded by Pillow, twice: extra data change the pixels only if the original
data stop too early.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from resnetkit.errors import ImageError

SIGNATURE = b"\xff\xd8\xff"
_SOS, _EOI = b"\xff\xda", b"\xff\xd9"
_MAX_SCANS, _MAX_SEGMENTS = 200, 2000  # each costs time even if it is tiny; progressive images have about ten scans
# libjpeg skips other bytes before a marker, and FF 00 too
_SEGMENT = re.compile(rb"(?:[^\xff]|\xff{1,1000}+\0){0,1000}+\xff{1,1000}+([^\0\xff])", re.DOTALL)
_STANDALONE_MARKERS = b"\x01" + bytes(range(0xD0, 0xD9))  # markers without a payload
_FRAME_MARKERS = bytes(marker for marker in range(0xC0, 0xD0) if marker not in (0xC4, 0xC8, 0xCC))
# frames that are Huffman-coded -> the least bits of a block: a code for its first coefficient, and for a sequential
# one a code that ends it. Arithmetic coding has no bound.
_MIN_BLOCK_BITS = {0xC0: 2, 0xC1: 2, 0xC2: 1}
_SEQUENTIAL_MARKERS = (0xC0, 0xC1)
_COLORS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode -> the name in simplejpeg
_DAMAGE = {  # a warning of libjpeg -> what it means; others, as for extra bytes in the header, are harmless
    "Premature end of JPEG file": "the end marker is missing",
    "premature end of data segment": "the data stop before the last pixel",
    "instead of RST": "the data stop before the last pixel",
    "bad Huffman code": "the data are corrupt",
    "bad arithmetic code": "the data are corrupt",
}
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PADDING = b"\0\xff"
_COEFFICIENT_BYTES = 128  # of a block: 64 numbers of 16 bits
_HASHED_ROWS = 256
# Extra data of a JPEG, with every restart marker that may be due. They do not start with a zero, which libjpeg reads
# instead of missing data.
_EXTRA_DATA = b"".join(bytes((*b"\xb7" * 512, 0xFF, 0xD0 + i % 8)) for i in range(16)) + _EOI


@dataclass(frozen=True)
class JpegHeader:
    """The position of the first scan, and the frame header; a single scan may hold all components."""

    scan_start: int
    frame_marker: int
    frame: bytes
    is_single_scan: bool

    @property
    def min_file_bytes(self) -> int:
        """The bytes that the file needs at least; 0 if that is unknown."""
        return self._count_blocks() * _MIN_BLOCK_BITS.get(self.frame_marker, 0) // 8

    @property
    def coefficient_bytes(self) -> int:
        """The bytes of the coefficients that libjpeg keeps until the last scan; 0 if there is a single scan."""
        return 0 if self.is_single_scan else self._count_blocks() * _COEFFICIENT_BYTES

    def _count_blocks(self) -> int:
        samplings = [(factor >> 4, factor & 15) for factor in self.frame[9::3]]
        height, width = (int.from_bytes(self.frame[i : i + 2], "big") for i in (3, 5))
        max_h, max_v = (max((sampling[axis] for sampling in samplings), default=0) for axis in (0, 1))
        if not max_h or not max_v:
            return 0
        blocks = [-(-width * h // (8 * max_h)) * -(-height * v // (8 * max_v)) for h, v in samplings]
        return sum(blocks)


def parse_jpeg_header(content: bytes) -> JpegHeader:
    """Parse the segments before the first scan.

    Raises:
        ImageError: the header is broken, or there are so many segments or scans that decoding takes very long.
    """
    position, frame_marker, frame = 2, 0, b""
    for _ in range(_MAX_SEGMENTS):
        match = _SEGMENT.match(content, position)
        if match is None:
            raise ImageError("damaged, or an unusual variant: the JPEG header cannot be read")
        if match[1] in (_SOS[1:], _EOI[1:]):
            break
        length = int.from_bytes(content[match.end() : match.end() + 2], "big")
        position = match.end() + (0 if match[1] in _STANDALONE_MARKERS else max(2, length))
        if match[1] in _FRAME_MARKERS:
            frame_marker, frame = match[1][0], content[match.end() : position]
    else:
        raise ImageError(f"the header has more than {_MAX_SEGMENTS:,} segments")
    n_scanned = content[match.end() + 2 : match.end() + 3]
    is_single_scan = frame_marker in _SEQUENTIAL_MARKERS and frame[7:8] == n_scanned
    if not is_single_scan and _count_marker(content, _SOS) > _MAX_SCANS:  # libjpeg reads no second scan otherwise
        raise ImageError(f"the image has more than {_MAX_SCANS} scans")
    return JpegHeader(match.end(), frame_marker, frame, is_single_scan)


def _count_marker(content: bytes, marker: bytes) -> int:
    """Count two bytes like `bytes.count` in a tenth of its time: at even and at odd positions."""
    value = int.from_bytes(marker, "little")
    pairs = (np.frombuffer(content, "<u2", (len(content) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(array == value)) for array in pairs)


def load_jpeg(image: ImageFile.ImageFile, content: bytes, header: JpegHeader, reduction: int) -> Image.Image:
    """Decode an opened JPEG.

    Args:
        image: The image that Pillow opened.
        content: All bytes of the file.
        header: The result of `parse_jpeg_header`.
        reduction: 1, 2, 4 or 8, which both sides are multiples of.

    Returns:
        The image in the mode ``L``, ``RGB`` or ``CMYK``.

    Raises:
        ImageError: the end marker is missing, or the data are incomplete or corrupt.
    """
    width, height = image.width // reduction, image.height // reduction
    try:
        pixels = simplejpeg.decode_jpeg(content, _COLORS[image.mode], min_width=width, min_height=height)
    except ValueError as error:
        for warning, reason in _DAMAGE.items():
            if warning in str(error):
                raise ImageError(f"damaged: {reason}") from None
        if _has_left_over_data(str(error), content, header.scan_start):
            raise ImageError("damaged: data are left over after the last pixel") from None
        return _load_with_pillow(image, content, header.scan_start)
    if image.mode == "CMYK":
        np.invert(pixels, out=pixels)  # Adobe's programs store the absence of ink
    return Image.frombuffer(image.mode, pixels.shape[1::-1], pixels, "raw", image.mode, 0, 1)


def _has_left_over_data(warning: str, content: bytes, scan_start: int) -> bool:
    """Return whether data other than padding stand between the last block and the end marker.

    If bytes are missing or were replaced, a decoder loses its place and may read fewer bits than the file has. Some
    cameras write zeros and 0xFF as padding.
    """
    match, end = _LEFT_OVER.search(warning), content.find(_EOI, scan_start)
    return match is not None and bool(content[max(scan_start, end - int(match[1])) : max(0, end)].strip(_PADDING))


def _load_with_pillow(image: ImageFile.ImageFile, content: bytes, scan_start: int) -> ImageFile.ImageFile:
    """Decode a variant that simplejpeg does not know, or whose header has harmless faults, at full size."""
    find_marker = content.find if image.format == "MPO" else content.rfind  # MPO: several images
    end = find_marker(_EOI, scan_start)
    if end < 0:
        raise ImageError("damaged: the end marker is missing")
    extended_digest = _hash_pixels(Image.open(BytesIO(content[:end] + _EXTRA_DATA), formats=("JPEG",)))
    if _hash_pixels(image) != extended_digest:
        raise ImageError("damaged: the data stop before the last pixel")
    return image


def _hash_pixels(image: ImageFile.ImageFile) -> bytes:
    """Decode an image and hash its pixels, some rows at a time to save memory."""
    image.decodermaxblock = 2**30  # decode in one call, as the file is in memory
    image.load()
    digest = hashlib.blake2b()
    for top in range(0, image.height, _HASHED_ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _HASHED_ROWS, image.height))).tobytes())
    return digest.digest()
