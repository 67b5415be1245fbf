"""Random numbers that depend only on (seed, epoch, step, rank), so that checkpoints need no generator state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

_PURPOSES = ("augment", "mix")  # a position in this tuple is part of the seed


def make_rng(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a NumPy generator that is seeded by a purpose and these numbers.

    Without a purpose, ``(1, 2)`` and ``(1, 2, 0)`` would give the same generator.

    Args:
        purpose: ``augment`` or ``mix``; each has a stream of its own.
        *numbers: non-negative integers, such as seed, epoch and step.
    """
    return np.random.default_rng(np.random.SeedSequence(numbers, spawn_key=(_PURPOSES.index(purpose),)))


def seed_torch(device: torch.device, *numbers: int) -> None:
    """Seed torch's generators of the CPU and of ``device``, for dropout and stochastic depth.

    Args:
        device: the device that the network runs on.
        *numbers: non-negative integers, such as seed, epoch, step and rank.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
    torch.default_generator.manual_seed(seed)  # torch.manual_seed checks every kind of device and takes 5 times as long
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextlib.contextmanager
def preserve_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's generators of the CPU and of ``device`` after the body."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
