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

from resnetkit.data.dataset import Dataset, ImageArrays, is_text
from resnetkit.errors import DataError

_PIXEL_BYTES = 3 * 32 * 32
_MAX_BYTES = 200_000_000  # all of CIFAR-100 together has 185 million
_MAX_NAME_BYTES = 65_536  # bytes of names
_MAX_MEMBERS = 100
_PICKLE_NAMES = ("data_batch_1", "batches.meta", "meta")


@dataclass(frozen=True)
class _CifarVersion:
    names_file: str
    n_labels: int
    splits: dict[str, tuple[str, ...]]


_VERSIONS = (
    _CifarVersion(
        "batches.meta.txt",
        1,
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    ),
    _CifarVersion("fine_label_names.txt", 2, {"train": ("train.bin",), "test": ("test.bin",)}),
)
_KNOWN_FILES = {file for version in _VERSIONS for files in version.splits.values() for file in files}
_KNOWN_FILES |= {version.names_file for version in _VERSIONS}


def is_cifar(folder: Path) -> bool:
    """Whether an unpacked archive stands here, of either kind."""
    return any((folder / version.names_file).is_file() for version in _VERSIONS) or _is_pickled(
        [folder.name], [name for name in _PICKLE_NAMES if (folder / name).is_file()]
    )


def open_cifar(path: Path, name: str) -> Dataset:
    """An archive or the folder it unpacks to; raises `DataError` for another one, or one that is not whole."""
    contents = dict(_read_folder(path) if path.is_dir() else _read_archive(path))
    version = next((version for version in _VERSIONS if version.names_file in contents), None)
    if version is None:
        raise DataError("this archive holds no CIFAR in its binary version", where=str(path), fix=_USE_BINARY)
    classes = _parse_class_names(path, contents[version.names_file])
    splits = {
        split: _build_split(path, files, contents, version.n_labels, len(classes))
        for split, files in version.splits.items()
    }
    return Dataset(name, classes, dict(splits))


def _parse_class_names(path: Path, content: bytes) -> tuple[str, ...]:
    """The names of the classes, one a line; the last lines may be empty."""
    lines = content[:_MAX_NAME_BYTES].decode("utf-8", "replace").rstrip().splitlines()
    names = tuple(line.strip() for line in lines)
    if len(set(names)) < len(names) or not all(name and is_text(name) for name in names) or not names:
        raise DataError("the names of the classes are not sound", where=str(path), fix=_USE_BINARY)
    return names


_USE_BINARY = "take the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"


def _is_pickled(folders: list[str], files: list[str]) -> bool:
    return "data_batch_1" in files or ("meta" in files and "cifar-100-python" in folders)


def _build_pickle_error(path: Path) -> DataError:
    what = "this is the Python version of CIFAR: its files are pickles, which can run code, so none is read"
    return DataError(what, where=str(path), fix=_USE_BINARY)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    if not any((folder / version.names_file).is_file() for version in _VERSIONS):
        raise _build_pickle_error(folder)
    for name in sorted(_KNOWN_FILES):
        file = folder / name
        if file.is_file():
            with file.open("rb") as stream:
                yield name, stream.read(_MAX_BYTES)


class _BoundedStream(io.RawIOBase):
    """A stream that ends with an error after so many bytes: what an archive unpacks to need not be what it says."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, max_bytes: int) -> None:
        self._stream, self._remaining = stream, max_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(self._remaining + 1 if size < 0 else size)
        self._remaining -= len(chunk)
        if self._remaining < 0:
            raise ValueError("it unpacks to far more than CIFAR")
        return chunk


def _read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files that are known by name, read in one pass; nothing is unpacked to the disk."""
    try:
        with archive.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _BoundedStream(gzip.GzipFile(fileobj=file) if is_gzip else file, _MAX_BYTES)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield from _read_known_members(tar, archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"this archive cannot be read: {reason}", where=str(archive), fix=_USE_BINARY) from None


def _read_known_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, bytes]]:
    for index, member in enumerate(tar):
        member_path = PurePosixPath(member.name)
        if _is_pickled(list(member_path.parts[:-1]), [member_path.name]):
            raise _build_pickle_error(archive)
        if index >= _MAX_MEMBERS:
            raise DataError("this archive is not CIFAR: it has too many files", where=str(archive), fix=_USE_BINARY)
        stream = tar.extractfile(member) if member_path.name in _KNOWN_FILES and member.isreg() else None
        if stream:
            yield member_path.name, stream.read()


def _build_split(
    path: Path, files: tuple[str, ...], contents: Mapping[str, bytes], n_labels: int, n_classes: int
) -> ImageArrays:
    missing = [file for file in files if file not in contents]
    if missing:
        raise DataError(f"a file is missing: {missing[0]}", where=str(path), fix=_USE_BINARY)
    records = np.concatenate([_parse_records(path, file, contents[file], n_labels) for file in files])
    class_indices = records[:, n_labels - 1].astype(np.int64)
    if class_indices.max() >= n_classes:
        raise DataError(
            f"a label is {class_indices.max()}, and there are {n_classes} classes", where=str(path), fix=_USE_BINARY
        )
    pixels = records[:, n_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = tuple(f"{file}:{i}" for file in files for i in range(len(contents[file]) // (n_labels + _PIXEL_BYTES)))
    return ImageArrays(np.ascontiguousarray(pixels), names, class_indices)


def _parse_records(path: Path, file: str, content: bytes, n_labels: int) -> NDArray[np.uint8]:
    if not content or len(content) % (n_labels + _PIXEL_BYTES):
        what = f"{file} has {len(content):,} bytes, which is no whole number of pictures"
        raise DataError(what, where=str(path), fix="copy or download it again")
    return np.frombuffer(content, np.uint8).reshape(-1, n_labels + _PIXEL_BYTES)
