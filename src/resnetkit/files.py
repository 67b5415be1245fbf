"""Atomic writing: what stands under a final name is whole, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnetkit.errors import MachineError


def cache_folder() -> Path:
    """Where what was fetched is kept: ``$RESNETKIT_CACHE``, or the user's cache. Asking does not make it."""
    from platformdirs import user_cache_path

    told = os.environ.get("RESNETKIT_CACHE")
    return Path(told) if told else user_cache_path("resnetkit", appauthor=False)


def write_text(path: Path, text: str) -> None:
    """``text`` as UTF-8 under ``path``: all of it or nothing."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """``data`` under ``path``: all of it or nothing."""
    with replacing(path) as part:
        part.write_bytes(data)


def make_folder(path: Path) -> tuple[Path, ...]:
    """A new folder; one that exists is an error. Gives what was made: the folder, then those above it."""
    with _environment(path):
        missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        path.mkdir(parents=True)
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Take back what `make_folder` made, as far as nothing stands in it."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def append_line(path: Path, line: str) -> None:
    """A line at the end of a log."""
    with _environment(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` if the body succeeds, removed if it does not."""
    with _environment(path):
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced by an ordinary file
            raise OSError("this is no ordinary file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            _sync(part)
            part.chmod(0o666 & ~_umask())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; renamed to ``path``, which must not exist, if the body succeeds."""
    with _environment(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield part
            for written in [*part.rglob("*"), part]:
                written.chmod((0o777 if written.is_dir() else 0o666) & ~_umask())
                _sync(written)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _environment(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
