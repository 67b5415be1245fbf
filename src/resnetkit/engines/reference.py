"""The network itself, by torch, as an engine: what every other one is measured by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.engines.base import Choice, Engine, whole
from resnetkit.images.prepare import Pixels
from resnetkit.network.layers import Network
from resnetkit.runtime.device import Logits, Precision, answering, pick, resolve

NAME = "torch"


@dataclass(frozen=True)
class Reference:
    """`answering` as an engine. One thread asks, and always the same: torch keeps a team of threads for each."""

    choice: Choice
    logits: Logits

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.logits(torch.from_numpy(pixels)).numpy()
        return found


@contextlib.contextmanager
def reference(
    network: Network,
    device: str,
    precision: Precision,
    batch: int,
    ask: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Reference]:
    """The engine of a network, for as long as the body runs. ``ask`` is another question than for its answer."""
    place = pick(device)
    low = resolve(precision, place)
    with answering(network, place, low, ask) as logits:
        yield Reference(Choice(NAME, low, batch, 1, place.type), logits)


@contextlib.contextmanager
def of_tensors(engine: Engine) -> Iterator[Logits]:
    """An engine as evaluation asks: tensors in and out."""
    with whole(engine) as logits:
        yield lambda pixels: torch.from_numpy(logits(pixels.numpy()))
