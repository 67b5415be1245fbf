"""FILES: what can be named to look at.

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
    """One picture: what it is called, and its bytes where they are here already."""

    name: str
    content: bytes | None = None


def expand_inputs(names: Iterable[str | Path | ImageInput]) -> list[ImageInput]:
    """Files as they are, the pictures of folders and those that match a pattern, both by name.

    Raises `DataError` for a folder without pictures and a pattern that nothing matches; a file that is not there stays,
    and becomes a row that says so.
    """
    return [item for name in names for item in ([name] if isinstance(name, ImageInput) else _expand_path(name))]


def _expand_path(name: str | Path) -> list[ImageInput]:
    path = Path(name)
    if not str(name):
        raise UsageError("an empty word names no picture", where="FILES", fix="name files or folders")
    if _is_true(path.is_dir):
        image_paths = sorted(find_images(path))
        if not image_paths:
            fix = "; ".join([*describe_skipped_files([str(path)]), "name files, or another folder"])
            raise DataError("there are no pictures here", where=str(path), fix=fix)
        return [ImageInput(str(entry)) for entry in image_paths]
    if glob.has_magic(str(name)) and not _is_true(path.exists):
        matches = sorted(set(glob.glob(str(name), recursive=True)))  # noqa: PTH207  absolute patterns, and **
        images = [entry for entry in matches if entry.lower().endswith(SUFFIXES)]
        if not images:
            raise DataError("no picture matches this pattern", where=str(name), fix="name files, or a folder")
        return [ImageInput(entry) for entry in images]
    return [ImageInput(str(name))]


def describe_skipped_files(names: Iterable[str]) -> list[str]:
    """A sentence about files of other kinds in the folders that are named."""
    folders = [Path(name) for name in names if name != "-" and _is_true(Path(name).is_dir)]
    return note_other_files(path for folder in folders for path in find_files(folder))


def _is_true(predicate: Callable[[], bool]) -> bool:
    """What a path says of itself; no, where its name is too long or holds a NUL."""
    try:
        return predicate()
    except (OSError, ValueError):
        return False
