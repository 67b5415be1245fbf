"""Initialize weights by the role of each operation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnetkit.errors import UsageError
from resnetkit.network.layers import NetworkModule


def initialize_weights(model: NetworkModule, *, seed: int = 0, zero_last_norm: bool = False) -> None:
    """Fill all parameters and statistics of ``model`` in place.

    - Convolutions: normal with variance 2 / fan-out (He et al., arXiv 1502.01852), as in torchvision.
    - Norms: weight 1, bias 0.
    - Linear layers: uniform within 1 / sqrt(fan-in), the default of torch.

    Args:
        model: the network.
        seed: the same seed gives the same weights on every device.
        zero_last_norm: set the last norm of every branch to zero, so that each block starts as its shortcut (Goyal et
            al., arXiv 1706.02677, section 5.1).

    Raises:
        UsageError: ``zero_last_norm``, but the network has no shortcuts or no norm at the end of its branches.
    """
    if zero_last_norm and not {"add", "branch-last-norm"} <= {node.role for node in model.plan.nodes}:
        what = "zero_last_norm needs shortcuts and a norm at the end of each branch"
        raise UsageError(what, where=model.card.name, fix="do not set zero_last_norm")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            _initialize_layer(layer, generator)
        if zero_last_norm:
            for path in (node.path for node in model.plan.nodes if node.role == "branch-last-norm"):
                model.get_parameter(f"{path}.weight").zero_()


def _initialize_layer(layer: nn.Module, generator: torch.Generator) -> None:
    if isinstance(layer, nn.Conv2d):
        fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
        layer.weight.copy_(_draw(torch.randn, layer.weight.shape, generator) * math.sqrt(2 / fan_out))
        if layer.bias is not None:
            layer.bias.zero_()
    elif isinstance(layer, nn.Linear | nn.Conv1d):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for tensor in layer.parameters():
            tensor.copy_((_draw(torch.rand, tensor.shape, generator) * 2 - 1) * bound)
    elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
        layer.reset_parameters()


def _draw(sample: Callable[..., Tensor], shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw fp32 numbers on the CPU, whatever the default device and type of torch are."""
    return sample(shape, generator=generator, dtype=torch.float32, device="cpu")
