"""Which process of a run this is, and what all of them must decide together.

One process alone is `ALONE`; those that torchrun starts are a `resnetkit.runtime.process_group.Group`.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class Ranks(Protocol):
    """What a process asks the others. All of them have to ask the same in the same order."""

    @property
    def rank(self) -> int:
        """Its number, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    @property
    def writes(self) -> bool:
        """Whether this is the one that prints, and writes what is written once."""

    def most(self, number: int) -> int:
        """The largest that any of them says; all hear the same."""

    def agreed(self, said: bool) -> bool:
        """Whether any of them said so; all hear the same."""

    def first(self, make: Callable[[], Any]) -> Any:
        """What the one that writes makes (as JSON holds it), for all of them; its error ends all."""

    def each(self, value: Any) -> list[Any]:
        """What each of them says (as JSON holds it), by their numbers."""

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the one that writes, for all of them."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all of them, to the same bits in each."""


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    world: int = 1
    writes: bool = True

    def most(self, number: int) -> int:
        return number

    def agreed(self, said: bool) -> bool:
        return said

    def first(self, make: Callable[[], Any]) -> Any:
        return make()

    def each(self, value: Any) -> list[Any]:
        return [value]

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is added."""


ALONE = Alone()

# ----------------------------------------------------------------------------------------- who started this process


@dataclass(frozen=True)
class Launch:
    """What torchrun tells a process of itself: its number among all, and among those of its machine."""

    rank: int
    world: int
    local_rank: int = 0
    local_world: int = 1


def launched() -> Launch | None:
    """Who this is among the processes that torchrun started; None for one alone. Raises `UsageError`."""
    world = _number("WORLD_SIZE", 1)
    if world <= 1:
        return None
    found = Launch(_number("RANK"), world, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1))
    if not (found.rank < world and found.local_rank < found.local_world <= world):
        where = f"RANK={found.rank} of WORLD_SIZE={world}; {found.local_rank} of {found.local_world} on this machine"
        raise UsageError("these numbers of a process contradict each other", where=where, fix=_TORCHRUN)
    return found


def restarted() -> bool:
    """Whether torchrun started this process again, after one of them had failed."""
    return launched() is not None and _number("TORCHELASTIC_RESTART_COUNT", 0) > 0


_TORCHRUN = "start it with torchrun, which sets them; unset WORLD_SIZE for one process alone"


def _number(name: str, otherwise: int | None = None) -> int:
    told = os.environ.get(name, "")
    if not told and otherwise is not None:
        return otherwise
    if not told.isdecimal():
        raise UsageError(f"{name} is no number", where=f"{name}={told}", fix=_TORCHRUN)
    return int(told)


def cores() -> int:
    """How many cores this process may keep busy: those it may use, divided among the processes of its machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    launch = launched()
    return max(1, usable // (launch.local_world if launch else 1))


# ------------------------------------------------------------------------------------------------ who takes which part


def share_of(window: int, rank: int, world: int, alone: bool) -> slice:
    """Which of the ``window`` positions of a step are of one process: ``p mod world``.

    Where norms count in each process ``alone``, one picture is too few for them, so that a small window is divided
    among fewer processes; the others get nothing.
    """
    parts = min(world, max(1, window // 2)) if alone else world
    return slice(rank, None, parts) if rank < parts else slice(0, 0)
