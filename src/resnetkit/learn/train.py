"""Training: the loop on one screen, and what a run leaves behind.

A run folder holds ``run.toml`` (the recipe), ``network.toml`` (a network that is not of the catalogue),
``environment.json``, ``metrics.jsonl`` (a line for each epoch), and when it has finished ``model/`` (a model folder:
the epoch that was best on ``val``) and ``report.html``.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit import files
from resnetkit.architecture.card import Figure, Training, card_for, preparation_faults, preparation_for
from resnetkit.architecture.catalog import ROWS, name_of
from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import Linear
from resnetkit.doctor import environment
from resnetkit.errors import DataError, TextError, UsageError
from resnetkit.learn.augment import augmented
from resnetkit.learn.data import Data, Indices, divide, fingerprint, open_data
from resnetkit.learn.device import ToInput, answering, pick, resolve
from resnetkit.learn.evaluate import count, found
from resnetkit.learn.pixels import PixelSource, Tell, ahead
from resnetkit.learn.recipe import SGD, RandomCrop, Recipe, plan_run, rate, with_options
from resnetkit.learn.report import report
from resnetkit.learn.run import (
    ENVIRONMENT_FILE,
    METRICS_FILE,
    NETWORK_FILE,
    RECIPE_FILE,
    REPORT_FILE,
    Epoch,
    Prepared,
    Run,
    Step,
    Watch,
)
from resnetkit.network.build import build
from resnetkit.network.layers import Network
from resnetkit.text import to_toml
from resnetkit.weights.store import save


def train(
    data: str | Path,
    model: str | Path | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    tell: Tell | None = None,
    **options: Any,
) -> Run:
    """Train ``model`` (resnet18 if none is named) on ``data`` and write a run folder.

    ``settings`` are nested changes to the `Recipe` that suits the data, such as ``{"schedule": {"warmup": 2}}``, and
    ``options`` those of the command line: epochs, batch_size, lr, seed, split_seed, precision. ``watch`` is called with
    what happens, ``tell`` with (done, all) while pictures are read. Without ``out`` the folder is
    ``runs/DATA-MODEL-1``, or the next number that is free. Raises before anything is written wherever the fault can be
    known by then.
    """
    opened = open_data(data)
    recipe = plan_run(
        len(opened.first), str(data), str(model) if model else None, with_options(settings or {}, **options)
    )
    prepared = _prepare(opened, recipe, device, out)
    training = _Training(prepared, _read(prepared, tell), watch or (lambda event: None))
    training.prepared = prepared = replace(prepared, out=_claim(prepared.out, numbered=out is None))
    files.write_text(prepared.out / RECIPE_FILE, to_toml(recipe))
    if recipe.model not in ROWS:  # a file elsewhere can change or go
        files.write_text(prepared.out / NETWORK_FILE, to_toml(spec_of(recipe.model)))
    files.write_text(prepared.out / ENVIRONMENT_FILE, json.dumps(environment(), indent=2) + "\n")
    if watch:
        watch(prepared)
    return training.run()


def _prepare(opened: Data, recipe: Recipe, device: str, out: str | Path | None) -> Prepared:
    if len(opened.classes) < 2:
        what = f"there is one class only ({opened.classes[0]}), so there is nothing to tell apart"
        raise DataError(what, where=opened.name, fix="add a folder for each other class")
    data = divide(opened, recipe.split_seed)
    spec = spec_of(recipe.model)
    if recipe.image:
        spec = replace(spec, input=recipe.image)
    spec = replace(spec, head=Linear(len(data.classes)))
    preparation = recipe.preparation or preparation_for(spec)
    faults = preparation_faults(preparation, spec.input[0])
    if faults:
        raise TextError("pictures cannot be prepared for this network", faults, fix="change its input, or preparation")
    card = replace(
        card_for(name_of(recipe.model), spec, data.classes),
        preparation=preparation,
        origin="trained with resnetkit",
        training=Training(Path(data.name).name, fingerprint(opened), recipe.split_seed, recipe.seed, recipe.epochs),
    )
    where = pick(device)
    return Prepared(recipe, data, card, plan(spec), str(where), resolve(recipe.precision, where), _free(out, recipe))


def _free(out: str | Path | None, recipe: Recipe) -> Path:
    """The folder to write to; one that is there already is refused, with what it holds."""
    if out is None:
        stem = f"{Path(recipe.data).name or 'data'}-{name_of(recipe.model)}"
        return next(path for i in range(1, 10**9) if not (path := Path("runs") / f"{stem}-{i}").exists())
    path = Path(out)
    if (path / "model").exists():
        raise UsageError("there is a finished run in this folder", where=str(path), fix="name another --out")
    if (path / RECIPE_FILE).exists():
        what = "there is an unfinished run in this folder, and resuming is not possible yet"
        raise UsageError(what, where=str(path), fix="name another --out, or remove this folder")
    if path.exists():
        raise UsageError("--out exists already", where=str(path), fix="name a folder that does not exist")
    return path


def _claim(out: Path, *, numbered: bool) -> Path:
    """The folder, made; another run may have taken the number meanwhile."""
    while numbered and out.exists():
        stem, _, number = out.name.rpartition("-")
        out = out.with_name(f"{stem}-{int(number) + 1}")
    files.make_folder(out)
    return out


def _read(prepared: Prepared, tell: Tell | None) -> dict[str, PixelSource]:
    """Every part as pixels; random windows are cut from the pictures themselves, so those are not kept."""
    cut = isinstance(prepared.recipe.augment, RandomCrop)
    return {
        part: PixelSource(pictures, prepared.card.preparation, keep=not (cut and part == "train"), tell=tell)
        for part, pictures in prepared.data.parts.items()
    }


class _Training:
    """The state of a run, and the loop over it."""

    def __init__(self, prepared: Prepared, sources: dict[str, PixelSource], watch: Watch) -> None:
        self.prepared, self.sources, self.watch = prepared, sources, watch
        self.recipe, self.device = prepared.recipe, torch.device(prepared.device)
        spec, recipe = prepared.card.spec, prepared.recipe
        self.model = build(spec, seed=recipe.seed, zero_last_norm=recipe.zero_last_norm)
        self.model.card = prepared.card
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = _optimiser(self.model, recipe)
        self.to_input = ToInput(prepared.card.preparation, self.device)

    def run(self) -> Run:
        started = time.perf_counter()
        epochs: list[Epoch] = []
        best, kept = 1, self.model.state_dict()
        for number in range(1, self.recipe.epochs + 1):
            epochs.append(self.epoch(number))
            self.note(epochs[-1])
            if epochs[-1].val_correct >= epochs[best - 1].val_correct:
                best, kept = number, copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(kept)
        return self.finish(epochs, best, time.perf_counter() - started)

    def epoch(self, number: int) -> Epoch:
        started, seen, right, total = time.perf_counter(), 0, 0, 0.0
        self.model.train()
        for step, (pixels, labels) in enumerate(self.batches(number)):
            lr = self.set_rate(number - 1 + step / self.steps)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.prepared.precision == "bf16"):
                answers = self.model(self.to_input(pixels))
            loss = F.cross_entropy(answers.float(), labels, label_smoothing=self.recipe.label_smoothing)
            self.optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            seen, right = seen + len(labels), right + int((answers.argmax(1) == labels).sum())
            total += self.finite(loss.item(), number, step, lr) * len(labels)
            pace = seen / (time.perf_counter() - started)
            self.watch(Step(number, step + 1, self.steps, total / seen, right / seen, pace))
        confusion, _ = self.measure("val")
        n, correct = int(confusion.sum()), int(confusion.trace())
        seconds = time.perf_counter() - started
        return Epoch(number, lr, total / seen, right / seen, n, correct, correct / n, pace, seconds)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch in its order, which is a function of (seed, epoch); a last batch of one is left out (batch norm)."""
        size = self.recipe.batch_size
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.sources["train"]))
        chunks = [order[step * size : (step + 1) * size] for step in range(self.steps)]
        tasks = [partial(self.batch, epoch, step, chunk) for step, chunk in enumerate(chunks)]
        return (task() for task in tasks) if self.sources["train"].in_memory else ahead(tasks)

    def batch(self, epoch: int, step: int, chosen: Indices) -> tuple[Tensor, Tensor]:
        source, seed = self.sources["train"], (self.recipe.seed, epoch)
        labels = source.labels[torch.from_numpy(chosen)].to(self.device)
        return augmented(source, chosen, self.recipe.augment, seed, step), labels

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        whole, rest = divmod(len(self.sources["train"]), self.recipe.batch_size)
        return max(1, whole + (rest > 1))

    def set_rate(self, epoch: float) -> float:
        lr = self.recipe.optimiser.lr * rate(self.recipe.schedule, epoch, self.recipe.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        return lr

    def finite(self, loss: float, epoch: int, step: int, lr: float) -> float:
        if not math.isfinite(loss):
            raise DataError(
                f"the loss became {loss}",
                where=f"epoch {epoch}, step {step + 1}, learning rate {lr:g}",
                fix=f"a smaller rate: --set optimiser.lr={self.recipe.optimiser.lr / 10:g}",
            )
        return loss

    def measure(self, part: str) -> tuple[Tensor, int]:
        with answering(self.model, self.device, "fp32") as logits:
            return count(logits, self.sources[part].batches(), len(self.prepared.card.classes))

    def note(self, epoch: Epoch) -> None:
        files.append_line(self.prepared.out / METRICS_FILE, json.dumps(asdict(epoch)))
        self.watch(epoch)

    def finish(self, epochs: list[Epoch], best: int, seconds: float) -> Run:
        prepared = self.prepared
        part = "test" if "test" in self.sources else "val"
        evaluation = found(prepared.card, self.recipe.data, part, prepared.card.classes, self.measure(part))
        figure = Figure(f"top-1 on {part}", evaluation.top1, f"{evaluation.correct} of {evaluation.n}, this run")
        self.model.card = replace(prepared.card, figures=(figure,))
        run = Run(prepared.out, self.recipe, self.model.card, tuple(epochs), best, evaluation, seconds)
        save(self.model, prepared.out / "model")
        files.write_text(prepared.out / REPORT_FILE, report(run))
        return run


def _optimiser(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on what multiplies (convolutions, classifier), none on norms and biases."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    how = recipe.optimiser
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": how.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if isinstance(how, SGD):
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.nesterov)
    return torch.optim.AdamW(groups, lr=how.lr, betas=(how.beta1, how.beta2))
