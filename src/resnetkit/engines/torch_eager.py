"""torch itself, operation by operation: nothing to make, and the soonest to start.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnetkit.engines.base import Engine, EngineConfig, Logits
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.torch_settings import disable_tf32

if TYPE_CHECKING:
    import torch

    from resnetkit.engines.export import ExportModule
    from resnetkit.network.layers import NetworkModule


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """Nothing: the model folder has all it needs."""


class EagerEngine:
    """The network in torch, in channels-last order."""

    def __init__(self, config: EngineConfig, module: ExportModule, device: torch.device) -> None:
        self.config = config
        self._module = module
        self._device = device

    def __call__(self, pixels: Pixels) -> Logits:
        import torch

        with torch.inference_mode():
            logits: Logits = self._module(as_tensor(pixels).to(self._device)).cpu().numpy()
        return logits


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Without a copy where that can be: torch takes no array that it must not write."""
    import torch

    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def load_engine(folder: Path, artifact: Path, config: EngineConfig) -> Engine:
    """Raises `MachineError` where the processor does not multiply in bf16 and was asked to."""
    return EagerEngine(config, *load_export_module(folder, config))


def load_export_module(folder: Path, config: EngineConfig) -> tuple[ExportModule, torch.device]:
    """The network of a model folder on its device, in its precision; torch has the threads of the choice from now on.

    What learns and what was there before folding is gone; an engine in bf16 keeps no fp32 but scale and shift.
    """
    import torch

    from resnetkit.engines.export import ExportModule
    from resnetkit.errors import MachineError
    from resnetkit.runtime.device import has_fast_bf16, select_device
    from resnetkit.weights.load import load_network

    device = select_device(config.device)
    if config.precision == "bf16" and not has_fast_bf16(device):
        raise MachineError("this processor does not multiply in bf16", fix="an engine in fp32 or int8")
    torch.set_num_threads(config.threads)
    disable_tf32(config.precision, config.device)
    module = ExportModule(load_network(folder), torch.bfloat16 if config.precision == "bf16" else torch.float32)
    return module.to(device).to(memory_format=torch.channels_last).eval(), device
