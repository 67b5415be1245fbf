"""FILES: what can be named to look at. No torch."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnetkit.architecture.card import Preparation
from resnetkit.errors import DataError, PictureError, UsageError
from resnetkit.images.decode import SUFFIXES, attempt, files_below, other_kinds, pictures_below
from resnetkit.images.prepare import Pixels, open_prepared
from resnetkit.learn.ranks import cores


@dataclass(frozen=True)
class Input:
    """One picture: what it is called, and its bytes where they are here already."""

    name: str
    content: bytes | None = None


Read = tuple[Input, Pixels | PictureError]


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


def decoded(inputs: Sequence[Input], preparation: Preparation, chunk: int) -> Iterator[list[Read]]:
    """Chunks of pictures, each decoded on all cores while the one before it is in use."""
    pool = ThreadPoolExecutor(cores())
    try:
        chunks = [inputs[i : i + chunk] for i in range(0, len(inputs), chunk)]
        read = partial(attempt, partial(_open, preparation))
        waiting = [pool.submit(read, one) for one in chunks[0]] if chunks else []
        for i, here in enumerate(chunks):
            following = chunks[i + 1] if i + 1 < len(chunks) else ()
            ahead = [pool.submit(read, one) for one in following]
            yield [(one, future.result()) for one, future in zip(here, waiting, strict=True)]
            waiting = ahead
    finally:
        pool.shutdown(cancel_futures=True)  # who interrupts does not wait for pictures that nobody will see


def _open(preparation: Preparation, one: Input) -> Pixels:
    return open_prepared(Path(one.name) if one.content is None else one.content, preparation)
