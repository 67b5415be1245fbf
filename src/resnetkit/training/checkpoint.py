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
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.training.ema import EMA_SLOT
from resnetkit.training.run_folder import format_resume_command
from resnetkit.training.state import TrainState, read_state, serialize_state
from resnetkit.weights.load import count_nonfinite
from resnetkit.weights.mismatch import BATCH_COUNT
from resnetkit.weights.read import read_tensors

STATE_FOLDER, LATEST_FILE, MANIFEST_FILE, STATE_FILE = "state", "latest", "manifest.json", "state.json"
TENSOR_GROUPS = ("model", "best", "training")  # each a dict of `Checkpoint`, each a file
FORMAT_VERSION = 1
_INTERVAL_SECONDS = 300.0
_MAX_FAILURES = 3  # in a row
_NAME_PATTERN = re.compile(r"step-(\d{8,15})")
_COPY_FIX = "copy the whole run folder again, or begin anew: --out with another folder"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if nothing had happened. ``best`` is empty before the first epoch."""

    state: TrainState
    model: Tensors
    best: Tensors = field(default_factory=dict)
    training: Tensors = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------- writing


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Under its number in ``folder``, then as the latest; raises `MachineError`, and what was there is as it was."""
    path = folder / f"step-{checkpoint.state.global_step:08d}"
    contents = {f"{name}.safetensors": _serialize_tensors(getattr(checkpoint, name)) for name in TENSOR_GROUPS}
    contents[STATE_FILE] = serialize_state(checkpoint.state).encode()
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    contents[MANIFEST_FILE] = json.dumps({"format": FORMAT_VERSION, "files": entries}, indent=2).encode()
    files.check_free_space(folder, sum(map(len, contents.values())), "a checkpoint")
    files.remove_folder(path)  # left from a way that was not gone on: the run stands before it
    with files.atomic_write_folder(path) as temporary:
        for name, data in contents.items():
            files.write_at(temporary / name, data)
    files.write_text(folder / LATEST_FILE, path.name + "\n")
    return path


def _serialize_tensors(tensors: Tensors) -> bytes:
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return packed(contiguous, {"format": "pt"})


def estimate_checkpoint_bytes(plan: Plan, n_moments: int) -> int:
    """Bytes of a checkpoint, nearly: the model twice, and ``moments`` more numbers for each parameter."""
    return 4 * plan.params * (2 + n_moments) + 2**20


class CheckpointManager:
    """When a checkpoint is written, which ones stay, and what happens when that fails."""

    def __init__(self, folder: Path, every_steps: int | None, checkpoint: Checkpoint | None) -> None:
        self.folder, self.every_steps = folder, every_steps
        self.latest = f"step-{checkpoint.state.global_step:08d}" if checkpoint else ""
        self.failures = 0
        self._last_save = time.monotonic()

    def is_due(self, global_step: int) -> bool:
        """Whether it is time: the clock decides when, and never what."""
        return (
            bool(self.every_steps and global_step % self.every_steps == 0)
            or time.monotonic() - self._last_save > _INTERVAL_SECONDS
        )

    def has(self, global_step: int) -> bool:
        """Whether the newest one is of this step."""
        return self.latest == f"step-{global_step:08d}"

    def save(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Write one. A failure is a warning, the third in a row an error: training without a net is no use."""
        self._last_save = time.monotonic()
        try:
            path = write_checkpoint(self.folder, make_checkpoint())
        except MachineError as error:
            self._handle_failure(error)
            return
        self.failures = 0
        self._remove_others({path.name, self.latest})
        self.latest = path.name

    def _handle_failure(self, error: MachineError) -> None:
        self.failures += 1
        if self.failures >= _MAX_FAILURES:
            what = f"{self.failures} checkpoints in a row could not be written: {error.what}"
            raise MachineError(
                what, where=error.where, fix=f"make room; then {format_resume_command(self.folder.parent)}"
            ) from error
        fallback_note = f"{self.latest} is kept" if self.latest else "there is none yet"
        message = f"a checkpoint could not be written ({error.what}); {fallback_note}, and training goes on"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)

    def _remove_others(self, keep_names: set[str]) -> None:
        for name in set(_list_checkpoints(self.folder)) - keep_names:
            files.remove_folder(self.folder / name)


# ----------------------------------------------------------------------------------------------------------- reading


def load_latest_checkpoint(folder: Path, validate: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """The newest one that is sound and that ``fits`` does not refuse; None where there is none at all.

    Warns where a newer one is damaged; raises `WeightsError` where all are.
    """
    faults: list[WeightsError] = []
    for name in _list_checkpoints(folder):
        try:
            checkpoint = read_checkpoint(folder / name)
            validate(checkpoint)
        except WeightsError as error:
            faults.append(error)
            continue
        if faults:
            message = f"{folder / _list_checkpoints(folder)[0]} is damaged ({faults[0].what}); {folder / name} is taken instead"
            warnings.warn(message, ResnetkitWarning, stacklevel=2)
        return checkpoint
    if faults:
        first = faults[0]
        raise WeightsError(f"no checkpoint of this run can be read: {first.what}", where=first.where, fix=_COPY_FIX)
    return None


def _list_checkpoints(folder: Path) -> list[str]:
    """The checkpoints that stand there: the one that is told to be the latest, then the others, newest first."""
    names = sorted(
        (path.name for path in folder.glob("step-*") if _NAME_PATTERN.fullmatch(path.name)), key=_parse_step
    )[::-1]
    try:
        latest = read_text(folder / LATEST_FILE, "this file", 100).strip()
    except UsageError:
        latest = ""
    return [latest, *(name for name in names if name != latest)] if latest in names else names


def _parse_step(name: str) -> int:
    return int(name.removeprefix("step-"))


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose every byte is as it was written; raises `WeightsError`."""
    _verify_files(folder)
    state = read_state(folder / STATE_FILE)
    if folder.name != f"step-{state.global_step:08d}":
        raise WeightsError(f"this is the state after {state.global_step} steps", where=str(folder))
    return Checkpoint(state, *(read_tensors(folder / f"{name}.safetensors")[0] for name in TENSOR_GROUPS))


def _verify_files(folder: Path) -> None:
    entries = _read_manifest(folder / MANIFEST_FILE)
    for name in (STATE_FILE, *(f"{name}.safetensors" for name in TENSOR_GROUPS)):
        path, entry = folder / name, entries.get(name)
        if not isinstance(entry, dict) or not path.is_file():
            raise WeightsError(f"{name} is missing", where=str(path))
        if path.stat().st_size != entry.get("bytes") or files.hash_file(path) != entry.get("sha256"):
            raise WeightsError(f"{name} is not as it was written", where=str(path))


def _read_manifest(path: Path) -> dict[str, object]:
    try:
        manifest = parse_json(read_text(path, MANIFEST_FILE), MANIFEST_FILE)
    except UsageError as error:
        raise WeightsError(error.what, where=str(path)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise WeightsError(f"{MANIFEST_FILE} names no files", where=str(path))
    if manifest.get("format") != FORMAT_VERSION:
        what = f"this checkpoint has format {str(manifest.get('format'))[:20]}, and {FORMAT_VERSION} is read here"
        raise WeightsError(what, where=str(path), fix="resume with the version that wrote it")
    return dict(manifest["files"])


def check_checkpoint_tensors(checkpoint: Checkpoint, plan: Plan, folder: Path) -> None:
    """Raise `WeightsError` unless the tensors are those of this network, and numbers."""
    expected = {
        key: (shape, torch.int64 if key.endswith(BATCH_COUNT) else torch.float32) for key, shape in _list_shapes(plan)
    }
    for name, tensors in (("model", checkpoint.model), *[("best", checkpoint.best)] * bool(checkpoint.state.epochs)):
        if {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} != expected:
            raise WeightsError(f"{name}.safetensors is of another network than the run", where=str(folder))
    if 0 < sum(key.startswith(f"{EMA_SLOT}/") for key in checkpoint.training) < len(expected):
        raise WeightsError("training.safetensors has a part of an average only", where=str(folder))
    for key, value in checkpoint.training.items():
        slot, _, path = key.partition("/")
        shape, dtype = expected.get(path, ((-1,), None))
        expected_layout = (shape, dtype) if slot == EMA_SLOT else (() if slot == "step" else shape, torch.float32)
        is_expected = (
            slot in (*_SLOTS, EMA_SLOT) and path in expected and (tuple(value.shape), value.dtype) == expected_layout
        )
        if not is_expected and slot != RNG_PREFIX:
            raise WeightsError(f"training.safetensors has {key[:100]!r}, which does not fit", where=str(folder))
    _check_finite_tensors({**checkpoint.model, **checkpoint.best, **checkpoint.training}, folder)


def _list_shapes(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(shape)) for key, shape in get_tensor_shapes(plan).items()]


def _check_finite_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    float_tensors = {key: value for key, value in tensors.items() if value.is_floating_point()}
    bad_tensors = count_nonfinite(float_tensors) if float_tensors else {}
    if bad_tensors:
        raise WeightsError(f"NaN or infinite numbers in {next(iter(bad_tensors))}", where=str(folder))


# --------------------------------------------------------------------------------------- what training has in memory

RNG_PREFIX = "random"
_SLOTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


def get_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> Tensors:
    """What an optimiser remembers of each parameter, by the parameter's path."""
    return {
        f"{slot}/{path}": optimizer.state[parameter][slot]
        for path, parameter in parameters.items()
        for slot in _SLOTS
        if isinstance(optimizer.state.get(parameter, {}).get(slot), Tensor)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """The same put back. Tensors lie in memory as their parameter does, since sums can depend on the order."""
    slots = _SLOTS[:1] if isinstance(optimizer, torch.optim.SGD) else _SLOTS[1:]
    for path, parameter in parameters.items():
        for slot in slots:
            if (value := tensors.get(f"{slot}/{path}")) is not None:
                buffer = torch.empty_like(parameter) if value.shape else torch.empty(())
                optimizer.state[parameter][slot] = buffer.copy_(value).detach()


def get_rng_states() -> Tensors:
    """Of torch's own generators. Every step seeds them anew, so they decide nothing: this is a second net."""
    states = {f"{RNG_PREFIX}/cpu": torch.get_rng_state()}
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states | {f"{RNG_PREFIX}/cuda{i}": state for i, state in enumerate(cuda_states)}


def restore_rng_state(tensors: Mapping[str, Tensor]) -> None:
    """The state of the CPU's generator put back; raises `WeightsError` for what is none."""
    if (state := tensors.get(f"{RNG_PREFIX}/cpu")) is not None:
        try:
            torch.set_rng_state(state)
        except (RuntimeError, TypeError) as error:
            raise WeightsError(f"random/cpu is no state of a generator: {error}", fix=_COPY_FIX) from None
