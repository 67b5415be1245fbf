"""``resnetkit train``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from resnetkit.commands.output import counting, results, say, then
from resnetkit.learn.recipe import over, parse_settings, plan_run, read_changes


@dataclass(frozen=True)
class Options:
    """Train a network and write a run folder: recipe, metrics, report and the model of the best epoch.

    Examples: resnetkit train digits --model resnet20; resnetkit train flowers/ --model resnet18 --epochs 20; resnetkit
    train flowers/ --model mine.toml --set schedule.warmup=2 --print-config
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder with a folder for each class, or with train/, val/ and test/ of such; or: digits."""
    model: str = "resnet18"
    """A name (`resnetkit models` lists them), or a .toml or .json file."""
    out: str = ""
    """The run folder to write; runs/DATA-MODEL-1, or the next free number, if it is left out."""
    epochs: int | None = None
    """How often each picture is seen."""
    batch_size: int | None = None
    """Pictures in a step."""
    lr: float | None = None
    """The highest learning rate."""
    seed: int | None = None
    """Decides weights, order and augmentation."""
    split_seed: int | None = None
    """Decides which pictures are held out where the folders do not say."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """auto is bf16 where the processor computes in it."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    config: str = ""
    """A .toml or .json file with parts of a recipe."""
    set: tuple[str, ...] = ()
    """Settings of the recipe, such as schedule.warmup=5."""
    print_config: bool = False
    """Print the recipe that would run, and stop."""
    json: bool = False
    """One JSON document at the end instead of a table."""


def run(options: Options) -> int:
    changes = _changes(options)
    if options.print_config:
        return _print(options, changes)
    from resnetkit.learn.train import train

    with _watching(options) as watch, counting("reading pictures") as tell:
        out = options.out or None
        made = train(
            options.data, options.model, out=out, device=options.device, settings=changes, watch=watch, tell=tell
        )
    found = made.evaluation
    if options.json:
        values = {
            "part": found.part,
            "n": found.n,
            "correct": found.correct,
            "top1": found.top1,
            "best_epoch": made.best,
        }
        results("train", run=str(made.path), model=made.card.name, data=options.data, **values, seconds=made.seconds)
    else:
        print(f"{found.part}: {found.correct} of {found.n} right, {found.top1:.2%}")
        print(f"wrote {made.path} (the model of epoch {made.best} in model/, report.html, metrics.jsonl, run.toml)")
    then(f"resnetkit evaluate {made.path} {options.data}")
    return 0


def _changes(options: Options) -> dict[str, Any]:
    """The config file, then ``--set``, then the options: the nearer to the hand, the stronger."""
    named = {name: getattr(options, name) for name in ("epochs", "batch_size", "seed", "split_seed", "precision")}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    given |= {"optimiser": {"lr": options.lr}} if options.lr is not None else {}
    file = read_changes(Path(options.config)) if options.config else {}
    return dict(over(over(file, parse_settings(options.set)), given))


def _print(options: Options, changes: dict[str, Any]) -> int:
    from resnetkit.learn.data import open_data
    from resnetkit.text import to_toml

    print(to_toml(plan_run(len(open_data(options.data).first), options.data, options.model, changes)), end="")
    return 0


@contextlib.contextmanager
def _watching(options: Options) -> Iterator[Any]:
    """Lines for each epoch; on a terminal also a live line for each step."""
    from resnetkit.commands.progress import Live, Plain

    with contextlib.closing(Live() if sys.stderr.isatty() else Plain()) as shown:
        yield shown
    say()
