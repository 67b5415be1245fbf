"""FILES: what can be named to look at. No torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnetkit.architecture.card import Preparation
from resnetkit.errors import DataError, PictureError
from resnetkit.images.decode import SUFFIXES, attempt, pictures_below
from resnetkit.images.prepare import Pixels, open_prepared


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
    if path.is_dir():
        below = sorted(pictures_below(path))
        if not below:
            raise DataError("there are no pictures here", where=str(path), fix="name files, or another folder")
        return [Input(str(found)) for found in below]
    if glob.has_magic(str(name)) and not path.exists():
        matching = sorted(glob.glob(str(name), recursive=True))  # noqa: PTH207  absolute patterns, and ** by option
        pictures = [found for found in matching if found.lower().endswith(SUFFIXES)]
        if not pictures:
            raise DataError("no picture matches this pattern", where=str(name), fix="name files, or a folder")
        return [Input(found) for found in pictures]
    return [Input(str(name))]


def decoded(inputs: Sequence[Input], preparation: Preparation, chunk: int) -> Iterator[list[Read]]:
    """Chunks of pictures, each decoded on all cores while the one before it is in use."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        chunks = [inputs[i : i + chunk] for i in range(0, len(inputs), chunk)]
        read = partial(attempt, partial(_open, preparation))
        waiting = [pool.submit(read, one) for one in chunks[0]] if chunks else []
        for here, following in zip(chunks, [*chunks[1:], ()], strict=True):
            ahead = [pool.submit(read, one) for one in following]
            yield [(one, future.result()) for one, future in zip(here, waiting, strict=True)]
            waiting = ahead
    finally:
        pool.shutdown(cancel_futures=True)  # who interrupts does not wait for pictures that nobody will see


def _open(preparation: Preparation, one: Input) -> Pixels:
    return open_prepared(Path(one.name) if one.content is None else one.content, preparation)
