"""PyTorch in eager mode: nothing to export, and the shortest start-up.

Shapes: pixels (N, H, W, C) uint8, logits (N, K) fp32.
"""

from __future__ import annotations

from pathlib import Path

import torch

from resnetkit.engines.base import Engine, EngineConfig, EngineContents, FunctionEngine, Logits, bf16_unsupported_error
from resnetkit.engines.export import ExportModule, pixels_to_tensor
from resnetkit.images.prepare import Pixels
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime import device as devices
from resnetkit.runtime.torch_settings import disable_tf32
from resnetkit.weights.load import load_network


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """Do nothing: the model folder has all that this engine needs.

    Args:
        network: not used.
        artifact: not used.
        precision: not used.
        pixels: not used.
    """


def load_engine(folder: Path, contents: EngineContents, config: EngineConfig) -> Engine:
    """Load the network of a model folder, in channels-last order.

    Args:
        folder: the model folder.
        contents: not used.
        config: the configuration to load.

    Raises:
        MachineError: bf16 on a processor without bf16 instructions.
    """
    module, device = load_export_module(folder, config)

    @torch.inference_mode()
    def infer(pixels: Pixels) -> Logits:
        return module(pixels_to_tensor(pixels).to(device)).cpu().numpy()  # type: ignore[no-any-return]

    return FunctionEngine(config, infer)


def load_export_module(folder: Path, config: EngineConfig) -> tuple[ExportModule, torch.device]:
    """Load a network for export, on its device and in its precision, and set torch's number of threads.

    In bf16 only scale and shift stay in fp32.

    Args:
        folder: the model folder.
        config: the device, precision and streams.

    Raises:
        MachineError: bf16 on a processor without bf16 instructions.
    """
    device, is_bf16 = devices.select_device(config.device), config.precision == "bf16"
    if is_bf16 and not devices.has_fast_bf16(device):
        raise bf16_unsupported_error()
    torch.set_num_threads(config.threads)
    disable_tf32(config.precision, config.device)
    module = ExportModule(load_network(folder), torch.bfloat16 if is_bf16 else torch.float32)
    return module.to(device).to(memory_format=torch.channels_last).eval(), device
