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


def get_cache_folder() -> Path:
    """Where what was fetched is kept: ``$RESNETKIT_CACHE``, or the user's cache. Asking does not make it."""
    from platformdirs import user_cache_path

    configured = os.environ.get("RESNETKIT_CACHE")
    return Path(configured) if configured else user_cache_path("resnetkit", appauthor=False)


def hash_file(path: Path) -> str:
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
    with atomic_write(path) as temporary:
        write_at(temporary, data)


def write_at(path: Path, data: bytes, offset: int = 0) -> None:
    """``data`` from byte ``start`` of a file on, and nothing after it. Not atomic: for what is renamed, for logs.

    What a link leads to belongs to somebody else, and is not written to.
    """
    fd = _open_regular_file(path, os.O_WRONLY | os.O_CREAT | _O_NOFOLLOW)
    try:
        os.ftruncate(fd, offset)
        os.lseek(fd, offset, os.SEEK_SET)
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(fd, remaining) :]
    finally:
        os.close(fd)


_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for until somebody opens its other end


def _open_regular_file(path: Path, flags: int) -> int:
    """A handle of an ordinary file; raises `OSError` for anything else."""
    try:
        fd = os.open(path, flags | _O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a pipe that nobody reads
            raise _NotRegularFileError from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _NotRegularFileError
    return fd


class _NotRegularFileError(OSError):
    def __init__(self) -> None:
        super().__init__("this is no ordinary file")


def make_folder(path: Path) -> tuple[Path, ...]:
    """A new folder; one that exists is an error. Gives what was made: the folder, then those above it."""
    with _translate_os_errors(path):
        missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        path.mkdir(parents=True)
    return missing


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Take back what `make_folder` made, as far as nothing stands in it."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_folder(path: Path) -> None:
    """A folder and all in it; it goes from under its name first, so that nothing half removed stands there."""
    if path.exists():
        with _translate_os_errors(path):
            trash = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            path.replace(trash)
        shutil.rmtree(trash, ignore_errors=True)


def remove_temporary(folder: Path, name: str = "") -> None:
    """Remove what a process left half written beside a final name, or beside any, when it was killed."""
    for leftover in folder.glob(f".{glob.escape(name)}.{'?' * 8}.part" if name else ".*.part"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def check_free_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Raise `MachineError` where the disk of a folder, which need not exist yet, has too little room."""
    existing_folder = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing_folder).free
    if free < n_bytes:
        message = f"there is too little space for {purpose}: needs {_format_bytes(n_bytes)}, free {_format_bytes(free)}"
        raise MachineError(message, where=str(folder), fix="make room, or write to another disk: --out")


def _format_bytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"


class LogFile:
    """Lines at the end of a file. Those that cannot be written wait, in order, until they can be.

    ``size`` is the length of what was written whole; whatever stands after it is cut off by the next line.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path, self.size = path, size
        self._pending: list[str] = []

    def add(self, line: str) -> None:
        """A line, now or later."""
        self._pending.append(line)
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> int:
        """Everything on the disk, and how many bytes that is; raises `MachineError`."""
        with _translate_os_errors(self.path):
            self._flush()
            _fsync(self.path)
        return self.size

    def _flush(self) -> None:
        text = "".join(line + "\n" for line in self._pending).encode()
        write_at(self.path, text, self.size)
        self.size += len(text)
        self._pending.clear()


@contextlib.contextmanager
def atomic_write(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """A name beside ``path`` to write to; renamed to ``path`` if the body succeeds, removed if it does not.

    Where ``path`` is to be ``new`` and something has got that name meanwhile, it stays: a `UsageError`.
    """
    with _translate_os_errors(path):
        if path.exists() and not path.is_file():  # a device or a pipe would be replaced by an ordinary file
            raise OSError("this is no ordinary file")
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary_name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(fd)
        temporary = Path(temporary_name)
        try:
            yield temporary
            _fsync(temporary)
            temporary.chmod(0o666 & ~_get_umask())
            if not exclusive:
                temporary.replace(path)
            elif not _rename_new(temporary, path):
                raise file_exists_error(path)
            _fsync(path.parent)  # else the new name can be lost with the power
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Whether a file, made if it is not there, is this command's alone for as long as the body runs."""
    with _translate_os_errors(path):
        fd, is_locked = _open_locked(path)
    try:
        yield is_locked
    finally:
        os.close(fd)


def _open_locked(path: Path) -> tuple[int, bool]:
    """The file that has the name once it is held: who held it before may have renamed or removed the one opened."""
    n_attempts = 100  # some disks in a network number their files anew each time
    while True:
        fd, n_attempts = _open_regular_file(path, os.O_RDONLY | os.O_CREAT), n_attempts - 1
        is_locked = _try_lock(fd)
        if not (is_locked and n_attempts) or _is_at_path(fd, path):
            return fd, is_locked
        os.close(fd)


def _is_at_path(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(fd: int) -> bool:
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # neither Windows nor every disk in a network can
        return True
    return True


def publish(temporary: Path, path: Path, record: Path) -> bool:
    """Whether what stands whole on the disk as ``part`` got its final name, which nothing may have; its record goes."""
    with _translate_os_errors(path):
        is_published = _rename_new(temporary, path, record)
        _fsync(path.parent)
    return is_published


def _rename_new(temporary: Path, path: Path, *records: Path) -> bool:
    """Whether a file got a new name, which nothing has. A kill leaves one of its names, never both or none."""
    if os.path.lexists(path):
        return False
    temporary.rename(path)
    for record in records:
        record.unlink(missing_ok=True)
    return True


def file_exists_error(path: Path) -> UsageError:
    """What is said where a new file cannot be made, as there is one."""
    return UsageError("this file exists already", where=str(path), fix="name another, or remove it")


@contextlib.contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; renamed to ``path``, which must not exist, if the body succeeds."""
    with _translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield temporary
            for entry in [*temporary.rglob("*"), temporary]:
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_get_umask())
                _fsync(entry)
            temporary.rename(path)
            _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _translate_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "make room, or write to another disk" if _is_disk_full(error) else "name another place to write to"
        raise MachineError(f"cannot write: {reason}", where=str(path), fix=fix) from error


def _is_disk_full(error: OSError) -> bool:
    """Whether the disk is; of numpy only its words tell."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _get_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
