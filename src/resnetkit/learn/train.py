"""Training: the loop on one screen. What comes before it is in `start`, what a run leaves behind in `run`."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit import files
from resnetkit.architecture.card import CARD_FILE, Figure
from resnetkit.architecture.catalog import ROWS
from resnetkit.doctor import environment
from resnetkit.errors import DataError, PictureError, suggestion
from resnetkit.images.decode import attempt
from resnetkit.images.thumbnail import thumbnail
from resnetkit.learn.augment import augmented
from resnetkit.learn.data import Indices
from resnetkit.learn.device import ToInput, answering
from resnetkit.learn.evaluate import WORST_LOSS, Tally, count, found
from resnetkit.learn.evaluation import Evaluation
from resnetkit.learn.pixels import Tell
from resnetkit.learn.recipe import SGD, FineTune, Recipe, rate
from resnetkit.learn.report import report
from resnetkit.learn.run import (
    ENVIRONMENT_FILE,
    KIND,
    METRICS_FILE,
    NETWORK_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    SHOWN,
    Epoch,
    Results,
    Run,
    Step,
    Thumbnail,
    Watch,
    read_run,
)
from resnetkit.learn.settings import OPTIONS
from resnetkit.learn.start import Start, start
from resnetkit.network.layers import Network
from resnetkit.text import to_data, to_json, to_toml
from resnetkit.weights.store import save

_BAD_STEPS = 3  # in a row, after which a run whose loss is no number is given up


def train(
    data: str | Path,
    model: str | os.PathLike[str] | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    tell: Tell | None = None,
    workers: int | None = None,
    **options: Any,
) -> Run:
    """Train ``model`` (resnet18 if none is named) on ``data`` and write a run folder.

    A model that has weights is fine-tuned. ``settings`` are nested changes to the `Recipe` that suits the data, such as
    ``{"schedule": {"warmup": 2}}``, and ``options`` those of the command line: epochs, batch_size, lr, seed,
    split_seed, patience, precision, network, dialect, bad_files, max_bad. ``watch`` is called with what happens,
    ``tell`` with (done, all) while pictures are read. Without ``out`` the folder is ``runs/DATA-MODEL-1``, or the next
    number that is free. ``workers`` threads read pictures (one on each core if left out; 0 is the loop itself), which
    changes the pace and nothing else. Raises before anything is written wherever the fault can be known by then.
    """
    unknown = next((name for name in options if name not in OPTIONS), None)
    if unknown:
        raise TypeError(f"train has no option called {unknown!r}; {suggestion(unknown, OPTIONS)}")
    begun = start(data, model, settings or {}, out=out, device=device, tell=tell, workers=workers, **options)
    recipe, folder = begun.prepared.recipe, begun.prepared.out
    files.write_text(folder / RECIPE_FILE, to_toml(recipe))
    if recipe.model not in ROWS:  # a file elsewhere can change or go
        files.write_text(folder / NETWORK_FILE, to_toml(begun.prepared.card.spec))
    files.write_text(folder / ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")
    if watch:
        watch(begun.prepared)
    try:
        return _Training(begun, watch or (lambda event: None)).run()
    except BaseException:
        if not (folder / METRICS_FILE).exists():  # not an epoch was finished, so nothing is worth keeping
            for name in (RECIPE_FILE, NETWORK_FILE, ENVIRONMENT_FILE):
                (folder / name).unlink(missing_ok=True)
            files.remove_empty(begun.made)
        raise


class _DivergedError(DataError):
    """The loss stayed no number."""


class _Training:
    """The state of a run, and the loop over it."""

    def __init__(self, begun: Start, watch: Watch) -> None:
        self.prepared, self.sources, self.watch = begun.prepared, begun.sources, watch
        self.recipe, self.device = begun.prepared.recipe, torch.device(begun.prepared.device)
        self.model = begun.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = _optimiser(self.model, self.recipe)
        self.to_input = ToInput(self.prepared.card.preparation, self.device)
        self.bad_steps = 0
        self.statistics = [buffer.clone() for buffer in self.model.buffers()]  # after the last sound step

    def run(self) -> Run:
        started = time.perf_counter()
        epochs: list[Epoch] = []
        best, kept, ended, failed = 1, self.model.state_dict(), "", None
        for number in range(1, self.recipe.epochs + 1):
            try:
                epochs.append(self.epoch(number))
            except _DivergedError as error:
                if not epochs:
                    raise
                failed, ended = error, f"{error.what} in epoch {number}"
                break
            except KeyboardInterrupt:
                if not epochs:
                    raise
                self.model.load_state_dict(kept)
                save(self.model, self.prepared.out / "model")
                raise KeyboardInterrupt(f"the model of epoch {best} is kept in {self.prepared.out}") from None
            self.note(epochs[-1])
            if number == 1 or _rank(epochs[-1]) > _rank(epochs[best - 1]):
                best, kept = number, copy.deepcopy(self.model.state_dict())
            if self.recipe.patience and number - max(best, _alone(self.recipe)) >= self.recipe.patience:
                ended = f"val got no better for {self.recipe.patience} epochs"
                break
        self.model.load_state_dict(kept)
        save(self.model, self.prepared.out / "model")  # before anything that can fail
        run = self.finish(epochs[best - 1], time.perf_counter() - started, ended)
        if failed:
            failed.fix += f"; the model of epoch {best} is kept in {run.path}"
            raise failed
        return run

    def epoch(self, number: int) -> Epoch:
        started, seen, right, total, lr, pace = time.perf_counter(), 0, 0, 0.0, 0.0, 0.0
        learning(self.model, self.recipe, number)
        for step, (pixels, labels, which) in enumerate(self.batches(number)):
            lr = self.set_rate(number - 1 + step / self.steps)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.prepared.precision == "bf16"):
                answers = self.model(self.to_input(pixels))
            loss = F.cross_entropy(answers.float(), labels, label_smoothing=self.recipe.label_smoothing)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.sound(loss.item(), number, step, lr, which):
                self.optimiser.step()
                _copy(self.model.buffers(), self.statistics)
                seen, right = seen + len(labels), right + int((answers.argmax(1) == labels).sum())
                total += loss.item() * len(labels)
            pace = seen / (time.perf_counter() - started)
            self.watch(Step(number, step + 1, self.steps, total / max(seen, 1), right / max(seen, 1), pace))
        val = self.measure("val")
        if not val.n:
            raise DataError("no picture of val can be read", where=self.recipe.data)
        if val.loss >= WORST_LOSS:
            raise _DivergedError("the loss on val is no number", where=f"epoch {number}", fix=self.slower)
        accuracy, n = val.correct / val.n, max(seen, 1)
        took = time.perf_counter() - started
        return Epoch(number, lr, total / n, right / n, val.n, val.correct, accuracy, val.loss, pace, took)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        """An epoch in its order, which is a function of (seed, epoch); a last batch of one is left out (batch norm)."""
        size, source = self.recipe.batch_size, self.sources["train"]
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(source))
        chunks = [order[step * size : (step + 1) * size] for step in range(self.steps)]
        tasks = [partial(self.batch, epoch, step, chunk) for step, chunk in enumerate(chunks)]
        made = (task() for task in tasks) if source.in_memory else source.ahead(tasks)
        return (batch for batch in made if len(batch[2]) > 1)

    def batch(self, epoch: int, step: int, chosen: Indices) -> tuple[Tensor, Tensor, Indices]:
        """Pixels and labels, and which pictures of ``chosen`` could be read."""
        source, seed = self.sources["train"], (self.recipe.seed, epoch)
        pixels, which = augmented(source, chosen, self.recipe.augment, seed, step)
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
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad_steps = 0
            return True
        _copy(self.statistics, self.model.buffers())  # the forward pass has moved the norms' statistics already
        self.bad_steps += 1
        if self.bad_steps < _BAD_STEPS:
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
        source = self.sources[part]
        labelled = ((pixels, source.labels[which]) for pixels, which in source.batches())
        with answering(self.model, self.device, "fp32") as logits:
            return count(logits, labelled, len(self.prepared.card.classes))

    def note(self, epoch: Epoch) -> None:
        files.append_line(self.prepared.out / METRICS_FILE, json.dumps(asdict(epoch)))
        self.watch(epoch)

    def finish(self, best: Epoch, seconds: float, ended: str) -> Run:
        prepared, card = self.prepared, self.prepared.card
        part = "test" if "test" in self.sources else "val"
        evaluation = found(card, self.recipe.data, part, self.measure(part), self.sources[part], classes=card.classes)
        kind = f"; {KIND}" * (part == "val")
        source = f"{evaluation.correct} of {evaluation.n}, this run{kind}"
        self.model.card = replace(card, figures=(Figure(f"top-1 on {part}", evaluation.top1, source),))
        parts = tuple((name, len(pictures)) for name, pictures in prepared.data.parts.items())
        results = Results(
            best.epoch,
            seconds,
            prepared.device,
            prepared.precision,
            parts,
            prepared.notes,
            evaluation,
            self.thumbnails(evaluation, part),
            ended,
        )
        files.write_text(prepared.out / RESULTS_FILE, json.dumps(to_data(results), ensure_ascii=False) + "\n")
        files.write_text(prepared.out / "model" / CARD_FILE, to_json(self.model.card))
        run = read_run(prepared.out)
        files.write_text(prepared.out / REPORT_FILE, report([run]))
        return run

    def thumbnails(self, evaluation: Evaluation, part: str) -> tuple[Thumbnail, ...]:
        """The pictures that the report shows, by their numbers in the evaluation."""
        source = self.sources[part]
        numbers = source.readable(np.arange(len(source)))
        chosen = sorted({*evaluation.mistakes(SHOWN), *evaluation.unsure(SHOWN)})
        images = {i: attempt(source.pictures.image, int(numbers[i])) for i in chosen}
        return tuple(Thumbnail(i, thumbnail(im)) for i, im in images.items() if not isinstance(im, PictureError))


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
