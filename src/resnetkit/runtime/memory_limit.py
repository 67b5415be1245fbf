"""A limit on the memory that this process may allocate, for a library that reads a file from elsewhere.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_STATUS_FILE, _DATA_KEY = Path("/proc/self/status"), "VmData:"


@contextlib.contextmanager
def limit_memory(extra_bytes: int) -> Iterator[None]:
    """Let this process allocate at most ``extra_bytes`` more during the body.

    A larger request raises `MemoryError`. It has no effect outside Linux.
    """
    used_bytes = _read_data_bytes()
    if used_bytes is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used_bytes + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _read_data_bytes() -> int | None:
    """Return the size of the memory that `resource.RLIMIT_DATA` limits; None outside Linux."""
    with contextlib.suppress(OSError):
        for line in _STATUS_FILE.read_text("utf-8").splitlines():
            if line.startswith(_DATA_KEY):
                return 1024 * int(line.split()[1])
    return None
