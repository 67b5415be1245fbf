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
from resnetkit.architecture.card import Card, Training, card_for, card_of, preparation_faults, preparation_for
from resnetkit.architecture.catalog import ROWS
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import with_classes
from resnetkit.data.dataset import Data, divide, fingerprint, leaks, listed
from resnetkit.data.loader import PixelSource, Skipped, Tell, kept_bytes, workers_of
from resnetkit.data.open import open_data
from resnetkit.errors import DataError, MachineError, TextError, UsageError
from resnetkit.evaluation.metrics import require_alike
from resnetkit.formatting import counted
from resnetkit.network.build import build
from resnetkit.network.layers import Network
from resnetkit.runtime.device import pick, resolve
from resnetkit.runtime.distributed import ALONE, Ranks
from resnetkit.runtime.environment import environment, versions
from resnetkit.serialization import from_data, to_json, to_toml
from resnetkit.surgery.transfer import carry
from resnetkit.training.checkpoint import STATE_FOLDER, Checkpoint, size
from resnetkit.training.overrides import with_options
from resnetkit.training.recipe import (
    EMA,
    AdamW,
    FineTune,
    RandomCrop,
    Recipe,
    Scratch,
    beginning,
    is_weights_file,
    model_named,
    plan_run,
)
from resnetkit.training.run_folder import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    NETWORK_FILE,
    RECIPE_FILE,
    Prepared,
    finished,
    resuming,
)
from resnetkit.training.trackers.client import FOLDER as TRACKERS
from resnetkit.training.trackers.client import require
from resnetkit.weights.load import load


@dataclass(frozen=True)
class Start:
    """What training begins with: the decisions, the pictures, the network, and the folders that were made.

    ``checkpoint`` is where it goes on, None at the beginning of a run; ``circumstances`` decide its numbers.
    """

    prepared: Prepared
    sources: dict[str, PixelSource]
    model: Network
    made: tuple[Path, ...]
    circumstances: dict[str, str]
    checkpoint: Checkpoint | None = None


def start(
    data: str | Path,
    model: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    out: str | Path | None,
    device: str,
    tell: Tell | None,
    ranks: Ranks = ALONE,
    workers: int | None = None,
    **options: Any,
) -> Start:
    """Open the data, settle the recipe, claim the folder, read what fits into memory, build the network."""
    workers = workers_of(workers)
    opened = open_data(data, tell)
    changes = with_options(settings, **options)
    word = model_named(os.fspath(model) if model else None, changes)
    weights = trained(word, changes)
    recipe = plan_run(len(opened.first), _text(data), word, changes, weights.card.spec if weights else None)
    base = None if isinstance(recipe.start, Scratch) else weights or load(recipe.model)
    known = weights or base
    prepared = decided(opened, recipe, base, known.card if known else card_of(recipe.model), device)
    if ranks.writes:
        require(recipe.trackers)
    require_together(prepared, ranks)
    made = [Path(word) for word in ranks.first(lambda: _claimed(prepared, out, opened.name))]
    prepared = replace(prepared, out=made[0], processes=ranks.world)
    made = made if ranks.writes else []
    try:
        if made:
            write_papers(prepared)
        around = ranks.first(lambda: circumstances(prepared))
        sources = sources_of(prepared, tell, workers)
        return Start(prepared, sources, network_of(prepared, base), tuple(made), around)
    except BaseException:
        if made:
            leave(made)
        raise


def _claimed(prepared: Prepared, out: str | Path | None, data: str) -> list[str]:
    """The folder of a new run, made, and those that were made above it."""
    free = _outside(_free(out, prepared.recipe, prepared.card), data)
    require_space(prepared, free, 3)
    return [str(folder) for folder in _claim(free, numbered=out is None)]


def require_together(prepared: Prepared, ranks: Ranks) -> None:
    """Raise where the processes of a run differ in what decides it, or are too many for a step."""
    recipe = prepared.recipe
    if recipe.batch_size < 2 * ranks.world * recipe.accumulate:
        parts = f"{ranks.world} processes" + f" and {recipe.accumulate} parts in each" * (recipe.accumulate > 1)
        what = (
            f"a step of {counted(recipe.batch_size, 'picture')} is too small for {parts}: two pictures each, at least"
        )
        raise UsageError(what, where="batch_size", fix=f"--batch-size {2 * ranks.world * recipe.accumulate} or more")
    if ranks.world > 1:
        around = circumstances(prepared)
        told = {name: around[name] for name in ("pictures", "network", "device", "precision", *_VERSIONS)}
        require_alike(ranks, **told, recipe=to_json(recipe))


def _text(data: str | Path) -> str:
    """TOML holds no name that is not text."""
    return str(data).encode("utf-8", "backslashreplace").decode()


def require_space(prepared: Prepared, folder: Path, checkpoints: int) -> None:
    """Raise `MachineError` where there is no room for so many of them."""
    how = prepared.recipe.optimiser
    moments = 2 if isinstance(how, AdamW) else how.momentum > 0
    one = size(prepared.plan, moments + isinstance(prepared.recipe.ema, EMA))
    files.require_space(folder, checkpoints * one, f"{checkpoints} checkpoints" if checkpoints > 1 else "a checkpoint")


def write_papers(prepared: Prepared) -> None:
    """What a run is: its recipe, its network, the machine."""
    folder, recipe = prepared.out, prepared.recipe
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    if recipe.model not in ROWS:  # a file elsewhere can change or go
        files.write_text(folder / NETWORK_FILE, to_toml(prepared.card.spec))
    files.write_text(folder / ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")


def leave(made: Sequence[Path]) -> None:
    """Take a run back of which nothing is worth keeping: what it wrote into the folder that was made for it."""
    folder = made[0]
    for name in (RECIPE_FILE, NETWORK_FILE, ENVIRONMENT_FILE, METRICS_FILE):
        (folder / name).unlink(missing_ok=True)
    files.remove_folder(folder / STATE_FOLDER)
    files.remove_folder(folder / TRACKERS)
    files.sweep(folder)
    files.remove_empty(made)


def circumstances(prepared: Prepared) -> dict[str, str]:
    """What decides the numbers of a run beside its recipe."""
    place = torch.device(prepared.device)
    gpu = place.type == "cuda"
    told, learnt = versions(), prepared.card.training
    return {
        "pictures": learnt.fingerprint if learnt else "",
        "network": _digest(prepared),
        "device": place.type,
        "processor": torch.cuda.get_device_name(place) if gpu else str(torch.backends.cpu.get_cpu_capability()),
        "precision": prepared.precision,
        "threads": str(torch.get_num_threads()),
        "processes": str(prepared.processes),
        **{name: told[name] for name in _VERSIONS},
    }


_VERSIONS = ("resnetkit", "torch", "numpy", "pillow")


def _digest(prepared: Prepared) -> str:
    """Of the network and of how its images are prepared."""
    told = to_json(prepared.card.spec) + to_json(prepared.card.preparation)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def trained(model: str, settings: Mapping[str, Any]) -> Network | None:
    """The network of a weights file, which has to be read before it is known; None for any other model."""
    if not is_weights_file(model):
        return None
    begin = beginning(settings)
    said = from_data(FineTune, {name: begin[name] for name in _OF_WEIGHTS if name in begin}, "start")
    return load(
        model,
        said.network or None,
        said.dialect or None,
        reset_head=said.reset_head or None,
        input_channels=said.input_channels or None,
    )


_OF_WEIGHTS = ("network", "dialect", "reset_head", "input_channels")


def decided(opened: Data, recipe: Recipe, base: Network | None, own: Card, device: str) -> Prepared:
    """``own`` is the card of the network as it is named, ``base`` the one whose weights are taken; no folder yet."""
    if len(opened.classes) < 2:
        what = f"there is one class only ({opened.classes[0]}), so there is nothing to tell apart"
        raise DataError(what, where=opened.name, fix="add a folder for each other class")
    data = divide(opened, recipe.split_seed)
    card = _card(opened, recipe, own)
    where = pick(device)
    precision = resolve(recipe.precision, where)
    notes = (*data.notes, *_lacking(data), *_leaks(data), *_beginning(recipe, base, card))
    return Prepared(recipe, data, card, own.spec.input, plan(card.spec), str(where), precision, Path(), notes)


def _card(opened: Data, recipe: Recipe, own: Card) -> Card:
    """The card of what will come out: the network's, for this data."""
    spec = replace(with_classes(own.spec, len(opened.classes)), input=recipe.image or own.spec.input)
    spec = spec if recipe.stochastic_depth is None else replace(spec, stochastic_depth=recipe.stochastic_depth)
    if isinstance(recipe.start, FineTune) and spec.input[0] != own.spec.input[0]:
        what = f"these weights see {own.spec.input[0]} channels, and the run's images have {spec.input[0]}"
        raise UsageError(what, where="image", fix="leave image out")
    kept = own.preparation if spec.input == own.spec.input else preparation_for(spec)
    preparation = recipe.preparation or kept
    faults = preparation_faults(preparation, spec.input[0])
    if faults:
        raise TextError("pictures cannot be prepared for this network", faults, fix="change its input, or preparation")
    origin = "trained with resnetkit"
    if isinstance(recipe.start, FineTune):
        origin = f"fine-tuned with resnetkit from {own.name} ({own.origin})"
    training = Training(Path(opened.name).name, fingerprint(opened), recipe.split_seed, recipe.seed, recipe.epochs)
    made = card_for(own.name, spec, opened.classes)
    return replace(made, preparation=preparation, origin=origin, training=training, licence=own.licence)


def _lacking(data: Data) -> list[str]:
    return [f"{part} has no picture of: {listed(names)}" for part, names in data.lacking().items()]


def _leaks(data: Data) -> list[str]:
    """One warning for pictures that training and measuring share."""
    found = leaks(data)
    twins = listed([f"{a} = {b}" for a, b in found], 1)
    what = f"{counted(len(found), 'picture')} of one part {'is' if len(found) == 1 else 'are'} in another one, too"
    return [f"{what}, which measures too kindly: {twins}"] * bool(found)


def _beginning(recipe: Recipe, base: Network | None, card: Card) -> list[str]:
    """What fine-tuning keeps, and what it does when."""
    if base is None or isinstance(recipe.start, Scratch):
        return []
    how, kept = recipe.start, "kept, as the classes are the same" if _same(base.card, card) else "new"
    then = f"then the body with it at {how.body_rate:g} of its rate; norm statistics are {how.norms}"
    if how.body_rate == 0 or how.head_epochs >= recipe.epochs:
        then = "and the body does not learn"
    epochs = min(how.head_epochs, recipe.epochs) if how.body_rate else recipe.epochs
    told = [f"read: {base.card.origin}; assumed: {'; '.join(base.card.assumed)}"] * bool(base.card.assumed)
    told += [
        f"fine-tuning {base.card.name}: the head is {kept} and learns alone for {counted(epochs, 'epoch')}, {then}"
    ]
    before, now = base.card.training, card.training
    if before and now and _may_overlap(before, now):
        told.append(
            f"{base.card.name} has learnt from {before.data} before, with other pictures held out: those that it knows "
            "may be held out now, which measures too kindly"
        )
    return told


def _may_overlap(before: Training, now: Training) -> bool:
    """Whether pictures that were learnt from may be held out now: the same data, divided in another way."""
    related = before.data == now.data or before.fingerprint == now.fingerprint
    return related and (before.fingerprint, before.split_seed) != (now.fingerprint, now.split_seed)


def _same(base: Card, card: Card) -> bool:
    return bool(base.classes) and base.classes == card.classes


def network_of(prepared: Prepared, base: Network | None) -> Network:
    """The network with its first weights; the classifier is new where the classes are."""
    recipe, card = prepared.recipe, prepared.card
    if base is not None:
        return carry(base, card, anew="" if _same(base.card, card) else "head.linear.", seed=recipe.seed)
    zero = isinstance(recipe.start, Scratch) and recipe.start.zero_last_norm
    model = build(card.spec, seed=recipe.seed, zero_last_norm=zero)
    model.card = card
    return model


def sources_of(prepared: Prepared, tell: Tell | None, workers: int) -> dict[str, PixelSource]:
    """Every part as pixels; random windows are cut from the pictures themselves, so those are not kept."""
    skipped = Skipped(prepared.data, prepared.recipe.bad_files)
    cut = isinstance(prepared.recipe.augment, RandomCrop)
    preparation, left, sources = prepared.card.preparation, kept_bytes(), {}
    for part, pictures in prepared.data.parts.items():
        size = len(pictures) * math.prod(preparation.crop) * len(preparation.mean)
        keep = size <= left and not (cut and part == "train")
        sources[part] = PixelSource(pictures, preparation, skipped, keep=keep, tell=tell, workers=workers)
        left -= size * keep
    return sources


# ------------------------------------------------------------------------------------------------------- the folder


def _free(out: str | Path | None, recipe: Recipe, card: Card) -> Path:
    """The folder to write to; one that is there already is refused, with what it holds."""
    if out is None:
        stem = f"{Path(recipe.data).name.partition('.')[0] or 'data'}-{card.name}"
        return next(path for i in range(1, 10**9) if not (path := Path("runs") / f"{stem}-{i}").exists())
    path = Path(out)
    if finished(path):
        raise UsageError("there is a finished run in this folder", where=str(path), fix="name another --out")
    if (path / RECIPE_FILE).exists():
        raise UsageError("there is an unfinished run in this folder", where=str(path), fix=resuming(path))
    if path.exists():
        raise UsageError("--out exists already", where=str(path), fix="name a folder that does not exist")
    return path


def _outside(out: Path, data: str) -> Path:
    """The folder itself; one inside the data would be taken for a class the next time."""
    if Path(data).is_dir() and out.absolute().is_relative_to(Path(data).absolute()):
        raise UsageError("the run would be written into the data", where=str(out), fix="--out with a folder elsewhere")
    return out


def _claim(out: Path, *, numbered: bool) -> tuple[Path, ...]:
    """The folder, made, and those above it; where another run has taken the number meanwhile, the next one."""
    while True:
        try:
            return files.make_folder(out)
        except MachineError as error:
            if not numbered or not isinstance(error.__cause__, FileExistsError):
                raise
            stem, _, number = out.name.rpartition("-")
            out = out.with_name(f"{stem}-{int(number) + 1}")
