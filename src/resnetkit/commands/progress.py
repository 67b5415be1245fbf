"""How a training run is shown while it goes on."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live as Line
from rich.text import Text

from resnetkit.architecture.summary import format_summary_total
from resnetkit.commands.output import log
from resnetkit.formatting import format_duration
from resnetkit.serialization import tag_of
from resnetkit.training.events import EpochMetrics, PreparedRun, StepMetrics
from resnetkit.training.recipe import EMA, NoMix, Recipe


class LogProgress:
    """A line for each epoch, for logs."""

    def __init__(self) -> None:
        self.epochs = 0

    def __call__(self, event: PreparedRun | StepMetrics | EpochMetrics) -> None:
        if isinstance(event, PreparedRun):
            self.epochs = event.recipe.epochs
            log(format_run_header(event))
        elif isinstance(event, EpochMetrics):
            log(format_epoch(event, self.epochs))

    def on_progress(self, done: int, total: int) -> None:
        """Pictures that have been read: nothing for a log."""

    def close(self) -> None:
        """Nothing is open."""


class LiveProgress:
    """A line that is written anew with each step, and a line for each epoch above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.live = Line(
            console=self.console,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
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
        """Pictures that have been read."""
        if done % 50 == 0 or done == total:
            self.show(f"reading pictures  {done:,}/{total:,}")

    def show(self, line: str) -> None:
        """The live line, begun when it is first needed."""
        if not self.live.is_started:
            self.live.start()
        self.live.update(Text(line))

    def format_step(self, event: StepMetrics) -> str:
        """The live line."""
        remaining_steps = (self.epochs - event.epoch) * event.steps_per_epoch + event.steps_per_epoch - event.step
        throughput = event.images_per_second
        remaining_time = f"{format_duration(remaining_steps * self.batch_size / throughput)} left" if throughput else ""
        return (
            f"epoch {event.epoch}/{self.epochs}  step {event.step}/{event.steps_per_epoch}  loss {event.loss:.3f}  "
            f"accuracy {event.accuracy:.1%}  {throughput:,.0f} images/s  {remaining_time}"
        )

    def close(self) -> None:
        self.live.stop()


def format_run_header(event: PreparedRun) -> str:
    """What is about to happen."""
    recipe, card = event.recipe, event.card
    splits = ", ".join(f"{len(dataset):,} {split}" for split, dataset in event.dataset.splits.items())
    optimizer = f"{tag_of(type(recipe.optimizer))} at {recipe.optimizer.lr:g}"
    notes = "".join(f"\nnote   {note}" for note in (*event.notes, *event.resume_notes))
    return (
        f"data   {recipe.data}: {len(card.classes)} classes; pictures: {splits}\n"
        f"model  {card.name}: {format_summary_total(event.plan)}{_format_input_change(event)}\n"
        f"recipe {recipe.epochs} epoch{'s' * (recipe.epochs > 1)} in batches of {recipe.batch_size}; {optimizer}, "
        f"{tag_of(type(recipe.schedule))}; {_format_augmentation(recipe)}; seed {recipe.seed}\n"
        f"device {event.device}, {event.precision}{_format_processes(event)}; writing to {event.out}\n"
        f"memory {event.memory_line}\n"
        f"resume {_RESUME_EXACT if event.device == 'cpu' else _RESUME_APPROXIMATE}{notes}"
    )


_RESUME_EXACT = "exact, bit for bit, on this kind of processor with these versions and threads"
_RESUME_APPROXIMATE = "after the last checkpoint; bit for bit on a CPU only"


def _format_augmentation(recipe: Recipe) -> str:
    """What is done with pictures, and with the model over the steps."""
    transforms = [recipe.augment, *recipe.transforms, *[recipe.mix] * (recipe.mix != NoMix())]
    names = ", ".join(tag_of(type(transform)) for transform in transforms)
    return f"{names}; ema of {recipe.ema.decay:g}" if isinstance(recipe.ema, EMA) else names


def _format_processes(event: PreparedRun) -> str:
    """Where there are several."""
    micro_batches = f" in {event.recipe.accumulate} parts" * (event.recipe.accumulate > 1)
    return f"; {event.world_size} processes" * (event.world_size > 1) + micro_batches


def _format_input_change(event: PreparedRun) -> str:
    """That the network sees other images than its spec says, where it does."""
    original, current = event.spec_input, event.card.spec.input
    return f"; its input changed from {'x'.join(map(str, original))} to {'x'.join(map(str, current))}" * (
        original != current
    )


def format_epoch(event: EpochMetrics, epochs: int) -> str:
    """An epoch in a line."""
    return (
        f"epoch {event.epoch}/{epochs}  loss {event.loss:.3f}  train {event.accuracy:.2%}  "
        f"val {event.val_accuracy:.2%}  {event.images_per_second:,.0f} images/s  {format_duration(event.seconds)}"
    )
