"""How the processes of one attempt find each other in a store that holds what earlier attempts have left.

torchrun keeps one store for all its attempts, and nothing that a process is told differs between them on every machine:
what a process reads there may be the address of one that is gone.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from resnetkit.runtime.distributed import Launch

_PAUSE = 0.02  # seconds


def fresh(store: Any, launch: Launch, timeout: float) -> Any:
    """A part of the store that these processes have for themselves; raises `TimeoutError`.

    The first names it. It answers each of the others with the word that this one has made up for itself, so that
    nobody takes an old answer for a new one.
    """
    ends = time.monotonic() + timeout
    word = uuid.uuid4().hex
    part = _invite(store, word, launch.world, ends) if launch.rank == 0 else _join(store, word, launch.rank, ends)
    return PrefixStore(part, store)


def _invite(store: Any, part: str, world: int, ends: float) -> str:
    missing = set(range(1, world))
    while missing:
        for rank in sorted(missing):
            if word := _read(store, f"join/{rank}"):
                store.set(f"answer/{rank}", f"{word} {part}")
        missing -= {rank for rank in missing if _read(store, f"{part}/{rank}")}
        _pause(ends, f"process {min(missing, default=0)} does not come")
    return part


def _join(store: Any, word: str, rank: int, ends: float) -> str:
    store.set(f"join/{rank}", word)
    while not (answer := _read(store, f"answer/{rank}")).startswith(word):
        _pause(ends, "process 0 does not answer")
    part = answer.split()[1]
    store.set(f"{part}/{rank}", "here")
    return part


def _read(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""


def _pause(ends: float, what: str) -> None:
    if time.monotonic() > ends:
        raise TimeoutError(what)
    time.sleep(_PAUSE)
