"""Compare the outputs of two networks on small images of noise."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import SpecError, VerificationError
from resnetkit.network.inference import eval_mode
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.torch_settings import strict_fp32

_MAX_SIDE = 50  # pixels: large enough to show every stride, small enough to be fast
_LIMIT, _HALF_LIMIT = 1e-3, 5e-2  # of outputs, relative; the last for weights of 16 bits
_MAX_MESSAGE = 200

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


def get_device(model: nn.Module) -> torch.device:
    """Return the device of a network; the CPU if it has no parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def get_dtype(model: nn.Module) -> torch.dtype:
    """Return the type of the weights of a network."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


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
    rng = torch.Generator("cpu").manual_seed(0)
    height, width = (min(side, _MAX_SIDE) for side in spec.input[1:])
    candidates = [(height, width + 1), (height + 3, width - 2)] if min(height, width) > 2 else [(height, width)]
    sizes = [size for size in candidates if _is_valid_size(spec, size)] or [spec.input[1:]]
    shapes = [(batch_size, spec.input[0], *size) for size in sizes]
    return [torch.randn(shape, generator=rng, dtype=torch.float64, device="cpu") for shape in shapes]


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


def measure_difference(module: nn.Module, network: NetworkModule) -> float:
    """Return how far the outputs of a module and of a network differ, relative to the largest output.

    Both run in evaluation mode on small random images of two sizes, in both memory formats. Modes and the state of the
    random numbers are kept. NaN and infinite outputs are equal to themselves.

    Args:
        module: A module that takes images (N, C, H, W).
        network: The network of resnetkit that should be equal; it is moved to the device and type of ``module``.

    Raises:
        VerificationError: the module cannot run on these images.
    """
    device, dtype = get_device(module), get_dtype(module)
    is_channels_last = any(p.ndim == 4 and not p.is_contiguous() for p in module.parameters())
    own_format = torch.channels_last if is_channels_last else torch.contiguous_format
    network.to(device, dtype).to(memory_format=own_format)
    images = [x.to(device, dtype) for x in make_test_images(network.card.spec, 2)]
    formats = (torch.contiguous_format, torch.channels_last)
    with eval_mode(module), eval_mode(network), _keep_torch_state(device):
        expected_outputs = [_flatten(network(x)) for x in images]
        pairs = [
            (_run_module(module, x.contiguous(memory_format=layout)), expected)
            for x, expected in zip(images, expected_outputs, strict=True)
            for layout in formats
        ]
    return max(_measure_error(actual.double(), expected.double()) for actual, expected in pairs)


def select_output_limit(module: nn.Module) -> float:
    """Return the largest difference of outputs that rounding explains, for the type of a module's weights."""
    return _HALF_LIMIT if any(parameter.element_size() < 4 for parameter in module.parameters()) else _LIMIT


@contextlib.contextmanager
def _keep_torch_state(device: torch.device) -> Iterator[None]:
    """Run the body without gradients, TF32 and compiler; restore the state of the random numbers."""
    # to compile for a small image takes minutes; without an import of torch._dynamo nothing is compiled
    stance = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), strict_fp32("fp32", device.type), stance:
        yield


def _run_module(module: nn.Module, x: Tensor) -> Tensor:
    try:
        return _flatten(module(x))
    except Exception as error:
        message = f"this network cannot run on {'x'.join(map(str, x.shape))} random values, so it cannot be verified"
        raise VerificationError(message, where=f"{type(error).__name__}: {error}"[:_MAX_MESSAGE]) from error


def _flatten(outputs: object) -> Tensor:
    """Return the outputs of a network as one row for each image."""
    outputs = getattr(outputs, "logits", outputs)  # transformers returns a record
    rows = flatten_maps(outputs) if isinstance(outputs, dict) else outputs
    if not isinstance(rows, Tensor):
        raise TypeError(f"the output is a {type(rows).__name__}, not a tensor")
    return rows.flatten(1)


def _measure_error(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        return math.inf
    is_equal = (actual == expected) | (actual.isnan() & expected.isnan())
    largest_error = float((actual - expected).masked_fill(is_equal, 0).abs().max())
    scale = float(expected.nan_to_num(0, 0, 0).abs().max())
    error = largest_error / scale if scale else largest_error
    return error if math.isfinite(error) else math.inf
