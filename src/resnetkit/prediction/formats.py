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
from resnetkit.errors import extra_missing


@dataclass(frozen=True)
class Answer:
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


def record(answer: Answer) -> dict[str, Any]:
    """For JSON."""
    top = [{"label": label, "probability": round(share, 6)} for label, share in answer.top]
    first = top[0] if top else {"label": None, "probability": None}
    return {"file": answer.file, **first, "top": top, "error": answer.error or None}


START = '{"file": '  # of what `json_line` gives
FIELDS = ("file", "label", "probability", "top", "error")  # of a line of JSON


def json_line(answer: Answer, ascii_only: bool = False) -> str:
    """One document."""
    return json.dumps(record(answer), ensure_ascii=ascii_only)


def csv_columns(top: int) -> list[str]:
    """What the cells of a line are."""
    more = [f"{column}_{i}" for i in range(2, top + 1) for column in ("label", "probability")]
    return ["file", "label", "probability", *more, "error"]


def csv_line(answer: Answer, top: int) -> str:
    """A line; a name with a line break in it is quoted and stays one cell."""
    cells = [cell for label, share in answer.top for cell in (label, f"{share:.6f}")]
    return csv_cells([answer.file, *cells, *[""] * (2 * top - len(cells)), answer.error])


_END = "\r\n"


def csv_cells(cells: Sequence[str]) -> str:
    """Cells as a line without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator=_END).writerow(cells)  # a name that holds a part of it is quoted
    return line.getvalue().removesuffix(_END)


def require_parquet() -> None:
    """Raise `MachineError` where pyarrow is missing, before any work is done for it."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise extra_missing("pyarrow, which writes Parquet,", "data") from None


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """A Parquet file, whole or not at all, of lists and of arrays (N D); raises `MachineError` without pyarrow."""
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: _column(column) for name, column in columns.items()})
    with files.replacing(path) as part:
        parquet.write_table(table, part)


def _column(values: Any) -> Any:
    import pyarrow

    if isinstance(values, np.ndarray) and values.shape[1]:
        return pyarrow.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
    return [as_text(value) if isinstance(value, str) else value for value in values]


_GROUP = 4096  # rows that are written at once


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """A new Parquet file, whole or not at all, of answers as they come; raises `MachineError` without pyarrow."""
    require_parquet()
    import pyarrow
    from pyarrow import parquet

    text, number = pyarrow.string(), pyarrow.float64()
    types = [text, text, number, pyarrow.list_(text), pyarrow.list_(number), text]
    names = ["file", "label", "probability", "labels", "probabilities", "error"]
    schema, rows = pyarrow.schema(list(zip(names, types, strict=True))), iter(answers)
    with files.replacing(path, new=True) as part, parquet.ParquetWriter(part, schema) as writer:
        while some := list(itertools.islice(rows, _GROUP)):
            columns = [list(column) for column in zip(*map(_parquet_row, some), strict=True)]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _parquet_row(answer: Answer) -> tuple[Any, ...]:
    labels, shares = [as_text(label) for label, _ in answer.top], [share for _, share in answer.top]
    label, error = labels[0] if labels else None, as_text(answer.error) or None
    return as_text(answer.file), label, answer.probability, labels, shares, error


def as_text(word: str) -> str:
    """Names of files need not be text, and files hold nothing else."""
    return word.encode("utf-8", "backslashreplace").decode()
