"""FILES on the command line; ``-`` stands for standard input.

This module imports no torch.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence

from resnetkit.errors import UsageError
from resnetkit.file_types import HEADER_SIZE, IMAGE_TYPES, detect_file_type
from resnetkit.prediction.inputs import ImageInput

_MAX_BYTES = 256 * 2**20
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")  # PowerShell writes one before a list


def read_file_arguments(names: Sequence[str], command: str) -> list[str | ImageInput]:
    """Return the FILES of a command; ``-`` is replaced by what standard input holds: names, or one image.

    Args:
        names: The words of the command line. Only these may be patterns and folders.
        command: The command, for errors.

    Raises:
        UsageError: No file is given, or standard input is closed or too long.
    """
    inputs: list[str | ImageInput] = []
    for name in names:
        inputs += _read_stdin(command) if name == "-" else [name]
    if not inputs:
        raise UsageError("no image is given", where=command, fix="name files or folders")
    return inputs


def _read_stdin(command: str) -> list[str | ImageInput]:
    if sys.stdin is None:
        raise UsageError("standard input is closed", where=command, fix="name files or folders")
    content = sys.stdin.buffer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        message = f"standard input is longer than {_MAX_BYTES // 2**20} MiB"
        raise UsageError(message, where=command, fix="pass file names, one per line, or one image")
    if detect_file_type(content[:HEADER_SIZE]) in IMAGE_TYPES:
        return [ImageInput("-", content)]
    if content.startswith(_UTF16_BOMS):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in content else b"\n"
    return [ImageInput(os.fsdecode(line.rstrip(b"\r"))) for line in content.split(separator) if line.strip()]
