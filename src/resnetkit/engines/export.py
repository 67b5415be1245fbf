"""The module that every engine is made of: pixels in, logits out.

Shapes: pixels are N H W C, 8 bits; the network sees N C H W; logits are N K, fp32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from resnetkit.architecture.card import Card
from resnetkit.engines.base import MOST
from resnetkit.images.prepare import scale_and_shift
from resnetkit.network.layers import Network
from resnetkit.surgery.norms import folded


class Served(nn.Module):
    """A network with its norms folded, and before it what `images.prepare` leaves to the network.

    Pixels are scaled and shifted in fp32 whatever ``dtype`` the network has. It cannot be folded into the first
    convolution, whose padding is of zeros after the shift. A row of the picture is one row of numbers until then, with
    a scale and a shift for each: three numbers at a time are what no vector unit is made for, and where a library
    computes in channels-last order, as most do, what comes behind is no work.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        how = network.card.preparation
        self.scale, self.shift = (nn.Buffer(torch.from_numpy(np.tile(v, how.crop[1]))) for v in scale_and_shift(how))
        self.channels, self.dtype = len(how.mean), dtype
        self.network = folded(network).to("cpu", dtype).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.flatten(2).float() * self.scale + self.shift).to(self.dtype)
        x = torch.unflatten(x, 2, (-1, self.channels)).permute(0, 3, 1, 2)
        return self.network(x).float()  # type: ignore[no-any-return]


def example(card: Card, batch: int) -> Tensor:
    """Pixels of this shape, all black."""
    return torch.zeros(batch, *card.preparation.crop, len(card.preparation.mean), dtype=torch.uint8)


def exported(network: Network) -> torch.export.ExportedProgram:
    """The graph for every batch of 1 to `MOST` pictures, with the weights in fp32."""
    batch = torch.export.Dim("batch", min=1, max=MOST)
    module = Served(network).eval()
    with torch.no_grad():
        return torch.export.export(module, (example(network.card, 2),), dynamic_shapes=({0: batch},), strict=False)
