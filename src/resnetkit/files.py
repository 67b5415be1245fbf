"""Atomic writing: what stands under a final name is whole, whatever happens meanwhile.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnetkit.errors import MachineError, UsageError


def cache_folder() -> Path:
    """Where what was fetched is kept: ``$RESNETKIT_CACHE``, or the user's cache. Asking does not make it."""
    from platformdirs import user_cache_path

    told = os.environ.get("RESNETKIT_CACHE")
    return Path(told) if told else user_cache_path("resnetkit", appauthor=False)


def digest(path: Path) -> str:
    """SHA-256 of what a file holds; raises `MachineError` for a pipe, which may never end."""
    if path.exists() and not path.is_file():
        raise MachineError("this is no ordinary file", where=str(path), fix="put a copy of the file itself there")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """``text`` as UTF-8 under ``path``: all of it or nothing."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """``data`` under ``path``: all of it or nothing."""
    with replacing(path) as part:
        put(part, data)


def put(path: Path, data: bytes, start: int = 0) -> None:
    """``data`` from byte ``start`` of a file on, and nothing after it. Not atomic: for what is renamed, for logs.

    What a link leads to belongs to somebody else, and is not written to.
    """
    handle = _open(path, os.O_WRONLY | os.O_CREAT | _NO_LINK)
    try:
        os.ftruncate(handle, start)
        os.lseek(handle, start, os.SEEK_SET)
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for until somebody opens its other end


def _open(path: Path, flags: int) -> int:
    """A handle of an ordinary file; raises `OSError` for anything else."""
    try:
        handle = os.open(path, flags | _NO_WAIT, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a pipe that nobody reads
            raise _NotOrdinaryError from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _NotOrdinaryError
    return handle


class _NotOrdinaryError(OSError):
    def __init__(self) -> None:
        super().__init__("this is no ordinary file")


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


def remove_folder(path: Path) -> None:
    """A folder and all in it; it goes from under its name first, so that nothing half removed stands there."""
    if path.exists():
        with _environment(path):
            gone = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            path.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path, name: str = "") -> None:
    """Remove what a process left half written beside a final name, or beside any, when it was killed."""
    for part in folder.glob(f".{glob.escape(name)}.{'?' * 8}.part" if name else ".*.part"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `MachineError` where the disk of a folder, which need not exist yet, has too little room."""
    standing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(standing).free
    if free < needed:
        told = f"there is too little space for {what}: needs {_bytes(needed)}, free {_bytes(free)}"
        raise MachineError(told, where=str(folder), fix="make room, or write to another disk: --out")


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


class Log:
    """Lines at the end of a file. Those that cannot be written wait, in order, until they can be.

    ``size`` is the length of what was written whole; whatever stands after it is cut off by the next line.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path, self.size = path, size
        self._waiting: list[str] = []

    def add(self, line: str) -> None:
        """A line, now or later."""
        self._waiting.append(line)
        with contextlib.suppress(OSError):
            self._write()

    def sync(self) -> int:
        """Everything on the disk, and how many bytes that is; raises `MachineError`."""
        with _environment(self.path):
            self._write()
            _sync(self.path)
        return self.size

    def _write(self) -> None:
        text = "".join(line + "\n" for line in self._waiting).encode()
        put(self.path, text, self.size)
        self.size += len(text)
        self._waiting.clear()


@contextlib.contextmanager
def replacing(path: Path, new: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` if the body succeeds, removed if it does not.

    Where ``path`` is to be ``new`` and something has got that name meanwhile, it stays: a `UsageError`.
    """
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
            if not new:
                part.replace(path)
            elif not _named(part, path):
                raise exists_already(path)
            _sync(path.parent)  # else the new name can be lost with the power
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Whether a file, made if it is not there, is this command's alone for as long as the body runs."""
    with _environment(path):
        handle, mine = _held(path)
    try:
        yield mine
    finally:
        os.close(handle)


def _held(path: Path) -> tuple[int, bool]:
    """The file that has the name once it is held: who held it before may have renamed or removed the one opened."""
    left = 100  # some disks in a network number their files anew each time
    while True:
        handle, left = _open(path, os.O_RDONLY | os.O_CREAT), left - 1
        mine = _locked(handle)
        if not (mine and left) or _has_name(handle, path):
            return handle, mine
        os.close(handle)


def _has_name(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _locked(handle: int) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # neither Windows nor every disk in a network can
        return True
    return True


def finish(part: Path, path: Path, record: Path) -> bool:
    """Whether what stands whole on the disk as ``part`` got its final name, which nothing may have; its record goes."""
    with _environment(path):
        done = _named(part, path, record)
        _sync(path.parent)
    return done


def _named(part: Path, path: Path, *records: Path) -> bool:
    """Whether a file got a new name, which nothing has. A kill leaves one of its names, never both or none."""
    if os.path.lexists(path):
        return False
    part.rename(path)
    for record in records:
        record.unlink(missing_ok=True)
    return True


def exists_already(path: Path) -> UsageError:
    """What is said where a new file cannot be made, as there is one."""
    return UsageError("this file exists already", where=str(path), fix="name another, or remove it")


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
            _sync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _environment(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        fix = "make room, or write to another disk" if _full(error) else "name another place to write to"
        raise MachineError(f"cannot write: {why}", where=str(path), fix=fix) from error


def _full(error: OSError) -> bool:
    """Whether the disk is; of numpy only its words tell."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)


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
