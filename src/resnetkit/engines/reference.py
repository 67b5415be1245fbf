"""The network itself, by torch, as an engine: what every other one is measured by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.engines.base import Engine, EngineConfig, batch_calls
from resnetkit.images.prepare import Pixels
from resnetkit.network.inference import LogitsFunction, inference
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import Precision, select_device, select_precision

TORCH_ENGINE = "torch"


@dataclass(frozen=True)
class TorchEngine:
    """`answering` as an engine. One thread asks, and always the same: torch keeps a team of threads for each."""

    config: EngineConfig
    infer: LogitsFunction

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.infer(torch.from_numpy(pixels)).numpy()
        return logits


@contextlib.contextmanager
def open_torch_engine(
    network: NetworkModule,
    device: str,
    precision: Precision,
    batch_size: int,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[TorchEngine]:
    """The engine of a network, for as long as the body runs. ``ask`` is another question than for its answer."""
    torch_device = select_device(device)
    resolved_precision = select_precision(precision, torch_device)
    with inference(network, torch_device, resolved_precision, forward) as infer:
        yield TorchEngine(EngineConfig(TORCH_ENGINE, resolved_precision, batch_size, 1, torch_device.type), infer)


@contextlib.contextmanager
def open_tensor_inference(engine: Engine) -> Iterator[LogitsFunction]:
    """An engine as evaluation asks: tensors in and out."""
    with batch_calls(engine) as infer:
        yield lambda pixels: torch.from_numpy(infer(pixels.numpy()))
