"""A table of paths and labels: CSV with a header.

    path,label,part           part is optional: train, val or test
    shots/1.jpg,daisy,train   paths are meant from the folder of the table

Commas, semicolons or tabs; with or without a byte order mark; any kind of line ending.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles, is_text
from resnetkit.errors import DataError

_COLUMN_ALIASES = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "part": ("part", "split"),
}
_SPLIT_OF_CELL = {"": "all"} | ALIAS_TO_SPLIT
_MAX_EXAMPLES, _MAX_EXAMPLE_LENGTH, _MAX_BYTES = 5, 120, 100_000_000


@dataclass(frozen=True)
class _TableRow:
    line: int
    path: str
    label: str
    split: str


_SLASH_HINT = " (folders are divided by /)"
_Faults = list[tuple[int, str]]  # line, what is wrong with it


def open_csv_table(table: Path, name: str) -> Dataset:
    """Raises one `DataError` with the first faults and their lines."""
    rows, faults = _read_rows(table)
    faults += (
        _find_missing_files(table.parent, rows) + _find_duplicates(table.parent, rows) + _find_missing_splits(rows)
    )
    splits = [split for split in (*SPLIT_ALIASES, "all") if any(row.split == split for row in rows)]
    train_classes = {row.label for row in rows if row.split == splits[0]} if splits else set()
    faults += [
        (row.line, f"{row.split} has a class that {splits[0]} has not: {row.label}")
        for row in rows
        if row.label not in train_classes
    ]
    if faults:
        raise _build_table_error(table, sorted(faults))
    classes = tuple(sorted(train_classes))
    files = {
        split: _build_image_files(table.parent, [row for row in rows if row.split == split], classes)
        for split in splits
    }
    return Dataset(name, classes, dict(files))


def _read_rows(table: Path) -> tuple[list[_TableRow], _Faults]:
    """The rows that can be read, and what is wrong with the others."""
    try:
        with table.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read this table: {error.strerror}", where=str(table)) from None
    if len(content) > _MAX_BYTES:
        raise DataError(f"this table has more than {_MAX_BYTES:,} bytes", where=str(table))
    text = content.decode("utf-8-sig", "surrogateescape")
    delimiter = max(",;\t", key=(text[:1000].splitlines() or [""])[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[_TableRow] = []
    faults: _Faults = []
    try:
        header = next(reader, [])
        column_indices = _find_columns(table, header)
        for cells in filter(None, reader):
            row = _parse_row(reader.line_num, cells, header, column_indices)
            rows += [row] if isinstance(row, _TableRow) else []
            faults += [(reader.line_num, row)] if isinstance(row, str) else []
    except csv.Error as error:
        faults.append((reader.line_num, f"cannot be read as CSV: {error}"))
    return rows, faults if rows or faults else [(2, "there are no pictures below the header")]


def _find_columns(table: Path, header: Sequence[str]) -> dict[str, int]:
    """Which column is which; raises `DataError` for a header that is none."""
    column_of_alias = {alias: column for column, names in _COLUMN_ALIASES.items() for alias in names}
    names = [cell.strip().lower() for cell in header]
    column_indices = {column_of_alias[name]: i for i, name in enumerate(names) if name in column_of_alias}
    unknown = [cell for cell, name in zip(header, names, strict=True) if name not in column_of_alias]
    faults = [f"there is no column called {column}" for column in ("path", "label") if column not in column_indices]
    faults += [f"a column that means nothing here: {cell!r}" for cell in unknown]
    if not faults and len(column_indices) < len(names):
        faults = ["two columns mean the same"]
    if faults:
        raise _build_table_error(
            table, [(1, fault) for fault in faults], fix="name the columns path, label and perhaps part; remove others"
        )
    return column_indices


def _parse_row(
    line: int, cells: Sequence[str], header: Sequence[str], column_indices: dict[str, int]
) -> _TableRow | str:
    """A row, or what is wrong with it."""
    if len(cells) != len(header):
        return f"{len(cells)} cells, where the header has {len(header)}"
    path, label, split = (
        cells[column_indices[column]].strip() if column in column_indices else "" for column in _COLUMN_ALIASES
    )
    if not path or not label:
        return "there is no " + ("label" if path else "path")
    if not is_text(label):
        return "the label is not text (UTF-8)"
    if split.lower() not in _SPLIT_OF_CELL:
        return f"there is no part called {split!r}; the parts are train, val and test"
    return _TableRow(line, path, label, _SPLIT_OF_CELL[split.lower()])


def _find_missing_files(folder: Path, rows: Sequence[_TableRow]) -> _Faults:
    missing_rows = [row for row in rows if not _is_file(folder / row.path)]
    return [(row.line, f"there is no such file: {row.path}" + _SLASH_HINT * ("\\" in row.path)) for row in missing_rows]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _find_duplicates(folder: Path, rows: Sequence[_TableRow]) -> _Faults:
    first_lines: dict[str, int] = {}
    pairs = [(row, first_lines.setdefault(os.path.normpath(folder / row.path), row.line)) for row in rows]
    return [(row.line, f"{row.path!r} stands in line {line} already") for row, line in pairs if line != row.line]


def _find_missing_splits(rows: Sequence[_TableRow]) -> _Faults:
    """Rows without a part, where others have one."""
    unassigned = [row for row in rows if row.split == "all"]
    return [
        (row.line, "there is no part, and other lines have one") for row in unassigned if len(unassigned) < len(rows)
    ]


def _build_image_files(folder: Path, rows: Sequence[_TableRow], classes: Sequence[str]) -> ImageFiles:
    index_of_class = {name: index for index, name in enumerate(classes)}
    labels = np.array([index_of_class[row.label] for row in rows], dtype=np.int64)
    return ImageFiles(tuple(folder / row.path for row in rows), tuple(row.path for row in rows), labels)


def _build_table_error(
    table: Path, faults: _Faults, fix: str = "mend these lines; nothing was passed over"
) -> DataError:
    examples = [f"line {line}: {fault[:_MAX_EXAMPLE_LENGTH]}" for line, fault in faults[:_MAX_EXAMPLES]]
    remainder = [f"... and {len(faults) - _MAX_EXAMPLES:,} more"] * (len(faults) > _MAX_EXAMPLES)
    count = "a line" if len(faults) == 1 else f"{len(faults):,} lines"
    return DataError(f"{count} of this table cannot be used", where=[str(table), *examples, *remainder], fix=fix)
