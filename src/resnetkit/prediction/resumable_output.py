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
from resnetkit.prediction.formats import FIELDS, START, Answer, as_text, csv_cells, csv_columns, csv_line, json_line
from resnetkit.prediction.inputs import Input
from resnetkit.serialization import from_data, parse_json, read_text, to_json

_LONGEST = 131072  # letters of a cell, where nobody says otherwise
_SYNC = 5.0  # seconds after which what was written is put on the disk


class Form(Protocol):
    """How rows stand in a file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row holds."""

    @property
    def head(self) -> str:
        """The line before all rows; empty where there is none."""

    @property
    def start(self) -> str:
        """What every file begins with."""

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

    @property
    def start(self) -> str:
        return f"{self.head}\n"

    def line(self, answer: Answer) -> str:
        return csv_line(answer, self.top)

    def rows(self, file: BinaryIO) -> Iterator[tuple[int, str, bool]]:
        for size, row in _ended(file, quotes=True):
            cells = _cells(row)
            if len(cells) != len(self.columns):
                return
            yield size, cells[0], bool(cells[-1])


def _cells(row: str) -> list[str]:
    """Of a row of any length."""
    limit = csv.field_size_limit(max(len(row), _LONGEST))  # it is one for the whole process
    try:
        return next(csv.reader(io.StringIO(row, newline="")), [])
    finally:
        csv.field_size_limit(limit)


@dataclass(frozen=True)
class JsonLines:
    """A document for each row."""

    columns: tuple[str, ...] = FIELDS
    head: str = ""
    start: str = START

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
    lines, within = [], False
    for line in file:
        lines.append(line)
        within ^= quotes and bool(line.count(b'"') % 2)
        if line.endswith(b"\n") and not within:
            row = b"".join(lines)
            if b"\0" in row:  # what a disk makes of pages that it never got
                return
            try:
                yield len(row), row.decode()
            except UnicodeDecodeError:
                return
            lines.clear()


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
        """Raises `UsageError` where FILE stands, or rows of which nobody has said that they are to be gone on with."""
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        self.record = path.with_name(f"{path.name}.part.json")
        self._remove = f"remove {self.part.name} and {self.record.name}"
        self._resume, self._whole = resume, False
        self._require_free()
        self.standing = Standing()

    def _require_free(self) -> None:
        if os.path.lexists(self.path):
            raise files.exists_already(self.path)
        if self._begun() and not self._resume:
            fix = f"--resume goes on with it; or {self._remove}"
            raise UsageError("an earlier command left this unfinished", where=str(self.part), fix=fix)

    def _begun(self) -> bool:
        """Whether any row stands; a command that was killed early leaves an empty file."""
        try:
            found = self.part.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # what is written would go elsewhere as well
            what = "this is no ordinary file of one name, so no rows are written into it"
            raise UsageError(what, where=str(self.part), fix=f"remove {self.part.name}")
        return found.st_size > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else may write meanwhile; raises `UsageError` where somebody does, or has done so since."""
        with files.held(self.part) as mine:
            if not mine:
                raise UsageError("another command is writing this", where=str(self.part), fix="wait for it, or stop it")
            try:
                self._require_free()
                yield
            except BaseException:
                self._remove_empty()
                raise

    def _remove_empty(self) -> None:
        """Who has not come to a first row leaves nothing; once all stand, the name may be another command's."""
        with contextlib.suppress(OSError):
            if not self._whole and self.part.lstat().st_size == 0:
                for path in (self.record, self.part):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def made_with(self) -> MadeWith | None:
        """What the rows that stand were made with; None where none stand."""
        if not self._begun():
            return None
        if not self.record.is_file():
            what = "nothing says what these rows were made with"
            raise UsageError(what, where=f"{self.record} is missing", fix=self._remove)
        what = "what these rows were made with"
        try:
            return from_data(MadeWith, parse_json(read_text(self.record, what), what), what)
        except UsageError as error:
            where = dict.fromkeys([str(self.record), *error.where])
            raise UsageError(error.what, where=list(where), fix=self._remove) from None

    def begin(self, made: MadeWith, form: Form) -> None:
        """Find what stands; raises `UsageError` where that was made with anything else."""
        files.sweep(self.record.parent, self.record.name)
        then = self.made_with()
        if then is None:
            files.write_text(self.record, to_json(made))
            return
        differing = _differing(then, made)
        if differing:
            where = [f"{name}: {_short(before)} then, {_short(now)} now" for name, (before, now) in differing.items()]
            same = " ".join(_SAYS[name](then) for name in differing if name in _SAYS)
            fix = f"{same or 'say the same as then'}; or {self._remove}"
            raise UsageError(f"the rows of {self.part} were made otherwise", where=where, fix=fix)
        self.standing = self._read(form)

    def _read(self, form: Form) -> Standing:
        found, start = Standing(), form.start.encode()
        with self.part.open("rb") as file:
            begun = file.read(len(start))
            if not start.startswith(begun):
                raise self._foreign()
            if begun != start:
                return found
            found.size = file.seek(len(start) if form.head else 0)
            for size, name, bad in form.rows(file):
                found.names.append(name)
                found.size, found.bad = found.size + size, found.bad + bad
            file.seek(0)
            if not found.size and file.readline().endswith(b"\n"):
                raise self._foreign()
        return found

    def _foreign(self) -> UsageError:
        return UsageError("this does not begin as it was begun", where=str(self.part), fix=self._remove)

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
        self._whole = True
        if not files.finish(self.part, self.path, self.record):
            what, fix = files.exists_already(self.path).what, "move it away; then the same command with --resume"
            raise UsageError(what, where=[str(self.path), f"all rows stand in {self.part}"], fix=fix)


def _taken(there: Counter[str], name: str) -> bool:
    """Whether a row of this name stands; then there is one less."""
    there[name] -= 1
    return there[name] >= 0


def _engine(then: MadeWith) -> str:
    """The words that ask for it."""
    name, _, precision = then.engine.partition("-")
    if name != "torch":
        return f"--engine {then.engine}"
    return f"--engine torch --precision {precision.partition('-')[0]} --device {then.device}"


# the options that say what rows were made with
_SAYS: dict[str, Callable[[MadeWith], str]] = {
    "model": lambda then: "name the model that made them",
    "engine": _engine,
    "device": lambda then: f"--device {then.device}",
    "top": lambda then: f"--top {then.top}",
}


def _differing(then: MadeWith, now: MadeWith) -> dict[str, tuple[Any, Any]]:
    """(then, now) of what is not the same; of another model that alone, and nothing that follows from the rest."""
    before, after = asdict(then), asdict(now)
    found = {name: (before[name], after[name]) for name in after if after[name] != before[name]}
    for first, follow in (("model", set(found)), ("top", {"columns"}), ("engine", {"artefact", "device"})):
        if first in found:
            found = {name: pair for name, pair in found.items() if name == first or name not in follow}
    return found


def _short(value: Any) -> str:
    """A digest by its beginning."""
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
