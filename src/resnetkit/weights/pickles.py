"""Interpret a pickle as data: tensors become descriptions, and every other object becomes an inert placeholder.

Threat model. The attacker controls every byte of the file: its name, its archive, every opcode and argument. The
attacker wants to run code, to end the process, or to take its memory and time. The machine, torch and the Python
standard library are trusted.

- `pickletools.genops` decodes the opcodes, and `read_pickle` follows them with a stack of plain data. Nothing is
  imported, called or instantiated: a name such as ``posix.system`` is only a text here. So the reader is safe for any
  name.
- A call makes a `TensorRef` if it names one of the few functions of torch that rebuild tensors. It makes a table for
  an ordered dictionary, and otherwise an `Opaque` that knows only the name.
- A call of a function that no known library uses to store data is refused, because only a hostile file makes one. This
  refusal is a courtesy: safety does not depend on the lists of names.
- Work is bounded: `MAX_STEPS` opcodes, arguments of at most `MAX_BYTES`. Only texts, numbers and bytes are keys of
  tables, so that no deep or wide tuple is hashed. No size that the file states is allocated.
- A tensor is built from its description only after its extent was compared with the bytes of its storage
  (`resnetkit.weights.read`).

This module imports no torch.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

MAX_BYTES, MAX_STEPS = 64 * 2**20, 500_000  # of an argument; opcodes of a pickle
_MAX_DIMENSIONS, _MAX_EXTENT = 64, 2**62
_CALL_OPCODES = ("REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX")
_STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip
_TABLE_CLASSES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict")
_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_DATA_FUNCTIONS = re.compile(
    r"(builtins|__builtin__)\.(set|frozenset|bytearray|bytes|complex|slice|range|getattr|object|list|dict|tuple|x?range)"
    r"|numpy\.(dtype|ndarray|(_?core\.(multiarray|numeric)|random\._\w+)\.\w+)"
    r"|(collections|datetime|copyreg|copy_reg|pathlib)\.\w+|_codecs\.encode|re\._compile|zoneinfo\.ZoneInfo\.\w+"
    r"|torch\.(device|Size|_utils\._rebuild\w*|_tensor\._rebuild\w*|storage\._load_from_bytes|serialization\._get_layout)"
)
_CODE_MODULES = re.compile(
    r"(os|posix|nt|subprocess|sys|builtins|__builtin__|importlib|runpy|pty|socket|shutil|ctypes|code|multiprocessing)\b"
)


class PickleError(Exception):
    """The reason why a pickle is refused."""


class HostileCallError(PickleError):
    """The name of the function that a pickle asks to call."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle, such as ``torch.FloatStorage``."""

    name: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object of a class that is not a table or a tensor; only the name of its class is kept."""

    name: str


@dataclass(frozen=True, slots=True)
class StorageRef:
    """The storage of a tensor: its key in the archive, its type and its number of elements."""

    key: str
    dtype: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that is not built yet: ``offset`` and ``strides`` count elements of ``storage``."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[object, Any] = field(default_factory=dict)
    storages: dict[str, StorageRef] = field(default_factory=dict)
    n_copied: int = 0

    def pop_arguments(self, op: pickletools.OpcodeInfo) -> list[Any]:
        """Return what an opcode takes from the stack, without the mark."""
        inputs = op.stack_before
        start = len(self.stack) - len(inputs)
        if pickletools.markobject in inputs:
            start = self.marks.pop() - inputs.index(pickletools.markobject)
        if start < 0:
            raise IndexError
        popped = self.stack[start:]
        del self.stack[start:]
        return popped


class _LimitedFile:
    """A file for `pickletools.genops` that refuses to read arguments of more than `MAX_BYTES`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.tell = file, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_BYTES:
            raise PickleError("it asks for more memory than a table of tensors needs")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MAX_BYTES)


def read_pickle(file: IO[bytes]) -> tuple[Any, dict[str, StorageRef]]:
    """Return the content of the next pickle in a file as plain data, and the storages by key.

    The content has `TensorRef`, `Global` and `Opaque` in the place of objects. The file is left behind the pickle.

    Raises:
        HostileCallError: the pickle asks to call a function.
        PickleError: the pickle is too long, or cannot be decoded to its end.
    """
    machine = _Machine()
    try:
        for step, (op, arg, _) in enumerate(pickletools.genops(cast(IO[bytes], _LimitedFile(file)))):
            if step > MAX_STEPS:
                raise PickleError("it is too long for a table of tensors")
            _execute(machine, op, arg)
        return (machine.stack[-1] if machine.stack else None), machine.storages
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, EOFError, pickle.PickleError):
        raise PickleError(GARBLED_REASON) from None


GARBLED_REASON = "it cannot be decoded to its end"


def _execute(machine: _Machine, op: pickletools.OpcodeInfo, arg: Any) -> None:
    stack, memo = machine.stack, machine.memo
    match op.name:
        case "MARK":
            machine.marks.append(len(stack))
        case "STOP" | "PROTO" | "FRAME":
            pass
        case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
            memo[len(memo) if op.name == "MEMOIZE" else int(arg)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo[int(arg)])
        case "DUP":
            stack.append(stack[-1])
        case "POP" if machine.marks and machine.marks[-1] == len(stack):
            machine.marks.pop()
        case _:
            popped = machine.pop_arguments(op)
            if op.name in _BUILDERS:
                stack.append(_BUILDERS[op.name](arg, popped))
            elif op.name in _CALL_OPCODES:
                stack.append(_call(machine, op.name, arg, popped))
            elif op.name == "BINPERSID":
                stack.append(_build_storage(machine, popped[0]))
            elif op.stack_after:
                stack.append(arg if not popped else popped[0])


def _fill_list(_: Any, popped: list[Any]) -> Any:
    target, *items = popped
    if isinstance(target, list):
        target.extend(items)
    return target


def _fill_table(_: Any, popped: list[Any]) -> Any:
    target, *items = popped
    if isinstance(target, dict):
        target.update(_pair_items(items))
    return target


def _pair_items(items: list[Any]) -> list[tuple[Any, Any]]:
    """Return keys and values; a key that is not a text, number or bytes becomes a placeholder."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return [(key if isinstance(key, str | bytes | int | float) else Opaque("key"), value) for key, value in pairs]


def _build_storage(machine: _Machine, identifier: Any) -> StorageRef | Opaque:
    """Return the storage for ``("storage", type, key, location, number of elements, ...)``."""
    match identifier:
        case ("storage", Global(name), str(key), _, int(n_elements), *_):
            dtype = _STORAGE_DTYPES.get(name.rpartition(".")[2], "") if name.startswith("torch.") else ""
            if dtype and 0 <= n_elements < _MAX_EXTENT:
                return machine.storages.setdefault(key, StorageRef(key, dtype, n_elements))
            return Opaque(name)
    return Opaque("persistent id")


_BUILDERS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "NONE": lambda _, popped: None,
    "NEWTRUE": lambda _, popped: True,
    "NEWFALSE": lambda _, popped: False,
    "EMPTY_LIST": lambda _, popped: [],
    "EMPTY_DICT": lambda _, popped: {},
    "EMPTY_SET": lambda _, popped: Opaque("builtins.set"),
    "FROZENSET": lambda _, popped: Opaque("builtins.frozenset"),
    "LIST": lambda _, popped: list(popped),
    "DICT": lambda _, popped: dict(_pair_items(popped)),
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda _, popped: tuple(popped)),
    **dict.fromkeys(("APPEND", "APPENDS"), _fill_list),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _fill_table),
    "GLOBAL": lambda arg, popped: Global(arg.replace(" ", ".")),
    "STACK_GLOBAL": lambda _, popped: Global(".".join(popped)),
    "PERSID": lambda _, popped: Opaque("persistent id"),
}


def _call(machine: _Machine, name: str, arg: Any, popped: list[Any]) -> Any:
    """Return what stands for the result of a call, or raise `HostileCallError`."""
    callee = Global(arg.replace(" ", ".")) if name == "INST" else popped[0]
    if not isinstance(callee, Global):
        raise HostileCallError(callee.name if isinstance(callee, Opaque) else "a value")
    if name == "REDUCE" and isinstance(popped[1], tuple):
        rebuilt = _rebuild(callee.name, popped[1])
        if rebuilt is not None:
            machine.n_copied += len(rebuilt) if isinstance(rebuilt, dict) else 0
            if machine.n_copied > MAX_STEPS:
                raise PickleError("it copies one table again and again")
            return rebuilt
    _, _, last = callee.name.rpartition(".")
    is_class = last[:1].isupper() or name.startswith("NEWOBJ")
    if not _DATA_FUNCTIONS.fullmatch(callee.name) and (_CODE_MODULES.match(callee.name) or not is_class):
        raise HostileCallError(callee.name)
    return {} if callee.name in _TABLE_CLASSES else Opaque(callee.name)


def _rebuild(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return the tensor or table that a call makes; None if it makes neither."""
    match name, arguments:
        case (
            ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3"),
            (StorageRef() as storage, int(offset), tuple(shape), tuple(strides), *rest),
        ):
            is_untyped = name.endswith("_v3") and len(rest) > 2 and isinstance(rest[2], Global)
            return _build_tensor(storage, rest[2].name if is_untyped else "", offset, shape, strides)
        case (
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"),
            (TensorRef() as data, *_),
        ):
            return data
        case "torch._tensor._rebuild_from_type_v2", (Global(function), Global(type_name), tuple(inner), *_):
            return _rebuild(function, inner) if type_name in _TENSOR_CLASSES and function != name else None
        case "collections.OrderedDict", (list(pairs),):
            are_pairs = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
            return dict(_pair_items([item for pair in pairs for item in pair])) if are_pairs else None
    return None


def _build_tensor(
    storage: StorageRef, dtype: str, offset: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
) -> TensorRef | None:
    """Return a tensor, or None if a number is not a possible size, stride or offset."""
    numbers = (offset, *shape, *strides)
    are_valid = all(type(n) is int and 0 <= n < _MAX_EXTENT for n in numbers) and len(shape) == len(strides)
    if not are_valid or len(shape) > _MAX_DIMENSIONS:
        return None
    return TensorRef(storage, dtype.removeprefix("torch.") or storage.dtype, offset, shape, strides)
