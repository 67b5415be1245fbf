"""Reading and writing weights: safetensors always, a pickle only through torch's restricted reader.

A file is judged before it is read: what it is, and whether it holds as many bytes as it says. A state dict is compared
with the plan before a tensor is moved, and either all of it is taken or nothing.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE, Card, card_for, card_of, model_folder, read_card
from resnetkit.architecture.catalog import ROWS, name_of
from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.spec import Linear
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import MachineError, UsageError, WeightsError, suggestion
from resnetkit.network.build import shell
from resnetkit.network.layers import Network
from resnetkit.text import to_json
from resnetkit.weights.dialects import DIALECTS
from resnetkit.weights.pickles import objection

_COUNT = "num_batches_tracked"
_LONGEST_HEADER = 64 * 2**20


def save(model: Network, folder: str | Path) -> Path:
    """Write a model folder (card and weights), whole or not at all; an existing folder is refused."""
    folder = Path(folder)
    if folder.exists():
        raise UsageError("this folder exists already", where=str(folder), fix="name another, or remove it")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with files.new_folder(folder) as part:
            (part / CARD_FILE).write_text(to_json(model.card), encoding="utf-8")
            save_file(tensors, part / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise MachineError(f"cannot write the weights: {error}", where=str(folder)) from None
    return folder


def load(source: str | Path, network: str | None = None, dialect: str = "resnetkit") -> Network:
    """A model folder, a run folder, or a weights file of a ``network`` in a ``dialect``; in evaluation mode.

    Raises `UsageError` where ``source`` names no weights and `WeightsError` where they are damaged or do not fit.
    """
    folder = model_folder(source)
    if folder:
        return assemble(read_card(folder), read_tensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    path = Path(source)
    if not path.is_file():
        raise _no_weights(source)
    if network is None:
        raise UsageError("which network are these weights of?", where=str(path), fix="name it: --network resnet18")
    return assemble(*_foreign(path, network, dialect), str(path))


def _foreign(path: Path, network: str, dialect: str) -> tuple[Card, dict[str, Tensor]]:
    """The card and our names for a weights file; the classifier says how many classes there are."""
    if dialect != "resnetkit" and dialect not in DIALECTS:
        known = ["resnetkit", *DIALECTS]
        raise UsageError(f"there is no dialect called {dialect!r}", where="dialect", fix=suggestion(dialect, known))
    tensors = read_tensors(path)
    if dialect != "resnetkit":
        try:
            tensors = {DIALECTS[dialect].ours(key): value for key, value in tensors.items()}
        except UsageError as error:
            raise WeightsError(error.what, where=[str(path), *error.where], fix="name another --dialect") from None
    spec, last = spec_of(network), tensors.get("head.linear.bias")
    if last is not None and last.ndim == 1 and isinstance(spec.head, Linear):
        spec = replace(spec, head=Linear(len(last)))
    card = card_for(name_of(network), spec)
    return replace(card, origin=f"{path.name}, read as {network} in the dialect {dialect}"), tensors


def assemble(card: Card, tensors: Mapping[str, Tensor], where: str) -> Network:
    """The module of a card with these tensors, in fp32; all of them fit, or `WeightsError` is raised."""
    model = shell(card)
    wanted = tensors_of(model.plan)
    given = dict(tensors)
    for key in wanted.keys() - given.keys():
        if key.endswith(_COUNT):  # files written before torch counted batches
            given[key] = torch.zeros((), dtype=torch.long)
    faults = [f"{key}: missing, {list(shape)} expected" for key, shape in wanted.items() if key not in given]
    faults += [f"{key}: not part of this network" for key in given if key not in wanted]
    faults += [
        f"{key}: shape {list(given[key].shape)}, {list(shape)} expected"
        for key, shape in wanted.items()
        if key in given and tuple(given[key].shape) != shape
    ]
    faults += [
        f"{key}: {given[key].dtype}, a floating-point type expected"
        for key in wanted
        if key in given and not key.endswith(_COUNT) and not given[key].is_floating_point()
    ]
    if faults:
        more = [f"... and {len(faults) - 5} more"] * (len(faults) > 5)
        what = f"these weights do not fit {card.name}: {len(faults)} of {len(wanted)} tensors differ"
        raise WeightsError(what, where=[where, *faults[:5], *more], fix="name the network that they were saved from")
    exact = {key: value.long() if key.endswith(_COUNT) else value.float() for key, value in given.items()}
    model.load_state_dict(exact, assign=True)
    return model.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a ``.safetensors`` file or of a restricted pickle, by name, on the CPU."""
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "pickle":
        return _read_pickle(path)
    raise WeightsError(f"this is {kind}, not a weights file", where=str(path), fix="fetch the file itself again")


def _no_weights(source: str | Path) -> UsageError:
    if isinstance(source, str) and source in ROWS:
        return UsageError(
            f"{source} is a name without weights", where="model", fix=f"resnetkit train DATA --model {source}"
        )
    try:
        card_of(source)
    except UsageError as error:
        return error
    return UsageError("this file describes a network and holds no weights", where=str(source), fix="train it first")


# ---------------------------------------------------------------------------------------------------------- formats


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer (run: git lfs pull)"
    if start[8:9] == b"{":
        return "safetensors"
    if start.lstrip()[:1] == b"<":
        return "an HTML page"
    if path.suffix == ".safetensors":
        return "safetensors"
    return "a JSON text" if start.lstrip()[:1] == b"{" else "pickle"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _measure(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"not a sound safetensors file: {error}", where=str(path), fix=_AGAIN) from None


_AGAIN = "copy or download the file again"


def _measure(path: Path) -> None:
    """Compare what the header declares with what is there, before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _LONGEST_HEADER:
            raise WeightsError("not a safetensors file: its header has no sound length", where=str(path), fix=_AGAIN)
        header = file.read(length)
    if length + 8 > size:
        raise _truncated(path, length + 8, size)
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WeightsError("not a sound safetensors file: its header is garbled", where=str(path), fix=_AGAIN) from None
    if needed > size:
        raise _truncated(path, needed, size)


def _truncated(path: Path, needed: int, size: int) -> WeightsError:
    return WeightsError(f"file is truncated: needs {needed:,} bytes, has {size:,}", where=str(path), fix=_AGAIN)


_RESAVE = "save the tensors as safetensors with the program that wrote the file"


def _read_pickle(path: Path) -> dict[str, Tensor]:
    reason = objection(path)
    if reason:
        raise WeightsError(f"this pickle is not read: {reason}", where=str(path), fix=_RESAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; the reader decides what it accepts
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(str(error)), where=str(path), fix=_RESAVE) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise WeightsError(f"this file cannot be read as weights: {reason}", where=str(path), fix=_AGAIN) from None
    tensors = _inside(found, path.stat().st_size)
    if not tensors:
        raise WeightsError("this file holds no table of tensors", where=str(path), fix=_RESAVE)
    return tensors


def _inside(found: Any, size: int) -> dict[str, Tensor]:
    """The state dict itself, or the one under ``state_dict``: nothing but plain tensors that the file had room for."""
    if type(found) in _TABLES and type(dict.get(found, "state_dict")) in _TABLES:
        found = dict.get(found, "state_dict")
    if type(found) not in _TABLES or not all(type(key) is str for key in dict.keys(found)):
        return {}
    tensors = dict(dict.items(found))
    return tensors if all(_is_plain(value, size) for value in tensors.values()) else {}


_TABLES = (dict, OrderedDict)


def _is_plain(value: Any, size: int) -> bool:
    """A tensor on the CPU, without attributes of its own, whose numbers are all stored, once each."""
    if type(value) not in (Tensor, torch.nn.Parameter) or vars(value):
        return False
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    stored = value.untyped_storage().nbytes()
    return bool(value.numel() * value.element_size() <= stored <= size)


def _refused(message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    asks = f"asks to run code ({named[1]})" if named else "holds instructions that the restricted reader does not know"
    return f"this pickle {asks}; nothing was run"
