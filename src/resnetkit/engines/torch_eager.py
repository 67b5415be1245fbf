"""torch itself, operation by operation: nothing to make, and the soonest to start.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnetkit.engines.base import Choice, Engine, Logits
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.torch_settings import multiply_exactly

if TYPE_CHECKING:
    import torch

    from resnetkit.engines.export import Served
    from resnetkit.network.layers import Network


def make(network: Network, artefact: Path, precision: str, pixels: Pixels | None) -> None:
    """Nothing: the model folder has all it needs."""


class Eager:
    """The network in torch, in channels-last order."""

    def __init__(self, choice: Choice, served: Served, device: torch.device) -> None:
        self.choice = choice
        self._served = served
        self._device = device

    def __call__(self, pixels: Pixels) -> Logits:
        import torch

        with torch.inference_mode():
            answer: Logits = self._served(as_tensor(pixels).to(self._device)).cpu().numpy()
        return answer


def as_tensor(pixels: Pixels) -> torch.Tensor:
    """Without a copy where that can be: torch takes no array that it must not write."""
    import torch

    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def open(folder: Path, artefact: Path, choice: Choice) -> Engine:  # noqa: A001  the word of `engine.Backend`
    """Raises `MachineError` where the processor does not multiply in bf16 and was asked to."""
    return Eager(choice, *served(folder, choice))


def served(folder: Path, choice: Choice) -> tuple[Served, torch.device]:
    """The network of a model folder on its device, in its precision; torch has the threads of the choice from now on.

    What learns and what was there before folding is gone; an engine in bf16 keeps no fp32 but scale and shift.
    """
    import torch

    from resnetkit.engines.export import Served
    from resnetkit.errors import MachineError
    from resnetkit.runtime.device import gains_by_bf16, pick
    from resnetkit.weights.load import load

    device = pick(choice.device)
    if choice.precision == "bf16" and not gains_by_bf16(device):
        raise MachineError("this processor does not multiply in bf16", fix="an engine in fp32 or int8")
    torch.set_num_threads(choice.threads)
    multiply_exactly(choice.precision, choice.device)
    made = Served(load(folder), torch.bfloat16 if choice.precision == "bf16" else torch.float32)
    return made.to(device).to(memory_format=torch.channels_last).eval(), device
