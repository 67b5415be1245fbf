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
from resnetkit.errors import DataError, ImageError, ResnetkitError
from resnetkit.images import jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 256_000_000  # an uncompressed picture of so many pixels
_RLE_COMPRESSIONS, _MAX_RLE_PIXELS = (1, 2), 4_000_000  # run lengths, which Pillow decodes in Python
_TOO_LARGE = f"it has more than {MAX_IMAGE_PIXELS:,} pixels"
T = TypeVar("T")
Result = TypeVar("Result")
_WHITE = (255, 255, 255)
# Pillow warns of large pictures and odd EXIF; both are decided here. Switching warnings off and on around each picture
# would race between threads, as the switch belongs to the process.
warnings.filterwarnings("ignore", module=r"PIL\.")
_REPORT_BUG = "please report it, with this picture"
_SYSTEM_FILES = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


def find_images(folder: Path) -> Iterator[Path]:
    """Every file below a folder with a picture's ending, hidden ones aside."""
    return (path for path in find_files(folder) if path.name.lower().endswith(SUFFIXES))


def find_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones aside; each real folder is entered once."""
    pending, visited = [folder], set()
    while pending:
        current = pending.pop()
        entries, status = list_entries(current), current.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            if is_folder(entry):
                pending.append(Path(entry.path))
            else:
                yield Path(entry.path)


def note_other_files(files: Iterable[Path]) -> list[str]:
    """A sentence that counts the files without a picture's ending, if there are any."""
    counts = Counter(
        path.suffix.lower() or path.name for path in files if not path.name.lower().endswith(SUFFIXES)
    ).most_common(5)
    summary = ", ".join(f"{count:,} {suffix}" for suffix, count in counts)
    return [f"files of other kinds were passed over: {summary} (read are {' '.join(SUFFIXES)})"] * bool(counts)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or leads to one; a link in a circle leads nowhere."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """What stands in a folder, by name, hidden entries aside; raises `DataError` where it cannot be read."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read this folder: {error.strerror}", where=str(folder)) from None
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SYSTEM_FILES]


def try_read(read: Callable[[T], Result], source: T) -> Result | ImageError:
    """What ``read`` gives, or the error of a file that is no picture as a value."""
    try:
        return read(source)
    except ImageError as error:
        return error


def try_read_named(read: Callable[[T], Result], get_name: Callable[[T], str], source: T) -> Result | ImageError:
    """The same; what no picture should cause is an error that has its ``name``."""
    try:
        return try_read(read, source)
    except MemoryError:
        raise
    except Exception as error:
        what = f"a picture could not be prepared: {type(error).__name__}: {error}"
        raise ResnetkitError(what, where=get_name(source), fix=_REPORT_BUG) from error


def decode(source: str | Path | bytes, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
    """The picture in Pillow's mode ``RGB`` or ``L``; raises `PictureError` with the reason and the file.

    Whoever will resize to ``shorter`` pixels along the shorter side says so: a JPEG may then be decoded at 1/2, 1/4 or
    1/8 of its size, as long as the resize has something to average. What is refused is the same, whatever the size.
    """
    location = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        return _decode_bytes(_read_file(source), color_mode, shorter_side)
    except ImageError as error:
        raise ImageError(error.what, where=location, fix=error.fix) from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise ImageError(describe_read_error(error), where=location) from error


def _read_file(source: str | Path | bytes) -> bytes:
    """All of a file, if it is one and no larger than a picture can be."""
    if isinstance(source, bytes):
        return source
    status = Path(source).stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        raise ImageError("this is a folder" if stat.S_ISDIR(status.st_mode) else "this is no file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageError(f"it has more than {MAX_IMAGE_BYTES:,} bytes")
    return Path(source).read_bytes()


def _decode_bytes(content: bytes, color_mode: str, shorter_side: int) -> Image.Image:
    header = jpeg.parse_jpeg_header(content) if content.startswith(jpeg.SIGNATURE) else None
    with _open_image(content) as image:
        is_rle = image.format == "BMP" and image.info.get("compression") in _RLE_COMPRESSIONS
        if image.width * image.height > (_MAX_RLE_PIXELS if is_rle else MAX_IMAGE_PIXELS):
            raise ImageError(_TOO_LARGE)
        if header:
            jpeg.load_jpeg(image, content, header, shorter_side)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _convert_mode(color_mode, _flatten_image(image))


def _open_image(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise _build_format_error(content[: kinds.HEADER_SIZE]) from None


def _build_format_error(first_bytes: bytes) -> ImageError:
    """Why a file with these first bytes is not read."""
    kind, allowed = kinds.detect_file_type(first_bytes), ", ".join(FORMATS)
    if kind in FORMATS:
        return ImageError(f"damaged, or of a rare sort: its {kind} header cannot be read")
    if kind in kinds.IMAGE_TYPES:
        return ImageError(f"format {kind} is not accepted; allowed: {allowed}", fix="save it as PNG or JPEG")
    what, fix = kinds.describe_wrong_type(first_bytes, "a picture")
    return ImageError(what or f"not a picture that is read here ({allowed})", fix=fix)


def _flatten_image(image: Image.Image) -> Image.Image:
    """Eight bits a channel and nothing transparent."""
    if image.mode.startswith("I"):
        return Image.fromarray(_convert_16_bit(np.asarray(image), image.info.get("transparency")))
    if image.has_transparency_data:
        rgba, background = _convert_mode("RGBA", image), Image.new("RGB", image.size, _WHITE)
        background.paste(rgba, mask=rgba)
        return background
    return image


def _convert_16_bit(values: NDArray[Any], transparent: int | None) -> NDArray[np.uint8]:
    """Values of 16 bits rounded to 8, ``clear`` ones made white; row by row, as wider copies would take any memory."""
    output = np.empty(values.shape, np.uint8)
    for row, output_row in zip(values, output, strict=True):
        clipped = row.astype(np.int64).clip(0, 65535)
        output_row[:] = (clipped + 128) // 257
        if transparent is not None:
            output_row[row == transparent] = 255
    return output


def _convert_mode(mode: str, image: Image.Image) -> Image.Image:
    """The picture in a mode, without a second copy of one that has it already."""
    return image if image.mode == mode else image.convert(mode)


def describe_read_error(error: Exception) -> str:
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
