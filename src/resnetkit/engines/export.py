"""The module that every engine is made of: pixels in, logits out.

Shapes: pixels are N H W C, 8 bits; the network sees N C H W; logits are N K, fp32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from resnetkit.architecture.card import Card
from resnetkit.engines.base import MAX_BATCH_OR_STREAMS
from resnetkit.images.prepare import compute_scale_and_shift
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.norms import fold_for_inference


class ExportModule(nn.Module):
    """A network with its norms folded, and before it what `images.prepare` leaves to the network.

    Pixels are scaled and shifted in fp32 whatever ``dtype`` the network has. It cannot be folded into the first
    convolution, whose padding is of zeros after the shift. A row of the picture is one row of numbers until then, with
    a scale and a shift for each: three numbers at a time are what no vector unit is made for, and where a library
    computes in channels-last order, as most do, what comes behind is no work.
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


def make_example_input(card: Card, batch_size: int) -> Tensor:
    """Pixels of this shape, all black."""
    return torch.zeros(batch_size, *card.preparation.crop, len(card.preparation.mean), dtype=torch.uint8)


def export_program(network: NetworkModule) -> torch.export.ExportedProgram:
    """The graph for every batch of 1 to `MOST` pictures, with the weights in fp32."""
    batch_dim = torch.export.Dim("batch", min=1, max=MAX_BATCH_OR_STREAMS)
    module = ExportModule(network).eval()
    with torch.no_grad():
        return torch.export.export(
            module, (make_example_input(network.card, 2),), dynamic_shapes=({0: batch_dim},), strict=False
        )
