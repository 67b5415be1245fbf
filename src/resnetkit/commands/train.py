"""``resnetkit train``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from resnetkit.commands.output import results, then
from resnetkit.learn.recipe import over, parse_settings, plan_run, read_changes, with_options

_HINT = "(default: by the data, or --config)"
_CHOSEN = tyro.conf.arg(metavar="NUMBER", help_behavior_hint=_HINT)
_PRECISION = tyro.conf.arg(metavar="auto|fp32|bf16", help_behavior_hint=_HINT)


@dataclass(frozen=True)
class Options:
    """Train a network and write a run folder: recipe, metrics, report and the model of the best epoch.

    Examples: resnetkit train digits --model resnet20; resnetkit train flowers/ --model resnet18 --epochs 20; resnetkit
    train flowers/ --model mine.toml --set schedule.warmup=2 --print-config
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder with a folder for each class, or with train/, val/ and test/ of such; or: digits."""
    model: str = ""
    """A name (`resnetkit models` lists them), or a .toml or .json file; resnet18 if neither this nor --config says."""
    out: str = ""
    """The run folder to write; runs/DATA-MODEL-1, or the next free number, if it is left out."""
    epochs: Annotated[int | None, _CHOSEN] = None
    """How often each picture is seen."""
    batch_size: Annotated[int | None, _CHOSEN] = None
    """Pictures in a step."""
    lr: Annotated[float | None, _CHOSEN] = None
    """The highest learning rate."""
    seed: Annotated[int | None, _CHOSEN] = None
    """Decides weights, order and augmentation."""
    split_seed: Annotated[int | None, _CHOSEN] = None
    """Decides which pictures are held out where the folders do not say."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _PRECISION] = None
    """auto is bf16 where the processor computes in it."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    config: str = ""
    """A .toml or .json file with parts of a recipe."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of the recipe, such as schedule.warmup=5; may be given more than once."""
    print_config: bool = False
    """Print the recipe that would run, and stop."""
    json: bool = False
    """One JSON document at the end instead of a table."""


def run(options: Options) -> int:
    changes = _changes(options)
    if options.print_config:
        return _print(options, changes)
    from resnetkit.commands.progress import Live, Plain
    from resnetkit.learn.train import train

    with contextlib.closing(Live() if sys.stderr.isatty() else Plain()) as shown:
        made = train(
            options.data,
            options.model or None,
            out=options.out or None,
            device=options.device,
            settings=changes,
            watch=shown,
            tell=shown.reading,
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
    named = ("epochs", "batch_size", "lr", "seed", "split_seed", "precision")
    file = read_changes(Path(options.config)) if options.config else {}
    settings = over(file, parse_settings(options.set))
    return with_options(settings, **{name: getattr(options, name) for name in named})


def _print(options: Options, changes: dict[str, Any]) -> int:
    from resnetkit.learn.data import open_data
    from resnetkit.text import to_toml

    print(to_toml(plan_run(len(open_data(options.data).first), options.data, options.model or None, changes)), end="")
    return 0
