"""Going on with a run: what is compared with how it was begun, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
    STATE_FOLDER,
    TENSOR_GROUPS,
    Checkpoint,
    check_checkpoint_tensors,
    load_latest_checkpoint,
)
from resnetkit.training.overrides import merge_options
from resnetkit.training.recipe import Recipe, Scratch, edit_recipe
from resnetkit.training.run_folder import (
    METRICS_FILE,
    NETWORK_FILE,
    RunSetup,
    check_run_folder,
    format_resume_command,
    is_run_finished,
    read_recipe,
)
from resnetkit.training.setup import (
    PreparedRun,
    check_checkpoint_space,
    check_distributed,
    environment_fingerprint,
    load_base_network,
    make_network,
    open_loaders,
    resolve_run,
    write_run_metadata,
)
from resnetkit.training.state import TrainState, diff_settings
from resnetkit.training.trackers.client import check_trackers_installed
from resnetkit.weights.load import load_network
from resnetkit.weights.model_source import load_card

SAFE_SETTINGS = (
    "patience",
    "checkpoint_steps",
    "trackers",
    "bad_files",
)  # they decide when a run ends or stops, and no number in it


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
    """A run as its newest sound checkpoint has it, or as it began where there is none yet.

    What is set is compared with the run. Raises `UsageError` for what would make its result that of neither, unless
    ``override``; `DataError` where the pictures are others; `WeightsError` where no checkpoint can be read.
    """
    path = Path(run_folder)
    old_recipe = from_data(Recipe, dist.run_on_main(lambda: to_data(read_recipe(path))), str(path))
    recipe = edit_recipe(old_recipe, _collect_changes(old_recipe, data, model, merge_options(settings, **options)))
    base, source_card = _load_base(path, recipe)
    dataset = open_dataset(recipe.data, on_progress)
    setup = replace(resolve_run(dataset, recipe, base, source_card, device), out=path, world_size=dist.world_size)
    check_distributed(setup, dist)
    checkpoint = _load_checkpoint(setup, dist)
    run_environment = dist.run_on_main(lambda: environment_fingerprint(setup))
    previous_environment = dict(checkpoint.state.environment) if checkpoint else run_environment
    changes = _check_changes(
        setup,
        list(diff_settings(to_data(old_recipe), to_data(recipe))),
        list(diff_settings(previous_environment, run_environment)),
        override,
    )
    if dist.is_main:
        check_trackers_installed(recipe.trackers)
        _prepare_folder(setup, write_metadata=bool(changes) or checkpoint is None)
    loaders = open_loaders(setup, on_progress, resolve_workers(workers))
    setup = replace(setup, resume_notes=tuple(_format_resume_notes(checkpoint, changes)))
    return PreparedRun(
        setup,
        loaders,
        make_network(setup, base),
        (),
        run_environment,
        _record_changes(checkpoint, changes, run_environment),
    )


def _prepare_folder(setup: RunSetup, *, write_metadata: bool) -> None:
    """Room, no remains, and the papers, which may not have been written when the run was killed."""
    check_checkpoint_space(setup, setup.out, 1)
    files.remove_temporary(setup.out)
    files.remove_temporary(setup.out / STATE_FOLDER)
    if write_metadata:
        write_run_metadata(setup)


def _load_checkpoint(setup: RunSetup, dist: ProcessGroup) -> Checkpoint | None:
    """The newest sound checkpoint. One process reads it, as not all may see the same files at the same moment."""
    loaded: list[Checkpoint | None] = [None]

    def load_on_main() -> Any:
        validate = partial(_check_checkpoint, setup.plan, setup.out / METRICS_FILE)
        loaded[0] = load_latest_checkpoint(setup.out / STATE_FOLDER, validate)
        return to_data(loaded[0].state) if loaded[0] else None

    state = dist.run_on_main(load_on_main)
    if state is None or dist.world_size == 1:
        return loaded[0]
    tensors = [dist.broadcast(getattr(loaded[0], name) if loaded[0] else {}) for name in TENSOR_GROUPS]
    return Checkpoint(from_data(TrainState, state, "state"), *tensors)


def check_no_changes(run_folder: str | Path, *values: object) -> None:
    """Raise `UsageError` where something is set for a run that has finished."""
    if any(values):
        what = "this run has finished, so nothing of it can be changed"
        raise UsageError(what, where=str(run_folder), fix="begin another one: --out with another folder")


def is_already_finished(run_folder: str | Path) -> bool:
    """Whether there is nothing to go on with; raises `UsageError` where there is no run."""
    check_run_folder(Path(run_folder))
    return is_run_finished(Path(run_folder))


def _collect_changes(
    old_recipe: Recipe, data: str | Path | None, model: str | os.PathLike[str] | None, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What is set, with data and model as they are named by hand; the same place under another name is no change."""
    paths = {"data": data, "model": model}
    new_paths = {name: os.fspath(value) for name, value in paths.items() if value}
    unchanged = {
        name
        for name, value in new_paths.items()
        if Path(value).absolute() == Path(getattr(old_recipe, name)).absolute()
    }
    return dict(merge(dict(settings), {name: value for name, value in new_paths.items() if name not in unchanged}))


def _load_base(path: Path, recipe: Recipe) -> tuple[NetworkModule | None, Card]:
    """(the network whose weights the run began with, the card of the network that is named)."""
    if isinstance(recipe.start, Scratch) and (path / NETWORK_FILE).is_file() and not Path(recipe.model).exists():
        return None, replace(load_card(path / NETWORK_FILE), name=Path(recipe.model).stem)
    network = load_base_network(recipe.model, to_data(recipe))
    if isinstance(recipe.start, Scratch):
        return None, network.card if network else load_card(recipe.model)
    base = network or load_network(recipe.model)
    return base, base.card


def _check_checkpoint(plan: Plan, metrics_path: Path, checkpoint: Checkpoint) -> None:
    check_checkpoint_tensors(checkpoint, plan, metrics_path.parent / STATE_FOLDER)
    n_bytes = metrics_path.stat().st_size if metrics_path.is_file() else 0
    if n_bytes < checkpoint.state.metrics_bytes:
        what = f"{METRICS_FILE} is shorter than this checkpoint says: needs {checkpoint.state.metrics_bytes:,} bytes, has {n_bytes:,}"
        raise WeightsError(what, where=str(metrics_path))


SettingChange = tuple[str, str, str]


def _check_changes(
    setup: RunSetup,
    recipe_changes: Sequence[SettingChange],
    environment_changes: Sequence[SettingChange],
    override: bool,
) -> list[str]:
    """Every difference of the recipe and of what is around it, as lines; raises where one of them is unsafe."""
    if "pictures" in {name for name, *_ in environment_changes}:
        what = "these are not, or no longer, the pictures that the run was begun with"
        raise DataError(what, where=setup.recipe.data, fix="name the same data, or begin another run: --out")
    unsafe_changes = [
        *(change for change in recipe_changes if change[0].split(".")[0] not in SAFE_SETTINGS),
        *environment_changes,
    ]
    if unsafe_changes and not override:
        what = "the run was begun otherwise, so that its result would be that of neither"
        fix = f"leave it as it was, or go on all the same: {format_resume_command(setup.out)} ... --override"
        raise UsageError(what, where=list(_format_changes(unsafe_changes)), fix=fix)
    return list(_format_changes([*recipe_changes, *environment_changes]))


def _format_changes(changes: Sequence[SettingChange]) -> Iterator[str]:
    return (f"{name}: {old} -> {new}" for name, old, new in changes)


def _format_resume_notes(checkpoint: Checkpoint | None, changes: Sequence[str]) -> list[str]:
    """What a person should know of where the run goes on."""
    state = checkpoint.state if checkpoint else None
    position = (
        f"after step {state.step} of epoch {state.epoch}" if state else "at the beginning: no checkpoint was written"
    )
    return [f"resuming {position}", *changes]


def _record_changes(
    checkpoint: Checkpoint | None, changes: Sequence[str], environment: Mapping[str, str]
) -> Checkpoint | None:
    """The checkpoint with what was changed on it remembered."""
    if checkpoint is None:
        return None
    state = checkpoint.state
    lines = tuple(f"from step {state.global_step + 1} on: {line}" for line in changes)
    return replace(
        checkpoint, state=replace(state, changes=(*state.changes, *lines), environment=tuple(environment.items()))
    )
