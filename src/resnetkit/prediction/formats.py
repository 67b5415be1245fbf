"""Predictions as CSV, JSON lines and Parquet.

This module imports no torch.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnetkit import files
from resnetkit.errors import missing_extra_error

ROW_GROUP_SIZE = 4096  # rows of a Parquet file that are written at once
_DEFAULT_FIELD_LIMIT = 131072  # characters of a cell that the csv module reads by default
_LINE_END = "\r\n"
# What already has an apostrophe gets another one, so that the name can be read back.
_FORMULA, _ESCAPED_FORMULA = re.compile(r"\A(?='*[=+\-@\t\r])"), re.compile(r"\A'(?='*[=+\-@\t\r])")


@dataclass(frozen=True)
class Prediction:
    """The classes of an image with their probabilities, highest first, or the error that prevents a prediction."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty if there is an error."""
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float | None:
        """The probability of `label`; None if there is an error."""
        return self.top[0][1] if self.top else None


def build_record(prediction: Prediction) -> dict[str, Any]:
    """Build the JSON object of a prediction."""
    top = [{"label": label, "probability": round(probability, 6)} for label, probability in prediction.top]
    best = top[0] if top else {"label": None, "probability": None}
    return {"file": prediction.file, **best, "top": top, "error": prediction.error or None}


def format_json_line(prediction: Prediction, ascii_only: bool = False) -> str:
    """Format a prediction as one line of JSON.

    Args:
        prediction: the prediction.
        ascii_only: whether to escape all other characters.
    """
    return json.dumps(build_record(prediction), ensure_ascii=ascii_only)


def escape_surrogates(text: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, so that the name can be written as text."""
    return text.encode("utf-8", "backslashreplace").decode()


# --------------------------------------------------------------------------------------------------- CSV and JSON lines


@dataclass(frozen=True)
class CsvFormat:
    """CSV with a header; ``top`` classes per row.

    A spreadsheet would run a cell that begins with ``= + - @``. Unless ``has_formulas`` is set, such a text gets an
    apostrophe in front.
    """

    top: int
    has_formulas: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        suffixes = ["", *(f"_{i}" for i in range(2, self.top + 1))]
        return "file", *(f"{name}{suffix}" for suffix in suffixes for name in ("label", "probability")), "error"

    @property
    def header(self) -> str:
        """The first line, without its end."""
        return _format_cells(self.columns)

    @property
    def prefix(self) -> str:
        """The text that a file starts with."""
        return f"{self.header}\n"

    def format_line(self, prediction: Prediction) -> str:
        """Format a row without the line end; a name with a line break is quoted and stays one cell."""
        cells = [cell for label, probability in prediction.top for cell in (label, f"{probability:.6f}")]
        cells = [prediction.file, *cells, *[""] * (2 * self.top - len(cells)), prediction.error]
        return _format_cells(cells if self.has_formulas else [_FORMULA.sub(r"'\g<0>", cell) for cell in cells])

    def read_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        """Yield (bytes, file name, whether it has an error) of each row before an incomplete one."""
        for size, row in _read_complete_rows(file, has_quotes=True):
            cells = _parse_cells(row)
            if len(cells) != len(self.columns):
                return
            name = cells[0] if self.has_formulas else _ESCAPED_FORMULA.sub("", cells[0])
            yield size, name, bool(cells[-1])


@dataclass(frozen=True)
class JsonLinesFormat:
    """One JSON object per line, without a header."""

    columns: tuple[str, ...] = tuple(build_record(Prediction("")))
    header: str = ""
    prefix: str = '{"file": '

    def format_line(self, prediction: Prediction) -> str:
        """Format a row without the line end."""
        return format_json_line(prediction)

    def read_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        """Yield (bytes, file name, whether it has an error) of each row before an incomplete one."""
        for size, row in _read_complete_rows(file):
            try:
                record = json.loads(row)
            except (ValueError, RecursionError):
                return
            if not isinstance(record, dict) or tuple(record) != self.columns:
                return
            yield size, escape_surrogates(str(record["file"])), record["error"] is not None


RowFormat = CsvFormat | JsonLinesFormat


def select_row_format(suffix: str, top: int, has_formulas: bool = False) -> RowFormat:
    """Return the format of a file.

    Args:
        suffix: the end of its name, ``.csv`` or ``.jsonl``.
        top: the number of classes per row.
        has_formulas: whether CSV keeps cells that a spreadsheet would run.
    """
    return CsvFormat(top, has_formulas) if suffix == ".csv" else JsonLinesFormat()


def _format_cells(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator=_LINE_END).writerow(cells)  # a name that holds a part of the line end is quoted
    return line.getvalue().removesuffix(_LINE_END)


def _parse_cells(row: str) -> list[str]:
    """Parse a row of any length; the csv module's limit is global, so it is restored."""
    limit = csv.field_size_limit(max(len(row), _DEFAULT_FIELD_LIMIT))
    try:
        return next(csv.reader(io.StringIO(row, newline="")), [])
    finally:
        csv.field_size_limit(limit)


def _read_complete_rows(file: BinaryIO, has_quotes: bool = False) -> Iterator[tuple[int, str]]:
    """Yield (size in bytes, text) of rows that end with a line break outside of quotes."""
    lines, is_quoted = [], False
    for line in file:
        lines.append(line)
        is_quoted ^= has_quotes and bool(line.count(b'"') % 2)
        if line.endswith(b"\n") and not is_quoted:
            row = b"".join(lines)
            if b"\0" in row:  # after a power failure, pages that were never written read as zeros
                return
            try:
                yield len(row), row.decode()
            except UnicodeDecodeError:
                return
            lines.clear()


# -------------------------------------------------------------------------------------------------------------- Parquet


def import_pyarrow() -> Any:
    """Import pyarrow, which is needed for Parquet files alone; a command does so before any work is done.

    Raises:
        MachineError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise missing_extra_error("pyarrow, which writes Parquet,", "data") from None
    return pyarrow


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """Write a Parquet file atomically.

    Args:
        path: the file.
        columns: lists, or arrays (N, D) that become lists of fixed size.

    Raises:
        MachineError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    table = pyarrow.table({name: _to_arrow_column(column) for name, column in columns.items()})
    with files.atomic_write(path) as temporary_path:
        pyarrow.parquet.write_table(table, temporary_path)


def _to_arrow_column(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.shape[1]:
        return import_pyarrow().FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
    return [escape_surrogates(value) if isinstance(value, str) else value for value in values]


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions into a new Parquet file as they come; the file gets its name at the end.

    Args:
        path: the file, which must not exist.
        predictions: the rows.

    Raises:
        MachineError: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    text, number = pyarrow.string(), pyarrow.float64()
    lists, rows = {"labels": pyarrow.list_(text), "probabilities": pyarrow.list_(number)}, iter(predictions)
    schema = pyarrow.schema({"file": text, "label": text, "probability": number, **lists, "error": text})
    with (
        files.atomic_write(path, exclusive=True) as temporary_path,
        pyarrow.parquet.ParquetWriter(temporary_path, schema) as writer,
    ):
        while group := list(itertools.islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pyarrow.Table.from_pylist(list(map(_build_parquet_row, group)), schema))


def _build_parquet_row(prediction: Prediction) -> dict[str, Any]:
    labels = [escape_surrogates(label) for label, _ in prediction.top]
    return {
        "file": escape_surrogates(prediction.file),
        "label": labels[0] if labels else None,
        "probability": prediction.probability,
        "labels": labels,
        "probabilities": [probability for _, probability in prediction.top],
        "error": escape_surrogates(prediction.error) or None,
    }
