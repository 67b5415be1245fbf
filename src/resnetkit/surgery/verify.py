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
from resnetkit.network.layers import Network
from resnetkit.network.report import Proof
from resnetkit.surgery.transfer import Edited

EXACT, ROUNDED = 1e-12, 1e-5  # where the weights are the same; where new ones were rounded to the network's type
_SIDE = 50  # of images that are large enough to show every stride, and small enough to be quick
SHORT = "weights of 16 bits round too coarsely to promise anything"

Maps = Callable[[Network, Tensor], Tensor]


def answer(model: Network, x: Tensor) -> Tensor:
    """What the network hands on; several maps as one row for each image."""
    found = model(x)
    return in_rows(found) if isinstance(found, dict) else found


def in_rows(maps: Mapping[str, Tensor]) -> Tensor:
    """Several maps as one row for each image."""
    return torch.cat([each.flatten(1) for each in maps.values()], 1)


def device_of(model: Network) -> torch.device:
    """Where a network is."""
    return next(model.parameters(), torch.empty(0)).device


def at(place: str) -> Maps:
    """What one of its places hands on."""
    return lambda model, x: model.features(x, [place])[place]


def images(spec: Spec, count: int = 1) -> list[Tensor]:
    """Two batches of noise, of odd and even sides, as large as the network needs and not larger (N C H W, fp64).

    Torch's group norm refuses a single number, which is what is left of one image in the smallest of maps.
    """
    count = max(count, 2) if isinstance(spec.norm, GroupNorm) else count
    draw = torch.Generator().manual_seed(0)
    sizes = [size for size in _sizes(spec) if _works(spec, size)] or [spec.input[1:]]
    return [torch.randn(count, spec.input[0], *size, generator=draw, dtype=torch.float64) for size in sizes]


def _sizes(spec: Spec) -> list[tuple[int, int]]:
    height, width = (min(side, _SIDE) for side in spec.input[1:])
    return [(height, width + 1), (height + 3, width - 2)] if min(height, width) > 2 else [(height, width)]


def _works(spec: Spec, size: tuple[int, int]) -> bool:
    try:
        plan(spec, size)
    except SpecError:
        return False
    return True


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number; infinite where there are numbers that are none."""
    if found.shape != expected.shape:
        return math.inf
    most = float((found - expected).abs().max()) if found.numel() else 0.0
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    figure = most / scale if scale else most
    return figure if math.isfinite(figure) else math.inf


def _trimmed(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    height, width = (min(a.shape[i], b.shape[i]) for i in (-2, -1))
    return a[..., :height, :width], b[..., :height, :width]


@contextlib.contextmanager
def exactly(model: Network) -> Iterator[Network]:
    """A copy in fp64 and evaluation mode, without gradients."""
    with torch.inference_mode():
        yield copy.deepcopy(model).double().eval()


def compared(
    what: str,
    model: Network,
    made: Network,
    limit: float | None,
    *,
    why: str = "",
    before: Maps = answer,
    after: Maps = answer,
    given: Sequence[Tensor] | None = None,
    trimmed: bool = False,
) -> Proof:
    """``before`` of the old network and ``after`` of the new one, on images that suit the old one (or ``given``).

    ``trimmed`` compares what both maps have, where one is a pixel longer.
    """
    place = device_of(model)
    with exactly(model) as old, exactly(made) as new:
        shown = [x.to(place) for x in (images(model.card.spec) if given is None else given)]
        pairs = [(after(new, x), before(old, x)) for x in shown]
    figures = [apart(*(_trimmed(*pair) if trimmed else pair)) for pair in pairs]
    return Proof(what, max(figures, default=math.inf), limit, why)


def rounded(model: Network) -> tuple[float | None, str]:
    """(limit, why there is none) where new weights were rounded to the type of the network."""
    bits = next((p.element_size() for p in model.parameters()), 4) * 8
    return (None, SHORT) if bits < 32 else (ROUNDED, "")


def finished(made: Network, *proofs: Proof) -> Edited:
    """The changed network and its report, which ends with the proofs; raises `VerificationError` where one fails."""
    made.report = replace(made.report, proved=proofs)
    broken = [proof for proof in proofs if not proof.holds]
    if broken:
        what = "the change is not what it promises to be, so it was not made"
        fix = "numbers that are not finite keep nothing; else please report it"
        where = [str(proof).removeprefix("proved: ") for proof in broken]
        raise VerificationError(what, where=where, fix=fix)
    return made, made.report
