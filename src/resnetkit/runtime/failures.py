"""Where the processes of a run say how they fare, and read how the others do: a store that torchrun keeps for them.

It is what is left to talk over when one of them has failed, and the others wait for it in vain.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from resnetkit.errors import MachineError, PeerProcessError, ResnetkitError, ResnetkitInterrupt
from resnetkit.runtime.distributed import LaunchInfo

_REPORT_TIMEOUT = 3.0  # seconds to hear from the others what has happened
_STORE_TIMEOUT = 10.0  # seconds that the store may take
_INTERRUPTED_EXIT_CODE = 130


class FailureReporter:
    """What each process says of itself, under ``failed/RANK`` and ``waits/RANK``."""

    def __init__(self, launch: LaunchInfo, store: Any, timeout: float) -> None:
        self.launch, self.timeout = launch, timeout
        self.store, self._is_disconnected = store, False
        self.hosts = [""] * launch.world_size  # told when all are there

    @contextlib.contextmanager
    def report_errors(self) -> Iterator[None]:
        """What goes wrong in the body is said to the others."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            final_error = self.report(error)
            if final_error is error:
                raise
            raise final_error from error

    def report(self, error: BaseException) -> BaseException:
        """Say why this process ends, and give what it ends with: the error, with its place.

        Where several fail at once, as all do that are asked for what cannot be, the first of them tells why.
        """
        if isinstance(error, PeerProcessError) or (isinstance(error, ResnetkitInterrupt) and error.signal_number):
            return error
        what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            self._set("failed", {"what": what, "code": _get_exit_code(error)})
            if self._has_lower_rank_failed():
                return PeerProcessError("", exit_code=_get_exit_code(error))
        error.add_note(f"on: {self.describe_rank(self.launch.rank)}")
        if not isinstance(error, KeyboardInterrupt):
            get_error_handler().record_exception(error)  # for what torchrun prints at the end
        return error

    def _has_lower_rank_failed(self) -> bool:
        """Whether a process with a lower number has failed of itself, too; the first lets the others hear of it."""
        deadline = time.monotonic() + _REPORT_TIMEOUT / 3
        while time.monotonic() < deadline:
            if any(self._get("failed", rank) for rank in range(self.launch.rank)):
                return True
            if not self.launch.rank and all(map(self._has_reported, self._list_other_ranks())):
                deadline = min(deadline, time.monotonic() + 0.2)
            time.sleep(0.02)
        return False

    def _has_reported(self, rank: int) -> bool:
        return bool(self._get("waits", rank) or self._get("failed", rank))

    def explain_loss(self, message: str) -> ResnetkitError:
        """What to raise where the others do not answer: what one of them failed with, or that one is gone."""
        try:
            self._set("waits", True)
            if (rank := self._wait_for_failed_rank()) is not None:
                return self._make_elsewhere_error(rank, self._get("failed", rank))
            waiting_ranks = [rank for rank in self._list_other_ranks() if self._get("waits", rank)]
        except RuntimeError:  # the store itself is gone
            waiting_ranks = []
        missing_ranks = [rank for rank in self._list_other_ranks() if rank not in waiting_ranks]
        return self._make_lost_error(
            [self.describe_rank(rank) for rank in missing_ranks or self._list_other_ranks()],
            message,
            min(waiting_ranks, default=self.launch.world_size),
        )

    def _wait_for_failed_rank(self) -> int | None:
        deadline = time.monotonic() + _REPORT_TIMEOUT
        while time.monotonic() < deadline:
            for rank in self._list_other_ranks():
                if self._get("failed", rank):
                    return rank
            time.sleep(0.05)
        return None

    def _make_lost_error(self, locations: list[str], message: str, first_waiting: int) -> ResnetkitError:
        """Told by the first of those that wait."""
        what = f"another process is gone, or has not answered for {self.timeout:g} seconds"
        if first_waiting < self.launch.rank:
            return PeerProcessError("", exit_code=MachineError.exit_code)
        fix = "see what it said itself; for steps that take longer: --timeout SECONDS"
        return MachineError(what, where=[*locations, f"while waiting: {message.splitlines()[0][:120]}"], fix=fix)

    def _make_elsewhere_error(self, rank: int, failure: Mapping[str, Any]) -> PeerProcessError:
        """Told once on every other machine, whose log would hold nothing else."""
        is_silent = self.launch.local_rank != 0 or self.hosts[rank] == self.hosts[self.launch.rank]
        what = f"{self.describe_rank(rank)}, failed: {failure['what']}"
        return PeerProcessError("" if is_silent else what, exit_code=int(failure["code"]))

    def describe_rank(self, rank: int) -> str:
        """Which process, and on which machine."""
        host = f", on {self.hosts[rank]}" if self.hosts[rank] else ""
        return f"process {rank} of 0 to {self.launch.world_size - 1}{host}"

    def _list_other_ranks(self) -> list[int]:
        return [rank for rank in range(self.launch.world_size) if rank != self.launch.rank]

    def _set(self, kind: str, value: object) -> None:
        self._call_with_timeout(lambda: self.store.set(f"{kind}/{self.launch.rank}", json.dumps(value)))

    def _get(self, kind: str, rank: int, timeout: float = 0.0) -> Any:
        """What a process said of this kind; None if it said nothing."""
        deadline = time.monotonic() + timeout
        while not self._call_with_timeout(lambda: self.store.check([f"{kind}/{rank}"])):
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)
        return json.loads(self._call_with_timeout(lambda: self.store.get(f"{kind}/{rank}")))

    def _call_with_timeout(self, call: Callable[[], Any]) -> Any:
        """What the store answers; raises `RuntimeError` where it does not, as at the other end of a cut cable."""
        results: list[Any] = []

        def run_call() -> None:
            with contextlib.suppress(RuntimeError):
                results.append(call())

        thread = threading.Thread(target=run_call, daemon=True)
        if not self._is_disconnected:
            thread.start()
            thread.join(_STORE_TIMEOUT)
        self._is_disconnected = not results
        if self._is_disconnected:
            raise RuntimeError("the store does not answer")
        return results[0]


def _get_exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return (
            error.signal_number + 128
            if isinstance(error, ResnetkitInterrupt) and error.signal_number
            else _INTERRUPTED_EXIT_CODE
        )
    return error.exit_code if isinstance(error, ResnetkitError) else 1
