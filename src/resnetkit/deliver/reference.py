"""The network itself, by torch, as an engine: what every other one is measured by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.deliver.engine import Choice, Engine
from resnetkit.images.prepare import Pixels
from resnetkit.learn.device import Logits, Precision, answering, pick, resolve
from resnetkit.network.layers import Network

NAME, BATCH = "torch", 32


@dataclass(frozen=True)
class Reference:
    """`answering` as an engine. One thread computes, whoever asks: torch keeps a team of threads for each that does."""

    choice: Choice
    logits: Logits
    thread: ThreadPoolExecutor

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.thread.submit(self.logits, torch.from_numpy(pixels)).result().numpy()
        return found


@contextlib.contextmanager
def reference(
    network: Network,
    device: str = "auto",
    precision: Precision = "fp32",
    batch: int = BATCH,
    ask: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Reference]:
    """The engine of a network, for as long as the body runs. ``ask`` is another question than for its answer."""
    place = pick(device)
    low = resolve(precision, place)
    with answering(network, place, low, ask) as logits, ThreadPoolExecutor(1) as thread:
        yield Reference(Choice(NAME, low, batch, 1, place.type), logits, thread)


@contextlib.contextmanager
def of_tensors(engine: Engine) -> Iterator[Logits]:
    """An engine as evaluation asks: tensors in and out, any number of pictures at once, on all streams."""
    batch = engine.choice.batch
    with ThreadPoolExecutor(engine.choice.streams) as pool:

        def logits(pixels: Tensor) -> Tensor:
            parts = [pixels[i : i + batch].numpy() for i in range(0, len(pixels), batch)]
            return torch.from_numpy(np.concatenate(list(pool.map(engine, parts))))

        yield logits
