"""Read a table of image paths and labels: CSV with a header.

    path,label,split          split is optional: train, val or test
    shots/1.jpg,daisy,train   paths are relative to the folder of the table

The delimiter is a comma, a semicolon or a tab, or the one of Excel's ``sep=`` line. The encoding is UTF-8 or UTF-16.
Any line ending is accepted. Columns with usual names are found; the others are ignored and listed in a note.

This module imports no torch.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.class_names import describe_extra_classes, is_text, normalize_class_name
from resnetkit.data.dataset import ALIAS_TO_SPLIT, SPLIT_ALIASES, Dataset, ImageFiles
from resnetkit.data.label_kinds import check_label_kind
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.errors import DataError, find_closest
from resnetkit.formatting import join_names, limit_lines, pluralize

# Names are compared without case, spaces, "_" and "-".
_COLUMN_ALIASES = {
    "path": (
        "path",
        "file",
        "filename",
        "fname",
        "filepath",
        "image",
        "images",
        "img",
        "imagepath",
        "imagefile",
        "imagename",
    ),
    "label": ("label", "labels", "class", "classname", "target", "species", "category", "breed"),
    "split": ("split", "part", "subset", "set", "isvalid", "fold"),
}
_OPTION_OF_COLUMN = {"path": "--image-column", "label": "--label-column", "split": "--split-column"}
_SPLIT_OF_CELL = {"": "all"} | ALIAS_TO_SPLIT
_SPLIT_OF_FLAG = {"true": "val", "1": "val", "yes": "val", "false": "train", "0": "train", "no": "train"}  # of is_valid
_BYTE_ORDER_MARKS = {  # UTF-32 comes first, because its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_FOLD_NOTE = "the column {} does not name train, val and test, so it is ignored and images are split at random"
_MAX_EXAMPLES, _MAX_EXAMPLE_LENGTH, _MAX_BYTES = 5, 120, 100_000_000
Faults = list[tuple[int, str]]  # line number, problem


@dataclass(frozen=True)
class TableRow:
    """An image of a table: the number of its line, its path, its label, and its split or ``all``."""

    line: int
    path: str
    label: str
    split: str


@dataclass(frozen=True)
class TableContent:
    """The usable rows of a table, (line, problem) of the others, and notes for the user."""

    rows: list[TableRow]
    faults: Faults
    notes: list[str]


@dataclass(frozen=True)
class _Header:
    """The index of each column, the values of its split column, and what is ignored."""

    size: int
    columns: Mapping[str, int]
    split_of_cell: Mapping[str, str]
    notes: list[str]


def open_csv_table(table: Path, name: str, options: DataOptions = DEFAULT_DATA_OPTIONS) -> Dataset:
    """Open a table; every line must be usable.

    Args:
        table: The file.
        name: The file as the user wrote it.
        options: The names of the columns.

    Raises:
        DataError: lines cannot be used; the error lists the first ones.
    """
    return build_table_dataset(table, name, _read_rows(table, options), options)


def build_table_dataset(table: Path, name: str, content: TableContent, options: DataOptions) -> Dataset:
    """Build the dataset of a table whose rows name image files, relative to the folder of the table.

    Args:
        table: The file.
        name: The file as the user wrote it.
        content: The rows and the problems of the table.
        options: Whether equal classes are merged.

    Raises:
        DataError: there are faults, files are missing, or the labels are not classes.
    """
    rows = content.rows
    rows_of_split = {split: [row for row in rows if row.split == split] for split in (*SPLIT_ALIASES, "all")}
    rows_of_split = {split: split_rows for split, split_rows in rows_of_split.items() if split_rows}
    file_faults = _iter_file_faults(table.parent, rows)
    faults = [*content.faults, *file_faults, *_iter_split_faults(rows_of_split, options.merge_classes)]
    if faults:
        raise _build_table_error(table, sorted(faults))
    label_notes = check_label_kind(Counter(row.label for row in rows), str(table))
    classes = tuple(sorted({row.label for row in rows}))
    files = {split: _build_image_files(table.parent, rows, classes) for split, rows in rows_of_split.items()}
    return Dataset(name, classes, dict(files), (*content.notes, *label_notes))


# ----------------------------------------------------------------------------------------------------- text and header


def _read_rows(table: Path, options: DataOptions) -> TableContent:
    first_line, delimiter, text = _remove_sep_line(_read_table(table))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[TableRow] = []
    faults: Faults = []
    try:
        numbered = ((reader.line_num + first_line, cells) for cells in reader if cells)
        _, names = next(numbered, (0, []))
        all_cells = list(numbered)
        header = _parse_header(table, names, [cells for _, cells in all_cells], options)
        for line, cells in all_cells:
            row = _parse_row(line, cells, header)
            if isinstance(row, TableRow):
                rows.append(row)
            else:
                faults.append((line, row))
    except csv.Error as error:
        raise _build_table_error(table, [(reader.line_num + first_line, f"not valid CSV: {error}")]) from None
    if not rows and not faults:
        faults = [(first_line + 2, "there are no images below the header")]
    return TableContent(rows, faults, header.notes)


def _read_table(table: Path) -> str:
    try:
        with table.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the table: {error.strerror}", where=str(table)) from None
    if len(content) > _MAX_BYTES:
        raise DataError(f"the table has more than {_MAX_BYTES:,} bytes", where=str(table))
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:2]:  # UTF-16 without a mark: every other byte of ASCII text is zero
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        text = content.decode(encoding) if encoding else content.decode("utf-8", "surrogateescape")
    except UnicodeDecodeError:
        raise DataError(
            f"the table is not valid {encoding.upper()}", where=str(table), fix="save it as UTF-8"
        ) from None
    return text.lstrip("\ufeff")


def _remove_sep_line(text: str) -> tuple[int, str, str]:
    """Return the number of lines before the header, the delimiter, and the text from the header on."""
    sep_line = re.match(r'"?sep=(.)"?[,;\t]*(\r\n|\r|\n)', text, re.IGNORECASE)  # written for Excel
    if sep_line:
        return 1, sep_line[1], text[sep_line.end() :]
    return 0, max(",;\t", key=(text[:1000].splitlines() or [""])[0].count), text


def _parse_header(table: Path, names: Sequence[str], rows: Sequence[Sequence[str]], options: DataOptions) -> _Header:
    """Find the columns; raise `DataError` if one is missing or ambiguous."""
    requested = {"path": options.image_column, "label": options.label_column, "split": options.split_column}
    columns: dict[str, int] = {}
    faults, dropped = [], []
    for column, option in _OPTION_OF_COLUMN.items():
        indices = _find_column(names, _COLUMN_ALIASES[column], requested[column])
        if not requested[column] and column == "split":
            dropped = _find_folds(names, rows, indices)
            indices = [i for i in indices if i not in dropped]
        if len(indices) == 1:
            columns[column] = indices[0]
        elif len(indices) > 1:
            faults.append(
                f"two columns can be the {column}: {join_names([names[i] for i in indices])}; choose: {option}"
            )
        elif requested[column]:
            closest = "".join(f"; did you mean {match}?" for match in find_closest(requested[column], names))
            faults.append(f"the table has no column {requested[column]!r} ({option}){closest}")
        elif column != "split":
            faults.append(f"the column {column} is missing")
    flags = [
        name for i, name in enumerate(names) if rows and {cells[i] for cells in rows if i < len(cells)} == {"0", "1"}
    ]
    if "label" not in columns and len(flags) > 1:
        faults.append(f"{join_names(flags)} hold 0 and 1: write the name of the class into one column label")
    if not faults and len(set(columns.values())) < len(columns):
        faults = ["one column is chosen twice"]
    if faults:
        fix = "name the columns path and label, or choose them: --image-column, --label-column, --split-column"
        where = (1, f"the columns are: {join_names([cell or '(unnamed)' for cell in names], 12)}")
        raise _build_table_error(
            table, [*((1, fault) for fault in faults), where], fix, "the table has unusable columns"
        )
    used = {*columns.values(), *dropped}
    ignored = [name or "(unnamed)" for i, name in enumerate(names) if i not in used]
    notes = [_FOLD_NOTE.format(names[i]) for i in dropped]
    notes += [f"ignored columns of the table: {join_names(ignored, 12)}"] if ignored else []
    is_flag = "split" in columns and _simplify(names[columns["split"]]) == "isvalid"
    return _Header(len(names), columns, _SPLIT_OF_FLAG if is_flag else _SPLIT_OF_CELL, notes)


def _find_column(names: Sequence[str], aliases: Sequence[str], requested: str) -> list[int]:
    """Return the index of the requested column, or the indices of the columns with a usual name."""
    if requested:
        return [i for i, name in enumerate(names) if name.strip() == requested.strip()][:1]
    return [i for i, name in enumerate(names) if _simplify(name) in aliases]


def _find_folds(names: Sequence[str], rows: Sequence[Sequence[str]], indices: Sequence[int]) -> list[int]:
    """Return those of the split columns that name no split, such as fold numbers."""
    folds = []
    for i in indices:
        cells = {cells[i].strip().lower() for cells in rows if i < len(cells)}
        is_numeric = all(re.fullmatch(r"-?\d+(\.0*)?", cell) for cell in cells)
        is_split = bool(cells & ALIAS_TO_SPLIT.keys()) or _simplify(names[i]) == "split"
        if _simplify(names[i]) != "isvalid" and (is_numeric or not is_split):
            folds.append(i)
    return folds


def _simplify(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


# ----------------------------------------------------------------------------------------------------------------- rows


def _parse_row(line: int, cells: Sequence[str], header: _Header) -> TableRow | str:
    """Return a row, or its problem."""
    if len(cells) != header.size:
        return f"{pluralize(len(cells), 'cell')}, but the header has {header.size}"
    columns = header.columns
    path, label, split = (cells[columns[name]].strip() if name in columns else "" for name in _COLUMN_ALIASES)
    if not path or not label:
        return f"the {'label' if path else 'path'} is empty"
    if not is_text(label):
        return "the label is not text (UTF-8)"
    if "split" not in columns:
        return TableRow(line, path, label, "all")
    if split.lower() not in header.split_of_cell:
        allowed = "true, false" if header.split_of_cell is _SPLIT_OF_FLAG else "train, val, test"
        return f"unknown split: {split!r}; allowed: {allowed}"
    return TableRow(line, path, label, header.split_of_cell[split.lower()])


def _iter_file_faults(folder: Path, rows: Sequence[TableRow]) -> Iterator[tuple[int, str]]:
    """Find rows whose file is missing, or stands in an earlier row, too."""
    first_lines: dict[str, int] = {}
    for row in rows:
        if not os.path.isfile(folder / row.path):  # noqa: PTH113  Path.is_file fails if the name is too long
            hint = " (separate folders with /)" if "\\" in row.path else ""
            yield row.line, f"the file does not exist: {row.path}{hint}"
        first_line = first_lines.setdefault(os.path.normpath(folder / row.path), row.line)
        if first_line != row.line:
            yield row.line, f"duplicate of line {first_line}: {row.path!r}"


def _iter_split_faults(
    rows_of_split: Mapping[str, Sequence[TableRow]], merge_classes: bool
) -> Iterator[tuple[int, str]]:
    """Find rows without a split among rows that have one, and classes that cannot be learned."""
    if not rows_of_split:
        return
    normalize = normalize_class_name if merge_classes else str
    train_split = next(iter(rows_of_split))
    known_classes = {normalize(row.label) for row in rows_of_split[train_split]}
    for split, rows in rows_of_split.items():
        for row in rows:
            if split == "all" and len(rows_of_split) > 1:
                yield row.line, "the split is empty, but other lines have one"
            if normalize(row.label) not in known_classes:
                yield row.line, describe_extra_classes(split, train_split, [row.label])


def _build_image_files(folder: Path, rows: Sequence[TableRow], classes: Sequence[str]) -> ImageFiles:
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of_class[row.label] for row in rows], dtype=np.int64)
    return ImageFiles(tuple(folder / row.path for row in rows), tuple(row.path for row in rows), labels)


def _build_table_error(
    table: Path, faults: Faults, fix: str = "correct these lines; no line is skipped", what: str = ""
) -> DataError:
    examples = [f"line {line}: {fault[:_MAX_EXAMPLE_LENGTH]}" for line, fault in faults]
    where = [str(table), *limit_lines(examples, _MAX_EXAMPLES)]
    return DataError(what or f"the table has {pluralize(len(faults), 'unusable line')}", where=where, fix=fix)
