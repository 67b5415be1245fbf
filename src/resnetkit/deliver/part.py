"""Rows into ``FILE.part``, which becomes FILE when all are there; after a kill they go on where they ended. No torch.

``FILE.part.json`` says what the rows were made with. It is there before the first row, and goes after the last.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from resnetkit import files
from resnetkit.deliver.inputs import Input
from resnetkit.deliver.rows import FIELDS, Answer, as_text, csv_cells, csv_columns, csv_line, json_line
from resnetkit.errors import UsageError
from resnetkit.text import from_data, parse_json, read_text, to_json

_SYNC = 5.0  # seconds after which what was written is put on the disk


class Form(Protocol):
    """How rows stand in a file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row holds."""

    @property
    def head(self) -> str:
        """The line before all rows; empty where there is none."""

    def line(self, answer: Answer) -> str:
        """A row, without its end."""

    def rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        """(bytes, file, whether it could not be read) of each row that is whole, up to one that is not."""


@dataclass(frozen=True)
class Csv:
    """The first row is the head."""

    top: int

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(csv_columns(self.top))

    @property
    def head(self) -> str:
        return csv_cells(self.columns)

    def line(self, answer: Answer) -> str:
        return csv_line(answer, self.top)

    def rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        for size, row in _ended(file, quotes=True):
            cells = next(csv.reader(io.StringIO(row, newline="")), [])
            if len(cells) != len(self.columns):
                return
            yield size, cells[0], bool(cells[-1])


@dataclass(frozen=True)
class JsonLines:
    """A document for each row."""

    columns: tuple[str, ...] = FIELDS
    head: str = ""

    def line(self, answer: Answer) -> str:
        return json_line(answer)

    def rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        for size, row in _ended(file):
            try:
                told = json.loads(row)
            except (ValueError, RecursionError):
                return
            if not isinstance(told, dict) or tuple(told) != self.columns:
                return
            yield size, as_text(str(told["file"])), told["error"] is not None


def form_of(ending: str, top: int) -> Form:
    """Of a file that ends so."""
    return Csv(top) if ending == ".csv" else JsonLines()


def _ended(file: BinaryIO, quotes: bool = False) -> Iterator[tuple[int, str]]:
    """(bytes, text) of what ends with a line break: one that does not stand within ``quotes``."""
    row, within = b"", False
    for line in file:
        row, within = row + line, within ^ (quotes and bool(line.count(b'"') % 2))
        if line.endswith(b"\n") and not within:
            if b"\0" in row:  # what a disk makes of pages that it never got
                return
            try:
                yield len(row), row.decode()
            except UnicodeDecodeError:
                return
            row = b""


@dataclass(frozen=True, slots=True)
class MadeWith:
    """What rows depend on beside their pictures."""

    model: str
    engine: str
    device: str
    top: int
    columns: tuple[str, ...]
    artefact: str = ""
    format: Literal[1] = 1


@dataclass
class Standing:
    """What is there already: the files of whole rows, in order, how many of them could not be read, and all bytes."""

    names: list[str] = field(default_factory=list)
    bad: int = 0
    size: int = 0


class Part:
    """The rows of a file on their way."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Raises `UsageError` where rows stand and nobody has said that they are to be gone on with."""
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self.record = path.with_name(f"{path.name}.part.json")
        self._remove = f"remove {self.part.name} and {self.record.name}"
        if self._begun() and not resume:
            fix = f"--resume goes on with it; or {self._remove}"
            raise UsageError("an earlier command left this unfinished", where=str(self.part), fix=fix)
        self.standing = Standing()

    def _begun(self) -> bool:
        """Whether any row stands; a command that was killed early leaves an empty file."""
        return self.part.exists() and self.part.stat().st_size > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else may write meanwhile; raises `UsageError` where somebody does."""
        with files.held(self.part) as mine:
            if not mine:
                raise UsageError("another command is writing this", where=str(self.part), fix="wait for it, or stop it")
            yield

    def made_with(self) -> MadeWith | None:
        """What the rows that stand were made with; None where none stand."""
        if not self._begun():
            return None
        if not self.record.is_file():
            what = "nothing says what these rows were made with"
            raise UsageError(what, where=f"{self.record} is missing", fix=self._remove)
        data = parse_json(read_text(self.record, "this file"), str(self.record))
        return from_data(MadeWith, data, str(self.record), self._remove)

    def begin(self, made: MadeWith, form: Form) -> None:
        """Find what stands; raises `UsageError` where that was made with anything else."""
        then = self.made_with()
        if then is None:
            files.write_text(self.record, to_json(made))
            return
        now, before = asdict(made), asdict(then)
        differing = [
            f"{name}: {_short(before[name])} then, {_short(now[name])} now" for name in now if now[name] != before[name]
        ]
        if differing:
            fix = f"say the same as then; or {self._remove}"
            raise UsageError(f"the rows of {self.part} were made otherwise", where=differing, fix=fix)
        self.standing = self._read(form)

    def _read(self, form: Form) -> Standing:
        found = Standing()
        with self.part.open("rb") as file:
            head = file.readline() if form.head else b""
            if head.endswith(b"\n") and head != f"{form.head}\n".encode():
                raise UsageError("this does not begin as it was begun", where=str(self.part), fix=self._remove)
            if form.head and not head.endswith(b"\n"):
                return found
            found.size = len(head)
            for size, name, bad in form.rows(file):
                found.names.append(name)
                found.size, found.bad = found.size + size, found.bad + bad
        return found

    def left(self, inputs: Sequence[Input], batch: int) -> tuple[list[int], int]:
        """The numbers of the inputs to look at, and how many of the first of them are there already.

        Where the inputs are those of before, batches begin where they would have begun, so that a picture is looked at
        among the same others; else each row that stands takes one input of its name away.
        """
        names, told = self.standing.names, [as_text(one.name) for one in inputs]
        if told[: len(names)] == names:
            again = len(names) % batch if len(names) < len(told) else 0
            return list(range(len(names) - again, len(told))), again
        there = Counter(names)
        return [i for i, name in enumerate(told) if not _taken(there, name)], 0

    def fill(self, answers: Iterable[Answer], form: Form) -> None:
        """Write the rows, and give the file its name. Raises `MachineError` where the disk does not take them."""
        log, synced = files.Log(self.part, self.standing.size), time.monotonic()
        if form.head and not log.size:
            log.add(form.head)
        for answer in answers:
            log.add(as_text(form.line(answer)))
            if time.monotonic() - synced > _SYNC:
                log.sync()
                synced = time.monotonic()
        log.sync()
        files.finish(self.part, self.path)
        with contextlib.suppress(OSError):
            self.record.unlink()


def _taken(there: Counter[str], name: str) -> bool:
    """Whether a row of this name stands; then there is one less."""
    there[name] -= 1
    return there[name] >= 0


def _short(value: Any) -> str:
    """A digest by its beginning."""
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
