"""The network itself in PyTorch, as an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from resnetkit.engines.base import Engine, EngineConfig, FunctionEngine, batch_calls
from resnetkit.engines.export import pixels_to_tensor
from resnetkit.network.inference import LogitsFunction, inference
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import Precision, select_device, select_precision


@contextlib.contextmanager
def open_torch_engine(
    network: NetworkModule,
    device: str,
    precision: Precision,
    batch_size: int,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Engine]:
    """Yield an engine that calls the network, for as long as the body runs.

    It has one stream, because torch keeps a thread pool for every thread that calls it.

    Args:
        network: the network to call.
        device: cpu, cuda, cuda:1 or auto.
        precision: fp32, bf16 or auto.
        batch_size: the number of images per call.
        forward: the function of the input to compute; the network itself by default.
    """
    torch_device = select_device(device)
    resolved_precision = select_precision(precision, torch_device)
    with inference(network, torch_device, resolved_precision, forward) as infer:
        config = EngineConfig("torch", resolved_precision, batch_size, 1, torch_device.type)
        yield FunctionEngine(config, lambda pixels: infer(pixels_to_tensor(pixels)).numpy())


@contextlib.contextmanager
def open_tensor_inference(engine: Engine) -> Iterator[LogitsFunction]:
    """Yield an engine as evaluation calls it: any number of images, tensors in and out."""
    with batch_calls(engine) as infer:
        yield lambda pixels: torch.from_numpy(infer(pixels.numpy()))
