"""Inspect the opcodes of a pickle before torch's restricted reader sees it.

Threat model. The attacker controls every byte of the file: its name, its archive, every opcode and argument. The
attacker wants to run code, to end the process, or to take its memory and time. The machine, torch and the Python
standard library are trusted.

Refused here, because the restricted reader would build it:

- objects nested deeper than `MAX_DEPTH` (hashing a deep tuple overflows the stack and ends the process);
- tuples that double in width at each step, and pickles of more than `MAX_STEPS` opcodes;
- byte arrays and codec calls that allocate memory without data in the file;
- strings above `MAX_BYTES`; compressed archives, which may unpack without end;
- archives with two entries of one name, because readers differ in which of them they take;
- functions that rebuild anything but a plain tensor;
- a file that cannot be inspected to its end, because torch might read further.

Refused by the restricted reader: every global outside its own list, so no function of the attacker's choice is called.

Nothing is ever executed, imported or unpickled here: `pickletools.genops` only decodes opcodes. Only
the restricted reader (``weights_only=True``) builds objects, in one place (`resnetkit.weights.read`). No option turns
these checks off. `torch.save` writes none of the things refused here.

This module imports no torch.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, cast

MAX_DEPTH, MAX_BYTES = 100, 64 * 2**20
MAX_STEPS, MAX_WIDTH = 500_000, 10_000  # opcodes of a pickle; members of a tuple and of the tuples inside it
GARBLED_REASON = "it cannot be decoded to its end"
_FILL_OPCODES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_TUPLE_OPCODES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_GLOBAL_OPCODES = ("GLOBAL", "STACK_GLOBAL", "INST")
_MAX_PICKLES = 5  # torch's old format is five pickles in a row
_ZIP_MAGIC = b"PK\x03\x04"  # torch tells its two formats apart by these bytes
_PLAIN_TENSOR_FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
_MEMORY_REASON = "it allocates memory that holds no tensor"
_KNOWN_GLOBALS = (
    "torch.",
    "collections.",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
    "copyreg.",
    "copy_reg.",
)


def find_pickle_problem(path: Path) -> str:
    """Return why a file must not be read, in a few words; empty if it may be read."""
    return _find_first(path, _check_opcodes, GARBLED_REASON)


def find_unknown_global(path: Path) -> str:
    """Return the first global that torch does not know, such as ``posix.system``; empty if there is none."""
    return _find_first(path, _find_unknown_name, "")


def _find_first(path: Path, inspect_stream: Callable[[_PickleStream], str], garbled_reason: str) -> str:
    """Return the first result of an inspection of the pickles in a file that is not empty."""
    try:
        return next(filter(None, map(inspect_stream, _iterate_pickles(path))), "")
    except _RejectedError as rejection:
        return str(rejection)
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return garbled_reason


class _RejectedError(Exception):
    """A reason to stop the inspection."""


class _PickleStream:
    """A file for `pickletools.genops` that refuses to read arguments of more than `MAX_BYTES`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.tell = file, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_BYTES:
            raise _RejectedError("it asks for more memory than a table of tensors needs")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MAX_BYTES)


def _iterate_pickles(path: Path) -> Iterator[_PickleStream]:
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
            yield from _iterate_archive_pickles(path)
            return
        file.seek(0)
        for _ in range(_MAX_PICKLES):
            if not file.read(1):
                return
            file.seek(-1, os.SEEK_CUR)
            yield _PickleStream(file)


def _iterate_archive_pickles(path: Path) -> Iterator[_PickleStream]:
    """Yield the pickles of an archive; torch ignores the case of entry names, so this does too."""
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename.lower() for entry in archive.infolist()]
        if len(names) > len(set(names)):
            raise _RejectedError("its archive has two entries of one name")
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise _RejectedError("its archive is compressed, but torch never compresses")
            if entry.filename.lower().endswith(".pkl"):
                if entry.file_size > MAX_BYTES:
                    raise _RejectedError("its table of contents is too long")
                yield _PickleStream(BytesIO(archive.read(entry)))


@dataclass(frozen=True, slots=True)
class _StackItem:
    """Facts about an object on the stack: its nesting depth, the width of a tuple, the text of a string."""

    depth: int = 1
    width: int = 1
    text: str = ""


def _check_opcodes(stream: _PickleStream) -> str:
    """Return the problem of a pickle, after following the stack of the pickle machine without its values."""
    stack: list[_StackItem] = []
    marks: list[int] = []
    memo: dict[object, _StackItem] = {}
    for step, (op, arg, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if step > MAX_STEPS:
            return "it is too long for a table of tensors"
        if op.name == "MARK":
            marks.append(len(stack))
        elif op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op.name == "MEMOIZE" else arg] = stack[-1]
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        else:
            popped = _pop_arguments(op, stack, marks)
            item = _build_item(op.name, arg, popped)
            reason = _find_item_problem(op.name, item, popped)
            if reason:
                return reason
            stack += [item] * len(op.stack_after)
    return ""


def _pop_arguments(op: pickletools.OpcodeInfo, stack: list[_StackItem], marks: list[int]) -> list[_StackItem]:
    inputs = op.stack_before
    start = len(stack) - len(inputs)
    if pickletools.markobject in inputs:
        start = marks.pop() - inputs.index(pickletools.markobject)
    popped = stack[max(start, 0) :]
    del stack[max(start, 0) :]
    return popped


def _build_item(name: str, arg: object, popped: list[_StackItem]) -> _StackItem:
    max_depth = max((item.depth for item in popped), default=0)
    if name in _FILL_OPCODES and popped:
        return _StackItem(max(popped[0].depth, max((item.depth for item in popped[1:]), default=0) + 1))
    if name in _TUPLE_OPCODES:
        return _StackItem(max_depth + 1, 1 + sum(item.width for item in popped), popped[-1].text if popped else "")
    if name == "STACK_GLOBAL":
        return _StackItem(text=" ".join(item.text for item in popped))
    return _StackItem(max_depth + 1, 1, arg[:100] if isinstance(arg, str) else "")


def _find_item_problem(name: str, result: _StackItem, popped: list[_StackItem]) -> str:
    if result.depth > MAX_DEPTH or result.width > MAX_WIDTH:
        return "it is nested too deep for a table of tensors"
    if name in _GLOBAL_OPCODES:
        module, _, function = result.text.partition(" ")
        if function == "bytearray":
            return _MEMORY_REASON
        if module == "torch._utils" and function.startswith("_rebuild") and function not in _PLAIN_TENSOR_FUNCTIONS:
            return f"it holds something other than plain tensors ({function})"
    is_codec_call = name == "REDUCE" and popped and popped[0].text == "_codecs encode"
    return _MEMORY_REASON if is_codec_call and popped[-1].text != "latin1" else ""


def _find_unknown_name(stream: _PickleStream) -> str:
    strings: list[str] = []
    for op, arg, _ in pickletools.genops(cast(IO[bytes], stream)):
        if op.name in _GLOBAL_OPCODES:
            name = ".".join(strings) if op.name == "STACK_GLOBAL" else str(arg).replace(" ", ".")
            if re.fullmatch(r"[\w.]{1,100}", name) and not name.startswith(_KNOWN_GLOBALS):
                return name
        elif isinstance(arg, str):
            strings = [*strings[-1:], arg]
    return ""
