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
from resnetkit.weights.mismatch import sanitize_text
from resnetkit.weights.pickles import GARBLED_REASON, find_pickle_problem, find_unknown_global
from resnetkit.weights.unwrap import unwrap_containers

_MAX_HEADER_BYTES = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Every tensor of a ``.safetensors`` file or of a restricted pickle, by name, and the tables around them."""
    start, is_safetensors = _read_start(path), path.suffix == ".safetensors"
    file_type = kinds.detect_file_type(start)
    if file_type == kinds.SAFETENSORS or (is_safetensors and not file_type):
        return _read_safetensors(path), ()
    if file_type in _PICKLE_KINDS and not is_safetensors:
        return _read_pickle(path)
    message, fix = kinds.describe_wrong_type(start, "a safetensors file" if is_safetensors else "a weights file")
    raise WeightsError(message, where=str(path), fix=_RESAVE_FIX if file_type in _PICKLE_KINDS else fix or _RESAVE_FIX)


_PICKLE_KINDS = (kinds.PICKLE, kinds.ZIP, "")  # an old one begins with any letter


def _read_start(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe may never end
        raise WeightsError("this is no ordinary file", where=str(path), fix="put a copy of the file itself there")
    try:
        with path.open("rb") as file:
            return file.read(kinds.HEADER_SIZE)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_size(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        reason = sanitize_text(str(error), 200)
        raise WeightsError(f"not a sound safetensors file: {reason}", where=str(path), fix=_COPY_AGAIN_FIX) from None


_COPY_AGAIN_FIX = "copy or download the file again"


def _check_size(path: Path) -> None:
    """Compare what the header declares with what is there, before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER_BYTES:
            raise WeightsError(
                "not a safetensors file: its header has no sound length", where=str(path), fix=_COPY_AGAIN_FIX
            )
        header = file.read(length)
    if length + 8 > size:
        raise _make_truncation_error(path, length + 8, size)
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_reject_duplicates)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise WeightsError(
            "not a sound safetensors file: its header is garbled", where=str(path), fix=_COPY_AGAIN_FIX
        ) from None
    if needed > size:
        raise _make_truncation_error(path, needed, size)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError
    return table


def _make_truncation_error(path: Path, needed: int, size: int) -> WeightsError:
    return WeightsError(
        f"file is truncated: needs {needed:,} bytes, has {size:,}", where=str(path), fix=_COPY_AGAIN_FIX
    )


_RESAVE_FIX = "save the tensors as safetensors with the program that wrote the file"


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    reason = find_pickle_problem(path)
    if reason:
        is_damaged = reason == GARBLED_REASON
        message = (
            f"this file cannot be read as weights: {reason}" if is_damaged else f"this pickle is not read: {reason}"
        )
        raise WeightsError(message, where=str(path), fix=_COPY_AGAIN_FIX if is_damaged else _RESAVE_FIX)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; the reader decides what it accepts
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_describe_rejection(str(error), path), where=str(path), fix=_RESAVE_FIX) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = sanitize_text(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
        raise WeightsError(
            f"this file cannot be read as weights: {reason}", where=str(path), fix=_COPY_AGAIN_FIX
        ) from None
    tensors, containers = _extract_tensors(content, path.stat().st_size)
    if not tensors:
        raise WeightsError("this file holds no table of tensors", where=str(path), fix=_RESAVE_FIX)
    return tensors, containers


def _extract_tensors(content: Any, size: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict, and the names of the tables around it: nothing but plain tensors that the file had room for."""
    if type(content) not in _TABLE_TYPES:
        return {}, ()
    table, containers = unwrap_containers(dict(dict.items(content)), lambda value: type(value) in _TABLE_TYPES)
    if not all(type(key) is str and is_plain_tensor(value) for key, value in table.items()):
        return {}, containers
    if sum(value.numel() * value.element_size() for value in table.values()) > size:
        return {}, containers
    return _separate_storage(table), containers


def _separate_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor with numbers of its own, in a row: what training changes in one must not change another."""
    pointers = {key: value.untyped_storage().data_ptr() for key, value in tensors.items()}
    counts = Counter(pointers.values())
    unshared = {key for key, value in tensors.items() if counts[pointers[key]] == 1 and value.is_contiguous()}
    memory_format = torch.contiguous_format
    return {
        key: value if key in unshared else value.clone(memory_format=memory_format) for key, value in tensors.items()
    }


_TABLE_TYPES = (dict, OrderedDict)


def is_plain_tensor(value: Any, *, any_device: bool = False) -> bool:
    """A tensor on the CPU, or on any device, without attributes of its own, whose numbers are all stored."""
    if type(value) not in (Tensor, torch.nn.Parameter) or vars(value) or value.is_nested or value.is_quantized:
        return False
    if value.layout != torch.strided or value.device.type == "meta" or not (any_device or value.device.type == "cpu"):
        return False
    return bool(value.numel() * value.element_size() <= value.untyped_storage().nbytes())


def _describe_rejection(message: str, path: Path) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", message)
    name = find_unknown_global(path) or (match[1] if match else "")
    problem = f"asks to run code ({name})" if name else "holds instructions that the restricted reader does not know"
    return f"this pickle {problem}; nothing was run"
