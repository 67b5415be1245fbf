"""What holds between a network and a changed one, measured on both side by side in fp64."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import SpecError, VerificationError
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.transfer import EditResult

EXACT, ROUNDED = 1e-12, 1e-5  # where the weights are the same; where new ones were rounded to the network's type
_MAX_SIDE = 50  # of images that are large enough to show every stride, and small enough to be quick
LOW_PRECISION_REASON = "weights of 16 bits round too coarsely to promise anything"

OutputFunction = Callable[[NetworkModule, Tensor], Tensor]


def compute_output(model: NetworkModule, x: Tensor) -> Tensor:
    """What the network hands on; several maps as one row for each image."""
    outputs = model(x)
    return flatten_maps(outputs) if isinstance(outputs, dict) else outputs


def flatten_maps(maps: Mapping[str, Tensor]) -> Tensor:
    """Several maps as one row for each image."""
    return torch.cat([feature_map.flatten(1) for feature_map in maps.values()], 1)


def get_device(model: NetworkModule) -> torch.device:
    """Where a network is."""
    return next(model.parameters(), torch.empty(0)).device


def make_output_function(path: str) -> OutputFunction:
    """What one of its places hands on."""
    return lambda model, x: model.extract_features(x, [path])[path]


def make_test_images(spec: Spec, batch_size: int = 1) -> list[Tensor]:
    """Two batches of noise, of odd and even sides, as large as the network needs and not larger (N C H W, fp64).

    Torch's group norm refuses a single number, which is what is left of one image in the smallest of maps.
    """
    batch_size = max(batch_size, 2) if isinstance(spec.norm, GroupNorm) else batch_size
    rng = torch.Generator().manual_seed(0)
    sizes = [size for size in _choose_sizes(spec) if _is_valid_size(spec, size)] or [spec.input[1:]]
    return [torch.randn(batch_size, spec.input[0], *size, generator=rng, dtype=torch.float64) for size in sizes]


def _choose_sizes(spec: Spec) -> list[tuple[int, int]]:
    height, width = (min(side, _MAX_SIDE) for side in spec.input[1:])
    return [(height, width + 1), (height + 3, width - 2)] if min(height, width) > 2 else [(height, width)]


def _is_valid_size(spec: Spec, size: tuple[int, int]) -> bool:
    try:
        plan(spec, size)
    except SpecError:
        return False
    return True


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number; infinite where there are numbers that are none."""
    if actual.shape != expected.shape:
        return math.inf
    largest_error = float((actual - expected).abs().max()) if actual.numel() else 0.0
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    error = largest_error / scale if scale else largest_error
    return error if math.isfinite(error) else math.inf


def _trim_to_common_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    height, width = (min(a.shape[i], b.shape[i]) for i in (-2, -1))
    return a[..., :height, :width], b[..., :height, :width]


@contextlib.contextmanager
def float64_copy(model: NetworkModule) -> Iterator[NetworkModule]:
    """A copy in fp64 and evaluation mode, without gradients."""
    with torch.inference_mode():
        yield copy.deepcopy(model).double().eval()


def verify_equal(
    description: str,
    model: NetworkModule,
    new_model: NetworkModule,
    limit: float | None,
    *,
    reason: str = "",
    old_output: OutputFunction = compute_output,
    new_output: OutputFunction = compute_output,
    inputs: Sequence[Tensor] | None = None,
    trim: bool = False,
) -> Verification:
    """``before`` of the old network and ``after`` of the new one, on images that suit the old one (or ``given``).

    ``trimmed`` compares what both maps have, where one is a pixel longer.
    """
    device = get_device(model)
    with float64_copy(model) as old, float64_copy(new_model) as new:
        batches = [x.to(device) for x in (make_test_images(model.card.spec) if inputs is None else inputs)]
        pairs = [(new_output(new, x), old_output(old, x)) for x in batches]
    errors = [relative_error(*(_trim_to_common_size(*pair) if trim else pair)) for pair in pairs]
    return Verification(description, max(errors, default=math.inf), limit, reason)


def select_rounding_limit(model: NetworkModule) -> tuple[float | None, str]:
    """(limit, why there is none) where new weights were rounded to the type of the network."""
    bits = next((p.element_size() for p in model.parameters()), 4) * 8
    return (None, LOW_PRECISION_REASON) if bits < 32 else (ROUNDED, "")


def finish_edit(new_model: NetworkModule, *proofs: Verification) -> EditResult:
    """The changed network and its report, which ends with the proofs; raises `VerificationError` where one fails."""
    new_model.report = replace(new_model.report, verifications=proofs)
    failed = [proof for proof in proofs if not proof.is_within_limit]
    if failed:
        message = "the change is not what it promises to be, so it was not made"
        fix = "numbers that are not finite keep nothing; else please report it"
        failures = [str(proof).removeprefix("verified: ") for proof in failed]
        raise VerificationError(message, where=failures, fix=fix)
    return new_model, new_model.report
