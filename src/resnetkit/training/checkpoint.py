"""A checkpoint: a folder without pickle, whole or not there, and the keeper of the last two.

``RUN/state/step-00001234`` holds ``model.safetensors``, ``best.safetensors`` (the model of the best epoch so far),
``training.safetensors`` (what the optimiser remembers, as ``momentum_buffer/PATH``, the average of the model, as
``ema/PATH``, and ``random/...``), ``state.json``, and ``manifest.json``, written last: the length and SHA-256 of each.
``RUN/state/latest`` names the newest.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as packed
from torch import Tensor

from resnetkit import files
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.training.ema import SLOT as EMA_SLOT
from resnetkit.training.run_folder import resuming
from resnetkit.training.state import State, read_state, to_text
from resnetkit.weights.fit import COUNT
from resnetkit.weights.load import nonfinite
from resnetkit.weights.read import read_tensors

STATE_FOLDER, LATEST, MANIFEST, STATE = "state", "latest", "manifest.json", "state.json"
TENSORS = ("model", "best", "training")  # each a dict of `Checkpoint`, each a file
FORMAT = 1
_EVERY_SECONDS = 300.0
_MOST_FAILURES = 3  # in a row
_NAME = re.compile(r"step-(\d{8,15})")
_COPY = "copy the whole run folder again, or begin anew: --out with another folder"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if nothing had happened. ``best`` is empty before the first epoch."""

    state: State
    model: Tensors
    best: Tensors = field(default_factory=dict)
    training: Tensors = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------- writing


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Under its number in ``folder``, then as the latest; raises `MachineError`, and what was there is as it was."""
    place = folder / f"step-{checkpoint.state.steps:08d}"
    contents = {f"{name}.safetensors": _bytes(getattr(checkpoint, name)) for name in TENSORS}
    contents[STATE] = to_text(checkpoint.state).encode()
    told = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    contents[MANIFEST] = json.dumps({"format": FORMAT, "files": told}, indent=2).encode()
    files.require_space(folder, sum(map(len, contents.values())), "a checkpoint")
    files.remove_folder(place)  # left from a way that was not gone on: the run stands before it
    with files.new_folder(place) as part:
        for name, data in contents.items():
            files.put(part / name, data)
    files.write_text(folder / LATEST, place.name + "\n")
    return place


def _bytes(tensors: Tensors) -> bytes:
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return packed(plain, {"format": "pt"})


def size(plan: Plan, moments: int) -> int:
    """Bytes of a checkpoint, nearly: the model twice, and ``moments`` more numbers for each parameter."""
    return 4 * plan.params * (2 + moments) + 2**20


class Keeper:
    """When a checkpoint is written, which ones stay, and what happens when that fails."""

    def __init__(self, folder: Path, every: int | None, standing: Checkpoint | None) -> None:
        self.folder, self.every = folder, every
        self.newest = f"step-{standing.state.steps:08d}" if standing else ""
        self.failures = 0
        self._last = time.monotonic()

    def due(self, steps: int) -> bool:
        """Whether it is time: the clock decides when, and never what."""
        return bool(self.every and steps % self.every == 0) or time.monotonic() - self._last > _EVERY_SECONDS

    def has(self, steps: int) -> bool:
        """Whether the newest one is of this step."""
        return self.newest == f"step-{steps:08d}"

    def save(self, make: Callable[[], Checkpoint]) -> None:
        """Write one. A failure is a warning, the third in a row an error: training without a net is no use."""
        self._last = time.monotonic()
        try:
            place = write(self.folder, make())
        except MachineError as error:
            self._failed(error)
            return
        self.failures = 0
        self._forget({place.name, self.newest})
        self.newest = place.name

    def _failed(self, error: MachineError) -> None:
        self.failures += 1
        if self.failures >= _MOST_FAILURES:
            what = f"{self.failures} checkpoints in a row could not be written: {error.what}"
            raise MachineError(
                what, where=error.where, fix=f"make room; then {resuming(self.folder.parent)}"
            ) from error
        kept = f"{self.newest} is kept" if self.newest else "there is none yet"
        told = f"a checkpoint could not be written ({error.what}); {kept}, and training goes on"
        warnings.warn(told, ResnetkitWarning, stacklevel=2)

    def _forget(self, kept: set[str]) -> None:
        for name in set(_names(self.folder)) - kept:
            files.remove_folder(self.folder / name)


# ----------------------------------------------------------------------------------------------------------- reading


def read_newest(folder: Path, fits: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The newest one that is sound and that ``fits`` does not refuse; None where there is none at all.

    Warns where a newer one is damaged; raises `WeightsError` where all are.
    """
    faults: list[WeightsError] = []
    for name in _names(folder):
        try:
            found = read(folder / name)
            fits(found)
        except WeightsError as error:
            faults.append(error)
            continue
        if faults:
            told = f"{folder / _names(folder)[0]} is damaged ({faults[0].what}); {folder / name} is taken instead"
            warnings.warn(told, ResnetkitWarning, stacklevel=2)
        return found
    if faults:
        first = faults[0]
        raise WeightsError(f"no checkpoint of this run can be read: {first.what}", where=first.where, fix=_COPY)
    return None


def _names(folder: Path) -> list[str]:
    """The checkpoints that stand there: the one that is told to be the latest, then the others, newest first."""
    found = sorted((path.name for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_number)[::-1]
    try:
        latest = read_text(folder / LATEST, "this file", 100).strip()
    except UsageError:
        latest = ""
    return [latest, *(name for name in found if name != latest)] if latest in found else found


def _number(name: str) -> int:
    return int(name.removeprefix("step-"))


def read(folder: Path) -> Checkpoint:
    """A checkpoint whose every byte is as it was written; raises `WeightsError`."""
    _verify(folder)
    state = read_state(folder / STATE)
    if folder.name != f"step-{state.steps:08d}":
        raise WeightsError(f"this is the state after {state.steps} steps", where=str(folder))
    return Checkpoint(state, *(read_tensors(folder / f"{name}.safetensors")[0] for name in TENSORS))


def _verify(folder: Path) -> None:
    told = _manifest(folder / MANIFEST)
    for name in (STATE, *(f"{name}.safetensors" for name in TENSORS)):
        path, entry = folder / name, told.get(name)
        if not isinstance(entry, dict) or not path.is_file():
            raise WeightsError(f"{name} is missing", where=str(path))
        if path.stat().st_size != entry.get("bytes") or files.digest(path) != entry.get("sha256"):
            raise WeightsError(f"{name} is not as it was written", where=str(path))


def _manifest(path: Path) -> dict[str, object]:
    try:
        found = parse_json(read_text(path, MANIFEST), MANIFEST)
    except UsageError as error:
        raise WeightsError(error.what, where=str(path)) from None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise WeightsError(f"{MANIFEST} names no files", where=str(path))
    if found.get("format") != FORMAT:
        what = f"this checkpoint has format {str(found.get('format'))[:20]}, and {FORMAT} is read here"
        raise WeightsError(what, where=str(path), fix="resume with the version that wrote it")
    return dict(found["files"])


def check_model(found: Checkpoint, plan: Plan, where: Path) -> None:
    """Raise `WeightsError` unless the tensors are those of this network, and numbers."""
    wanted = {key: (shape, torch.int64 if key.endswith(COUNT) else torch.float32) for key, shape in _shapes(plan)}
    for name, tensors in (("model", found.model), *[("best", found.best)] * bool(found.state.epochs)):
        if {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} != wanted:
            raise WeightsError(f"{name}.safetensors is of another network than the run", where=str(where))
    if 0 < sum(key.startswith(f"{EMA_SLOT}/") for key in found.training) < len(wanted):
        raise WeightsError("training.safetensors has a part of an average only", where=str(where))
    for key, value in found.training.items():
        slot, _, path = key.partition("/")
        shape, dtype = wanted.get(path, ((-1,), None))
        like = (shape, dtype) if slot == EMA_SLOT else (() if slot == "step" else shape, torch.float32)
        fits = slot in (*_SLOTS, EMA_SLOT) and path in wanted and (tuple(value.shape), value.dtype) == like
        if not fits and slot != RANDOM:
            raise WeightsError(f"training.safetensors has {key[:100]!r}, which does not fit", where=str(where))
    _require_numbers({**found.model, **found.best, **found.training}, where)


def _shapes(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(shape)) for key, shape in tensors_of(plan).items()]


def _require_numbers(tensors: Mapping[str, Tensor], where: Path) -> None:
    fractional = {key: value for key, value in tensors.items() if value.is_floating_point()}
    bad = nonfinite(fractional) if fractional else {}
    if bad:
        raise WeightsError(f"NaN or infinite numbers in {next(iter(bad))}", where=str(where))


# --------------------------------------------------------------------------------------- what training has in memory

RANDOM = "random"
_SLOTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


def moments(optimiser: torch.optim.Optimizer, paths: Mapping[str, Tensor]) -> Tensors:
    """What an optimiser remembers of each parameter, by the parameter's path."""
    return {
        f"{slot}/{path}": optimiser.state[parameter][slot]
        for path, parameter in paths.items()
        for slot in _SLOTS
        if isinstance(optimiser.state.get(parameter, {}).get(slot), Tensor)
    }


def remember(optimiser: torch.optim.Optimizer, paths: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """The same put back. Tensors lie in memory as their parameter does, since sums can depend on the order."""
    mine = _SLOTS[:1] if isinstance(optimiser, torch.optim.SGD) else _SLOTS[1:]
    for path, parameter in paths.items():
        for slot in mine:
            if (value := stored.get(f"{slot}/{path}")) is not None:
                like = torch.empty_like(parameter) if value.shape else torch.empty(())
                optimiser.state[parameter][slot] = like.copy_(value).detach()


def random_states() -> Tensors:
    """Of torch's own generators. Every step seeds them anew, so they decide nothing: this is a second net."""
    found = {f"{RANDOM}/cpu": torch.get_rng_state()}
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return found | {f"{RANDOM}/cuda{i}": state for i, state in enumerate(gpus)}


def restore_random(stored: Mapping[str, Tensor]) -> None:
    """The state of the CPU's generator put back; raises `WeightsError` for what is none."""
    if (state := stored.get(f"{RANDOM}/cpu")) is not None:
        try:
            torch.set_rng_state(state)
        except (RuntimeError, TypeError) as error:
            raise WeightsError(f"random/cpu is no state of a generator: {error}", fix=_COPY) from None
