"""The memory that a process may use.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from resnetkit.runtime.distributed import read_launch_info


def get_free_memory(root: Path = Path("/")) -> float:
    """Return the free bytes: this process's share of its machine and control group; infinity if unknown.

    Args:
        root: The root of the file system with ``proc`` and ``sys``.
    """
    launch = read_launch_info()
    return min(_get_ulimit_memory(root), min(_iter_free_memory(root)) / (launch.local_world_size if launch else 1))


def _iter_free_memory(root: Path) -> Iterator[float]:
    yield math.inf
    for line in _read_or_empty(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    limit, used = (_read_or_empty(root / f"sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        yield int(limit) - int(used)


def _get_ulimit_memory(root: Path) -> float:
    """Return the bytes that ``ulimit -v`` leaves to this process."""
    pages = _read_or_empty(root / "proc/self/statm").split()
    if not pages:
        return math.inf
    import resource  # exists wherever /proc exists

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit - int(pages[0]) * resource.getpagesize() if limit != resource.RLIM_INFINITY else math.inf


def _read_or_empty(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
