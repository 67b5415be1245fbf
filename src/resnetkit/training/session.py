"""The state that training changes: model, average, optimizer, position, best weights, log and checkpoints."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit import files
from resnetkit.data.dataset import Indices
from resnetkit.data.loader import sync_unreadable
from resnetkit.errors import DataError, MachineError, ResnetkitInterrupt
from resnetkit.runtime.distributed import ProcessGroup
from resnetkit.runtime.signals import StopSignal
from resnetkit.training.batches import TrainBatches
from resnetkit.training.checkpoint import Checkpoint
from resnetkit.training.checkpointing import (
    CheckpointManager,
    get_optimizer_state,
    load_optimizer_state,
)
from resnetkit.training.ema import EvalModel
from resnetkit.training.events import EpochMetrics, PreparedRun, StepMetrics
from resnetkit.training.optimizer import (
    StepResult,
    build_optimizer,
    compute_gradient_norm,
    copy_tensors,
    count_head_epochs,
)
from resnetkit.training.run_folder import METRICS_FILE, STATE_FOLDER, format_epoch_line, format_step_line
from resnetkit.training.state import TrainState
from resnetkit.training.sync_batch_norm import convert_sync_batchnorm
from resnetkit.weights.save import save

_MAX_BAD_STEPS = 3  # in a row, after which training ends


class DivergedError(DataError):
    """The loss stayed NaN or infinite."""


class StopRequestedError(Exception):
    """A stop was requested, at a point from which the run can be resumed."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


class TrainSession:
    """The state of a run in memory, restored from its checkpoint if there is one."""

    def __init__(self, run: PreparedRun, stop: StopSignal, dist: ProcessGroup) -> None:
        self.run, self.stop, self.dist, self.device = run, stop, dist, torch.device(run.device)
        self.model = run.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dist.world_size > 1:
            self.model.load_state_dict(dist.broadcast(self.model.state_dict()))
        self.eval_model, self.batches = EvalModel(self.model, run.recipe.ema), TrainBatches(run, dist)
        if self.batches.has_sync_batch_norm:
            convert_sync_batchnorm(self.model, dist.all_reduce_sum)
        self.optimizer = build_optimizer(self.model, run.recipe)
        self.state, self.best_weights = TrainState(batch_size=run.recipe.batch_size), dict[str, Tensor]()
        if run.checkpoint:
            self._restore(run.checkpoint)
        self.start_time = time.perf_counter() - self.state.seconds
        self._valid_buffers = [buffer.clone() for buffer in self.model.buffers()]  # after the last valid step
        self.metrics_log = files.LogFile(run.out / METRICS_FILE, self.state.metrics_bytes)
        self.checkpoints = CheckpointManager(run.out / STATE_FOLDER, run.recipe.checkpoint_steps, run.checkpoint)

    # ------------------------------------------------------------------------------------------------------- steps

    def check_step(self, result: StepResult, step: int, lr: float, indices: Indices) -> bool:
        """Return whether the gradient of a step can be used; if not, restore the statistics of the norms.

        Args:
            result: The result of the step.
            step: The step in the epoch, from 0.
            lr: The learning rate.
            indices: The images of this process.

        Raises:
            DivergedError: loss or gradient were NaN or infinite in three steps in a row.
        """
        if result.n_images <= 1:  # batch norm needs two images
            copy_tensors(self._valid_buffers, self.model.buffers())
            return False
        gradient_norm = compute_gradient_norm(self.model)
        if math.isfinite(result.loss) and math.isfinite(gradient_norm):
            self.state = replace(self.state, bad_steps=0)
            return True
        self.state = replace(self.state, bad_steps=self.state.bad_steps + 1)
        copy_tensors(self._valid_buffers, self.model.buffers())  # the forward pass has updated them
        if self.state.bad_steps < _MAX_BAD_STEPS:
            return False
        images = self.run.loaders["train"].images
        names = ", ".join(images.format_location(i) for i in indices[:3].tolist())
        where = f"epoch {self.state.epoch}, step {step + 1}, learning rate {lr:g}, gradient norm {gradient_norm:g}"
        raise DivergedError(f"the loss became {result.loss}", where=[where, names], fix=self.divergence_fix)

    @property
    def divergence_fix(self) -> str:
        """The advice for a loss that is NaN or infinite."""
        return f"use a smaller learning rate: --set optimizer.lr={self.run.recipe.optimizer.lr / 10:g}"

    def record_step(self, result: StepResult, step: int, lr: float, *, is_valid: bool) -> None:
        """Advance the state by a step and log it.

        Args:
            result: The result of the step.
            step: The step in the epoch, from 0.
            lr: The learning rate.
            is_valid: Whether the weights were updated.
        """
        totals, global_step = self.state.totals, self.state.global_step + 1
        if is_valid:
            copy_tensors(self.model.buffers(), self._valid_buffers)
            self.eval_model.update(global_step)
            totals = totals.add_step(result.n_images, result.n_correct, result.loss)
        self.state = replace(self.state, global_step=global_step, step=step + 1, totals=replace(totals, lr=lr))
        loss = result.loss if result.n_images > 1 else math.nan
        self._log(format_step_line(self.state.epoch, step + 1, lr, loss))

    def measure_step(self, epoch_seconds: float) -> StepMetrics:
        """Return the metrics after a step, ``epoch_seconds`` after the start of the epoch."""
        self.state = replace(self.state, totals=replace(self.state.totals, seconds=epoch_seconds))
        state, totals = self.state, self.state.totals
        means = (totals.mean_loss, totals.accuracy, totals.images_per_second, totals.lr)
        return StepMetrics(state.epoch, state.step, self.batches.steps_per_epoch, *means)

    # ------------------------------------------------------------------------------------------------------ epochs

    def record_epoch(self, metrics: EpochMetrics) -> None:
        """Advance the state by an epoch, log it, and keep its weights if it is the best on ``val``."""
        best_epoch = self.state.best_epoch
        if not best_epoch or _score_epoch(metrics) > _score_epoch(self.state.epochs[best_epoch - 1]):
            best_epoch, self.best_weights = metrics.epoch, copy.deepcopy(self.eval_model.model.state_dict())
        self.state = self.state.advance_epoch(metrics, best_epoch)
        self._log(format_epoch_line(metrics))

    def is_out_of_patience(self) -> bool:
        """Return whether ``val`` has not improved for too long; epochs of the head alone do not count."""
        recipe, n_epochs = self.run.recipe, len(self.state.epochs)
        last_counted = max(self.state.best_epoch, count_head_epochs(recipe))
        return bool(recipe.patience) and n_epochs - last_counted >= (recipe.patience or 0)

    def save_best(self) -> None:
        """Save the best epoch so far as a model folder, if there is one."""
        if self.best_weights:
            self.eval_model.model.load_state_dict(self.best_weights)
        if self.best_weights and self.dist.is_main:
            files.remove_folder(self.run.out / "model")
            save(self.eval_model.model, self.run.out / "model")

    def _log(self, line: str) -> None:
        if self.dist.is_main:
            self.metrics_log.add(line)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def check_stop(self) -> None:
        """Check in all processes whether a stop was requested.

        Raises:
            StopRequestedError: it was.
        """
        if signal_number := self.dist.all_reduce_max(int(self.stop())):
            raise StopRequestedError(signal_number)

    def save_due_checkpoint(self) -> None:
        """Save a checkpoint between two steps if it is time."""
        is_in_epoch = self.state.step < self.batches.steps_per_epoch
        is_due = self.dist.is_main and is_in_epoch and self.checkpoints.is_due(self.state.global_step)
        if self.dist.all_reduce_any(is_due):
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Save a checkpoint, unless there is one of this step."""
        sync_unreadable(self.run.loaders.values(), self.dist)
        if self.dist.is_main and not self.checkpoints.has(self.state.global_step):
            self.checkpoints.save(self.make_checkpoint)

    def make_checkpoint(self) -> Checkpoint:
        """Return everything that the run needs to be resumed from this step."""
        state = replace(
            self.state,
            seconds=time.perf_counter() - self.start_time,
            unreadable=tuple(self.run.loaders["train"].skipped.reasons.items()),
            metrics_bytes=self.metrics_log.sync(),
            environment=tuple(self.run.environment.items()),
            recipe=self.run.recipe,
            classes=self.run.card.classes,
        )
        optimizer_state = get_optimizer_state(self.optimizer, dict(self.model.named_parameters()))
        training = {**optimizer_state, **self.eval_model.get_tensors()}
        return Checkpoint(state, self.model.state_dict(), self.best_weights, training)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state = checkpoint.state.rescale(self.batches.steps_per_epoch, self.run.recipe.batch_size)
        self.best_weights = checkpoint.best
        self.model.load_state_dict(checkpoint.model)
        load_optimizer_state(self.optimizer, dict(self.model.named_parameters()), checkpoint.training)
        self.eval_model.restore(checkpoint.training)
        for loader in self.run.loaders.values():
            loader.mark_unreadable(dict(checkpoint.state.unreadable))

    def format_stop_message(self) -> str:
        """Return a sentence that says from where a stopped run can be resumed."""
        if self.checkpoints.failures:
            return f"the run could not be saved; the last checkpoint is {self.checkpoints.latest or 'missing'}"
        state = self.state
        position = f"step {state.step} of epoch {state.epoch}" if state.step else f"epoch {state.epoch - 1}"
        return f"the run is saved after {position}"


def _score_epoch(metrics: EpochMetrics) -> tuple[int, float]:
    """Score an epoch: more correct predictions on ``val``, then a lower loss."""
    return metrics.val_correct, -metrics.val_loss


@contextlib.contextmanager
def save_on_stop(session: TrainSession) -> Iterator[None]:
    """Save checkpoint and best model if the body is stopped.

    Raises:
        ResnetkitInterrupt: a stop was requested; the run can be resumed.
        KeyboardInterrupt: Ctrl-C stopped Python itself; it says where the best epoch is kept.
    """
    try:
        yield
    except StopRequestedError as request:
        session.save_checkpoint()
        with contextlib.suppress(MachineError):  # the checkpoint is enough to resume
            session.save_best()
        raise ResnetkitInterrupt(session.format_stop_message(), signal_number=request.signal_number) from None
    except KeyboardInterrupt as error:
        if isinstance(error, ResnetkitInterrupt) or not session.best_weights:
            raise
        session.save_best()
        message = f"the model of epoch {session.state.best_epoch} is kept in {session.run.out}"
        raise KeyboardInterrupt(message) from None
