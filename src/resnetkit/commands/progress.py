"""The progress of a training run on stderr: a live line on a terminal, a line per epoch in a log."""

from __future__ import annotations

import contextlib
import sys
from typing import IO, Any, cast

from rich.console import Console
from rich.live import Live as Line
from rich.text import Text

from resnetkit.architecture.summary import format_summary_total
from resnetkit.commands.output import log
from resnetkit.formatting import format_duration, pluralize
from resnetkit.serialization import tag_of
from resnetkit.training.events import EpochMetrics, PreparedRun, StepMetrics
from resnetkit.training.recipe import EMA, NoMix, Recipe

_RESUME_EXACT = "exact, bit for bit, on this kind of processor with these versions and threads"
_RESUME_APPROXIMATE = "from the last checkpoint; bit for bit on a CPU only"
_RESUME_OVERRIDDEN = "not exact: a changed setting or image makes the result differ from both configurations"


class LogProgress:
    """Progress for logs: the header of the run, then a line per epoch."""

    def __init__(self) -> None:
        self.epochs = 0

    def __call__(self, event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        if isinstance(event, PreparedRun):
            self.epochs = event.recipe.epochs
            log(format_run_header(event))
        elif isinstance(event, EpochMetrics):
            log(format_epoch(event, self.epochs))

    def on_progress(self, done: int, total: int) -> None:
        """Ignore the number of images that were read.

        Args:
            done: The number of images read.
            total: The number of all images.
        """

    def close(self) -> None:
        """Do nothing: a log needs no end."""


class _QuietStderr:
    """Stderr without its errors: a terminal that was closed does not end the run."""

    def write(self, text: str) -> int:
        """Write a text if somebody reads it."""
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush stderr if somebody reads it."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class LiveProgress:
    """Progress for terminals: one line that each step rewrites, and a line per epoch above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=cast(IO[str], _QuietStderr()), highlight=False)
        self.live = Line(
            console=self.console, refresh_per_second=5, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.epochs = self.batch_size = 0

    def __call__(self, event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        if isinstance(event, PreparedRun):
            self.epochs, self.batch_size = event.recipe.epochs, event.recipe.batch_size
            self.console.print(format_run_header(event), markup=False)
        elif isinstance(event, EpochMetrics):
            self.console.print(format_epoch(event, self.epochs), markup=False)
        else:
            self.show(self.format_step(event))

    def on_progress(self, done: int, total: int) -> None:
        """Show how many images were read.

        Args:
            done: The number of images read.
            total: The number of all images.
        """
        if done % 50 == 0 or done == total:
            self.show(f"reading images  {done:,}/{total:,}")

    def show(self, line: str) -> None:
        """Show a live line; the first call starts the display."""
        if not self.live.is_started:
            self.live.start()
        self.live.update(Text(line))

    def format_step(self, event: StepMetrics) -> str:
        """Format the live line of a step."""
        remaining_steps = (self.epochs - event.epoch) * event.steps_per_epoch + event.steps_per_epoch - event.step
        throughput = event.images_per_second
        remaining_time = f"{format_duration(remaining_steps * self.batch_size / throughput)} left" if throughput else ""
        return (
            f"epoch {event.epoch}/{self.epochs}  step {event.step}/{event.steps_per_epoch}  loss {event.loss:.3f}  "
            f"accuracy {event.accuracy:.1%}  {throughput:,.0f} images/s  {remaining_time}"
        )

    def close(self) -> None:
        """Stop the live line."""
        self.live.stop()


def format_run_header(event: PreparedRun) -> str:
    """Format the data, model, recipe, device and memory of a run, and how exactly it resumes."""
    recipe, card = event.recipe, event.card
    splits = ", ".join(f"{len(dataset):,} {split}" for split, dataset in event.dataset.splits.items())
    optimizer = f"{tag_of(type(recipe.optimizer))} at {recipe.optimizer.lr:g}"
    notes = "".join(f"\nnote   {note}" for note in (*event.notes, *event.resume_notes))
    return (
        f"data   {recipe.data}: {len(card.classes)} classes; images: {splits}\n"
        f"model  {card.name}: {format_summary_total(event.plan)}{_format_input_change(event)}\n"
        f"recipe {pluralize(recipe.epochs, 'epoch')} in batches of {recipe.batch_size}; {optimizer}, "
        f"{tag_of(type(recipe.schedule))}; {_format_augmentation(recipe)}; seed {recipe.seed}\n"
        f"device {event.device}, {event.precision}{_format_processes(event)}; writing to {event.out}\n"
        f"memory {event.memory_line}\n"
        f"resume {_describe_exactness(event)}{notes}"
    )


def _describe_exactness(event: PreparedRun) -> str:
    if event.is_exact:
        return _RESUME_EXACT
    return _RESUME_OVERRIDDEN if event.device == "cpu" else _RESUME_APPROXIMATE


def _format_augmentation(recipe: Recipe) -> str:
    transforms = (recipe.augment, *recipe.transforms, *(() if recipe.mix == NoMix() else (recipe.mix,)))
    names = ", ".join(tag_of(type(transform)) for transform in transforms)
    return f"{names}; ema of {recipe.ema.decay:g}" if isinstance(recipe.ema, EMA) else names


def _format_processes(event: PreparedRun) -> str:
    processes = f"; {event.world_size} processes" if event.world_size > 1 else ""
    micro_batches = f" in {event.recipe.accumulate} micro-batches" if event.recipe.accumulate > 1 else ""
    return processes + micro_batches


def _format_input_change(event: PreparedRun) -> str:
    """Format how the input differs from the one that the spec gives, if it does."""
    original, current = ("x".join(map(str, size)) for size in (event.spec_input, event.card.spec.input))
    return f"; its input changed from {original} to {current}" if original != current else ""


def format_epoch(event: EpochMetrics, epochs: int) -> str:
    """Format the metrics of an epoch on one line.

    Args:
        event: The metrics.
        epochs: The number of all epochs.
    """
    return (
        f"epoch {event.epoch}/{epochs}  loss {event.loss:.3f}  train {event.accuracy:.2%}  "
        f"val {event.val_accuracy:.2%}  {event.images_per_second:,.0f} images/s  {format_duration(event.seconds)}"
    )
