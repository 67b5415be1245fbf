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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.data.dataset import PLACES, Data, listed
from resnetkit.data.readers.arrow import open_rows, readable, same_columns
from resnetkit.data.readers.columns import Columns, Labelled, assembled, columns_of, encoded, require_pyarrow
from resnetkit.data.readers.row_index import Shard, stamp
from resnetkit.errors import DataError, MachineError
from resnetkit.images.decode import is_folder, visible

SUFFIX = ".parquet"
_VERSION = "1"
_BATCH, _MOST_ROWS, _SPARE = 16 * 2**20, 1000, 200 * 2**20  # bytes at once, rows at once, bytes that stay free
_SHARD = re.compile(r"(.*-)(\d{1,9})-of-(\d{1,9})", re.DOTALL)
Tell = Callable[[int, int], None]


def is_parquet(path: Path) -> bool:
    """Whether this is a Parquet file, or a folder of them as described above."""
    return path.name.lower().endswith(SUFFIX) if path.is_file() else bool(_found(path))


def open_parquet(path: Path, name: str, tell: Tell | None = None) -> Data:
    """Raises `DataError`; `MachineError` where there is no place for the copy. ``tell`` hears (rows copied, all)."""
    require_pyarrow()
    root = path if path.is_dir() else path.parent
    found = _found(path) if path.is_dir() else [path]
    parts, odd = _parts(found, root) if path.is_dir() else ({"all": found}, [])
    opened = {part: [_opened(file, root) for file in files] for part, files in parts.items()}
    columns = same_columns(name, [one.columns for ones in opened.values() for one in ones])
    copying = _Copying(sum(one.rows for ones in opened.values() for one in ones), tell)
    labelled = {
        part: [Labelled(copying.shard(one), one.keys, one.codes) for one in ones] for part, ones in opened.items()
    }
    notes = [f"files of other parts were passed over: {listed(odd)}"] * bool(odd)
    return assembled(name, columns, labelled, notes)


# ---------------------------------------------------------------------------------------------------- which files


def _found(folder: Path) -> list[Path]:
    """The Parquet files of a folder, or of the folders in it that are for a part, or of its only folder."""
    entries = visible(folder)
    folders = [Path(entry.path) for entry in entries if is_folder(entry)]
    here = [Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIX) and entry.is_file()]
    if not folders:
        return here
    parts = [inner for inner in folders if inner.name.lower() in PLACES]
    inner = parts or folders if len(parts) == len(folders) or len(folders) == 1 else []
    return [file for one in inner for file in (_found(one) if len(folders) == 1 else _direct(one))]


def _direct(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in visible(folder) if entry.name.lower().endswith(SUFFIX) and entry.is_file()]


def _parts(found: Sequence[Path], root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Part -> files, and the names of files that are for no part; all are one where no file says a part."""
    _require_all(found)
    parts: dict[str, list[Path]] = {}
    for file in found:
        parts.setdefault(_part(file, root), []).append(file)
    odd = parts.pop("", [])
    return (parts, [file.name for file in odd]) if parts else ({"all": odd}, [])


def _part(file: Path, root: Path) -> str:
    """The part that a file is for, by its name or by its folder's; nothing where neither says one."""
    words = [re.split(r"[-_.\d]", file.name.lower(), maxsplit=1)[0]]
    words += [file.parent.name.lower()] * (file.parent != root)
    return next((PLACES[word] for word in words if word in PLACES), "")


def _require_all(found: Sequence[Path]) -> None:
    """Refuse ``train-00000-of-00002`` without its other half, which a download that was cut off leaves."""
    matches = [match for file in found if (match := _SHARD.match(str(file)))]
    series = {(match[1], match[3]) for match in matches}
    for before, count in sorted(series):
        numbers = {int(match[2]) for match in matches if (match[1], match[3]) == (before, count)}
        lost = next((i for i in range(len(matches)) if i < int(count) and i not in numbers), len(numbers))
        if len(numbers) < int(count):
            what = f"a file of this data is missing: {len(numbers):,} of {int(count):,} are here"
            raise DataError(what, where=f"{before}{lost:0{len(count)}}-of-{count}", fix="copy or download it again")


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Opened:
    """A Parquet file of which all but the pictures has been read."""

    name: str
    path: Path
    stamp: tuple[int, int]
    columns: Columns
    schema: Any
    rows: int
    bytes: int
    keys: tuple[str | int, ...]
    codes: Any


def _opened(path: Path, root: Path) -> _Opened:
    import pyarrow

    with _parquet(path) as (file, known):
        columns = columns_of(file.schema_arrow, path)
        keys, codes = encoded(file.read([columns.label], use_threads=False).column(columns.label))
        if len(codes) != file.metadata.num_rows:
            raise ValueError("its label column has another number of rows than the file")
        name = path.relative_to(root).as_posix()
        schema = pyarrow.schema([file.schema_arrow.field(columns.picture)])
        return _Opened(name, path, known, columns, schema, len(codes), _unpacked(file, columns.picture), keys, codes)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[tuple[Any, tuple[int, int]]]:
    """A Parquet file, read by pieces, and its stamp."""
    from pyarrow import parquet

    with readable(path), path.open("rb") as file:
        opened = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
        yield opened, stamp(os.fstat(file.fileno()))


def _unpacked(file: Any, picture: str) -> int:
    """What the pictures take without compression, in bytes."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = (group.column(j) for group in groups for j in range(group.num_columns))
    return sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] == picture)


# ------------------------------------------------------------------------------------------------------------- copying


class _Copying:
    """Copies of files, with one count through all of them."""

    def __init__(self, rows: int, tell: Tell | None) -> None:
        self.rows, self.done, self.tell = rows, 0, tell

    def shard(self, one: _Opened) -> Shard:
        """The rows of a file, from its copy in the cache folder, which is made where there is none that is whole."""
        copy = _place(one)
        found = _copied(copy, one)
        if found is None:
            self._write(copy, one)
            found = _copied(copy, one)
        if found is None:
            raise MachineError("a copy that was just made is not whole", where=str(copy), fix=_ELSEWHERE)
        return found

    def _write(self, copy: Path, one: _Opened) -> None:
        from pyarrow import ipc

        _require_space(copy.parent, one.bytes)
        with files.replacing(copy) as part, part.open("wb") as sink, ipc.new_stream(sink, one.schema) as stream:
            for batch in _batches(one):
                _require_space(copy.parent, batch.nbytes)
                stream.write_batch(batch)
                self._count(batch.num_rows)
        for old in copy.parent.glob(f"{copy.name.partition('-')[0]}-*.arrow"):
            if old != copy:  # of the file as it was before it changed
                old.unlink(missing_ok=True)

    def _count(self, rows: int) -> None:
        self.done += rows
        if self.tell:
            self.tell(self.done, self.rows)


def _batches(one: _Opened) -> Iterator[Any]:
    """The pictures by pieces; what fails here is the file that is read, and never the copy."""
    with _parquet(one.path) as (file, known):
        if known != one.stamp:
            raise ValueError("it changed while it was read")
        for batch in file.iter_batches(_rows_at_once(one), columns=one.schema.names, use_threads=False):
            yield batch.cast(one.schema)


_ELSEWHERE = "set RESNETKIT_CACHE to a folder with more space"


def _place(one: _Opened) -> Path:
    """Where the copy stands: named by the file's own place, then by what changes when the file does."""
    where = os.fsencode(one.path.resolve())
    what = f"{_VERSION}/{one.stamp}/{one.columns.picture}".encode()
    named = [hashlib.blake2b(text, digest_size=12).hexdigest() for text in (where, what)]
    return files.cache_folder() / "parquet" / f"{named[0]}-{named[1]}.arrow"


def _copied(copy: Path, one: _Opened) -> Shard | None:
    """The rows of a copy; none where it is not there, or not whole."""
    try:
        with readable(copy), open_rows(copy) as rows:
            chunks = [batch.column(0) for batch in rows.batches(one.columns.picture)]
            made = rows.shard(one.name, one.path, chunks)
    except DataError:
        return None
    return made if len(made) == one.rows else None


def _rows_at_once(one: _Opened) -> int:
    """As many as fit into a piece; whole fifties, which is how often a line of progress is written."""
    count = min(_MOST_ROWS, max(1, _BATCH // max(1, one.bytes // max(1, one.rows))))
    return count - count % 50 if count > 50 else count


def _require_space(folder: Path, size: int) -> None:
    """Raise `MachineError` where so many bytes more would fill the disk."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < size + _SPARE:
        what = f"a copy of Parquet's pictures needs {size:,} bytes, and {max(0, free - _SPARE):,} are free"
        raise MachineError(what, where=str(folder), fix=_ELSEWHERE)
