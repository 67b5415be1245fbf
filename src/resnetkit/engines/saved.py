"""The engines that `optimize` saves in a model folder, and which of them are usable on this machine.

``engines/engines.json`` lists measurements and saved engines; ``engines/FOLDER/ENGINE-PRECISION/`` holds the exported
files. `optimize` writes the list last, so a folder that the list does not name is not in use.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from resnetkit.architecture.card import WEIGHTS_FILE, read_card
from resnetkit.engines.base import ENGINE_SPECS, MAX_BATCH_OR_STREAMS, Engine, EngineConfig, EngineError
from resnetkit.engines.records import find_distrust_reason
from resnetkit.errors import Fault, MachineError, ResnetkitError, TextError, UsageError, WeightsError, suggest_fix
from resnetkit.files import hash_file, read_regular_file
from resnetkit.formatting import join_names
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.environment import get_cpu_features, get_processor_name
from resnetkit.serialization import MAX_TEXT_LENGTH, from_json, to_json

Purpose = Literal["latency", "throughput", "startup"]
ENGINES_FOLDER, ENGINES_FILE, REPORT_FILE = "engines", "engines.json", "report.html"
_MAX_MESSAGE_LENGTH = 300
_MAX_BYTES_PER_WEIGHT_BYTE, _MAX_GRAPH_BYTES = 4, 2**26  # of an engine's file; fp32 engines of bf16 weights have 2


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """How far an engine's predictions are from those in fp32; a number that was not measured is None.

    ``logit_error`` is the largest difference of a logit, divided by the largest logit. ``match_rate`` is the fraction
    of images with the same prediction. ``accuracy_change`` is in percentage points, on images with labels. ``reason``
    says why the predictions do not match fp32.
    """

    logit_error: float | None = None
    match_rate: float | None = None
    accuracy_change: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Speed of an engine configuration and its comparison with fp32; a number that was not measured is None.

    Only finalists have ``startup_seconds``: they are loaded again and measured in turns. ``error`` says why the engine
    could not be measured.
    """

    config: EngineConfig
    images_per_second: float | None = None
    latency_ms: float | None = None
    startup_seconds: float | None = None
    comparison: EngineComparison = EngineComparison()
    error: str = ""

    @property
    def throughput(self) -> float:
        """Images per second; 0 if not measured."""
        return self.images_per_second or 0.0

    @property
    def is_finalist(self) -> bool:
        """Whether it was measured again in the final round."""
        return self.startup_seconds is not None

    @property
    def reason(self) -> str:
        """Why it cannot be used; empty if it can."""
        return self.error or self.comparison.reason


@dataclass(frozen=True, slots=True)
class SavedEngine:
    """An engine chosen for a purpose, with the versions of its packages and the digests of its files."""

    purpose: Purpose
    measurement: Measurement
    versions: tuple[str, ...]
    folder: str
    files: tuple[tuple[str, str], ...] = ()

    @property
    def config(self) -> EngineConfig:
        """The configuration that was measured."""
        return self.measurement.config


@dataclass(frozen=True, slots=True)
class OptimizeResult:
    """The content of ``engines.json``."""

    weights_digest: str
    machine: str
    comparison_data: str
    measurements: tuple[Measurement, ...]
    engines: tuple[SavedEngine, ...]
    format: Literal[1] = 1

    def list_purposes(self, config: EngineConfig) -> str:
        """Return the purposes that a configuration was chosen for, separated by commas."""
        return ", ".join(saved.purpose for saved in self.engines if saved.config == config)


def get_machine_id() -> str:
    """Return the processor, its cores and features; measurements and choices hold only for them."""
    parts = (get_processor_name(), platform.machine(), f"{count_cores()} cores", *get_cpu_features())
    return ", ".join(filter(None, parts))


def compute_weights_digest(folder: Path) -> str:
    """Compute a digest of all that determines the logits: weights, network and image preparation.

    Raises:
        WeightsError: the weights file cannot be read.
    """
    card, weights_path = read_card(folder), folder / WEIGHTS_FILE
    hasher = hashlib.sha256(to_json(card.spec).encode() + to_json(card.preparation).encode())
    try:
        return hasher.hexdigest()[:16] + hash_file(weights_path)
    except OSError as error:
        what, fix = f"cannot read the weights: {error.strerror}", "copy the model folder again, with all its files"
        raise WeightsError(what, where=str(weights_path), fix=fix) from None


# ------------------------------------------------------------------------------------------------------------ the table

_COLUMNS: dict[str, Callable[[Measurement], str]] = {
    "engine": lambda row: row.config.name,
    "throughput (images/s)": lambda row: _format_value(row.images_per_second, ",.1f"),
    "batch x streams": lambda row: f"{row.config.batch_size} x {row.config.streams}",
    "latency (ms)": lambda row: _format_value(row.latency_ms, ",.2f"),
    "start-up (s)": lambda row: _format_value(row.startup_seconds, ".2f"),
    "logit error": lambda row: _format_value(row.comparison.logit_error, ".1e"),
    "matches fp32 (%)": lambda row: _format_value(row.comparison.match_rate, ".2f", 100),
    "accuracy change (points)": lambda row: _format_value(row.comparison.accuracy_change, "+z.2f"),
}
HEADINGS = (*_COLUMNS, "chosen for")


def format_table_row(row: Measurement, result: OptimizeResult) -> tuple[str, ...]:
    """Format a measurement as the cells under `HEADINGS`.

    Args:
        row: the measurement.
        result: the result it belongs to, which says what the engine was chosen for.
    """
    return (*(format_cell(row) for format_cell in _COLUMNS.values()), result.list_purposes(row.config))


def _format_value(value: float | None, format_spec: str, factor: float = 1) -> str:
    return "" if value is None else format(factor * value, format_spec)


def find_baseline(rows: Sequence[Measurement]) -> Measurement | None:
    """Return the measurement to compare with: eager in fp32, one stream, the faster batch size."""
    candidates = [row for row in rows if row.config.name == "eager-fp32" and row.config.streams == 1 and not row.reason]
    return max(candidates, key=lambda row: (row.is_finalist, row.throughput), default=None)


def select_best_per_engine(result: OptimizeResult) -> list[Measurement]:
    """Return the rows of the summary table, fastest first, and those that cannot be used last.

    They are the saved engines, the baseline and the fastest of each other engine and precision.
    """
    saved_configs, baseline = {saved.config for saved in result.engines}, find_baseline(result.measurements)
    shown = {row.config: row for row in result.measurements if row.config in saved_configs or row is baseline}
    ranked = sorted(result.measurements, key=lambda row: (not row.reason, row.throughput))
    best = {row.config.name: row for row in ranked if baseline is None or row.config.name != baseline.config.name}
    shown |= {row.config: row for row in best.values()}
    return sorted(shown.values(), key=lambda row: (bool(row.reason), -row.throughput))


def get_throughput(result: OptimizeResult) -> float:
    """Return the images per second of the engine chosen for throughput; 0 if there is none."""
    return max((s.measurement.throughput for s in result.engines if s.purpose == "throughput"), default=0.0)


def group_skip_reasons(rows: Sequence[Measurement]) -> list[str]:
    """Return each reason why engines cannot be used, with the names of those engines."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault(row.reason, []).append(row.config.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


# -------------------------------------------------------------------------------------------------------------- reading


def read_engines_file(folder: Path) -> OptimizeResult | None:
    """Read ``engines.json`` of a model folder; None if the model was never optimized.

    Raises:
        WeightsError: the file is damaged or not a regular file.
    """
    content = _read_engines_file(folder)
    return None if content is None else _parse_engines_file(folder, content)


def _read_engines_file(folder: Path) -> bytes | None:
    """Return the content of ``engines.json``; None if there is none."""
    path = folder / ENGINES_FOLDER / ENGINES_FILE
    try:
        return read_regular_file(path, MAX_TEXT_LENGTH)
    except FileNotFoundError:
        return None
    except OSError as error:
        what, fix = f"cannot read the list of engines: {error.strerror or error}", format_optimize_command(folder)
        raise WeightsError(what, where=str(path), fix=fix) from None


def _parse_engines_file(folder: Path, content: bytes) -> OptimizeResult:
    path = folder / ENGINES_FOLDER / ENGINES_FILE
    try:
        result = from_json(OptimizeResult, content.decode("utf-8", "backslashreplace"), str(path))
        if faults := [fault for i, saved in enumerate(result.engines) for fault in _find_faults(f"engines.{i}", saved)]:
            raise TextError(f"{path} is damaged", faults)
    except UsageError as error:
        raise WeightsError(error.what, where=[str(path), *error.where], fix=format_optimize_command(folder)) from None
    return result


_SAFE_NAME = re.compile(r"(?=.{1,100}$)[0-9a-z]+([._][0-9a-z]+)*")


def _find_faults(location: str, saved: SavedEngine) -> Iterator[Fault]:
    """Yield values that `optimize` does not write: names that leave the folder, impossible numbers."""
    row = saved.measurement
    for name in (saved.folder, *dict(saved.files)):
        if not _SAFE_NAME.fullmatch(name):
            yield Fault(location, repr(name), "plain names of folder and files")
    for name in ("batch_size", "streams"):
        if not 1 <= (value := getattr(row.config, name)) <= MAX_BATCH_OR_STREAMS:
            yield Fault(f"{location}.measurement.config.{name}", repr(value), f"1 to {MAX_BATCH_OR_STREAMS}")
    for name in ("images_per_second", "latency_ms", "startup_seconds"):
        if (getattr(row, name) or 0.0) < 0:
            yield Fault(f"{location}.measurement.{name}", repr(getattr(row, name)), "0 or more")


# ------------------------------------------------------------------------------------------------------- usable engines


class UsableEngines(NamedTuple):
    """Saved engines that may be used, and why another one may not (empty if there is nothing to say).

    ``is_foreign``: they were not optimized here, so that their predictions must be compared with torch first.
    """

    engines: list[SavedEngine]
    reason: str = ""
    is_foreign: bool = False


def find_usable_engines(folder: Path, n_images: int, engine_name: str = "auto") -> UsableEngines:
    """Find the saved engines that are usable here, the one that finishes ``n_images`` soonest first.

    Engines that were not optimized by this user on this machine are usable only by name. `open_engine` checks the
    engine's files.

    Args:
        folder: the model folder.
        n_images: the number of images to predict.
        engine_name: the name of one engine (``openvino-int8``), or ``auto`` for any.

    Raises:
        UsageError: the named engine was never saved.
        MachineError: the named engine is not usable on this machine.
    """
    is_auto, hint = engine_name == "auto", format_optimize_command(folder)
    content = _read_engines_file(folder)
    result = None if content is None else _parse_engines_file(folder, content)
    if content is None or result is None or not result.engines:
        if is_auto:
            return UsableEngines([], "" if result is None else f"no engine was saved; {hint}")
        raise UsageError("the model was never optimized", where=str(folder), fix=hint)
    doubt = find_distrust_reason(content) or _find_machine_change(result)
    if doubt and is_auto:
        return UsableEngines([], f"{doubt}; {hint}")
    candidates = [saved for saved in result.engines if is_auto or saved.config.name == engine_name]
    if not candidates:
        raise _build_not_saved_error(folder, result, engine_name)
    candidates.sort(key=lambda saved: estimate_seconds(saved.measurement, n_images))
    has_other_weights = result.weights_digest != compute_weights_digest(folder)
    stale_reason = "the weights have changed since they were optimized" if has_other_weights else ""
    reasons = [stale_reason or find_unusable_reason(saved) for saved in candidates]
    usable = [saved for saved, reason in zip(candidates, reasons, strict=True) if not reason]
    if doubt:
        usable = [_limit_streams(saved) for saved in usable]
    reason = next(filter(None, reasons), "")
    if not usable and not is_auto:
        for saved in candidates:
            if saved.config.engine in ENGINE_SPECS:
                ENGINE_SPECS[saved.config.engine].check_packages()  # its error has a better fix
        raise MachineError(reason, where=str(folder), fix=hint)
    reason = reason or (f"{doubt}, so its first predictions are compared with torch" if doubt else "")
    return UsableEngines(usable, f"{reason}; {hint}" if reason else "", bool(doubt))


def _build_not_saved_error(folder: Path, result: OptimizeResult, engine_name: str) -> UsageError:
    names = [*dict.fromkeys(saved.config.name for saved in result.engines), "torch", "auto"]
    row = next((row for row in result.measurements if row.config.name == engine_name), None)
    if row is None:
        fix = suggest_fix(engine_name, names)
        return UsageError(f"the model has no engine {engine_name!r}", where=str(folder), fix=fix)
    reason = f"was skipped: {row.reason}" if row.reason else "matches fp32, but the saved engines are faster"
    fix = f"--engine {', '.join(names[:-1])} or {names[-1]}"
    return UsageError(f"{engine_name} {reason}", where=str(folder), fix=fix)


def format_optimize_command(folder: Path) -> str:
    """Return the command that optimizes a model folder."""
    return f"resnetkit optimize {shlex.quote(str(folder))} --data IMAGES"


def estimate_seconds(row: Measurement, n_images: int) -> float:
    """Estimate the time from start-up to the last of ``n_images``, in full batches on all streams.

    Args:
        row: the measured configuration.
        n_images: the number of images.

    Returns:
        Seconds.
    """
    n_calls = -(-n_images // (row.config.batch_size * row.config.streams))
    return (row.startup_seconds or 0.0) + n_calls * (row.latency_ms or 0.0) / 1000


def _limit_streams(saved: SavedEngine) -> SavedEngine:
    """Return an engine of another machine with no more streams than this one has cores."""
    config = replace(saved.config, streams=min(saved.config.streams, count_cores()))
    return replace(saved, measurement=replace(saved.measurement, config=config))


def _find_machine_change(result: OptimizeResult) -> str:
    machine = get_machine_id()
    if result.machine == machine:
        return ""
    return f"the engines were optimized on another machine ({result.machine}; this is {machine})"


def find_unusable_reason(saved: SavedEngine) -> str:
    """Return why an engine is not usable on this machine; empty if it is. Its files are not checked."""
    config = saved.config
    spec = ENGINE_SPECS.get(config.engine)
    # these names become the name of a folder
    if spec is None or config.precision not in spec.precisions or config.device not in spec.devices:
        return f"{config.name!r} is not a known engine"
    names = [name for name, _ in saved.files]
    if sorted(names) != sorted(spec.files):
        allowed = join_names(spec.files) if spec.files else "none"
        return f"{config.name} lists the files {names}; allowed: {allowed}"
    try:
        spec.check_packages()
    except MachineError as error:
        return f"{error.what}: {error.fix}"
    if spec.get_versions() != saved.versions:
        return f"it was optimized with {' '.join(saved.versions)}, and {' '.join(spec.get_versions())} is installed"
    return ""


def get_artifact_folder(folder: Path, name: str, config: EngineConfig) -> Path:
    """Return the folder of an engine's exported files.

    Args:
        folder: the model folder.
        name: the folder of one `optimize` run inside ``engines/``.
        config: the engine's configuration.
    """
    return folder / ENGINES_FOLDER / name / config.name


def open_engine(folder: Path, saved: SavedEngine) -> Engine:
    """Check the files of a saved engine and load it.

    Args:
        folder: the model folder.
        saved: an engine that `find_usable_engines` returned.

    Raises:
        EngineError: a file is missing or damaged, or the engine's library fails to load it.
    """
    config, fix = saved.config, format_optimize_command(folder)
    try:
        contents = _read_contents(folder, saved)
        return ENGINE_SPECS[config.engine].import_backend().load_engine(folder, contents, config)
    except EngineError:
        raise
    except Exception as error:  # libraries raise errors of any type
        what = f"cannot load {config.name}: {get_error_line(error)}"
        raise EngineError(what, where=str(folder), fix=getattr(error, "fix", "") or fix) from error


def get_error_line(error: Exception) -> str:
    """Return the first line of an error of any library, not too long."""
    text = error.what if isinstance(error, ResnetkitError) else str(error)
    return text.strip().split("\n")[0][:_MAX_MESSAGE_LENGTH] or type(error).__name__


def _read_contents(folder: Path, saved: SavedEngine) -> dict[str, bytes]:
    """Read each file of an engine once, so that the library gets the bytes that were checked."""
    artifact = get_artifact_folder(folder, saved.folder, saved.config)
    max_bytes = _MAX_BYTES_PER_WEIGHT_BYTE * (folder / WEIGHTS_FILE).stat().st_size + _MAX_GRAPH_BYTES
    contents: dict[str, bytes] = {}
    for name, digest in saved.files:
        problem = "is missing or damaged"
        try:
            if artifact.resolve() != get_artifact_folder(folder.resolve(), saved.folder, saved.config):
                raise OSError("behind a link")
            contents[name] = read_regular_file(artifact / name, max_bytes)
        except OSError as error:
            problem = problem if error.strerror else f"is {error}"
        if name not in contents or hashlib.sha256(contents[name]).hexdigest() != digest:
            what = f"a file of {saved.config.name} {problem}: {name}"
            raise EngineError(what, where=str(folder), fix=format_optimize_command(folder))
    return contents
