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

from resnetkit.engines.base import EngineConfig, Logits
from resnetkit.runtime.threads import SIGNAL_POLL_SECONDS

_MAX_MESSAGE_LENGTH = 300
_VERBS = {"export": "make", "load": "open", "infer": "answer", "measure": "time"}


class BenchmarkError(Exception):
    """An engine cannot be used; its text says why."""


class BenchmarkClient:
    """A process that makes, opens, asks and times engines of a model folder.

    Each request raises `TrialError` where it fails, and after one that is not answered in time the process is gone.
    """

    def __init__(self, folder: Path, work_dir: Path) -> None:
        self._work_dir = work_dir
        self.loaded_config: EngineConfig | None = None
        self._is_killed = False
        self._stderr_file = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._started = time.perf_counter()
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
            stderr=self._stderr_file,
            start_new_session=True,  # an interrupt reaches this process, which then ends that one
        )

    def export(self, config: EngineConfig, pixels: Path | None, timeout: float) -> None:
        """The artefact of an engine."""
        pixels_path = None if pixels is None else str(pixels)
        fields = {"engine": config.engine, "precision": config.precision, "artifact": str(self._work_dir / config.name)}
        self._send_request(timeout, do="export", pixels=pixels_path, **fields)

    def load(self, config: EngineConfig, pixels: Path, timeout: float) -> float:
        """An engine that has answered once; seconds since the process was begun."""
        self.loaded_config = None
        artifact = str(self._work_dir / config.name)
        self._send_request(timeout, do="load", artifact=artifact, config=asdict(config), pixels=str(pixels))
        self.loaded_config = config
        return time.perf_counter() - self._started

    def infer(self, pixels: Path, n_images: int, timeout: float) -> Logits:
        """The logits of the first ``count`` pictures of a file."""
        out = self._work_dir / "logits.npy"
        self._send_request(timeout, do="infer", pixels=str(pixels), n_images=n_images, out=str(out))
        logits: Logits = np.load(out)
        out.unlink()
        return logits

    def measure(self, pixels: Path, seconds: float, timeout: float) -> tuple[float, float]:
        """(images per second, milliseconds of a call)."""
        result = self._send_request(timeout, do="measure", pixels=str(pixels), seconds=seconds)
        return result["images_per_second"], result["milliseconds"]

    def _send_request(self, timeout: float, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout  # noqa: S101  for the type checker
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise BenchmarkError(self._describe_exit()) from None
        if not self._has_reply_within(timeout):
            self._kill()  # else its late answer would be taken for that to the next request
            raise BenchmarkError(f"it took more than {timeout:.0f} seconds to {_VERBS[request['do']]}")
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(self._describe_exit())
        reply = json.loads(line)
        if "why" in reply:
            raise BenchmarkError(reply["why"])
        return reply["found"]

    def _has_reply_within(self, timeout: float) -> bool:
        """Whether an answer comes in so many seconds, in which signals are heard."""
        deadline, streams = time.monotonic() + timeout, [self._process.stdout.fileno()]  # type: ignore[union-attr]
        while (remaining := deadline - time.monotonic()) > 0:
            if select.select(streams, [], [], min(remaining, SIGNAL_POLL_SECONDS))[0]:
                return True
        return bool(select.select(streams, [], [], 0)[0])

    def _describe_exit(self) -> str:
        """Why the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._kill()
        code = self._process.returncode
        outcome = f"was killed by {_format_signal(-code)}" if code and code < 0 else f"ended with {code}"
        return f"its process {outcome}{self._read_last_line()}"

    def _read_last_line(self) -> str:
        self._stderr_file.seek(max(0, self._stderr_file.seek(0, os.SEEK_END) - 4000))
        lines = [
            line.strip() for line in self._stderr_file.read().decode("utf-8", "replace").splitlines() if line.strip()
        ]
        return f": {lines[-1][:_MAX_MESSAGE_LENGTH]}" if lines else ""

    def close(self) -> None:
        """The process ends, with all that it has started."""
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._stderr_file):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _kill(self) -> None:
        """Once: the number of a process that was waited for may soon be another's."""
        if self._is_killed:
            return
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _format_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def open_benchmark_client(folder: Path, work_dir: Path) -> Iterator[BenchmarkClient]:
    """A `Trial` that ends with the body; raises `TrialError` where no process can be started."""
    try:
        client = BenchmarkClient(folder, work_dir)
    except OSError as error:
        raise BenchmarkError(f"no process could be started: {error.strerror}") from None
    try:
        yield client
    finally:
        client.close()
