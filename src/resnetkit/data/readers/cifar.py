"""CIFAR-10 and CIFAR-100 in their binary version, as an archive or unpacked.

A record is a label (two in CIFAR-100: coarse, then fine, which is the one used) and 3 x 32 x 32 bytes. The Python
version of the same archives holds pickles, which can run code, so it is refused.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import Arrays, Data, is_text
from resnetkit.errors import DataError

_PIXELS = 3 * 32 * 32
_MOST_BYTES = 200_000_000  # all of CIFAR-100 together has 185 million
_MOST_NAMES = 65_536  # bytes of names
_MOST_MEMBERS = 100
_PICKLES = ("data_batch_1", "batches.meta", "meta")


@dataclass(frozen=True)
class _Version:
    names: str
    labels: int
    parts: dict[str, tuple[str, ...]]


_VERSIONS = (
    _Version(
        "batches.meta.txt",
        1,
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    ),
    _Version("fine_label_names.txt", 2, {"train": ("train.bin",), "test": ("test.bin",)}),
)
_WANTED = {file for version in _VERSIONS for part in version.parts.values() for file in part}
_WANTED |= {version.names for version in _VERSIONS}


def is_cifar(folder: Path) -> bool:
    """Whether an unpacked archive stands here, of either kind."""
    return any((folder / version.names).is_file() for version in _VERSIONS) or _is_pickled(
        [folder.name], [name for name in _PICKLES if (folder / name).is_file()]
    )


def open_cifar(path: Path, name: str) -> Data:
    """An archive or the folder it unpacks to; raises `DataError` for another one, or one that is not whole."""
    found = dict(_unpacked(path) if path.is_dir() else _members(path))
    version = next((version for version in _VERSIONS if version.names in found), None)
    if version is None:
        raise DataError("this archive holds no CIFAR in its binary version", where=str(path), fix=_TAKE)
    classes = _names(path, found[version.names])
    parts = {part: _part(path, files, found, version.labels, len(classes)) for part, files in version.parts.items()}
    return Data(name, classes, dict(parts))


def _names(path: Path, content: bytes) -> tuple[str, ...]:
    """The names of the classes, one a line; the last lines may be empty."""
    lines = content[:_MOST_NAMES].decode("utf-8", "replace").rstrip().splitlines()
    names = tuple(line.strip() for line in lines)
    if len(set(names)) < len(names) or not all(name and is_text(name) for name in names) or not names:
        raise DataError("the names of the classes are not sound", where=str(path), fix=_TAKE)
    return names


_TAKE = "take the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"


def _is_pickled(folders: list[str], files: list[str]) -> bool:
    return "data_batch_1" in files or ("meta" in files and "cifar-100-python" in folders)


def _refuse_pickles(path: Path) -> DataError:
    what = "this is the Python version of CIFAR: its files are pickles, which can run code, so none is read"
    return DataError(what, where=str(path), fix=_TAKE)


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    if not any((folder / version.names).is_file() for version in _VERSIONS):
        raise _refuse_pickles(folder)
    for name in sorted(_WANTED):
        file = folder / name
        if file.is_file():
            with file.open("rb") as opened:
                yield name, opened.read(_MOST_BYTES)


class _Bounded(io.RawIOBase):
    """A stream that ends with an error after so many bytes: what an archive unpacks to need not be what it says."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, most: int) -> None:
        self._stream, self._left = stream, most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self._stream.read(self._left + 1 if size < 0 else size)
        self._left -= len(found)
        if self._left < 0:
            raise ValueError("it unpacks to far more than CIFAR")
        return found


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files that are known by name, read in one pass; nothing is unpacked to the disk."""
    try:
        with archive.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=file) if zipped else file, _MOST_BYTES)
            with tarfile.open(fileobj=stream, mode="r|") as opened:
                yield from _known_members(opened, archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"this archive cannot be read: {reason}", where=str(archive), fix=_TAKE) from None


def _known_members(opened: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, bytes]]:
    for count, member in enumerate(opened):
        place = PurePosixPath(member.name)
        if _is_pickled(list(place.parts[:-1]), [place.name]):
            raise _refuse_pickles(archive)
        if count >= _MOST_MEMBERS:
            raise DataError("this archive is not CIFAR: it has too many files", where=str(archive), fix=_TAKE)
        stream = opened.extractfile(member) if place.name in _WANTED and member.isreg() else None
        if stream:
            yield place.name, stream.read()


def _part(path: Path, files: tuple[str, ...], found: Mapping[str, bytes], labels: int, classes: int) -> Arrays:
    absent = [file for file in files if file not in found]
    if absent:
        raise DataError(f"a file is missing: {absent[0]}", where=str(path), fix=_TAKE)
    records = np.concatenate([_records(path, file, found[file], labels) for file in files])
    numbers = records[:, labels - 1].astype(np.int64)
    if numbers.max() >= classes:
        raise DataError(f"a label is {numbers.max()}, and there are {classes} classes", where=str(path), fix=_TAKE)
    pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = tuple(f"{file}:{i}" for file in files for i in range(len(found[file]) // (labels + _PIXELS)))
    return Arrays(np.ascontiguousarray(pixels), names, numbers)


def _records(path: Path, file: str, content: bytes, labels: int) -> NDArray[np.uint8]:
    if not content or len(content) % (labels + _PIXELS):
        what = f"{file} has {len(content):,} bytes, which is no whole number of pictures"
        raise DataError(what, where=str(path), fix="copy or download it again")
    return np.frombuffer(content, np.uint8).reshape(-1, labels + _PIXELS)
