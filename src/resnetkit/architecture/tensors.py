"""The names and shapes of all tensors of a network, without building it.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from resnetkit.architecture.operations import (
    ConvOp,
    EfficientChannelsOp,
    LinearOp,
    NormOp,
    Op,
    SqueezeExciteOp,
)
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import BatchNorm

TensorShape = tuple[int, ...]
TensorShapes = Mapping[str, TensorShape]
STEM_WEIGHT = "stem.conv1.weight"  # its shape depends on the channels of the image


def get_op_tensor_shapes(op: Op) -> dict[str, TensorShape]:
    """Return tensor name -> shape of an operation, with the statistics of a batch norm.

    Convolutions are (O, I, H, W), linear layers (O, I).
    """
    match op:
        case ConvOp(n_in, n_out, kernel, groups=groups, bias=bias):
            weight = {"weight": (n_out, n_in // groups, kernel, kernel)}
            return weight | ({"bias": (n_out,)} if bias else {})
        case NormOp(norm, channels):
            affine: dict[str, TensorShape] = {"weight": (channels,), "bias": (channels,)}
            statistics: dict[str, TensorShape] = {
                "running_mean": (channels,),
                "running_var": (channels,),
                "num_batches_tracked": (),
            }
            return affine | (statistics if isinstance(norm, BatchNorm) else {})
        case SqueezeExciteOp(channels, reduced):
            squeeze = {"fc1.weight": (reduced, channels, 1, 1), "fc1.bias": (reduced,)}
            return squeeze | {"fc2.weight": (channels, reduced, 1, 1), "fc2.bias": (channels,)}
        case EfficientChannelsOp(kernel=kernel):
            return {"conv.weight": (1, 1, kernel)}
        case LinearOp(n_in, n_out):
            return {"weight": (n_out, n_in), "bias": (n_out,)}
    return {}


def get_tensor_shapes(plan: Plan) -> dict[str, TensorShape]:
    """Return ``path.tensor`` -> shape of a network, in the order of the module's state dict."""
    return {
        f"{node.path}.{name}": shape for node in plan.nodes for name, shape in get_op_tensor_shapes(node.op).items()
    }
