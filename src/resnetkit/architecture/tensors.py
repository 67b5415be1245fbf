"""The names and shapes of all tensors of a network, without building it.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from resnetkit.architecture import operations as ops
from resnetkit.architecture.operations import Op
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
        case ops.ConvOp(n_in, n_out, kernel, groups=groups, bias=bias):
            weight = {"weight": (n_out, n_in // groups, kernel, kernel)}
            return weight | ({"bias": (n_out,)} if bias else {})
        case ops.NormOp(norm, channels):
            names = ["weight", "bias", *(["running_mean", "running_var"] if isinstance(norm, BatchNorm) else [])]
            shapes: dict[str, TensorShape] = dict.fromkeys(names, (channels,))
            return shapes | ({"num_batches_tracked": ()} if isinstance(norm, BatchNorm) else {})
        case ops.SqueezeExciteOp(channels, reduced):
            squeeze = {"fc1.weight": (reduced, channels, 1, 1), "fc1.bias": (reduced,)}
            return squeeze | {"fc2.weight": (channels, reduced, 1, 1), "fc2.bias": (channels,)}
        case ops.EfficientChannelsOp(kernel=kernel):
            return {"conv.weight": (1, 1, kernel)}
        case ops.LinearOp(n_in, n_out):
            return {"weight": (n_out, n_in), "bias": (n_out,)}
    return {}


def get_tensor_shapes(plan: Plan) -> dict[str, TensorShape]:
    """Return ``path.tensor`` -> shape of a network, in the order of the module's state dict."""
    shapes_by_path = {node.path: get_op_tensor_shapes(node.op) for node in plan.nodes}
    return {f"{path}.{name}": shape for path, shapes in shapes_by_path.items() for name, shape in shapes.items()}
