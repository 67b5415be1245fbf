"""Run one tracker in a process of its own: ``python -m resnetkit.training.trackers.worker NAME FOLDER``.

The process reads JSON lines. The first one describes the run; each other is ``{"step": 12, "values": {"train/loss":
0.5}}``. The end of the input is the end of the run, even if training was killed. The process imports neither torch nor
training code, so that an error of a tracker's library stays here.

This module imports no torch.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from resnetkit.runtime.worker_process import read_json_lines

MetricValues = Mapping[str, float]


class Tracker(Protocol):
    """The interface of a tracker."""

    def log(self, step: int, values: MetricValues) -> None:
        """Record metrics.

        Args:
            step: the number of optimizer steps since the start of the run.
            values: name -> value.
        """

    def close(self) -> None:
        """Write everything to disk; the run may be resumed later."""


class _TensorBoard:
    """TensorBoard event files; a resumed run replaces the events of an earlier process from its first step on."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        self._add(run["step"] + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **fields: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **fields))

    def log(self, step: int, values: MetricValues) -> None:
        entries = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=self._summary(value=entries))

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run in a database in the run folder: ``mlflow ui --backend-store-uri sqlite:///.../mlflow.db``."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self._run_id = _read_or_create_id(folder / "id", lambda: self._create_run(folder, run))
        self._client.update_run(self._run_id, status="RUNNING")
        params = [Param(name, value[:500]) for name, value in run["settings"].items()]
        existing = self._client.get_run(self._run_id).data.params  # MLflow refuses to change a parameter
        self._client.log_batch(self._run_id, params=[param for param in params if param.key not in existing])

    def _create_run(self, folder: Path, run: Mapping[str, Any]) -> str:
        client, name = self._client, "resnetkit"
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, folder.as_uri())
        return str(client.create_run(experiment_id, run_name=run["name"]).info.run_id)

    def log(self, step: int, values: MetricValues) -> None:
        timestamp_ms = int(time.time() * 1000)
        entries = [self._metric(name, value, timestamp_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=entries)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class _WeightsAndBiases:
    """An offline run; ``wandb sync`` uploads it, and joins the parts before and after a resume."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        import wandb

        run_id = _read_or_create_id(folder / "id", lambda: uuid.uuid4().hex[:8])
        options = {"project": "resnetkit", "name": run["name"], "config": run["settings"], "dir": str(folder)}
        self._run = wandb.init(id=run_id, mode="offline", **options)

    def log(self, step: int, values: MetricValues) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WeightsAndBiases,
}


def _read_or_create_id(path: Path, create: Callable[[], str]) -> str:
    """Return the tracker's identifier of the run, which stays the same if the run is resumed."""
    if not path.exists():
        path.write_text(create(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def run_tracker(name: str, folder: str) -> None:
    """Send the lines of stdin to a tracker.

    Args:
        name: a key of `TRACKERS`.
        folder: the folder to write to.
    """
    lines = read_json_lines(sys.stdin)
    tracker = TRACKERS[name](Path(folder), next(lines))
    for line in lines:
        tracker.log(line["step"], line["values"])
    tracker.close()


if __name__ == "__main__":
    run_tracker(*sys.argv[1:])
