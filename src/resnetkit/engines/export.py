"""The module that every engine is exported from: pixels in, logits out.

Shapes: pixels (N, H, W, C) uint8, network input (N, C, H, W), logits (N, K) fp32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from resnetkit.architecture.card import Card
from resnetkit.engines.base import MAX_BATCH_OR_STREAMS
from resnetkit.images.prepare import Pixels, compute_scale_and_shift
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.norms import fold_for_inference


class ExportModule(nn.Module):
    """A network with folded norms, preceded by the normalization of the pixels.

    Pixels are normalized in fp32, whatever ``dtype`` the network has. The normalization cannot be folded into the
    first convolution, because that pads with zeros after the shift. It works on whole rows of an image (W * C
    numbers), because vector units are slow on groups of three. In channels-last order the rest needs no copy.
    """

    def __init__(self, network: NetworkModule, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        preparation = network.card.preparation
        self.scale, self.shift = (
            nn.Buffer(torch.from_numpy(np.tile(v, preparation.crop[1]))) for v in compute_scale_and_shift(preparation)
        )
        self.channels, self.dtype = len(preparation.mean), dtype
        self.network = fold_for_inference(network).to("cpu", dtype).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.flatten(2).float() * self.scale + self.shift).to(self.dtype)
        x = torch.unflatten(x, 2, (-1, self.channels)).permute(0, 3, 1, 2)
        return self.network(x).float()  # type: ignore[no-any-return]


def pixels_to_tensor(pixels: Pixels) -> Tensor:
    """Return the pixels as a tensor; copy them only if they are read-only or not contiguous."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"]))


def make_example_input(card: Card, batch_size: int) -> Tensor:
    """Return a batch of black images of the model's input size.

    Args:
        card: the model's card.
        batch_size: the number of images.
    """
    return torch.zeros(batch_size, *card.preparation.crop, len(card.preparation.mean), dtype=torch.uint8)


def export_program(network: NetworkModule) -> torch.export.ExportedProgram:
    """Export the graph for batches of 1 to `MAX_BATCH_OR_STREAMS` images, with weights in fp32."""
    batch_dim = torch.export.Dim("batch", min=1, max=MAX_BATCH_OR_STREAMS)
    module, example = ExportModule(network).eval(), make_example_input(network.card, 2)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch_dim},), strict=False)
