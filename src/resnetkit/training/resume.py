"""Going on with a run: what is compared with how it was begun, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from resnetkit import files
from resnetkit.architecture.card import Card, card_of
from resnetkit.architecture.plan import Plan
from resnetkit.data.loader import Tell, workers_of
from resnetkit.data.open import open_data
from resnetkit.errors import DataError, UsageError, WeightsError
from resnetkit.network.layers import Network
from resnetkit.runtime.distributed import ALONE, Ranks
from resnetkit.serialization import from_data, over, to_data
from resnetkit.training.checkpoint import STATE_FOLDER, TENSORS, Checkpoint, check_model, read_newest
from resnetkit.training.overrides import with_options
from resnetkit.training.recipe import Recipe, Scratch, edit
from resnetkit.training.run_folder import (
    METRICS_FILE,
    NETWORK_FILE,
    Prepared,
    finished,
    read_recipe,
    require_run,
    resuming,
)
from resnetkit.training.setup import (
    Start,
    circumstances,
    decided,
    network_of,
    require_space,
    require_together,
    sources_of,
    trained,
    write_papers,
)
from resnetkit.training.state import State, differences
from resnetkit.training.trackers.client import require
from resnetkit.weights.load import load

SAFE = (
    "patience",
    "checkpoint_steps",
    "trackers",
    "bad_files",
)  # they decide when a run ends or stops, and no number in it


def resume(
    run: str | Path,
    data: str | Path | None,
    model: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    override: bool,
    device: str,
    tell: Tell | None,
    ranks: Ranks = ALONE,
    workers: int | None = None,
    **options: Any,
) -> Start:
    """A run as its newest sound checkpoint has it, or as it began where there is none yet.

    What is set is compared with the run. Raises `UsageError` for what would make its result that of neither, unless
    ``override``; `DataError` where the pictures are others; `WeightsError` where no checkpoint can be read.
    """
    path = Path(run)
    before = from_data(Recipe, ranks.first(lambda: to_data(read_recipe(path))), str(path))
    recipe = edit(before, _changes(before, data, model, with_options(settings, **options)))
    base, own = _known(path, recipe)
    opened = open_data(recipe.data, tell)
    prepared = replace(decided(opened, recipe, base, own, device), out=path, processes=ranks.world)
    require_together(prepared, ranks)
    standing = _standing(prepared, ranks)
    now = ranks.first(lambda: circumstances(prepared))
    then = dict(standing.state.circumstances) if standing else now
    changed = _compared(
        prepared, list(differences(to_data(before), to_data(recipe))), list(differences(then, now)), override
    )
    if ranks.writes:
        require(recipe.trackers)
        _make_ready(prepared, papers=bool(changed) or standing is None)
    sources = sources_of(prepared, tell, workers_of(workers))
    prepared = replace(prepared, resumed=tuple(_told(standing, changed)))
    return Start(prepared, sources, network_of(prepared, base), (), now, _with(standing, changed, now))


def _make_ready(prepared: Prepared, *, papers: bool) -> None:
    """Room, no remains, and the papers, which may not have been written when the run was killed."""
    require_space(prepared, prepared.out, 1)
    files.sweep(prepared.out)
    files.sweep(prepared.out / STATE_FOLDER)
    if papers:
        write_papers(prepared)


def _standing(prepared: Prepared, ranks: Ranks) -> Checkpoint | None:
    """The newest sound checkpoint. One process reads it, as not all may see the same files at the same moment."""
    found: list[Checkpoint | None] = [None]

    def read() -> Any:
        check = partial(_check, prepared.plan, prepared.out / METRICS_FILE)
        found[0] = read_newest(prepared.out / STATE_FOLDER, check)
        return to_data(found[0].state) if found[0] else None

    state = ranks.first(read)
    if state is None or ranks.world == 1:
        return found[0]
    tensors = [ranks.share(getattr(found[0], name) if found[0] else {}) for name in TENSORS]
    return Checkpoint(from_data(State, state, "state"), *tensors)


def require_unchanged(run: str | Path, *given: object) -> None:
    """Raise `UsageError` where something is set for a run that has finished."""
    if any(given):
        what = "this run has finished, so nothing of it can be changed"
        raise UsageError(what, where=str(run), fix="begin another one: --out with another folder")


def is_finished(run: str | Path) -> bool:
    """Whether there is nothing to go on with; raises `UsageError` where there is no run."""
    require_run(Path(run))
    return finished(Path(run))


def _changes(
    before: Recipe, data: str | Path | None, model: str | os.PathLike[str] | None, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What is set, with data and model as they are named by hand; the same place under another name is no change."""
    named = {"data": data, "model": model}
    given = {name: os.fspath(value) for name, value in named.items() if value}
    same = {name for name, value in given.items() if Path(value).absolute() == Path(getattr(before, name)).absolute()}
    return dict(over(dict(settings), {name: value for name, value in given.items() if name not in same}))


def _known(path: Path, recipe: Recipe) -> tuple[Network | None, Card]:
    """(the network whose weights the run began with, the card of the network that is named)."""
    found = trained(recipe.model, to_data(recipe))
    if isinstance(recipe.start, Scratch):
        return None, found.card if found else _card(path, recipe)
    base = found or load(recipe.model)
    return base, base.card


def _card(path: Path, recipe: Recipe) -> Card:
    """Of the file that describes the network; where it has gone, of the copy that the run has."""
    if (path / NETWORK_FILE).is_file() and not Path(recipe.model).exists():
        return replace(card_of(path / NETWORK_FILE), name=Path(recipe.model).stem)
    return card_of(recipe.model)


def _check(worked_out: Plan, metrics: Path, found: Checkpoint) -> None:
    check_model(found, worked_out, metrics.parent / STATE_FOLDER)
    size = metrics.stat().st_size if metrics.is_file() else 0
    if size < found.state.metrics:
        what = f"{METRICS_FILE} is shorter than this checkpoint says: needs {found.state.metrics:,} bytes, has {size:,}"
        raise WeightsError(what, where=str(metrics))


Difference = tuple[str, str, str]


def _compared(
    prepared: Prepared, settings: Sequence[Difference], around: Sequence[Difference], override: bool
) -> list[str]:
    """Every difference of the recipe and of what is around it, as lines; raises where one of them is unsafe."""
    if "pictures" in {name for name, *_ in around}:
        what = "these are not, or no longer, the pictures that the run was begun with"
        raise DataError(what, where=prepared.recipe.data, fix="name the same data, or begin another run: --out")
    unsafe = [*(line for line in settings if line[0].split(".")[0] not in SAFE), *around]
    if unsafe and not override:
        what = "the run was begun otherwise, so that its result would be that of neither"
        fix = f"leave it as it was, or go on all the same: {resuming(prepared.out)} ... --override"
        raise UsageError(what, where=list(_lines(unsafe)), fix=fix)
    return list(_lines([*settings, *around]))


def _lines(found: Sequence[Difference]) -> Iterator[str]:
    return (f"{name}: {old} -> {new}" for name, old, new in found)


def _told(standing: Checkpoint | None, changed: Sequence[str]) -> list[str]:
    """What a person should know of where the run goes on."""
    state = standing.state if standing else None
    place = (
        f"after step {state.step} of epoch {state.epoch}" if state else "at the beginning: no checkpoint was written"
    )
    return [f"resuming {place}", *changed]


def _with(standing: Checkpoint | None, changed: Sequence[str], now: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint with what was changed on it remembered."""
    if standing is None:
        return None
    state = standing.state
    lines = tuple(f"from step {state.steps + 1} on: {line}" for line in changed)
    return replace(standing, state=replace(state, changes=(*state.changes, *lines), circumstances=tuple(now.items())))
