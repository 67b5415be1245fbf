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

from resnetkit.errors import ElsewhereError, MachineError, ResnetkitError, Stopped
from resnetkit.runtime.distributed import Launch

_PATIENCE = 3.0  # seconds to hear from the others what has happened
_ANSWER = 10.0  # seconds that the store may take
_INTERRUPTED = 130


class Board:
    """What each process says of itself, under ``failed/RANK`` and ``waits/RANK``."""

    def __init__(self, launch: Launch, store: Any, timeout: float) -> None:
        self.launch, self.timeout = launch, timeout
        self.store, self._cut = store, False
        self.hosts = [""] * launch.world  # told when all are there

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong in the body is said to the others."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            ending = self.failed(error)
            if ending is error:
                raise
            raise ending from error

    def failed(self, error: BaseException) -> BaseException:
        """Say why this process ends, and give what it ends with: the error, with its place.

        Where several fail at once, as all do that are asked for what cannot be, the first of them tells why.
        """
        if isinstance(error, ElsewhereError) or (isinstance(error, Stopped) and error.number):
            return error
        what = getattr(error, "what", "") or f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):
            self._say("failed", {"what": what, "code": _exit_code(error)})
            if self._before_me():
                return ElsewhereError("", exit_code=_exit_code(error))
        error.add_note(f"on: {self.place(self.launch.rank)}")
        if not isinstance(error, KeyboardInterrupt):
            get_error_handler().record_exception(error)  # for what torchrun prints at the end
        return error

    def _before_me(self) -> bool:
        """Whether a process with a lower number has failed of itself, too; the first lets the others hear of it."""
        ends = time.monotonic() + _PATIENCE / 3
        while time.monotonic() < ends:
            if any(self._heard("failed", rank) for rank in range(self.launch.rank)):
                return True
            if not self.launch.rank and all(map(self._has_spoken, self._others())):
                ends = min(ends, time.monotonic() + 0.2)
            time.sleep(0.02)
        return False

    def _has_spoken(self, rank: int) -> bool:
        return bool(self._heard("waits", rank) or self._heard("failed", rank))

    def lost(self, said: str) -> ResnetkitError:
        """What to raise where the others do not answer: what one of them failed with, or that one is gone."""
        try:
            self._say("waits", True)
            if (rank := self._first_failed()) is not None:
                return self._elsewhere(rank, self._heard("failed", rank))
            waiting = [rank for rank in self._others() if self._heard("waits", rank)]
        except RuntimeError:  # the store itself is gone
            waiting = []
        gone = [rank for rank in self._others() if rank not in waiting]
        return self._gone(
            [self.place(rank) for rank in gone or self._others()], said, min(waiting, default=self.launch.world)
        )

    def _first_failed(self) -> int | None:
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            for rank in self._others():
                if self._heard("failed", rank):
                    return rank
            time.sleep(0.05)
        return None

    def _gone(self, places: list[str], said: str, first: int) -> ResnetkitError:
        """Told by the first of those that wait."""
        what = f"another process is gone, or has not answered for {self.timeout:g} seconds"
        if first < self.launch.rank:
            return ElsewhereError("", exit_code=MachineError.exit_code)
        fix = "see what it said itself; for steps that take longer: --timeout SECONDS"
        return MachineError(what, where=[*places, f"while waiting: {said.splitlines()[0][:120]}"], fix=fix)

    def _elsewhere(self, rank: int, told: Mapping[str, Any]) -> ElsewhereError:
        """Told once on every other machine, whose log would hold nothing else."""
        quiet = self.launch.local_rank != 0 or self.hosts[rank] == self.hosts[self.launch.rank]
        what = f"{self.place(rank)}, failed: {told['what']}"
        return ElsewhereError("" if quiet else what, exit_code=int(told["code"]))

    def place(self, rank: int) -> str:
        """Which process, and on which machine."""
        host = f", on {self.hosts[rank]}" if self.hosts[rank] else ""
        return f"process {rank} of 0 to {self.launch.world - 1}{host}"

    def _others(self) -> list[int]:
        return [rank for rank in range(self.launch.world) if rank != self.launch.rank]

    def _say(self, kind: str, value: object) -> None:
        self._asked(lambda: self.store.set(f"{kind}/{self.launch.rank}", json.dumps(value)))

    def _heard(self, kind: str, rank: int, patience: float = 0.0) -> Any:
        """What a process said of this kind; None if it said nothing."""
        ends = time.monotonic() + patience
        while not self._asked(lambda: self.store.check([f"{kind}/{rank}"])):
            if time.monotonic() >= ends:
                return None
            time.sleep(0.02)
        return json.loads(self._asked(lambda: self.store.get(f"{kind}/{rank}")))

    def _asked(self, question: Callable[[], Any]) -> Any:
        """What the store answers; raises `RuntimeError` where it does not, as at the other end of a cut cable."""
        answers: list[Any] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError):
                answers.append(question())

        asking = threading.Thread(target=ask, daemon=True)
        if not self._cut:
            asking.start()
            asking.join(_ANSWER)
        self._cut = not answers
        if self._cut:
            raise RuntimeError("the store does not answer")
        return answers[0]


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return error.number + 128 if isinstance(error, Stopped) and error.number else _INTERRUPTED
    return error.exit_code if isinstance(error, ResnetkitError) else 1
