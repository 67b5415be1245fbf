"""What is random in a step: a function of (seed, epoch, step, rank), so that no state of chance need survive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


def reseed(*numbers: int) -> None:
    """Let torch draw, on every device, what these numbers decide: dropout, stochastic depth."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1)


@contextlib.contextmanager
def without_trace(device: torch.device) -> Iterator[None]:
    """Whatever is drawn in the body, whoever draws after it gets what he would have got without it."""
    places = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(places):
        yield
