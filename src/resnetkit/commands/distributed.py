"""Commands that torchrun starts in several processes: their options, the process group, output of the first only.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import open_devnull
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, read_launch_info

SAME_SIGNAL_SECONDS = 10.0  # torchrun passes a signal on to its processes, which may have received it already


@dataclass(frozen=True)
class DeviceOptions:
    """The device of each process."""

    device: Annotated[str, Argument("NAME")] = "auto"
    """The device: cpu, cuda, cuda:1 or auto; under torchrun, each process takes its own GPU."""
    timeout: Annotated[float, Argument("SECONDS")] = 600.0
    """How long the processes that torchrun starts wait for each other."""


DEFAULT_DEVICE = DeviceOptions()


@contextlib.contextmanager
def init_distributed(options: DeviceOptions) -> Iterator[tuple[ProcessGroup, str]]:
    """Join the process group if torchrun started this process; only rank 0 prints.

    Args:
        options: The device and the timeout.

    Yields:
        The group and the device of this process.
    """
    launch = read_launch_info()
    if launch is None:
        yield SINGLE_PROCESS, options.device
        return
    from resnetkit.runtime.process_group import process_group

    with contextlib.ExitStack() as stack:
        if launch.rank != 0:
            devnull = stack.enter_context(open_devnull())
            stack.enter_context(contextlib.redirect_stdout(devnull))
            stack.enter_context(contextlib.redirect_stderr(devnull))
        yield stack.enter_context(process_group(launch, options.device, options.timeout))
