"""torchrun's key-value store with JSON values and a timeout for every call."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from resnetkit.runtime.threads import WorkerPool, wait_for_result

STORE_TIMEOUT = 10.0  # seconds; a store call has no timeout of its own if the network cable is cut


class KeyValueStore:
    """A store that all processes of a run share.

    Args:
        store: a `torch.distributed.Store`.
        timeout: the largest duration of a call, in seconds.
    """

    def __init__(self, store: Any, timeout: float = STORE_TIMEOUT) -> None:
        self._store, self._timeout, self._is_lost = store, timeout, False
        self._pool = WorkerPool(1)

    def set(self, key: str, value: object) -> None:
        """Store a value that JSON can represent.

        Args:
            key: the key.
            value: the value.
        """
        self._call(lambda: self._store.set(key, json.dumps(value)))

    def get(self, key: str) -> Any:
        """Return the value of a key, None if no process has set it."""
        return self._call(lambda: json.loads(self._store.get(key)) if self._store.check([key]) else None)

    def close(self) -> None:
        """End the thread that calls the store."""
        self._pool.shutdown()

    def _call(self, call: Callable[[], Any]) -> Any:
        """Run a call; raise `RuntimeError` if it, or a call before it, failed or took too long."""
        try:
            if self._is_lost:
                raise TimeoutError
            return wait_for_result(self._pool.submit(call), self._timeout)
        except (TimeoutError, RuntimeError) as error:
            self._is_lost = True
            raise RuntimeError("the key-value store does not respond") from error
