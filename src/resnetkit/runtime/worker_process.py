"""A module of this package in a child process, which exchanges JSON lines with this one.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from resnetkit.runtime.deadline import Deadline
from resnetkit.runtime.threads import SIGNAL_POLL_SECONDS

EXIT_TIMEOUT = 5.0  # seconds between the end of a process's streams and its own end
_MAX_LINE_LENGTH = 300


class WorkerProcess:
    """A child process that reads JSON lines from stdin and may answer each with a JSON line on stdout.

    It leads a session of its own: an interrupt from the terminal does not reach it, and `kill` ends it together with
    every process that it has started.

    Args:
        module: the name of the module to run.
        args: its command-line arguments.
        log: a file to append stderr to, and stdout if the process does not reply; by default a temporary file.
        has_replies: whether the process answers on stdout.
        env: its environment variables; by default those of this process.

    Raises:
        OSError: the process cannot be started, or the log cannot be opened.
    """

    def __init__(
        self,
        module: str,
        args: Sequence[str],
        *,
        log: Path | None = None,
        has_replies: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log.open("a+b") if log else tempfile.TemporaryFile()  # noqa: SIM115  closed in `kill`
        self._log_start, self._pending, self._is_over = self._log.seek(0, os.SEEK_END), b"", False
        try:
            self._popen = subprocess.Popen(  # noqa: S603  a module of this package
                [sys.executable, "-P", "-m", module, *args],  # -P: import nothing from the working folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if has_replies else self._log,
                stderr=self._log,
                env=env,
                start_new_session=True,
            )
        except OSError:
            self._log.close()
            raise
        self.pid = self._popen.pid
        assert self._popen.stdin  # noqa: S101  for mypy
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._stdin.fileno(), False)

    def send(self, value: object) -> int:
        """Queue a value as a JSON line, write without waiting, and return the bytes still queued.

        Raises:
            OSError: the process has closed its stdin.
        """
        self._pending += json.dumps(value).encode() + b"\n"
        self._flush()
        return len(self._pending)

    def _flush(self) -> bool:
        """Write what the process reads without waiting; return whether nothing is left to write."""
        with contextlib.suppress(BlockingIOError):
            while self._pending:
                self._pending = self._pending[os.write(self._stdin.fileno(), self._pending) :]
        return not self._pending

    def receive(self, deadline: Deadline) -> Any:
        """Return the next reply of the process; signals are handled during the wait.

        Raises:
            TimeoutError: the process does not reply before the deadline.
            EOFError: the process has closed its stdout.
        """
        assert self._stdout  # noqa: S101  for mypy
        while not select.select([self._stdout], [], [], min(deadline.remaining, SIGNAL_POLL_SECONDS))[0]:
            if deadline.is_expired:
                raise TimeoutError
        if not (line := self._stdout.readline()):
            raise EOFError
        return json.loads(line)

    def finish(self, deadline: Deadline) -> int:
        """Write what is queued, close stdin, wait for the end of the process and return its exit code.

        Raises:
            OSError: the process has closed its stdin before it has read everything.
            TimeoutError: the process does not end before the deadline.
        """
        deadline.wait_until(self._flush)
        self._stdin.close()
        try:
            code = self._popen.wait(max(0.01, deadline.remaining))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        self._is_over = True
        return code

    def describe_exit(self) -> str:
        """Return how the process ended and the last line of its log; kill it if it does not end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(EXIT_TIMEOUT)
        last_line = self._read_last_line()
        self.kill()
        code = self._popen.returncode
        outcome = f"was killed by {_format_signal(-code)}" if code < 0 else f"exited with code {code}"
        return f"its process {outcome}{f': {last_line}' if last_line else ''}"

    def kill(self) -> None:
        """Kill the process and all that it has started, unless `finish` has seen its end; close its streams."""
        if not self._is_over:
            self._is_over = True  # not twice: another process group may get the number
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
        for stream in filter(None, (self._stdin, self._stdout, self._log)):
            with contextlib.suppress(OSError):
                stream.close()

    def _read_last_line(self) -> str:
        if self._log.closed:
            return ""
        self._log.seek(max(self._log_start, self._log.seek(0, os.SEEK_END) - 4000))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip()[:_MAX_LINE_LENGTH] if lines else ""


def _format_signal(number: int) -> str:
    names = {item.value: item.name for item in signal.Signals}
    return names.get(number, f"signal {number}")  # a real-time signal has no name


# ------------------------------------------------------------------------------------------------ in the child process


def read_json_lines(stream: Iterable[str]) -> Iterator[Any]:
    """Yield the values of JSON lines; ignore a last line that is cut off."""
    for line in stream:
        if line.endswith("\n"):
            yield json.loads(line)


def write_json_line(stream: TextIO, value: object) -> None:
    """Write a value as a JSON line and flush it.

    Args:
        stream: a text stream.
        value: a value that JSON can represent.
    """
    stream.write(json.dumps(value) + "\n")
    stream.flush()
