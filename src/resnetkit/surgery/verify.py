"""Compare a network with the edited one in fp64, on the same images."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import GroupNorm
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import SpecError, VerificationError
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.transfer import EditResult, describe_plan_changes

EXACT, ROUNDED = 1e-12, 1e-5  # if the weights are the same; if new ones were rounded to the network's type
LOW_PRECISION_REASON = "weights of 16 bits round too coarsely for a promise"
OUTPUT_CHANGED_NOTE = "the network computes another function, so its outputs are not verified: train it before use"
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


def _trim_to_common_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    height, width = (min(a.shape[i], b.shape[i]) for i in (-2, -1))
    return a[..., :height, :width], b[..., :height, :width]


@contextlib.contextmanager
def float64_copy(model: NetworkModule) -> Iterator[NetworkModule]:
    """Yield a copy in fp64 and evaluation mode, in inference mode."""
    with torch.inference_mode():
        yield copy.deepcopy(model).double().eval()


def verify_equal(
    description: str,
    model: NetworkModule,
    new_model: NetworkModule,
    limit: float | None = EXACT,
    *,
    reason: str = "",
    outputs: tuple[OutputFunction, OutputFunction] = (compute_output, compute_output),
    inputs: Sequence[Tensor] | None = None,
    trim: bool = False,
) -> Verification:
    """Return how far an output of the new network differs from one of the old network.

    Args:
        description: What is compared.
        model: The old network.
        new_model: The new network.
        limit: The largest allowed relative error; None if nothing is promised.
        reason: Why nothing is promised.
        outputs: The output of the old network to compare, and that of the new one.
        inputs: Batches of images; noise that suits the old network if None.
        trim: Whether to compare only the pixels that both maps have, because one may be a pixel longer.
    """
    device = get_device(model)
    with float64_copy(model) as old, float64_copy(new_model) as new:
        batches = [x.to(device) for x in (make_test_images(model.card.spec) if inputs is None else inputs)]
        pairs = [(outputs[1](new, x), outputs[0](old, x)) for x in batches]
    errors = [relative_error(*(_trim_to_common_size(*pair) if trim else pair)) for pair in pairs]
    return Verification(description, max(errors, default=math.inf), limit, reason)


def select_rounding_limit(model: NetworkModule) -> tuple[float | None, str]:
    """Return the allowed error after rounding to the type of a network, or None and the reason."""
    bits = next((p.element_size() for p in model.parameters()), 4) * 8
    return (None, LOW_PRECISION_REASON) if bits < 32 else (ROUNDED, "")


def verify_rounded(model: NetworkModule, new_model: NetworkModule) -> Verification:
    """Return how far the outputs differ after new weights were rounded to the type of a network.

    Args:
        model: The old network.
        new_model: The new network.
    """
    limit, reason = select_rounding_limit(model)
    return verify_equal("the outputs", model, new_model, limit, reason=reason)


def finish_edit(
    model: NetworkModule, new_model: NetworkModule, *verifications: Verification, notes: Iterable[str] = ()
) -> EditResult:
    """Return the edited network and its complete report.

    Args:
        model: The old network.
        new_model: The new network with the report of its tensors.
        *verifications: What was compared.
        notes: Further notes to report, after the changes of the plan.

    Raises:
        VerificationError: a verification is not within its limit.
    """
    notes = (*describe_plan_changes(model.plan, new_model.plan), *notes)
    new_model.report = replace(new_model.report, notes=notes, verifications=verifications)
    failures = [str(item).removeprefix("verified: ") for item in verifications if not item.is_within_limit]
    if failures:
        fix = "check the weights for NaN or infinite values; if there are none, report this as a bug"
        raise VerificationError("the edit does not hold its promise, so it was not made", where=failures, fix=fix)
    return new_model, new_model.report
