"""A verb in several processes, which torchrun has started: one of them speaks.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, read_launch_info

SAME_SIGNAL_SECONDS = 10.0  # seconds within which a signal that comes again is the same, passed on by torchrun
TIMEOUT = 600.0


@contextlib.contextmanager
def init_distributed(device: str, timeout: float) -> Iterator[tuple[ProcessGroup, str]]:
    """The processes of this run and the device of this one; one alone where torchrun has not started it."""
    launch = read_launch_info()
    if launch is None:
        yield SINGLE_PROCESS, device
        return
    from resnetkit.runtime.process_group import process_group

    with _suppress_output(launch.rank != 0), process_group(launch, device, timeout) as group:
        yield group


@contextlib.contextmanager
def _suppress_output(is_suppressed: bool) -> Iterator[None]:
    """Nothing is printed by the body; its errors leave it."""
    if not is_suppressed:
        yield
        return
    with (
        Path(os.devnull).open("w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
    ):
        yield
