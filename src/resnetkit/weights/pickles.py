"""What a pickle asks for, judged from its opcodes before torch's restricted reader sees it; none is followed.

The restricted reader refuses code, but it builds what it is told to: archives that unpack without end, tuples so deep
that hashing them ends the process, byte arrays of any size. `torch.save` writes none of these.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, cast

DEEPEST, LONGEST = 100, 64 * 2**20
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_MOST_PICKLES = 5  # a file of torch's old format is five in a row


def objection(path: Path) -> str:
    """Why this file is not to be read, in a few words; empty where nothing speaks against it."""
    return _first(path, _judge)


def stranger(path: Path) -> str:
    """The first thing that a pickle names and torch does not know, such as ``posix.system``; empty if it names none."""
    return _first(path, _named)


def _first(path: Path, look: Callable[[_Stream], str]) -> str:
    """What ``look`` finds in the first pickle in which it finds something."""
    try:
        return next(filter(None, map(look, _streams(path))), "")
    except _Refused as refused:
        return str(refused)
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError):
        return ""  # garbled: the reader says so in its own words


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
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_MOST_PICKLES):
                yield _Stream(file)
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > path.stat().st_size:
                raise _Refused("its archive is compressed, which torch never does")
            if entry.filename.endswith(".pkl"):
                if entry.file_size > LONGEST:
                    raise _Refused("its table of contents is too long")
                yield _Stream(BytesIO(archive.read(entry)))


def _judge(stream: _Stream) -> str:
    """Follow the stack of the pickle machine by depths alone."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[object, int] = {}
    for op, arg, _ in pickletools.genops(cast(IO[bytes], stream)):
        if op.name == "GLOBAL" and str(arg).endswith(" bytearray"):
            return "it asks for memory that holds no tensor"
        if op.name == "MARK":
            marks.append(len(stack))
        elif op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op.name == "MEMOIZE" else arg] = stack[-1]
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        else:
            taken = _take(op, stack, marks)
            filled = op.name in _FILLING
            depth = max([*taken[1:], 0]) + 1 if filled else max([*taken, 0]) + 1
            stack += [max(depth, taken[0]) if filled and taken else depth] * len(op.stack_after)
            if depth > DEEPEST:
                return "it is nested too deep for a table of tensors"
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


def _take(op: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> list[int]:
    """The depths of what an opcode takes from the stack."""
    before = op.stack_before
    at = len(stack) - len(before)
    if pickletools.markobject in before:
        at = marks.pop() - before.index(pickletools.markobject)
    taken = stack[max(at, 0) :]
    del stack[max(at, 0) :]
    return taken
