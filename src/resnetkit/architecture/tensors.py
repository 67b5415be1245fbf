"""Which tensors an operation holds: names and shapes, known before any of them exists.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from resnetkit.architecture.operations import (
    Convolution,
    FullyConnected,
    Normalisation,
    Op,
    SqueezeAndExcite,
    WeighByNeighbours,
)
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import BatchNorm

TensorShape = tuple[int, ...]
Shapes = Mapping[str, TensorShape]
STEM = "stem.conv1.weight"  # what sees the channels of an image


def tensors(op: Op) -> dict[str, TensorShape]:
    """Tensor name -> shape, the statistics of a batch norm included. Convolutions are O I H W, linear layers O I."""
    match op:
        case Convolution(inputs, outputs, kernel, groups=groups, bias=bias):
            weight = {"weight": (outputs, inputs // groups, kernel, kernel)}
            return weight | ({"bias": (outputs,)} if bias else {})
        case Normalisation(norm, channels):
            affine: dict[str, TensorShape] = {"weight": (channels,), "bias": (channels,)}
            statistics: dict[str, TensorShape] = {
                "running_mean": (channels,),
                "running_var": (channels,),
                "num_batches_tracked": (),
            }
            return affine | (statistics if isinstance(norm, BatchNorm) else {})
        case SqueezeAndExcite(channels, reduced):
            narrow = {"fc1.weight": (reduced, channels, 1, 1), "fc1.bias": (reduced,)}
            return narrow | {"fc2.weight": (channels, reduced, 1, 1), "fc2.bias": (channels,)}
        case WeighByNeighbours(kernel=kernel):
            return {"conv.weight": (1, 1, kernel)}
        case FullyConnected(inputs, outputs):
            return {"weight": (outputs, inputs), "bias": (outputs,)}
    return {}


def tensors_of(plan: Plan) -> dict[str, TensorShape]:
    """``path.tensor`` -> shape for the whole network, in the order of the module's state dict."""
    return {f"{node.path}.{name}": shape for node in plan.nodes for name, shape in tensors(node.op).items()}
