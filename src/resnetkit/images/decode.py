"""From a file to upright pixels, the same way everywhere.

Only JPEG, PNG, WebP, BMP and GIF are parsed, whatever a file is called; the number of pixels is read from the header
before anything is decoded. The first frame of an animation is taken, the EXIF orientation is applied, 16 bits become 8,
and what is transparent lies on white. Colour profiles (ICC) are passed over, as they were when the networks of
the field were trained; CMYK becomes red = (1 - C)(1 - K), and so on. A JPEG without its end, or whose data stop before
its pixels do, is damaged: none is filled up with grey.

This module imports no torch.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from resnetkit import file_types as kinds
from resnetkit.errors import DataError, PictureError, ResnetkitError
from resnetkit.images import jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_PIXELS = 64_000_000
MOST_BYTES = 256_000_000  # an uncompressed picture of so many pixels
_RUNS, _MOST_PIXELS_OF_RUNS = (1, 2), 4_000_000  # run lengths, which Pillow decodes in Python
_TOO_LARGE = f"it has more than {MOST_PIXELS:,} pixels"
T = TypeVar("T")
Result = TypeVar("Result")
_WHITE = (255, 255, 255)
# Pillow warns of large pictures and odd EXIF; both are decided here. Switching warnings off and on around each picture
# would race between threads, as the switch belongs to the process.
warnings.filterwarnings("ignore", module=r"PIL\.")
_REPORT = "please report it, with this picture"
_MADE_BY_PROGRAMS = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


def pictures_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder with a picture's ending, hidden ones aside."""
    return (path for path in files_below(folder) if path.name.lower().endswith(SUFFIXES))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones aside; each real folder is entered once."""
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
            else:
                yield Path(entry.path)


def other_kinds(files: Iterable[Path]) -> list[str]:
    """A sentence that counts the files without a picture's ending, if there are any."""
    others = Counter(
        path.suffix.lower() or path.name for path in files if not path.name.lower().endswith(SUFFIXES)
    ).most_common(5)
    told = ", ".join(f"{count:,} {kind}" for kind, count in others)
    return [f"files of other kinds were passed over: {told} (read are {' '.join(SUFFIXES)})"] * bool(others)


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
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _MADE_BY_PROGRAMS]


def attempt(read: Callable[[T], Result], source: T) -> Result | PictureError:
    """What ``read`` gives, or the error of a file that is no picture as a value."""
    try:
        return read(source)
    except PictureError as error:
        return error


def attempt_named(read: Callable[[T], Result], name: Callable[[T], str], source: T) -> Result | PictureError:
    """The same; what no picture should cause is an error that has its ``name``."""
    try:
        return attempt(read, source)
    except MemoryError:
        raise
    except Exception as error:
        what = f"a picture could not be prepared: {type(error).__name__}: {error}"
        raise ResnetkitError(what, where=name(source), fix=_REPORT) from error


def decode(source: str | Path | bytes, colour: str = "RGB", shorter: int = 0) -> Image.Image:
    """The picture in Pillow's mode ``RGB`` or ``L``; raises `PictureError` with the reason and the file.

    Whoever will resize to ``shorter`` pixels along the shorter side says so: a JPEG may then be decoded at 1/2, 1/4 or
    1/8 of its size, as long as the resize has something to average. What is refused is the same, whatever the size.
    """
    where = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        return _read(_content(source), colour, shorter)
    except PictureError as error:
        raise PictureError(error.what, where=where, fix=error.fix) from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise PictureError(reason(error), where=where) from error


def _content(source: str | Path | bytes) -> bytes:
    """All of a file, if it is one and no larger than a picture can be."""
    if isinstance(source, bytes):
        return source
    known = Path(source).stat()
    if not stat.S_ISREG(known.st_mode):  # a pipe would be waited for without end
        raise PictureError("this is a folder" if stat.S_ISDIR(known.st_mode) else "this is no file")
    if known.st_size > MOST_BYTES:
        raise PictureError(f"it has more than {MOST_BYTES:,} bytes")
    return Path(source).read_bytes()


def _read(content: bytes, colour: str, shorter: int) -> Image.Image:
    header = jpeg.judged(content) if content.startswith(jpeg.START) else None
    with _open(content) as image:
        slow = image.format == "BMP" and image.info.get("compression") in _RUNS
        if image.width * image.height > (_MOST_PIXELS_OF_RUNS if slow else MOST_PIXELS):
            raise PictureError(_TOO_LARGE)
        if header:
            jpeg.load(image, content, header, shorter)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _in(colour, _plain(image))


def _open(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unknown(content[: kinds.START]) from None


def _unknown(start: bytes) -> PictureError:
    """Why a file with these first bytes is not read."""
    kind, allowed = kinds.kind_of(start), ", ".join(FORMATS)
    if kind in FORMATS:
        return PictureError(f"damaged, or of a rare sort: its {kind} header cannot be read")
    if kind in kinds.PICTURES:
        return PictureError(f"format {kind} is not accepted; allowed: {allowed}", fix="save it as PNG or JPEG")
    what, fix = kinds.mistaken(start, "a picture")
    return PictureError(what or f"not a picture that is read here ({allowed})", fix=fix)


def _plain(image: Image.Image) -> Image.Image:
    """Eight bits a channel and nothing transparent."""
    if image.mode.startswith("I"):
        return Image.fromarray(_from_sixteen(np.asarray(image), image.info.get("transparency")))
    if image.has_transparency_data:
        clear, white = _in("RGBA", image), Image.new("RGB", image.size, _WHITE)
        white.paste(clear, mask=clear)
        return white
    return image


def _from_sixteen(values: NDArray[Any], clear: int | None) -> NDArray[np.uint8]:
    """Values of 16 bits rounded to 8, ``clear`` ones made white; row by row, as wider copies would take any memory."""
    found = np.empty(values.shape, np.uint8)
    for row, made in zip(values, found, strict=True):
        bounded = row.astype(np.int64).clip(0, 65535)
        made[:] = (bounded + 128) // 257
        if clear is not None:
            made[row == clear] = 255
    return found


def _in(mode: str, image: Image.Image) -> Image.Image:
    """The picture in a mode, without a second copy of one that has it already."""
    return image if image.mode == mode else image.convert(mode)


def reason(error: Exception) -> str:
    """Why a picture cannot be read, in a few words."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):  # Pillow's own ceilings
        return _TOO_LARGE
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"
