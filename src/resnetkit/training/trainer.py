"""Training: the loop on one screen. What comes before it is in `start`, what a step changes in `updates`."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit import files
from resnetkit.architecture.card import ReportedMetric
from resnetkit.data.dataset import Indices
from resnetkit.data.loader import sync_unreadable
from resnetkit.errors import DataError, MachineError, ResnetkitInterrupt
from resnetkit.evaluation.metrics import NON_FINITE_LOSS, Counts, build_evaluation, count_predictions
from resnetkit.network.inference import PixelNormalizer, inference
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, get_rank_slice
from resnetkit.runtime.environment import collect_environment
from resnetkit.runtime.rng import preserve_rng, seed_torch
from resnetkit.runtime.signals import StopSignal
from resnetkit.training.augment import apply_transforms, load_augmented
from resnetkit.training.checkpoint import (
    STATE_FOLDER,
    Checkpoint,
    CheckpointManager,
    get_optimizer_state,
    get_rng_states,
    load_optimizer_state,
    restore_rng_state,
)
from resnetkit.training.ema import EvalModel
from resnetkit.training.finish import finalize_run, make_thumbnails, write_results
from resnetkit.training.gradient import accumulate_gradients
from resnetkit.training.mixup import count_correct, mix_batch
from resnetkit.training.optimizer import (
    build_optimizer,
    compute_gradient_norm,
    copy_tensors,
    count_head_epochs,
    set_trainable,
)
from resnetkit.training.recipe import compute_lr_factor
from resnetkit.training.run_folder import (
    METRICS_FILE,
    VAL_BIAS_NOTE,
    EpochMetrics,
    EventCallback,
    Results,
    Run,
    StepMetrics,
    format_epoch_line,
    format_step_line,
)
from resnetkit.training.setup import PreparedRun
from resnetkit.training.state import TrainState
from resnetkit.training.sync_batch_norm import convert_sync_batchnorm
from resnetkit.weights.save import save

_MAX_BAD_STEPS = 3  # in a row, after which a run whose loss is no number is given up


class DivergedError(DataError):
    """The loss stayed no number."""


class StopRequestedError(Exception):
    """The run was asked to stop, at a place where it can go on; by a signal, if there is a number."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number


class Trainer:
    """A run: where it stands (``now``), the best model so far, and the loop over both."""

    def __init__(
        self,
        prepared_run: PreparedRun,
        on_event: EventCallback,
        stop: StopSignal = lambda: False,
        dist: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.prepared_run, self.setup, self.loaders = prepared_run, prepared_run.setup, prepared_run.loaders
        self.on_event, self.stop, self.dist = on_event, stop, dist
        self.recipe, self.device = prepared_run.setup.recipe, torch.device(prepared_run.setup.device)
        self.model = prepared_run.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dist.world_size > 1:
            self.model.load_state_dict(dist.broadcast(self.model.state_dict()))
        self.eval_model = EvalModel(self.model, self.recipe.ema)
        if self.has_sync_batch_norm:
            convert_sync_batchnorm(self.model, dist.all_reduce_sum)
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.to_input = PixelNormalizer(self.setup.card.preparation, self.device)
        self.state, self.best_weights = TrainState(batch_size=self.recipe.batch_size), dict[str, Tensor]()
        if prepared_run.checkpoint:
            self.restore(prepared_run.checkpoint)
        self.start_time = time.perf_counter() - self.state.seconds
        self.saved_buffers = [buffer.clone() for buffer in self.model.buffers()]  # after the last sound step
        self.metrics_log = files.LogFile(self.setup.out / METRICS_FILE, self.state.metrics_bytes)
        self.checkpoints = CheckpointManager(
            self.setup.out / STATE_FOLDER, self.recipe.checkpoint_steps, prepared_run.checkpoint
        )

    def run(self) -> Run:
        with preserve_rng(self.device):
            if self.prepared_run.checkpoint:
                restore_rng_state(self.prepared_run.checkpoint.training)
            try:
                stop_reason, error = self.train()
                self.save_best()
                run = self.finish(self.state.epochs[self.state.best_epoch - 1], stop_reason)
            except StopRequestedError as request:
                raise ResnetkitInterrupt(self.format_stop_message(), signal_number=request.signal_number) from None
        if error:
            error.fix += f"; the model of epoch {self.state.best_epoch} is kept in {run.path}"
            raise error
        return run

    def train(self) -> tuple[str, DivergedError | None]:
        """Epoch after epoch; why it ended early, and the error that did it. Stopped, it leaves what it has."""
        try:
            return self.train_epochs()
        except StopRequestedError:
            self.save_checkpoint()
            with contextlib.suppress(MachineError):  # the checkpoint is what counts
                self.save_best()
            raise
        except KeyboardInterrupt as error:
            if isinstance(error, ResnetkitInterrupt) or not self.best_weights:
                raise
            self.save_best()
            raise KeyboardInterrupt(f"the model of epoch {self.state.best_epoch} is kept in {self.setup.out}") from None

    def train_epochs(self) -> tuple[str, DivergedError | None]:
        while self.state.epoch <= self.recipe.epochs:
            epoch = self.state.epoch
            try:
                self.record_epoch(self.train_epoch(epoch))
            except DivergedError as error:
                if not self.best_weights:
                    raise
                return f"{error.what} in epoch {epoch}", error
            if (
                self.recipe.patience
                and epoch - max(self.state.best_epoch, count_head_epochs(self.recipe)) >= self.recipe.patience
            ):
                return f"val got no better for {self.recipe.patience} epochs", None
        return "", None

    def train_epoch(self, epoch: int) -> EpochMetrics:
        """What is left of an epoch, and what it came to."""
        start_time = time.perf_counter() - self.state.totals.seconds
        set_trainable(self.model, self.recipe, epoch)
        for step, (pixels, labels, indices) in enumerate(self.iter_batches(epoch), self.state.step):
            self.train_step(step, pixels, labels, indices)
            self.state = replace(
                self.state, totals=replace(self.state.totals, seconds=time.perf_counter() - start_time)
            )
            totals = self.state.totals
            self.on_event(
                StepMetrics(
                    epoch,
                    step + 1,
                    self.steps_per_epoch,
                    totals.mean_loss,
                    totals.accuracy,
                    totals.images_per_second,
                    totals.lr,
                )
            )
            self.check_stop()
            is_due = (
                self.dist.is_main
                and step + 1 < self.steps_per_epoch
                and self.checkpoints.is_due(self.state.global_step)
            )
            if self.dist.all_reduce_any(is_due):
                self.save_checkpoint()
        self.save_checkpoint()  # before it is measured, so that a run that is killed meanwhile need not learn it again
        val, totals = self.evaluate_split("val"), self.state.totals
        if not val.n:
            raise DataError("no picture of val can be read", where=self.recipe.data)
        if val.loss >= NON_FINITE_LOSS:
            raise DivergedError("the loss on val is no number", where=f"epoch {epoch}", fix=self.divergence_fix)
        val_metrics = (val.n, val.correct, val.correct / val.n, val.loss)
        return EpochMetrics(
            epoch,
            totals.lr,
            totals.mean_loss,
            totals.accuracy,
            *val_metrics,
            totals.images_per_second,
            time.perf_counter() - start_time,
        )

    def train_step(self, step: int, pixels: Tensor, labels: Tensor, indices: Indices) -> None:
        """Learn from a batch, and remember that. One of a single picture is passed over (batch norm)."""
        epoch, totals, loss = self.state.epoch, self.state.totals, math.nan
        lr = self.set_lr(epoch - 1 + step / self.steps_per_epoch)
        seed_torch(self.device, self.recipe.seed, epoch, step, self.dist.rank)
        self.optimizer.zero_grad()
        inputs, targets = self.mix_inputs(self.to_input(pixels), labels, epoch, step)
        result = accumulate_gradients(
            self.model,
            self.split_micro_batches(step, inputs, targets),
            self.forward_loss,
            self.get_global_batch_size(step),
            self.dist,
        )
        if result.n_images <= 1:
            copy_tensors(self.saved_buffers, self.model.buffers())
        elif self.check_finite(loss := result.loss, epoch, step, lr, indices):
            self.optimizer.step()
            copy_tensors(self.model.buffers(), self.saved_buffers)
            self.eval_model.update(self.state.global_step + 1)
            totals = totals.add_step(result.n_images, result.n_correct, loss)
        self.state = replace(
            self.state, global_step=self.state.global_step + 1, step=step + 1, totals=replace(totals, lr=lr)
        )
        self.write_line(format_step_line(epoch, step + 1, lr, loss))

    def forward_loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(the summed loss, how many answers are right)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setup.precision == "bf16"):
            outputs = self.model(inputs)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(outputs.float(), targets, label_smoothing=smoothing, reduction="sum")
        return loss, count_correct(outputs, targets)

    def split_micro_batches(self, step: int, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What goes through the network at once. Where norms see the pictures of all processes, all have as many."""
        n_images = (
            self.get_global_batch_size(step) // self.dist.world_size if self.has_sync_batch_norm else len(targets)
        )
        n_chunks = min(self.recipe.accumulate, max(1, n_images // 2))
        for input_chunk, target_chunk in zip(
            inputs.tensor_split(n_chunks), targets.tensor_split(n_chunks), strict=True
        ):
            if self.has_sync_batch_norm or len(target_chunk) > 1:
                yield input_chunk, target_chunk

    def get_global_batch_size(self, step: int) -> int:
        """How many pictures a step has in all processes together."""
        return min(self.recipe.batch_size, len(self.loaders["train"]) - step * self.recipe.batch_size)

    @property
    def has_sync_batch_norm(self) -> bool:
        return self.recipe.sync_batch_norm and self.dist.world_size > 1

    def mix_inputs(self, inputs: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets; mixed in pairs where the recipe says so."""
        recipe, n_classes = self.recipe, len(self.setup.card.classes)
        return mix_batch(inputs, labels, recipe.mix, n_classes, recipe.seed, epoch, step, self.dist.rank)

    def check_stop(self) -> None:
        """Stop where that is asked."""
        if signal_number := self.dist.all_reduce_max(int(self.stop())):
            raise StopRequestedError(signal_number)

    def write_line(self, line: str) -> None:
        if self.dist.is_main:
            self.metrics_log.add(line)

    def save_checkpoint(self) -> None:
        """A checkpoint of where the run stands, unless there is one."""
        sync_unreadable(self.loaders.values(), self.dist)
        if self.dist.is_main and not self.checkpoints.has(self.state.global_step):
            self.checkpoints.save(self.make_checkpoint)

    def format_stop_message(self) -> str:
        """Where a run that was stopped can go on, in words."""
        if self.checkpoints.failures:
            return f"the run could not be saved; {self.checkpoints.latest or 'nothing'} is kept"
        position = (
            f"step {self.state.step} of epoch {self.state.epoch}"
            if self.state.step
            else f"epoch {self.state.epoch - 1}"
        )
        return f"the run is saved after {position}"

    def make_checkpoint(self) -> Checkpoint:
        unreadable = tuple(self.loaders["train"].skipped.reasons.items())
        state = replace(
            self.state,
            seconds=time.perf_counter() - self.start_time,
            unreadable=unreadable,
            metrics_bytes=self.metrics_log.sync(),
            environment=tuple(self.prepared_run.environment.items()),
        )
        optimizer_state = get_optimizer_state(self.optimizer, dict(self.model.named_parameters()))
        return Checkpoint(
            state,
            self.model.state_dict(),
            self.best_weights,
            {**optimizer_state, **self.eval_model.get_tensors(), **get_rng_states()},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        self.state, self.best_weights = (
            checkpoint.state.rescale(self.steps_per_epoch, self.recipe.batch_size),
            checkpoint.best,
        )
        self.model.load_state_dict(checkpoint.model)
        load_optimizer_state(self.optimizer, dict(self.model.named_parameters()), checkpoint.training)
        self.eval_model.restore(checkpoint.training)
        for loader in self.loaders.values():
            loader.mark_unreadable(dict(checkpoint.state.unreadable))

    def iter_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        """What is left of an epoch in its order, which is a function of (seed, epoch)."""
        size, loader = self.recipe.batch_size, self.loaders["train"]
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(loader))
        chunks = [
            (step, order[step * size : (step + 1) * size]) for step in range(self.state.step, self.steps_per_epoch)
        ]
        tasks = [partial(self.load_batch, epoch, step, chunk) for step, chunk in chunks]
        can_load_inline = loader.is_cached and not self.recipe.transforms
        return (task() for task in tasks) if can_load_inline else loader.prefetch(tasks)

    def load_batch(self, epoch: int, step: int, step_indices: Indices) -> tuple[Tensor, Tensor, Indices]:
        """Pixels and labels, and which pictures of this process's share of ``window`` could be read."""
        loader, seed = self.loaders["train"], (self.recipe.seed, epoch)
        local_slice = get_rank_slice(
            len(step_indices), self.dist.rank, self.dist.world_size, local_norms=not self.has_sync_batch_norm
        )
        pixels, indices = load_augmented(loader, step_indices, self.recipe.augment, seed, step, local_slice=local_slice)
        pixels = apply_transforms(
            pixels, indices, self.recipe.transforms, loader.preparation, seed, workers=loader.workers
        )
        return pixels, loader.labels[torch.from_numpy(indices)].to(self.device), indices

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        full_batches, remainder = divmod(len(self.loaders["train"]), self.recipe.batch_size)
        return max(1, full_batches + (remainder > 1))

    def set_lr(self, epoch: float) -> float:
        lr = self.recipe.optimizer.lr * compute_lr_factor(self.recipe.schedule, epoch, self.recipe.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        return lr

    def check_finite(self, loss: float, epoch: int, step: int, lr: float, indices: Indices) -> bool:
        """Whether loss and gradient are numbers; a step that is not is left out, a few in a row end the run."""
        grad_norm = compute_gradient_norm(self.model)
        is_bad = not (math.isfinite(loss) and math.isfinite(grad_norm))
        self.state = replace(self.state, bad_steps=self.state.bad_steps + 1 if is_bad else 0)
        if not is_bad:
            return True
        copy_tensors(
            self.saved_buffers, self.model.buffers()
        )  # the forward pass has moved the norms' statistics already
        if self.state.bad_steps < _MAX_BAD_STEPS:
            return False
        images = self.loaders["train"].images
        names = ", ".join(images.format_location(i) for i in indices[:3].tolist())
        where = f"epoch {epoch}, step {step + 1}, learning rate {lr:g}, norm of the gradient {grad_norm:g}"
        raise DivergedError(f"the loss became {loss}", where=[where, names], fix=self.divergence_fix)

    @property
    def divergence_fix(self) -> str:
        """What helps against a loss that is no number."""
        return f"a smaller rate: --set optimizer.lr={self.recipe.optimizer.lr / 10:g}"

    def evaluate_split(self, split: str) -> Counts:
        with inference(self.eval_model.model, self.device, "fp32") as forward:
            counts = count_predictions(forward, self.iter_labeled_batches(split), len(self.setup.card.classes)).gather(
                self.dist
            )
        sync_unreadable(self.loaders.values(), self.dist)
        return counts

    def iter_labeled_batches(self, split: str) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        loader = self.loaders[split]
        for pixels, indices in loader.iter_batches(dist=self.dist):
            self.check_stop()
            yield pixels, loader.labels[indices], indices

    def record_epoch(self, epoch: EpochMetrics) -> None:
        """Remember an epoch, and its model if it is the best."""
        best_epoch = self.state.best_epoch
        if not best_epoch or _epoch_sort_key(epoch) > _epoch_sort_key(self.state.epochs[best_epoch - 1]):
            best_epoch, self.best_weights = epoch.epoch, copy.deepcopy(self.eval_model.model.state_dict())
        self.state = self.state.advance_epoch(epoch, best_epoch)
        self.write_line(format_epoch_line(epoch))
        self.on_event(epoch)

    def save_best(self) -> None:
        """The best model so far as a model folder, if there is one."""
        if self.best_weights:
            self.eval_model.model.load_state_dict(self.best_weights)
        if self.best_weights and self.dist.is_main:
            files.remove_folder(self.setup.out / "model")
            save(self.eval_model.model, self.setup.out / "model")

    def finish(self, best_epoch: EpochMetrics, stop_reason: str) -> Run:
        """Measure the best model; what is written last says that the run has finished."""
        setup, card = self.setup, self.setup.card
        split = "test" if "test" in self.loaders else "val"
        evaluation = build_evaluation(
            card, self.recipe.data, split, self.evaluate_split(split), self.loaders[split], classes=card.classes
        )
        bias_note = f"; {VAL_BIAS_NOTE}" * (split == "val")
        source = f"{evaluation.correct} of {evaluation.n}, this run{bias_note}"
        self.eval_model.model.card = replace(
            card, metrics=(ReportedMetric(f"top-1 on {split}", evaluation.top1, source),)
        )
        results = Results(
            best_epoch.epoch,
            time.perf_counter() - self.start_time,
            setup.device,
            setup.precision,
            tuple((name, len(images)) for name, images in setup.dataset.splits.items()),
            (*setup.notes, *self.state.changes),
            evaluation,
            make_thumbnails(evaluation, self.loaders[split]) if self.dist.is_main else (),
            stop_reason,
        )
        self.dist.run_on_main(partial(self.write_run_results, results))
        if self.dist.is_main:
            return finalize_run(setup.out)
        return Run(
            setup.out, self.recipe, self.eval_model.model.card, self.state.epochs, results, collect_environment()
        )

    def write_run_results(self, results: Results) -> None:
        """What a run has come to; the results are last, and say that it has finished."""
        self.metrics_log.sync()
        write_results(self.setup.out, self.eval_model.model.card, results)


def _epoch_sort_key(epoch: EpochMetrics) -> tuple[int, float]:
    """What makes one epoch better than another: more right answers on val, then a lower loss."""
    return epoch.val_correct, -epoch.val_loss
