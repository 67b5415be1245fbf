"""The lock of a run folder: one process at a time writes or resumes a run.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

from resnetkit import files
from resnetkit.errors import TextError, UsageError
from resnetkit.serialization import parse_json, read_text


class RunLock:
    """Hold the lock of a run folder from `acquire` to `release`. A killed process loses it.

    The lock and a file that names its owner are next to the folder, so that a refused process leaves the run alone.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def acquire(self, folder: Path) -> None:
        """Lock a run folder.

        Raises:
            UsageError: another process holds the lock.
        """
        path = folder.resolve()
        path = path if os.access(path.parent, os.W_OK) else path / path.name
        owner_file = path.with_name(f".{path.name}.owner")
        if not self._stack.enter_context(files.lock_file(path)):
            fix = "wait until it ends, or stop it; then resume the run"
            raise UsageError(f"{_describe_owner(owner_file)} is writing this run", where=str(folder), fix=fix)
        self._stack.callback(_remove, owner_file)
        with contextlib.suppress(OSError):  # it only helps to find this process
            owner_file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")

    def release(self) -> None:
        """Release the lock, if it is held."""
        self._stack.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_error: object) -> None:
        self.release()


def _describe_owner(owner_file: Path) -> str:
    try:
        owner = parse_json(read_text(owner_file, "this file", 1000))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]}"
    except (UsageError, TextError, KeyError, TypeError, ValueError):  # the other process is about to write it
        return "another process"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
