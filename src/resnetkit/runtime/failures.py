"""Report which process of a run failed, through torchrun's key-value store.

After a failure the collectives no longer work, but the store still does: the other processes read there why a
collective did not finish.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from resnetkit.errors import MachineError, PeerProcessError, ResnetkitError, ResnetkitInterrupt
from resnetkit.runtime.deadline import SYSTEM_CLOCK, Clock, Deadline
from resnetkit.runtime.distributed import LaunchInfo
from resnetkit.runtime.key_value_store import KeyValueStore

REPORT_TIMEOUT = 3.0  # seconds that a process waits for the reports of the others after a collective has failed
LOWER_RANK_TIMEOUT = 1.0  # seconds that a failed process waits for a report of a lower rank
LINGER_SECONDS = 0.2  # rank 0 stays this long, because the store may end with it and the others must read it


class FailureReporter:
    """The failures of all ranks, under the keys ``failed/RANK`` and ``waiting/RANK`` of the store.

    If several ranks fail with the same error, only the lowest of them prints it.

    Args:
        launch: rank and world size of this process.
        store: the `torch.distributed.Store` of this attempt.
        timeout: the timeout of a collective in seconds, for the error message.
        clock: the clock of all timeouts.
    """

    def __init__(self, launch: LaunchInfo, store: Any, timeout: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self.launch, self.timeout, self.clock = launch, timeout, clock
        self.store = KeyValueStore(store)
        self.hosts = [""] * launch.world_size  # set after the first collective
        self._other_ranks = [rank for rank in range(launch.world_size) if rank != launch.rank]

    @contextlib.contextmanager
    def report_errors(self) -> Iterator[None]:
        """Report an exception of the body to the other ranks."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            final_error = self.report(error)
            if final_error is error:
                raise
            raise final_error from error
        finally:
            self.store.close()

    def report(self, error: BaseException) -> BaseException:
        """Write an error to the store and return the error to raise.

        This is the error with a note that names this rank, or a silent one if a lower rank has failed, too.
        """
        if isinstance(error, PeerProcessError) or (isinstance(error, ResnetkitInterrupt) and error.signal_number):
            return error
        what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            self._set("failed", {"what": what, "code": _get_exit_code(error)})
            if self._has_lower_rank_failed():
                return PeerProcessError("", exit_code=_get_exit_code(error))
        error.add_note(f"process: {self.describe_rank(self.launch.rank)}")
        if not isinstance(error, KeyboardInterrupt):
            get_error_handler().record_exception(error)  # torchrun prints it in its summary
        return error

    def explain_loss(self, message: str) -> ResnetkitError:
        """Return the error to raise after a collective has failed.

        It holds the report of another rank, or names the ranks that do not respond.

        Args:
            message: the message of the collective's exception.
        """
        try:
            self._set("waiting", True)
            if failure := Deadline(REPORT_TIMEOUT, self.clock).wait_until(self._find_failure):
                return self._make_peer_error(*failure)
            waiting_ranks = [rank for rank in self._other_ranks if self._get("waiting", rank)]
        except RuntimeError:  # the store is lost, too
            waiting_ranks = []
        if min(waiting_ranks, default=self.launch.world_size) < self.launch.rank:
            return PeerProcessError("", exit_code=MachineError.exit_code)
        missing_ranks = [rank for rank in self._other_ranks if rank not in waiting_ranks] or self._other_ranks
        return MachineError(
            f"another process ended, or did not respond within {self.timeout:g} seconds",
            where=[*map(self.describe_rank, missing_ranks), f"collective: {message.splitlines()[0][:120]}"],
            fix="read the log of that process; if a step takes longer than that, pass a larger --timeout SECONDS",
        )

    def describe_rank(self, rank: int) -> str:
        """Return ``rank 1 of 4 on HOST``."""
        host = f" on {self.hosts[rank]}" if self.hosts[rank] else ""
        return f"rank {rank} of {self.launch.world_size}{host}"

    def _has_lower_rank_failed(self) -> bool:
        deadline = Deadline(LOWER_RANK_TIMEOUT, self.clock)

        def check_reports() -> bool:
            if not self.launch.rank and all(map(self._has_reported, self._other_ranks)):
                deadline.shorten(LINGER_SECONDS)
            return any(self._get("failed", rank) for rank in range(self.launch.rank))

        return deadline.wait_until(check_reports)

    def _has_reported(self, rank: int) -> bool:
        return bool(self._get("waiting", rank) or self._get("failed", rank))

    def _find_failure(self) -> tuple[int, Any] | None:
        """Return (rank, report) of the lowest other rank that has failed."""
        failures = ((rank, self._get("failed", rank)) for rank in self._other_ranks)
        return next((failure for failure in failures if failure[1]), None)

    def _make_peer_error(self, rank: int, failure: dict[str, Any]) -> PeerProcessError:
        """Return the error for this rank; on each other machine, only local rank 0 has a text to print."""
        is_silent = self.launch.local_rank != 0 or self.hosts[rank] == self.hosts[self.launch.rank]
        what = "" if is_silent else f"{self.describe_rank(rank)} failed: {failure['what']}"
        return PeerProcessError(what, exit_code=int(failure["code"]))

    def _set(self, kind: str, value: object) -> None:
        self.store.set(f"{kind}/{self.launch.rank}", value)

    def _get(self, kind: str, rank: int) -> Any:
        return self.store.get(f"{kind}/{rank}")


def _get_exit_code(error: BaseException) -> int:
    if isinstance(error, ResnetkitInterrupt) and error.signal_number:
        return 128 + error.signal_number
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.exit_code if isinstance(error, ResnetkitError) else 1
