"""CIFAR-10 and CIFAR-100 in their binary version, as an archive or unpacked.

A record is a label (two in CIFAR-100: coarse, then fine, which is the one used) and 3 x 32 x 32 bytes. The Python
version of the same archives holds pickles, which can run code, so it is refused.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.learn.data import Arrays, Data

_PIXELS = 3 * 32 * 32
_MOST_BYTES = 200_000_000  # the largest file, train.bin of CIFAR-100, has 154 million
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
    classes = tuple(line for line in found[version.names].decode("utf-8", "replace").split("\n") if line.strip())
    parts = {part: _part(path, files, found, version.labels, len(classes)) for part, files in version.parts.items()}
    return Data(name, tuple(map(str.strip, classes)), dict(parts))


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


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files that are known by name; nothing is unpacked to the disk."""
    try:
        with tarfile.open(archive, "r:*") as opened:
            for count, member in enumerate(opened):
                place = PurePosixPath(member.name)
                if _is_pickled(list(place.parts[:-1]), [place.name]):
                    raise _refuse_pickles(archive)
                if count >= _MOST_MEMBERS:
                    raise DataError("this archive is not CIFAR: it has too many files", where=str(archive), fix=_TAKE)
                stream = opened.extractfile(member) if place.name in _WANTED and member.isreg() else None
                if stream:
                    yield place.name, stream.read(_MOST_BYTES)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"this archive cannot be read: {reason}", where=str(archive), fix=_TAKE) from None


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
