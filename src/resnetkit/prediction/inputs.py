"""Expand file names, folders and patterns into a list of images.

This module imports no torch.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import SUFFIXES, find_files, find_images, note_other_files


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image: its name, and its encoded bytes if they are in memory already."""

    name: str
    content: bytes | None = None


def expand_inputs(names: Iterable[str | Path | ImageInput]) -> list[ImageInput]:
    """Expand folders and patterns into their images, sorted by name; keep files as they are.

    A file that does not exist stays in the list; reading it gives the error.

    Raises:
        DataError: a folder without images, or a pattern that matches none.
        UsageError: an empty file name.
    """
    return [item for name in names for item in ([name] if isinstance(name, ImageInput) else _expand_path(name))]


def _expand_path(name: str | Path) -> list[ImageInput]:
    path, paths = Path(name), [str(name)]
    if not str(name):
        raise UsageError("empty file name", where="FILES", fix="name files or folders")
    if _is_true(path.is_dir):
        paths = [str(image_path) for image_path in sorted(find_images(path))]
        if not paths:
            fix = "; ".join([*describe_skipped_files([str(path)]), "name files, or another folder"])
            raise DataError("no images in this folder", where=str(path), fix=fix)
    elif glob.has_magic(str(name)) and not _is_true(path.exists):
        matches = sorted(set(glob.glob(str(name), recursive=True)))  # noqa: PTH207  absolute patterns, and **
        paths = [match for match in matches if match.lower().endswith(SUFFIXES)]
        if not paths:
            raise DataError("no image matches this pattern", where=str(name), fix="name files, or a folder")
    return [ImageInput(image_path) for image_path in paths]


def describe_skipped_files(names: Iterable[str]) -> list[str]:
    """Return a note about files in the named folders that are not images of a known format."""
    folders = [Path(name) for name in names if name != "-" and _is_true(Path(name).is_dir)]
    return note_other_files(path for folder in folders for path in find_files(folder))


def _is_true(predicate: Callable[[], bool]) -> bool:
    """Call a method of a path; return False if the name is too long or holds a NUL."""
    try:
        return predicate()
    except (OSError, ValueError):
        return False
