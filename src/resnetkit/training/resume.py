"""Resume a run: compare its settings with those it was started with, and load its newest intact checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Plan
from resnetkit.data.loader import resolve_workers
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, UsageError, WeightsError
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.serialization import from_data, merge, to_data
from resnetkit.training.checkpoint import (
    TENSOR_GROUPS,
    Checkpoint,
    check_checkpoint_space,
    check_checkpoint_tensors,
    load_latest_checkpoint,
)
from resnetkit.training.events import PreparedRun
from resnetkit.training.overrides import merge_options
from resnetkit.training.recipe import Recipe, Scratch
from resnetkit.training.recipe_limits import edit_recipe
from resnetkit.training.run_folder import (
    METRICS_FILE,
    NETWORK_FILE,
    STATE_FOLDER,
    check_run_folder,
    format_resume_command,
    is_run_finished,
    read_recipe,
    write_run_metadata,
)
from resnetkit.training.setup import (
    check_distributed,
    environment_fingerprint,
    load_base_network,
    open_loaders,
    resolve_run,
)
from resnetkit.training.state import SettingChange, TrainState, diff_settings
from resnetkit.training.trackers.client import check_trackers_installed
from resnetkit.weights.load import load_network
from resnetkit.weights.model_source import load_card

SAFE_SETTINGS = ("patience", "checkpoint_steps", "trackers", "bad_files")  # they do not change the result


def resume_run(
    run_folder: str | Path,
    data: str | Path | None,
    model: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    override: bool,
    device: str,
    on_progress: ProgressCallback | None,
    dist: ProcessGroup = SINGLE_PROCESS,
    workers: int | None = None,
    **options: Any,
) -> PreparedRun:
    """Prepare an unfinished run, from its newest intact checkpoint or from the start if it has none.

    Args:
        run_folder: The folder of the run.
        data: The data, if it lies elsewhere now.
        model: The model, if it lies elsewhere now.
        settings: Nested changes to the recipe.
        override: Whether to accept changes that make the result differ from both configurations.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        on_progress: Called with (done, all) while images are read.
        dist: The processes of the run.
        workers: Threads that read images; None for one on each core.
        **options: The options of `resnetkit.training.overrides.merge_options`.

    Raises:
        UsageError: settings or environment differ from those the run was started with.
        DataError: the images differ.
        WeightsError: all checkpoints are damaged.
    """
    path = Path(run_folder)
    old_recipe = from_data(Recipe, dist.run_on_main(lambda: to_data(read_recipe(path))), str(path))
    recipe = edit_recipe(old_recipe, _collect_changes(old_recipe, data, model, merge_options(settings, **options)))
    base, source_card = _load_base(path, recipe)
    dataset = open_dataset(recipe.data, on_progress, recipe.data_options)
    run = resolve_run(dataset, recipe, base, source_card, device=device, world_size=dist.world_size)
    run = replace(run, out=path)
    check_distributed(run, dist)
    checkpoint = _load_checkpoint(run, dist)
    environment = dist.run_on_main(lambda: environment_fingerprint(run))
    previous_environment = dict(checkpoint.state.environment) if checkpoint else environment
    recipe_changes = list(diff_settings(to_data(old_recipe), to_data(recipe)))
    changes = _check_changes(run, recipe_changes, list(diff_settings(previous_environment, environment)), override)
    if dist.is_main:
        check_trackers_installed(recipe.trackers)
        _prepare_folder(run, write_metadata=bool(changes) or checkpoint is None)
    return replace(
        run,
        resume_notes=(_format_position(checkpoint), *changes),
        environment=environment,
        loaders=open_loaders(run, on_progress, resolve_workers(workers)),
        checkpoint=_record_changes(checkpoint, changes, environment) if checkpoint else None,
    )


def is_already_finished(run_folder: str | Path) -> bool:
    """Return whether a run has finished; raises `UsageError` if the folder holds no run."""
    check_run_folder(Path(run_folder))
    return is_run_finished(Path(run_folder))


def check_no_changes(run_folder: str | Path, *values: object) -> None:
    """Check that nothing is set for a finished run.

    Args:
        run_folder: The folder of the run.
        *values: The given settings, empty if they were not given.

    Raises:
        UsageError: something is set.
    """
    if any(values):
        what = "this run has finished, so its settings cannot be changed"
        raise UsageError(what, where=str(run_folder), fix="start a new run: --out with another folder")


def _prepare_folder(run: PreparedRun, *, write_metadata: bool) -> None:
    """Check the free space, remove temporary files, and write the metadata, which a killed run may lack."""
    check_checkpoint_space(run, run.out, 1)
    files.remove_temporary(run.out)
    files.remove_temporary(run.out / STATE_FOLDER)
    if write_metadata:
        write_run_metadata(run)


def _collect_changes(
    old_recipe: Recipe, data: str | Path | None, model: str | os.PathLike[str] | None, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Add data and model to the settings, unless they name the same path in another way."""
    moved: dict[str, str] = {}
    for name, path in (("data", data), ("model", model)):
        if path and Path(path).absolute() != Path(getattr(old_recipe, name)).absolute():
            moved[name] = os.fspath(path)
    return dict(merge(settings, moved))


def _load_base(path: Path, recipe: Recipe) -> tuple[NetworkModule | None, Card]:
    """Load the network whose weights the run started from, if it has one, and the card of the named model.

    If the model's file has disappeared, a run from scratch uses its own copy of the spec.
    """
    is_scratch = isinstance(recipe.start, Scratch)
    if is_scratch and (path / NETWORK_FILE).is_file() and not Path(recipe.model).exists():
        return None, replace(load_card(path / NETWORK_FILE), name=Path(recipe.model).stem)
    network = load_base_network(recipe.model, to_data(recipe))
    if is_scratch:
        return None, network.card if network else load_card(recipe.model)
    base = network or load_network(recipe.model)
    return base, base.card


# ---------------------------------------------------------------------------------------------------------- checkpoint


def _load_checkpoint(run: PreparedRun, dist: ProcessGroup) -> Checkpoint | None:
    """Load the newest intact checkpoint in one process, as others may not see the same files yet."""
    checkpoint: Checkpoint | None = None

    def load_on_main() -> Any:
        nonlocal checkpoint
        validate = partial(_check_checkpoint, run.plan, run.out / METRICS_FILE)
        checkpoint = load_latest_checkpoint(run.out / STATE_FOLDER, validate)
        return to_data(checkpoint.state) if checkpoint else None

    state = dist.run_on_main(load_on_main)
    if state is None or dist.world_size == 1:
        return checkpoint
    tensors = [dist.broadcast(getattr(checkpoint, name) if checkpoint else {}) for name in TENSOR_GROUPS]
    return Checkpoint(from_data(TrainState, state, "state"), *tensors)


def _check_checkpoint(plan: Plan, metrics_path: Path, checkpoint: Checkpoint) -> None:
    check_checkpoint_tensors(checkpoint, plan, metrics_path.parent / STATE_FOLDER)
    n_bytes, expected = metrics_path.stat().st_size if metrics_path.is_file() else 0, checkpoint.state.metrics_bytes
    if n_bytes < expected:
        what = f"{METRICS_FILE} is shorter than the checkpoint says: it has {n_bytes:,} of {expected:,} bytes"
        raise WeightsError(what, where=str(metrics_path))


def _format_position(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "resuming from the start, as no checkpoint exists"
    return f"resuming after step {checkpoint.state.step} of epoch {checkpoint.state.epoch}"


# ------------------------------------------------------------------------------------------------------------- changes


def _check_changes(
    run: PreparedRun,
    recipe_changes: Sequence[SettingChange],
    environment_changes: Sequence[SettingChange],
    override: bool,
) -> list[str]:
    """Return the changes as lines; raise an error if one of them changes the numbers of the run."""
    if any(change.name == "images" for change in environment_changes):
        what = "the images differ from those the run was started with"
        raise DataError(what, where=run.recipe.data, fix="name the same data, or start a new run: --out")
    unsafe_changes = [
        *(change for change in recipe_changes if change.name.split(".")[0] not in SAFE_SETTINGS),
        *environment_changes,
    ]
    if unsafe_changes and not override:
        what = "settings differ from those the run was started with"
        fix = f"use the original settings, or resume all the same: {format_resume_command(run.out)} ... --override"
        raise UsageError(what, where=[str(change) for change in unsafe_changes], fix=fix)
    return [str(change) for change in (*recipe_changes, *environment_changes)]


def _record_changes(checkpoint: Checkpoint, changes: Sequence[str], environment: Mapping[str, str]) -> Checkpoint:
    """Record changes and environment in a checkpoint, for the checkpoints and the report to come."""
    state = checkpoint.state
    lines = [f"from step {state.global_step + 1} on: {line}" for line in changes]
    new_state = replace(state, changes=(*state.changes, *lines), environment=tuple(environment.items()))
    return replace(checkpoint, state=new_state)
