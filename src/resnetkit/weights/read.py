"""From a file to plain tensors: safetensors, or a pickle through torch's restricted reader.

A file is judged before it is read: what it is, and whether it holds as many bytes as it says.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resnetkit import file_types as kinds
from resnetkit.errors import WeightsError
from resnetkit.weights.fit import short
from resnetkit.weights.pickles import GARBLED, objection, stranger
from resnetkit.weights.unwrap import unpacked

_LONGEST_HEADER = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of a ``.safetensors`` file or of a restricted pickle, by name, and the tables around them."""
    start, safe = _start(path), path.suffix == ".safetensors"
    kind = kinds.kind_of(start)
    if kind == kinds.SAFETENSORS or (safe and not kind):
        return _read_safetensors(path), ()
    if kind in _PICKLES and not safe:
        return _read_pickle(path)
    what, fix = kinds.mistaken(start, "a safetensors file" if safe else "a weights file")
    raise WeightsError(what, where=str(path), fix=_RESAVE if kind in _PICKLES else fix or _RESAVE)


_PICKLES = (kinds.PICKLE, kinds.ZIP, "")  # an old one begins with any letter


def _start(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe may never end
        raise WeightsError("this is no ordinary file", where=str(path), fix="put a copy of the file itself there")
    try:
        with path.open("rb") as file:
            return file.read(kinds.START)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None


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


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    reason = objection(path)
    if reason:
        damaged = reason == GARBLED
        what = f"this file cannot be read as weights: {reason}" if damaged else f"this pickle is not read: {reason}"
        raise WeightsError(what, where=str(path), fix=_AGAIN if damaged else _RESAVE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; the reader decides what it accepts
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(str(error), path), where=str(path), fix=_RESAVE) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = short(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
        raise WeightsError(f"this file cannot be read as weights: {reason}", where=str(path), fix=_AGAIN) from None
    tensors, around = _inside(found, path.stat().st_size)
    if not tensors:
        raise WeightsError("this file holds no table of tensors", where=str(path), fix=_RESAVE)
    return tensors, around


def _inside(found: Any, size: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict, and the names of the tables around it: nothing but plain tensors that the file had room for."""
    if type(found) not in _TABLES:
        return {}, ()
    inner, around = unpacked(dict(dict.items(found)), lambda value: type(value) in _TABLES)
    if not all(type(key) is str and is_plain(value) for key, value in inner.items()):
        return {}, around
    if sum(value.numel() * value.element_size() for value in inner.values()) > size:
        return {}, around
    return _apart(inner), around


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor with numbers of its own, in a row: what training changes in one must not change another."""
    at = {key: value.untyped_storage().data_ptr() for key, value in tensors.items()}
    seen = Counter(at.values())
    alone = {key for key, value in tensors.items() if seen[at[key]] == 1 and value.is_contiguous()}
    copied = torch.contiguous_format
    return {key: value if key in alone else value.clone(memory_format=copied) for key, value in tensors.items()}


_TABLES = (dict, OrderedDict)


def is_plain(value: Any, *, anywhere: bool = False) -> bool:
    """A tensor on the CPU, or on any device, without attributes of its own, whose numbers are all stored."""
    if type(value) not in (Tensor, torch.nn.Parameter) or vars(value) or value.is_nested or value.is_quantized:
        return False
    if value.layout != torch.strided or value.device.type == "meta" or not (anywhere or value.device.type == "cpu"):
        return False
    return bool(value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def _refused(message: str, path: Path) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    name = stranger(path) or (named[1] if named else "")
    asks = f"asks to run code ({name})" if name else "holds instructions that the restricted reader does not know"
    return f"this pickle {asks}; nothing was run"
