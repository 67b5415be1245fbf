"""What `optimize` found, as it stands in a model folder, and which of it serves best here and now.

``engines/engines.json`` says everything; what the engines need lies in
``engines/FOLDER/ENGINE-PRECISION/``. The file is the last to be written, so a folder that it does not name is nothing.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnetkit.architecture.card import WEIGHTS_FILE, read_card
from resnetkit.engines.base import KINDS, MOST, Choice, Engine
from resnetkit.errors import Fault, MachineError, TextError, UsageError, WeightsError, suggestion
from resnetkit.files import digest
from resnetkit.runtime.distributed import cores
from resnetkit.runtime.environment import abilities, processor
from resnetkit.serialization import from_data, parse_json, read_text, to_json

Purpose = Literal["latency", "throughput", "start"]
FOLDER, FILE, REPORT = "engines", "engines.json", "report.html"


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one way to compute: speed, and how far its answers are from those of fp32.

    ``error`` is the largest difference of a logit, as a share of the largest logit; ``same`` the share of pictures with
    the same answer; ``lost`` the points of accuracy that it costs, on labelled pictures. ``why`` says why it was left
    out. A figure that was not taken is None.
    """

    choice: Choice
    images_per_second: float | None = None
    milliseconds: float | None = None
    seconds_to_start: float | None = None
    error: float | None = None
    same: float | None = None
    lost: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A way to compute that was chosen: what for, with which versions, and the digests of its files."""

    purpose: Purpose
    row: Row
    versions: tuple[str, ...]
    folder: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Optimized:
    """``engines.json``."""

    weights: str
    processor: str
    checked: str
    rows: tuple[Row, ...]
    kept: tuple[Kept, ...]
    format: Literal[1] = 1


def here() -> str:
    """The processor and its cores: figures and choices are of it alone."""
    return ", ".join(filter(None, (processor(), platform.machine(), f"{cores()} cores", *abilities())))


def weights_digest(folder: Path) -> str:
    """Of everything that decides the logits: the weights, the network and how pictures are prepared."""
    card, weights = read_card(folder), folder / WEIGHTS_FILE
    found = hashlib.sha256(to_json(card.spec).encode() + to_json(card.preparation).encode())
    try:
        return found.hexdigest()[:16] + digest(weights)
    except OSError as error:
        what = f"the weights cannot be read: {error.strerror}"
        raise WeightsError(
            what, where=str(weights), fix="copy the model folder here again, with all its files"
        ) from None


def best_of_each(found: Optimized) -> list[Row]:
    """What was kept, what it is compared with, and the fastest of each other engine and precision, fastest first; then
    those left out.
    """
    kept, compared = {one.row.choice for one in found.kept}, plain(found.rows)
    shown = {row.choice: row for row in found.rows if row.choice in kept or row is compared}
    ranked = sorted(found.rows, key=lambda row: (not row.why, row.images_per_second or 0.0))
    best = {row.choice.name: row for row in ranked if compared is None or row.choice.name != compared.choice.name}
    shown |= {row.choice: row for row in best.values()}
    return sorted(shown.values(), key=lambda row: (bool(row.why), -(row.images_per_second or 0.0)))


def _finished(row: Row) -> bool:
    """Whether it was measured in the last round."""
    return row.seconds_to_start is not None


def plain(rows: Sequence[Row]) -> Row | None:
    """What others are compared with: eager, in fp32, all cores on one call, at its better batch."""
    found = [row for row in rows if row.choice.name == "eager-fp32" and row.choice.streams == 1 and not row.why]
    return max(found, key=lambda row: (_finished(row), row.images_per_second or 0.0), default=None)


def throughput(found: Optimized) -> float:
    """Images per second of what was kept for many pictures; 0 where nothing was."""
    return max((one.row.images_per_second or 0.0 for one in found.kept if one.purpose == "throughput"), default=0.0)


def cells(row: Row, kept: Sequence[Kept]) -> tuple[str, ...]:
    """Of a row of a table, under `HEADINGS`."""
    return (
        row.choice.name,
        _figure(row.images_per_second, ",.1f"),
        f"{row.choice.batch} x {row.choice.streams}",
        _figure(row.milliseconds, ",.2f"),
        _figure(row.seconds_to_start, ".2f"),
        _figure(row.error, ".1e"),
        _figure(row.same, ".2%"),
        _figure(None if row.lost is None else -row.lost, "+z.2f"),
        ", ".join(one.purpose for one in kept if one.row.choice == row.choice),
    )


HEADINGS = ("engine", "images/s", "batch x streams", "ms a call", "s to start", "logits", "same", "points", "kept for")


def left_out(rows: Sequence[Row]) -> list[str]:
    """The reasons why ways to compute were left out, each with those that it is true of."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.why:
            reasons.setdefault(row.why, []).append(row.choice.name)
    return [f"{', '.join(names)}: {why}" for why, names in reasons.items()]


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def read(folder: Path) -> Optimized | None:
    """What stands in a model folder; None where it was never optimized. Raises `WeightsError` where it is damaged."""
    path = folder / FOLDER / FILE
    if not os.path.lexists(path) and not os.path.lexists(folder / FOLDER):
        return None
    if not os.path.lexists(path) and (folder / FOLDER).is_dir():
        return None
    try:
        if not path.is_file():
            raise UsageError("this is no file that can be read")
        found = from_data(Optimized, parse_json(read_text(path, "this file"), str(path)), str(path))
        faults = [fault for i, kept in enumerate(found.kept) for fault in _faults(f"kept.{i}", kept)]
        if faults:
            raise TextError(f"{path} is damaged", faults)
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where], fix=again(folder)) from None
    return found


_PLAIN = re.compile(r"(?=.{1,100}$)[0-9a-z]+([._][0-9a-z]+)*")


def _faults(where: str, kept: Kept) -> Iterator[Fault]:
    """What `optimize` would not have written: names that lead elsewhere, numbers that nobody can compute by."""
    row = kept.row
    for name in (kept.folder, *dict(kept.files)):
        if not _PLAIN.fullmatch(name):
            yield Fault(where, repr(name), "plain names of folder and files")
    for name, value in (("batch", row.choice.batch), ("streams", row.choice.streams)):
        if not 1 <= value <= MOST:
            yield Fault(f"{where}.row.choice.{name}", repr(value), f"1 to {MOST}")
    for name in ("images_per_second", "milliseconds", "seconds_to_start"):
        if (getattr(row, name) or 0.0) < 0:
            yield Fault(f"{where}.row.{name}", repr(getattr(row, name)), "0 or more")


def serving(folder: Path, pictures: int, wanted: str = "auto") -> tuple[list[Kept], str]:
    """What was kept and still holds, that which is done with so many pictures the soonest first; and a sentence why
    another is not among them. The files of an engine are looked at when it is `opened`.

    Nothing to say of a model that was never optimized. With a ``wanted`` name (``openvino-int8``) it is that one, or an
    error: `UsageError` for one that was not kept, `MachineError` for one that cannot run here any more.
    """
    found = read(folder)
    if found is None or not found.kept:
        if wanted == "auto":
            return [], "" if found is None else f"nothing was kept; {again(folder)}"
        raise UsageError("this model was never optimized", where=str(folder), fix=again(folder))
    chosen = [kept for kept in found.kept if wanted in ("auto", kept.row.choice.name)]
    if not chosen:
        raise _not_kept(folder, found, wanted)
    why = _not_any_more(folder, found)
    holding = []
    for kept in () if why else sorted(chosen, key=lambda kept: seconds(kept.row, pictures)):
        lacking = _lacking(kept)
        if not lacking:
            holding.append(kept)
        why = why or lacking
    if not holding and wanted != "auto":
        for kept in chosen:
            if kept.row.choice.engine in KINDS:
                KINDS[kept.row.choice.engine].require()  # what is missing has a fix of its own
        raise MachineError(why, where=str(folder), fix=again(folder))
    return holding, f"{why}; {again(folder)}" if why else ""


def _not_kept(folder: Path, found: Optimized, wanted: str) -> UsageError:
    """What became of an engine that somebody names."""
    names = [*dict.fromkeys(kept.row.choice.name for kept in found.kept), "torch", "auto"]
    rows = [row for row in found.rows if row.choice.name == wanted]
    if not rows:
        what = f"there is no engine {wanted!r} here"
        return UsageError(what, where=str(folder), fix=suggestion(wanted, names))
    why = f"was left out: {rows[0].why}" if rows[0].why else "agrees, but others that were kept are faster"
    return UsageError(f"{wanted} {why}", where=str(folder), fix=f"--engine {', '.join(names[:-1])} or {names[-1]}")


def again(folder: Path) -> str:
    """The command that makes what is missing."""
    return f"resnetkit optimize {shlex.quote(str(folder))} --data PICTURES"


def seconds(row: Row, pictures: int) -> float:
    """How long a way to compute takes for so many pictures, from nothing: full calls, one on each stream at once."""
    calls = -(-pictures // (row.choice.batch * row.choice.streams))
    return (row.seconds_to_start or 0.0) + calls * (row.milliseconds or 0.0) / 1000


def _not_any_more(folder: Path, found: Optimized) -> str:
    """Why nothing that was measured holds here and now; empty where it does."""
    if found.processor != here():
        return f"it was optimized for another machine ({found.processor}; this is {here()})"
    return "its weights have changed since it was optimized" * (found.weights != weights_digest(folder))


def _lacking(kept: Kept) -> str:
    """Why one of them cannot be used; empty where it can, as far as can be told without its files."""
    choice = kept.row.choice
    kind = KINDS.get(choice.engine)
    if kind is None or choice.precision not in kind.precisions or choice.device not in kind.devices:  # a folder's name
        return f"{choice.name!r} is no engine that is known here"
    try:
        kind.require()
    except MachineError as error:
        return f"{error.what}: {error.fix}"
    if kind.versions() != kept.versions:
        return f"it was optimized with {' '.join(kept.versions)}, and there is {' '.join(kind.versions())}"
    return ""


def _is(path: Path, known: str) -> bool:
    """Whether a file can be read and has this digest."""
    try:
        return path.is_file() and digest(path) == known
    except OSError:
        return False


def place(folder: Path, name: str, choice: Choice) -> Path:
    """Where the artefact of a choice lies."""
    return folder / FOLDER / name / choice.name


def opened(folder: Path, kept: Kept) -> Engine:
    """The engine of what `serving` gave. Raises `MachineError` where its files are not those that were kept, and where
    it cannot be opened, whatever its library says.
    """
    choice = kept.row.choice
    artefact = place(folder, kept.folder, choice)
    for name, known in kept.files:
        if not _is(artefact / name, known):
            what = f"a file of {choice.name} is missing or damaged: {name}"
            raise MachineError(what, where=str(folder), fix=again(folder))
    try:
        return KINDS[choice.engine].backend().open(folder, artefact, choice)
    except Exception as error:  # libraries raise what they like, and what they read may be damaged
        told = error.what if isinstance(error, MachineError) else str(error).strip().split("\n")[0][:_WORDS]
        fix = (isinstance(error, MachineError) and error.fix) or again(folder)
        what = f"{choice.name} cannot be opened: {told or type(error).__name__}"
        raise MachineError(what, where=str(folder), fix=fix) from error


_WORDS = 300
