"""The identity of a dataset: digests of the contents of its images, never their names alone.

An image is identified by its bytes in a file or a row, or by its pixels in an array. Files of up to 4 MiB are hashed
completely; of larger ones the size and 64 parts are hashed. The digests of files are cached in the cache folder of
resnetkit, by path, size, modification time, change time and inode. A file that changed less than two seconds ago is not
cached, as a file system may give two changes the same time.

This module imports no torch.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit import files
from resnetkit.data.dataset import Dataset, ImageArrays, ImageFiles, Images
from resnetkit.data.readers.row_index import ImageRows
from resnetkit.errors import ImageError, MachineError, WeightsError
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.runtime.threads import map_ordered

Digests = NDArray[np.uint8]  # (N, 16); zeros for an unreadable image
ImageIds = NDArray[np.uint64]  # (N,): the first 48 bits of each digest

MIN_CACHED_BYTES = 8 * 2**20  # hashing less is as fast as reading the cache
SETTLED_NS = 2 * 10**9  # the age from which on a file is cached
_WHOLE_BYTES, _PART_BYTES, _N_PARTS = 4 * 2**20, 2**16, 64
_DIGEST_BYTES, _ID_BYTES, _KEY_BYTES, _CHECKSUM_BYTES = 16, 6, 8, 32
_ID_SHIFT = np.uint64(64 - 8 * _ID_BYTES)
_UNREADABLE = bytes(_DIGEST_BYTES)
_CHUNK_SIZE = 50  # images per task, as progress is shown every 50 images
_HEADER = ("split", "class", "name", "digest")


@dataclass(frozen=True)
class DatasetIdentity:
    """The content of a dataset.

    Attributes:
        table: A CSV table with a header and the split, class, name and digest of each image, in the order of training.
        digests: Split -> the digests of its images.
    """

    table: str
    digests: dict[str, Digests]

    @cached_property
    def digest(self) -> str:
        """The digest of the table. It differs if an image, its name, class or split, or the order differs."""
        return hash_table(self.table)

    @cached_property
    def fingerprint(self) -> str:
        """The digest of classes and contents, in any order, in any splits and under any names."""
        rows = csv.reader(io.StringIO(self.table))
        return hash_table("\n".join(sorted(f"{class_name}\0{digest}" for _, class_name, _, digest in rows)))

    def get_ids(self, split: str) -> ImageIds:
        """Return the identifiers of the images of a split."""
        return convert_to_ids(self.digests[split])


def identify_dataset(
    dataset: Dataset, on_progress: ProgressCallback | None = None, workers: int | None = None
) -> DatasetIdentity:
    """Read the content of every image of a dataset once.

    Args:
        dataset: The dataset.
        on_progress: Called with (images done, all images).
        workers: The number of reader threads; None for one per core.
    """
    n_images, n_done = sum(map(len, dataset.splits.values())), 0
    cache = _DigestCache(dataset.name)
    digests: dict[str, Digests] = {}
    for split, images in dataset.splits.items():
        parts = []
        for part in _iter_digests(images, cache, count_cores() if workers is None else workers):
            parts.append(part)
            n_done += len(part)
            if on_progress:
                on_progress(n_done, n_images)
        digests[split] = np.concatenate([np.zeros((0, _DIGEST_BYTES), np.uint8), *parts])
    cache.save()
    return DatasetIdentity(_format_table(dataset, digests), digests)


def hash_table(table: str) -> str:
    """Hash the text of a table of images."""
    return hashlib.blake2b(table.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _format_table(dataset: Dataset, digests: dict[str, Digests]) -> str:
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(_HEADER)
    for split, images in dataset.splits.items():
        rows = zip(images.labels.tolist(), images.names, digests[split], strict=True)
        writer.writerows((split, dataset.classes[k], _escape(name), row.tobytes().hex()) for k, name, row in rows)
    return output.getvalue()


def _escape(name: str) -> str:
    """Escape line ends and bytes that are not UTF-8, so that the table is text with a line per image."""
    return name.encode("utf-8", "backslashreplace").decode().replace("\r", "\\r").replace("\n", "\\n")


# ------------------------------------------------------------------------------------------------------------- contents


def digest_image(images: Images, i: int) -> bytes:
    """Hash the content of an image: 16 bytes, which are zeros if it cannot be read.

    Args:
        images: The images.
        i: The index of the image.
    """
    try:
        if isinstance(images, ImageArrays):
            return _hash(np.ascontiguousarray(images.pixels[i]).data)
        if isinstance(images, ImageRows):
            return _hash(images.read_content(i))
        return _digest_file(images.paths[i])
    except (OSError, ImageError):
        return _UNREADABLE


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _digest_file(path: Path) -> bytes:
    """Hash a file, or its size and parts at equal distances, the first and the last bytes among them."""
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may never end
        return _UNREADABLE
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE_BYTES:
            return _hash(file.read())
        hasher = hashlib.blake2b(f"{size}\0".encode(), digest_size=_DIGEST_BYTES)
        for k in range(_N_PARTS):
            file.seek(k * (size - _PART_BYTES) // (_N_PARTS - 1))
            hasher.update(file.read(_PART_BYTES))
        return hasher.digest()


def _iter_digests(images: Images, cache: _DigestCache, workers: int) -> Iterator[Digests]:
    """Yield the digests of the images in order, in arrays of up to 50."""
    chunks = [range(i, min(i + _CHUNK_SIZE, len(images))) for i in range(0, len(images), _CHUNK_SIZE)]
    read = partial(_digest_chunk, images, cache)
    for digests in map_ordered(read, chunks, workers, lambda chunk: images.format_location(chunk[0])):
        yield np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)


def _digest_chunk(images: Images, cache: _DigestCache, chunk: range) -> list[bytes]:
    if isinstance(images, ImageArrays):
        return [digest_image(images, i) for i in chunk]
    return [cache.get_digest(images, i) for i in chunk]


# ---------------------------------------------------------------------------------------------------------------- cache


class _DigestCache:
    """Digests by the path and the status of a file: one file of the cache folder for each dataset.

    A cache file holds 24 bytes per image, a key and a digest, and the SHA-256 of these. It is replaced as a whole, so
    that several processes may use it. If it is damaged or cannot be written, the images are read again.
    """

    def __init__(self, dataset_name: str) -> None:
        name = _hash(os.fsencode(Path(dataset_name).absolute())).hex()
        self.path = files.get_cache_folder() / "identity" / f"{name}.bin"
        self._keys, self._digests = _read_cache(self.path)
        self._entries: dict[int, bytes] = {}
        self._n_new_bytes, self._start_ns = 0, time.time_ns()

    def get_digest(self, images: ImageFiles | ImageRows, i: int) -> bytes:
        """Return the digest of an image, from the cache if its file is unchanged."""
        try:
            path, row = _locate(images, i)
            status = path.stat()
        except OSError:
            return _UNREADABLE
        key = _make_key(path, row, status)
        position = int(np.searchsorted(self._keys, np.uint64(key)))
        if position < len(self._keys) and int(self._keys[position]) == key:
            digest = bytes(self._digests[position])
        else:
            digest = digest_image(images, i)
            self._n_new_bytes += images.get_byte_size(i) if isinstance(images, ImageRows) else status.st_size
        if max(status.st_mtime_ns, status.st_ctime_ns) < self._start_ns - SETTLED_NS and digest != _UNREADABLE:
            self._entries[key] = digest
        return digest

    def save(self) -> None:
        """Write the cache if much was read; a cache folder that cannot be written is ignored."""
        if self._n_new_bytes < MIN_CACHED_BYTES or not self._entries:
            return
        rows = b"".join(key.to_bytes(_KEY_BYTES, "big") + self._entries[key] for key in sorted(self._entries))
        content = rows + hashlib.sha256(rows).digest()
        with contextlib.suppress(MachineError, OSError), files.atomic_write(self.path) as temporary:
            temporary.write_bytes(content)
            if temporary.read_bytes() != content:
                raise OSError("the cache reads back otherwise than it was written")


def _locate(images: ImageFiles | ImageRows, i: int) -> tuple[Path, int | None]:
    """Return the file of an image, and its row if the file has rows."""
    if isinstance(images, ImageFiles):
        return images.paths[i], None
    shard, row = images.locate_row(i)
    return shard.path, row


def _make_key(path: Path, row: int | None, status: os.stat_result) -> int:
    fields = (row, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    text = os.fsencode(path.absolute()) + "\0".join(map(str, ("", *fields))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_KEY_BYTES).digest(), "big")


def _read_cache(path: Path) -> tuple[NDArray[np.uint64], Digests]:
    """Read the ascending keys and the digests of a cache file; none if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    rows, checksum, row_bytes = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:], _KEY_BYTES + _DIGEST_BYTES
    if len(rows) % row_bytes or hashlib.sha256(rows).digest() != checksum:
        rows = b""
    table = np.frombuffer(rows, np.uint8).reshape(-1, row_bytes)
    return np.ascontiguousarray(table[:, :_KEY_BYTES]).view(">u8").ravel().astype(np.uint64), table[:, _KEY_BYTES:]


# ----------------------------------------------------------------------------------------------------- known images


def convert_to_ids(digests: Digests) -> ImageIds:
    """Return the first 48 bits of each digest as a number; 0 stands for an unreadable image."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64) >> _ID_SHIFT


def encode_ids(*ids: ImageIds) -> str:
    """Encode sets of images as text, 8 characters for each image; unreadable images are omitted."""
    unique = np.unique(np.concatenate([np.zeros(0, np.uint64), *ids]))
    columns = unique[unique > 0].astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - _ID_BYTES :]
    return base64.b64encode(columns.tobytes()).decode()


def decode_ids(text: str) -> ImageIds:
    """Decode the text of `encode_ids`.

    Raises:
        WeightsError: the text was not written by `encode_ids`.
    """
    try:
        content = base64.b64decode(text, validate=True)
        columns = np.frombuffer(content, np.uint8).reshape(-1, _ID_BYTES)
    except ValueError:
        raise WeightsError("the list of training images is damaged", fix="copy the whole model folder again") from None
    padded = np.pad(columns, ((0, 0), (8 - _ID_BYTES, 0)))
    return np.ascontiguousarray(padded).view(">u8").ravel().astype(np.uint64)


def find_leaks(dataset: Dataset, identity: DatasetIdentity) -> list[tuple[str, str]]:
    """Find images with the same content in different splits.

    Args:
        dataset: The dataset.
        identity: The identity of the dataset.

    Returns:
        (location, location in another split) of each pair.
    """
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for split, digests in identity.digests.items():
        for i, digest in enumerate(map(bytes, digests)):
            groups[digest].append((split, i))
    groups.pop(_UNREADABLE, None)
    pairs = [(group[0], copy) for group in groups.values() for copy in group[1:] if copy[0] != group[0][0]]
    return [(_format_location(dataset, *first), _format_location(dataset, *second)) for first, second in pairs]


def _format_location(dataset: Dataset, split: str, i: int) -> str:
    return dataset.splits[split].format_location(i)


# -------------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class ImageChange:
    """An image that differs between two tables; ``index`` is its position in the split, -1 if it is missing."""

    split: str
    name: str
    index: int
    description: str

    def __str__(self) -> str:
        return f"{self.split}: {self.name} {self.description}"


def diff_tables(previous: str, current: str) -> list[ImageChange]:
    """Find the images that differ between two tables of `DatasetIdentity`.

    Args:
        previous: The table to compare with.
        current: The table of the images as they are now.
    """
    old_rows, new_rows = _read_table(previous), _read_table(current)
    changes = [
        ImageChange(*key, new_rows[key].index if key in new_rows else -1, description)
        for key in (*old_rows, *(key for key in new_rows if key not in old_rows))
        if (description := _describe_change(old_rows.get(key), new_rows.get(key)))
    ]
    if not changes:
        moved = (key for key, old in old_rows.items() if old.index != new_rows[key].index)
        changes = [ImageChange(*key, new_rows[key].index, "has another position") for key in moved]
    return changes


@dataclass(frozen=True)
class _TableRow:
    class_name: str
    digest: str
    index: int


def _describe_change(old: _TableRow | None, new: _TableRow | None) -> str:
    if old is None:
        return "is new"
    if new is None:
        return "is missing"
    if old.digest != new.digest:
        return "was replaced"
    return f"has another class: {old.class_name} -> {new.class_name}" if old.class_name != new.class_name else ""


def _read_table(table: str) -> dict[tuple[str, str], _TableRow]:
    """Read a table as (split, name) -> class, digest and the position in the split."""
    rows: dict[tuple[str, str], _TableRow] = {}
    counts: dict[str, int] = defaultdict(int)
    for cells in list(csv.reader(io.StringIO(table)))[1:]:
        split, class_name, name, digest = cells
        rows[split, name] = _TableRow(class_name, digest, counts[split])
        counts[split] += 1
    return rows
