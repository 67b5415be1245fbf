"""The training loop.

Other modules make a run exact and resumable: the order of the images in `batches`, the
state, its checkpoints and stop requests in `session`, gradients over several processes in `optimizer`.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from resnetkit.data.dataset import Indices
from resnetkit.network.inference import PixelNormalizer
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.rng import preserve_rng, seed_torch
from resnetkit.runtime.signals import StopSignal
from resnetkit.training.events import EpochMetrics, EventCallback, PreparedRun
from resnetkit.training.finish import finish_run
from resnetkit.training.mixup import mix_batch
from resnetkit.training.optimizer import count_micro_batch, reduce_step, set_lr, set_trainable
from resnetkit.training.run_folder import Run
from resnetkit.training.schedule import compute_lr
from resnetkit.training.session import DivergedError, TrainSession, save_on_stop
from resnetkit.training.validation import measure_epoch


class Trainer:
    """Train a prepared run from its position to the end."""

    def __init__(
        self,
        run: PreparedRun,
        on_event: EventCallback,
        stop: StopSignal = lambda: False,
        dist: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.run, self.on_event, self.dist = run, on_event, dist
        self.session = TrainSession(run, stop, dist)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=run.recipe.label_smoothing, reduction="sum")
        self.normalize = PixelNormalizer(run.card.preparation, self.session.device)

    def fit(self) -> Run:
        """Train, evaluate the best epoch, and finish the run folder.

        Raises:
            DivergedError: the loss stayed NaN or infinite; the best epoch so far is kept.
            ResnetkitInterrupt: a stop was requested; the run can be resumed.
        """
        session = self.session
        with preserve_rng(session.device), save_on_stop(session):
            stop_reason, error = self.train()
            session.save_best()
            finished = finish_run(session, stop_reason)
        if error:
            error.fix += f"; the model of epoch {session.state.best_epoch} is kept in {finished.path}"
            raise error
        return finished

    def train(self) -> tuple[str, DivergedError | None]:
        """Train epoch after epoch.

        Returns:
            Why training ended early ("" if it did not), and the error if the loss diverged.

        Raises:
            DivergedError: the loss diverged before an epoch was completed.
        """
        session, recipe = self.session, self.run.recipe
        for epoch in range(session.state.epoch, recipe.epochs + 1):
            set_trainable(session.model, recipe, epoch)
            try:
                metrics = self.train_epoch(epoch)
            except DivergedError as error:
                if not session.best_weights:
                    raise
                return f"{error.what} in epoch {epoch}", error
            session.record_epoch(metrics)
            self.on_event(metrics)
            if session.is_out_of_patience():
                return f"val did not improve for {recipe.patience} epochs", None
        return "", None

    def train_epoch(self, epoch: int) -> EpochMetrics:
        """Train what is left of an epoch, then measure it on ``val``."""
        session, start_time = self.session, time.perf_counter() - self.session.state.totals.seconds
        first_step = session.state.step
        for step, (pixels, labels, indices) in enumerate(session.batches.iter_epoch(epoch, first_step), first_step):
            self.train_step(step, pixels, labels, indices)
            self.on_event(session.measure_step(time.perf_counter() - start_time))
            session.check_stop()
            session.save_due_checkpoint()
        session.save_checkpoint()  # before validation, so that a run killed there does not train the epoch again
        return measure_epoch(session, start_time)

    def train_step(self, step: int, pixels: Tensor, labels: Tensor, indices: Indices) -> None:
        """Update the weights once, unless the loss or the gradient is NaN or infinite.

        Args:
            step: The step in the epoch, from 0.
            pixels: This process's images (N, H, W, C), 8 bits.
            labels: Their classes (N).
            indices: Their indices in the split.
        """
        session, run, epoch = self.session, self.run, self.session.state.epoch
        seed = (run.recipe.seed, epoch, step, self.dist.rank)
        model, optimizer, batches = session.model, session.optimizer, session.batches
        lr = compute_lr(run.recipe, epoch - 1 + step / batches.steps_per_epoch)
        set_lr(optimizer, lr)
        seed_torch(session.device, *seed)
        batch_inputs, labels = self.normalize(pixels), labels.to(session.device)
        batch_inputs, batch_targets = mix_batch(batch_inputs, labels, run.recipe.mix, len(run.card.classes), *seed)
        step_size, totals = batches.get_step_size(step), torch.zeros(3, device=session.device)
        optimizer.zero_grad()
        for inputs, targets in batches.split_micro_batches(step, batch_inputs, batch_targets):
            with torch.autocast(session.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                outputs = model(inputs)
            loss_sum = self.criterion(outputs.float(), targets)
            loss = loss_sum / step_size
            loss.backward()
            totals += count_micro_batch(outputs, targets, loss_sum)
        result = reduce_step(model, totals, step_size, self.dist)
        is_valid = session.check_step(result, step, lr, indices)
        if is_valid:
            optimizer.step()
        session.record_step(result, step, lr, is_valid=is_valid)
