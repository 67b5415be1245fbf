"""Parquet files: one, or a folder of them as data sets on the Hugging Face hub have.

    flowers/train-00000-of-00002.parquet  ...  validation-00000-of-00001.parquet     parts by the names of the files
    flowers/data/...   flowers/train/0000.parquet                                    also in a folder, or one for a part

A row of Parquet can be had only by unpacking all the rows of its group before it, which would make an epoch in random
order unpack every group as often as it has rows. So each file is copied once, in order, to an Arrow file in the cache
folder, of which any row is one read.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.data.dataset import ALIAS_TO_SPLIT, Dataset, join_names
from resnetkit.data.readers.arrow import check_same_columns, open_arrow_file, translate_pyarrow_errors
from resnetkit.data.readers.columns import (
    DatasetColumns,
    LabeledShard,
    build_dataset,
    check_pyarrow,
    detect_columns,
    encode_labels,
)
from resnetkit.data.readers.row_index import Shard, get_file_stamp
from resnetkit.errors import DataError, MachineError
from resnetkit.images.decode import is_folder, list_entries
from resnetkit.runtime.progress import ProgressCallback

SUFFIX = ".parquet"
_CACHE_VERSION = "1"
_BATCH_BYTES, _MAX_BATCH_ROWS, _MIN_FREE_BYTES = (
    16 * 2**20,
    1000,
    200 * 2**20,
)  # bytes at once, rows at once, bytes that stay free
_SHARD_NAME = re.compile(r"(.*-)(\d{1,9})-of-(\d{1,9})", re.DOTALL)


def is_parquet(path: Path) -> bool:
    """Whether this is a Parquet file, or a folder of them as described above."""
    return path.name.lower().endswith(SUFFIX) if path.is_file() else bool(_find_parquet_files(path))


def open_parquet(path: Path, name: str, on_progress: ProgressCallback | None = None) -> Dataset:
    """Raises `DataError`; `MachineError` where there is no place for the copy. ``tell`` hears (rows copied, all)."""
    check_pyarrow()
    root = path if path.is_dir() else path.parent
    paths = _find_parquet_files(path) if path.is_dir() else [path]
    paths_of_split, unassigned = _group_by_split(paths, root) if path.is_dir() else ({"all": paths}, [])
    opened_sources = {split: [_open_source(file, root) for file in files] for split, files in paths_of_split.items()}
    columns = check_same_columns(name, [source.columns for sources in opened_sources.values() for source in sources])
    copier = _ShardCopier(sum(source.n_rows for sources in opened_sources.values() for source in sources), on_progress)
    labeled_shards = {
        split: [LabeledShard(copier.get_shard(source), source.keys, source.codes) for source in sources]
        for split, sources in opened_sources.items()
    }
    notes = [f"files of other parts were passed over: {join_names(unassigned)}"] * bool(unassigned)
    return build_dataset(name, columns, labeled_shards, notes)


# ---------------------------------------------------------------------------------------------------- which files


def _find_parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of the folders in it that are for a part, or of its only folder."""
    entries = list_entries(folder)
    folders = [Path(entry.path) for entry in entries if is_folder(entry)]
    direct_files = [Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIX) and entry.is_file()]
    if not folders:
        return direct_files
    split_folders = [nested for nested in folders if nested.name.lower() in ALIAS_TO_SPLIT]
    nested = split_folders or folders if len(split_folders) == len(folders) or len(folders) == 1 else []
    return [
        file
        for subfolder in nested
        for file in (_find_parquet_files(subfolder) if len(folders) == 1 else _list_parquet_files(subfolder))
    ]


def _list_parquet_files(folder: Path) -> list[Path]:
    return [
        Path(entry.path) for entry in list_entries(folder) if entry.name.lower().endswith(SUFFIX) and entry.is_file()
    ]


def _group_by_split(paths: Sequence[Path], root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Part -> files, and the names of files that are for no part; all are one where no file says a part."""
    _check_all_shards(paths)
    paths_of_split: dict[str, list[Path]] = {}
    for file in paths:
        paths_of_split.setdefault(_detect_split(file, root), []).append(file)
    unassigned = paths_of_split.pop("", [])
    return (paths_of_split, [file.name for file in unassigned]) if paths_of_split else ({"all": unassigned}, [])


def _detect_split(file: Path, root: Path) -> str:
    """The part that a file is for, by its name or by its folder's; nothing where neither says one."""
    candidates = [re.split(r"[-_.\d]", file.name.lower(), maxsplit=1)[0]]
    candidates += [file.parent.name.lower()] * (file.parent != root)
    return next((ALIAS_TO_SPLIT[candidate] for candidate in candidates if candidate in ALIAS_TO_SPLIT), "")


def _check_all_shards(paths: Sequence[Path]) -> None:
    """Refuse ``train-00000-of-00002`` without its other half, which a download that was cut off leaves."""
    matches = [match for file in paths if (match := _SHARD_NAME.match(str(file)))]
    series = {(match[1], match[3]) for match in matches}
    for prefix, count in sorted(series):
        indices = {int(match[2]) for match in matches if (match[1], match[3]) == (prefix, count)}
        missing = next((i for i in range(len(matches)) if i < int(count) and i not in indices), len(indices))
        if len(indices) < int(count):
            what = f"a file of this data is missing: {len(indices):,} of {int(count):,} are here"
            raise DataError(what, where=f"{prefix}{missing:0{len(count)}}-of-{count}", fix="copy or download it again")


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _ParquetSource:
    """A Parquet file of which all but the pictures has been read."""

    name: str
    path: Path
    stamp: tuple[int, int]
    columns: DatasetColumns
    schema: Any
    n_rows: int
    n_bytes: int
    keys: tuple[str | int, ...]
    codes: Any


def _open_source(path: Path, root: Path) -> _ParquetSource:
    import pyarrow

    with _open_parquet(path) as (file, file_stamp):
        columns = detect_columns(file.schema_arrow, path)
        keys, codes = encode_labels(file.read([columns.label], use_threads=False).column(columns.label))
        if len(codes) != file.metadata.num_rows:
            raise ValueError("its label column has another number of rows than the file")
        name = path.relative_to(root).as_posix()
        schema = pyarrow.schema([file.schema_arrow.field(columns.image)])
        return _ParquetSource(
            name, path, file_stamp, columns, schema, len(codes), _count_image_bytes(file, columns.image), keys, codes
        )


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[tuple[Any, tuple[int, int]]]:
    """A Parquet file, read by pieces, and its stamp."""
    from pyarrow import parquet

    with translate_pyarrow_errors(path), path.open("rb") as file:
        parquet_file = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
        yield parquet_file, get_file_stamp(os.fstat(file.fileno()))


def _count_image_bytes(file: Any, image_column: str) -> int:
    """What the pictures take without compression, in bytes."""
    row_groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    chunks = (group.column(j) for group in row_groups for j in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == image_column)


# ------------------------------------------------------------------------------------------------------------- copying


class _ShardCopier:
    """Copies of files, with one count through all of them."""

    def __init__(self, n_rows: int, on_progress: ProgressCallback | None) -> None:
        self.n_rows, self.n_done, self.on_progress = n_rows, 0, on_progress

    def get_shard(self, source: _ParquetSource) -> Shard:
        """The rows of a file, from its copy in the cache folder, which is made where there is none that is whole."""
        copy_path = _get_copy_path(source)
        shard = _load_copy(copy_path, source)
        if shard is None:
            self._write(copy_path, source)
            shard = _load_copy(copy_path, source)
        if shard is None:
            raise MachineError("a copy that was just made is not whole", where=str(copy_path), fix=_CHANGE_CACHE)
        return shard

    def _write(self, copy_path: Path, source: _ParquetSource) -> None:
        from pyarrow import ipc

        _check_free_space(copy_path.parent, source.n_bytes)
        with (
            files.atomic_write(copy_path) as temporary,
            temporary.open("wb") as sink,
            ipc.new_stream(sink, source.schema) as stream,
        ):
            for batch in _iter_batches(source):
                _check_free_space(copy_path.parent, batch.nbytes)
                stream.write_batch(batch)
                self._add_progress(batch.num_rows)
        for stale in copy_path.parent.glob(f"{copy_path.name.partition('-')[0]}-*.arrow"):
            if stale != copy_path:  # of the file as it was before it changed
                stale.unlink(missing_ok=True)

    def _add_progress(self, n_rows: int) -> None:
        self.n_done += n_rows
        if self.on_progress:
            self.on_progress(self.n_done, self.n_rows)


def _iter_batches(source: _ParquetSource) -> Iterator[Any]:
    """The pictures by pieces; what fails here is the file that is read, and never the copy."""
    with _open_parquet(source.path) as (file, file_stamp):
        if file_stamp != source.stamp:
            raise ValueError("it changed while it was read")
        for batch in file.iter_batches(_choose_batch_rows(source), columns=source.schema.names, use_threads=False):
            yield batch.cast(source.schema)


_CHANGE_CACHE = "set RESNETKIT_CACHE to a folder with more space"


def _get_copy_path(source: _ParquetSource) -> Path:
    """Where the copy stands: named by the file's own place, then by what changes when the file does."""
    source_key = os.fsencode(source.path.resolve())
    version_key = f"{_CACHE_VERSION}/{source.stamp}/{source.columns.image}".encode()
    digests = [hashlib.blake2b(key, digest_size=12).hexdigest() for key in (source_key, version_key)]
    return files.get_cache_folder() / "parquet" / f"{digests[0]}-{digests[1]}.arrow"


def _load_copy(copy_path: Path, source: _ParquetSource) -> Shard | None:
    """The rows of a copy; none where it is not there, or not whole."""
    try:
        with translate_pyarrow_errors(copy_path), open_arrow_file(copy_path) as arrow_file:
            chunks = [batch.column(0) for batch in arrow_file.iter_batches(source.columns.image)]
            shard = arrow_file.build_shard(source.name, source.path, chunks)
    except DataError:
        return None
    return shard if len(shard) == source.n_rows else None


def _choose_batch_rows(source: _ParquetSource) -> int:
    """As many as fit into a piece; whole fifties, which is how often a line of progress is written."""
    count = min(_MAX_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, source.n_bytes // max(1, source.n_rows))))
    return count - count % 50 if count > 50 else count


def _check_free_space(folder: Path, size: int) -> None:
    """Raise `MachineError` where so many bytes more would fill the disk."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size + _MIN_FREE_BYTES:
        what = f"a copy of Parquet's pictures needs {size:,} bytes, and {max(0, free - _MIN_FREE_BYTES):,} are free"
        raise MachineError(what, where=str(folder), fix=_CHANGE_CACHE)
