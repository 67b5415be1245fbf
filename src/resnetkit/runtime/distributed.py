"""Which process of a run this is, and what all of them must decide together.

One process alone is `ALONE`; those that torchrun starts are a `resnetkit.runtime.process_group.Group`.

This module imports no torch.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from resnetkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


class ProcessGroup(Protocol):
    """What a process asks the others. All of them have to ask the same in the same order."""

    @property
    def rank(self) -> int:
        """Its number, from 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, and writes what is written once."""

    def all_reduce_max(self, value: int) -> int:
        """The largest that any of them says; all hear the same."""

    def all_reduce_any(self, value: bool) -> bool:
        """Whether any of them said so; all hear the same."""

    def run_on_main(self, compute: Callable[[], Any]) -> Any:
        """What the one that writes makes (as JSON holds it), for all of them; its error ends all."""

    def all_gather(self, value: Any) -> list[Any]:
        """What each of them says (as JSON holds it), by their numbers."""

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the one that writes, for all of them."""

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all of them, to the same bits in each."""


@dataclass(frozen=True)
class SingleProcess:
    """One process."""

    rank: int = 0
    world_size: int = 1
    is_main: bool = True

    def all_reduce_max(self, value: int) -> int:
        return value

    def all_reduce_any(self, value: bool) -> bool:
        return value

    def run_on_main(self, compute: Callable[[], Any]) -> Any:
        return compute()

    def all_gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is added."""


SINGLE_PROCESS = SingleProcess()

# ----------------------------------------------------------------------------------------- who started this process


@dataclass(frozen=True)
class LaunchInfo:
    """What torchrun tells a process of itself: its number among all, and among those of its machine."""

    rank: int
    world_size: int
    local_rank: int = 0
    local_world_size: int = 1


def read_launch_info() -> LaunchInfo | None:
    """Who this is among the processes that torchrun started; None for one alone. Raises `UsageError`."""
    world_size = _read_int_variable("WORLD_SIZE", 1)
    if world_size <= 1:
        return None
    info = LaunchInfo(
        _read_int_variable("RANK"),
        world_size,
        _read_int_variable("LOCAL_RANK", 0),
        _read_int_variable("LOCAL_WORLD_SIZE", 1),
    )
    if not (info.rank < world_size and info.local_rank < info.local_world_size <= world_size):
        where = (
            f"RANK={info.rank} of WORLD_SIZE={world_size}; {info.local_rank} of {info.local_world_size} on this machine"
        )
        raise UsageError("these numbers of a process contradict each other", where=where, fix=_TORCHRUN_HINT)
    return info


def is_restarted() -> bool:
    """Whether torchrun started this process again, after one of them had failed."""
    return read_launch_info() is not None and _read_int_variable("TORCHELASTIC_RESTART_COUNT", 0) > 0


_TORCHRUN_HINT = "start it with torchrun, which sets them; unset WORLD_SIZE for one process alone"


def _read_int_variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise UsageError(f"{name} is no number", where=f"{name}={text}", fix=_TORCHRUN_HINT)
    return int(text)


def count_cores() -> int:
    """How many cores this process may keep busy: those it may use, divided among the processes of its machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launch_info = read_launch_info()
    return max(1, usable // (launch_info.local_world_size if launch_info else 1))


# ------------------------------------------------------------------------------------------------ who takes which part


def get_rank_slice(n_images: int, rank: int, world_size: int, local_norms: bool) -> slice:
    """Which of the ``window`` positions of a step are of one process: ``p mod world``.

    Where norms count in each process ``alone``, one picture is too few for them, so that a small window is divided
    among fewer processes; the others get nothing.
    """
    n_active = min(world_size, max(1, n_images // 2)) if local_norms else world_size
    return slice(rank, None, n_active) if rank < n_active else slice(0, 0)


def check_same_on_all_ranks(dist: ProcessGroup, **values: str) -> None:
    """Raise `DataError` where what these words stand for is not the same in all processes."""
    gathered = dist.all_gather([socket.gethostname(), values])
    for host, theirs in gathered:
        differing = [name for name, value in gathered[0][1].items() if theirs[name] != value]
        if differing:
            raise DataError(
                f"not all processes have the same {' and '.join(differing)}",
                where=f"{host} differs from {gathered[0][0]}",
                fix="copy what one machine has to all of them, or put it on a disk that they share",
            )
