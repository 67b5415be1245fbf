"""Read CIFAR-10 and CIFAR-100 in their binary version, as an archive or a folder.

A record is one label byte and 3 x 32 x 32 pixel bytes. CIFAR-100 has two label bytes, coarse and fine; the fine one is
used. The Python version of the archives contains pickles, which can run code, so it is rejected.

This module imports no torch.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.class_names import is_text
from resnetkit.data.dataset import COPY_AGAIN, Dataset, ImageArrays
from resnetkit.errors import DataError

_PIXEL_BYTES = 3 * 32 * 32
_MAX_BYTES = 200_000_000  # CIFAR-100 has 185 million bytes
_MAX_NAME_BYTES, _MAX_MEMBERS = 65_536, 100
_PICKLE_NAMES = ("data_batch_1", "batches.meta", "meta")
_PYTHON_VERSION = "this is the Python version of CIFAR; its files are pickles, which can run code"
_USE_BINARY = "use the binary version: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"


@dataclass(frozen=True)
class _CifarVersion:
    names_file: str
    n_labels: int
    splits: dict[str, tuple[str, ...]]


_TEN_FILES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_VERSIONS = (
    _CifarVersion("batches.meta.txt", 1, _TEN_FILES),
    _CifarVersion("fine_label_names.txt", 2, {"train": ("train.bin",), "test": ("test.bin",)}),
)
_KNOWN_FILES = {file for version in _VERSIONS for file in (version.names_file, *chain(*version.splits.values()))}


def is_cifar(folder: Path) -> bool:
    """Return whether a folder is an unpacked archive, of the binary or the Python version."""
    pickles = [name for name in _PICKLE_NAMES if (folder / name).is_file()]
    return _has_binary_files(folder) or _is_pickled([folder.name], pickles)


def open_cifar(path: Path, name: str) -> Dataset:
    """Open an archive or the folder that it unpacks to.

    Args:
        path: The archive or the folder.
        name: The path as the user wrote it.

    Raises:
        DataError: it is not CIFAR in its binary version, or it is incomplete.
    """
    contents = dict(_read_folder(path) if path.is_dir() else _read_archive(path))
    for version in _VERSIONS:
        if version.names_file in contents:
            classes = _parse_class_names(path, contents[version.names_file])
            build_split = partial(_build_split, path, contents, version.n_labels, len(classes))
            return Dataset(name, classes, {split: build_split(files) for split, files in version.splits.items()})
    raise _build_error(path, "the archive does not contain CIFAR in its binary version")


def _build_error(path: Path, what: str, fix: str = _USE_BINARY) -> DataError:
    return DataError(what, where=str(path), fix=fix)


def _parse_class_names(path: Path, content: bytes) -> tuple[str, ...]:
    """Parse one class name per line; the last lines may be empty."""
    lines = content[:_MAX_NAME_BYTES].decode("utf-8", "replace").rstrip().splitlines()
    names = tuple(line.strip() for line in lines)
    if len(set(names)) < len(names) or not all(name and is_text(name) for name in names) or not names:
        raise _build_error(path, "class names are empty, repeated or not text")
    return names


def _has_binary_files(folder: Path) -> bool:
    return any((folder / version.names_file).is_file() for version in _VERSIONS)


def _is_pickled(folders: list[str], files: list[str]) -> bool:
    return "data_batch_1" in files or ("meta" in files and "cifar-100-python" in folders)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    if not _has_binary_files(folder):
        raise _build_error(folder, _PYTHON_VERSION)
    for name in sorted(_KNOWN_FILES):
        if (folder / name).is_file():
            with (folder / name).open("rb") as stream:
                yield name, stream.read(_MAX_BYTES)


class _BoundedStream(io.RawIOBase):
    """A stream that fails after ``max_bytes``, because the sizes that an archive declares may be false."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, max_bytes: int) -> None:
        self._stream, self._remaining = stream, max_bytes

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(self._remaining + 1 if size < 0 else size)
        self._remaining -= len(chunk)
        if self._remaining < 0:
            raise ValueError("it unpacks to far more bytes than CIFAR has")
        return chunk


def _read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files with known names in one pass; nothing is unpacked to the disk."""
    try:
        with archive.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _BoundedStream(gzip.GzipFile(fileobj=file) if is_gzip else file, _MAX_BYTES)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield from _read_known_members(tar, archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, RecursionError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _build_error(archive, f"cannot read the archive: {reason}") from None


def _read_known_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, bytes]]:
    for index, member in enumerate(tar):
        member_path = PurePosixPath(member.name)
        if _is_pickled(list(member_path.parts[:-1]), [member_path.name]):
            raise _build_error(archive, _PYTHON_VERSION)
        if index >= _MAX_MEMBERS:
            raise _build_error(archive, "the archive is not CIFAR: it has too many files")
        stream = tar.extractfile(member) if member_path.name in _KNOWN_FILES and member.isreg() else None
        if stream:
            yield member_path.name, stream.read()


def _build_split(
    path: Path, contents: Mapping[str, bytes], n_labels: int, n_classes: int, files: tuple[str, ...]
) -> ImageArrays:
    missing = [file for file in files if file not in contents]
    if missing:
        raise _build_error(path, f"a file is missing: {missing[0]}")
    records_of_file = {file: _parse_records(path, file, contents[file], n_labels) for file in files}
    records = np.concatenate(list(records_of_file.values()))
    labels = records[:, n_labels - 1].astype(np.int64)
    if labels.max() >= n_classes:
        raise _build_error(path, f"a label is {labels.max()}, but there are {n_classes} classes")
    pixels = records[:, n_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = tuple(f"{file}:{i}" for file, rows in records_of_file.items() for i in range(len(rows)))
    return ImageArrays(np.ascontiguousarray(pixels), names, labels)


def _parse_records(path: Path, file: str, content: bytes, n_labels: int) -> NDArray[np.uint8]:
    record_size = n_labels + _PIXEL_BYTES
    if not content or len(content) % record_size:
        what = f"{file} has {len(content):,} bytes, not a multiple of the record size {record_size:,}"
        raise _build_error(path, what, fix=COPY_AGAIN)
    return np.frombuffer(content, np.uint8).reshape(-1, record_size)
