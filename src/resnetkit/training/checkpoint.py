"""Checkpoint files: folders that are written whole or not at all, and read only if every byte is intact.

``RUN/state/step-00001234`` holds ``model.safetensors``, ``best.safetensors``, ``training.safetensors`` and
``state.json``. ``best`` is the model of the best epoch so far. ``training`` has the optimizer's state as
``momentum_buffer/PATH`` and the average of the model as ``ema/PATH``.
``manifest.json`` is written last: the size and SHA-256 of each. ``RUN/state/latest`` names the newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from resnetkit import files
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import ResnetkitWarning, UsageError, WeightsError
from resnetkit.serialization import parse_json, read_text
from resnetkit.training.ema import EMA_SLOT
from resnetkit.training.events import PreparedRun
from resnetkit.training.state import TrainState, read_state, serialize_state
from resnetkit.weights.load import count_nonfinite
from resnetkit.weights.mismatch import BATCH_COUNT
from resnetkit.weights.read import read_tensors

LATEST_FILE, MANIFEST_FILE, STATE_FILE = "latest", "manifest.json", "state.json"
TENSOR_GROUPS = ("model", "best", "training")  # each a dict of `Checkpoint`, each a file
FORMAT_VERSION = 2
OPTIMIZER_SLOTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")
COPY_FIX = "copy the whole run folder again, or start a new run: --out with another folder"
_NAME_PATTERN = re.compile(r"step-(\d{8,15})")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to be resumed exactly. ``best`` is empty before the first epoch."""

    state: TrainState
    model: Tensors
    best: Tensors = field(default_factory=dict)
    training: Tensors = field(default_factory=dict)


def format_name(global_step: int) -> str:
    """Return the name of the checkpoint after a step of the run."""
    return f"step-{global_step:08d}"


# ----------------------------------------------------------------------------------------------------------- writing


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and mark it as the latest; raises `MachineError` and keeps the others.

    Args:
        folder: The state folder of the run.
        checkpoint: The checkpoint.
    """
    path = folder / format_name(checkpoint.state.global_step)
    contents = {f"{name}.safetensors": _serialize_tensors(getattr(checkpoint, name)) for name in TENSOR_GROUPS}
    contents[STATE_FILE] = serialize_state(checkpoint.state).encode()
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    contents[MANIFEST_FILE] = json.dumps({"format": FORMAT_VERSION, "files": entries}, indent=2).encode()
    files.check_free_space(folder, sum(map(len, contents.values())), "a checkpoint")
    files.remove_folder(path)  # a damaged one, if the run was resumed from an earlier step
    with files.atomic_write_folder(path) as temporary:
        for name, data in contents.items():
            files.write_at(temporary / name, data)
    files.write_text(folder / LATEST_FILE, path.name + "\n")
    return path


def _serialize_tensors(tensors: Tensors) -> bytes:
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return serialize_safetensors(contiguous, {"format": "pt"})


def check_checkpoint_space(run: PreparedRun, folder: Path, n_checkpoints: int) -> None:
    """Check that checkpoints fit on the disk; raises `MachineError` if they do not.

    Args:
        run: The run.
        folder: A folder on the disk.
        n_checkpoints: The number of checkpoints.
    """
    n_bytes = 4 * run.plan.params * run.recipe.count_weight_copies() + 2**20
    purpose = f"{n_checkpoints} checkpoints" if n_checkpoints > 1 else "a checkpoint"
    files.check_free_space(folder, n_checkpoints * n_bytes, purpose)


# ----------------------------------------------------------------------------------------------------------- reading


def load_latest_checkpoint(folder: Path, validate: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """Load the newest intact checkpoint, with a warning if a newer one is damaged.

    Args:
        folder: The state folder of the run.
        validate: A function that raises `WeightsError` for a checkpoint that does not fit the run.

    Returns:
        The checkpoint; None if there is none at all.

    Raises:
        WeightsError: all checkpoints are damaged.
    """
    faults: list[WeightsError] = []
    for name in list_checkpoints(folder):
        try:
            checkpoint = read_checkpoint(folder / name)
            validate(checkpoint)
        except WeightsError as error:
            faults.append(error)
            continue
        if faults:
            newest = folder / list_checkpoints(folder)[0]
            message = f"{newest} is damaged ({faults[0].what}); {folder / name} is used instead"
            warnings.warn(message, ResnetkitWarning, stacklevel=2)
        return checkpoint
    if faults:
        raise WeightsError(f"all checkpoints are damaged: {faults[0].what}", where=faults[0].where, fix=COPY_FIX)
    return None


def list_checkpoints(folder: Path) -> list[str]:
    """List the checkpoints: the one marked as the latest, then the others, newest first."""
    names = [path.name for path in folder.glob("step-*") if _NAME_PATTERN.fullmatch(path.name)]
    names.sort(key=lambda name: int(name.removeprefix("step-")), reverse=True)
    try:
        latest = read_text(folder / LATEST_FILE, "this file", 100).strip()
    except UsageError:
        latest = ""
    return [latest, *(name for name in names if name != latest)] if latest in names else names


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest.

    Raises:
        WeightsError: a file is missing or damaged, or the folder is named after another step.
    """
    _verify_files(folder)
    state = read_state(folder / STATE_FILE)
    if folder.name != format_name(state.global_step):
        raise WeightsError(f"{STATE_FILE} is the state after {state.global_step} steps", where=str(folder))
    return Checkpoint(state, *(read_tensors(folder / f"{name}.safetensors").tensors for name in TENSOR_GROUPS))


def _verify_files(folder: Path) -> None:
    entries = _read_manifest(folder / MANIFEST_FILE)
    for name in (STATE_FILE, *(f"{name}.safetensors" for name in TENSOR_GROUPS)):
        path, entry = folder / name, entries.get(name)
        if not isinstance(entry, dict) or not path.is_file():
            raise WeightsError(f"{name} is missing", where=str(path))
        if path.stat().st_size != entry.get("bytes") or files.hash_file(path) != entry.get("sha256"):
            raise WeightsError(f"{name} differs from the manifest", where=str(path))


def _read_manifest(path: Path) -> dict[str, object]:
    try:
        manifest = parse_json(read_text(path, MANIFEST_FILE), MANIFEST_FILE)
    except UsageError as error:
        raise WeightsError(error.what, where=str(path)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise WeightsError(f"{MANIFEST_FILE} lists no files", where=str(path))
    if manifest.get("format") != FORMAT_VERSION:
        what = f"the checkpoint has format {str(manifest.get('format'))[:20]}; resnetkit reads format {FORMAT_VERSION}"
        raise WeightsError(what, where=str(path), fix="resume with the version that wrote it")
    return dict(manifest["files"])


def check_checkpoint_tensors(checkpoint: Checkpoint, plan: Plan, folder: Path) -> None:
    """Check that the tensors of a checkpoint belong to a network and are finite.

    Args:
        checkpoint: The checkpoint.
        plan: The plan of the network.
        folder: The folder to name in an error.

    Raises:
        WeightsError: they do not.
    """
    expected = {
        key: (tuple(shape), torch.int64 if key.endswith(BATCH_COUNT) else torch.float32)
        for key, shape in get_tensor_shapes(plan).items()
    }
    for name in ("model", "best") if checkpoint.state.epochs else ("model",):
        layouts = {key: (tuple(value.shape), value.dtype) for key, value in getattr(checkpoint, name).items()}
        if layouts != expected:
            raise WeightsError(f"{name}.safetensors belongs to another network", where=str(folder))
    if 0 < sum(key.startswith(f"{EMA_SLOT}/") for key in checkpoint.training) < len(expected):
        raise WeightsError("training.safetensors holds an incomplete average", where=str(folder))
    for key, value in checkpoint.training.items():
        slot, _, path = key.partition("/")
        shape, dtype = expected.get(path, ((-1,), None))
        if slot in OPTIMIZER_SLOTS:
            shape, dtype = () if slot == "step" else shape, torch.float32
        is_known = slot in (*OPTIMIZER_SLOTS, EMA_SLOT) and path in expected
        if not is_known or (tuple(value.shape), value.dtype) != (shape, dtype):
            raise WeightsError(f"training.safetensors has an unexpected tensor {key[:100]!r}", where=str(folder))
    tensors = {**checkpoint.model, **checkpoint.best, **checkpoint.training}
    bad_tensors = count_nonfinite({key: value for key, value in tensors.items() if value.is_floating_point()})
    if bad_tensors:
        raise WeightsError(f"NaN or infinite values in {next(iter(bad_tensors))}", where=str(folder))
