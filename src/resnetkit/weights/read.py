"""Read plain tensors from a file: safetensors, or a pickle of torch, which is interpreted as data.

Before a file is read, its type is detected and its size is compared with what its header declares.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resnetkit import file_types
from resnetkit.errors import WeightsError
from resnetkit.files import check_regular_file
from resnetkit.formatting import pluralize
from resnetkit.weights import other_formats, pickles
from resnetkit.weights.mismatch import sanitize_text
from resnetkit.weights.shards import INDEX_SUFFIX, check_not_a_shard, check_shard, read_index
from resnetkit.weights.unwrap import SelectedTable, SeveralTablesError, find_class_names, find_tensor_table, walk_tables

_MAX_HEADER_BYTES = 2 * 2**20  # reading one can take thirty times its length; a network of 10,000 tensors needs 1.2 MB
_PICKLE_TYPES = (file_types.PICKLE, file_types.ZIP, "")  # a pickle of protocol 0 begins with any letter
_ZIP_MAGIC = b"PK\x03\x04"  # torch tells its two formats apart by these bytes
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before archives: five pickles, then the storages
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool",
    )
}  # fmt: skip
_MAX_NAMED = 5
_ARCHIVE_ERRORS = (zipfile.BadZipFile, OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError)
_UNREADABLE = "this file cannot be read as weights"
_BIG_ENDIAN = f"{_UNREADABLE}: its numbers are big-endian"
_COPY_AGAIN_FIX = "copy or download the file again"
_RESAVE_FIX = "save the tensors as safetensors with the program that wrote the file"
_STATE_DICT_FIX = "save the tensors alone with the program that wrote it: torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class WeightsContent:
    """The tensors of a file by name, and what else it says about them.

    ``containers`` are the tables around them from the outside. ``objects`` lists the dropped objects beside them.
    ``classes`` are class names, and ``architecture`` is the name of the network, if the file has them. Tensors with
    equal ``aliases`` are one. All tensors together need at most ``n_bytes``, unless it is 0.
    """

    tensors: dict[str, Tensor]
    containers: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    architecture: str = ""
    aliases: Mapping[str, object] = field(default_factory=dict)
    n_bytes: int = 0


def read_tensors(path: Path, state_dict: str = "") -> WeightsContent:
    """Return the tensors of a safetensors file or of a pickle.

    Args:
        path: The file.
        state_dict: The table or the prefix of the tensors, if a file holds several networks.

    Raises:
        WeightsError: the file is damaged, has another type, asks to run code, or holds several networks.
    """
    check_not_a_shard(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, state_dict)
    return _read_file(path, state_dict)


def _read_shards(path: Path, state_dict: str) -> WeightsContent:
    """Return the tensors of all files that an index names."""
    tensors: dict[str, Tensor] = {}
    shards = read_index(path)
    for shard, names in shards.items():
        content = _read_file(shard, "").tensors
        check_shard(shard, names, content)
        tensors |= content
    n_bytes = sum(shard.stat().st_size for shard in shards)
    tensors = select_prefix(tensors, state_dict, str(path))
    return WeightsContent(tensors, (state_dict,) if state_dict else (), n_bytes=n_bytes)


def _read_file(path: Path, state_dict: str) -> WeightsContent:
    start, is_safetensors = _read_start(path), path.suffix == ".safetensors"
    file_type = file_types.detect_file_type(start)
    _check_format(path, start, file_type)
    if file_type == file_types.SAFETENSORS or (is_safetensors and not file_type):
        tensors = select_prefix(_read_safetensors(path), state_dict, str(path))
        return WeightsContent(tensors, (state_dict,) if state_dict else ())
    if file_type in _PICKLE_TYPES and not is_safetensors:
        return _read_pickle(path, state_dict)
    expected = "a safetensors file" if is_safetensors else "a weights file"
    message, fix = file_types.describe_wrong_type(start, expected)
    raise WeightsError(message, where=str(path), fix=_RESAVE_FIX if file_type in _PICKLE_TYPES else fix or _RESAVE_FIX)


def _check_format(path: Path, start: bytes, file_type: str) -> None:
    """Refuse a file of another format that holds a network, with the way to convert it."""
    other_format = None
    if path.suffix == ".distcp":  # its bytes are those of several files of torch
        other_format = replace(other_formats.DISTRIBUTED, fix=other_formats.DISTRIBUTED.fix.format(path.parent))
    elif file_type == file_types.ZIP:
        with suppress(*_ARCHIVE_ERRORS), zipfile.ZipFile(path) as archive:
            other_format = other_formats.detect_archive(archive.namelist())
    elif file_type not in (file_types.SAFETENSORS, *file_types.IMAGE_TYPES):
        other_format = other_formats.detect_header(start)
    if other_format:
        expected = "a safetensors file" if path.suffix == ".safetensors" else "a weights file"
        raise WeightsError(f"this is {other_format.name}, not {expected}", where=str(path), fix=other_format.fix)


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


def select_prefix(tensors: Mapping[str, Any], prefix: str, location: str) -> dict[str, Any]:
    """Return the tensors behind a prefix without it; all tensors if the prefix is empty.

    Args:
        tensors: The tensors by name.
        prefix: The prefix, with or without its dot.
        location: The file, for the error.

    Raises:
        WeightsError: no name has this prefix.
    """
    if not prefix:
        return dict(tensors)
    prefix = f"{prefix.removesuffix('.')}."
    selected = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not selected:
        prefixes = dict.fromkeys(name.partition(".")[0] for name in tensors)
        fix = f"--state-dict {' or '.join(sanitize_text(name, 40) for name in list(prefixes)[:_MAX_NAMED])}"
        raise WeightsError(f"no table or prefix is called {prefix[:-1][:80]!r}", where=location, fix=fix)
    return selected


def _read_pickle(path: Path, state_dict: str) -> WeightsContent:
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
                return _read_archive(path, file, state_dict)
            file.seek(0)
            return _read_legacy(path, file, state_dict)
    except pickles.HostileCallError as error:
        message = f"this pickle asks to run code ({sanitize_text(str(error))}); nothing was run"
        raise WeightsError(message, where=str(path), fix=_RESAVE_FIX) from None
    except pickles.PickleError as error:
        raise _damaged_error(path, f"{_UNREADABLE}: {error}") from None
    except _ARCHIVE_ERRORS as error:
        reason = sanitize_text(str(error).splitlines()[0], 200) if str(error) else type(error).__name__
        raise _damaged_error(path, f"{_UNREADABLE}: {reason}") from None


def _read_archive(path: Path, file: IO[bytes], state_dict: str) -> WeightsContent:
    """Read torch's archive: ``data.pkl`` describes the tensors, and ``data/KEY`` is a storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len({name.lower() for name in entries}) < len(archive.infolist()):
            message = f"{_UNREADABLE}: its archive has two entries of one name"
            raise WeightsError(message, where=str(path), fix=_RESAVE_FIX)
        names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        size = path.stat().st_size
        if len(names) != 1:
            message = f"{_UNREADABLE}: it is a zip archive without torch's table of contents (data.pkl)"
            raise WeightsError(message, where=str(path), fix="unpack it and name the weights file in it")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in entries.values()):
            message = f"{_UNREADABLE}: its archive is compressed, but torch never compresses"
            raise WeightsError(message, where=str(path), fix=_RESAVE_FIX)
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise WeightsError(_BIG_ENDIAN, where=str(path), fix=_RESAVE_FIX)
        content, _ = pickles.read_pickle(BytesIO(archive.read(names[0])))

        def read_storage(storage: pickles.StorageRef) -> bytes:
            return archive.read(f"{folder}data/{storage.key}")

        return _select_tensors(path, content, state_dict, read_storage)


def _read_legacy(path: Path, file: IO[bytes], state_dict: str) -> WeightsContent:
    """Read a plain pickle, or a file of torch before its archives: five pickles, then the storages."""
    content, _ = pickles.read_pickle(file)
    if content != _LEGACY_MAGIC:
        return _select_tensors(path, content, state_dict, lambda storage: b"")
    _, (system, _), (content, storages), (keys, _) = (pickles.read_pickle(file) for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError(_BIG_ENDIAN, where=str(path), fix=_RESAVE_FIX)
    offsets: dict[str, int] = {}
    position = file.tell()
    for key in keys if isinstance(keys, list) else ():
        if key in storages:  # 8 bytes repeat the number of elements
            offsets[key] = position + 8
            position += 8 + storages[key].n_elements * _DTYPES[storages[key].dtype].itemsize

    def read_storage(storage: pickles.StorageRef) -> bytes:
        file.seek(offsets[storage.key])
        return file.read(min(storage.n_elements * _DTYPES[storage.dtype].itemsize, path.stat().st_size))

    return _select_tensors(path, content, state_dict, read_storage)


def _select_tensors(
    path: Path, content: Any, state_dict: str, read_storage: Callable[[pickles.StorageRef], bytes]
) -> WeightsContent:
    """Build the tensors of the table that holds the network, and list the objects beside it."""
    selected, prefix = find_table(content, _is_tensor_ref, state_dict, str(path))
    objects = tuple(dict.fromkeys(_list_objects(content)))
    if selected is None:
        message, fix = "this file holds no table of tensors", _RESAVE_FIX
        if objects or isinstance(content, pickles.Opaque | pickles.Global):
            names = objects or (f"an object ({content.name})",)
            message, fix = f"{message}, but {sanitize_text(', '.join(names), 200)}", _STATE_DICT_FIX
        raise WeightsError(message, where=str(path), fix=fix)
    refs = {
        key: value
        for key, value in selected.table.items()
        if isinstance(key, str) and isinstance(value, pickles.TensorRef)
    }
    refs = select_prefix(refs, prefix, str(path))
    storages: dict[str, Tensor] = {}
    for ref in refs.values():
        if ref.storage.key not in storages:
            storages[ref.storage.key] = _build_storage(ref.storage, read_storage)
    tensors = {key: _build_tensor(key, ref, storages[ref.storage.key]) for key, ref in refs.items()}
    architecture = content.get("arch")
    return WeightsContent(
        tensors,
        (*selected.containers, *([prefix] if prefix else [])),
        objects,
        find_class_names(content),
        architecture if isinstance(architecture, str) else "",
        find_aliases(tensors),
        path.stat().st_size,
    )


def _is_tensor_ref(value: Any) -> bool:
    return isinstance(value, pickles.TensorRef)


def find_table(
    content: Any, is_tensor: Callable[[Any], bool], name: str, location: str
) -> tuple[SelectedTable | None, str]:
    """Return the table that holds a network, and the prefix of its keys if ``name`` is a prefix.

    Args:
        content: The outermost table.
        is_tensor: Whether a value is a tensor.
        name: The name that the caller chose; empty if none.
        location: The file, for the error.

    Raises:
        WeightsError: there are several tables, and nothing decides between them.
    """
    try:
        selected = find_tensor_table(content, is_tensor, name)
        return (selected, "") if selected or not name else (find_tensor_table(content, is_tensor), name)
    except SeveralTablesError as error:
        raise describe_several_tables(location, error) from None


def describe_several_tables(location: str, error: SeveralTablesError) -> WeightsError:
    """Return the error for a file that holds several networks, with the option that chooses one.

    Args:
        location: The file.
        error: The names of the tables or prefixes.
    """
    names = [sanitize_text(table, 60) or "the keys without a prefix" for table in error.names]
    message = f"this file holds {pluralize(len(names), 'network')}: {', '.join(names[:_MAX_NAMED])}"
    fix = "choose one with " + " or ".join(f"--state-dict {table}" for table in names[:2])
    return WeightsError(message, where=location, fix=fix)


def find_aliases(tensors: Mapping[str, Any]) -> dict[str, object]:
    """Return the memory of each tensor: tensors with equal values share it whole."""
    return {
        key: (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
        if value.numel()
        else key
        for key, value in tensors.items()
        if isinstance(value, Tensor)
    }


def _list_objects(content: Any) -> Iterator[str]:
    """Yield the path and the class of each object that is neither a tensor nor plain data."""
    for path, table in walk_tables(content):
        for key, value in table.items():
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, pickles.Opaque | pickles.Global):
                    yield sanitize_text(f"{path}.{key} ({item.name})".lstrip("."), 80)


def _build_storage(storage: pickles.StorageRef, read_storage: Callable[[pickles.StorageRef], bytes]) -> Tensor:
    """Return the elements of a storage; raises `PickleError` if the file does not hold them all."""
    content = bytearray(read_storage(storage))
    dtype = _DTYPES[storage.dtype]
    if len(content) < storage.n_elements * dtype.itemsize:
        raise pickles.PickleError(f"the storage {sanitize_text(storage.key, 40)} of its tensors is truncated")
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _build_tensor(key: str, ref: pickles.TensorRef, storage: Tensor) -> Tensor:
    """Return the tensor that a description selects from its storage."""
    dtype = _DTYPES.get(ref.dtype)
    last = ref.offset + sum((n - 1) * stride for n, stride in zip(ref.shape, ref.strides, strict=True))
    is_empty = 0 in ref.shape
    if dtype is None or (not is_empty and (last + 1) * dtype.itemsize > storage.numel()):
        raise pickles.PickleError(f"the tensor {sanitize_text(key)} is not inside its storage")
    if is_empty:
        return torch.empty(ref.shape, dtype=dtype)
    elements = storage[: storage.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    return elements.as_strided(ref.shape, ref.strides, ref.offset)


def separate_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor a contiguous storage of its own, so that training one does not change another."""
    counts = Counter(value.untyped_storage().data_ptr() for value in tensors.values())
    return {
        key: value
        if counts[value.untyped_storage().data_ptr()] == 1 and value.is_contiguous()
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
