"""FILES on the command line, of which ``-`` means what comes through standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from resnetkit.errors import UsageError
from resnetkit.file_types import HEADER_SIZE, IMAGE_TYPES, detect_file_type
from resnetkit.prediction.inputs import ImageInput

_MAX_BYTES = 256 * 2**20
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")  # what PowerShell puts before a list


def read_file_arguments(names: Sequence[str], command: str) -> list[str | ImageInput]:
    """The words themselves; for ``-`` the names, or the one picture, that standard input holds.

    A name from a list is that of a file: no pattern, and no folder.
    """
    inputs: list[str | ImageInput] = []
    for name in names:
        inputs += _read_stdin(command) if name == "-" else [name]
    if not inputs:
        raise UsageError("there is no picture to look at", where=command, fix="name files or folders")
    return inputs


def _read_stdin(command: str) -> list[str | ImageInput]:
    if sys.stdin is None:
        raise UsageError("there is no standard input to read", where=command)
    content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UsageError("standard input is longer than any list of names, or any picture", where=command)
    if detect_file_type(content[:HEADER_SIZE]) in IMAGE_TYPES:
        return [ImageInput("-", content)]
    if content.startswith(_UTF16_BOMS):
        content = content.decode("utf-16", "replace").encode()
    separator = b"\0" if b"\0" in content else b"\n"
    return [ImageInput(os.fsdecode(line.rstrip(b"\r"))) for line in content.split(separator) if line.strip()]
