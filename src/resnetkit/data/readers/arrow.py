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

from resnetkit.data.dataset import PLACES, Data, listed
from resnetkit.data.readers.columns import Columns, Labelled, assembled, columns_of, encoded, numbers, require_pyarrow
from resnetkit.data.readers.row_index import NAMED, NONE, Indices, Shard, stamp
from resnetkit.errors import DataError, UsageError
from resnetkit.serialization import parse_json, read_text

_ONE, _SEVERAL = "state.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"
_COPY = "copy or download it again"


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of datasets wrote this folder."""
    return (folder / _ONE).is_file() or (folder / _SEVERAL).is_file()


def open_saved(root: Path, name: str) -> Data:
    """What ``save_to_disk`` wrote, of a data set or of one with parts; raises `DataError`."""
    require_pyarrow()
    folders, odd = _parts(root)
    found = {part: [_labelled(file, root) for file in _files(folder)] for part, folder in folders.items()}
    columns = same_columns(name, [known for files in found.values() for known, _ in files])
    notes = [f"parts of other names were passed over: {listed(odd)}"] * bool(odd)
    return assembled(name, columns, {part: [file for _, file in files] for part, files in found.items()}, notes)


def same_columns(name: str, found: list[Columns]) -> Columns:
    """What all files say; raises `DataError` where two differ."""
    other = next((columns for columns in found if columns != found[0]), None)
    if other:
        what = "two files differ in their columns or classes"
        shown = [f"{it.picture}, {it.label}: {listed(it.classes)}" for it in (found[0], other)]
        raise DataError(what, where=[name, *shown], fix="write them anew with the same columns and classes")
    return found[0]


def _parts(root: Path) -> tuple[dict[str, Path], list[str]]:
    """Part -> folder, and the names that are no part's."""
    if not (root / _SEVERAL).is_file():
        return {"all": root}, []
    names = [word for word in _listed(_json(root / _SEVERAL), "splits") if _is_name(word)]
    parts = {PLACES[word.lower()]: root / word for word in names if word.lower() in PLACES}
    if not parts:
        what = f"no part of this data is one that is known: {listed(names)}"
        raise DataError(what, where=str(root), fix="call the parts train, validation and test")
    return parts, [word for word in names if word.lower() not in PLACES]


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a data set, in the order of its rows: their names are those of files in its own folder."""
    told = [_inner(entry, "filename") for entry in _listed(_json(folder / _ONE), "_data_files")]
    odd = [word for word in told if not _is_name(word)]
    if odd or not told:
        raise DataError("this folder does not say which files hold its rows", where=str(folder / _ONE), fix=_COPY)
    return [folder / word for word in told]


def _is_name(word: Any) -> bool:
    """Whether this is a name of something in a folder itself, and leads nowhere else."""
    return isinstance(word, str) and word not in ("", ".", "..") and not set(word) & set("/\\\0")


def _json(path: Path) -> Any:
    try:
        return parse_json(read_text(path, path.name), path.name)
    except UsageError as error:
        raise DataError(error.what, where=[str(path), *error.where], fix=_COPY) from None


def _inner(told: Any, key: str) -> Any:
    return told.get(key) if isinstance(told, Mapping) else None


def _listed(told: Any, key: str) -> list[Any]:
    found = _inner(told, key)
    return found if isinstance(found, list) else []


def _labelled(path: Path, root: Path) -> tuple[Columns, Labelled]:
    import pyarrow

    with readable(path), open_rows(path) as rows:
        columns = columns_of(rows.schema, path)
        batches = list(rows.batches(columns.picture, columns.label))
        chunks = [batch.column(columns.label) for batch in batches]
        keys, codes = encoded(pyarrow.chunked_array(chunks, rows.schema.field(columns.label).type))
        shard = rows.shard(
            path.relative_to(root).as_posix(), path, [batch.column(columns.picture) for batch in batches]
        )
    return columns, Labelled(shard, keys, codes)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What pyarrow raises of a file that is not sound, as a `DataError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(f"this file cannot be read: {reason}", where=str(path), fix=_COPY) from None


@dataclass(frozen=True)
class ArrowRows:
    """An Arrow file (the stream format) while it is mapped."""

    path: Path
    stamp: tuple[int, int]
    content: Any
    schema: Any

    def batches(self, *columns: str) -> Iterator[Any]:
        """Its batches of rows with some of the columns, judged: their offsets lie inside of them."""
        from pyarrow import ipc

        chosen = sorted(self.schema.get_field_index(name) for name in columns)
        for batch in ipc.open_stream(
            self.content, options=ipc.IpcReadOptions(included_fields=chosen, use_threads=False)
        ):
            batch.validate(full=True)
            if batch.nbytes > self.content.size:
                raise ValueError("it is compressed; save it anew without")
            yield batch

    def shard(self, name: str, path: Path, chunks: list[Any]) -> Shard:
        """Where the bytes of each row stand."""
        found = [_places(chunk, self.content) for chunk in chunks] or [(np.zeros(0, np.int64),) * 2]
        starts, sizes = (np.concatenate(column) for column in zip(*found, strict=True))
        return Shard(name, path, self.path, self.stamp, starts, sizes)


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[ArrowRows]:
    """Map an Arrow file; raises `ValueError` for one that is not whole."""
    import pyarrow
    from pyarrow import ipc

    with path.open("rb") as file:
        known = os.fstat(file.fileno())
        content = pyarrow.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if content[-len(_END) :].to_pybytes() != _END:
        raise ValueError("it stops before its end, or is no Arrow file")
    yield ArrowRows(path, stamp(known), content, ipc.open_stream(content).schema)


def _places(chunk: Any, content: Any) -> tuple[Indices, Indices]:
    """Start and size of each row's bytes in the file; a size is negative where there are none."""
    nested = hasattr(chunk, "flatten") and chunk.type.num_fields > 0
    inner = chunk.field("bytes") if nested else chunk
    wide = inner.type.equals("large_binary")
    _, offsets, data = inner.buffers()
    kind: Any = np.int64 if wide else np.int32
    ends: NDArray[Any] = np.frombuffer(offsets, kind)[inner.offset : inner.offset + len(inner) + 1]
    begin = data.address - content.address if data is not None else 0
    if data is not None and not 0 <= begin <= begin + data.size <= content.size:
        raise ValueError("it is compressed; save it anew without")
    starts, sizes = begin + ends[:-1].astype(np.int64), np.diff(ends).astype(np.int64)
    sizes[_nulls(inner)] = NONE
    if nested:
        sizes[_nulls(inner) & _named(chunk)] = NAMED
        sizes[_nulls(chunk)] = NONE
    return starts, sizes


def _nulls(chunk: Any) -> NDArray[np.bool_]:
    return numbers(chunk.is_null()).astype(bool)


def _named(chunk: Any) -> NDArray[np.bool_]:
    """Which rows of datasets' pairs have a path, by which the bytes would have to be looked for."""
    if chunk.type.get_field_index("path") < 0:
        return np.zeros(len(chunk), dtype=bool)
    return ~_nulls(chunk.field("path"))
