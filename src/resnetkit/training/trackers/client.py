"""Trackers beside ``metrics.jsonl``: each in a process of its own, so that none can hurt a run.

A tracker that is slow, hangs, fails or is killed costs the run nothing but one warning. Each writes into
``RUN/trackers/NAME`` alone, which is its home, too, and none may reach a network.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from resnetkit.errors import ResnetkitWarning, missing_extra_error
from resnetkit.serialization import to_data
from resnetkit.training.events import EpochMetrics, EventCallback, PreparedRun, StepMetrics
from resnetkit.training.overrides import flatten_settings

TRACKERS_FOLDER = "trackers"
_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
_MAX_PENDING_BYTES = 2**22  # bytes for a tracker that does not read
_CLOSE_TIMEOUT, _INTERRUPTED_CLOSE_TIMEOUT = (
    60.0,
    15.0,
)  # seconds for the last lines: ordinarily, and for a person who waits
_DEAD_PROXY = "http://127.0.0.1:9"  # where no proxy is
_FIXED_VARIABLES = {
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_STATS": "true",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), _DEAD_PROXY),
}
_HOME_VARIABLES = (
    "HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_DIR",
    "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
)  # fmt: skip
_REMOVED_PREFIXES = ("WANDB_", "MLFLOW_", "TENSORBOARD_")  # variables of the user's that could send a run elsewhere


def check_trackers_installed(names: tuple[str, ...]) -> None:
    """Raise `MachineError` with the command that installs it where the extra of a tracker is missing."""
    for name in names:
        missing = next((package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None), None)
        if missing:
            raise missing_extra_error(missing, name)


@contextlib.contextmanager
def track(prepared_run: PreparedRun, global_step: int) -> Iterator[EventCallback]:
    """Something that watches a run, ``steps`` of which have been made, and tells its trackers; they end with it."""
    processes = [_TrackerProcess(name, prepared_run, global_step) for name in prepared_run.recipe.trackers]
    timeout = _CLOSE_TIMEOUT
    try:
        yield _EventForwarder(processes, global_step)
    except KeyboardInterrupt:
        timeout = _INTERRUPTED_CLOSE_TIMEOUT
        raise
    finally:
        _close_processes(processes, timeout)


def _close_processes(processes: list[_TrackerProcess], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.finish(deadline)
    finally:
        for process in processes:
            process.kill()


class _EventForwarder:
    """From events to (step of the run, names and values)."""

    def __init__(self, processes: list[_TrackerProcess], global_step: int) -> None:
        self.processes, self.global_step = processes, global_step

    def __call__(self, event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        if isinstance(event, PreparedRun):
            return
        if isinstance(event, StepMetrics):
            self.global_step += 1
        line = json.dumps({"step": self.global_step, "values": _extract_metrics(event)})
        for process in self.processes:
            process.send_line(line)


def _extract_metrics(event: StepMetrics | EpochMetrics) -> dict[str, float]:
    if isinstance(event, StepMetrics):
        metrics = {
            "loss": event.loss,
            "accuracy": event.accuracy,
            "lr": event.lr,
            "images_per_second": event.images_per_second,
        }
        return {f"train/{name}": value for name, value in metrics.items()}
    return {"epoch": event.epoch, "val/loss": event.val_loss, "val/accuracy": event.val_accuracy}


class _TrackerProcess:
    """One tracker's process. Whatever happens to it, ``tell`` neither raises nor waits."""

    def __init__(self, name: str, prepared_run: PreparedRun, global_step: int) -> None:
        self.name, self.pending, self.has_failed = name, b"", False
        self.folder = (prepared_run.out / TRACKERS_FOLDER / name).absolute()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.process = self._spawn()
        except OSError as error:
            self._give_up(f"it cannot be started: {error}")
        header = {
            "name": prepared_run.out.absolute().name,
            "settings": flatten_settings(to_data(prepared_run.recipe)),
            "step": global_step,
        }
        self.send_line(json.dumps(header))

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "resnetkit.training.trackers.worker", self.name, str(self.folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=_build_environment(self.folder), start_new_session=True,
            )  # fmt: skip
        assert process.stdin  # noqa: S101 - for mypy
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def send_line(self, line: str) -> None:
        """Now, or with a later line if it does not read."""
        if self.has_failed:
            return
        self.pending += line.encode() + b"\n"
        self._flush()
        if len(self.pending) > _MAX_PENDING_BYTES:
            self._give_up("it does not read what it is told")

    def _flush(self) -> None:
        """As much as it takes without waiting."""
        assert self.process and self.process.stdin  # noqa: S101 - for mypy
        try:
            while self.pending:
                self.pending = self.pending[os.write(self.process.stdin.fileno(), self.pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._give_up(self._read_last_log_line())

    def finish(self, deadline: float) -> None:
        """The last lines, and its end."""
        while not self.has_failed and self.pending and time.monotonic() < deadline:
            time.sleep(0.02)
            self._flush()
        if self.has_failed or not self.process or not self.process.stdin:
            return
        self.process.stdin.close()
        try:
            code = self.process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._give_up("it does not come to its end")
        else:
            if code:
                self._give_up(self._read_last_log_line())

    def kill(self) -> None:
        """With whatever it started; one that has ended has nothing left."""
        if self.process:
            if self.process.stdin:
                self.process.stdin.close()
            if self.process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _read_last_log_line(self) -> str:
        try:
            lines = (self.folder / "log.txt").read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it ended"

    def _give_up(self, reason: str) -> None:
        """One warning, and it is left alone."""
        self.has_failed, self.pending = True, b""
        message = f"the tracker {self.name} is left alone, as {reason}; metrics.jsonl has everything"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)


def _build_environment(home: Path) -> dict[str, str]:
    """The user's, with everything that would lead out of a folder turned into it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_REMOVED_PREFIXES)}
    python_path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**inherited, **dict.fromkeys(_HOME_VARIABLES, str(home)), **_FIXED_VARIABLES, "PYTHONPATH": python_path}
