"""The fastest way to compute on this machine that still agrees: everything is tried, checked, and measured again.

Each engine works in a process of its own. The best of the first round are measured once more, taking turns, so that
what else the machine does meets all of them; what is kept has been checked exactly as it will run.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig, Logits
from resnetkit.engines.saved import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    REPORT_FILE,
    Measurement,
    OptimizeResult,
    Purpose,
    SavedEngine,
    compute_weights_digest,
    find_baseline,
    get_machine_id,
)
from resnetkit.errors import MachineError, UsageError, VerificationError, suggest_fix
from resnetkit.files import hash_file
from resnetkit.network.inference import count_network_classes, inference
from resnetkit.network.layers import NetworkModule
from resnetkit.optimization.accuracy_check import MAX_LOSS, Fp32Reference
from resnetkit.optimization.client import BenchmarkClient, BenchmarkError, open_benchmark_client
from resnetkit.optimization.report import get_model_name, render_optimize_report
from resnetkit.optimization.samples import EngineSamples, load_samples, make_synthetic_samples
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.serialization import to_json
from resnetkit.weights.load import count_nonfinite, load_network
from resnetkit.weights.model_source import find_model_folder
from resnetkit.weights.save import check_new_path, save

_FINALS_SHARE, _REFERENCE_SHARE = 0.3, 0.1
_MIN_SHARE = 0.25  # of what is left of the first round: few need all of theirs, and leave the rest to the others
_FINAL_ROUNDS = 5
_MIN_REQUEST_TIMEOUT = 30.0  # seconds that any request gets, however little is left
_MIN_VARIANTS, _HOPELESS_SHARE = (
    3,
    0.3,
)  # ways of an engine before it is given up, and the share of the best that is too little
_MIN_VARIANTS_OVERTIME = 2  # ways of an engine, one for a single picture and one for many, though its share is over
_FINALIST_SHARE, _MAX_FINALISTS = (
    0.75,
    6,
)  # of the fastest: what the machine did meanwhile may have cost that much; of how many
_SAME_SPEED_SHARE = 0.9  # of the fastest, by which medians of a few seconds are uncertain
_N_TIMING_IMAGES = 32  # pictures that speed is measured with, and at once in the reference
_MIN_COMPARED_IMAGES = 100  # pictures that fp32 is compared on: it is far from every limit, and the slowest
_BF16_SHARE, _INT8_SHARE = 0.02, 0.1  # of the time, to be compared; of bf16 the logits are, as well
_TIMEOUT_FACTOR = 3  # times as slow as it was measured, and nobody waits for it

OnMeasurement = Callable[[Measurement], None]


def optimize(
    model: str | os.PathLike[str] | NetworkModule,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    minutes: float = 5.0,
    max_loss: float = MAX_LOSS,
    engines: str | Sequence[str] = (),
    precisions: str | Sequence[str] = (),
    on_event: OnMeasurement | None = None,
    on_progress: ProgressCallback | None = None,
) -> OptimizeResult:
    """Try engines, precisions, batches and streams on this machine for about so many ``minutes``, and keep the best.

    They are kept in the model folder, or in the new one ``out`` for other weights; ``data`` (with classes, or a folder
    of pictures alone) is what answers are compared on, and int8 needs it. With classes an engine may lose ``max_loss``
    points of accuracy. ``engines`` and ``precisions`` name those to try. ``watch`` hears of each `Row`, ``tell`` of
    pictures read (done, all).

    Raises `UsageError` for a model that holds no weights or is no folder, and while another search works in it;
    `VerificationError` for weights that are not finite, and where nothing works and agrees: what was kept before stays.
    """
    _check_limits(minutes, max_loss)
    configs = _list_candidates(
        _parse_names(engines, "engine", tuple(ENGINE_SPECS)), _parse_names(precisions, "precision", PRECISIONS), data
    )
    folder = _resolve_model_folder(model, out)
    with files.lock_file(folder / CARD_FILE) as is_locked:
        if not is_locked:
            what = "another optimize is at work on this model"
            raise UsageError(what, where=str(folder), fix="wait for it, or stop it")
        _check_model(folder)
        model_digest, folder_name = compute_weights_digest(folder), secrets.token_hex(4)
        with (
            _prepare_engines_folder(folder / ENGINES_FOLDER),
            files.atomic_write_folder(folder / ENGINES_FOLDER / folder_name) as work_dir,
        ):
            budget, callback = Budget(60 * minutes), on_event or _ignore_measurement
            search, comparison_data = _prepare_search(
                folder, work_dir, budget, data=data, max_loss=max_loss, on_event=callback, on_progress=on_progress
            )
            measured = [search.measure(config, configs[i:]) for i, config in enumerate(configs, 1)]
            rows = search.remeasure_finalists([row for variants in measured for row in variants])
            saved = [
                _build_saved_engine(work_dir, folder_name, purpose, row)
                for purpose, row in select_best_by_purpose(rows).items()
            ]
            _check_saved(folder, saved, rows, model_digest)
            _remove_unsaved(work_dir, {item.measurement.config.name for item in saved})
        result = OptimizeResult(model_digest, get_machine_id(), comparison_data, tuple(rows), tuple(saved))
        files.write_text(folder / ENGINES_FOLDER / ENGINES_FILE, to_json(result))
        files.write_text(folder / ENGINES_FOLDER / REPORT_FILE, render_optimize_report(get_model_name(folder), result))
        _remove_previous(folder / ENGINES_FOLDER, folder_name)
    return result


def _ignore_measurement(row: Measurement) -> None:
    """Where nobody watches."""


PRECISIONS = tuple(dict.fromkeys(precision for spec in ENGINE_SPECS.values() for precision in spec.precisions))


def _check_limits(minutes: float, max_loss: float) -> None:
    if not 0 < minutes <= 24 * 60:
        raise UsageError(f"{minutes:g} minutes cannot be kept to", where="--minutes", fix="--minutes 5")
    if not 0 <= max_loss <= 100:
        raise UsageError(f"{max_loss:g} points cannot be lost", where="--max-loss", fix="--max-loss 0.2")


def _parse_names(values: str | Sequence[str], noun: str, known: Sequence[str]) -> tuple[str, ...]:
    """Each name once; raises `UsageError` for one that is not known."""
    names = tuple(dict.fromkeys((values,) if isinstance(values, str) else values))
    for name in names:
        if name not in known:
            fix = f"divide them by spaces: {name.replace(',', ' ')}" if "," in name else suggest_fix(name, known)
            raise UsageError(f"there is no {noun} called {name!r}", where=f"--{noun}s", fix=fix)
    return names


def _list_candidates(engines: Sequence[str], precisions: Sequence[str], data: str | Path | None) -> list[EngineConfig]:
    """A choice for each engine, device and precision, in the order of the table.

    Raises `UsageError` or `MachineError` where, of what was named, nothing can be tried.
    """
    has_gpu, specs = (
        torch.cuda.is_available(),
        {name: ENGINE_SPECS[name] for name in ENGINE_SPECS if not engines or name in engines},
    )
    configs = [
        EngineConfig(name, precision, device=device)
        for name, spec in specs.items()
        for device in (spec.devices if has_gpu else spec.devices[:1])
        for precision in spec.precisions
        if not precisions or precision in precisions
    ]
    if not configs:
        supported = "; ".join(f"{name}: {', '.join(spec.precisions)}" for name, spec in specs.items())
        what = f"no engine computes in {' or '.join(precisions)}"
        raise UsageError(what, where=["--precisions", supported], fix="another precision, or other --engines")
    if data is None and all(config.precision.startswith("int8") for config in configs):
        raise UsageError(_NO_CALIBRATION, where="--precisions", fix="--data DIR")
    for spec in specs.values():
        with contextlib.suppress(MachineError):
            spec.check_packages(for_export=True)
            return configs
    next(iter(specs.values())).check_packages(for_export=True)
    return configs


_NO_CALIBRATION = "int8 needs pictures to measure ranges with"


@contextlib.contextmanager
def _prepare_engines_folder(folder: Path) -> Iterator[None]:
    """The folder in which engines are kept; one that is empty afterwards is removed.

    Raises `UsageError` for a link or a file: what stands behind it is not this model's, and would be removed.
    """
    if folder.is_symlink():
        what = "engines cannot be kept here, as a link stands there"
        raise UsageError(what, where=str(folder), fix="remove the link; a new folder takes its place")
    for path, is_valid in ((folder, folder.is_dir()), (folder / ENGINES_FILE, (folder / ENGINES_FILE).is_file())):
        if os.path.lexists(path) and not is_valid:
            raise UsageError(
                "engines cannot be kept here, as something else stands there", where=str(path), fix="remove it"
            )
    if folder.is_dir():
        files.remove_temporary(folder)
    try:
        yield
    finally:
        files.remove_empty_folders([folder])


def _resolve_model_folder(model: str | os.PathLike[str] | NetworkModule, out: str | Path | None) -> Path:
    """The model folder that is optimized."""
    if out is not None:
        check_new_path(Path(out), f"resnetkit optimize {out}, if that is the model; or another name")
        return save(load_network(model), out)
    folder = find_model_folder(model)
    if folder is None:
        load_network(model)  # says what is wrong with it, if anything is
        where = type(model).__name__ if isinstance(model, NetworkModule) else str(model)
        raise UsageError(
            "engines are kept in a model folder, and this is none", where=where, fix="--out NAME makes one"
        )
    return folder


def _check_model(folder: Path) -> None:
    """Raise for a network whose answers could not be compared."""
    network = load_network(folder)
    count_network_classes(network)
    nonfinite_counts = count_nonfinite(
        {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    )
    if nonfinite_counts:
        lines = [f"{key} ({count:,})" for key, count in nonfinite_counts.items()][:5]
        what = "there are NaN or infinite numbers in the weights, so no answer could be compared"
        raise VerificationError(what, where=[str(folder), *lines], fix="train again, or take an earlier checkpoint")


def _check_saved(folder: Path, saved: Sequence[SavedEngine], rows: Sequence[Measurement], model_digest: str) -> None:
    """Raise where there is nothing to keep, or what was measured is not what stands there."""
    if not saved:
        reasons = {row.config.name: f"{row.config.name}: {row.reason}" for row in rows if row.reason}
        what = "no engine works here and agrees with fp32; what was kept before stays"
        raise VerificationError(what, where=list(reasons.values()), fix="more --minutes, other --data, or more engines")
    if compute_weights_digest(folder) != model_digest:
        what = "the weights changed while engines were tried"
        raise UsageError(what, where=str(folder), fix="optimize again when they stay as they are")


# -------------------------------------------------------------------------------------------------------- what is given


@dataclass(frozen=True)
class Budget:
    """The time that a search may take, in seconds."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def search_remaining(self) -> float:
        """Of the first round."""
        return self.remaining - _FINALS_SHARE * self.seconds

    @property
    def remaining(self) -> float:
        """Of all, what is still left."""
        return self.started + self.seconds - time.monotonic()

    def share(self, n_waiting: int) -> float:
        """Of the first round, for one while so many others wait; what it leaves is theirs."""
        return self.search_remaining * max(_MIN_SHARE, 1 / (1 + n_waiting))

    @property
    def request_timeout(self) -> float:
        """For one request: none may take all that is left."""
        return max(_MIN_REQUEST_TIMEOUT, self.search_remaining / 2)

    @property
    def measurement_seconds(self) -> float:
        """Of one measurement."""
        return min(1.0, max(0.2, self.seconds / 300))


def _prepare_search(
    folder: Path,
    work_dir: Path,
    budget: Budget,
    *,
    data: str | Path | None,
    max_loss: float,
    on_event: OnMeasurement,
    on_progress: ProgressCallback | None,
) -> tuple[Search, str]:
    """A search, and what its pictures are. Neither network nor pictures stay in this process."""
    network = load_network(folder)
    is_trained = network.card.is_trained
    samples = (
        make_synthetic_samples(network.card.preparation)
        if data is None
        else load_samples(data, network.card, is_trained, on_progress)
    )
    logits = _compute_reference_logits(network, samples, time.monotonic() + _REFERENCE_SHARE * budget.seconds)
    n = len(logits)
    np.save(work_dir / _COMPARISON_FILE, samples.images[:n])
    np.save(work_dir / _TIMING_FILE, samples.images[:_N_TIMING_IMAGES])
    if samples.calibration_images is not None:
        np.save(work_dir / _CALIBRATION_FILE, samples.calibration_images)
    labels = None if samples.labels is None else samples.labels[:n]
    reference = Fp32Reference(logits, samples.names[:n], labels, is_trained and data is not None, max_loss)
    suffix = "; perhaps fewer of them in fp32 and bf16" * (n > _MIN_COMPARED_IMAGES)
    return Search(folder, work_dir, reference, budget, on_event), f"{samples.describe(n)}{suffix}"


_COMPARISON_FILE, _TIMING_FILE, _CALIBRATION_FILE = "checked.npy", "timed.npy", "ranges.npy"


def _compute_reference_logits(network: NetworkModule, samples: EngineSamples, deadline: float) -> Logits:
    """In fp32, by the network itself, of as many pictures as there is time for."""
    outputs = []
    with inference(network, torch.device("cpu")) as infer:
        for start in range(0, len(samples.images), _N_TIMING_IMAGES):
            outputs.append(infer(torch.from_numpy(samples.images[start : start + _N_TIMING_IMAGES])).numpy())
            if time.monotonic() > deadline:
                break
    return np.concatenate(outputs)


# ----------------------------------------------------------------------------------------------------------- the search


@dataclass
class Search:
    """What all trials have in common; pictures lie in ``work``.

    ``best`` is the most images per second so far, ``agreed`` has the names of choices that agree with fp32.
    """

    folder: Path
    work_dir: Path
    reference: Fp32Reference
    budget: Budget
    on_event: OnMeasurement
    best_throughput: float = 0.0
    matching_names: set[str] = field(default_factory=set)

    def measure(self, config: EngineConfig, waiting: Sequence[EngineConfig] = ()) -> list[Measurement]:
        """A row for each way that an engine can cut its work; one row that says why, where it cannot be used.

        The ``others`` are those that wait for their turn.
        """
        reason = self._find_skip_reason(config)
        deadline = time.monotonic() + self.budget.share(sum(not self._find_skip_reason(item) for item in waiting))
        try:
            rows = [Measurement(config, reason=reason)] if reason else self._measure_in_worker(config, deadline)
        except BenchmarkError as error:
            rows = [Measurement(config, reason=str(error))]
        if rows[0].reason:  # those that were measured and agree have been heard of
            self.on_event(rows[0])
        return rows

    def _find_skip_reason(self, config: EngineConfig) -> str:
        if config.precision == "int8-body" and replace(config, precision="int8").name in self.matching_names:
            return "not needed, as int8 agrees"
        if config.precision.startswith("int8") and not self._calibration_path.exists():
            return f"{_NO_CALIBRATION}: --data DIR"
        try:
            ENGINE_SPECS[config.engine].check_packages(for_export=True)
        except MachineError as error:
            return f"{error.what}: {error.fix}"
        return "not tried, as the time was over (--minutes)" * (self.budget.search_remaining <= 0)

    @property
    def _calibration_path(self) -> Path:
        return self.work_dir / _CALIBRATION_FILE

    @property
    def _timing_path(self) -> Path:
        return self.work_dir / _TIMING_FILE

    def _measure_in_worker(self, config: EngineConfig, deadline: float) -> list[Measurement]:
        with open_benchmark_client(self.folder, self.work_dir) as client:
            client.export(
                config,
                self._calibration_path if config.precision.startswith("int8") else None,
                self.budget.request_timeout,
            )
            return list(self._measure_variants(client, ENGINE_SPECS[config.engine].list_variants(config), deadline))

    def _measure_variants(
        self, client: BenchmarkClient, variants: Iterable[EngineConfig], deadline: float
    ) -> Iterator[Measurement]:
        """As long as its time lasts, until one fails or it is clear that none of them can win.

        The first is compared with fp32 at once: no time goes into ways of an engine that does not agree.
        """
        compared_row: Measurement | None = None
        for n_measured, config in enumerate(variants, 1):
            row = self._time_variant(client, config)
            if not row.reason:
                compared_row = compared_row or self._compare_with_reference(client, row)
                logit_error, match_rate, accuracy_drop, reason = (
                    compared_row.logit_error,
                    compared_row.match_rate,
                    compared_row.accuracy_drop,
                    compared_row.reason,
                )
                row = replace(
                    row, logit_error=logit_error, match_rate=match_rate, accuracy_drop=accuracy_drop, reason=reason
                )
            yield row
            if row.reason:
                return
            self.matching_names.add(config.name)
            self.best_throughput = max(self.best_throughput, row.images_per_second or 0.0)
            self.on_event(row)
            is_hopeless = (
                n_measured >= _MIN_VARIANTS and (row.images_per_second or 0.0) < _HOPELESS_SHARE * self.best_throughput
            )
            if (
                is_hopeless
                or self.budget.search_remaining <= 0
                or (n_measured >= _MIN_VARIANTS_OVERTIME and time.monotonic() > deadline)
            ):
                return

    def _time_variant(self, client: BenchmarkClient, config: EngineConfig) -> Measurement:
        try:
            client.load(config, self._timing_path, self.budget.request_timeout)
            return Measurement(
                config, *client.measure(self._timing_path, self.budget.measurement_seconds, self.budget.request_timeout)
            )
        except BenchmarkError as error:
            return Measurement(config, reason=str(error))

    def _compare_with_reference(self, client: BenchmarkClient, row: Measurement) -> Measurement:
        """Of an engine that is open and was measured."""
        throughput = row.images_per_second or 1.0
        n_images = self._count_compared_images(row.config.precision, throughput)
        reference = self.reference.take_first(n_images)
        try:
            logits = client.infer(
                self.work_dir / _COMPARISON_FILE,
                n_images,
                max(self.budget.request_timeout, _TIMEOUT_FACTOR * n_images / throughput),
            )
        except BenchmarkError as error:
            return replace(row, reason=str(error))
        comparison = reference.compare(logits, row.config.precision)
        return replace(
            row,
            logit_error=comparison.logit_error,
            match_rate=comparison.match_rate,
            accuracy_drop=comparison.accuracy_drop,
            reason=comparison.reason,
        )

    def _count_compared_images(self, precision: str, throughput: float) -> int:
        """How many pictures."""
        share = {"fp32": 0.0, "bf16": _BF16_SHARE}.get(precision, _INT8_SHARE)
        return min(len(self.reference.names), max(_MIN_COMPARED_IMAGES, int(share * self.budget.seconds * throughput)))

    def remeasure_finalists(self, rows: Sequence[Measurement]) -> list[Measurement]:
        """The rows, of which the best have been opened anew, checked as they are, and measured side by side."""
        with contextlib.ExitStack() as stack:
            reopened = [self._reopen(stack, row) for row in select_finalists(rows)]
            measured = self._time_interleaved([(client, row) for client, row in reopened if client and not row.reason])
        updated = {row.config: row for row in [*(row for _, row in reopened), *measured]}
        return [updated.get(row.config, row) for row in rows]

    def _reopen(self, stack: contextlib.ExitStack, row: Measurement) -> tuple[BenchmarkClient | None, Measurement]:
        """One at a time, so that each starts alone."""
        try:
            client = stack.enter_context(open_benchmark_client(self.folder, self.work_dir))
            startup_seconds = client.load(row.config, self._timing_path, self.budget.request_timeout)
        except BenchmarkError as error:
            return None, replace(row, reason=str(error))
        compared_row = self._compare_with_reference(client, replace(row, seconds_to_start=startup_seconds))
        self.on_event(compared_row)
        return client, compared_row

    def _time_interleaved(self, entries: Sequence[tuple[BenchmarkClient, Measurement]]) -> list[Measurement]:
        seconds = max(
            0.2,
            min(2 * self.budget.measurement_seconds, self.budget.remaining / (_FINAL_ROUNDS * max(1, len(entries)))),
        )
        timings: dict[EngineConfig, list[tuple[float, float]]] = {row.config: [] for _, row in entries}
        errors: dict[EngineConfig, str] = {}
        for round_index in range(_FINAL_ROUNDS):
            for i in range(len(entries)):
                client, row = entries[(i + round_index) % len(entries)]
                try:
                    if row.config not in errors:
                        timings[row.config].append(
                            client.measure(self._timing_path, seconds, self.budget.request_timeout)
                        )
                except BenchmarkError as error:
                    errors[row.config] = str(error)
        return [
            _apply_median(replace(row, reason=errors.get(row.config, "")), timings[row.config]) for _, row in entries
        ]


def _apply_median(row: Measurement, timings: Sequence[tuple[float, float]]) -> Measurement:
    if row.reason or not timings:
        return row
    throughputs, latencies = zip(*timings, strict=True)
    return replace(row, images_per_second=statistics.median(throughputs), latency_ms=statistics.median(latencies))


# ------------------------------------------------------------------------------------------------------- what is chosen


def select_fastest(rows: Sequence[Measurement]) -> Measurement:
    """With the most images per second. Of those that are about as fast, one with more streams: a call on all cores
    waits for each that decodes pictures meanwhile.
    """
    highest = max(row.images_per_second or 0.0 for row in rows)
    near_fastest = [row for row in rows if (row.images_per_second or 0.0) >= _SAME_SPEED_SHARE * highest]
    return max(near_fastest, key=lambda row: (row.config.streams, row.images_per_second or 0.0))


def sort_by_latency(rows: Sequence[Measurement]) -> list[Measurement]:
    """Those that answer one picture with all cores, the soonest first."""
    single_image_rows = [row for row in rows if row.config.batch_size == row.config.streams == 1]
    return sorted(single_image_rows, key=lambda row: row.latency_ms or np.inf)


def select_finalists(rows: Sequence[Measurement]) -> list[Measurement]:
    """Those nearly as fast as the fastest, the two quickest, the fastest of each engine, as they start at different
    times, and what all of them are compared with.
    """
    usable = [row for row in rows if not row.reason]
    ranked = sorted(usable, key=lambda row: -(row.images_per_second or 0.0))
    near_fastest = [
        row
        for row in ranked
        if (row.images_per_second or 0.0) >= _FINALIST_SHARE * (ranked[0].images_per_second or 0.0)
    ]
    best_by_engine = {row.config.engine: row for row in reversed(ranked)}
    baseline = find_baseline(usable)
    picked = [
        *near_fastest[:_MAX_FINALISTS],
        *sort_by_latency(usable)[:2],
        *best_by_engine.values(),
        *([baseline] if baseline else []),
    ]
    return list({row.config: row for row in picked}.values())


def select_best_by_purpose(rows: Sequence[Measurement]) -> dict[Purpose, Measurement]:
    """What for, and the row that is best for it, of those that were checked as they are."""
    usable = [row for row in rows if not row.reason and row.seconds_to_start is not None]
    if not usable:
        return {}
    fastest_start = min(usable, key=lambda row: row.seconds_to_start or 0.0)
    best: dict[Purpose, Measurement] = {"throughput": select_fastest(usable), "start": fastest_start}
    return {"latency": sort_by_latency(usable)[0], **best} if sort_by_latency(usable) else best


def _build_saved_engine(work: Path, name: str, purpose: Purpose, row: Measurement) -> SavedEngine:
    artifact = work / row.config.name
    paths = sorted(path for path in artifact.iterdir() if path.is_file()) if artifact.is_dir() else []
    digests = tuple((path.name, hash_file(path)) for path in paths)
    return SavedEngine(purpose, row, ENGINE_SPECS[row.config.engine].get_versions(), name, digests)


def _remove_unsaved(work: Path, saved_names: set[str]) -> None:
    """Only what is kept stays."""
    for path in work.iterdir():
        if path.is_dir() and path.name not in saved_names:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


_FOLDER_NAME = re.compile("[0-9a-f]{8}")


def _remove_previous(folder: Path, name: str) -> None:
    """What earlier searches have kept."""
    for path in folder.iterdir():
        if _FOLDER_NAME.fullmatch(path.name) and path.name != name and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
