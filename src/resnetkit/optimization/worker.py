"""Run one engine in a process of its own: ``python -m resnetkit.optimization.worker FOLDER``.

torch, OpenVINO and ONNX Runtime each start a thread pool. In one process these would compete for the cores, and a crash
of one library would end the search. Requests and replies are JSON lines; all that libraries print goes to stderr. The
process ends with its input, even if an engine is running.

This module imports no torch.
"""

from __future__ import annotations

import os
import queue
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.engines.base import ENGINE_SPECS, Engine, EngineConfig, batch_calls
from resnetkit.errors import ResnetkitError
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.worker_process import read_json_lines, write_json_line

_MIN_CALLS = 3  # in every measurement, even if the engine is slow


class BenchmarkWorker:
    """The requests that the process serves, one method for each.

    Args:
        folder: the model folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine  # of the last `load`

    def export(self, engine: str, precision: str, artifact: str, pixels: str | None) -> None:
        """Export the artifact of an engine from the weights.

        Args:
            engine: the name of the engine.
            precision: its precision.
            artifact: the folder to create.
            pixels: a file with calibration images as `numpy.save` writes it, or None.
        """
        from resnetkit.weights.load import load_network

        calibration = None if pixels is None else np.load(pixels)
        Path(artifact).mkdir(parents=True)
        ENGINE_SPECS[engine].import_backend().export_artifact(
            load_network(self.folder), Path(artifact), precision, calibration
        )

    def load(self, artifact: str, config: dict[str, Any], pixels: str) -> None:
        """Load an engine and run it once.

        Args:
            artifact: the folder of its artifact.
            config: the fields of an `EngineConfig`.
            pixels: a file with at least one image.
        """
        engine_config = EngineConfig(**config)
        spec = ENGINE_SPECS[engine_config.engine]
        contents = {name: Path(artifact, name).read_bytes() for name in spec.files}
        self.engine = spec.import_backend().load_engine(self.folder, contents, engine_config)
        self.engine(np.load(pixels, mmap_mode="r")[: engine_config.batch_size])

    def infer(self, pixels: str, n_images: int, out: str) -> None:
        """Write the logits of the first images of a file.

        Args:
            pixels: the file with the images.
            n_images: the number of images.
            out: the file to write, in the format of `numpy.save`.
        """
        with batch_calls(self.engine) as infer:
            np.save(out, infer(np.load(pixels, mmap_mode="r")[:n_images]))

    def measure(self, pixels: str, seconds: float) -> dict[str, float]:
        """Measure throughput (images/s) and the median latency of a call (milliseconds).

        Args:
            pixels: a file with images.
            seconds: the duration of the measurement.
        """
        return measure_speed(self.engine, np.load(pixels), seconds)


def measure_speed(engine: Engine, pixels: Pixels, seconds: float) -> dict[str, float]:
    """Run full batches on as many threads as the engine has streams, after one warm-up call on each.

    Args:
        engine: the engine.
        pixels: images, (N, H, W, C), 8 bits; they are repeated to fill at least two batches.
        seconds: the duration of the measurement; every thread makes at least 3 calls.

    Returns:
        ``images_per_second``, and ``milliseconds``: the median latency of a call.
    """
    batch_size, streams = engine.config.batch_size, engine.config.streams
    tiled = np.concatenate([pixels] * -(-2 * batch_size // len(pixels)))
    starts = range(0, len(tiled) - batch_size + 1, batch_size)
    barrier = threading.Barrier(streams)

    def run_stream() -> list[tuple[float, float]]:
        """Return the start and end of each call."""
        calls: list[tuple[float, float]] = []
        engine(tiled[:batch_size])
        barrier.wait()
        deadline = time.perf_counter() + seconds
        for start in cycle(starts):
            started = time.perf_counter()
            if len(calls) >= _MIN_CALLS and started > deadline:
                break
            engine(tiled[start : start + batch_size])
            calls.append((started, time.perf_counter()))
        return calls

    with ThreadPoolExecutor(streams) as pool:
        calls_per_stream = [future.result() for future in [pool.submit(run_stream) for _ in range(streams)]]
    # Each stream counts over its own duration, as the streams end at different times.
    speed = sum(len(calls) * batch_size / (calls[-1][1] - calls[0][0]) for calls in calls_per_stream)
    milliseconds = 1000 * statistics.median(ended - started for calls in calls_per_stream for started, ended in calls)
    return {"images_per_second": speed, "milliseconds": milliseconds}


def main(folder: str) -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout must not mix with the replies
    worker, requests = BenchmarkWorker(Path(folder)), queue.SimpleQueue[dict[str, Any]]()
    threading.Thread(target=_read_requests, args=[requests], daemon=True).start()
    while True:
        write_json_line(replies, _handle_request(worker, requests.get()))


def _read_requests(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Queue requests, and end the process with its input: if the client was killed, no engine may go on."""
    for request in read_json_lines(sys.stdin):
        requests.put(request)
    os._exit(0)


def _handle_request(worker: BenchmarkWorker, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": getattr(worker, request["method"])(**request["arguments"])}
    except ResnetkitError as error:
        return {"error": ": ".join(filter(None, (error.what, error.fix)))}
    except Exception as error:  # noqa: BLE001  libraries raise any type, and each means that the engine is unusable
        return {"error": f"{type(error).__name__}: {error}".strip().partition("\n")[0].strip()[:300]}


if __name__ == "__main__":
    main(*sys.argv[1:])
