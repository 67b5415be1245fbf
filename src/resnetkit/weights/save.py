"""Write a model folder: the card and the weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE, Card, read_card
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import count_classes
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, VerificationError, WeightsError
from resnetkit.network.compare import measure_difference, select_output_limit
from resnetkit.network.consistency import check_layers, get_current_card, list_layers, unwrap_network
from resnetkit.network.layers import NetworkModule
from resnetkit.serialization import to_json
from resnetkit.weights.load import assemble_network
from resnetkit.weights.read import is_plain_tensor, read_tensors


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write a model folder (card and weights) completely or not at all, and return its path.

    Wrappers of torch (``torch.compile``, ``DistributedDataParallel``, ``AveragedModel``) are removed. If a classifier
    was replaced by one with another number of classes, the card of the folder has that number and no class names. The
    folder is read back, and its outputs are compared with those of the network (and its hooks) on small random images.

    Args:
        model: A network of resnetkit.
        folder: The new folder.

    Raises:
        UsageError: the folder exists already, or the network differs from its card.
        VerificationError: what was written is not what the network computes.
        MachineError: the weights cannot be written.
    """
    folder = Path(folder)
    check_new_path(folder)
    network = unwrap_network(model)
    card, tensors = collect_tensors(network)
    if card is not network.card:
        n_new, n_old = count_classes(card.spec.head), count_classes(network.card.spec.head)
        message = f"the classifier was replaced: saved with {n_new} classes without names, not {n_old}"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)
    try:
        with files.atomic_write_folder(folder) as partial_folder:
            (partial_folder / CARD_FILE).write_text(to_json(card), encoding="utf-8", errors="backslashreplace")
            save_file(tensors, partial_folder / WEIGHTS_FILE, {"format": "pt"})
            _verify_folder(partial_folder, folder, network, card, tensors)
    except SafetensorError as error:  # safetensors raises this if the disk is full
        raise MachineError(f"cannot write the weights: {error}", where=str(folder)) from None
    return folder


def collect_tensors(network: NetworkModule) -> tuple[Card, dict[str, Tensor]]:
    """Return the card of a network and its tensors by key: on the CPU, contiguous, without gradients.

    Args:
        network: The network.

    Raises:
        UsageError: the network differs from its card, or a tensor holds no plain numbers.
    """
    card, layers = get_current_card(network), list_layers(network)
    check_layers(network, card)
    keys = [key.rpartition(".") for key in get_tensor_shapes(plan(card.spec))]
    tensors = {f"{path}.{name}": getattr(layers[path], name).detach() for path, _, name in keys}
    if any(tensor.is_meta for tensor in tensors.values()):
        raise UsageError(
            "a network on the meta device has no weights", where="meta", fix="load weights, or build on cpu"
        )
    special = [f"{key}: {type(tensor).__name__}" for key, tensor in tensors.items() if not _is_plain(tensor)]
    if special:
        fix = "gather or dequantize the weights first"
        raise UsageError("these weights are not plain tensors", where=special[:3], fix=fix)
    return card, {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}


def _is_plain(tensor: Tensor) -> bool:
    return is_plain_tensor(tensor, any_device=True)


def _verify_folder(
    partial_folder: Path, folder: Path, network: NetworkModule, card: Card, tensors: dict[str, Tensor]
) -> None:
    """Read a folder back and compare its card, its tensors and its outputs with those of the network."""
    try:
        written_card = read_card(partial_folder)
        written = read_tensors(partial_folder / WEIGHTS_FILE).tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResnetkitWarning)  # NaN in the weights is known to who trained them
            saved_network = assemble_network(written_card, written, str(folder))
    except WeightsError as error:
        what, *where = (line.replace(str(partial_folder), str(folder)) for line in (error.what, *error.where))
        raise VerificationError(f"the folder could not be read back: {what}", where=where) from error
    wrong = [key for key in tensors if key not in written or not is_identical(written[key], tensors[key])]
    if wrong or written_card != card:
        raise VerificationError("the folder differs from the network", where=[str(folder), *wrong[:3]])
    difference, limit = measure_difference(network, saved_network), select_output_limit(network)
    if difference > limit:
        message = f"the outputs of this network differ from those of its card by {difference:.2g} (limit {limit:g})"
        fix = "remove hooks and replaced functions, or describe what they do in a spec"
        raise VerificationError(message, where=str(folder), fix=fix)


def is_identical(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal bit by bit.

    Args:
        a: A tensor.
        b: Another one.
    """
    raw_bytes = [value.reshape(-1).view(torch.uint8) for value in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw_bytes)


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
