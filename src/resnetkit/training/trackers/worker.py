"""A tracker's own process: ``python -m resnetkit.training.trackers.worker NAME FOLDER`` reads JSON lines, hands them on.

The first line is what the run is, each other one ``{"step": 12, "values": {"train/loss": 0.5}}``; the end of the input
is the end of the run, also where training was killed. No torch, and nothing of training: whatever a tracker's library
does, hangs or breaks, it does here.

This module imports no torch.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

MetricValues = Mapping[str, float]


class Tracker(Protocol):
    """What a library is asked for."""

    def log(self, step: int, values: MetricValues) -> None:
        """Numbers after a step of the run."""

    def close(self) -> None:
        """Everything is written; the run may go on later."""


class TensorBoard:
    """Files of events; what an earlier process wrote of steps from ``step`` on is replaced."""

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


class MLflow:
    """A run in a database in the run folder: ``mlflow ui --backend-store-uri sqlite:///.../mlflow.db``."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self._run_id = _read_or_create_id(folder / "id", lambda: self._create_run(folder, run))
        self._client.update_run(self._run_id, status="RUNNING")
        params = [Param(name, value[:500]) for name, value in run["settings"].items()]
        existing = self._client.get_run(self._run_id).data.params  # one that is there cannot be changed
        self._client.log_batch(self._run_id, params=[param for param in params if param.key not in existing])

    def _create_run(self, folder: Path, run: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name("resnetkit")
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment("resnetkit", folder.as_uri())
        )
        return str(self._client.create_run(experiment_id, run_name=run["name"]).info.run_id)

    def log(self, step: int, values: MetricValues) -> None:
        timestamp_ms = int(time.time() * 1000)
        entries = [self._metric(name, value, timestamp_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=entries)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class WeightsAndBiases:
    """A run in offline mode; ``wandb sync`` sends it, and joins what was written before and after it was resumed."""

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
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _read_or_create_id(path: Path, create: Callable[[], str]) -> str:
    """What a tracker calls the run, which is the same when the run is resumed."""
    if not path.exists():
        path.write_text(create(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _read_lines() -> Iterator[Any]:
    """What comes in; a line that was cut off with its writer is the end."""
    for line in sys.stdin:
        if line.endswith("\n"):
            yield json.loads(line)


def run_tracker(name: str, folder: str) -> None:
    """Until the input ends."""
    lines = _read_lines()
    tracker = TRACKERS[name](Path(folder), next(lines))
    for line in lines:
        tracker.log(line["step"], line["values"])
    tracker.close()


if __name__ == "__main__":
    run_tracker(*sys.argv[1:])
