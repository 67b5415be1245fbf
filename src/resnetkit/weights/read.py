"""Read plain tensors from a file: safetensors, or a pickle through torch's restricted reader.

Before a file is read, its type is detected and its size is compared with what its header declares.
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

from resnetkit import file_types
from resnetkit.errors import WeightsError
from resnetkit.files import check_regular_file
from resnetkit.weights.mismatch import sanitize_text
from resnetkit.weights.pickles import GARBLED_REASON, find_pickle_problem, find_unknown_global
from resnetkit.weights.unwrap import unwrap_containers

_MAX_HEADER_BYTES = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB
_PICKLE_TYPES = (file_types.PICKLE, file_types.ZIP, "")  # a pickle of protocol 0 begins with any letter
_TABLE_TYPES = (dict, OrderedDict)
_COPY_AGAIN_FIX = "copy or download the file again"
_RESAVE_FIX = "save the tensors as safetensors with the program that wrote the file"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a safetensors file or a pickle by name, and the tables around them.

    Raises:
        WeightsError: the file is damaged, has another type, or is a pickle that is not safe to read.
    """
    start, is_safetensors = _read_start(path), path.suffix == ".safetensors"
    file_type = file_types.detect_file_type(start)
    if file_type == file_types.SAFETENSORS or (is_safetensors and not file_type):
        return _read_safetensors(path), ()
    if file_type in _PICKLE_TYPES and not is_safetensors:
        return _read_pickle(path)
    expected = "a safetensors file" if is_safetensors else "a weights file"
    message, fix = file_types.describe_wrong_type(start, expected)
    raise WeightsError(message, where=str(path), fix=_RESAVE_FIX if file_type in _PICKLE_TYPES else fix or _RESAVE_FIX)


def _read_start(path: Path) -> bytes:
    check_regular_file(path, WeightsError)
    try:
        with path.open("rb") as file:
            return file.read(file_types.HEADER_SIZE)
    except OSError as error:
        raise WeightsError(f"cannot read the weights: {error.strerror}", where=str(path)) from None


def _damaged_error(path: Path, message: str) -> WeightsError:
    return WeightsError(message, where=str(path), fix=_COPY_AGAIN_FIX)


def _truncated_error(path: Path, needed: int, size: int) -> WeightsError:
    return _damaged_error(path, f"file is truncated: needs {needed:,} bytes, has {size:,}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    _check_size(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise _damaged_error(path, f"damaged safetensors file: {sanitize_text(str(error), 200)}") from None


def _check_size(path: Path) -> None:
    """Compare the size that the header declares with the size of the file, before any memory is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _MAX_HEADER_BYTES:
            raise _damaged_error(path, "not a safetensors file: the length of its header is invalid")
        header = file.read(length)
    if length + 8 > size:
        raise _truncated_error(path, length + 8, size)
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_reject_duplicates)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        needed = 8 + length + max(ends, default=0)
        if not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise _damaged_error(path, "damaged safetensors file: its header is garbled") from None
    if needed > size:
        raise _truncated_error(path, needed, size)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError
    return table


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    reason = find_pickle_problem(path)
    if reason == GARBLED_REASON:
        raise _damaged_error(path, f"this file cannot be read as weights: {reason}")
    if reason:
        raise WeightsError(f"this pickle is refused: {reason}", where=str(path), fix=_RESAVE_FIX)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; the reader decides what it accepts
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_describe_rejection(str(error), path), where=str(path), fix=_RESAVE_FIX) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        reason = sanitize_text(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
        raise _damaged_error(path, f"this file cannot be read as weights: {reason}") from None
    tensors, containers = _extract_tensors(content, path.stat().st_size)
    if not tensors:
        raise WeightsError("this file holds no table of tensors", where=str(path), fix=_RESAVE_FIX)
    return tensors, containers


def _extract_tensors(content: Any, size: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state dict and the tables around it; no tensors if a value is not plain."""
    if type(content) not in _TABLE_TYPES:
        return {}, ()
    table, containers = unwrap_containers(dict(dict.items(content)), lambda value: type(value) in _TABLE_TYPES)
    is_plain = all(type(key) is str and is_plain_tensor(value) for key, value in table.items())
    if not is_plain or sum(value.numel() * value.element_size() for value in table.values()) > size:
        return {}, containers
    return _separate_storage(table), containers


def _separate_storage(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor a contiguous storage of its own, so that training one does not change another."""
    pointers = {key: value.untyped_storage().data_ptr() for key, value in tensors.items()}
    counts = Counter(pointers.values())
    return {
        key: value
        if counts[pointers[key]] == 1 and value.is_contiguous()
        else value.clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }


def is_plain_tensor(value: Any, *, any_device: bool = False) -> bool:
    """Return whether a value is a dense tensor without own attributes and with full storage.

    Args:
        value: Any object.
        any_device: Whether it may be on any device with memory, not only on the CPU.
    """
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
