"""Rows into ``FILE.part``, which becomes FILE when all are there; after a kill they go on where they ended.

``FILE.part.json`` says what the rows were made with. It is there before the first row, and goes after the last.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from resnetkit import files
from resnetkit.errors import UsageError
from resnetkit.prediction.formats import (
    JSON_FIELDS,
    JSON_LINE_PREFIX,
    Prediction,
    escape_surrogates,
    format_csv_cells,
    format_csv_line,
    format_json_line,
    list_csv_columns,
)
from resnetkit.prediction.inputs import ImageInput
from resnetkit.serialization import from_data, parse_json, read_text, to_json

_DEFAULT_FIELD_LIMIT = 131072  # letters of a cell, where nobody says otherwise
_SYNC_SECONDS = 5.0  # seconds after which what was written is put on the disk


class RowFormat(Protocol):
    """How rows stand in a file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row holds."""

    @property
    def header(self) -> str:
        """The line before all rows; empty where there is none."""

    @property
    def prefix(self) -> str:
        """What every file begins with."""

    def format_line(self, prediction: Prediction) -> str:
        """A row, without its end."""

    def read_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        """(bytes, file, whether it could not be read) of each row that is whole, up to one that is not."""


@dataclass(frozen=True)
class CsvFormat:
    """The first row is the head."""

    top: int

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(list_csv_columns(self.top))

    @property
    def header(self) -> str:
        return format_csv_cells(self.columns)

    @property
    def prefix(self) -> str:
        return f"{self.header}\n"

    def format_line(self, prediction: Prediction) -> str:
        return format_csv_line(prediction, self.top)

    def read_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        for size, row in _read_complete_rows(file, has_quotes=True):
            cells = _parse_cells(row)
            if len(cells) != len(self.columns):
                return
            yield size, cells[0], bool(cells[-1])


def _parse_cells(row: str) -> list[str]:
    """Of a row of any length."""
    limit = csv.field_size_limit(max(len(row), _DEFAULT_FIELD_LIMIT))  # it is one for the whole process
    try:
        return next(csv.reader(io.StringIO(row, newline="")), [])
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class JsonLinesFormat:
    """A document for each row."""

    columns: tuple[str, ...] = JSON_FIELDS
    header: str = ""
    prefix: str = JSON_LINE_PREFIX

    def format_line(self, prediction: Prediction) -> str:
        return format_json_line(prediction)

    def read_rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        for size, row in _read_complete_rows(file):
            try:
                record = json.loads(row)
            except (ValueError, RecursionError):
                return
            if not isinstance(record, dict) or tuple(record) != self.columns:
                return
            yield size, escape_surrogates(str(record["file"])), record["error"] is not None


def select_row_format(suffix: str, top: int) -> RowFormat:
    """Of a file that ends so."""
    return CsvFormat(top) if suffix == ".csv" else JsonLinesFormat()


def _read_complete_rows(file: BinaryIO, has_quotes: bool = False) -> Iterator[tuple[int, str]]:
    """(bytes, text) of what ends with a line break: one that does not stand within ``quotes``."""
    lines, is_quoted = [], False
    for line in file:
        lines.append(line)
        is_quoted ^= has_quotes and bool(line.count(b'"') % 2)
        if line.endswith(b"\n") and not is_quoted:
            row = b"".join(lines)
            if b"\0" in row:  # what a disk makes of pages that it never got
                return
            try:
                yield len(row), row.decode()
            except UnicodeDecodeError:
                return
            lines.clear()


@dataclass(frozen=True, slots=True)
class Provenance:
    """What rows depend on beside their pictures."""

    model: str
    engine: str
    device: str
    top: int
    columns: tuple[str, ...]
    artifact: str = ""
    format: Literal[1] = 1


@dataclass
class ExistingRows:
    """What is there already: the files of whole rows, in order, how many of them could not be read, and all bytes."""

    names: list[str] = field(default_factory=list)
    n_unreadable: int = 0
    n_bytes: int = 0


class ResumableWriter:
    """The rows of a file on their way."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Raises `UsageError` where FILE stands, or rows of which nobody has said that they are to be gone on with."""
        self.path, self.part_path = path, path.with_name(f"{path.name}.part")
        self.provenance_path = path.with_name(f"{path.name}.part.json")
        self._remove_hint = f"remove {self.part_path.name} and {self.provenance_path.name}"
        self._resume, self._is_complete = resume, False
        self._check_free()
        self.existing = ExistingRows()

    def _check_free(self) -> None:
        if os.path.lexists(self.path):
            raise files.file_exists_error(self.path)
        if self._has_rows() and not self._resume:
            fix = f"--resume goes on with it; or {self._remove_hint}"
            raise UsageError("an earlier command left this unfinished", where=str(self.part_path), fix=fix)

    def _has_rows(self) -> bool:
        """Whether any row stands; a command that was killed early leaves an empty file."""
        try:
            status = self.part_path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # what is written would go elsewhere as well
            what = "this is no ordinary file of one name, so no rows are written into it"
            raise UsageError(what, where=str(self.part_path), fix=f"remove {self.part_path.name}")
        return status.st_size > 0

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else may write meanwhile; raises `UsageError` where somebody does, or has done so since."""
        with files.lock_file(self.part_path) as is_locked:
            if not is_locked:
                raise UsageError(
                    "another command is writing this", where=str(self.part_path), fix="wait for it, or stop it"
                )
            try:
                self._check_free()
                yield
            except BaseException:
                self._remove_empty()
                raise

    def _remove_empty(self) -> None:
        """Who has not come to a first row leaves nothing; once all stand, the name may be another command's."""
        with contextlib.suppress(OSError):
            if not (self._is_complete or (self.part_path.exists() and self.part_path.lstat().st_size)):
                for path in (self.provenance_path, self.part_path):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def read_provenance(self) -> Provenance | None:
        """What the rows that stand were made with; None where none stand."""
        if not self._has_rows():
            return None
        if not self.provenance_path.is_file():
            what = "nothing says what these rows were made with"
            raise UsageError(what, where=f"{self.provenance_path} is missing", fix=self._remove_hint)
        what = "what these rows were made with"
        try:
            return from_data(Provenance, parse_json(read_text(self.provenance_path, what), what), what)
        except UsageError as error:
            where = dict.fromkeys([str(self.provenance_path), *error.where])
            raise UsageError(error.what, where=list(where), fix=self._remove_hint) from None

    def check_existing(self, provenance: Provenance, row_format: RowFormat) -> None:
        """Find what stands; raises `UsageError` where that was made with anything else."""
        files.remove_temporary(self.provenance_path.parent, self.provenance_path.name)
        previous = self.read_provenance()
        if previous is None:
            files.write_text(self.provenance_path, to_json(provenance))
            return
        differences = _find_differences(previous, provenance)
        if differences:
            where = [f"{name}: {_shorten(old)} then, {_shorten(new)} now" for name, (old, new) in differences.items()]
            options = " ".join(_OPTION_HINTS[name](previous) for name in differences if name in _OPTION_HINTS)
            fix = f"{options or 'say the same as then'}; or {self._remove_hint}"
            raise UsageError(f"the rows of {self.part_path} were made otherwise", where=where, fix=fix)
        self.existing = self._read_existing(row_format)

    def _read_existing(self, row_format: RowFormat) -> ExistingRows:
        existing, prefix = ExistingRows(), row_format.prefix.encode()
        with self.part_path.open("rb") as file:
            first_bytes = file.read(len(prefix))
            if not prefix.startswith(first_bytes):
                raise self._build_prefix_error()
            if first_bytes != prefix:
                return existing
            existing.n_bytes = file.seek(len(prefix) if row_format.header else 0)
            for size, name, is_unreadable in row_format.read_rows(file):
                existing.names.append(name)
                existing.n_bytes, existing.n_unreadable = existing.n_bytes + size, existing.n_unreadable + is_unreadable
            file.seek(0)
            if not existing.n_bytes and file.readline().endswith(b"\n"):
                raise self._build_prefix_error()
        return existing

    def _build_prefix_error(self) -> UsageError:
        return UsageError("this does not begin as it was begun", where=str(self.part_path), fix=self._remove_hint)

    def select_remaining(self, inputs: Sequence[ImageInput], batch_size: int) -> tuple[list[int], int]:
        """The numbers of the inputs to look at, and how many of the first of them are there already.

        Where the inputs are those of before, batches begin where they would have begun, so that a picture is looked at
        among the same others; else each row that stands takes one input of its name away.
        """
        names, input_names = self.existing.names, [escape_surrogates(item.name) for item in inputs]
        if input_names[: len(names)] == names:
            n_repeated = len(names) % batch_size if len(names) < len(input_names) else 0
            return list(range(len(names) - n_repeated, len(input_names))), n_repeated
        counts = Counter(names)
        return [i for i, name in enumerate(input_names) if not _consume_name(counts, name)], 0

    def write_all(self, predictions: Iterable[Prediction], row_format: RowFormat) -> None:
        """Write the rows, and give the file its name. Raises `MachineError` where the disk does not take them."""
        log, last_sync = files.LogFile(self.part_path, self.existing.n_bytes), time.monotonic()
        if row_format.header and not log.size:
            log.add(row_format.header)
        for prediction in predictions:
            log.add(escape_surrogates(row_format.format_line(prediction)))
            if time.monotonic() - last_sync > _SYNC_SECONDS:
                log.sync()
                last_sync = time.monotonic()
        log.sync()
        self._is_complete = True
        if not files.publish(self.part_path, self.path, self.provenance_path):
            what, fix = files.file_exists_error(self.path).what, "move it away; then the same command with --resume"
            raise UsageError(what, where=[str(self.path), f"all rows stand in {self.part_path}"], fix=fix)


def _consume_name(counts: Counter[str], name: str) -> bool:
    """Whether a row of this name stands; then there is one less."""
    counts[name] -= 1
    return counts[name] >= 0


def _format_engine_options(provenance: Provenance) -> str:
    """The words that ask for it."""
    name, _, precision = provenance.engine.partition("-")
    if name != "torch":
        return f"--engine {provenance.engine}"
    return f"--engine torch --precision {precision.partition('-')[0]} --device {provenance.device}"


# the options that say what rows were made with
_OPTION_HINTS: dict[str, Callable[[Provenance], str]] = {
    "model": lambda provenance: "name the model that made them",
    "engine": _format_engine_options,
    "device": lambda provenance: f"--device {provenance.device}",
    "top": lambda provenance: f"--top {provenance.top}",
}


def _find_differences(previous: Provenance, current: Provenance) -> dict[str, tuple[Any, Any]]:
    """(then, now) of what is not the same; of another model that alone, and nothing that follows from the rest."""
    old_values, new_values = asdict(previous), asdict(current)
    differences = {
        name: (old_values[name], new_values[name]) for name in new_values if new_values[name] != old_values[name]
    }
    for changed, implied in (("model", set(differences)), ("top", {"columns"}), ("engine", {"artifact", "device"})):
        if changed in differences:
            differences = {name: pair for name, pair in differences.items() if name == changed or name not in implied}
    return differences


def _shorten(value: Any) -> str:
    """A digest by its beginning."""
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
