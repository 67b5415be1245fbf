"""Training: the loop on one screen. What comes before it is in `start`, what a run leaves behind in `run`."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit import files
from resnetkit.architecture.card import Figure
from resnetkit.doctor import environment
from resnetkit.errors import DataError, MachineError, Stopped, suggestion
from resnetkit.learn.augment import augmented, further
from resnetkit.learn.chance import reseed, without_trace
from resnetkit.learn.checkpoint import (
    LATEST,
    STATE_FOLDER,
    Checkpoint,
    Keeper,
    moments,
    random_states,
    remember,
    restore_random,
)
from resnetkit.learn.data import Indices
from resnetkit.learn.device import ToInput, answering
from resnetkit.learn.ema import Shown
from resnetkit.learn.evaluate import WORST_LOSS, Tally, count, found
from resnetkit.learn.gradient import add_up
from resnetkit.learn.memory import advice, is_lack, too_little
from resnetkit.learn.mix import agreement, mixed
from resnetkit.learn.norms import synchronise
from resnetkit.learn.pixels import Tell, tell_unreadable
from resnetkit.learn.ranks import ALONE, Ranks, restarted, share_of
from resnetkit.learn.recipe import SGD, FineTune, Recipe, rate
from resnetkit.learn.results import leave_results, thumbnails, tidied
from resnetkit.learn.resume import is_finished, require_unchanged
from resnetkit.learn.resume import resume as resumed
from resnetkit.learn.run import (
    KIND,
    METRICS_FILE,
    Epoch,
    Prepared,
    Results,
    Run,
    Step,
    Watch,
    begun_before,
    epoch_line,
    finished,
    read_run,
    require_one,
    step_line,
)
from resnetkit.learn.settings import OPTIONS
from resnetkit.learn.signals import Stop
from resnetkit.learn.start import Start, leave, start
from resnetkit.learn.state import State
from resnetkit.learn.trackers import tracking
from resnetkit.network.layers import Network
from resnetkit.weights.store import save

_BAD_STEPS = 3  # in a row, after which a run whose loss is no number is given up


def train(
    data: str | Path | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    override: bool = False,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    tell: Tell | None = None,
    workers: int | None = None,
    stop: Stop | None = None,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Run:
    """Train ``model`` (resnet18 if none is named) on ``data`` and write a run folder, or go on with one.

    A model that has weights is fine-tuned. ``settings`` are nested changes to the `Recipe` that suits the data, such as
    ``{"schedule": {"warmup": 2}}``, and ``options`` those of the command line: recipe, epochs, batch_size, lr, seed,
    split_seed, patience, checkpoint_steps, accumulate, track, precision, network, dialect, bad_files, max_bad.
    ``watch`` is called with what happens, ``tell`` with (done, all) while pictures are read. Without ``out`` the folder
    is ``runs/DATA-MODEL-1``, or the next number that is free. ``workers`` threads read pictures (one on each core if
    left out; 0 is the loop itself), which changes the pace and nothing else. Raises before anything is written wherever
    the fault can be known by then.

    ``resume`` names an unfinished run, which needs no data and no model: it goes on after its newest checkpoint, and on
    the same CPU ends with the very weights it would have ended with. What is set otherwise than it was is refused where
    it makes the result that of neither, unless ``override``. A finished run is handed back as it is. ``stop`` is asked
    between two steps and two batches of an evaluation: where it says so, a checkpoint is written and
    `resnetkit.errors.Stopped`, a KeyboardInterrupt, is raised. ``ranks`` are the processes of the run: each is told the
    same, the first writes. Where torchrun has started them again, an unfinished ``out`` is resumed.
    """
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown:
        raise TypeError(f"train has no option called {unknown!r}; {suggestion(unknown, OPTIONS)}")
    require_one(data, out, resume)
    again = restarted() and ranks.first(lambda: begun_before(out))
    out, resume = (None, out) if again else (out, resume)
    if resume is not None and ranks.first(lambda: is_finished(resume)):
        require_unchanged(resume, *(() if again else (data, model, settings, *options.values())))
        return tidied(Path(resume)) if ranks.writes else read_run(resume)
    how: dict[str, Any] = {"device": device, "tell": tell, "workers": workers, "ranks": ranks, **options}
    if resume is not None:
        begun = resumed(resume, data, model, settings or {}, override=override, **how)
    else:
        begun = start(data or "", model, settings or {}, out=out, **how)
    try:
        begun = replace(begun, prepared=replace(begun.prepared, memory=advice(begun.prepared)))
        if watch:
            watch(begun.prepared)
        with _tracked(begun, ranks) as track:
            return _Training(begun, _both(watch, track), stop or (lambda: False), ranks).run()
    except BaseException as error:
        kept = _keep(begun, error)
        if isinstance(error, Stopped) and kept:
            raise Stopped(str(error), str(begun.prepared.out), error.number) from None
        if is_lack(error):
            raise too_little(error, begun.prepared, begun.model, kept) from None
        raise


@contextlib.contextmanager
def _tracked(begun: Start, ranks: Ranks) -> Iterator[Watch]:
    """What trackers are told by, in the one process that writes."""
    if not ranks.writes:
        yield lambda event: None
        return
    with tracking(begun.prepared, begun.checkpoint.state.steps if begun.checkpoint else 0) as track:
        yield track


def _both(watch: Watch | None, track: Watch) -> Watch:
    def told(event: Prepared | Step | Epoch) -> None:
        if watch:
            watch(event)
        track(event)

    return told


def _keep(begun: Start, error: BaseException) -> bool:
    """Whether there is anything to go on with; a new run of which there is nothing leaves nothing."""
    folder = begun.prepared.out
    hopeless = isinstance(error, _DivergedError) and not finished(folder)
    if begun.made and (hopeless or not (folder / STATE_FOLDER / LATEST).exists()):
        leave(begun.made)
    return folder.exists()


class _DivergedError(DataError):
    """The loss stayed no number."""


class _AskedError(Exception):
    """The run was asked to stop, at a place where it can go on; by a signal, if there is a number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Training:
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
        self.optimiser = _optimiser(self.model, self.recipe)
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
            except _AskedError as asked:
                raise Stopped(self.stands(), number=asked.number) from None
        if failed:
            failed.fix += f"; the model of epoch {self.now.best} is kept in {run.path}"
            raise failed
        return run

    def learn(self) -> tuple[str, _DivergedError | None]:
        """Epoch after epoch; why it ended early, and the error that did it. Stopped, it leaves what it has."""
        try:
            return self.epochs()
        except _AskedError:
            self.save()
            with contextlib.suppress(MachineError):  # the checkpoint is what counts
                self.keep_best()
            raise
        except KeyboardInterrupt as error:
            if isinstance(error, Stopped) or not self.best:
                raise
            self.keep_best()
            raise KeyboardInterrupt(f"the model of epoch {self.now.best} is kept in {self.prepared.out}") from None

    def epochs(self) -> tuple[str, _DivergedError | None]:
        while self.now.epoch <= self.recipe.epochs:
            number = self.now.epoch
            try:
                self.note(self.epoch(number))
            except _DivergedError as error:
                if not self.best:
                    raise
                return f"{error.what} in epoch {number}", error
            if self.recipe.patience and number - max(self.now.best, _alone(self.recipe)) >= self.recipe.patience:
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
            raise _DivergedError("the loss on val is no number", where=f"epoch {number}", fix=self.slower)
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
            _copy(self.statistics, self.model.buffers())
        elif self.sound(loss := learnt.loss, number, step, lr, which):
            self.optimiser.step()
            _copy(self.model.buffers(), self.statistics)
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
            raise _AskedError(number)

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
        norm = _norm(self.model)
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        self.now = replace(self.now, bad_steps=self.now.bad_steps + 1 if bad else 0)
        if not bad:
            return True
        _copy(self.statistics, self.model.buffers())  # the forward pass has moved the norms' statistics already
        if self.now.bad_steps < _BAD_STEPS:
            return False
        pictures = self.sources["train"].pictures
        named = ", ".join(pictures.where(i) for i in which[:3].tolist())
        where = f"epoch {epoch}, step {step + 1}, learning rate {lr:g}, norm of the gradient {norm:g}"
        raise _DivergedError(f"the loss became {loss}", where=[where, named], fix=self.slower)

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
        for pixels, which in source.batches(self.ranks):
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


def _alone(recipe: Recipe) -> int:
    """For how many epochs the head learns alone; all of them where the body never learns."""
    if not isinstance(recipe.start, FineTune):
        return 0
    return recipe.start.head_epochs if recipe.start.body_rate else recipe.epochs


def learning(model: Network, recipe: Recipe, epoch: int) -> None:
    """Set what learns in an epoch: all, or when fine-tuning first the head alone, and norms as the recipe says.

    A norm that does not learn its statistics is in evaluation mode, where it uses those it came with.
    """
    model.train()
    how = recipe.start
    if not isinstance(how, FineTune):
        return
    alone = epoch <= _alone(recipe)
    for name, part in model.named_children():
        part.requires_grad_(name == "head" or not alone)
        part.train(name == "head" or not alone)
    if how.norms == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _copy(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for here, there in zip(source, target, strict=True):
            there.copy_(here)


def _norm(model: Network) -> float:
    """Of the whole gradient."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _optimiser(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on what multiplies (convolutions, classifier), none on norms and biases.

    ``share`` is what a group learns at of the rate.
    """
    how, body = recipe.optimiser, recipe.start.body_rate if isinstance(recipe.start, FineTune) else 1.0
    groups: list[dict[str, Any]] = []
    for share, in_head in ((body, False), (1.0, True)):
        chosen = [p for path, p in model.named_parameters() if path.startswith("head.") == in_head]
        groups.append({"params": [p for p in chosen if p.ndim > 1], "weight_decay": how.weight_decay, "share": share})
        groups.append({"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0, "share": share})
    if isinstance(how, SGD):
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.nesterov)
    return torch.optim.AdamW(groups, lr=how.lr, betas=(how.beta1, how.beta2))
