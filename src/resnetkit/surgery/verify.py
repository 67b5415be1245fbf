"""Compare a network with the edited one in fp64, on the same images."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.errors import VerificationError
from resnetkit.network.compare import OutputFunction, compute_output, get_device, make_test_images, relative_error
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.transfer import EditResult, describe_plan_changes

EXACT, ROUNDED = 1e-12, 1e-5  # if the weights are the same; if new ones were rounded to the network's type
LOW_PRECISION_REASON = "16-bit weights are rounded too coarsely for a limit"
OUTPUT_CHANGED_NOTE = "the network computes another function, so its outputs are not verified: train it before use"


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
        limit: The largest allowed relative error; None if any error is accepted.
        reason: Why any error is accepted.
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
        raise VerificationError("the edited network failed verification and was discarded", where=failures, fix=fix)
    return new_model, new_model.report
