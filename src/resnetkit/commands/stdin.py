"""FILES on the command line, of which ``-`` means what comes through standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from resnetkit.errors import UsageError
from resnetkit.file_types import PICTURES, START, kind_of
from resnetkit.prediction.inputs import Input

_MOST_BYTES = 256 * 2**20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # what PowerShell puts before a list


def files_or_stdin(named: Sequence[str], verb: str) -> list[str | Input]:
    """The words themselves; for ``-`` the names, or the one picture, that standard input holds.

    A name from a list is that of a file: no pattern, and no folder.
    """
    found: list[str | Input] = []
    for word in named:
        found += _from_stdin(verb) if word == "-" else [word]
    if not found:
        raise UsageError("there is no picture to look at", where=verb, fix="name files or folders")
    return found


def _from_stdin(verb: str) -> list[str | Input]:
    if sys.stdin is None:
        raise UsageError("there is no standard input to read", where=verb)
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UsageError("standard input is longer than any list of names, or any picture", where=verb)
    if kind_of(content[:START]) in PICTURES:
        return [Input("-", content)]
    if content.startswith(_UTF16):
        content = content.decode("utf-16", "replace").encode()
    mark = b"\0" if b"\0" in content else b"\n"
    return [Input(os.fsdecode(line.rstrip(b"\r"))) for line in content.split(mark) if line.strip()]
