"""Prepare a run: everything that is decided, read and checked before the first step."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resnetkit.architecture.card import (
    Card,
    TrainingInfo,
    find_preparation_faults,
    make_card,
    make_default_preparation,
)
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import replace_classes
from resnetkit.data.bad_files import SkippedFiles
from resnetkit.data.dataset import Dataset, compute_fingerprint, find_leaks, split_dataset
from resnetkit.data.loader import ImageLoader, get_cache_limit, resolve_workers
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, TextError, UsageError
from resnetkit.formatting import join_names, pluralize
from resnetkit.network.build import build
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import select_device, select_precision
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, check_same_on_all_ranks
from resnetkit.runtime.environment import collect_versions
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.serialization import from_data, to_json
from resnetkit.surgery.load import load
from resnetkit.surgery.transfer import transfer
from resnetkit.training.checkpoint import check_checkpoint_space
from resnetkit.training.events import PreparedRun
from resnetkit.training.overrides import merge_options
from resnetkit.training.recipe import FineTune, RandomResizedCrop, Recipe, Scratch
from resnetkit.training.resolve import get_start_settings, resolve_model_name, resolve_recipe
from resnetkit.training.run_folder import choose_run_folder, make_run_folder, remove_partial_run, write_run_metadata
from resnetkit.training.trackers.client import check_trackers_installed
from resnetkit.weights.load import load_network
from resnetkit.weights.model_source import HuggingFaceFolder, WeightsFile, load_card, resolve_model

_VERSION_KEYS = ("resnetkit", "torch", "numpy", "pillow")
_SHARED_KEYS = ("images", "network", "device", "precision", *_VERSION_KEYS)  # the same in all processes of a run
_WEIGHTS_OPTIONS = ("network", "dialect", "state_dict", "reset_head", "input_channels")


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
    """Prepare a new run: data, recipe, network, run folder, images.

    Args:
        data: The data.
        model: The model; None for the one in the settings.
        settings: Nested changes to the recipe.
        out: The run folder; None for the next free ``runs/DATA-MODEL-N``.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        on_progress: Called with (done, all) while images are read.
        dist: The processes of the run.
        workers: Threads that read images; None for one on each core.
        **options: The options of `resnetkit.training.overrides.merge_options`.
    """
    workers = resolve_workers(workers)
    dataset = open_dataset(data, on_progress)
    changes = merge_options(settings, **options)
    name = resolve_model_name(os.fspath(model) if model else None, changes)
    network = load_base_network(name, changes)
    weights_spec = network.card.spec if network else None
    recipe = resolve_recipe(len(dataset.train_split), _escape_path(data), name, changes, weights_spec)
    base = None if isinstance(recipe.start, Scratch) else network or load_network(recipe.model)
    pretrained = network or base
    source_card = pretrained.card if pretrained else load_card(recipe.model)
    run = resolve_run(dataset, recipe, base, source_card, device=device, world_size=dist.world_size)
    if dist.is_main:
        check_trackers_installed(recipe.trackers)
    check_distributed(run, dist)
    folders = [Path(folder) for folder in dist.run_on_main(lambda: _create_run_folder(run, out))]
    run = replace(run, out=folders[0], created_folders=tuple(folders) if dist.is_main else ())
    try:
        if dist.is_main:
            write_run_metadata(run)
        environment = dist.run_on_main(lambda: environment_fingerprint(run))
        return replace(run, environment=environment, loaders=open_loaders(run, on_progress, workers))
    except BaseException:
        if run.created_folders:
            remove_partial_run(run.created_folders)
        raise


def _create_run_folder(run: PreparedRun, out: str | Path | None) -> list[str]:
    """Create the run folder, and return it with the parents that were created."""
    path = choose_run_folder(out, run.recipe, run.card.name)
    check_checkpoint_space(run, path, 3)
    return [str(folder) for folder in make_run_folder(path, numbered=out is None)]


def _escape_path(data: str | Path) -> str:
    """Escape the bytes of a path that are not UTF-8, as TOML holds text only."""
    return str(data).encode("utf-8", "backslashreplace").decode()


def load_base_network(model: str, settings: Mapping[str, Any]) -> NetworkModule | None:
    """Load the network of a weights file, whose spec is known only then; return None for any other model.

    Args:
        model: The model as the user names it.
        settings: Nested settings; ``start`` may say how the file is read.
    """
    if not isinstance(resolve_model(model), WeightsFile | HuggingFaceFolder):
        return None
    start_settings = get_start_settings(settings)
    weights_options = {name: start_settings[name] for name in _WEIGHTS_OPTIONS if name in start_settings}
    options = from_data(FineTune, weights_options, "start")
    return load(
        model,
        options.network or None,
        options.dialect or None,
        reset_head=options.reset_head or None,
        input_channels=options.input_channels or None,
        state_dict=options.state_dict or None,
    )


def resolve_run(
    dataset: Dataset, recipe: Recipe, base: NetworkModule | None, source_card: Card, *, device: str, world_size: int
) -> PreparedRun:
    """Decide everything about a run but its folder, and build its network.

    Args:
        dataset: The data.
        recipe: The recipe.
        base: The network whose weights the run starts from, if there is one.
        source_card: The card of the named model.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
        world_size: The number of processes.

    Raises:
        DataError: the data has fewer than two classes.
    """
    if len(dataset.classes) < 2:
        what = f"at least two classes are needed; the data has one ({dataset.classes[0]})"
        raise DataError(what, where=dataset.name, fix="add a folder for each other class")
    splits = split_dataset(dataset, recipe.split_seed)
    card = _build_card(dataset, recipe, source_card)
    torch_device = select_device(device)
    return PreparedRun(
        recipe=recipe,
        dataset=splits,
        card=card,
        spec_input=source_card.spec.input,
        plan=plan(card.spec),
        device=str(torch_device),
        precision=select_precision(recipe.precision, torch_device),
        model=_build_network(recipe, card, base),
        notes=(*splits.notes, *_describe_splits(splits), *_describe_fine_tuning(recipe, base, card)),
        world_size=world_size,
    )


def _build_card(dataset: Dataset, recipe: Recipe, source_card: Card) -> Card:
    """Build the card of the trained model: the named model's, for this data."""
    old_spec = source_card.spec
    spec = replace(replace_classes(old_spec, len(dataset.classes)), input=recipe.input_size or old_spec.input)
    spec = spec if recipe.stochastic_depth is None else replace(spec, stochastic_depth=recipe.stochastic_depth)
    if isinstance(recipe.start, FineTune) and spec.input[0] != old_spec.input[0]:
        what = f"the weights expect {old_spec.input[0]} input channels, but input_size has {spec.input[0]}"
        raise UsageError(what, where="input_size", fix="omit input_size")
    default_preparation = source_card.preparation if spec.input == old_spec.input else make_default_preparation(spec)
    preparation = recipe.preparation or default_preparation
    if faults := find_preparation_faults(preparation, spec.input[0]):
        raise TextError("images cannot be prepared for this network", faults, fix="change its input, or preparation")
    origin = "trained with resnetkit"
    if isinstance(recipe.start, FineTune):
        origin = f"fine-tuned with resnetkit from {source_card.name} ({source_card.origin})"
    fingerprint = compute_fingerprint(dataset)
    training = TrainingInfo(Path(dataset.name).name, fingerprint, recipe.split_seed, recipe.seed, recipe.epochs)
    new_card = make_card(source_card.name, spec, dataset.classes)
    return replace(new_card, preparation=preparation, origin=origin, training=training, license=source_card.license)


def _build_network(recipe: Recipe, card: Card, base: NetworkModule | None) -> NetworkModule:
    """Build the network with its first weights; fine-tuning keeps the classifier if classes are equal."""
    if base is not None:
        reinit_prefix = "" if _has_same_classes(base.card, card) else "head.linear."
        return transfer(base, card, reinit_prefix=reinit_prefix, seed=recipe.seed)
    zero_last_norm = isinstance(recipe.start, Scratch) and recipe.start.zero_last_norm
    model = build(card.spec, seed=recipe.seed, zero_last_norm=zero_last_norm)
    model.card = card
    return model


def _has_same_classes(base: Card, card: Card) -> bool:
    return bool(base.classes) and base.classes == card.classes


def open_loaders(run: PreparedRun, on_progress: ProgressCallback | None, workers: int) -> dict[str, ImageLoader]:
    """Open a loader for each split, in memory if its pixels fit.

    Random crops are cut from the original images, so training images are not kept then.

    Args:
        run: The run.
        on_progress: Called with (done, all) while images are read.
        workers: Threads that read images.
    """
    skipped_files = SkippedFiles(run.dataset, run.recipe.bad_files)
    has_random_crop = isinstance(run.recipe.augment, RandomResizedCrop)
    preparation, free_bytes, loaders = run.card.preparation, get_cache_limit(), {}
    for split, images in run.dataset.splits.items():
        n_bytes = len(images) * math.prod(preparation.crop) * len(preparation.mean)
        in_memory = n_bytes <= free_bytes and not (has_random_crop and split == "train")
        loaders[split] = ImageLoader(
            images, preparation, skipped_files, cache=in_memory, on_progress=on_progress, workers=workers
        )
        free_bytes -= n_bytes if in_memory else 0
    return loaders


# --------------------------------------------------------------------------------------------- what decides the numbers


def environment_fingerprint(run: PreparedRun) -> dict[str, str]:
    """Return what decides the numbers of a run beside its recipe."""
    device, versions = torch.device(run.device), collect_versions()
    is_cuda = device.type == "cuda"
    return {
        "images": run.card.training.fingerprint if run.card.training else "",
        "network": _digest_network(run.card),
        "device": device.type,
        "processor": torch.cuda.get_device_name(device) if is_cuda else str(torch.backends.cpu.get_cpu_capability()),
        "precision": run.precision,
        "threads": str(torch.get_num_threads()),
        "processes": str(run.world_size),
        **{name: versions[name] for name in _VERSION_KEYS},
    }


def _digest_network(card: Card) -> str:
    """Digest the network and the preparation of its images."""
    text = to_json(card.spec) + to_json(card.preparation)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_distributed(run: PreparedRun, dist: ProcessGroup) -> None:
    """Check that a step is large enough for all processes, and that they agree on what decides the run.

    Args:
        run: The run.
        dist: The processes of the run.

    Raises:
        UsageError: the batch size is too small.
    """
    recipe = run.recipe
    minimum = 2 * dist.world_size * recipe.accumulate
    if recipe.batch_size < minimum:
        division = f"{dist.world_size} processes"
        if recipe.accumulate > 1:
            division += f" with {recipe.accumulate} micro-batches each"
        what = f"batch_size {recipe.batch_size} is too small for {division}: at least two images each are needed"
        raise UsageError(what, where="batch_size", fix=f"--batch-size {minimum} or more")
    if dist.world_size > 1:
        environment = environment_fingerprint(run)
        shared = {name: environment[name] for name in _SHARED_KEYS}
        check_same_on_all_ranks(dist, **shared, recipe=to_json(recipe))


# ---------------------------------------------------------------------------------------------------------------- notes


def _describe_splits(splits: Dataset) -> Iterator[str]:
    """Describe classes without images, and images that training shares with a measured split."""
    for split, classes in splits.find_missing_classes().items():
        yield f"{split} has no image of: {join_names(classes)}"
    if pairs := find_leaks(splits):
        count = f"{pluralize(len(pairs), 'image')} of one split {'is' if len(pairs) == 1 else 'are'} also in another"
        examples = join_names([f"{a} = {b}" for a, b in pairs], 1)
        yield f"{count}, so the accuracy is likely too high: {examples}"


def _describe_fine_tuning(recipe: Recipe, base: NetworkModule | None, card: Card) -> Iterator[str]:
    """Describe what fine-tuning keeps, and which layers train when."""
    if base is None or isinstance(recipe.start, Scratch):
        return
    fine_tune, name = recipe.start, base.card.name
    if base.card.assumed:
        yield f"read: {base.card.origin}; assumed: {'; '.join(base.card.assumed)}"
    head_state = "kept, as the classes are the same" if _has_same_classes(base.card, card) else "new"
    scale = fine_tune.backbone_lr_scale
    head_epochs = pluralize(min(fine_tune.head_epochs, recipe.epochs) if scale else recipe.epochs, "epoch")
    backbone = f"then the backbone too, at {scale:g} of its learning rate; norm statistics are {fine_tune.norm_stats}"
    if scale == 0 or fine_tune.head_epochs >= recipe.epochs:
        backbone = "and the backbone does not train"
    yield f"fine-tuning {name}: the head is {head_state} and trains alone for {head_epochs}, {backbone}"
    if base.card.training and card.training and _may_overlap(base.card.training, card.training):
        yield (
            f"{name} was trained on {base.card.training.data} with other images held out; it may have seen the images "
            "held out now, so the accuracy is likely too high"
        )


def _may_overlap(previous: TrainingInfo, current: TrainingInfo) -> bool:
    """Return whether previous training may have used the held-out images: same data, another split."""
    is_same_data = previous.data == current.data or previous.fingerprint == current.fingerprint
    return is_same_data and (previous.fingerprint, previous.split_seed) != (current.fingerprint, current.split_seed)
