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

from resnetkit.data.dataset import PARTS, PLACES, Data, Files, is_text
from resnetkit.errors import DataError

_COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "part": ("part", "split"),
}
_PARTS = {"": "all"} | PLACES
_SHOWN, _LONGEST_SHOWN, _MOST_BYTES = 5, 120, 100_000_000


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    part: str


_SLASHES = " (folders are divided by /)"
_Faults = list[tuple[int, str]]  # line, what is wrong with it


def open_table(table: Path, name: str) -> Data:
    """Raises one `DataError` with the first faults and their lines."""
    rows, faults = _rows(table)
    faults += _missing(table.parent, rows) + _twice(table.parent, rows) + _mixed(rows)
    parts = [part for part in (*PARTS, "all") if any(row.part == part for row in rows)]
    learnt = {row.label for row in rows if row.part == parts[0]} if parts else set()
    faults += [
        (row.line, f"{row.part} has a class that {parts[0]} has not: {row.label}")
        for row in rows
        if row.label not in learnt
    ]
    if faults:
        raise _unusable(table, sorted(faults))
    classes = tuple(sorted(learnt))
    files = {part: _files(table.parent, [row for row in rows if row.part == part], classes) for part in parts}
    return Data(name, classes, dict(files))


def _rows(table: Path) -> tuple[list[_Row], _Faults]:
    """The rows that can be read, and what is wrong with the others."""
    try:
        with table.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read this table: {error.strerror}", where=str(table)) from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"this table has more than {_MOST_BYTES:,} bytes", where=str(table))
    text = content.decode("utf-8-sig", "surrogateescape")
    mark = max(",;\t", key=(text[:1000].splitlines() or [""])[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    rows: list[_Row] = []
    faults: _Faults = []
    try:
        columns = next(lines, [])
        places = _places(table, columns)
        for cells in filter(None, lines):
            row = _row(lines.line_num, cells, columns, places)
            rows += [row] if isinstance(row, _Row) else []
            faults += [(lines.line_num, row)] if isinstance(row, str) else []
    except csv.Error as error:
        faults.append((lines.line_num, f"cannot be read as CSV: {error}"))
    return rows, faults if rows or faults else [(2, "there are no pictures below the header")]


def _places(table: Path, header: Sequence[str]) -> dict[str, int]:
    """Which column is which; raises `DataError` for a header that is none."""
    known = {alias: column for column, names in _COLUMNS.items() for alias in names}
    names = [cell.strip().lower() for cell in header]
    found = {known[name]: i for i, name in enumerate(names) if name in known}
    odd = [cell for cell, name in zip(header, names, strict=True) if name not in known]
    faults = [f"there is no column called {column}" for column in ("path", "label") if column not in found]
    faults += [f"a column that means nothing here: {cell!r}" for cell in odd]
    if not faults and len(found) < len(names):
        faults = ["two columns mean the same"]
    if faults:
        raise _unusable(
            table, [(1, fault) for fault in faults], fix="name the columns path, label and perhaps part; remove others"
        )
    return found


def _row(line: int, cells: Sequence[str], header: Sequence[str], places: dict[str, int]) -> _Row | str:
    """A row, or what is wrong with it."""
    if len(cells) != len(header):
        return f"{len(cells)} cells, where the header has {len(header)}"
    path, label, part = (cells[places[column]].strip() if column in places else "" for column in _COLUMNS)
    if not path or not label:
        return "there is no " + ("label" if path else "path")
    if not is_text(label):
        return "the label is not text (UTF-8)"
    if part.lower() not in _PARTS:
        return f"there is no part called {part!r}; the parts are train, val and test"
    return _Row(line, path, label, _PARTS[part.lower()])


def _missing(folder: Path, rows: Sequence[_Row]) -> _Faults:
    lost = [row for row in rows if not _is_file(folder / row.path)]
    return [(row.line, f"there is no such file: {row.path}" + _SLASHES * ("\\" in row.path)) for row in lost]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _twice(folder: Path, rows: Sequence[_Row]) -> _Faults:
    first: dict[str, int] = {}
    again = [(row, first.setdefault(os.path.normpath(folder / row.path), row.line)) for row in rows]
    return [(row.line, f"{row.path!r} stands in line {line} already") for row, line in again if line != row.line]


def _mixed(rows: Sequence[_Row]) -> _Faults:
    """Rows without a part, where others have one."""
    without = [row for row in rows if row.part == "all"]
    return [(row.line, "there is no part, and other lines have one") for row in without if len(without) < len(rows)]


def _files(folder: Path, rows: Sequence[_Row], classes: Sequence[str]) -> Files:
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[row.label] for row in rows], dtype=np.int64)
    return Files(tuple(folder / row.path for row in rows), tuple(row.path for row in rows), labels)


def _unusable(table: Path, faults: _Faults, fix: str = "mend these lines; nothing was passed over") -> DataError:
    told = [f"line {line}: {fault[:_LONGEST_SHOWN]}" for line, fault in faults[:_SHOWN]]
    more = [f"... and {len(faults) - _SHOWN:,} more"] * (len(faults) > _SHOWN)
    count = "a line" if len(faults) == 1 else f"{len(faults):,} lines"
    return DataError(f"{count} of this table cannot be used", where=[str(table), *told, *more], fix=fix)
