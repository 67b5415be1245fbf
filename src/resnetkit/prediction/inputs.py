"""Expand file names, folders and patterns into a list of images.

This module imports no torch.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import SUFFIXES, find_files, is_folder, note_other_files, walk_folders

# endings of images that the decoder refuses by name
OTHER_IMAGE_SUFFIXES = (
    ".jfif", ".jpe", ".tif", ".tiff", ".avif", ".heic", ".heif", ".ico", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".jxl", ".psd", ".svg", ".exr", ".dcm",
)  # fmt: skip
_ErrorHandler = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image: its name, and its bytes if they are in memory, or the reason why it cannot be read."""

    name: str
    content: bytes | None = None
    error: str = ""


def expand_inputs(names: Iterable[str | Path | ImageInput]) -> list[ImageInput]:
    """Expand folders and patterns into their images, sorted by name; keep files as they are.

    A file that does not exist stays in the list; reading it gives the error. So does a folder that cannot be read, and
    an image of a type that is not supported.

    Raises:
        DataError: a folder without images, or a pattern that matches none.
        UsageError: an empty file name.
    """
    return [item for name in names for item in ([name] if isinstance(name, ImageInput) else _expand_path(name))]


def _expand_path(name: str | Path) -> list[ImageInput]:
    path = Path(name)
    errors: dict[str, ImageInput] = {}

    def add_error(error: DataError) -> None:
        location = error.where[0]
        errors.setdefault(os.path.realpath(location), ImageInput(location, error=error.what))

    if not str(name):
        raise UsageError("empty file name", where="FILES", fix="name files or folders")
    is_named_folder = _is_true(path.is_dir)
    if is_named_folder:
        files = find_files(path, add_error)
    elif glob.has_magic(str(name)) and not _is_true(path.exists):
        files = _match_pattern(str(name), add_error)
    else:
        return [ImageInput(str(name))]
    paths: dict[tuple[str, str], Path] = {}  # a pattern can match a file under several names
    get_real_path = functools.cache(os.path.realpath)
    for file in files:
        if file.name.lower().endswith(SUFFIXES + OTHER_IMAGE_SUFFIXES):
            paths.setdefault((get_real_path(file.parent), file.name), file)
    inputs = [*(ImageInput(str(file)) for file in paths.values()), *errors.values()]
    if not inputs and is_named_folder:
        fix = "; ".join([*describe_skipped_files([str(path)]), "name files, or another folder"])
        raise DataError("no images in this folder", where=str(path), fix=fix)
    if not inputs:
        raise DataError("no image matches this pattern", where=str(name), fix="name files, or a folder")
    return sorted(inputs, key=lambda item: item.name)


def _match_pattern(pattern: str, on_error: _ErrorHandler) -> Iterator[Path]:
    """Yield the files that match a pattern; ``**`` enters each real folder once."""
    parts = Path(pattern).parts
    n_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:n_fixed])
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    except OSError:
        pass  # such as a folder without permission: reading it gives the error
    yield from _match_parts(folder, parts[n_fixed:], on_error)


def _match_parts(folder: Path, parts: Sequence[str], on_error: _ErrorHandler) -> Iterator[Path]:
    part, rest = parts[0], parts[1:]
    if part == "**":
        for subfolder, _ in walk_folders(folder, on_error):
            yield from _match_parts(subfolder, rest or ("*",), on_error)
        return
    for _, entries in itertools.islice(walk_folders(folder, on_error), 1):
        for entry in entries:
            if fnmatch(entry.name, part) and is_folder(entry) == bool(rest):
                yield from _match_parts(Path(entry.path), rest, on_error) if rest else [Path(entry.path)]


def describe_skipped_files(names: Iterable[str]) -> list[str]:
    """Return a note about files in the named folders that are not images."""
    folders = [Path(name) for name in names if name != "-" and _is_true(Path(name).is_dir)]
    files = (path for folder in folders for path in find_files(folder, on_error=lambda error: None))
    return note_other_files(path for path in files if not path.name.lower().endswith(OTHER_IMAGE_SUFFIXES))


def _is_true(predicate: Callable[[], bool]) -> bool:
    """Call a method of a path; return False if the name is too long or holds a NUL."""
    try:
        return predicate()
    except (OSError, ValueError):
        return False
