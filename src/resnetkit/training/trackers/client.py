"""Send metrics to trackers (TensorBoard, MLflow, Weights & Biases), each in a process of its own.

A tracker that is slow, hangs, fails or is killed costs the run one warning and nothing else. It writes only into
``RUN/trackers/NAME``, which is also its home folder, and it cannot reach a network.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from resnetkit.errors import ResnetkitWarning, missing_extra_error
from resnetkit.runtime.deadline import Deadline
from resnetkit.runtime.worker_process import WorkerProcess
from resnetkit.serialization import to_data
from resnetkit.training.events import EpochMetrics, EventCallback, PreparedRun, StepMetrics
from resnetkit.training.overrides import flatten_settings

TRACKERS_FOLDER = "trackers"
WORKER_MODULE = "resnetkit.training.trackers.worker"
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
MAX_PENDING_BYTES = 2**22  # metrics that a tracker has not read yet
CLOSE_TIMEOUT = 60.0  # seconds that a tracker has to write the last metrics
INTERRUPTED_CLOSE_TIMEOUT = 15.0  # the same after Ctrl-C, when the user waits
_DEAD_PROXY = "http://127.0.0.1:9"  # the discard port, on which no proxy listens
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
HOME_VARIABLES = (
    "HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_DIR",
    "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
)  # fmt: skip
_REMOVED_PREFIXES = ("WANDB_", "MLFLOW_", "TENSORBOARD_")  # variables that could name a server


def check_trackers_installed(names: tuple[str, ...]) -> None:
    """Check that the packages of the trackers are installed; else raise `MachineError`."""
    for name in names:
        missing = next((package for package in PACKAGES[name] if importlib.util.find_spec(package) is None), None)
        if missing:
            raise missing_extra_error(missing, name)


@contextlib.contextmanager
def track(prepared_run: PreparedRun, names: Sequence[str]) -> Iterator[EventCallback]:
    """Start trackers of a run, yield a callback that sends them events, and close them.

    Args:
        prepared_run: the run.
        names: the names of the trackers.
    """
    step = prepared_run.checkpoint.state.global_step if prepared_run.checkpoint else 0
    trackers, timeout = [_TrackerProcess(name, prepared_run, step) for name in names], CLOSE_TIMEOUT

    def send_event(event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        nonlocal step
        if isinstance(event, PreparedRun):
            return
        step += isinstance(event, StepMetrics)
        for tracker in trackers:
            tracker.send({"step": step, "values": _extract_metrics(event)})

    try:
        yield send_event
    except KeyboardInterrupt:
        timeout = INTERRUPTED_CLOSE_TIMEOUT
        raise
    finally:
        _close_all(trackers, Deadline(timeout))


def _close_all(trackers: list[_TrackerProcess], deadline: Deadline) -> None:
    try:
        for tracker in trackers:
            tracker.finish(deadline)
    finally:
        for tracker in trackers:
            tracker.kill()


def _extract_metrics(event: StepMetrics | EpochMetrics) -> dict[str, float]:
    if isinstance(event, StepMetrics):
        return {f"train/{name}": getattr(event, name) for name in ("loss", "accuracy", "lr", "images_per_second")}
    return {"epoch": event.epoch, "val/loss": event.val_loss, "val/accuracy": event.val_accuracy}


class _TrackerProcess:
    """The process of one tracker; its failure is one warning, and `send` neither raises nor waits for it."""

    def __init__(self, name: str, prepared_run: PreparedRun, global_step: int) -> None:
        self.name, self.process = name, None
        folder = (prepared_run.out / TRACKERS_FOLDER / name).absolute()
        settings = flatten_settings(to_data(prepared_run.recipe))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            args, log = [name, str(folder)], folder / "log.txt"
            self.process = WorkerProcess(WORKER_MODULE, args, log=log, env=build_environment(folder))
        except OSError as error:
            self._give_up(f"its process could not be started: {error}")
        self.send({"name": prepared_run.out.absolute().name, "settings": settings, "step": global_step})

    def send(self, value: object) -> None:
        """Queue a value; a tracker that does not read is given up."""
        if self.process is None:
            return
        try:
            if self.process.send(value) > MAX_PENDING_BYTES:
                self._give_up("its process does not read the metrics")
        except OSError:
            self._give_up(self.process.describe_exit())

    def finish(self, deadline: Deadline) -> None:
        """Send what is queued and wait for the end of the process."""
        if self.process is None:
            return
        try:
            if self.process.finish(deadline):
                self._give_up(self.process.describe_exit())
        except TimeoutError:
            self._give_up("its process did not end in time")
        except OSError:
            self._give_up(self.process.describe_exit())

    def kill(self) -> None:
        """Kill the process unless it has ended."""
        if self.process:
            self.process.kill()

    def _give_up(self, reason: str) -> None:
        """Kill the process and warn once."""
        self.kill()
        self.process = None
        message = f"the tracker {self.name} stopped: {reason}; the run continues, and metrics.jsonl is complete"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)


def build_environment(home: Path) -> dict[str, str]:
    """Return this process's environment with every folder redirected and every server removed.

    Args:
        home: the folder of the tracker.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_REMOVED_PREFIXES)}
    python_path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**inherited, **dict.fromkeys(HOME_VARIABLES, str(home)), **_FIXED_VARIABLES, "PYTHONPATH": python_path}
