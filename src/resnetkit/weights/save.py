"""Write a model folder: the card and the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE
from resnetkit.errors import MachineError, UsageError
from resnetkit.network.layers import NetworkModule
from resnetkit.serialization import to_json


def save(model: NetworkModule, folder: str | Path) -> Path:
    """Write a model folder (card and weights) completely or not at all, and return its path.

    Args:
        model: A network of resnetkit.
        folder: The new folder.

    Raises:
        UsageError: the folder exists already.
        MachineError: the weights cannot be written.
    """
    folder = Path(folder)
    check_new_path(folder)
    tensors = copy_to_cpu(model)
    try:
        with files.atomic_write_folder(folder) as partial_folder:
            (partial_folder / CARD_FILE).write_text(to_json(model.card), encoding="utf-8", errors="backslashreplace")
            save_file(tensors, partial_folder / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:  # safetensors raises this if the disk is full
        raise MachineError(f"cannot write the weights: {error}", where=str(folder)) from None
    return folder


def check_new_path(path: Path, fix: str = "name another path, or remove it") -> None:
    """Check that nothing exists at a path.

    Args:
        path: The path to write to.
        fix: The advice if something exists.

    Raises:
        UsageError: something exists.
    """
    if path.exists():
        raise UsageError("this path exists already", where=str(path), fix=fix)


def copy_to_cpu(model: NetworkModule) -> dict[str, Tensor]:
    """Return the tensors of a network by key: on the CPU, contiguous, without gradients."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
