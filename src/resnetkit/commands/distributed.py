"""A verb in several processes, which torchrun has started: one of them speaks.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from resnetkit.runtime.distributed import ALONE, Ranks, launched

SAME = 10.0  # seconds within which a signal that comes again is the same, passed on by torchrun
TIMEOUT = 600.0


@contextlib.contextmanager
def together(device: str, timeout: float) -> Iterator[tuple[Ranks, str]]:
    """The processes of this run and the device of this one; one alone where torchrun has not started it."""
    launch = launched()
    if launch is None:
        yield ALONE, device
        return
    from resnetkit.runtime.process_group import joined

    with _silent(launch.rank != 0), joined(launch, device, timeout) as found:
        yield found


@contextlib.contextmanager
def _silent(quiet: bool) -> Iterator[None]:
    """Nothing is printed by the body; its errors leave it."""
    if not quiet:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
