"""Answers as rows: CSV, JSON lines, Parquet. No torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
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
        """The most probable class; empty where the file could not be read."""
        return self.top[0][0] if self.top else ""

    @property
    def probability(self) -> float | None:
        """Of the most probable class; None where the file could not be read."""
        return self.top[0][1] if self.top else None


def record(answer: Answer) -> dict[str, Any]:
    """For JSON."""
    top = [{"label": label, "probability": round(share, 6)} for label, share in answer.top]
    first = top[0] if top else {"label": None, "probability": None}
    return {"file": answer.file, **first, "top": top, "error": answer.error or None}


def json_lines(answers: Iterable[Answer], ascii_only: bool = False) -> Iterator[str]:
    """A line for each answer."""
    return (json.dumps(record(answer), ensure_ascii=ascii_only) for answer in answers)


def csv_lines(answers: Iterable[Answer], top: int) -> Iterator[str]:
    """A header and a line for each answer; a name with a line break in it is quoted and stays one cell."""
    more = [f"{column}_{i}" for i in range(2, top + 1) for column in ("label", "probability")]
    yield _csv(["file", "label", "probability", *more, "error"])
    for answer in answers:
        cells = [cell for label, share in answer.top for cell in (label, f"{share:.6f}")]
        yield _csv([answer.file, *cells, *[""] * (2 * top - len(cells)), answer.error])


_END = "\r\n"


def _csv(cells: Sequence[str]) -> str:
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
    return [_text(value) for value in values]


def answer_columns(answers: Sequence[Answer]) -> dict[str, Sequence[Any]]:
    """For Parquet."""
    return {
        "file": [answer.file for answer in answers],
        "label": [answer.label or None for answer in answers],
        "probability": [answer.probability for answer in answers],
        "labels": [[label for label, _ in answer.top] for answer in answers],
        "probabilities": [[share for _, share in answer.top] for answer in answers],
        "error": [answer.error or None for answer in answers],
    }


def _text(value: Any) -> Any:
    """Names of files need not be text, and Parquet holds nothing else."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
