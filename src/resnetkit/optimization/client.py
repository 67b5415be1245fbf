"""The other end of `resnetkit.optimization.worker`: an engine that is tried out where it can hurt nobody.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.engines.base import Choice, Logits
from resnetkit.runtime.threads import SHORT

_WORDS = 300


class TrialError(Exception):
    """An engine cannot be used; its text says why."""


class Trial:
    """A process that makes, opens, asks and times engines of a model folder.

    Each request raises `TrialError` where it fails, and after one that is not answered in time the process is gone.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self._work = work
        self.opened: Choice | None = None
        self._killed = False
        self._told = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(  # noqa: S603  this very program
            [
                sys.executable,
                "-P",
                "-m",
                "resnetkit.optimization.worker",
                str(folder),
            ],  # -P: nothing of the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            start_new_session=True,  # an interrupt reaches this process, which then ends that one
        )

    def make(self, choice: Choice, pixels: Path | None, patience: float) -> None:
        """The artefact of an engine."""
        given = None if pixels is None else str(pixels)
        what = {"engine": choice.engine, "precision": choice.precision, "artefact": str(self._work / choice.name)}
        self._ask(patience, do="make", pixels=given, **what)

    def open(self, choice: Choice, pixels: Path, patience: float) -> float:
        """An engine that has answered once; seconds since the process was begun."""
        self.opened = None
        place = str(self._work / choice.name)
        self._ask(patience, do="open", artefact=place, choice=asdict(choice), pixels=str(pixels))
        self.opened = choice
        return time.perf_counter() - self._begun

    def answers(self, pixels: Path, count: int, patience: float) -> Logits:
        """The logits of the first ``count`` pictures of a file."""
        out = self._work / "logits.npy"
        self._ask(patience, do="answer", pixels=str(pixels), count=count, out=str(out))
        found: Logits = np.load(out)
        out.unlink()
        return found

    def time(self, pixels: Path, seconds: float, patience: float) -> tuple[float, float]:
        """(images per second, milliseconds of a call)."""
        found = self._ask(patience, do="time", pixels=str(pixels), seconds=seconds)
        return found["images_per_second"], found["milliseconds"]

    def _ask(self, patience: float, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout  # noqa: S101  for the type checker
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise TrialError(self._end()) from None
        if not self._answers_within(patience):
            self._kill()  # else its late answer would be taken for that to the next request
            raise TrialError(f"it took more than {patience:.0f} seconds to {request['do']}")
        line = self._process.stdout.readline()
        if not line:
            raise TrialError(self._end())
        answer = json.loads(line)
        if "why" in answer:
            raise TrialError(answer["why"])
        return answer["found"]

    def _answers_within(self, patience: float) -> bool:
        """Whether an answer comes in so many seconds, in which signals are heard."""
        until, there = time.monotonic() + patience, [self._process.stdout.fileno()]  # type: ignore[union-attr]
        while (left := until - time.monotonic()) > 0:
            if select.select(there, [], [], min(left, SHORT))[0]:
                return True
        return bool(select.select(there, [], [], 0)[0])

    def _end(self) -> str:
        """Why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._kill()
        code = self._process.returncode
        how = f"was killed by {_signal(-code)}" if code and code < 0 else f"ended with {code}"
        return f"its process {how}{self._last_words()}"

    def _last_words(self) -> str:
        self._told.seek(max(0, self._told.seek(0, os.SEEK_END) - 4000))
        lines = [line.strip() for line in self._told.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return f": {lines[-1][:_WORDS]}" if lines else ""

    def close(self) -> None:
        """The process ends, with all that it has started."""
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._told):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _kill(self) -> None:
        """Once: the number of a process that was waited for may soon be another's."""
        if self._killed:
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def trying(folder: Path, work: Path) -> Iterator[Trial]:
    """A `Trial` that ends with the body; raises `TrialError` where no process can be started."""
    try:
        trial = Trial(folder, work)
    except OSError as error:
        raise TrialError(f"no process could be started: {error.strerror}") from None
    try:
        yield trial
    finally:
        trial.close()
