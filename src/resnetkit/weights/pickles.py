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

DEEPEST, LONGEST = 100, 64 * 2**20
MOST_STEPS, WIDEST = 500_000, 10_000  # opcodes of a pickle; members of a tuple and of those inside it
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_MOST_PICKLES = 5  # a file of torch's old format is five in a row
_ZIP = b"PK\x03\x04"  # how torch tells its two formats apart
_PLAIN_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
GARBLED = "it cannot be followed to its end"


def objection(path: Path) -> str:
    """Why this file is not to be read, in a few words; empty where nothing speaks against it.

    What cannot be followed to its end is not read either: torch might get further.
    """
    return _first(path, _judge, GARBLED)


def stranger(path: Path) -> str:
    """The first thing that a pickle names and torch does not know, such as ``posix.system``; empty if it names none."""
    return _first(path, _named, "")


def _first(path: Path, look: Callable[[_Stream], str], garbled: str) -> str:
    """What ``look`` finds in the first pickle in which it finds something."""
    try:
        return next(filter(None, map(look, _streams(path))), "")
    except _Refused as refused:
        return str(refused)
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return garbled


class _Refused(Exception):  # noqa: N818
    """A reason not to go on."""


class _Stream:
    """What a walk through the opcodes reads; an opcode that asks for more than any name has is not answered."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > LONGEST:
            raise _Refused("it asks for more memory than a table of tensors needs")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(LONGEST)

    def tell(self) -> int:
        return self._file.tell()


def _streams(path: Path) -> Iterator[_Stream]:
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            yield from _entries(path)
            return
        file.seek(0)
        for _ in range(_MOST_PICKLES):
            if not file.read(1):
                return
            file.seek(-1, os.SEEK_CUR)
            yield _Stream(file)


def _entries(path: Path) -> Iterator[_Stream]:
    """The pickles of an archive, where torch finds entries whatever the case of their letters."""
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename.lower() for entry in archive.infolist()]
        if len(names) > len(set(names)):
            raise _Refused("its archive has two entries of one name")
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise _Refused("its archive is compressed, which torch never does")
            if entry.filename.lower().endswith(".pkl"):
                if entry.file_size > LONGEST:
                    raise _Refused("its table of contents is too long")
                yield _Stream(BytesIO(archive.read(entry)))


@dataclass(frozen=True, slots=True)
class _Item:
    """What is known of a thing on the stack: how deep it is nested, how wide a tuple is, and a short text's words."""

    depth: int = 1
    width: int = 1
    text: str = ""


def _judge(stream: _Stream) -> str:
    """Follow the stack of the pickle machine by what things are, not by what they hold."""
    stack: list[_Item] = []
    marks: list[int] = []
    memo: dict[object, _Item] = {}
    for step, (op, arg, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        if step > MOST_STEPS:
            return "it is too long for a table of tensors"
        if op.name == "MARK":
            marks.append(len(stack))
        elif op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op.name == "MEMOIZE" else arg] = stack[-1]
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        else:
            taken = _take(op, stack, marks)
            made = _made(op.name, arg, taken)
            wrong = _wrong(op.name, made, taken)
            if wrong:
                return wrong
            stack += [made] * len(op.stack_after)
    return ""


def _made(name: str, arg: object, taken: list[_Item]) -> _Item:
    deepest = max((item.depth for item in taken), default=0)
    if name in _FILLING and taken:
        return _Item(max(taken[0].depth, max((item.depth for item in taken[1:]), default=0) + 1))
    if name in _TUPLES:
        return _Item(deepest + 1, 1 + sum(item.width for item in taken), taken[-1].text if taken else "")
    if name == "STACK_GLOBAL":
        return _Item(text=" ".join(item.text for item in taken))
    return _Item(deepest + 1, 1, arg[:100] if isinstance(arg, str) else "")


def _wrong(name: str, made: _Item, taken: list[_Item]) -> str:
    if made.depth > DEEPEST or made.width > WIDEST:
        return "it is nested too deep for a table of tensors"
    if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
        module, _, called = made.text.partition(" ")
        if called == "bytearray":
            return "it asks for memory that holds no tensor"
        if module == "torch._utils" and called.startswith("_rebuild") and called not in _PLAIN_TENSORS:
            return f"it holds what is no plain tensor ({called})"
    if name == "REDUCE" and taken and taken[0].text == "_codecs encode" and taken[-1].text != "latin1":
        return "it asks for memory that holds no tensor"
    return ""


def _named(stream: _Stream) -> str:
    words: list[str] = []
    for op, arg, _ in pickletools.genops(cast(IO[bytes], stream)):
        if op.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            name = ".".join(words) if op.name == "STACK_GLOBAL" else str(arg).replace(" ", ".")
            if re.fullmatch(r"[\w.]{1,100}", name) and not name.startswith(_KNOWN):
                return name
        elif isinstance(arg, str):
            words = [*words[-1:], arg]
    return ""


_KNOWN = ("torch.", "collections.", "_codecs.encode", "builtins.set", "__builtin__.set", "copyreg.", "copy_reg.")


def _take(op: pickletools.OpcodeInfo, stack: list[_Item], marks: list[int]) -> list[_Item]:
    """What an opcode takes from the stack."""
    before = op.stack_before
    at = len(stack) - len(before)
    if pickletools.markobject in before:
        at = marks.pop() - before.index(pickletools.markobject)
    taken = stack[max(at, 0) :]
    del stack[max(at, 0) :]
    return taken
