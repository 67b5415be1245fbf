"""Arrow files: those that Hugging Face's datasets saves, and the copies of Parquet files.

A file is mapped while it is opened, and of its pictures only the offsets are read.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import ALIAS_TO_SPLIT, Dataset, join_names
from resnetkit.data.readers.columns import (
    DatasetColumns,
    LabeledShard,
    build_dataset,
    check_pyarrow,
    convert_to_int64,
    detect_columns,
    encode_labels,
)
from resnetkit.data.readers.row_index import NO_BYTES, PATH_ONLY, Indices, Shard, get_file_stamp
from resnetkit.errors import DataError, UsageError
from resnetkit.serialization import parse_json, read_text

_STATE_FILE, _SPLITS_FILE = "state.json", "dataset_dict.json"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_COPY_AGAIN = "copy or download it again"


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` of datasets wrote this folder."""
    return (folder / _STATE_FILE).is_file() or (folder / _SPLITS_FILE).is_file()


def open_saved_dataset(root: Path, name: str) -> Dataset:
    """What ``save_to_disk`` wrote, of a data set or of one with parts; raises `DataError`."""
    check_pyarrow()
    folders, unknown_splits = _find_splits(root)
    labeled_files = {
        split: [_read_labeled(file, root) for file in _list_files(folder)] for split, folder in folders.items()
    }
    columns = check_same_columns(name, [file_columns for files in labeled_files.values() for file_columns, _ in files])
    notes = [f"parts of other names were passed over: {join_names(unknown_splits)}"] * bool(unknown_splits)
    return build_dataset(
        name, columns, {split: [file for _, file in files] for split, files in labeled_files.items()}, notes
    )


def check_same_columns(name: str, all_columns: list[DatasetColumns]) -> DatasetColumns:
    """What all files say; raises `DataError` where two differ."""
    different = next((columns for columns in all_columns if columns != all_columns[0]), None)
    if different:
        what = "two files differ in their columns or classes"
        details = [f"{item.image}, {item.label}: {join_names(item.classes)}" for item in (all_columns[0], different)]
        raise DataError(what, where=[name, *details], fix="write them anew with the same columns and classes")
    return all_columns[0]


def _find_splits(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Part -> folder, and the names that are no part's."""
    if not (root / _SPLITS_FILE).is_file():
        return {"all": root}, []
    names = [name for name in _get_list(_read_json(root / _SPLITS_FILE), "splits") if _is_file_name(name)]
    splits = {ALIAS_TO_SPLIT[name.lower()]: root / name for name in names if name.lower() in ALIAS_TO_SPLIT}
    if not splits:
        what = f"no part of this data is one that is known: {join_names(names)}"
        raise DataError(what, where=str(root), fix="call the parts train, validation and test")
    return splits, [name for name in names if name.lower() not in ALIAS_TO_SPLIT]


def _list_files(folder: Path) -> list[Path]:
    """The Arrow files of a data set, in the order of its rows: their names are those of files in its own folder."""
    names = [_get_value(entry, "filename") for entry in _get_list(_read_json(folder / _STATE_FILE), "_data_files")]
    invalid_names = [name for name in names if not _is_file_name(name)]
    if invalid_names or not names:
        raise DataError(
            "this folder does not say which files hold its rows", where=str(folder / _STATE_FILE), fix=_COPY_AGAIN
        )
    return [folder / name for name in names]


def _is_file_name(name: Any) -> bool:
    """Whether this is a name of something in a folder itself, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read_json(path: Path) -> Any:
    try:
        return parse_json(read_text(path, path.name), path.name)
    except UsageError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=_COPY_AGAIN) from None


def _get_value(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, Mapping) else None


def _get_list(data: Any, key: str) -> list[Any]:
    value = _get_value(data, key)
    return value if isinstance(value, list) else []


def _read_labeled(path: Path, root: Path) -> tuple[DatasetColumns, LabeledShard]:
    import pyarrow

    with translate_pyarrow_errors(path), open_arrow_file(path) as arrow_file:
        columns = detect_columns(arrow_file.schema, path)
        batches = list(arrow_file.iter_batches(columns.image, columns.label))
        chunks = [batch.column(columns.label) for batch in batches]
        keys, codes = encode_labels(pyarrow.chunked_array(chunks, arrow_file.schema.field(columns.label).type))
        shard = arrow_file.build_shard(
            path.relative_to(root).as_posix(), path, [batch.column(columns.image) for batch in batches]
        )
    return columns, LabeledShard(shard, keys, codes)


@contextlib.contextmanager
def translate_pyarrow_errors(path: Path) -> Iterator[None]:
    """What pyarrow raises of a file that is not sound, as a `DataError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"this file cannot be read: {reason}", where=str(path), fix=_COPY_AGAIN) from None


@dataclass(frozen=True)
class ArrowFile:
    """An Arrow file (the stream format) while it is mapped."""

    path: Path
    stamp: tuple[int, int]
    buffer: Any
    schema: Any

    def iter_batches(self, *columns: str) -> Iterator[Any]:
        """Its batches of rows with some of the columns, judged: their offsets lie inside of them."""
        from pyarrow import ipc

        field_indices = sorted(self.schema.get_field_index(name) for name in columns)
        for batch in ipc.open_stream(
            self.buffer, options=ipc.IpcReadOptions(included_fields=field_indices, use_threads=False)
        ):
            batch.validate(full=True)
            if batch.nbytes > self.buffer.size:
                raise ValueError("it is compressed; save it anew without")
            yield batch

    def build_shard(self, name: str, path: Path, chunks: list[Any]) -> Shard:
        """Where the bytes of each row stand."""
        row_ranges = [_locate_rows(chunk, self.buffer) for chunk in chunks] or [(np.zeros(0, np.int64),) * 2]
        starts, sizes = (np.concatenate(column) for column in zip(*row_ranges, strict=True))
        return Shard(name, path, self.path, self.stamp, starts, sizes)


@contextlib.contextmanager
def open_arrow_file(path: Path) -> Iterator[ArrowFile]:
    """Map an Arrow file; raises `ValueError` for one that is not whole."""
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        buffer = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if buffer[-len(_END_OF_STREAM) :].to_pybytes() != _END_OF_STREAM:
        raise ValueError("it stops before its end, or is no Arrow file")
    yield ArrowFile(path, get_file_stamp(status), buffer, ipc.open_stream(buffer).schema)


def _locate_rows(chunk: Any, buffer: Any) -> tuple[Indices, Indices]:
    """Start and size of each row's bytes in the file; a size is negative where there are none."""
    is_struct = hasattr(chunk, "flatten") and chunk.type.num_fields > 0
    array = chunk.field("bytes") if is_struct else chunk
    is_large = array.type.equals("large_binary")
    _, offsets, data = array.buffers()
    offset_type: Any = np.int64 if is_large else np.int32
    row_offsets: NDArray[Any] = np.frombuffer(offsets, offset_type)[array.offset : array.offset + len(array) + 1]
    data_start = data.address - buffer.address if data is not None else 0
    if data is not None and not 0 <= data_start <= data_start + data.size <= buffer.size:
        raise ValueError("it is compressed; save it anew without")
    starts, sizes = data_start + row_offsets[:-1].astype(np.int64), np.diff(row_offsets).astype(np.int64)
    sizes[_get_null_mask(array)] = NO_BYTES
    if is_struct:
        sizes[_get_null_mask(array) & _get_path_mask(chunk)] = PATH_ONLY
        sizes[_get_null_mask(chunk)] = NO_BYTES
    return starts, sizes


def _get_null_mask(chunk: Any) -> NDArray[np.bool_]:
    return convert_to_int64(chunk.is_null()).astype(bool)


def _get_path_mask(chunk: Any) -> NDArray[np.bool_]:
    """Which rows of datasets' pairs have a path, by which the bytes would have to be looked for."""
    if chunk.type.get_field_index("path") < 0:
        return np.zeros(len(chunk), dtype=bool)
    return ~_get_null_mask(chunk.field("path"))
