"""Reading and writing weights: safetensors always, a pickle only through torch's restricted reader.

A file is judged before it is read: what it is, and whether it holds as many bytes as it says. A state dict is compared
with the plan before a tensor is moved, and either all of it is taken or nothing.
"""

from __future__ import annotations

import json
import os
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

from resnetkit import files, kinds
from resnetkit.architecture.card import CARD_FILE, WEIGHTS_FILE, Card, card_for, card_of, model_folder, read_card
from resnetkit.architecture.catalog import ROWS, name_of
from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.spec import Linear
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import MachineError, ResnetkitWarning, UsageError, WeightsError, suggestion
from resnetkit.network.build import shell
from resnetkit.network.layers import Network
from resnetkit.text import to_json
from resnetkit.weights.dialects import DIALECTS
from resnetkit.weights.fit import COUNT, advice, listed, looks_like, misfits, short
from resnetkit.weights.pickles import objection, stranger

_LONGEST_HEADER = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB
_WHOLE_FOLDER = "copy the whole model folder again"
_NAME_IT = "name the network that it was saved from, or describe it in a .toml file: --network"


def save(model: Network, folder: str | Path) -> Path:
    """Write a model folder (card and weights), whole or not at all; an existing folder is refused."""
    folder = Path(folder)
    if folder.exists():
        raise UsageError("this folder exists already", where=str(folder), fix="name another, or remove it")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with files.new_folder(folder) as part:
            (part / CARD_FILE).write_text(to_json(model.card), encoding="utf-8", errors="backslashreplace")
            save_file(tensors, part / WEIGHTS_FILE, {"format": "pt"})
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise MachineError(f"cannot write the weights: {error}", where=str(folder)) from None
    return folder


def load(source: str | os.PathLike[str], network: str | None = None, dialect: str = "resnetkit") -> Network:
    """A model folder, a run folder, or a weights file of a ``network`` in a ``dialect``; in evaluation mode.

    Raises `UsageError` where ``source`` names no weights and `WeightsError` where they are damaged or do not fit.
    """
    source = source if isinstance(source, str) else Path(source)
    folder = None if network and Path(source).is_file() else model_folder(source)
    if folder:
        path = folder / WEIGHTS_FILE
        return assemble(read_card(folder), read_tensors(path), str(path), _WHOLE_FOLDER)
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
        tensors = _translated(tensors, dialect, path)
    spec, last = spec_of(network), tensors.get("head.linear.bias")
    if last is not None and last.ndim == 1 and len(last) and isinstance(spec.head, Linear):
        spec = replace(spec, head=Linear(len(last)))
    card = card_for(name_of(network), spec)
    return replace(card, origin=f"{path.name}, read as {network} in the dialect {dialect}"), tensors


def _translated(tensors: Mapping[str, Tensor], dialect: str, path: Path) -> dict[str, Tensor]:
    try:
        return {DIALECTS[dialect].ours(key): value for key, value in tensors.items()}
    except UsageError as error:
        like = looks_like(_shapes(tensors))
        fix = f"this file looks like {like}; " * bool(like) + "name another --dialect"
        raise WeightsError(error.what, where=[str(path), *map(short, error.where)], fix=fix) from None


def assemble(card: Card, tensors: Mapping[str, Tensor], where: str, fix: str = _NAME_IT) -> Network:
    """The module of a card with these tensors, in fp32; all of them fit, or `WeightsError` is raised.

    Warns with `ResnetkitWarning` of numbers that are not finite.
    """
    model = shell(card)
    wanted = tensors_of(model.plan)
    lacking = [key for key in wanted if key.endswith(COUNT) and key not in tensors]
    given = {**tensors, **{key: torch.zeros((), dtype=torch.long) for key in lacking}}
    whole = {key: str(value.dtype) for key, value in given.items() if not _fractional(key, value)}
    found = misfits(wanted, _shapes(given), whole)
    if found:
        count = f"{len(found)} of {len(wanted.keys() | given.keys())}"
        what = f"these weights do not fit {card.name}: {count} tensors differ"
        raise WeightsError(what, where=[where, *listed(found)], fix=advice(found, _shapes(tensors), fix))
    exact = {key: given[key].long() if key.endswith(COUNT) else given[key].float() for key in wanted}
    _warn_of(nonfinite(exact), where)
    model.load_state_dict(exact, assign=True)
    return model.eval()


def nonfinite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers are NaN or infinite, for each tensor that holds some."""
    # a sum is finite unless a number is not, or it overflows: one pass over the memory, and a second one rarely
    doubtful = [key for key, value in tensors.items() if not value.sum().isfinite()]
    counted = {key: int((~tensors[key].isfinite()).sum()) for key in doubtful}
    return {key: count for key, count in counted.items() if count}


def _warn_of(counts: Mapping[str, int], where: str) -> None:
    if counts:
        shown = [f"{key} ({count:,})" for key, count in counts.items()][:5]
        more = [f"{len(counts) - 5} more tensors"] * (len(counts) > 5)
        told = f"NaN or infinite numbers in {', '.join(shown + more)}: {where}"
        warnings.warn(told, ResnetkitWarning, stacklevel=4)  # whoever called load


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _fractional(key: str, value: Tensor) -> bool:
    return value.is_floating_point() or key.endswith(COUNT)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a ``.safetensors`` file or of a restricted pickle, by name, on the CPU."""
    start, safe = _start(path), path.suffix == ".safetensors"
    kind = kinds.kind_of(start)
    if kind == kinds.SAFETENSORS or (safe and not kind):
        return _read_safetensors(path)
    if kind in _PICKLES and not safe:
        return _read_pickle(path)
    what, fix = kinds.mistaken(start, "a safetensors file" if safe else "a weights file")
    raise WeightsError(what, where=str(path), fix=_RESAVE if kind in _PICKLES else fix or _RESAVE)


_PICKLES = (kinds.PICKLE, kinds.ZIP, "")  # an old one begins with any letter


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(kinds.START)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None


def _no_weights(source: str | Path) -> UsageError:
    if isinstance(source, str) and source in ROWS:
        fix = f"./{source}" if model_folder(Path(source)) else f"resnetkit train DATA --model {source}"
        return UsageError(f"{source} is a name without weights", where="model", fix=fix)
    try:
        card_of(source)
    except UsageError as error:
        return error
    return UsageError("this file describes a network and holds no weights", where=str(source), fix="train it first")


# ---------------------------------------------------------------------------------------------------------- formats


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _measure(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = short(str(error), 200)
        raise WeightsError(f"not a sound safetensors file: {reason}", where=str(path), fix=_AGAIN) from None


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
        entries = json.loads(header.decode(), object_pairs_hook=_once)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WeightsError("not a sound safetensors file: its header is garbled", where=str(path), fix=_AGAIN) from None
    if needed > size:
        raise _truncated(path, needed, size)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


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
        raise WeightsError(_refused(str(error), path), where=str(path), fix=_RESAVE) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = short(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
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


def _refused(message: str, path: Path) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    name = stranger(path) or (named[1] if named else "")
    asks = f"asks to run code ({name})" if name else "holds instructions that the restricted reader does not know"
    return f"this pickle {asks}; nothing was run"
