"""Find the fastest inference engine whose predictions match fp32, and save it in the model folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from resnetkit.engines.accuracy_check import MAX_LOSS, Fp32Reference
from resnetkit.engines.base import ENGINE_SPECS, EngineConfig
from resnetkit.engines.calibration import ADD_CALIBRATION_IMAGES, NO_CALIBRATION_IMAGES
from resnetkit.engines.saved import Measurement, OptimizeResult, SavedEngine, compute_weights_digest, get_machine_id
from resnetkit.errors import MachineError, UsageError, VerificationError, suggest_fix
from resnetkit.network.inference import count_network_classes
from resnetkit.network.layers import NetworkModule
from resnetkit.optimization.budget import MIN_COMPARED_IMAGES, Budget, SearchSettings
from resnetkit.optimization.choose import select_best_by_purpose
from resnetkit.optimization.engines_folder import create_work_folder, lock_model_folder, publish_result, save_engines
from resnetkit.optimization.samples import compute_reference_logits, load_samples, make_synthetic_samples
from resnetkit.optimization.search import CALIBRATION_FILE, COMPARISON_FILE, TIMING_FILE, EngineSearch, OnMeasurement
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.weights.load import count_nonfinite, load_network
from resnetkit.weights.model_source import find_model_folder
from resnetkit.weights.save import save

PRECISIONS = tuple(dict.fromkeys(precision for spec in ENGINE_SPECS.values() for precision in spec.precisions))
_N_TIMING_IMAGES = 32
_DEFAULT_SETTINGS = SearchSettings()


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
    settings: SearchSettings = _DEFAULT_SETTINGS,
) -> OptimizeResult:
    """Measure engines, precisions, batch sizes and streams on this machine, and save the best.

    Args:
        model: a model folder or a run folder; with ``out`` any weights or network.
        data: images to compare predictions on, with classes or without; int8 needs some.
        out: a new model folder to write, instead of saving the engines in the folder of ``model``.
        minutes: about how long to search.
        max_loss: the accuracy that an engine may lose, in percentage points, if the images have classes.
        engines: the engines to measure; all by default.
        precisions: the precisions to measure; all by default.
        on_event: called with each `Measurement`.
        on_progress: called with the number of images read, and of all images.
        settings: clock, timeouts and rounds.

    Raises:
        UsageError: an option is not valid, the model has no weights or no folder, or another search works in it.
        VerificationError: weights are NaN or infinite, or no engine matches fp32; saved engines stay as they are.
    """
    _check_limits(minutes, max_loss)
    configs = _list_configs(engines, precisions, has_data=data is not None)
    folder = _resolve_model_folder(model, out)
    with lock_model_folder(folder):
        digest, budget = compute_weights_digest(folder), Budget(60 * minutes, settings)
        with create_work_folder(folder) as (work_dir, name):
            reference, comparison_data = _prepare_images(
                folder, work_dir, budget, data=data, max_loss=max_loss, on_progress=on_progress
            )
            search = EngineSearch(folder, work_dir, reference, budget, on_event or (lambda row: None))
            rows = search.run(configs)
            saved = save_engines(work_dir, name, select_best_by_purpose(rows))
            _check_saved(folder, saved, rows, digest)
        result = OptimizeResult(digest, get_machine_id(), comparison_data, tuple(rows), saved)
        publish_result(folder, name, result)
    return result


def _check_limits(minutes: float, max_loss: float) -> None:
    if not 0 < minutes <= 24 * 60:
        raise UsageError(
            f"got {minutes:g} minutes; allowed: more than 0, at most 1440", where="--minutes", fix="--minutes 5"
        )
    if not 0 <= max_loss <= 100:
        raise UsageError(f"got {max_loss:g} points; allowed: 0 to 100", where="--max-loss", fix="--max-loss 0.2")


def _list_configs(
    engines: str | Sequence[str], precisions: str | Sequence[str], *, has_data: bool
) -> list[EngineConfig]:
    """Return a configuration for each engine, device and precision to measure, in the order of the table."""
    engines = _parse_names(engines, "engine", tuple(ENGINE_SPECS))
    precisions = _parse_names(precisions, "precision", PRECISIONS)
    specs = {name: spec for name, spec in ENGINE_SPECS.items() if not engines or name in engines}
    has_gpu = torch.cuda.is_available()
    configs = [
        EngineConfig(name, precision, device=device)
        for name, spec in specs.items()
        for device in (spec.devices if has_gpu else spec.devices[:1])
        for precision in spec.precisions
        if not precisions or precision in precisions
    ]
    if not configs:
        supported = "; ".join(f"{name}: {', '.join(spec.precisions)}" for name, spec in specs.items())
        what = f"no engine supports {' or '.join(precisions)}"
        raise UsageError(what, where=["--precisions", supported], fix="use another precision, or other --engines")
    if not has_data and all(config.precision.startswith("int8") for config in configs):
        raise UsageError(NO_CALIBRATION_IMAGES, where="--precisions", fix=ADD_CALIBRATION_IMAGES)
    _check_any_installed(list(specs))
    return configs


def _parse_names(values: str | Sequence[str], noun: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return each name once, after a check that it is known."""
    names = tuple(dict.fromkeys((values,) if isinstance(values, str) else values))
    for name in names:
        if name not in known:
            fix = f"separate them by spaces: {name.replace(',', ' ')}" if "," in name else suggest_fix(name, known)
            raise UsageError(f"unknown {noun} {name!r}", where=f"--{noun}s", fix=fix)
    return names


def _check_any_installed(engines: Sequence[str]) -> None:
    """Check that the packages of one of the engines are installed; raise the error of the first otherwise."""
    for name in engines:
        with contextlib.suppress(MachineError):
            ENGINE_SPECS[name].check_packages(for_export=True)
            return
    ENGINE_SPECS[engines[0]].check_packages(for_export=True)


def _resolve_model_folder(model: str | os.PathLike[str] | NetworkModule, out: str | Path | None) -> Path:
    """Return the model folder to optimize; with ``out`` write it first."""
    if out is not None and Path(out).exists():
        fix = f"resnetkit optimize {out} if that is the model, or use another name"
        raise UsageError("this folder already exists", where=str(out), fix=fix)
    if out is not None:
        return save(model if isinstance(model, NetworkModule) else load_network(model), out)
    where = type(model).__name__
    if not isinstance(model, NetworkModule):
        if folder := find_model_folder(model):
            return folder
        load_network(model)  # if the model itself is at fault, this raises the better error
        where = str(model)
    raise UsageError("not a model folder; engines are saved in one", where=where, fix="--out NAME writes one")


def _prepare_images(
    folder: Path,
    work_dir: Path,
    budget: Budget,
    *,
    data: str | Path | None,
    max_loss: float,
    on_progress: ProgressCallback | None,
) -> tuple[Fp32Reference, str]:
    """Write the images into ``work_dir``; return the logits in fp32 and a description of the images.

    Neither the network nor the images stay in memory while engines are measured.
    """
    network = load_network(folder)
    _check_network(network, folder)
    card = network.card
    if data is None:
        samples = make_synthetic_samples(card.preparation)
    else:
        samples = load_samples(data, card, card.is_trained, on_progress)
    logits = compute_reference_logits(network, samples.images, budget.reference_seconds, budget.settings.clock)
    n = len(logits)
    np.save(work_dir / COMPARISON_FILE, samples.images[:n])
    np.save(work_dir / TIMING_FILE, samples.images[:_N_TIMING_IMAGES])
    if samples.calibration_images is not None:
        np.save(work_dir / CALIBRATION_FILE, samples.calibration_images)
    labels = None if samples.labels is None else samples.labels[:n]
    reference = Fp32Reference(logits, samples.names[:n], labels, card.is_trained and data is not None, max_loss)
    suffix = "; fp32 and bf16 may be compared on fewer" if n > MIN_COMPARED_IMAGES else ""
    return reference, samples.describe(n) + suffix


def _check_network(network: NetworkModule, folder: Path) -> None:
    """Check that the network is a classifier whose weights are finite."""
    count_network_classes(network)
    floats = {key: value for key, value in network.state_dict().items() if value.is_floating_point()}
    if nonfinite_counts := count_nonfinite(floats):
        lines = [f"{key} ({count:,})" for key, count in nonfinite_counts.items()][:5]
        what = "the weights have NaN or infinite values, so predictions cannot be compared"
        raise VerificationError(what, where=[str(folder), *lines], fix="train again, or use an earlier checkpoint")


def _check_saved(folder: Path, saved: Sequence[SavedEngine], rows: Sequence[Measurement], digest: str) -> None:
    """Check that an engine was saved and that the weights are those that were measured."""
    if not saved:
        reasons = {row.config.name: f"{row.config.name}: {row.reason}" for row in rows if row.reason}
        what = "no engine works here and matches fp32; engines saved before stay"
        raise VerificationError(what, where=list(reasons.values()), fix="more --minutes, other --data, or more engines")
    if compute_weights_digest(folder) != digest:
        what, fix = "the weights changed during the search", "optimize again when they no longer change"
        raise UsageError(what, where=str(folder), fix=fix)
