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
from resnetkit.engines.base import ENGINE_SPECS, MAX_BATCH_OR_STREAMS, Engine, EngineConfig
from resnetkit.errors import Fault, MachineError, TextError, UsageError, WeightsError, suggest_fix
from resnetkit.files import hash_file
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.environment import get_cpu_features, get_processor_name
from resnetkit.serialization import from_data, parse_json, read_text, to_json

Purpose = Literal["latency", "throughput", "start"]
ENGINES_FOLDER, ENGINES_FILE, REPORT_FILE = "engines", "engines.json", "report.html"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was found of one way to compute: speed, and how far its answers are from those of fp32.

    ``error`` is the largest difference of a logit, as a share of the largest logit; ``same`` the share of pictures with
    the same answer; ``lost`` the points of accuracy that it costs, on labelled pictures. ``why`` says why it was left
    out. A figure that was not taken is None.
    """

    config: EngineConfig
    images_per_second: float | None = None
    latency_ms: float | None = None
    seconds_to_start: float | None = None
    logit_error: float | None = None
    match_rate: float | None = None
    accuracy_drop: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SavedEngine:
    """A way to compute that was chosen: what for, with which versions, and the digests of its files."""

    purpose: Purpose
    measurement: Measurement
    versions: tuple[str, ...]
    folder: str
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """``engines.json``."""

    weights_digest: str
    machine: str
    comparison_data: str
    measurements: tuple[Measurement, ...]
    engines: tuple[SavedEngine, ...]
    format: Literal[1] = 1


def get_machine_id() -> str:
    """The processor and its cores: figures and choices are of it alone."""
    return ", ".join(
        filter(None, (get_processor_name(), platform.machine(), f"{count_cores()} cores", *get_cpu_features()))
    )


def compute_weights_digest(folder: Path) -> str:
    """Of everything that decides the logits: the weights, the network and how pictures are prepared."""
    card, weights_path = read_card(folder), folder / WEIGHTS_FILE
    hasher = hashlib.sha256(to_json(card.spec).encode() + to_json(card.preparation).encode())
    try:
        return hasher.hexdigest()[:16] + hash_file(weights_path)
    except OSError as error:
        what = f"the weights cannot be read: {error.strerror}"
        raise WeightsError(
            what, where=str(weights_path), fix="copy the model folder here again, with all its files"
        ) from None


def select_best_per_engine(result: OptimizeResult) -> list[Measurement]:
    """What was kept, what it is compared with, and the fastest of each other engine and precision, fastest first; then
    those left out.
    """
    saved_configs, baseline = {item.measurement.config for item in result.engines}, find_baseline(result.measurements)
    shown = {row.config: row for row in result.measurements if row.config in saved_configs or row is baseline}
    ranked = sorted(result.measurements, key=lambda row: (not row.reason, row.images_per_second or 0.0))
    best = {row.config.name: row for row in ranked if baseline is None or row.config.name != baseline.config.name}
    shown |= {row.config: row for row in best.values()}
    return sorted(shown.values(), key=lambda row: (bool(row.reason), -(row.images_per_second or 0.0)))


def _is_remeasured(row: Measurement) -> bool:
    """Whether it was measured in the last round."""
    return row.seconds_to_start is not None


def find_baseline(rows: Sequence[Measurement]) -> Measurement | None:
    """What others are compared with: eager, in fp32, all cores on one call, at its better batch."""
    candidates = [row for row in rows if row.config.name == "eager-fp32" and row.config.streams == 1 and not row.reason]
    return max(candidates, key=lambda row: (_is_remeasured(row), row.images_per_second or 0.0), default=None)


def get_throughput(result: OptimizeResult) -> float:
    """Images per second of what was kept for many pictures; 0 where nothing was."""
    return max(
        (item.measurement.images_per_second or 0.0 for item in result.engines if item.purpose == "throughput"),
        default=0.0,
    )


def format_table_row(row: Measurement, saved_engines: Sequence[SavedEngine]) -> tuple[str, ...]:
    """Of a row of a table, under `HEADINGS`."""
    return (
        row.config.name,
        _format_value(row.images_per_second, ",.1f"),
        f"{row.config.batch_size} x {row.config.streams}",
        _format_value(row.latency_ms, ",.2f"),
        _format_value(row.seconds_to_start, ".2f"),
        _format_value(row.logit_error, ".1e"),
        _format_value(row.match_rate, ".2%"),
        _format_value(None if row.accuracy_drop is None else -row.accuracy_drop, "+z.2f"),
        ", ".join(item.purpose for item in saved_engines if item.measurement.config == row.config),
    )


HEADINGS = ("engine", "images/s", "batch x streams", "ms a call", "s to start", "logits", "same", "points", "kept for")


def group_skip_reasons(rows: Sequence[Measurement]) -> list[str]:
    """The reasons why ways to compute were left out, each with those that it is true of."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault(row.reason, []).append(row.config.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _format_value(value: float | None, format_spec: str) -> str:
    return "" if value is None else format(value, format_spec)


def read_engines_file(folder: Path) -> OptimizeResult | None:
    """What stands in a model folder; None where it was never optimized. Raises `WeightsError` where it is damaged."""
    path = folder / ENGINES_FOLDER / ENGINES_FILE
    if not os.path.lexists(path) and not os.path.lexists(folder / ENGINES_FOLDER):
        return None
    if not os.path.lexists(path) and (folder / ENGINES_FOLDER).is_dir():
        return None
    try:
        if not path.is_file():
            raise UsageError("this is no file that can be read")
        result = from_data(OptimizeResult, parse_json(read_text(path, "this file"), str(path)), str(path))
        faults = [fault for i, saved in enumerate(result.engines) for fault in _find_faults(f"engines.{i}", saved)]
        if faults:
            raise TextError(f"{path} is damaged", faults)
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where], fix=format_optimize_command(folder)) from None
    return result


_SAFE_NAME = re.compile(r"(?=.{1,100}$)[0-9a-z]+([._][0-9a-z]+)*")


def _find_faults(location: str, saved: SavedEngine) -> Iterator[Fault]:
    """What `optimize` would not have written: names that lead elsewhere, numbers that nobody can compute by."""
    row = saved.measurement
    for name in (saved.folder, *dict(saved.files)):
        if not _SAFE_NAME.fullmatch(name):
            yield Fault(location, repr(name), "plain names of folder and files")
    for name, value in (("batch_size", row.config.batch_size), ("streams", row.config.streams)):
        if not 1 <= value <= MAX_BATCH_OR_STREAMS:
            yield Fault(f"{location}.measurement.config.{name}", repr(value), f"1 to {MAX_BATCH_OR_STREAMS}")
    for name in ("images_per_second", "latency_ms", "seconds_to_start"):
        if (getattr(row, name) or 0.0) < 0:
            yield Fault(f"{location}.measurement.{name}", repr(getattr(row, name)), "0 or more")


def find_usable_engines(folder: Path, n_images: int, engine_name: str = "auto") -> tuple[list[SavedEngine], str]:
    """What was kept and still holds, that which is done with so many pictures the soonest first; and a sentence why
    another is not among them. The files of an engine are looked at when it is `opened`.

    Nothing to say of a model that was never optimized. With a ``wanted`` name (``openvino-int8``) it is that one, or an
    error: `UsageError` for one that was not kept, `MachineError` for one that cannot run here any more.
    """
    result = read_engines_file(folder)
    if result is None or not result.engines:
        if engine_name == "auto":
            return [], "" if result is None else f"nothing was kept; {format_optimize_command(folder)}"
        raise UsageError("this model was never optimized", where=str(folder), fix=format_optimize_command(folder))
    candidates = [saved for saved in result.engines if engine_name in ("auto", saved.measurement.config.name)]
    if not candidates:
        raise _build_not_saved_error(folder, result, engine_name)
    reason = _find_stale_reason(folder, result)
    usable = []
    for saved in () if reason else sorted(candidates, key=lambda saved: estimate_seconds(saved.measurement, n_images)):
        problem = _find_unusable_reason(saved)
        if not problem:
            usable.append(saved)
        reason = reason or problem
    if not usable and engine_name != "auto":
        for saved in candidates:
            if saved.measurement.config.engine in ENGINE_SPECS:
                ENGINE_SPECS[saved.measurement.config.engine].check_packages()  # what is missing has a fix of its own
        raise MachineError(reason, where=str(folder), fix=format_optimize_command(folder))
    return usable, f"{reason}; {format_optimize_command(folder)}" if reason else ""


def _build_not_saved_error(folder: Path, result: OptimizeResult, engine_name: str) -> UsageError:
    """What became of an engine that somebody names."""
    names = [*dict.fromkeys(saved.measurement.config.name for saved in result.engines), "torch", "auto"]
    rows = [row for row in result.measurements if row.config.name == engine_name]
    if not rows:
        what = f"there is no engine {engine_name!r} here"
        return UsageError(what, where=str(folder), fix=suggest_fix(engine_name, names))
    reason = f"was left out: {rows[0].reason}" if rows[0].reason else "agrees, but others that were kept are faster"
    return UsageError(
        f"{engine_name} {reason}", where=str(folder), fix=f"--engine {', '.join(names[:-1])} or {names[-1]}"
    )


def format_optimize_command(folder: Path) -> str:
    """The command that makes what is missing."""
    return f"resnetkit optimize {shlex.quote(str(folder))} --data PICTURES"


def estimate_seconds(row: Measurement, n_images: int) -> float:
    """How long a way to compute takes for so many pictures, from nothing: full calls, one on each stream at once."""
    n_calls = -(-n_images // (row.config.batch_size * row.config.streams))
    return (row.seconds_to_start or 0.0) + n_calls * (row.latency_ms or 0.0) / 1000


def _find_stale_reason(folder: Path, result: OptimizeResult) -> str:
    """Why nothing that was measured holds here and now; empty where it does."""
    if result.machine != get_machine_id():
        return f"it was optimized for another machine ({result.machine}; this is {get_machine_id()})"
    return "its weights have changed since it was optimized" * (result.weights_digest != compute_weights_digest(folder))


def _find_unusable_reason(saved: SavedEngine) -> str:
    """Why one of them cannot be used; empty where it can, as far as can be told without its files."""
    config = saved.measurement.config
    spec = ENGINE_SPECS.get(config.engine)
    if spec is None or config.precision not in spec.precisions or config.device not in spec.devices:  # a folder's name
        return f"{config.name!r} is no engine that is known here"
    try:
        spec.check_packages()
    except MachineError as error:
        return f"{error.what}: {error.fix}"
    if spec.get_versions() != saved.versions:
        return f"it was optimized with {' '.join(saved.versions)}, and there is {' '.join(spec.get_versions())}"
    return ""


def _has_digest(path: Path, expected: str) -> bool:
    """Whether a file can be read and has this digest."""
    try:
        return path.is_file() and hash_file(path) == expected
    except OSError:
        return False


def get_artifact_folder(folder: Path, name: str, config: EngineConfig) -> Path:
    """Where the artefact of a choice lies."""
    return folder / ENGINES_FOLDER / name / config.name


def open_engine(folder: Path, saved: SavedEngine) -> Engine:
    """The engine of what `serving` gave. Raises `MachineError` where its files are not those that were kept, and where
    it cannot be opened, whatever its library says.
    """
    config = saved.measurement.config
    artifact = get_artifact_folder(folder, saved.folder, config)
    for name, expected in saved.files:
        if not _has_digest(artifact / name, expected):
            what = f"a file of {config.name} is missing or damaged: {name}"
            raise MachineError(what, where=str(folder), fix=format_optimize_command(folder))
    try:
        return ENGINE_SPECS[config.engine].import_backend().load_engine(folder, artifact, config)
    except Exception as error:  # libraries raise what they like, and what they read may be damaged
        message = (
            error.what if isinstance(error, MachineError) else str(error).strip().split("\n")[0][:_MAX_MESSAGE_LENGTH]
        )
        fix = (isinstance(error, MachineError) and error.fix) or format_optimize_command(folder)
        what = f"{config.name} cannot be opened: {message or type(error).__name__}"
        raise MachineError(what, where=str(folder), fix=fix) from error


_MAX_MESSAGE_LENGTH = 300
