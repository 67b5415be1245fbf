"""Everything that is decided, read and refused before a run's first step."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resnetkit import files
from resnetkit.architecture.card import (
    Card,
    TrainingInfo,
    find_preparation_faults,
    make_card,
    make_default_preparation,
)
from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import replace_classes
from resnetkit.data.bad_files import SkippedFiles
from resnetkit.data.dataset import Dataset, compute_fingerprint, find_leaks, join_names, split_dataset
from resnetkit.data.loader import ImageLoader, get_cache_limit, resolve_workers
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, MachineError, TextError, UsageError
from resnetkit.formatting import pluralize
from resnetkit.network.build import build
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import select_device, select_precision
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, check_same_on_all_ranks
from resnetkit.runtime.environment import collect_environment, collect_versions
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.serialization import from_data, to_json, to_toml
from resnetkit.surgery.load import load
from resnetkit.surgery.transfer import transfer
from resnetkit.training.checkpoint import STATE_FOLDER, Checkpoint, estimate_checkpoint_bytes
from resnetkit.training.overrides import merge_options
from resnetkit.training.recipe import (
    EMA,
    AdamW,
    FineTune,
    RandomResizedCrop,
    Recipe,
    Scratch,
    get_start_settings,
    resolve_model_name,
    resolve_recipe,
)
from resnetkit.training.run_folder import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    NETWORK_FILE,
    RECIPE_FILE,
    RunSetup,
    format_resume_command,
    is_run_finished,
)
from resnetkit.training.trackers.client import TRACKERS_FOLDER, check_trackers_installed
from resnetkit.weights.load import load_network
from resnetkit.weights.model_source import HuggingFaceFolder, WeightsFile, load_card, resolve_model


@dataclass(frozen=True)
class PreparedRun:
    """What training begins with: the decisions, the pictures, the network, and the folders that were made.

    ``checkpoint`` is where it goes on, None at the beginning of a run; ``circumstances`` decide its numbers.
    """

    setup: RunSetup
    loaders: dict[str, ImageLoader]
    model: NetworkModule
    created_folders: tuple[Path, ...]
    environment: dict[str, str]
    checkpoint: Checkpoint | None = None


def prepare_run(
    data: str | Path,
    model: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    out: str | Path | None,
    device: str,
    on_progress: ProgressCallback | None,
    dist: ProcessGroup = SINGLE_PROCESS,
    workers: int | None = None,
    **options: Any,
) -> PreparedRun:
    """Open the data, settle the recipe, claim the folder, read what fits into memory, build the network."""
    workers = resolve_workers(workers)
    dataset = open_dataset(data, on_progress)
    changes = merge_options(settings, **options)
    name = resolve_model_name(os.fspath(model) if model else None, changes)
    network = load_base_network(name, changes)
    recipe = resolve_recipe(
        len(dataset.train_split), _escape_path(data), name, changes, network.card.spec if network else None
    )
    base = None if isinstance(recipe.start, Scratch) else network or load_network(recipe.model)
    pretrained = network or base
    setup = resolve_run(dataset, recipe, base, pretrained.card if pretrained else load_card(recipe.model), device)
    if dist.is_main:
        check_trackers_installed(recipe.trackers)
    check_distributed(setup, dist)
    created_folders = [Path(name) for name in dist.run_on_main(lambda: _create_run_folder(setup, out, dataset.name))]
    setup = replace(setup, out=created_folders[0], world_size=dist.world_size)
    created_folders = created_folders if dist.is_main else []
    try:
        if created_folders:
            write_run_metadata(setup)
        run_environment = dist.run_on_main(lambda: environment_fingerprint(setup))
        loaders = open_loaders(setup, on_progress, workers)
        return PreparedRun(setup, loaders, make_network(setup, base), tuple(created_folders), run_environment)
    except BaseException:
        if created_folders:
            remove_partial_run(created_folders)
        raise


def _create_run_folder(setup: RunSetup, out: str | Path | None, data: str) -> list[str]:
    """The folder of a new run, made, and those that were made above it."""
    path = _check_outside_data(_choose_run_folder(out, setup.recipe, setup.card), data)
    check_checkpoint_space(setup, path, 3)
    return [str(folder) for folder in _make_run_folder(path, numbered=out is None)]


def check_distributed(setup: RunSetup, dist: ProcessGroup) -> None:
    """Raise where the processes of a run differ in what decides it, or are too many for a step."""
    recipe = setup.recipe
    if recipe.batch_size < 2 * dist.world_size * recipe.accumulate:
        division = f"{dist.world_size} processes" + f" and {recipe.accumulate} parts in each" * (recipe.accumulate > 1)
        what = f"a step of {pluralize(recipe.batch_size, 'picture')} is too small for {division}: two pictures each, at least"
        raise UsageError(
            what, where="batch_size", fix=f"--batch-size {2 * dist.world_size * recipe.accumulate} or more"
        )
    if dist.world_size > 1:
        run_environment = environment_fingerprint(setup)
        values = {
            name: run_environment[name] for name in ("pictures", "network", "device", "precision", *_VERSION_KEYS)
        }
        check_same_on_all_ranks(dist, **values, recipe=to_json(recipe))


def _escape_path(data: str | Path) -> str:
    """TOML holds no name that is not text."""
    return str(data).encode("utf-8", "backslashreplace").decode()


def check_checkpoint_space(setup: RunSetup, folder: Path, n_checkpoints: int) -> None:
    """Raise `MachineError` where there is no room for so many of them."""
    optimizer = setup.recipe.optimizer
    n_moments = 2 if isinstance(optimizer, AdamW) else optimizer.momentum > 0
    checkpoint_bytes = estimate_checkpoint_bytes(setup.plan, n_moments + isinstance(setup.recipe.ema, EMA))
    files.check_free_space(
        folder,
        n_checkpoints * checkpoint_bytes,
        f"{n_checkpoints} checkpoints" if n_checkpoints > 1 else "a checkpoint",
    )


def write_run_metadata(setup: RunSetup) -> None:
    """What a run is: its recipe, its network, the machine."""
    folder, recipe = setup.out, setup.recipe
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    if recipe.model not in CATALOG:  # a file elsewhere can change or go
        files.write_text(folder / NETWORK_FILE, to_toml(setup.card.spec))
    files.write_text(folder / ENVIRONMENT_FILE, json.dumps(collect_environment(), indent=2) + "\n")


def remove_partial_run(created_folders: Sequence[Path]) -> None:
    """Take a run back of which nothing is worth keeping: what it wrote into the folder that was made for it."""
    folder = created_folders[0]
    for name in (RECIPE_FILE, NETWORK_FILE, ENVIRONMENT_FILE, METRICS_FILE):
        (folder / name).unlink(missing_ok=True)
    files.remove_folder(folder / STATE_FOLDER)
    files.remove_folder(folder / TRACKERS_FOLDER)
    files.remove_temporary(folder)
    files.remove_empty_folders(created_folders)


def environment_fingerprint(setup: RunSetup) -> dict[str, str]:
    """What decides the numbers of a run beside its recipe."""
    device = torch.device(setup.device)
    is_cuda = device.type == "cuda"
    package_versions, training = collect_versions(), setup.card.training
    return {
        "pictures": training.fingerprint if training else "",
        "network": _digest_network(setup),
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if is_cuda else str(torch.backends.cpu.get_cpu_capability()),
        "precision": setup.precision,
        "threads": str(torch.get_num_threads()),
        "processes": str(setup.world_size),
        **{name: package_versions[name] for name in _VERSION_KEYS},
    }


_VERSION_KEYS = ("resnetkit", "torch", "numpy", "pillow")


def _digest_network(setup: RunSetup) -> str:
    """Of the network and of how its images are prepared."""
    text = to_json(setup.card.spec) + to_json(setup.card.preparation)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def load_base_network(model: str, settings: Mapping[str, Any]) -> NetworkModule | None:
    """The network of a weights file, which has to be read before it is known; None for any other model."""
    if not isinstance(resolve_model(model), WeightsFile | HuggingFaceFolder):
        return None
    start_settings = get_start_settings(settings)
    options = from_data(
        FineTune, {name: start_settings[name] for name in _WEIGHTS_OPTIONS if name in start_settings}, "start"
    )
    return load(
        model,
        options.network or None,
        options.dialect or None,
        reset_head=options.reset_head or None,
        input_channels=options.input_channels or None,
    )


_WEIGHTS_OPTIONS = ("network", "dialect", "reset_head", "input_channels")


def resolve_run(
    dataset: Dataset, recipe: Recipe, base: NetworkModule | None, source_card: Card, device: str
) -> RunSetup:
    """``own`` is the card of the network as it is named, ``base`` the one whose weights are taken; no folder yet."""
    if len(dataset.classes) < 2:
        what = f"there is one class only ({dataset.classes[0]}), so there is nothing to tell apart"
        raise DataError(what, where=dataset.name, fix="add a folder for each other class")
    splits = split_dataset(dataset, recipe.split_seed)
    card = _build_card(dataset, recipe, source_card)
    torch_device = select_device(device)
    precision = select_precision(recipe.precision, torch_device)
    notes = (
        *splits.notes,
        *_describe_missing_classes(splits),
        *_describe_leaks(splits),
        *_describe_fine_tuning(recipe, base, card),
    )
    return RunSetup(
        recipe, splits, card, source_card.spec.input, plan(card.spec), str(torch_device), precision, Path(), notes
    )


def _build_card(dataset: Dataset, recipe: Recipe, source_card: Card) -> Card:
    """The card of what will come out: the network's, for this data."""
    spec = replace(
        replace_classes(source_card.spec, len(dataset.classes)), input=recipe.input_size or source_card.spec.input
    )
    spec = spec if recipe.stochastic_depth is None else replace(spec, stochastic_depth=recipe.stochastic_depth)
    if isinstance(recipe.start, FineTune) and spec.input[0] != source_card.spec.input[0]:
        what = f"these weights see {source_card.spec.input[0]} channels, and the run's images have {spec.input[0]}"
        raise UsageError(what, where="input_size", fix="leave input_size out")
    default_preparation = (
        source_card.preparation if spec.input == source_card.spec.input else make_default_preparation(spec)
    )
    preparation = recipe.preparation or default_preparation
    faults = find_preparation_faults(preparation, spec.input[0])
    if faults:
        raise TextError("pictures cannot be prepared for this network", faults, fix="change its input, or preparation")
    origin = "trained with resnetkit"
    if isinstance(recipe.start, FineTune):
        origin = f"fine-tuned with resnetkit from {source_card.name} ({source_card.origin})"
    training = TrainingInfo(
        Path(dataset.name).name, compute_fingerprint(dataset), recipe.split_seed, recipe.seed, recipe.epochs
    )
    new_card = make_card(source_card.name, spec, dataset.classes)
    return replace(new_card, preparation=preparation, origin=origin, training=training, license=source_card.license)


def _describe_missing_classes(dataset: Dataset) -> list[str]:
    return [
        f"{split} has no picture of: {join_names(classes)}" for split, classes in dataset.find_missing_classes().items()
    ]


def _describe_leaks(dataset: Dataset) -> list[str]:
    """One warning for pictures that training and measuring share."""
    pairs = find_leaks(dataset)
    examples = join_names([f"{a} = {b}" for a, b in pairs], 1)
    message = f"{pluralize(len(pairs), 'picture')} of one part {'is' if len(pairs) == 1 else 'are'} in another one, too"
    return [f"{message}, which measures too kindly: {examples}"] * bool(pairs)


def _describe_fine_tuning(recipe: Recipe, base: NetworkModule | None, card: Card) -> list[str]:
    """What fine-tuning keeps, and what it does when."""
    if base is None or isinstance(recipe.start, Scratch):
        return []
    fine_tune, head_state = (
        recipe.start,
        "kept, as the classes are the same" if _has_same_classes(base.card, card) else "new",
    )
    body_note = f"then the body with it at {fine_tune.backbone_lr_scale:g} of its rate; norm statistics are {fine_tune.norm_stats}"
    if fine_tune.backbone_lr_scale == 0 or fine_tune.head_epochs >= recipe.epochs:
        body_note = "and the body does not learn"
    head_epochs = min(fine_tune.head_epochs, recipe.epochs) if fine_tune.backbone_lr_scale else recipe.epochs
    notes = [f"read: {base.card.origin}; assumed: {'; '.join(base.card.assumed)}"] * bool(base.card.assumed)
    notes += [
        f"fine-tuning {base.card.name}: the head is {head_state} and learns alone for {pluralize(head_epochs, 'epoch')}, {body_note}"
    ]
    previous_training, new_training = base.card.training, card.training
    if previous_training and new_training and _may_overlap(previous_training, new_training):
        notes.append(
            f"{base.card.name} has learnt from {previous_training.data} before, with other pictures held out: those that it knows "
            "may be held out now, which measures too kindly"
        )
    return notes


def _may_overlap(previous: TrainingInfo, current: TrainingInfo) -> bool:
    """Whether pictures that were learnt from may be held out now: the same data, divided in another way."""
    is_same_data = previous.data == current.data or previous.fingerprint == current.fingerprint
    return is_same_data and (previous.fingerprint, previous.split_seed) != (current.fingerprint, current.split_seed)


def _has_same_classes(base: Card, card: Card) -> bool:
    return bool(base.classes) and base.classes == card.classes


def make_network(setup: RunSetup, base: NetworkModule | None) -> NetworkModule:
    """The network with its first weights; the classifier is new where the classes are."""
    recipe, card = setup.recipe, setup.card
    if base is not None:
        return transfer(
            base, card, reinit_prefix="" if _has_same_classes(base.card, card) else "head.linear.", seed=recipe.seed
        )
    zero_last_norm = isinstance(recipe.start, Scratch) and recipe.start.zero_last_norm
    model = build(card.spec, seed=recipe.seed, zero_last_norm=zero_last_norm)
    model.card = card
    return model


def open_loaders(setup: RunSetup, on_progress: ProgressCallback | None, workers: int) -> dict[str, ImageLoader]:
    """Every part as pixels; random windows are cut from the pictures themselves, so those are not kept."""
    skipped_files = SkippedFiles(setup.dataset, setup.recipe.bad_files)
    has_random_crop = isinstance(setup.recipe.augment, RandomResizedCrop)
    preparation, free_bytes, loaders = setup.card.preparation, get_cache_limit(), {}
    for split, images in setup.dataset.splits.items():
        n_bytes = len(images) * math.prod(preparation.crop) * len(preparation.mean)
        in_memory = n_bytes <= free_bytes and not (has_random_crop and split == "train")
        loaders[split] = ImageLoader(
            images, preparation, skipped_files, cache=in_memory, on_progress=on_progress, workers=workers
        )
        free_bytes -= n_bytes * in_memory
    return loaders


# ------------------------------------------------------------------------------------------------------- the folder


def _choose_run_folder(out: str | Path | None, recipe: Recipe, card: Card) -> Path:
    """The folder to write to; one that is there already is refused, with what it holds."""
    if out is None:
        stem = f"{Path(recipe.data).name.partition('.')[0] or 'data'}-{card.name}"
        return next(path for i in range(1, 10**9) if not (path := Path("runs") / f"{stem}-{i}").exists())
    path = Path(out)
    if is_run_finished(path):
        raise UsageError("there is a finished run in this folder", where=str(path), fix="name another --out")
    if (path / RECIPE_FILE).exists():
        raise UsageError("there is an unfinished run in this folder", where=str(path), fix=format_resume_command(path))
    if path.exists():
        raise UsageError("--out exists already", where=str(path), fix="name a folder that does not exist")
    return path


def _check_outside_data(out: Path, data: str) -> Path:
    """The folder itself; one inside the data would be taken for a class the next time."""
    if Path(data).is_dir() and out.absolute().is_relative_to(Path(data).absolute()):
        raise UsageError("the run would be written into the data", where=str(out), fix="--out with a folder elsewhere")
    return out


def _make_run_folder(out: Path, *, numbered: bool) -> tuple[Path, ...]:
    """The folder, made, and those above it; where another run has taken the number meanwhile, the next one."""
    while True:
        try:
            return files.make_folder(out)
        except MachineError as error:
            if not numbered or not isinstance(error.__cause__, FileExistsError):
                raise
            stem, _, number = out.name.rpartition("-")
            out = out.with_name(f"{stem}-{int(number) + 1}")
