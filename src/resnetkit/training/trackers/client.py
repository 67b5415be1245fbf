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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resnetkit.errors import ResnetkitWarning, extra_missing
from resnetkit.serialization import to_data
from resnetkit.training.recipe import Recipe
from resnetkit.training.run_folder import Epoch, Prepared, Step, Watch

FOLDER = "trackers"
_NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}
_MOST_WAITING = 2**22  # bytes for a tracker that does not read
_PATIENCE, _SHORT_PATIENCE = 60.0, 15.0  # seconds for the last lines: ordinarily, and for a person who waits
_NOWHERE = "http://127.0.0.1:9"  # where no proxy is
_SETTINGS = {
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
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), _NOWHERE),
}
_HOMES = (
    "HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "WANDB_DIR",
    "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
)  # fmt: skip
_STRANGE = ("WANDB_", "MLFLOW_", "TENSORBOARD_")  # variables of the user's that could send a run elsewhere


def require(names: tuple[str, ...]) -> None:
    """Raise `MachineError` with the command that installs it where the extra of a tracker is missing."""
    for name in names:
        lacking = next((package for package in _NEEDS[name] if importlib.util.find_spec(package) is None), None)
        if lacking:
            raise extra_missing(lacking, name)


@contextlib.contextmanager
def tracking(prepared: Prepared, steps: int) -> Iterator[Watch]:
    """Something that watches a run, ``steps`` of which have been made, and tells its trackers; they end with it."""
    followers = [_Follower(name, prepared, steps) for name in prepared.recipe.trackers]
    patience = _PATIENCE
    try:
        yield _Teller(followers, steps)
    except KeyboardInterrupt:
        patience = _SHORT_PATIENCE
        raise
    finally:
        _close(followers, patience)


def _close(followers: list[_Follower], patience: float) -> None:
    deadline = time.monotonic() + patience
    try:
        for follower in followers:
            follower.finish(deadline)
    finally:
        for follower in followers:
            follower.kill()


class _Teller:
    """From events to (step of the run, names and values)."""

    def __init__(self, followers: list[_Follower], steps: int) -> None:
        self.followers, self.steps = followers, steps

    def __call__(self, event: Prepared | Step | Epoch) -> None:
        if isinstance(event, Prepared):
            return
        if isinstance(event, Step):
            self.steps += 1
        line = json.dumps({"step": self.steps, "values": _values(event)})
        for follower in self.followers:
            follower.tell(line)


def _values(event: Step | Epoch) -> dict[str, float]:
    if isinstance(event, Step):
        told = {
            "loss": event.loss,
            "accuracy": event.accuracy,
            "lr": event.lr,
            "images_per_second": event.images_per_second,
        }
        return {f"train/{name}": value for name, value in told.items()}
    return {"epoch": event.epoch, "val/loss": event.val_loss, "val/accuracy": event.val_accuracy}


class _Follower:
    """One tracker's process. Whatever happens to it, ``tell`` neither raises nor waits."""

    def __init__(self, name: str, prepared: Prepared, steps: int) -> None:
        self.name, self.waiting, self.lost = name, b"", False
        self.folder = (prepared.out / FOLDER / name).absolute()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.process = self._begun()
        except OSError as error:
            self._lose(f"it cannot be started: {error}")
        run = {"name": prepared.out.absolute().name, "settings": _settings(prepared.recipe), "step": steps}
        self.tell(json.dumps(run))

    def _begun(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "resnetkit.training.trackers.worker", self.name, str(self.folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=_environment(self.folder), start_new_session=True,
            )  # fmt: skip
        assert process.stdin  # noqa: S101 - for mypy
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def tell(self, line: str) -> None:
        """Now, or with a later line if it does not read."""
        if self.lost:
            return
        self.waiting += line.encode() + b"\n"
        self._send()
        if len(self.waiting) > _MOST_WAITING:
            self._lose("it does not read what it is told")

    def _send(self) -> None:
        """As much as it takes without waiting."""
        assert self.process and self.process.stdin  # noqa: S101 - for mypy
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.process.stdin.fileno(), self.waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self._lose(self._last_words())

    def finish(self, deadline: float) -> None:
        """The last lines, and its end."""
        while not self.lost and self.waiting and time.monotonic() < deadline:
            time.sleep(0.02)
            self._send()
        if self.lost or not self.process or not self.process.stdin:
            return
        self.process.stdin.close()
        try:
            code = self.process.wait(max(0.01, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._lose("it does not come to its end")
        else:
            if code:
                self._lose(self._last_words())

    def kill(self) -> None:
        """With whatever it started; one that has ended has nothing left."""
        if self.process:
            if self.process.stdin:
                self.process.stdin.close()
            if self.process.poll() is None:
                with contextlib.suppress(OSError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "log.txt").read_text("utf-8", "replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300] if lines else "it ended"

    def _lose(self, why: str) -> None:
        """One warning, and it is left alone."""
        self.lost, self.waiting = True, b""
        told = f"the tracker {self.name} is left alone, as {why}; metrics.jsonl has everything"
        warnings.warn(told, ResnetkitWarning, stacklevel=2)


def _environment(home: Path) -> dict[str, str]:
    """The user's, with everything that would lead out of a folder turned into it."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(_STRANGE)}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**theirs, **dict.fromkeys(_HOMES, str(home)), **_SETTINGS, "PYTHONPATH": path}


def _settings(recipe: Recipe) -> dict[str, str]:
    return dict(_flat(to_data(recipe)))


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value)
