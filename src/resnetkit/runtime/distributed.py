"""Rank and world size, and the collectives that keep the processes of a run in step.

A single process uses `SINGLE_PROCESS`; processes that torchrun starts use
`resnetkit.runtime.process_group.TorchProcessGroup`.

This module imports no torch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resnetkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


class ProcessGroup:
    """The collectives of a run. All ranks must call the same ones in the same order.

    This class itself is the group of a single process.

    Attributes:
        rank: the index of this process, from 0.
        world_size: the number of processes.
    """

    rank, world_size = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def all_reduce_max(self, value: int) -> int:
        """Return the largest value of all ranks."""
        return value

    def all_reduce_any(self, value: bool) -> bool:
        """Return whether the value of any rank is true."""
        return bool(self.all_reduce_max(int(value)))

    def run_on_main(self, compute: Callable[[], Any]) -> Any:
        """Run a function on rank 0 and return its result, which JSON can represent, on all ranks."""
        return compute()

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which JSON can represent, in the order of the ranks."""
        return [value]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of rank 0 on all ranks."""
        return dict(tensors)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, which has the same bits on all of them."""


SINGLE_PROCESS = ProcessGroup()

# ------------------------------------------------------------------------------------------- the variables of torchrun

_TORCHRUN_HINT = "start the processes with torchrun, which sets them; for a single process, unset WORLD_SIZE"


@dataclass(frozen=True)
class LaunchInfo:
    """The position of a process among all processes, and among those of its machine."""

    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int = 1


def read_launch_info() -> LaunchInfo | None:
    """Read the environment variables that torchrun sets; return None for a single process.

    Raises:
        UsageError: a variable is missing or not a number, or the variables contradict each other.
    """
    world_size = _read_int_variable("WORLD_SIZE", 1)
    if world_size <= 1:
        return None
    local_rank, local_world_size = _read_int_variable("LOCAL_RANK", 0), _read_int_variable("LOCAL_WORLD_SIZE", 1)
    info = LaunchInfo(_read_int_variable("RANK"), world_size, local_rank, local_world_size)
    if not (info.rank < world_size and local_rank < local_world_size <= world_size):
        where = f"RANK={info.rank} WORLD_SIZE={world_size} LOCAL_RANK={local_rank} LOCAL_WORLD_SIZE={local_world_size}"
        raise UsageError("the variables of torchrun contradict each other", where=where, fix=_TORCHRUN_HINT)
    return info


def is_restarted() -> bool:
    """Check whether torchrun has restarted this process after a failure."""
    return read_launch_info() is not None and _read_int_variable("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _read_int_variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise UsageError(f"{name} is not a number", where=f"{name}={text}", fix=_TORCHRUN_HINT)
    return int(text)


def count_cores() -> int:
    """Return how many cores this process may use: its share of those that its machine's processes may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launch_info = read_launch_info()
    return max(1, usable // (launch_info.local_world_size if launch_info else 1))


# ------------------------------------------------------------------------------------------------- work for each rank


def get_rank_slice(n_images: int, rank: int, world_size: int, local_norms: bool) -> slice:
    """Return which images of a batch a rank processes: every ``world_size``-th one.

    Batch norm needs at least two images. If each process computes its own statistics, a small batch is divided among
    fewer processes, and the others get an empty slice.

    Args:
        n_images: the number of images in the batch.
        rank: the rank of the process.
        world_size: the number of processes.
        local_norms: whether batch norms use only the images of their own process.
    """
    n_active = min(world_size, max(1, n_images // 2)) if local_norms else world_size
    return slice(rank, None, n_active) if rank < n_active else slice(0, 0)


def check_same_on_all_ranks(dist: ProcessGroup, **digests: str) -> None:
    """Check that all ranks have the same files.

    Args:
        dist: the process group.
        **digests: name of what is compared -> its digest on this rank.

    Raises:
        DataError: a digest differs between two ranks.
    """
    gathered = dist.all_gather([socket.gethostname(), digests])
    main_host, expected = gathered[0]
    for host, actual in gathered:
        if differing := [name for name, digest in expected.items() if actual[name] != digest]:
            raise DataError(
                f"the processes do not have the same {' and '.join(differing)}",
                where=f"{host} differs from {main_host}",
                fix="copy the files of one machine to all others, or put them on a disk that all of them share",
            )
