"""From a file to upright pixels, the same way everywhere.

Only JPEG, PNG, WebP, BMP and GIF are parsed, whatever a file is called; the number of pixels is read from the header
before anything is decoded. The first frame of an animation is taken, the EXIF orientation is applied, 16 bits become 8,
and what is transparent lies on white.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from resnetkit.errors import DataError, PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_PIXELS = 64_000_000
_TOO_LARGE = f"it has more than {MOST_PIXELS:,} pixels"
T = TypeVar("T")
Result = TypeVar("Result")
_WHITE = (255, 255, 255)


def pictures_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder with a picture's ending, hidden ones aside; each real folder is entered once."""
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop()
        entries, known = visible(here), here.stat()
        if (known.st_dev, known.st_ino) in seen:
            continue
        seen.add((known.st_dev, known.st_ino))
        for entry in entries:
            if is_folder(entry):
                waiting.append(Path(entry.path))
            elif entry.name.lower().endswith(SUFFIXES):
                yield Path(entry.path)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link in a circle leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """What stands in a folder, by name, hidden entries aside; raises `DataError` where it cannot be read."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read this folder: {error.strerror}", where=str(folder)) from None
    return [entry for entry in entries if not entry.name.startswith((".", "__"))]


def attempt(read: Callable[[T], Result], source: T) -> Result | PictureError:
    """What ``read`` gives, or the error of a file that is no picture as a value."""
    try:
        return read(source)
    except PictureError as error:
        return error


def decode(source: str | Path | bytes, colour: str = "RGB") -> Image.Image:
    """The picture in Pillow's mode ``RGB`` or ``L``; raises `PictureError` with the reason and the file."""
    where = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        kind = stat.S_IFREG if isinstance(source, bytes) else stat.S_IFMT(Path(source).stat().st_mode)
        if kind != stat.S_IFREG:  # a pipe would be waited for without end
            raise PictureError("this is a folder" if kind == stat.S_IFDIR else "this is no file", where=where)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd EXIF; both are decided here
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise PictureError(_TOO_LARGE, where=where)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _in(colour, _plain(image))
    except PictureError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise PictureError(_reason(error), where=where) from error


def _plain(image: Image.Image) -> Image.Image:
    """Eight bits a channel and nothing transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        clear, white = _in("RGBA", image), Image.new("RGB", image.size, _WHITE)
        white.paste(clear, mask=clear)
        return white
    return image


def _in(mode: str, image: Image.Image) -> Image.Image:
    """The picture in a mode, without a second copy of one that has it already."""
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that is read here (" + ", ".join(FORMATS) + ")"
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own ceiling, when it lies lower than twice ours
        return _TOO_LARGE
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"
