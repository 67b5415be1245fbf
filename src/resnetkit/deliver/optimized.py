"""What `optimize` found, as it stands in a model folder, and which of it serves best here and now. No torch.

``engines/engines.json`` says everything; what the engines need lies in
``engines/FOLDER/ENGINE-PRECISION/``. The file is the last to be written, so a folder that it does not name is nothing.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnetkit.architecture.card import WEIGHTS_FILE, read_card
from resnetkit.deliver.engine import KINDS, Choice, Engine
from resnetkit.doctor import abilities, processor
from resnetkit.errors import Fault, MachineError, TextError, UsageError, WeightsError, suggestion
from resnetkit.files import digest
from resnetkit.learn.ranks import cores
from resnetkit.text import from_data, parse_json, read_text, to_json

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
    card = read_card(folder)
    found = hashlib.sha256(to_json(card.spec).encode() + to_json(card.preparation).encode())
    return found.hexdigest()[:16] + digest(folder / WEIGHTS_FILE)


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """Of each engine and precision the row with the most images per second, fastest first; then those left out.

    What was measured in the last round, side by side, has seconds to start; the others were looked at once.
    """
    best = {row.choice.name: row for row in sorted(rows, key=lambda row: (not row.why, row.images_per_second or 0.0))}
    return sorted(best.values(), key=lambda row: (bool(row.why), -(row.images_per_second or 0.0)))


def plain(rows: Sequence[Row]) -> Row | None:
    """What others are compared with: eager, in fp32, all cores on one call, at its better batch."""
    found = [row for row in rows if row.choice.name == "eager-fp32" and row.choice.streams == 1 and not row.why]
    return max(found, key=lambda row: (row.seconds_to_start is not None, row.images_per_second or 0.0), default=None)


def cells(row: Row) -> tuple[str, ...]:
    """Of a row of a table, under `HEADINGS`."""
    choice = row.choice
    place = "" if choice.device == "cpu" else f" on {choice.device}"
    figures = (
        _figure(row.images_per_second, ",.1f"),
        _figure(row.milliseconds, ",.2f"),
        _figure(row.seconds_to_start, ".2f"),
        _figure(row.error, ".1e"),
        _figure(row.same, ".2%"),
        _figure(None if row.lost is None else -row.lost, "+z.2f"),
    )
    way = f"{choice.batch} x {choice.streams}" * bool(row.images_per_second)
    return (f"{choice.engine}{place}", choice.precision, way, *figures, row.why)


HEADINGS = ("engine", "precision", "batch x streams", "images/s", "ms a call", "s to start", "logits", "same", "points",
            "left out")  # fmt: skip


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def read(folder: Path) -> Optimized | None:
    """What stands in a model folder; None where it was never optimized. Raises `WeightsError` where it is damaged."""
    path = folder / FOLDER / FILE
    if not path.is_file():
        return None
    try:
        found = from_data(Optimized, parse_json(read_text(path, "this file"), str(path)), str(path))
        for name in (name for kept in found.kept for name in (kept.folder, *dict(kept.files))):
            if not _PLAIN.fullmatch(name):
                raise TextError(f"{path} is damaged", [Fault("kept", repr(name), "plain names of folder and files")])
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where], fix=again(folder)) from None
    return found


_PLAIN = re.compile(r"[0-9a-z]+([._][0-9a-z]+)*")


def serving(folder: Path, pictures: int, wanted: str = "auto") -> tuple[Kept | None, str]:
    """What is soonest done with so many pictures, of what was kept and still holds; or None, and a sentence why not.

    Nothing to say of a model that was never optimized. With a ``wanted`` name (``openvino-int8``) it is that one, or an
    error: `UsageError` for one that was not kept, `MachineError` for one that cannot run here any more.
    """
    found = read(folder)
    if wanted == "auto" and found is None:
        return None, ""
    if found is None:
        raise UsageError("this model was never optimized", where=str(folder), fix=again(folder))
    chosen = [kept for kept in found.kept if wanted in ("auto", kept.row.choice.name)]
    if not chosen:
        names = sorted({kept.row.choice.name for kept in found.kept})
        raise UsageError(f"there is no engine {wanted!r} here", where=str(folder), fix=suggestion(wanted, names))
    why = _not_any_more(folder, found)
    for kept in () if why else sorted(chosen, key=lambda kept: seconds(kept.row, pictures)):
        lacking = _lacking(folder, kept)
        if not lacking:
            return kept, ""
        why = why or lacking
    if wanted == "auto":
        return None, f"{why}; {again(folder)}"
    raise MachineError(why, where=str(folder), fix=again(folder))


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


def _lacking(folder: Path, kept: Kept) -> str:
    """Why one of them cannot be used; empty where it can."""
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
    artefact = place(folder, kept.folder, choice)
    bad = [name for name, known in kept.files if not (artefact / name).is_file() or digest(artefact / name) != known]
    return f"a file of {choice.name} is missing or damaged: {bad[0]}" if bad else ""


def place(folder: Path, name: str, choice: Choice) -> Path:
    """Where the artefact of a choice lies."""
    return folder / FOLDER / name / choice.name


def opened(folder: Path, kept: Kept) -> Engine:
    """The engine of what `serving` gave."""
    choice = kept.row.choice
    return KINDS[choice.engine].backend().open(folder, place(folder, kept.folder, choice), choice)
