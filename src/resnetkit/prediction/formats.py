"""Answers as rows: CSV, JSON lines, Parquet.

This module imports no torch.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit import files
from resnetkit.errors import missing_extra_error


@dataclass(frozen=True)
class Prediction:
    """What a network says of one file: (class, probability), most probable first, or why nothing can be said."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty where there is none."""
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float | None:
        """Of the most probable class; None where there is none."""
        return self.top[0][1] if self.top else None


def build_record(prediction: Prediction) -> dict[str, Any]:
    """For JSON."""
    top = [{"label": label, "probability": round(probability, 6)} for label, probability in prediction.top]
    best = top[0] if top else {"label": None, "probability": None}
    return {"file": prediction.file, **best, "top": top, "error": prediction.error or None}


JSON_LINE_PREFIX = '{"file": '  # of what `json_line` gives
JSON_FIELDS = ("file", "label", "probability", "top", "error")  # of a line of JSON


def format_json_line(prediction: Prediction, ascii_only: bool = False) -> str:
    """One document."""
    return json.dumps(build_record(prediction), ensure_ascii=ascii_only)


def list_csv_columns(top: int) -> list[str]:
    """What the cells of a line are."""
    other_columns = [f"{column}_{i}" for i in range(2, top + 1) for column in ("label", "probability")]
    return ["file", "label", "probability", *other_columns, "error"]


def format_csv_line(prediction: Prediction, top: int) -> str:
    """A line; a name with a line break in it is quoted and stays one cell."""
    cells = [cell for label, probability in prediction.top for cell in (label, f"{probability:.6f}")]
    return format_csv_cells([prediction.file, *cells, *[""] * (2 * top - len(cells)), prediction.error])


_LINE_END = "\r\n"


def format_csv_cells(cells: Sequence[str]) -> str:
    """Cells as a line without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator=_LINE_END).writerow(cells)  # a name that holds a part of it is quoted
    return line.getvalue().removesuffix(_LINE_END)


def check_parquet_installed() -> None:
    """Raise `MachineError` where pyarrow is missing, before any work is done for it."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise missing_extra_error("pyarrow, which writes Parquet,", "data") from None


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """A Parquet file, whole or not at all, of lists and of arrays (N D); raises `MachineError` without pyarrow."""
    check_parquet_installed()
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: _to_arrow_column(column) for name, column in columns.items()})
    with files.atomic_write(path) as temporary_path:
        parquet.write_table(table, temporary_path)


def _to_arrow_column(values: Any) -> Any:
    import pyarrow

    if isinstance(values, np.ndarray) and values.shape[1]:
        return pyarrow.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
    return [escape_surrogates(value) if isinstance(value, str) else value for value in values]


_ROW_GROUP_SIZE = 4096  # rows that are written at once


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """A new Parquet file, whole or not at all, of answers as they come; raises `MachineError` without pyarrow."""
    check_parquet_installed()
    import pyarrow
    from pyarrow import parquet

    text, number = pyarrow.string(), pyarrow.float64()
    types = [text, text, number, pyarrow.list_(text), pyarrow.list_(number), text]
    names = ["file", "label", "probability", "labels", "probabilities", "error"]
    schema, rows = pyarrow.schema(list(zip(names, types, strict=True))), iter(predictions)
    with (
        files.atomic_write(path, exclusive=True) as temporary_path,
        parquet.ParquetWriter(temporary_path, schema) as writer,
    ):
        while group := list(itertools.islice(rows, _ROW_GROUP_SIZE)):
            columns = [list(column) for column in zip(*map(_build_parquet_row, group), strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _build_parquet_row(prediction: Prediction) -> tuple[Any, ...]:
    labels, probabilities = (
        [escape_surrogates(label) for label, _ in prediction.top],
        [probability for _, probability in prediction.top],
    )
    label, error = labels[0] if labels else None, escape_surrogates(prediction.error) or None
    return escape_surrogates(prediction.file), label, prediction.probability, labels, probabilities, error


def escape_surrogates(text: str) -> str:
    """Names of files need not be text, and files hold nothing else."""
    return text.encode("utf-8", "backslashreplace").decode()
