"""Unpack icons (ICO), which contain a whole PNG, or a bitmap whose size the icon must agree with.

This module imports no torch.
"""

from __future__ import annotations

import struct

from resnetkit.errors import ImageError

SIGNATURE = b"\0\0\1\0"
_PNG_SIGNATURE = b"\x89PNG"
_MAX_SIDE = 256  # an entry has one byte for a side; 0 means 256


def unpack_icon(content: bytes) -> bytes:
    """Return the PNG inside an icon, or the icon itself if its largest image is a bitmap.

    Raises:
        ImageError: a bitmap is larger than an icon may be, or the icon has no image.
    """
    count = int.from_bytes(content[4:6], "little")
    entries = [content[6 + 16 * i : 22 + 16 * i] for i in range(count)]
    frames = [struct.unpack("<BBxxxxHII", entry) for entry in entries if len(entry) == 16]
    if not frames:
        raise ImageError("damaged: the icon has no image")
    sizes = [((width or _MAX_SIDE) * (height or _MAX_SIDE), bits) for width, height, bits, _, _ in frames]
    *_, n_bytes, offset = frames[sizes.index(max(sizes))]
    if content[offset:].startswith(_PNG_SIGNATURE):
        return content[offset : offset + n_bytes]
    for *_, start in frames:
        width, height = struct.unpack("<ii", content[start + 4 : start + 12].ljust(8, b"\0"))
        if abs(width) > _MAX_SIDE or abs(height) > 2 * _MAX_SIDE:  # the height counts the mask, too
            raise ImageError("damaged: a bitmap in the icon is larger than 256x256 pixels")
    return content
