"""Read a table of image paths and labels: CSV with a header.

    path,label,split          split is optional: train, val or test
    shots/1.jpg,daisy,train   paths are relative to the folder of the table

The delimiter is a comma, a semicolon or a tab. A byte order mark and any line ending are accepted.

This module imports no torch.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles, describe_extra_classes, is_text
from resnetkit.errors import DataError
from resnetkit.formatting import limit_lines, pluralize

_COLUMN_ALIASES = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split", "part"),
}
_SPLIT_OF_CELL = {"": "all"} | ALIAS_TO_SPLIT
_MAX_EXAMPLES, _MAX_EXAMPLE_LENGTH, _MAX_BYTES = 5, 120, 100_000_000
_Faults = list[tuple[int, str]]  # line number, problem


@dataclass(frozen=True)
class _TableRow:
    line: int
    path: str
    label: str
    split: str


def open_csv_table(table: Path, name: str) -> Dataset:
    """Open a table; every line must be usable.

    Args:
        table: The file.
        name: The file as the user wrote it.

    Raises:
        DataError: lines cannot be used; the error lists the first ones.
    """
    rows, faults = _read_rows(table)
    rows_of_split = {split: [row for row in rows if row.split == split] for split in (*SPLIT_ALIASES, "all")}
    rows_of_split = {split: split_rows for split, split_rows in rows_of_split.items() if split_rows}
    train_split = next(iter(rows_of_split), "all")
    known_classes = {row.label for row in rows_of_split.get(train_split, [])}
    faults += _find_file_faults(table.parent, rows)
    if len(rows_of_split) > 1:
        faults += [(row.line, "the split is empty, but other lines have one") for row in rows_of_split.get("all", [])]
    faults += [
        (row.line, describe_extra_classes(row.split, train_split, [row.label]))
        for row in rows
        if row.label not in known_classes
    ]
    if faults:
        raise _build_table_error(table, sorted(faults))
    classes = tuple(sorted(known_classes))
    files = {split: _build_image_files(table.parent, rows, classes) for split, rows in rows_of_split.items()}
    return Dataset(name, classes, dict(files))


def _read_rows(table: Path) -> tuple[list[_TableRow], _Faults]:
    """Return the usable rows, and the problems of the others."""
    text = _read_table(table)
    delimiter = max(",;\t", key=(text[:1000].splitlines() or [""])[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[_TableRow] = []
    faults: _Faults = []
    try:
        header = next(reader, [])
        column_indices = _find_columns(table, header)
        for cells in filter(None, reader):
            row = _parse_row(reader.line_num, cells, header, column_indices)
            if isinstance(row, _TableRow):
                rows.append(row)
            else:
                faults.append((reader.line_num, row))
    except csv.Error as error:
        faults.append((reader.line_num, f"not valid CSV: {error}"))
    return rows, faults if rows or faults else [(2, "there are no images below the header")]


def _read_table(table: Path) -> str:
    try:
        with table.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the table: {error.strerror}", where=str(table)) from None
    if len(content) > _MAX_BYTES:
        raise DataError(f"the table has more than {_MAX_BYTES:,} bytes", where=str(table))
    return content.decode("utf-8-sig", "surrogateescape")


def _find_columns(table: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the index of each column; raise `DataError` if the header is wrong."""
    column_of_alias = {alias: column for column, aliases in _COLUMN_ALIASES.items() for alias in aliases}
    names = [cell.strip().lower() for cell in header]
    column_indices = {column_of_alias[name]: i for i, name in enumerate(names) if name in column_of_alias}
    faults = [f"the column {column} is missing" for column in ("path", "label") if column not in column_indices]
    faults += [f"unknown column: {cell!r}" for cell in header if cell.strip().lower() not in column_of_alias]
    if not faults and len(column_indices) < len(names):
        faults = ["two columns have the same meaning"]
    if faults:
        fix = "name the columns path, label and optionally split; remove other columns"
        raise _build_table_error(table, [(1, fault) for fault in faults], fix)
    return column_indices


def _parse_row(line: int, cells: Sequence[str], header: Sequence[str], columns: dict[str, int]) -> _TableRow | str:
    """Return a row, or its problem."""
    if len(cells) != len(header):
        return f"{pluralize(len(cells), 'cell')}, but the header has {len(header)}"
    path, label, split = (cells[columns[name]].strip() if name in columns else "" for name in _COLUMN_ALIASES)
    if not path or not label:
        return f"the {'label' if path else 'path'} is empty"
    if not is_text(label):
        return "the label is not text (UTF-8)"
    if split.lower() not in _SPLIT_OF_CELL:
        return f"unknown split: {split!r}; allowed: train, val, test"
    return _TableRow(line, path, label, _SPLIT_OF_CELL[split.lower()])


def _find_file_faults(folder: Path, rows: Sequence[_TableRow]) -> _Faults:
    """Find rows whose file is missing, or stands in an earlier row, too."""
    faults: _Faults = []
    first_lines: dict[str, int] = {}
    for row in rows:
        if not os.path.isfile(folder / row.path):  # noqa: PTH113  Path.is_file fails if the name is too long
            hint = " (separate folders with /)" if "\\" in row.path else ""
            faults.append((row.line, f"the file does not exist: {row.path}{hint}"))
        first_line = first_lines.setdefault(os.path.normpath(folder / row.path), row.line)
        if first_line != row.line:
            faults.append((row.line, f"duplicate of line {first_line}: {row.path!r}"))
    return faults


def _build_image_files(folder: Path, rows: Sequence[_TableRow], classes: Sequence[str]) -> ImageFiles:
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of_class[row.label] for row in rows], dtype=np.int64)
    return ImageFiles(tuple(folder / row.path for row in rows), tuple(row.path for row in rows), labels)


def _build_table_error(table: Path, faults: _Faults, fix: str = "correct these lines; no line is skipped") -> DataError:
    examples = [f"line {line}: {fault[:_MAX_EXAMPLE_LENGTH]}" for line, fault in faults]
    where = [str(table), *limit_lines(examples, _MAX_EXAMPLES)]
    return DataError(f"the table has {pluralize(len(faults), 'unusable line')}", where=where, fix=fix)
