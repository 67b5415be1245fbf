"""What a pickle asks for, judged from its opcodes before torch's restricted reader sees it; none is followed.

The restricted reader refuses code, but it builds what it is told to: archives that unpack without end, tuples so deep
that hashing them ends the process, byte arrays of any size. `torch.save` writes none of these.
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
MAX_STEPS, MAX_WIDTH = 500_000, 10_000  # opcodes of a pickle; members of a tuple and of those inside it
_FILL_OPCODES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_TUPLE_OPCODES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_MAX_PICKLES = 5  # a file of torch's old format is five in a row
_ZIP_MAGIC = b"PK\x03\x04"  # how torch tells its two formats apart
_PLAIN_TENSOR_FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
GARBLED_REASON = "it cannot be followed to its end"


def find_pickle_problem(path: Path) -> str:
    """Why this file is not to be read, in a few words; empty where nothing speaks against it.

    What cannot be followed to its end is not read either: torch might get further.
    """
    return _find_first(path, _check_opcodes, GARBLED_REASON)


def find_unknown_global(path: Path) -> str:
    """The first thing that a pickle names and torch does not know, such as ``posix.system``; empty if it names none."""
    return _find_first(path, _find_unknown_name, "")


def _find_first(path: Path, inspect_stream: Callable[[_PickleStream], str], garbled_reason: str) -> str:
    """What ``look`` finds in the first pickle in which it finds something."""
    try:
        return next(filter(None, map(inspect_stream, _iterate_pickles(path))), "")
    except _RejectedError as rejection:
        return str(rejection)
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return garbled_reason


class _RejectedError(Exception):
    """A reason not to go on."""


class _PickleStream:
    """What a walk through the opcodes reads; an opcode that asks for more than any name has is not answered."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > MAX_BYTES:
            raise _RejectedError("it asks for more memory than a table of tensors needs")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MAX_BYTES)

    def tell(self) -> int:
        return self._file.tell()


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
    """The pickles of an archive, where torch finds entries whatever the case of their letters."""
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename.lower() for entry in archive.infolist()]
        if len(names) > len(set(names)):
            raise _RejectedError("its archive has two entries of one name")
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise _RejectedError("its archive is compressed, which torch never does")
            if entry.filename.lower().endswith(".pkl"):
                if entry.file_size > MAX_BYTES:
                    raise _RejectedError("its table of contents is too long")
                yield _PickleStream(BytesIO(archive.read(entry)))


@dataclass(frozen=True, slots=True)
class _StackItem:
    """What is known of a thing on the stack: how deep it is nested, how wide a tuple is, and a short text's words."""

    depth: int = 1
    width: int = 1
    text: str = ""


def _check_opcodes(stream: _PickleStream) -> str:
    """Follow the stack of the pickle machine by what things are, not by what they hold."""
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
    if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
        module, _, function = result.text.partition(" ")
        if function == "bytearray":
            return "it asks for memory that holds no tensor"
        if module == "torch._utils" and function.startswith("_rebuild") and function not in _PLAIN_TENSOR_FUNCTIONS:
            return f"it holds what is no plain tensor ({function})"
    if name == "REDUCE" and popped and popped[0].text == "_codecs encode" and popped[-1].text != "latin1":
        return "it asks for memory that holds no tensor"
    return ""


def _find_unknown_name(stream: _PickleStream) -> str:
    strings: list[str] = []
    for op, arg, _ in pickletools.genops(cast(IO[bytes], stream)):
        if op.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            name = ".".join(strings) if op.name == "STACK_GLOBAL" else str(arg).replace(" ", ".")
            if re.fullmatch(r"[\w.]{1,100}", name) and not name.startswith(_KNOWN_GLOBALS):
                return name
        elif isinstance(arg, str):
            strings = [*strings[-1:], arg]
    return ""


_KNOWN_GLOBALS = (
    "torch.",
    "collections.",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
    "copyreg.",
    "copy_reg.",
)


def _pop_arguments(op: pickletools.OpcodeInfo, stack: list[_StackItem], marks: list[int]) -> list[_StackItem]:
    """What an opcode takes from the stack."""
    inputs = op.stack_before
    start = len(stack) - len(inputs)
    if pickletools.markobject in inputs:
        start = marks.pop() - inputs.index(pickletools.markobject)
    popped = stack[max(start, 0) :]
    del stack[max(start, 0) :]
    return popped
