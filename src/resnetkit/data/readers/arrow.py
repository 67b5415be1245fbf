"""Read Arrow files: those of ``save_to_disk`` of Hugging Face datasets, and the cached copies of Parquet files.

A file is memory-mapped only while it is opened, and only the offsets of its images are read.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import ALIAS_TO_SPLIT, COPY_AGAIN, Dataset
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.data.readers import columns as arrow_columns
from resnetkit.data.readers.row_index import NO_BYTES, PATH_ONLY, Indices, Shard, get_file_stamp
from resnetkit.errors import DataError, UsageError
from resnetkit.formatting import join_names
from resnetkit.serialization import parse_json, read_text

_STATE_FILE, _SPLITS_FILE = "state.json", "dataset_dict.json"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_COMPRESSED = "it is compressed; save it again without compression"


def is_saved_dataset(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of Hugging Face datasets wrote this folder."""
    return (folder / _STATE_FILE).is_file() or (folder / _SPLITS_FILE).is_file()


def open_saved_dataset(root: Path, name: str, options: DataOptions = DEFAULT_DATA_OPTIONS) -> Dataset:
    """Open a folder that ``save_to_disk`` wrote, of a dataset with or without splits.

    Args:
        root: The folder.
        name: The folder as the user wrote it.
        options: The names of the columns.
    """
    arrow_columns.check_pyarrow()
    folders, unknown_splits = _find_splits(root)
    read = partial(_read_labeled, root, options)
    files = {split: list(map(read, _list_files(folder))) for split, folder in folders.items()}
    columns = check_same_columns(name, [file_columns for pairs in files.values() for file_columns, _ in pairs])
    shards = {split: [shard for _, shard in pairs] for split, pairs in files.items()}
    return arrow_columns.build_dataset(name, columns, shards, {"splits of unknown names": unknown_splits})


def check_same_columns(name: str, all_columns: list[arrow_columns.DatasetColumns]) -> arrow_columns.DatasetColumns:
    """Return the columns that all files have.

    Args:
        name: The dataset, for errors.
        all_columns: The columns of each file.

    Raises:
        DataError: two files differ.
    """
    for columns in all_columns[1:]:
        if columns != all_columns[0]:
            what, pair = "two files differ in their columns or classes", (all_columns[0], columns)
            details = [f"{item.image}, {item.label}: {join_names(item.classes)}" for item in pair]
            raise DataError(what, where=[name, *details], fix="write them again with the same columns and classes")
    return all_columns[0]


def _find_splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, and the unknown split names."""
    if not (root / _SPLITS_FILE).is_file():
        return {"all": root}, []
    names = [name for name in _read_list(root / _SPLITS_FILE, "splits") if _is_file_name(name)]
    splits = {ALIAS_TO_SPLIT[name.lower()]: root / name for name in names if name.lower() in ALIAS_TO_SPLIT}
    if not splits:
        what = f"the data have only unknown splits: {join_names(names)}"
        raise DataError(what, where=str(root), fix="name the splits train, validation and test")
    return splits, [name for name in names if name.lower() not in ALIAS_TO_SPLIT]


def _list_files(folder: Path) -> list[Path]:
    """List the Arrow files of a dataset in the order of its rows; all must be in the folder itself."""
    entries = _read_list(folder / _STATE_FILE, "_data_files")
    names: list[Any] = [entry.get("filename") if isinstance(entry, Mapping) else None for entry in entries]
    if not names or not all(map(_is_file_name, names)):
        raise DataError("the folder does not list its data files", where=str(folder / _STATE_FILE), fix=COPY_AGAIN)
    return [folder / name for name in names]


def _is_file_name(name: Any) -> bool:
    """Return whether this is the name of an entry of the same folder, not a path elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_list(path: Path, key: str) -> list[Any]:
    try:
        return arrow_columns.get_or_empty(parse_json(read_text(path, path.name), path.name), key, list)
    except UsageError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=COPY_AGAIN) from None


def _read_labeled(
    root: Path, options: DataOptions, path: Path
) -> tuple[arrow_columns.DatasetColumns, arrow_columns.LabeledShard]:
    import pyarrow

    with translate_pyarrow_errors(path):
        arrow_file = open_arrow_file(path)
        columns = arrow_columns.detect_columns(arrow_file.schema, path, options)
        batches = list(arrow_file.iter_batches(columns.image, columns.label))
        chunks = [batch.column(columns.label) for batch in batches]
        labels = pyarrow.chunked_array(chunks, arrow_file.schema.field(columns.label).type)
        images = [batch.column(columns.image) for batch in batches]
        shard = arrow_file.build_shard(path.relative_to(root).as_posix(), path, images)
        return columns, arrow_columns.LabeledShard(shard, *arrow_columns.encode_labels(labels))


@contextlib.contextmanager
def translate_pyarrow_errors(path: Path) -> Iterator[None]:
    """Turn the errors that pyarrow raises for a damaged file into `DataError`.

    Raises:
        DataError: the file cannot be read.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"cannot read the file: {reason}", where=str(path), fix=COPY_AGAIN) from None


@dataclass(frozen=True)
class ArrowFile:
    """A memory-mapped Arrow file in the stream format."""

    path: Path
    stamp: tuple[int, int]
    buffer: Any
    schema: Any

    def iter_batches(self, *columns: str) -> Iterator[Any]:
        """Yield the record batches with these columns, after checking that their offsets are in the file.

        Raises:
            ValueError: the file is compressed.
        """
        from pyarrow import ipc

        fields = sorted(self.schema.get_field_index(name) for name in columns)
        options = ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        for batch in ipc.open_stream(self.buffer, options=options):
            batch.validate(full=True)
            if batch.nbytes > self.buffer.size:
                raise ValueError(_COMPRESSED)
            yield batch

    def build_shard(self, name: str, path: Path, chunks: list[Any]) -> Shard:
        """Locate the bytes of each row.

        Args:
            name: The name of the file relative to the dataset.
            path: The file that the user named.
            chunks: The image column of each record batch.
        """
        row_ranges = [_locate_rows(chunk, self.buffer) for chunk in chunks] or [(np.zeros(0, np.int64),) * 2]
        starts, sizes = (np.concatenate(column) for column in zip(*row_ranges, strict=True))
        return Shard(name, path, self.path, self.stamp, starts, sizes)


def open_arrow_file(path: Path) -> ArrowFile:
    """Map an Arrow file into memory.

    Raises:
        ValueError: the file is truncated, or not an Arrow file.
    """
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        buffer = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if buffer[-len(_END_OF_STREAM) :].to_pybytes() != _END_OF_STREAM:
        raise ValueError("it is truncated, or not an Arrow file")
    return ArrowFile(path, get_file_stamp(status), buffer, ipc.open_stream(buffer).schema)


def _locate_rows(chunk: Any, buffer: Any) -> tuple[Indices, Indices]:
    """Return the offset and the size in bytes of each row; the size is negative if it has no bytes."""
    is_struct = hasattr(chunk, "flatten") and chunk.type.num_fields > 0
    array = chunk.field("bytes") if is_struct else chunk
    _, offsets, data = array.buffers()
    offset_type: Any = np.int64 if array.type.equals("large_binary") else np.int32
    row_offsets: NDArray[Any] = np.frombuffer(offsets, offset_type)[array.offset : array.offset + len(array) + 1]
    data_start = data.address - buffer.address if data is not None else 0
    if data is not None and not 0 <= data_start <= data_start + data.size <= buffer.size:
        raise ValueError(_COMPRESSED)
    starts, sizes = data_start + row_offsets[:-1].astype(np.int64), np.diff(row_offsets).astype(np.int64)
    sizes[_get_null_mask(array)] = NO_BYTES
    if is_struct:
        if chunk.type.get_field_index("path") >= 0:
            sizes[_get_null_mask(array) & ~_get_null_mask(chunk.field("path"))] = PATH_ONLY
        sizes[_get_null_mask(chunk)] = NO_BYTES
    return starts, sizes


def _get_null_mask(chunk: Any) -> NDArray[np.bool_]:
    return arrow_columns.convert_to_int64(chunk.is_null()).astype(bool)
