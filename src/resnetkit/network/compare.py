"""Compare the outputs of two networks on small images of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import SpecError
from resnetkit.network.layers import NetworkModule

_MAX_SIDE = 50  # pixels: large enough to show every stride, small enough to be fast

OutputFunction = Callable[[NetworkModule, Tensor], Tensor]


def compute_output(model: NetworkModule, x: Tensor) -> Tensor:
    """Return the output of a network; several maps become one row for each image.

    Args:
        model: The network.
        x: Images (N, C, H, W).
    """
    outputs = model(x)
    return flatten_maps(outputs) if isinstance(outputs, dict) else outputs


def flatten_maps(maps: Mapping[str, Tensor]) -> Tensor:
    """Return several maps (N, C, H, W) as one row for each image."""
    return torch.cat([feature_map.flatten(1) for feature_map in maps.values()], 1)


def get_device(model: NetworkModule) -> torch.device:
    """Return the device of a network."""
    return next(model.parameters(), torch.empty(0)).device


def make_output_function(path: str) -> OutputFunction:
    """Return a function that computes the map at a path."""
    return lambda model, x: model.extract_features(x, [path])[path]


def make_test_images(spec: Spec, batch_size: int = 1) -> list[Tensor]:
    """Return two small batches of noise with odd and even sides (N, C, H, W; fp64).

    Args:
        spec: The spec of the network.
        batch_size: Images in a batch. Group norm gets at least two, because torch refuses to normalize one value.
    """
    batch_size = max(batch_size, 2) if isinstance(spec.norm, GroupNorm) else batch_size
    rng = torch.Generator().manual_seed(0)
    height, width = (min(side, _MAX_SIDE) for side in spec.input[1:])
    candidates = [(height, width + 1), (height + 3, width - 2)] if min(height, width) > 2 else [(height, width)]
    sizes = [size for size in candidates if _is_valid_size(spec, size)] or [spec.input[1:]]
    return [torch.randn(batch_size, spec.input[0], *size, generator=rng, dtype=torch.float64) for size in sizes]


def _is_valid_size(spec: Spec, size: tuple[int, int]) -> bool:
    try:
        plan(spec, size)
    except SpecError:
        return False
    return True


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference divided by the largest expected value.

    The result is infinite if a value is NaN or infinite.

    Args:
        actual: The new values.
        expected: The old values.
    """
    if actual.shape != expected.shape:
        return math.inf
    largest_error = float((actual - expected).abs().max()) if actual.numel() else 0.0
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = largest_error / scale if scale else largest_error
    return error if math.isfinite(error) else math.inf
