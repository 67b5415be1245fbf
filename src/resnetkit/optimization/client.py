"""The client of `resnetkit.optimization.worker`, which runs an engine in a process of its own.

A crash of the engine ends only that process.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.engines.base import EngineConfig, Logits
from resnetkit.runtime.deadline import Deadline
from resnetkit.runtime.worker_process import WorkerProcess

WORKER_MODULE = "resnetkit.optimization.worker"


class BenchmarkError(Exception):
    """A request failed; the text is the reason."""


class BenchmarkClient:
    """A process that exports, loads, runs and measures the engines of a model folder.

    Every request raises `BenchmarkError` if it fails. A request that exceeds its timeout also ends the process.

    Args:
        folder: the model folder.
        work_dir: a folder for artifacts and logits.
    """

    def __init__(self, folder: Path, work_dir: Path) -> None:
        self._work_dir, self._started = work_dir, time.perf_counter()
        self.process = WorkerProcess(WORKER_MODULE, [str(folder)], has_replies=True)

    def export(self, config: EngineConfig, pixels: Path | None, timeout: float) -> None:
        """Export the artifact of an engine into the work folder.

        Args:
            config: the engine and its precision.
            pixels: a file with calibration images as `numpy.save` writes it; None if the engine needs no calibration.
            timeout: seconds.
        """
        fields = {"engine": config.engine, "precision": config.precision, "artifact": str(self._work_dir / config.name)}
        self._request("export", timeout, pixels=pixels and str(pixels), **fields)

    def load(self, config: EngineConfig, pixels: Path, timeout: float) -> float:
        """Load an engine, run it once, and return the seconds since the process was started.

        Args:
            config: the engine.
            pixels: a file with at least one image.
            timeout: seconds.
        """
        artifact = str(self._work_dir / config.name)
        self._request("load", timeout, artifact=artifact, config=asdict(config), pixels=str(pixels))
        return time.perf_counter() - self._started

    def infer(self, pixels: Path, n_images: int, timeout: float) -> Logits:
        """Return the logits of the first images of a file.

        Args:
            pixels: the file.
            n_images: the number of images.
            timeout: seconds.
        """
        out = self._work_dir / "logits.npy"
        self._request("infer", timeout, pixels=str(pixels), n_images=n_images, out=str(out))
        logits: Logits = np.load(out)
        out.unlink()
        return logits

    def measure(self, pixels: Path, seconds: float, timeout: float) -> tuple[float, float]:
        """Return (throughput in images/s, median latency of a call in milliseconds).

        Args:
            pixels: a file with images.
            seconds: the duration of the measurement.
            timeout: seconds.
        """
        result = self._request("measure", timeout, pixels=str(pixels), seconds=seconds)
        return result["images_per_second"], result["milliseconds"]

    def close(self) -> None:
        """End the process and everything that it has started."""
        self.process.kill()

    def _request(self, method: str, timeout: float, **arguments: Any) -> Any:
        """Call a method of the worker and return its result."""
        try:
            self.process.send({"method": method, "arguments": arguments})
            reply = self.process.receive(Deadline(timeout))
        except TimeoutError:
            self.process.kill()  # otherwise the late reply would be taken for that of the next request
            raise BenchmarkError(f"{method} did not finish within {timeout:g} seconds") from None
        except (OSError, EOFError, ValueError):  # ValueError: an earlier request has closed the streams
            raise BenchmarkError(self.process.describe_exit()) from None
        if "error" in reply:
            raise BenchmarkError(reply["error"])
        return reply["result"]


@contextlib.contextmanager
def open_benchmark_client(folder: Path, work_dir: Path) -> Iterator[BenchmarkClient]:
    """Start a `BenchmarkClient` for the duration of the body.

    Args:
        folder: the model folder.
        work_dir: a folder for artifacts and logits.

    Raises:
        BenchmarkError: the process cannot be started.
    """
    try:
        client = BenchmarkClient(folder, work_dir)
    except OSError as error:
        raise BenchmarkError(f"the process could not be started: {error.strerror}") from None
    with contextlib.closing(client):
        yield client
