"""FILES: what can be named to look at.

This module imports no torch.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from resnetkit.errors import DataError, UsageError
from resnetkit.images.decode import SUFFIXES, files_below, other_kinds, pictures_below


@dataclass(frozen=True, slots=True)
class Input:
    """One picture: what it is called, and its bytes where they are here already."""

    name: str
    content: bytes | None = None


def expand(named: Iterable[str | Path | Input]) -> list[Input]:
    """Files as they are, the pictures of folders and those that match a pattern, both by name.

    Raises `DataError` for a folder without pictures and a pattern that nothing matches; a file that is not there stays,
    and becomes a row that says so.
    """
    return [found for name in named for found in ([name] if isinstance(name, Input) else _expanded(name))]


def _expanded(name: str | Path) -> list[Input]:
    path = Path(name)
    if not str(name):
        raise UsageError("an empty word names no picture", where="FILES", fix="name files or folders")
    if _is(path.is_dir):
        below = sorted(pictures_below(path))
        if not below:
            fix = "; ".join([*passed_over([str(path)]), "name files, or another folder"])
            raise DataError("there are no pictures here", where=str(path), fix=fix)
        return [Input(str(found)) for found in below]
    if glob.has_magic(str(name)) and not _is(path.exists):
        matching = sorted(set(glob.glob(str(name), recursive=True)))  # noqa: PTH207  absolute patterns, and **
        pictures = [found for found in matching if found.lower().endswith(SUFFIXES)]
        if not pictures:
            raise DataError("no picture matches this pattern", where=str(name), fix="name files, or a folder")
        return [Input(found) for found in pictures]
    return [Input(str(name))]


def passed_over(named: Iterable[str]) -> list[str]:
    """A sentence about files of other kinds in the folders that are named."""
    folders = [Path(name) for name in named if name != "-" and _is(Path(name).is_dir)]
    return other_kinds(path for folder in folders for path in files_below(folder))


def _is(ask: Callable[[], bool]) -> bool:
    """What a path says of itself; no, where its name is too long or holds a NUL."""
    try:
        return ask()
    except (OSError, ValueError):
        return False
