"""An engine in a process of its own: ``python -m resnetkit.optimization.worker FOLDER``.

torch, OpenVINO and ONNX Runtime bring a team of threads each, which would fight for the cores in one process, and a
library that crashes takes nothing along. Requests come as JSON, a line each, and are answered likewise; whatever
libraries print goes to stderr. The end of the input is the end, whatever the process does at that time.

This module imports no torch.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from resnetkit.engines.base import ENGINE_SPECS, Engine, EngineConfig, batch_calls
from resnetkit.errors import ResnetkitError
from resnetkit.images.prepare import Pixels

_MIN_CALLS = 3  # in every measurement, however slow the engine is


class BenchmarkWorker:
    """What can be asked of the process, one method for each request. ``folder`` is a model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine | None = None

    def export(self, engine: str, precision: str, artifact: str, pixels: str | None) -> None:
        """The artefact of an engine, from the weights; ``pixels`` is a file that `numpy.save` wrote."""
        from resnetkit.weights.load import load_network

        calibration = None if pixels is None else np.load(pixels)
        Path(artifact).mkdir(parents=True)
        ENGINE_SPECS[engine].import_backend().export_artifact(
            load_network(self.folder), Path(artifact), precision, calibration
        )

    def load(self, artifact: str, config: dict[str, Any], pixels: str) -> None:
        """The engine, which has then answered once."""
        engine_config = EngineConfig(**config)
        self.engine = (
            ENGINE_SPECS[engine_config.engine].import_backend().load_engine(self.folder, Path(artifact), engine_config)
        )
        self.engine(np.load(pixels, mmap_mode="r")[: engine_config.batch_size])

    def infer(self, pixels: str, n_images: int, out: str) -> None:
        """The logits of the first ``count`` pictures of a file, into another one."""
        with batch_calls(self._get_engine()) as infer:
            np.save(out, infer(np.load(pixels, mmap_mode="r")[:n_images]))

    def measure(self, pixels: str, seconds: float) -> dict[str, float]:
        """Pictures per second, and the milliseconds of one call (the median)."""
        return measure_speed(self._get_engine(), np.load(pixels), seconds)

    def _get_engine(self) -> Engine:
        if self.engine is None:
            raise ResnetkitError("nothing was opened")
        return self.engine


def measure_speed(engine: Engine, pixels: Pixels, seconds: float) -> dict[str, float]:
    """Full batches for so many seconds, by as many threads as the engine has streams; each has asked once before."""
    batch_size, streams = engine.config.batch_size, engine.config.streams
    tiled = np.concatenate([pixels] * -(-2 * batch_size // len(pixels)))  # two different batches at least
    starts = range(0, len(tiled) - batch_size + 1, batch_size)
    barrier = threading.Barrier(streams)

    def run_stream() -> list[tuple[float, float]]:
        """When each call began and ended."""
        calls: list[tuple[float, float]] = []
        engine(tiled[:batch_size])
        barrier.wait()
        deadline = time.perf_counter() + seconds
        for start in cycle(starts):
            started = time.perf_counter()
            if len(calls) >= _MIN_CALLS and started > deadline:
                return calls
            engine(tiled[start : start + batch_size])
            calls.append((started, time.perf_counter()))
        return calls

    with ThreadPoolExecutor(streams) as pool:
        calls_per_stream = [future.result() for future in [pool.submit(run_stream) for _ in range(streams)]]
    speed = sum(
        len(calls) * batch_size / (calls[-1][1] - calls[0][0]) for calls in calls_per_stream
    )  # none waits for another's end
    milliseconds = 1000 * statistics.median(ended - started for calls in calls_per_stream for started, ended in calls)
    return {"images_per_second": speed, "milliseconds": milliseconds}


def main(folder: str) -> None:
    """Answer until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker, requests = BenchmarkWorker(Path(folder)), queue.SimpleQueue[str]()
    threading.Thread(target=_read_requests, args=[requests], daemon=True).start()
    while True:
        _send_reply(replies, _handle_request(worker, json.loads(requests.get())))


def _read_requests(requests: queue.SimpleQueue[str]) -> None:
    """Whoever asks may be killed while an engine works, or hangs: then nobody waits for it."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _handle_request(worker: BenchmarkWorker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"found": getattr(worker, request.pop("do"))(**request)}
    except ResnetkitError as error:
        return {"why": ": ".join(filter(None, (error.what, error.fix)))}
    except Exception as error:  # noqa: BLE001  libraries raise whatever they like, and it is a reason all the same
        return {"why": _get_first_line(f"{type(error).__name__}: {error}")}


def _get_first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it failed and does not say why"


def _send_reply(stream: TextIO, reply: dict[str, Any]) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
