"""How the processes of one attempt find each other in a store that holds what earlier attempts have left.

torchrun keeps one store for all its attempts, and nothing that a process is told differs between them on every machine:
what a process reads there may be the address of one that is gone.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from resnetkit.runtime.distributed import LaunchInfo

_POLL_SECONDS = 0.02  # seconds


def create_prefix_store(store: Any, launch: LaunchInfo, timeout: float) -> Any:
    """A part of the store that these processes have for themselves; raises `TimeoutError`.

    The first names it. It answers each of the others with the word that this one has made up for itself, so that
    nobody takes an old answer for a new one.
    """
    deadline = time.monotonic() + timeout
    token = uuid.uuid4().hex
    prefix = (
        _host_rendezvous(store, token, launch.world_size, deadline)
        if launch.rank == 0
        else _join_rendezvous(store, token, launch.rank, deadline)
    )
    return PrefixStore(prefix, store)


def _host_rendezvous(store: Any, prefix: str, world_size: int, deadline: float) -> str:
    missing = set(range(1, world_size))
    while missing:
        for rank in sorted(missing):
            if token := _read_key(store, f"join/{rank}"):
                store.set(f"answer/{rank}", f"{token} {prefix}")
        missing -= {rank for rank in missing if _read_key(store, f"{prefix}/{rank}")}
        _sleep_before_retry(deadline, f"process {min(missing, default=0)} does not come")
    return prefix


def _join_rendezvous(store: Any, token: str, rank: int, deadline: float) -> str:
    store.set(f"join/{rank}", token)
    while not (reply := _read_key(store, f"answer/{rank}")).startswith(token):
        _sleep_before_retry(deadline, "process 0 does not answer")
    prefix = reply.split()[1]
    store.set(f"{prefix}/{rank}", "here")
    return prefix


def _read_key(store: Any, key: str) -> str:
    return str(store.get(key).decode()) if store.check([key]) else ""


def _sleep_before_retry(deadline: float, message: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(message)
    time.sleep(_POLL_SECONDS)
