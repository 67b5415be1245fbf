"""When checkpoints are written, how many stay, and what they hold of the optimizer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from resnetkit import files
from resnetkit.errors import MachineError, ResnetkitWarning
from resnetkit.training.checkpoint import (
    OPTIMIZER_SLOTS,
    Checkpoint,
    Tensors,
    format_name,
    list_checkpoints,
    write_checkpoint,
)
from resnetkit.training.run_folder import format_resume_command

_INTERVAL_SECONDS = 300.0
_MAX_FAILURES = 3  # in a row


class CheckpointManager:
    """Write checkpoints every so many steps and every five minutes; keep the last two.

    Args:
        folder: The state folder of the run.
        every_steps: The steps between two checkpoints; None for five minutes only.
        checkpoint: The checkpoint that the run was resumed from.
        clock: A clock in seconds. It decides when a checkpoint is written, never what is in it.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int | None,
        checkpoint: Checkpoint | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.every_steps, self.clock = folder, every_steps, clock
        self.latest = format_name(checkpoint.state.global_step) if checkpoint else ""
        self.failures, self._last_save = 0, clock()

    def is_due(self, global_step: int) -> bool:
        """Return whether it is time for a checkpoint."""
        is_interval_over = self.clock() - self._last_save > _INTERVAL_SECONDS
        return is_interval_over or bool(self.every_steps and global_step % self.every_steps == 0)

    def has(self, global_step: int) -> bool:
        """Return whether the newest checkpoint is of this step."""
        return self.latest == format_name(global_step)

    def save(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint. A failure is a warning, the third in a row an error."""
        self._last_save = self.clock()
        try:
            path = write_checkpoint(self.folder, make_checkpoint())
        except MachineError as error:
            self._handle_failure(error)
            return
        self.failures = 0
        for name in {*list_checkpoints(self.folder)} - {path.name, self.latest}:
            files.remove_folder(self.folder / name)
        self.latest = path.name

    def _handle_failure(self, error: MachineError) -> None:
        self.failures += 1
        if self.failures >= _MAX_FAILURES:
            what = f"{self.failures} checkpoints in a row could not be written: {error.what}"
            fix = f"free some space; then {format_resume_command(self.folder.parent)}"
            raise MachineError(what, where=error.where, fix=fix) from error
        fallback_note = f"the last one is {self.latest}" if self.latest else "no other exists"
        message = f"a checkpoint could not be written ({error.what}); {fallback_note}; training continues"
        warnings.warn(message, ResnetkitWarning, stacklevel=2)


def get_optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> Tensors:
    """Return the optimizer's state as tensors named ``SLOT/PATH``.

    Args:
        optimizer: The optimizer.
        parameters: The parameters by their paths.
    """
    return {
        f"{slot}/{path}": optimizer.state[parameter][slot]
        for path, parameter in parameters.items()
        for slot in OPTIMIZER_SLOTS
        if isinstance(optimizer.state.get(parameter, {}).get(slot), Tensor)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the optimizer's state.

    Tensors get the memory layout of their parameter, as sums can depend on the order.

    Args:
        optimizer: The optimizer.
        parameters: The parameters by their paths.
        tensors: The tensors of a checkpoint.
    """
    slots = OPTIMIZER_SLOTS[:1] if isinstance(optimizer, torch.optim.SGD) else OPTIMIZER_SLOTS[1:]
    for path, parameter in parameters.items():
        for slot in slots:
            if (value := tensors.get(f"{slot}/{path}")) is not None:
                buffer = torch.empty_like(parameter) if value.shape else torch.empty(())
                optimizer.state[parameter][slot] = buffer.copy_(value).detach()
