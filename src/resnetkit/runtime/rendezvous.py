"""Rendezvous: give the processes of one attempt a part of the key-value store that no earlier attempt has used.

torchrun keeps one store for all attempts, and none of its variables differs between attempts on every machine. Without
a rendezvous, a process could read the address of a process that an earlier attempt has left in the store.
"""

from __future__ import annotations

import uuid
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from resnetkit.runtime.deadline import SYSTEM_CLOCK, Clock, Deadline
from resnetkit.runtime.distributed import LaunchInfo
from resnetkit.runtime.key_value_store import KeyValueStore


def create_prefix_store(store: Any, launch: LaunchInfo, timeout: float, clock: Clock = SYSTEM_CLOCK) -> Any:
    """Return a view of the store that only the processes of this attempt share.

    Rank 0 chooses the prefix. It answers each other rank with the random token of that rank, so that a rank never
    takes an answer of an earlier attempt for a new one.

    Args:
        store: a `torch.distributed.Store`.
        launch: rank and world size of this process.
        timeout: seconds to wait for the other processes.
        clock: the clock of the timeout.
    """
    shared_store, token, deadline = KeyValueStore(store, timeout), uuid.uuid4().hex, Deadline(timeout, clock)
    try:
        exchange = _join_rendezvous if launch.rank else _host_rendezvous
        prefix = exchange(shared_store, token, launch, deadline)
    finally:
        shared_store.close()
    return PrefixStore(prefix, store)


def _host_rendezvous(store: KeyValueStore, prefix: str, launch: LaunchInfo, deadline: Deadline) -> str:
    """Answer every rank until all of them have joined; raise `TimeoutError` after the deadline."""
    missing = set(range(1, launch.world_size))

    def answer_missing_ranks() -> bool:
        for rank in sorted(missing):
            if token := store.get(f"join/{rank}"):
                store.set(f"answer/{rank}", [token, prefix])
        missing.difference_update([rank for rank in missing if store.get(f"{prefix}/{rank}")])
        return not missing

    if not deadline.wait_until(answer_missing_ranks):
        raise TimeoutError(f"rank {min(missing)} did not join")
    return prefix


def _join_rendezvous(store: KeyValueStore, token: str, launch: LaunchInfo, deadline: Deadline) -> str:
    """Return the prefix that rank 0 has chosen; raise `TimeoutError` after the deadline."""
    store.set(f"join/{launch.rank}", token)

    def read_prefix() -> str:
        answered_token, prefix = store.get(f"answer/{launch.rank}") or ("", "")
        return prefix if answered_token == token else ""

    if not (prefix := deadline.wait_until(read_prefix)):
        raise TimeoutError("rank 0 did not answer")
    store.set(f"{prefix}/{launch.rank}", True)
    return prefix
