"""How a training run is shown while it goes on."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live as Line
from rich.text import Text

from resnetkit.architecture.summary import total
from resnetkit.commands.output import say
from resnetkit.serialization import kind_of
from resnetkit.training.recipe import EMA, NoMix, Recipe
from resnetkit.training.run_folder import Epoch, Prepared, Step


class Plain:
    """A line for each epoch, for logs."""

    def __init__(self) -> None:
        self.epochs = 0

    def __call__(self, event: Prepared | Step | Epoch) -> None:
        if isinstance(event, Prepared):
            self.epochs = event.recipe.epochs
            say(announce(event))
        elif isinstance(event, Epoch):
            say(told(event, self.epochs))

    def reading(self, done: int, total: int) -> None:
        """Pictures that have been read: nothing for a log."""

    def close(self) -> None:
        """Nothing is open."""


class Live:
    """A line that is written anew with each step, and a line for each epoch above it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.line = Line(
            console=self.console,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.epochs = self.batch_size = 0

    def __call__(self, event: Prepared | Step | Epoch) -> None:
        if isinstance(event, Prepared):
            self.epochs, self.batch_size = event.recipe.epochs, event.recipe.batch_size
            self.console.print(announce(event), markup=False)
        elif isinstance(event, Epoch):
            self.console.print(told(event, self.epochs), markup=False)
        else:
            self.show(self.stepped(event))

    def reading(self, done: int, total: int) -> None:
        """Pictures that have been read."""
        if done % 50 == 0 or done == total:
            self.show(f"reading pictures  {done:,}/{total:,}")

    def show(self, line: str) -> None:
        """The live line, begun when it is first needed."""
        if not self.line.is_started:
            self.line.start()
        self.line.update(Text(line))

    def stepped(self, event: Step) -> str:
        """The live line."""
        left = (self.epochs - event.epoch) * event.steps + event.steps - event.step
        pace = event.images_per_second
        told = f"{clock(left * self.batch_size / pace)} left" if pace else ""
        return (
            f"epoch {event.epoch}/{self.epochs}  step {event.step}/{event.steps}  loss {event.loss:.3f}  "
            f"accuracy {event.accuracy:.1%}  {pace:,.0f} images/s  {told}"
        )

    def close(self) -> None:
        self.line.stop()


def announce(event: Prepared) -> str:
    """What is about to happen."""
    recipe, card = event.recipe, event.card
    parts = ", ".join(f"{len(pictures):,} {part}" for part, pictures in event.data.parts.items())
    optimiser = f"{kind_of(type(recipe.optimiser))} at {recipe.optimiser.lr:g}"
    notes = "".join(f"\nnote   {note}" for note in (*event.notes, *event.resumed))
    return (
        f"data   {recipe.data}: {len(card.classes)} classes; pictures: {parts}\n"
        f"model  {card.name}: {total(event.plan)}{_changed(event)}\n"
        f"recipe {recipe.epochs} epoch{'s' * (recipe.epochs > 1)} in batches of {recipe.batch_size}; {optimiser}, "
        f"{kind_of(type(recipe.schedule))}; {_pixels(recipe)}; seed {recipe.seed}\n"
        f"device {event.device}, {event.precision}{_processes(event)}; writing to {event.out}\n"
        f"memory {event.memory}\n"
        f"resume {_EXACT if event.device == 'cpu' else _NEARLY}{notes}"
    )


_EXACT = "exact, bit for bit, on this kind of processor with these versions and threads"
_NEARLY = "after the last checkpoint; bit for bit on a CPU only"


def _pixels(recipe: Recipe) -> str:
    """What is done with pictures, and with the model over the steps."""
    done = [recipe.augment, *recipe.also, *[recipe.mix] * (recipe.mix != NoMix())]
    told = ", ".join(kind_of(type(step)) for step in done)
    return f"{told}; ema of {recipe.ema.decay:g}" if isinstance(recipe.ema, EMA) else told


def _processes(event: Prepared) -> str:
    """Where there are several."""
    parts = f" in {event.recipe.accumulate} parts" * (event.recipe.accumulate > 1)
    return f"; {event.processes} processes" * (event.processes > 1) + parts


def _changed(event: Prepared) -> str:
    """That the network sees other images than its spec says, where it does."""
    own, now = event.own_input, event.card.spec.input
    return f"; its input changed from {'x'.join(map(str, own))} to {'x'.join(map(str, now))}" * (own != now)


def told(event: Epoch, epochs: int) -> str:
    """An epoch in a line."""
    return (
        f"epoch {event.epoch}/{epochs}  loss {event.loss:.3f}  train {event.accuracy:.2%}  "
        f"val {event.val_accuracy:.2%}  {event.images_per_second:,.0f} images/s  {clock(event.seconds)}"
    )


def clock(seconds: float) -> str:
    """1:05 for 65 seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
