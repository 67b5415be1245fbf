"""From a file to upright pixels, the same way everywhere.

Only JPEG, PNG, WebP, BMP and GIF are parsed, whatever a file is called; the number of pixels is read from the header
before anything is decoded. The first frame of an animation is taken, the EXIF orientation is applied, 16 bits become 8,
and what is transparent lies on white. Colour profiles (ICC) are passed over, as they were when the networks of
the field were trained; CMYK becomes red = (1 - C)(1 - K), and so on. A JPEG without its end, or whose data stop before
its pixels do, is damaged: none is filled up with grey.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from resnetkit import kinds
from resnetkit.errors import DataError, PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MOST_PIXELS = 64_000_000
_TOO_LARGE = f"it has more than {MOST_PIXELS:,} pixels"
T = TypeVar("T")
Result = TypeVar("Result")
_WHITE = (255, 255, 255)
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


def decode(source: str | Path | bytes, colour: str = "RGB") -> Image.Image:
    """The picture in Pillow's mode ``RGB`` or ``L``; raises `PictureError` with the reason and the file."""
    where = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        with _QUIET:  # Pillow warns of large pictures and odd EXIF; both are decided here
            return _read(source, colour)
    except PictureError as error:
        raise PictureError(error.what, where=where, fix=error.fix) from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise PictureError(_reason(error), where=where) from error


class _Quiet:
    """No warnings while any thread decodes.

    Python's own switch belongs to the process: two threads that turn it for themselves can leave it off for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._switch = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._switch = warnings.catch_warnings()
                self._switch.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._switch.__exit__(None, None, None)


_QUIET = _Quiet()


def _read(source: str | Path | bytes, colour: str) -> Image.Image:
    kind = stat.S_IFREG if isinstance(source, bytes) else stat.S_IFMT(Path(source).stat().st_mode)
    if kind != stat.S_IFREG:  # a pipe would be waited for without end
        raise PictureError("this is a folder" if kind == stat.S_IFDIR else "this is no file")
    with _open(source) as image:
        if image.width * image.height > MOST_PIXELS:
            raise PictureError(_TOO_LARGE)
        image.load()
        _require_end(image, source)
        ImageOps.exif_transpose(image, in_place=True)
        return _in(colour, _plain(image))


def _open(source: str | Path | bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError:
        raise _unknown(_content(source, kinds.START)) from None


def _unknown(start: bytes) -> PictureError:
    """Why a file with these first bytes is not read."""
    kind, allowed = kinds.kind_of(start), ", ".join(FORMATS)
    if kind in FORMATS:
        return PictureError(f"damaged, or of a rare sort: its {kind} header cannot be read")
    if kind in kinds.PICTURES:
        return PictureError(f"format {kind} is not accepted; allowed: {allowed}", fix="save it as PNG or JPEG")
    what, fix = kinds.mistaken(start, "a picture")
    return PictureError(what or f"not a picture that is read here ({allowed})", fix=fix)


def _content(source: str | Path | bytes, most: int = -1) -> bytes:
    """The first bytes, or all."""
    if isinstance(source, bytes):
        return source[:most] if most >= 0 else source
    with Path(source).open("rb") as file:
        return file.read(most)


_END = b"\xff\xd9"
# more data of a JPEG, and each mark that may be due among them: enough for one block at least that is not grey
_MORE = b"".join(bytes((*bytes(512), 0xFF, 0xD0 + i % 8)) for i in range(16)) + _END


def _require_end(image: Image.Image, source: str | Path | bytes) -> None:
    """Refuse a JPEG that stops early: libjpeg makes grey of what is missing, and its warning reaches nobody."""
    if image.format not in ("JPEG", "MPO"):  # MPO: a JPEG with others behind it
        return
    content = _content(source)
    end = content.rfind(_END)
    if end < 0:
        raise PictureError("damaged: its end is missing")
    corner = image.getpixel((image.width - 1, image.height - 1))
    if all(value in _GREY for value in (corner if isinstance(corner, tuple) else (corner,))):
        # where the data are complete, more of them change nothing
        more = Image.open(BytesIO(content[:end] + _MORE), formats=("JPEG",))
        if ImageChops.difference(image, more).getbbox():
            raise PictureError("damaged: its data stop before its pixels do")


_GREY = range(120, 137)  # what is missing is grey of 128, in any colour space; its colour blends with the row above


def _plain(image: Image.Image) -> Image.Image:
    """Eight bits a channel and nothing transparent."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        clear = image.info.get("transparency")
        values = values if clear is None else np.where(values == clear, 65535, values)
        return Image.fromarray((values.astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        clear, white = _in("RGBA", image), Image.new("RGB", image.size, _WHITE)
        white.paste(clear, mask=clear)
        return white
    return image


def _in(mode: str, image: Image.Image) -> Image.Image:
    """The picture in a mode, without a second copy of one that has it already."""
    return image if image.mode == mode else image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own ceiling, when it lies lower than twice ours
        return _TOO_LARGE
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"
