"""What is random in a step: a function of (seed, epoch, step, rank), so that no state of chance need survive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

_PURPOSES = ("also", "mix")


def make_rng(purpose: str, *numbers: int) -> np.random.Generator:
    """A generator that these numbers decide. Each purpose has its own: without one (1, 2) would draw as (1, 2, 0)."""
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(_PURPOSES.index(purpose),)))


def seed_torch(device: torch.device, *numbers: int) -> None:
    """Let torch draw, on a device and on the CPU, what these numbers decide: dropout, stochastic depth."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(
        seed
    )  # torch.manual_seed asks after every kind of device, at five times the cost
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Whatever is drawn in the body, whoever draws after it gets what he would have got without it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
