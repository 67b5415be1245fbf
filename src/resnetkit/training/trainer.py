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
from resnetkit.architecture.card import Figure
from resnetkit.data.dataset import Indices
from resnetkit.data.loader import tell_unreadable
from resnetkit.errors import DataError, MachineError, Stopped
from resnetkit.evaluation.metrics import WORST_LOSS, Tally, count, found
from resnetkit.runtime.device import ToInput, answering
from resnetkit.runtime.distributed import ALONE, Ranks, share_of
from resnetkit.runtime.environment import environment
from resnetkit.runtime.rng import reseed, without_trace
from resnetkit.runtime.signals import Stop
from resnetkit.training.augment import augmented, further
from resnetkit.training.checkpoint import (
    STATE_FOLDER,
    Checkpoint,
    Keeper,
    moments,
    random_states,
    remember,
    restore_random,
)
from resnetkit.training.ema import Shown
from resnetkit.training.finish import leave_results, thumbnails, tidied
from resnetkit.training.gradient import add_up
from resnetkit.training.mixup import agreement, mixed
from resnetkit.training.optimizer import alone_for, copy_all, gradient_norm, learning, optimiser_for
from resnetkit.training.recipe import rate
from resnetkit.training.run_folder import (
    KIND,
    METRICS_FILE,
    Epoch,
    Results,
    Run,
    Step,
    Watch,
    epoch_line,
    step_line,
)
from resnetkit.training.setup import Start
from resnetkit.training.state import State
from resnetkit.training.sync_batch_norm import synchronise
from resnetkit.weights.load import save

_BAD_STEPS = 3  # in a row, after which a run whose loss is no number is given up


class DivergedError(DataError):
    """The loss stayed no number."""


class AskedError(Exception):
    """The run was asked to stop, at a place where it can go on; by a signal, if there is a number."""

    def __init__(self, number: int) -> None:
        self.number = number


class Training:
    """A run: where it stands (``now``), the best model so far, and the loop over both."""

    def __init__(self, begun: Start, watch: Watch, stop: Stop = lambda: False, ranks: Ranks = ALONE) -> None:
        self.begun, self.prepared, self.sources = begun, begun.prepared, begun.sources
        self.watch, self.stop, self.ranks = watch, stop, ranks
        self.recipe, self.device = begun.prepared.recipe, torch.device(begun.prepared.device)
        self.model = begun.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if ranks.world > 1:
            self.model.load_state_dict(ranks.share(self.model.state_dict()))
        self.shown = Shown(self.model, self.recipe.ema)
        if self.synced:
            synchronise(self.model, ranks.add)
        self.optimiser = optimiser_for(self.model, self.recipe)
        self.to_input = ToInput(self.prepared.card.preparation, self.device)
        self.now, self.best = State(batch_size=self.recipe.batch_size), dict[str, Tensor]()
        if begun.checkpoint:
            self.restore(begun.checkpoint)
        self.started = time.perf_counter() - self.now.seconds
        self.statistics = [buffer.clone() for buffer in self.model.buffers()]  # after the last sound step
        self.log = files.Log(self.prepared.out / METRICS_FILE, self.now.metrics)
        self.keeper = Keeper(self.prepared.out / STATE_FOLDER, self.recipe.checkpoint_steps, begun.checkpoint)

    def run(self) -> Run:
        with without_trace(self.device):
            if self.begun.checkpoint:
                restore_random(self.begun.checkpoint.training)
            try:
                ended, failed = self.learn()
                self.keep_best()
                run = self.finish(self.now.epochs[self.now.best - 1], ended)
            except AskedError as asked:
                raise Stopped(self.stands(), number=asked.number) from None
        if failed:
            failed.fix += f"; the model of epoch {self.now.best} is kept in {run.path}"
            raise failed
        return run

    def learn(self) -> tuple[str, DivergedError | None]:
        """Epoch after epoch; why it ended early, and the error that did it. Stopped, it leaves what it has."""
        try:
            return self.epochs()
        except AskedError:
            self.save()
            with contextlib.suppress(MachineError):  # the checkpoint is what counts
                self.keep_best()
            raise
        except KeyboardInterrupt as error:
            if isinstance(error, Stopped) or not self.best:
                raise
            self.keep_best()
            raise KeyboardInterrupt(f"the model of epoch {self.now.best} is kept in {self.prepared.out}") from None

    def epochs(self) -> tuple[str, DivergedError | None]:
        while self.now.epoch <= self.recipe.epochs:
            number = self.now.epoch
            try:
                self.note(self.epoch(number))
            except DivergedError as error:
                if not self.best:
                    raise
                return f"{error.what} in epoch {number}", error
            if self.recipe.patience and number - max(self.now.best, alone_for(self.recipe)) >= self.recipe.patience:
                return f"val got no better for {self.recipe.patience} epochs", None
        return "", None

    def epoch(self, number: int) -> Epoch:
        """What is left of an epoch, and what it came to."""
        started = time.perf_counter() - self.now.sums.seconds
        learning(self.model, self.recipe, number)
        for step, (pixels, labels, which) in enumerate(self.batches(number), self.now.step):
            self.step(step, pixels, labels, which)
            self.now = replace(self.now, sums=replace(self.now.sums, seconds=time.perf_counter() - started))
            sums = self.now.sums
            self.watch(Step(number, step + 1, self.steps, sums.mean_loss, sums.accuracy, sums.pace, sums.lr))
            self.heed()
            due = self.ranks.writes and step + 1 < self.steps and self.keeper.due(self.now.steps)
            if self.ranks.agreed(due):
                self.save()
        self.save()  # before it is measured, so that a run that is killed meanwhile need not learn it again
        val, sums = self.measure("val"), self.now.sums
        if not val.n:
            raise DataError("no picture of val can be read", where=self.recipe.data)
        if val.loss >= WORST_LOSS:
            raise DivergedError("the loss on val is no number", where=f"epoch {number}", fix=self.slower)
        measured = (val.n, val.correct, val.correct / val.n, val.loss)
        return Epoch(
            number, sums.lr, sums.mean_loss, sums.accuracy, *measured, sums.pace, time.perf_counter() - started
        )

    def step(self, step: int, pixels: Tensor, labels: Tensor, which: Indices) -> None:
        """Learn from a batch, and remember that. One of a single picture is passed over (batch norm)."""
        number, sums, loss = self.now.epoch, self.now.sums, math.nan
        lr = self.set_rate(number - 1 + step / self.steps)
        reseed(self.device, self.recipe.seed, number, step, self.ranks.rank)
        self.optimiser.zero_grad()
        inputs, targets = self.mixed(self.to_input(pixels), labels, number, step)
        learnt = add_up(self.model, self.parts(step, inputs, targets), self.ask, self.window(step), self.ranks)
        if learnt.seen <= 1:
            copy_all(self.statistics, self.model.buffers())
        elif self.sound(loss := learnt.loss, number, step, lr, which):
            self.optimiser.step()
            copy_all(self.model.buffers(), self.statistics)
            self.shown.update(self.now.steps + 1)
            sums = sums.plus(learnt.seen, learnt.right, loss)
        self.now = replace(self.now, steps=self.now.steps + 1, step=step + 1, sums=replace(sums, lr=lr))
        self.write_line(step_line(number, step + 1, lr, loss))

    def ask(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(the summed loss, how many answers are right)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.prepared.precision == "bf16"):
            answers = self.model(inputs)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(answers.float(), targets, label_smoothing=smoothing, reduction="sum")
        return loss, agreement(answers, targets)

    def parts(self, step: int, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What goes through the network at once. Where norms see the pictures of all processes, all have as many."""
        each = self.window(step) // self.ranks.world if self.synced else len(targets)
        count = min(self.recipe.accumulate, max(1, each // 2))
        for some, theirs in zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True):
            if self.synced or len(theirs) > 1:
                yield some, theirs

    def window(self, step: int) -> int:
        """How many pictures a step has in all processes together."""
        return min(self.recipe.batch_size, len(self.sources["train"]) - step * self.recipe.batch_size)

    @property
    def synced(self) -> bool:
        return self.recipe.sync_norms and self.ranks.world > 1

    def mixed(self, inputs: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets; mixed in pairs where the recipe says so."""
        recipe, classes = self.recipe, len(self.prepared.card.classes)
        return mixed(inputs, labels, recipe.mix, classes, recipe.seed, epoch, step, self.ranks.rank)

    def heed(self) -> None:
        """Stop where that is asked."""
        if number := self.ranks.most(int(self.stop())):
            raise AskedError(number)

    def write_line(self, line: str) -> None:
        if self.ranks.writes:
            self.log.add(line)

    def save(self) -> None:
        """A checkpoint of where the run stands, unless there is one."""
        tell_unreadable(self.sources.values(), self.ranks)
        if self.ranks.writes and not self.keeper.has(self.now.steps):
            self.keeper.save(self.checkpoint)

    def stands(self) -> str:
        """Where a run that was stopped can go on, in words."""
        if self.keeper.failures:
            return f"the run could not be saved; {self.keeper.newest or 'nothing'} is kept"
        place = f"step {self.now.step} of epoch {self.now.epoch}" if self.now.step else f"epoch {self.now.epoch - 1}"
        return f"the run is saved after {place}"

    def checkpoint(self) -> Checkpoint:
        unreadable = tuple(self.sources["train"].skipped.reasons.items())
        state = replace(
            self.now,
            seconds=time.perf_counter() - self.started,
            unreadable=unreadable,
            metrics=self.log.sync(),
            circumstances=tuple(self.begun.circumstances.items()),
        )
        remembered = moments(self.optimiser, dict(self.model.named_parameters()))
        return Checkpoint(
            state, self.model.state_dict(), self.best, {**remembered, **self.shown.tensors(), **random_states()}
        )

    def restore(self, found: Checkpoint) -> None:
        self.now, self.best = found.state.among(self.steps, self.recipe.batch_size), found.best
        self.model.load_state_dict(found.model)
        remember(self.optimiser, dict(self.model.named_parameters()), found.training)
        self.shown.restore(found.training)
        for source in self.sources.values():
            source.leave_out(dict(found.state.unreadable))

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        """What is left of an epoch in its order, which is a function of (seed, epoch)."""
        size, source = self.recipe.batch_size, self.sources["train"]
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(source))
        chunks = [(step, order[step * size : (step + 1) * size]) for step in range(self.now.step, self.steps)]
        tasks = [partial(self.batch, epoch, step, chunk) for step, chunk in chunks]
        at_once = source.in_memory and not self.recipe.also
        return (task() for task in tasks) if at_once else source.ahead(tasks)

    def batch(self, epoch: int, step: int, window: Indices) -> tuple[Tensor, Tensor, Indices]:
        """Pixels and labels, and which pictures of this process's share of ``window`` could be read."""
        source, seed = self.sources["train"], (self.recipe.seed, epoch)
        share = share_of(len(window), self.ranks.rank, self.ranks.world, alone=not self.synced)
        pixels, which = augmented(source, window, self.recipe.augment, seed, step, share=share)
        pixels = further(pixels, which, self.recipe.also, source.preparation, seed, workers=source.workers)
        return pixels, source.labels[torch.from_numpy(which)].to(self.device), which

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        whole, rest = divmod(len(self.sources["train"]), self.recipe.batch_size)
        return max(1, whole + (rest > 1))

    def set_rate(self, epoch: float) -> float:
        lr = self.recipe.optimiser.lr * rate(self.recipe.schedule, epoch, self.recipe.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["share"]
        return lr

    def sound(self, loss: float, epoch: int, step: int, lr: float, which: Indices) -> bool:
        """Whether loss and gradient are numbers; a step that is not is left out, a few in a row end the run."""
        norm = gradient_norm(self.model)
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        self.now = replace(self.now, bad_steps=self.now.bad_steps + 1 if bad else 0)
        if not bad:
            return True
        copy_all(self.statistics, self.model.buffers())  # the forward pass has moved the norms' statistics already
        if self.now.bad_steps < _BAD_STEPS:
            return False
        pictures = self.sources["train"].pictures
        named = ", ".join(pictures.where(i) for i in which[:3].tolist())
        where = f"epoch {epoch}, step {step + 1}, learning rate {lr:g}, norm of the gradient {norm:g}"
        raise DivergedError(f"the loss became {loss}", where=[where, named], fix=self.slower)

    @property
    def slower(self) -> str:
        """What helps against a loss that is no number."""
        return f"a smaller rate: --set optimiser.lr={self.recipe.optimiser.lr / 10:g}"

    def measure(self, part: str) -> Tally:
        with answering(self.shown.model, self.device, "fp32") as logits:
            tally = count(logits, self.labelled(part), len(self.prepared.card.classes)).joined(self.ranks)
        tell_unreadable(self.sources.values(), self.ranks)
        return tally

    def labelled(self, part: str) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        source = self.sources[part]
        for pixels, which in source.batches(ranks=self.ranks):
            self.heed()
            yield pixels, source.labels[which], which

    def note(self, epoch: Epoch) -> None:
        """Remember an epoch, and its model if it is the best."""
        best = self.now.best
        if not best or _rank(epoch) > _rank(self.now.epochs[best - 1]):
            best, self.best = epoch.epoch, copy.deepcopy(self.shown.model.state_dict())
        self.now = self.now.after(epoch, best)
        self.write_line(epoch_line(epoch))
        self.watch(epoch)

    def keep_best(self) -> None:
        """The best model so far as a model folder, if there is one."""
        if self.best:
            self.shown.model.load_state_dict(self.best)
        if self.best and self.ranks.writes:
            files.remove_folder(self.prepared.out / "model")
            save(self.shown.model, self.prepared.out / "model")

    def finish(self, best: Epoch, ended: str) -> Run:
        """Measure the best model; what is written last says that the run has finished."""
        prepared, card = self.prepared, self.prepared.card
        part = "test" if "test" in self.sources else "val"
        evaluation = found(card, self.recipe.data, part, self.measure(part), self.sources[part], classes=card.classes)
        kind = f"; {KIND}" * (part == "val")
        source = f"{evaluation.correct} of {evaluation.n}, this run{kind}"
        self.shown.model.card = replace(card, figures=(Figure(f"top-1 on {part}", evaluation.top1, source),))
        results = Results(
            best.epoch,
            time.perf_counter() - self.started,
            prepared.device,
            prepared.precision,
            tuple((name, len(pictures)) for name, pictures in prepared.data.parts.items()),
            (*prepared.notes, *self.now.changes),
            evaluation,
            thumbnails(evaluation, self.sources[part]) if self.ranks.writes else (),
            ended,
        )
        self.ranks.first(partial(self.write, results))
        if self.ranks.writes:
            return tidied(prepared.out)
        return Run(prepared.out, self.recipe, self.shown.model.card, self.now.epochs, results, environment())

    def write(self, results: Results) -> None:
        """What a run has come to; the results are last, and say that it has finished."""
        self.log.sync()
        leave_results(self.prepared.out, self.shown.model.card, results)


def _rank(epoch: Epoch) -> tuple[int, float]:
    """What makes one epoch better than another: more right answers on val, then a lower loss."""
    return epoch.val_correct, -epoch.val_loss
