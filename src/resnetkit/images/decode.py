"""Decode image files to upright 8-bit pixels, in the same way for every command.

Only the types in `FORMATS` are parsed, whatever the file name says. The number of pixels is read from the header
before anything is decoded. Only the first frame of an animation is decoded. The EXIF orientation is applied if it can
be read, 16 bits become 8, and transparent pixels are blended with white. Color profiles (ICC) are ignored, because
published networks were trained without them. CMYK is converted as red = (1 - C)(1 - K), and so on. `jpeg` and `png`
reject incomplete files instead of filling them with gray or black.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from resnetkit import file_types
from resnetkit.errors import DataError, ImageError, ResnetkitError
from resnetkit.formatting import join_names
from resnetkit.images import icon, jpeg, png
from resnetkit.images.memory import DECODING_BUDGET

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "ICO", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ico", ".ppm",
            ".pgm", ".pbm", ".pnm")  # fmt: skip
MAX_IMAGE_PIXELS = 64_000_000
MAX_IMAGE_BYTES = 256_000_000  # an uncompressed image with MAX_IMAGE_PIXELS
TOO_MANY_BYTES = f"the file has more than {MAX_IMAGE_BYTES:,} bytes"
_TOO_MANY_PIXELS = f"the image has more than {MAX_IMAGE_PIXELS:,} pixels"
_MAX_KINDS = 30  # kinds of skipped files in one note
# Keys of ``info`` of an image that had 16 bits: a hash of its values if 8 bits do not hold them, and the number of the
# 256 levels that they can use
DEEP_DIGEST, DEEP_LEVELS = "resnetkit_deep_digest", "resnetkit_deep_levels"
_BYTES_PER_PIXEL = 4  # Pillow pads RGB to four bytes
_RLE_COMPRESSIONS, _MAX_RLE_PIXELS = (1, 2), 4_000_000  # run lengths of BMP, which Pillow decodes in Python
# Only large images are reduced; the others differ too much at fine patterns and saturated colors, and gain little. The
# reduced image must exceed the target by a factor, so that the resize has pixels to average (docs/decisions/016).
_MIN_REDUCED_SIDE, _SMALL_TARGET, _MIN_OVERSAMPLING, _MIN_OVERSAMPLING_SMALL = 1500, 128, 2.8, 6.0
# EXIF orientation -> what makes the image upright
_TRANSPOSITIONS: dict[Any, Image.Transpose] = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))
T = TypeVar("T")
Result = TypeVar("Result")
# Pillow warns about large images and odd EXIF; resnetkit decides both itself. The filter is process-wide, so switching
# it on and off around each image would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
_SYSTEM_FILES = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


def has_image_suffix(name: str) -> bool:
    """Return whether a file name ends like one of the supported image formats."""
    return name.lower().endswith(SUFFIXES)


def find_images(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder that has an image suffix, without hidden files."""
    return (path for path in find_files(folder) if has_image_suffix(path.name))


def find_files(folder: Path, on_error: Callable[[DataError], None] | None = None) -> Iterator[Path]:
    """Yield every file below a folder, without hidden files; each real folder is entered once.

    Args:
        folder: The folder.
        on_error: Called with the error of a folder that cannot be read; None to raise it.
    """
    for _, entries in walk_folders(folder, on_error):
        yield from (Path(entry.path) for entry in entries if not is_folder(entry))


def walk_folders(
    folder: Path, on_error: Callable[[DataError], None] | None = None
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Yield a folder and all folders below it, each with its entries; each real folder is entered once.

    Args:
        folder: The folder.
        on_error: Called with the error of a folder that cannot be read; None to raise it.

    Raises:
        DataError: a folder cannot be read, and ``on_error`` is None.
    """
    pending, links, visited = [folder], list[Path](), set()
    while pending or links:
        current = pending.pop() if pending else links.pop()  # a folder has its own name rather than that of a link
        try:
            entries, status = list_entries(current), current.stat()
        except (DataError, OSError) as error:
            data_error = error if isinstance(error, DataError) else _build_folder_error(current, error)
            if on_error is None:
                raise data_error from None
            on_error(data_error)
            continue
        if (status.st_dev, status.st_ino) not in visited:
            visited.add((status.st_dev, status.st_ino))
            yield current, entries
            for entry in filter(is_folder, entries):
                (links if entry.is_symlink() else pending).append(Path(entry.path))


def _build_folder_error(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot read the folder: {error.strerror}", where=str(folder))


def note_other_files(files: Iterable[Path]) -> list[str]:
    """Count the files without an image suffix in one sentence; return no sentence if there are none."""
    kinds = count_kinds(path for path in files if not has_image_suffix(path.name))
    return [f"skipped files of other types: {kinds} (supported: {' '.join(SUFFIXES)})"] if kinds else []


def count_kinds(files: Iterable[Path]) -> str:
    """Count files by ending: ``3 .txt, 1 .part (JPEG)``; images with another ending are named."""
    files_of_kind: dict[str, list[Path]] = {}
    for file in files:
        files_of_kind.setdefault(file.suffix.lower() or file.name, []).append(file)
    kinds = sorted(files_of_kind.items(), key=lambda item: (-len(item[1]), item[0]))
    return join_names([f"{len(group):,} {kind}{_name_image_type(group[0])}" for kind, group in kinds], _MAX_KINDS)


def _name_image_type(file: Path) -> str:
    """Return `` (JPEG)`` for an image, and "" for any other file or one that cannot be read."""
    try:
        if not file.is_file():  # opening a pipe would block
            return ""
        with file.open("rb") as stream:
            file_type = file_types.detect_file_type(stream.read(file_types.HEADER_SIZE))
    except OSError:
        return ""
    return f" ({file_type})" if file_type in file_types.IMAGE_TYPES else ""


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a circular link is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder by name, without hidden entries and files of the operating system.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _build_folder_error(folder, error) from None
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SYSTEM_FILES]


def try_read(read: Callable[[T], Result], source: T) -> Result | ImageError:
    """Call ``read(source)``; return the `ImageError` of an unreadable image instead of raising it.

    Args:
        read: The function that decodes an image.
        source: Its argument, such as a path or an index.
    """
    try:
        return read(source)
    except ImageError as error:
        return error


def try_read_named(read: Callable[[T], Result], get_name: Callable[[T], str], source: T) -> Result | ImageError:
    """Call `try_read`, and name the image in any error that no image should cause.

    The memory of a decoded image stays reserved until ``read`` returns.

    Args:
        read: The function that decodes an image.
        get_name: A function that returns the name of ``source`` for the error.
        source: The argument of both.

    Raises:
        ResnetkitError: ``read`` raised something else than `ImageError`, which is a bug.
        MemoryError: the memory is full.
    """
    try:
        with DECODING_BUDGET.hold():
            return try_read(read, source)
    except MemoryError:
        raise
    except Exception as error:
        what = f"preparing an image failed: {type(error).__name__}: {error}"
        raise ResnetkitError(what, where=get_name(source), fix="please report this, with the image") from error


def decode(source: str | Path | bytes, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
    """Decode an image to Pillow's mode ``RGB`` or ``L``.

    Args:
        source: A path, or the bytes of a file.
        color_mode: ``RGB`` or ``L``.
        shorter_side: The shorter side in pixels to which the caller resizes later, 0 if it does not. It lets a JPEG be
            decoded at 1/2, 1/4 or 1/8 of its size. The checks for damage are the same at every size.

    Raises:
        ImageError: the image cannot be read; the error holds the reason and the file.
    """
    location = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        content = _read_file(source)
        content = icon.unpack_icon(content) if content.startswith(icon.SIGNATURE) else content
        return _decode_bytes(content, color_mode, shorter_side)
    except ImageError as error:
        raise ImageError(error.what, where=location, fix=error.fix) from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file makes them raise
        raise ImageError(describe_read_error(error), where=location) from error


def _read_file(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    status = Path(source).stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe could block forever
        raise ImageError("this is a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageError(TOO_MANY_BYTES)
    return Path(source).read_bytes()


def _decode_bytes(content: bytes, color_mode: str, shorter_side: int) -> Image.Image:
    header = jpeg.parse_jpeg_header(content) if content.startswith(jpeg.SIGNATURE) else None
    with _open_image(content) as image:
        is_rle = image.format == "BMP" and image.info.get("compression") in _RLE_COMPRESSIONS
        if image.width * image.height > (_MAX_RLE_PIXELS if is_rle else MAX_IMAGE_PIXELS):
            raise ImageError(_TOO_MANY_PIXELS)
        png_data = png.parse_png(content) if image.format == "PNG" else None
        if len(content) < _count_min_file_bytes(image, header or png_data):
            raise ImageError("damaged: the file is too short for the size in its header")
        reduction = _choose_reduction(image, shorter_side) if header else 1
        n_pixels = image.width * image.height // reduction**2
        n_copies = 3 if image.has_transparency_data else 2  # as stored, in RGB, and the white background
        n_bytes = n_copies * _BYTES_PER_PIXEL * n_pixels + (header.coefficient_bytes if header else 0)
        with DECODING_BUDGET.reserve(n_bytes, _BYTES_PER_PIXEL * n_pixels):
            if header:
                decoded = jpeg.load_jpeg(image, content, header, reduction)
            else:
                image.load()
                decoded = image
            if png_data:
                png.check_rows(image, png_data)
            return convert_mode(_flatten_image(_rotate_upright(decoded, image)), color_mode)


def _count_min_file_bytes(image: ImageFile.ImageFile, header: jpeg.JpegHeader | png.PngData | None) -> int:
    """Count the bytes that a file of this size needs at least; 0 if that is unknown."""
    if header:
        return header.min_file_bytes
    for tile in image.tile[:1] if image.format == "BMP" else ():
        if tile.codec_name == "raw" and isinstance(tile.args, tuple):  # the last row may lack its padding
            return tile.offset + int(tile.args[1]) * (image.height - 1)
    return 0


def _choose_reduction(image: Image.Image, shorter_side: int) -> int:
    """Choose 8, 4, 2 or 1; both sides are multiples of it, or the center would shift by part of a pixel."""
    min_side, oversampling = min(image.size), _MIN_OVERSAMPLING
    if shorter_side < _SMALL_TARGET:  # the coarse structures of an image have more contrast than its details
        oversampling = _MIN_OVERSAMPLING_SMALL
    for factor in (8, 4, 2) if shorter_side and min_side >= _MIN_REDUCED_SIDE else ():
        if image.width % factor == image.height % factor == 0 and min_side >= factor * oversampling * shorter_side:
            return factor
    return 1


def _rotate_upright(decoded: Image.Image, opened: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of the opened image, if it can be read."""
    try:
        transposition = _TRANSPOSITIONS.get(opened.getexif().get(ExifTags.Base.Orientation))
    except MemoryError:
        raise
    except Exception:  # Pillow raises whatever broken EXIF makes it raise
        return decoded
    return decoded if transposition is None else decoded.transpose(transposition)


def _open_image(content: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise _build_format_error(content[: file_types.HEADER_SIZE]) from None


def _build_format_error(first_bytes: bytes) -> ImageError:
    file_type, allowed = file_types.detect_file_type(first_bytes), ", ".join(FORMATS)
    if file_type in FORMATS:
        return ImageError(f"damaged, or an unusual variant: the {file_type} header cannot be read")
    if file_type in file_types.IMAGE_TYPES:
        return ImageError(f"format {file_type} is not supported; allowed: {allowed}", fix="save it as PNG or JPEG")
    what, fix = file_types.describe_wrong_type(first_bytes, "an image")
    return ImageError(what or f"not a supported image; allowed: {allowed}", fix=fix)


def _flatten_image(image: Image.Image) -> Image.Image:
    """Convert to 8 bits per channel, and blend transparent pixels with white."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        what = "its pixels are floating-point or 32-bit numbers, whose range is unknown"
        raise ImageError(what, fix="save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        flat = Image.fromarray(_convert_16_bit(values, image.info.get("transparency")))
        if (values % 257).any():  # otherwise 8 bits hold the same values
            flat.info[DEEP_DIGEST] = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).digest()
        flat.info[DEEP_LEVELS] = (int(values.max()) - int(values.min())) // 257 + 1
        return flat
    if image.has_transparency_data:
        rgba, background = convert_mode(image, "RGBA"), Image.new("RGB", image.size, "white")
        background.paste(rgba, mask=rgba)
        return background
    return image


def _convert_16_bit(values: NDArray[Any], transparent: int | None) -> NDArray[np.uint8]:
    """Round 16 bits to 8 and make ``transparent`` values white, row by row to save memory."""
    output = np.empty(values.shape, np.uint8)
    for row, output_row in zip(values, output, strict=True):
        output_row[:] = (row.astype(np.int64).clip(0, 65535) + 128) // 257
        if transparent is not None:
            output_row[row == transparent] = 255
    return output


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to a mode, without a copy if it has the mode already.

    Args:
        image: The image.
        mode: Pillow's name of the mode, such as ``RGB``.
    """
    return image if image.mode == mode else image.convert(mode)


def describe_read_error(error: Exception) -> str:
    """Describe in a few words why an image cannot be read."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):  # Pillow's own limits
        return _TOO_MANY_PIXELS
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"
