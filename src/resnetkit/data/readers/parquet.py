"""Read Parquet files: one, or a folder of them in the layout of the Hugging Face hub.

    flowers/train-00000-of-00002.parquet  ...  validation-00000-of-00001.parquet     splits by file name
    flowers/data/...   flowers/train/0000.parquet                                    in one folder, or one per split

Reading one row of Parquet unpacks all rows of its group before it. An epoch in random order would unpack every group
once per row. Each file is therefore copied once, in order, to an Arrow file in the cache folder. Any row of
the copy costs one read.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.data.dataset import ALIAS_TO_SPLIT, COPY_AGAIN, Dataset
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.data.readers import columns as arrow_columns
from resnetkit.data.readers.arrow import check_same_columns, open_arrow_file, translate_pyarrow_errors
from resnetkit.data.readers.path_table import PathTable, build_path_dataset, read_path_table
from resnetkit.data.readers.row_index import Shard, get_file_stamp
from resnetkit.errors import DataError, MachineError
from resnetkit.images.decode import is_folder, list_entries
from resnetkit.runtime.progress import ProgressCallback

SUFFIX = ".parquet"
BATCH_BYTES = 16 * 2**20  # size of the images that are copied at once
MIN_FREE_BYTES = 200 * 2**20  # disk space that a copy leaves free
_MAX_BATCH_ROWS, _CACHE_VERSION = 1000, "1"
_SHARD_NAME = re.compile(r"(.*-)(\d{1,9})-of-(\d{1,9})", re.DOTALL)
_CHANGE_CACHE = "set RESNETKIT_CACHE to a folder with more space"


def open_parquet(
    path: Path,
    name: str,
    on_progress: ProgressCallback | None = None,
    options: DataOptions = DEFAULT_DATA_OPTIONS,
) -> Dataset:
    """Open Parquet files, and copy those that the cache lacks.

    If the rows hold only paths, these name files beside the Parquet file, and nothing is copied.

    Args:
        path: A file or a folder.
        name: The path as the user wrote it.
        on_progress: Called with (rows copied, all rows).
        options: The names of the columns, and whether equal classes are merged.
    """
    arrow_columns.check_pyarrow()
    paths_of_split, unassigned = _group_by_split(path) if path.is_dir() else ({"all": [path]}, [])
    root = path if path.is_dir() else path.parent
    skipped = {"files of unknown splits": unassigned}
    path_tables = {split: _read_path_tables(paths, options) for split, paths in paths_of_split.items()}
    if all(path_tables.values()):
        return build_path_dataset(root, name, path_tables, options)
    open_source = partial(_open_source, root, options)
    sources = {split: list(map(open_source, paths)) for split, paths in paths_of_split.items()}
    all_sources = [source for split_sources in sources.values() for source in split_sources]
    columns = check_same_columns(name, [source.columns for source in all_sources])
    copier = _ShardCopier(sum(len(source.codes) for source in all_sources), on_progress)
    labeled_shards = {split: list(map(copier.get_labeled_shard, group)) for split, group in sources.items()}
    return arrow_columns.build_dataset(name, columns, labeled_shards, skipped)


def _read_path_tables(paths: Sequence[Path], options: DataOptions) -> list[PathTable]:
    """Return the paths and labels of files whose rows hold only paths; empty if a file holds images."""
    tables = []
    for path in paths:
        with _open_parquet(path) as (file, _):
            table = read_path_table(file, path, options)
        if table is None:
            return []
        tables.append(table)
    return tables


# --------------------------------------------------------------------------------------------------------------- files


def find_parquet_files(folder: Path) -> list[Path]:
    """Find the Parquet files of a folder, of its only subfolder, or of its split folders."""
    folders = [Path(entry.path) for entry in list_entries(folder) if is_folder(entry)]
    if not folders:
        return _list_parquet_files(folder)
    if len(folders) == 1:
        return find_parquet_files(folders[0])
    if any(subfolder.name.lower() not in ALIAS_TO_SPLIT for subfolder in folders):
        return []
    return [file for subfolder in folders for file in _list_parquet_files(subfolder)]


def _list_parquet_files(folder: Path) -> list[Path]:
    entries = list_entries(folder)
    return [Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIX) and entry.is_file()]


def _group_by_split(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the files of each split, ``all`` if no file has one, and the paths of other files."""
    paths = find_parquet_files(root)
    _check_all_shards(paths)
    paths_of_split: dict[str, list[Path]] = defaultdict(list)
    for file in paths:
        paths_of_split[_detect_split(file, root)].append(file)
    unassigned = paths_of_split.pop("", [])
    return (paths_of_split, list(map(str, unassigned))) if paths_of_split else ({"all": unassigned}, [])


def _detect_split(file: Path, root: Path) -> str:
    """Return the split in the name of a file or of its folder; "" if neither names one."""
    prefix = re.split(r"[-_.\d]", file.name.lower(), maxsplit=1)[0]
    folder_split = ALIAS_TO_SPLIT.get(file.parent.name.lower(), "") if file.parent != root else ""
    return ALIAS_TO_SPLIT.get(prefix, folder_split)


def _check_all_shards(paths: Sequence[Path]) -> None:
    """Check that no file of a series ``train-00000-of-00002`` is missing, as after an aborted download."""
    indices_of_series: dict[tuple[str, str], set[int]] = defaultdict(set)
    for match in filter(None, (_SHARD_NAME.match(str(file)) for file in paths)):
        indices_of_series[match[1], match[3]].add(int(match[2]))
    for (prefix, count), indices in sorted(indices_of_series.items()):
        if len(indices) < int(count):
            missing = next(i for i in range(len(indices) + 1) if i not in indices)
            what = f"a file is missing: {len(indices):,} of {int(count):,} exist"
            raise DataError(what, where=f"{prefix}{missing:0{len(count)}}-of-{count}", fix=COPY_AGAIN)


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _ParquetSource:
    """An opened Parquet file: everything but its images."""

    name: str
    path: Path
    stamp: tuple[int, int]
    columns: arrow_columns.DatasetColumns
    schema: Any
    n_bytes: int
    keys: tuple[str | int, ...]
    codes: Any


def _open_source(root: Path, options: DataOptions, path: Path) -> _ParquetSource:
    import pyarrow

    with _open_parquet(path) as (file, stamp):
        columns = arrow_columns.detect_columns(file.schema_arrow, path, options)
        labels = file.read([columns.label], use_threads=False).column(columns.label)
        if len(labels) != file.metadata.num_rows:
            raise ValueError("its label column has a different number of rows")
        schema = pyarrow.schema([file.schema_arrow.field(columns.image)])
        name, n_bytes = path.relative_to(root).as_posix(), _count_image_bytes(file, columns.image)
        return _ParquetSource(name, path, stamp, columns, schema, n_bytes, *arrow_columns.encode_labels(labels))


@contextlib.contextmanager
def _open_parquet(path: Path) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Open a Parquet file for buffered reading; yield it with its stamp."""
    from pyarrow import parquet

    with translate_pyarrow_errors(path), path.open("rb") as file:
        yield parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False), get_file_stamp(os.fstat(file.fileno()))


def _count_image_bytes(file: Any, image_column: str) -> int:
    """Return the uncompressed size of the images in bytes."""
    row_groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    chunks = (group.column(j) for group in row_groups for j in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == image_column)


# ------------------------------------------------------------------------------------------------------------- copying


class _ShardCopier:
    """Copies files to the cache, and reports the progress over all of them."""

    def __init__(self, n_rows: int, on_progress: ProgressCallback | None) -> None:
        self.n_rows, self.n_done, self.on_progress = n_rows, 0, on_progress

    def get_labeled_shard(self, source: _ParquetSource) -> arrow_columns.LabeledShard:
        """Return the rows of a file from its copy, which is written if it is missing or incomplete."""
        copy_path = _get_copy_path(source)
        shard = _load_copy(copy_path, source)
        if shard is None:
            self._write(copy_path, source)
            shard = _load_copy(copy_path, source)
        if shard is None:
            raise MachineError("the new copy is incomplete", where=str(copy_path), fix=_CHANGE_CACHE)
        return arrow_columns.LabeledShard(shard, source.keys, source.codes)

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
                self.n_done += batch.num_rows
                if self.on_progress:
                    self.on_progress(self.n_done, self.n_rows)
        for stale in copy_path.parent.glob(f"{copy_path.name.partition('-')[0]}-*.arrow"):
            if stale != copy_path:  # a copy of the file before it changed
                stale.unlink(missing_ok=True)


def _iter_batches(source: _ParquetSource) -> Iterator[Any]:
    """Yield the images in batches; an error that is raised here concerns the source, not the copy."""
    with _open_parquet(source.path) as (file, stamp):
        if stamp != source.stamp:
            raise ValueError("it changed while it was read")
        for batch in file.iter_batches(_choose_batch_rows(source), columns=source.schema.names, use_threads=False):
            yield batch.cast(source.schema)


def _get_copy_path(source: _ParquetSource) -> Path:
    """Return the path of the copy: a hash of the source's path, and one of what changes with its content."""
    source_key = os.fsencode(source.path.resolve())
    version_key = f"{_CACHE_VERSION}/{source.stamp}/{source.columns.image}".encode()
    digests = [hashlib.blake2b(key, digest_size=12).hexdigest() for key in (source_key, version_key)]
    return files.get_cache_folder() / "parquet" / f"{digests[0]}-{digests[1]}.arrow"


def _load_copy(copy_path: Path, source: _ParquetSource) -> Shard | None:
    """Return the rows of a copy, or None if it is missing or incomplete."""
    try:
        with translate_pyarrow_errors(copy_path):
            arrow_file = open_arrow_file(copy_path)
            chunks = [batch.column(0) for batch in arrow_file.iter_batches(source.columns.image)]
            shard = arrow_file.build_shard(source.name, source.path, chunks)
    except DataError:
        return None
    return shard if len(shard) == len(source.codes) else None


def _choose_batch_rows(source: _ParquetSource) -> int:
    """Choose a batch size; multiples of 50, because progress is printed every 50 rows."""
    n_rows = min(_MAX_BATCH_ROWS, max(1, BATCH_BYTES // max(1, source.n_bytes // max(1, len(source.codes)))))
    return n_rows - n_rows % 50 if n_rows > 50 else n_rows


def _check_free_space(folder: Path, n_bytes: int) -> None:
    """Raise `MachineError` if writing so many bytes would fill the disk."""
    try:
        files.check_free_space(folder, n_bytes + MIN_FREE_BYTES, "the copy of the Parquet images")
    except MachineError as error:
        raise MachineError(error.what, where=error.where, fix=_CHANGE_CACHE) from None
