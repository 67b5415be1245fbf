"""Write files so that a final name never holds half a file, whatever happens meanwhile.

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

from resnetkit.errors import MachineError, ResnetkitError, UsageError
from resnetkit.formatting import format_bytes

_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe waits for a process at its other end
NOT_REGULAR = "not a regular file"
_DISK_FULL_FIX, _OTHER_FOLDER_FIX = "free some disk space, or write to another disk", "write to another folder"
_NO_LOCK_ERRORS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # this file system has no locks


def get_cache_folder() -> Path:
    """Return ``$RESNETKIT_CACHE`` or the cache folder of the user, without creating it."""
    from platformdirs import user_cache_path

    configured = os.environ.get("RESNETKIT_CACHE")
    return Path(configured) if configured else user_cache_path("resnetkit", appauthor=False)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the content of a file.

    Raises:
        MachineError: ``path`` is not a regular file.
    """
    check_regular_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_regular_file(path: Path, error_type: type[ResnetkitError] = MachineError) -> None:
    """Refuse to read a pipe, which may never end, a device or a folder; a missing file is fine.

    Args:
        path: the file.
        error_type: the class of the error.

    Raises:
        ResnetkitError: ``path`` exists, but is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise error_type(NOT_REGULAR, where=str(path), fix="put a copy of the file itself there")


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, completely or not at all.

    Args:
        path: the file.
        text: its content; characters that UTF-8 cannot encode are written as escapes.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file completely or not at all.

    Args:
        path: the file.
        data: its content.
    """
    with atomic_write(path) as temporary:
        write_at(temporary, data)


def write_at(path: Path, data: bytes, offset: int = 0) -> None:
    """Write ``data`` at ``offset`` and cut off the rest. Not atomic: for temporary files and logs.

    Args:
        path: the file; a symbolic link is refused, because its target belongs to somebody else.
        data: the bytes.
        offset: the position of the first byte.
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


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; refuse links, pipes and devices, which may never end.

    Args:
        path: the file.
        max_bytes: the largest size to read.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    fd = _open_regular_file(path, os.O_RDONLY | _O_NOFOLLOW)
    with os.fdopen(fd, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"larger than {format_bytes(max_bytes)}")
    return content


def _open_regular_file(path: Path, flags: int) -> int:
    """Return a descriptor of a regular file; raise `OSError` for anything else."""
    try:
        fd = os.open(path, flags | _O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, or a pipe that nobody reads
            raise OSError(NOT_REGULAR) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(NOT_REGULAR)
    return fd


def make_folder(path: Path) -> tuple[Path, ...]:
    """Create a folder and its parents; return those that are new, the deepest first.

    Raises:
        MachineError: the folder exists, or cannot be created.
    """
    with _translate_os_errors(path):
        missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        path.mkdir(parents=True)
    return missing


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove the folders that `make_folder` created, if they are still empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder; rename it first, so that its name never holds half of it."""
    if path.exists():
        with _translate_os_errors(path):
            trash = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
            path.replace(trash)
        shutil.rmtree(trash, ignore_errors=True)


def remove_temporary(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed processes left behind.

    Args:
        folder: the folder of the final files.
        name: the final name whose temporary files go; all of them if empty.
    """
    for leftover in folder.glob(f".{glob.escape(name)}.{'?' * 8}.part" if name else ".*.part"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def check_free_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Check that a disk has enough free space.

    Args:
        folder: a folder on that disk; it need not exist yet.
        n_bytes: the bytes to write.
        purpose: the things to write, for the message.

    Raises:
        MachineError: the disk has less free space.
    """
    existing_folder = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing_folder).free
    if free < n_bytes:
        needed, available = format_bytes(n_bytes), format_bytes(free)
        amounts = f"needs {needed}, {available if available != needed else 'slightly less is'} free"
        what = f"not enough disk space for {purpose}: {amounts}"
        raise MachineError(what, where=str(folder), fix=f"{_DISK_FULL_FIX}: --out")


class LogFile:
    """Appends lines to a file. Lines that the disk refuses wait, in order, for the next attempt.

    ``size`` counts the bytes of complete lines; the next line overwrites anything after them.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path, self.size = path, size
        self._pending: list[str] = []

    def add(self, line: str) -> None:
        """Append a line now, or later if the disk refuses it."""
        self._pending.append(line)
        with contextlib.suppress(OSError):
            self._flush()

    def sync(self) -> int:
        """Flush all lines to the disk and return the size of the file in bytes.

        Raises:
            MachineError: the disk refuses a line.
        """
        with _translate_os_errors(self.path):
            self._flush()
            _fsync(self.path)
        return self.size

    def _flush(self) -> None:
        text = "".join(line + "\n" for line in self._pending).encode()
        if _is_hard_link(self.path):  # the file is also somebody else's, such as a backup
            write_bytes(self.path, self.path.read_bytes()[: self.size])
        write_at(self.path, text, self.size)
        self.size += len(text)
        self._pending.clear()


@contextlib.contextmanager
def atomic_write(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write to; rename it to ``path`` if the body succeeds.

    Args:
        path: the final file.
        exclusive: refuse to replace a file of that name.

    Raises:
        MachineError: the disk is full, or ``path`` is not a regular file.
        UsageError: ``exclusive``, and ``path`` exists.
    """
    with _translate_os_errors(path):
        if path.exists() and not path.is_file():  # a rename would replace a device or a pipe
            raise MachineError(f"cannot write: {NOT_REGULAR}", where=str(path), fix=_OTHER_FOLDER_FIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary_name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(fd)
        temporary = Path(temporary_name)
        try:
            yield temporary
            _fsync(temporary)
            temporary.chmod(0o666 & ~_get_umask())
            if exclusive and os.path.lexists(path):
                raise file_exists_error(path)
            temporary.replace(path)
            _fsync(path.parent)  # else a power cut can lose the new name
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[bool]:
    """Hold the lock of ``path`` while the body runs; yield False if another process holds it.

    The lock is a hidden file next to ``path``, so that ``path`` itself may be renamed or replaced meanwhile. On file
    systems without locks every process gets True.
    """
    from filelock import FileLock, Timeout

    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_path, blocking=False, fallback_to_soft=False)
    with _translate_os_errors(path):
        path.parent.stat()  # filelock would create a folder that is missing
        is_locked = True
        try:
            lock.acquire()
        except Timeout:
            is_locked = False
        except OSError as error:
            if error.errno not in _NO_LOCK_ERRORS:
                raise
    try:
        yield is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                lock_path.unlink()  # under the lock: filelock opens the file again if it has lost its name
            lock.release()


def publish(temporary: Path, path: Path, record: Path) -> bool:
    """Rename a complete file to its final name and remove its record; return False if the name is taken.

    If the process is killed meanwhile, the file has one of the two names.

    Args:
        temporary: the complete file, already flushed to the disk.
        path: the final name.
        record: the file that describes ``temporary`` while it is incomplete.
    """
    if os.path.lexists(path):
        return False
    with _translate_os_errors(path):
        temporary.rename(path)
        record.unlink(missing_ok=True)
        _fsync(path.parent)
    return True


def file_exists_error(path: Path) -> UsageError:
    """Return the error for a new file whose name is taken."""
    return UsageError("this file already exists", where=str(path), fix="name another, or remove it")


@contextlib.contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; rename it to ``path``, which must not exist, if the body succeeds."""
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
        fix = _DISK_FULL_FIX if _is_disk_full(error) else _OTHER_FOLDER_FIX
        raise MachineError(f"cannot write: {reason}", where=str(path), fix=fix) from error


def _is_disk_full(error: OSError) -> bool:
    """Return True for a full disk; NumPy reports one by its message only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)


def _is_hard_link(path: Path) -> bool:
    """Return whether a regular file has more names than this one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


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
