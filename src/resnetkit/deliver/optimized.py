"""What `optimize` found, as it stands in a model folder, and which of it serves best here and now. No torch.

``engines/engines.json`` says everything; what the engines need lies in
``engines/FOLDER/ENGINE-PRECISION/``. The file is the last to be written, so a folder that it does not name is nothing.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnetkit.architecture.card import WEIGHTS_FILE, read_card
from resnetkit.deliver.engine import KINDS, Choice, Engine
from resnetkit.doctor import processor
from resnetkit.errors import Fault, MachineError, TextError, UsageError, WeightsError, suggestion
from resnetkit.learn.ranks import cores
from resnetkit.text import from_data, parse_json, read_text, to_json

Purpose = Literal["latency", "throughput", "start"]
FOLDER, FILE, REPORT = "engines", "engines.json", "report.html"
_AGAIN = "resnetkit optimize {folder}"


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
    """A way to compute that was chosen: what for, and the digests of its files."""

    purpose: Purpose
    row: Row
    versions: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Optimized:
    """``engines.json``."""

    weights: str
    processor: str
    folder: str
    checked: str
    rows: tuple[Row, ...]
    kept: tuple[Kept, ...]
    format: Literal[1] = 1


def here() -> str:
    """The processor and its cores: figures and choices are of it alone."""
    return f"{processor()}, {platform.machine()}, {cores()} cores"


def weights_digest(folder: Path) -> str:
    """Of everything that decides the logits: the weights, the network and how pictures are prepared."""
    card = read_card(folder)
    found = hashlib.sha256(to_json(card.spec).encode() + to_json(card.preparation).encode())
    return found.hexdigest()[:16] + digest(folder / WEIGHTS_FILE)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """Of each engine and precision the row with the most images per second, fastest first; then those left out."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        known = best.setdefault((row.choice.name, row.choice.device), row)
        if (not row.why, row.images_per_second or 0) > (not known.why, known.images_per_second or 0):
            best[row.choice.name, row.choice.device] = row
    return sorted(best.values(), key=lambda row: (bool(row.why), -(row.images_per_second or 0)))


def reference(rows: Sequence[Row]) -> Row | None:
    """What people run who do nothing about it: eager, in fp32, at its better batch."""
    plain = [row for row in rows if row.choice.name == "eager-fp32" and row.choice.streams == 1 and not row.why]
    return max(plain, key=lambda row: row.images_per_second or 0.0, default=None)


def told(row: Row) -> tuple[str, ...]:
    """As cells: engine, precision, batch, images/s, ms, start, error, agreement, what was found."""
    choice = row.choice
    place = "" if choice.device == "cpu" else f" on {choice.device}"
    agreed = "" if row.same is None else f"{row.same:.2%}"
    points = "" if row.lost is None else f"{-row.lost:+.2f}"
    speed = "" if row.images_per_second is None else f"{row.images_per_second:,.1f}"
    once = "" if row.milliseconds is None else f"{row.milliseconds:,.2f}"
    error = "" if row.error is None else f"{row.error:.1e}"
    way = f"{choice.batch} x {choice.streams}" if speed else ""
    return (f"{choice.engine}{place}", choice.precision, way, speed, once, error, agreed, points, row.why)


CELLS = ("engine", "precision", "batch x streams", "images/s", "ms a batch", "logits", "same", "points", "left out")


def read(folder: Path) -> Optimized | None:
    """What stands in a model folder; None where it was never optimized. Raises `WeightsError` where it is damaged."""
    path = folder / FOLDER / FILE
    if not path.is_file():
        return None
    again = _AGAIN.format(folder=folder)
    try:
        found = from_data(Optimized, parse_json(read_text(path, "this file"), str(path)), str(path))
        for name in (found.folder, *(name for kept in found.kept for name, _ in kept.files)):
            if not _PLAIN.fullmatch(name):
                raise TextError(f"{path} is damaged", [Fault("folder, files", repr(name), "plain names")])
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where], fix=again) from None
    return found


_PLAIN = re.compile(r"[0-9a-z]+([._][0-9a-z]+)*")


def serving(folder: Path, pictures: int, wanted: str = "auto") -> tuple[Kept | None, str]:
    """What is soonest done with so many pictures, of what was kept and still holds; or None, and a sentence why not.

    Nothing to say of a model that was never optimized. With a ``wanted`` name (``openvino-int8``) it is that one, or an
    error: `UsageError` for one that was not kept, `MachineError` for one that cannot run here any more.
    """
    found = read(folder)
    if wanted == "auto" and (found is None or not found.kept):
        return None, ""
    if found is None:
        raise UsageError("this model was never optimized", where=str(folder), fix=_AGAIN.format(folder=folder))
    chosen = [kept for kept in found.kept if wanted in ("auto", kept.row.choice.name)]
    if not chosen:
        names = sorted({kept.row.choice.name for kept in found.kept})
        raise UsageError(f"there is no engine {wanted!r} here", where=str(folder), fix=suggestion(wanted, names))
    reasons = [_not_any_more(folder, found, kept) for kept in chosen]
    able = [kept for kept, why in zip(chosen, reasons, strict=True) if not why]
    if able:
        return min(able, key=lambda kept: seconds(kept.row, pictures)), ""
    if wanted == "auto":
        return None, f"{reasons[0]}; {_AGAIN.format(folder=folder)}"
    raise MachineError(reasons[0], where=str(folder), fix=_AGAIN.format(folder=folder))


def seconds(row: Row, pictures: int) -> float:
    """How long a way to compute takes for so many pictures, from nothing."""
    return (row.seconds_to_start or 0.0) + pictures / (row.images_per_second or 1e-9)


def _not_any_more(folder: Path, found: Optimized, kept: Kept) -> str:
    """Why what was measured does not hold here and now; empty where it does."""
    choice = kept.row.choice
    kind = KINDS.get(choice.engine)
    if kind is None or choice.precision not in kind.precisions:  # both become the name of a folder
        return f"{choice.name!r} is no engine that is known here"
    if found.processor != here():
        return f"it was optimized for another machine ({found.processor}; this is {here()})"
    try:
        kind.require()
    except MachineError as error:
        return f"{error.what}: {error.fix}"
    if kind.versions() != kept.versions:
        return f"it was optimized with {' '.join(kept.versions)}, and there is {' '.join(kind.versions())}"
    if found.weights != weights_digest(folder):
        return "its weights have changed since it was optimized"
    lacking = [name for name, known in kept.files if not _whole(place(folder, found, choice) / name, known)]
    return f"a file of {choice.name} is missing or damaged: {lacking[0]}" if lacking else ""


def _whole(path: Path, known: str) -> bool:
    return path.is_file() and digest(path) == known


def place(folder: Path, found: Optimized, choice: Choice) -> Path:
    """Where the artefact of a choice lies."""
    return folder / FOLDER / found.folder / choice.name


def opened(folder: Path, kept: Kept) -> Engine:
    """The engine of what `serving` gave."""
    found = read(folder)
    assert found is not None  # noqa: S101  for the type checker
    choice = kept.row.choice
    return KINDS[choice.engine].backend().open(folder, place(folder, found, choice), choice)
