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

from resnetkit.engines.base import KINDS, Choice, Engine, whole
from resnetkit.errors import ResnetkitError
from resnetkit.images.prepare import Pixels

_LEAST_CALLS = 3  # in every measurement, however slow the engine is


class Answering:
    """What can be asked of the process, one method for each request. ``folder`` is a model folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: Engine | None = None

    def make(self, engine: str, precision: str, artefact: str, pixels: str | None) -> None:
        """The artefact of an engine, from the weights; ``pixels`` is a file that `numpy.save` wrote."""
        from resnetkit.weights.load import load

        given = None if pixels is None else np.load(pixels)
        Path(artefact).mkdir(parents=True)
        KINDS[engine].backend().make(load(self.folder), Path(artefact), precision, given)

    def open(self, artefact: str, choice: dict[str, Any], pixels: str) -> None:
        """The engine, which has then answered once."""
        made = Choice(**choice)
        self.engine = KINDS[made.engine].backend().open(self.folder, Path(artefact), made)
        self.engine(np.load(pixels, mmap_mode="r")[: made.batch])

    def answer(self, pixels: str, count: int, out: str) -> None:
        """The logits of the first ``count`` pictures of a file, into another one."""
        with whole(self._engine()) as logits:
            np.save(out, logits(np.load(pixels, mmap_mode="r")[:count]))

    def time(self, pixels: str, seconds: float) -> dict[str, float]:
        """Pictures per second, and the milliseconds of one call (the median)."""
        return timed(self._engine(), np.load(pixels), seconds)

    def _engine(self) -> Engine:
        if self.engine is None:
            raise ResnetkitError("nothing was opened")
        return self.engine


def timed(engine: Engine, pixels: Pixels, seconds: float) -> dict[str, float]:
    """Full batches for so many seconds, by as many threads as the engine has streams; each has asked once before."""
    batch, streams = engine.choice.batch, engine.choice.streams
    enough = np.concatenate([pixels] * -(-2 * batch // len(pixels)))  # two different batches at least
    starts = range(0, len(enough) - batch + 1, batch)
    ready = threading.Barrier(streams)

    def ask() -> list[tuple[float, float]]:
        """When each call began and ended."""
        calls: list[tuple[float, float]] = []
        engine(enough[:batch])
        ready.wait()
        until = time.perf_counter() + seconds
        for start in cycle(starts):
            begun = time.perf_counter()
            if len(calls) >= _LEAST_CALLS and begun > until:
                return calls
            engine(enough[start : start + batch])
            calls.append((begun, time.perf_counter()))
        return calls

    with ThreadPoolExecutor(streams) as pool:
        each = [one.result() for one in [pool.submit(ask) for _ in range(streams)]]
    speed = sum(len(calls) * batch / (calls[-1][1] - calls[0][0]) for calls in each)  # none waits for another's end
    milliseconds = 1000 * statistics.median(end - begun for calls in each for begun, end in calls)
    return {"images_per_second": speed, "milliseconds": milliseconds}


def main(folder: str) -> None:
    """Answer until the input ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answering, requests = Answering(Path(folder)), queue.SimpleQueue[str]()
    threading.Thread(target=_listen, args=[requests], daemon=True).start()
    while True:
        _tell(told, _answered(answering, json.loads(requests.get())))


def _listen(requests: queue.SimpleQueue[str]) -> None:
    """Whoever asks may be killed while an engine works, or hangs: then nobody waits for it."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _answered(answering: Answering, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"found": getattr(answering, request.pop("do"))(**request)}
    except ResnetkitError as error:
        return {"why": ": ".join(filter(None, (error.what, error.fix)))}
    except Exception as error:  # noqa: BLE001  libraries raise whatever they like, and it is a reason all the same
        return {"why": _first_line(f"{type(error).__name__}: {error}")}


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "it failed and does not say why"


def _tell(stream: TextIO, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
