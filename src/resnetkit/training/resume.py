"""Resume a run: compare its settings with those it was started with, and load its newest intact checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.architecture.card import Card
from resnetkit.data.identity import diff_tables, hash_table
from resnetkit.data.loader import resolve_workers
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, ResnetkitWarning, UsageError, WeightsError
from resnetkit.formatting import join_names, limit_lines, pluralize
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.serialization import from_data, merge, read_text, to_data
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
    ENVIRONMENT_FILE,
    IMAGES_FILE,
    METRICS_FILE,
    NETWORK_FILE,
    STATE_FOLDER,
    check_run_folder,
    format_resume_command,
    has_environment,
    is_run_finished,
    parse_epochs,
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

_MAX_EXAMPLES, _MAX_TABLE_CHARS = 5, 2**30
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
    path, workers = Path(run_folder), resolve_workers(workers)
    old_recipe = from_data(Recipe, dist.run_on_main(lambda: to_data(read_recipe(path))), str(path))
    recipe = edit_recipe(old_recipe, _collect_changes(old_recipe, data, model, merge_options(settings, **options)))
    base, source_card = _load_base(path, recipe)
    dataset = open_dataset(recipe.data, on_progress, recipe.data_options)
    shared: dict[str, Any] = {"device": device, "dist": dist, "on_progress": on_progress, "workers": workers}
    run = replace(resolve_run(dataset, recipe, base, source_card, **shared), out=path)
    check_distributed(run, dist)
    checkpoint = _load_checkpoint(run, dist)
    environment = dist.run_on_main(lambda: environment_fingerprint(run))
    state = checkpoint.state if checkpoint else TrainState()
    changes, is_overridden = dist.run_on_main(lambda: find_changes(run, state, environment, override))
    if dist.is_main:
        check_trackers_installed(recipe.trackers)
        _prepare_folder(run, has_changed=recipe != old_recipe or environment != dict(state.environment))
    return replace(
        run,
        resume_notes=(_format_position(checkpoint), *changes),
        environment=environment,
        loaders=open_loaders(run, on_progress, workers),
        checkpoint=_record_changes(checkpoint, changes, is_overridden, environment) if checkpoint else None,
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


def _prepare_folder(run: PreparedRun, *, has_changed: bool) -> None:
    """Check the free space, remove temporary files, and write the metadata if they changed or are damaged."""
    check_checkpoint_space(run, run.out, 1)
    files.remove_temporary(run.out)
    files.remove_temporary(run.out / STATE_FOLDER)
    damaged = [] if has_environment(run.out) else [ENVIRONMENT_FILE]
    if hash_table(_read_images_table(run.out)) != run.identity.digest:
        damaged.append(IMAGES_FILE)
    if damaged and not has_changed:
        message = f"{' and '.join(damaged)} is damaged; resnetkit writes it again, from what it finds now"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)
    if has_changed or damaged:
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
        validate = partial(_check_checkpoint, run)
        checkpoint = load_latest_checkpoint(run.out / STATE_FOLDER, validate)
        return to_data(checkpoint.state) if checkpoint else None

    state = dist.run_on_main(load_on_main)
    if state is None or dist.world_size == 1:
        return checkpoint
    tensors = [dist.broadcast(getattr(checkpoint, name) if checkpoint else {}) for name in TENSOR_GROUPS]
    return Checkpoint(from_data(TrainState, state, "state"), *tensors)


def _check_checkpoint(run: PreparedRun, checkpoint: Checkpoint) -> None:
    metrics_path = run.out / METRICS_FILE
    try:
        check_checkpoint_tensors(checkpoint, run.plan, run.out / STATE_FOLDER)
    except WeightsError:
        if changes := _diff_networks(run):  # the checkpoint is intact
            what, fix = "the checkpoint belongs to another network", "restore the network, or start a new run: --out"
            raise UsageError(what, where=[str(change) for change in changes], fix=fix) from None
        raise
    content, expected = metrics_path.read_bytes() if metrics_path.is_file() else b"", checkpoint.state.metrics_bytes
    if len(content) < expected:
        what = f"{METRICS_FILE} is shorter than the checkpoint says: it has {len(content):,} of {expected:,} bytes"
        raise WeightsError(what, where=str(metrics_path))
    try:
        epochs = parse_epochs(content[:expected].decode("ascii", "replace"), metrics_path)
    except UsageError as error:
        raise WeightsError(error.what, where=error.where) from None
    if epochs != checkpoint.state.epochs:
        raise WeightsError(f"the epochs in {METRICS_FILE} are not those of the checkpoint", where=str(metrics_path))


def _format_position(checkpoint: Checkpoint | None) -> str:
    if checkpoint is None:
        return "resuming from the start, as no checkpoint exists"
    return f"resuming after step {checkpoint.state.step} of epoch {checkpoint.state.epoch}"


# ------------------------------------------------------------------------------------------------------------- changes


def find_changes(
    run: PreparedRun, state: TrainState, environment: Mapping[str, str], override: bool
) -> tuple[list[str], bool]:
    """Return lines that say what differs from the checkpoint, and whether that changes the result.

    Another path of the same images, or of the same network, is not a change.

    Args:
        run: The run as it would be resumed.
        state: The state of the checkpoint.
        environment: The environment now.
        override: Whether to accept changes of the result.

    Raises:
        UsageError: settings or environment differ.
        DataError: images differ.
    """
    if not state.environment:  # no checkpoint, so that nothing was learned yet
        return [], False
    previous = dict(state.environment)
    recipe_changes = list(diff_settings(to_data(state.recipe or run.recipe), to_data(run.recipe)))
    changed_images = _find_changed_images(run, state) if previous["images"] != environment["images"] else []
    same_contents = {"data": not changed_images, "model": previous["network"] == environment["network"]}
    changes = [change for change in recipe_changes if not same_contents.get(change.name)]
    changes += diff_settings({**previous, "images": ""}, {**environment, "images": ""})
    if previous["network"] != environment["network"] and (network_changes := _diff_networks(run)):
        changes = [*(change for change in changes if change.name != "network"), *network_changes]
    unsafe_changes = [c for c in changes if c.name.split(".")[0] not in SAFE_SETTINGS and c.name != "data"]
    if unsafe_changes and not override:
        what = "settings differ from those the run was started with"
        fix = "use the original settings, or add --override to this command"
        raise UsageError(what, where=[str(change) for change in unsafe_changes], fix=fix)
    if changed_images and not override:
        raise _build_images_error(run, changed_images)
    lines = [str(change) for change in changes]
    if changed_images:
        lines.append(f"{pluralize(len(changed_images), 'image')} changed: {join_names(changed_images, 3)}")
    return lines, bool(unsafe_changes or changed_images)


def _diff_networks(run: PreparedRun) -> list[SettingChange]:
    """Name what differs from the network in the run folder; nothing if the catalog has it."""
    try:
        previous = load_card(run.out / NETWORK_FILE).spec
    except UsageError:
        return []
    return list(diff_settings({"network": to_data(previous)}, {"network": to_data(run.card.spec)}))


def _find_changed_images(run: PreparedRun, state: TrainState) -> list[str]:
    """Name the images that differ from those of the checkpoint; images that the run skips may differ."""
    previous_table = _read_images_table(run.out)
    if hash_table(previous_table) != dict(state.environment)["images"]:
        return [f"{IMAGES_FILE} does not belong to the checkpoint, so the images cannot be named"]
    skipped, splits = dict(state.unreadable), run.dataset.splits
    changes = diff_tables(previous_table, run.identity.table)
    return [str(c) for c in changes if c.index < 0 or splits[c.split].format_location(c.index) not in skipped]


def _read_images_table(folder: Path) -> str:
    try:
        return read_text(folder / IMAGES_FILE, "this file", _MAX_TABLE_CHARS)
    except UsageError:
        return ""


def _build_images_error(run: PreparedRun, changes: Sequence[str]) -> DataError:
    what = f"the images differ from those the run was started with: {pluralize(len(changes), 'change')}"
    fix = f"restore them, start a new run (--out), or resume all the same: {format_resume_command(run.out)} --override"
    return DataError(what, where=[run.recipe.data, *limit_lines(changes, _MAX_EXAMPLES)], fix=fix)


def _record_changes(
    checkpoint: Checkpoint, changes: Sequence[str], is_overridden: bool, environment: Mapping[str, str]
) -> Checkpoint:
    """Record changes and environment in a checkpoint, for the checkpoints and the report to come."""
    state = checkpoint.state
    lines = [f"from step {state.global_step + 1} on: {line}" for line in changes]
    new_state = replace(
        state,
        changes=(*state.changes, *lines),
        is_overridden=state.is_overridden or is_overridden,
        environment=tuple(environment.items()),
    )
    return replace(checkpoint, state=new_state)
