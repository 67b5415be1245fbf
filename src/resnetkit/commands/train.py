"""``resnetkit train``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from resnetkit.commands.distributed import SAME, TIMEOUT, together
from resnetkit.commands.output import prose, results, rewrites_lines, say, then
from resnetkit.commands.weights_options import AS_TOLD, Weights
from resnetkit.errors import Stopped
from resnetkit.evaluation.result import told
from resnetkit.runtime.distributed import Ranks, launched
from resnetkit.runtime.signals import Signals, listening
from resnetkit.serialization import over
from resnetkit.training.overrides import parse_settings, read_changes, with_options
from resnetkit.training.recipe import edit, is_weights_file, model_named, plan_run
from resnetkit.training.run_folder import finished, read_recipe, require_one, require_run

if TYPE_CHECKING:
    from resnetkit.training.run_folder import Run

_HINT = "(default: by the data, or --config)"
_CHOSEN = tyro.conf.arg(metavar="NUMBER", help_behavior_hint=_HINT)
_WORKERS = tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: one on each core)")
_STEPS = tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: none, or --config)")
_TRACKERS = tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: none, or --config)")
_ROW = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")
_POLICY = tyro.conf.arg(metavar="skip|error", help_behavior_hint="(default: skip, or --config)")
_PRECISION = tyro.conf.arg(metavar="auto|fp32|bf16", help_behavior_hint=_HINT)


@dataclass(frozen=True)
class Options:
    """Train a network and write a run folder: recipe, metrics, report and the model of the best epoch.

    A run that was interrupted or killed goes on with --resume, and on the same CPU ends with the very weights it would
    have ended with. Ctrl-C finishes the step and saves; a second one leaves at once.

    Examples: resnetkit train digits --model resnet20; resnetkit train flowers/ --model resnet18 --epochs 20; resnetkit
    train flowers/ --model mine.toml --set schedule.warmup=2 --print-config; resnetkit train --resume
    runs/flowers-resnet18-1; torchrun --nproc-per-node 2 -m resnetkit train flowers/ --model resnet18
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = ""
    """A folder with a folder for each class, or with train/, val/ and test/ of such; a table (.csv) of paths and
    labels; Parquet, or what datasets saved; CIFAR's binary archive; or: digits. With --resume it is known."""
    model: str = ""
    """A name (`resnetkit models` lists them), a .toml or .json file, or a trained model (a run folder, a model folder,
    a weights file), which is fine-tuned; resnet18 if neither this nor --config says."""
    out: str = ""
    """The run folder to write; runs/DATA-MODEL-1, or the next free number, if it is left out."""
    resume: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """Go on with an unfinished run, after its newest checkpoint. What is set otherwise than it was is printed."""
    override: bool = False
    """Go on although what is set otherwise makes the result that of neither setting."""
    recipe: Annotated[str | None, _ROW] = None
    """Begin with a published recipe instead of the one that suits the data: paper-cifar10, imagenet-v1, imagenet-v2;
    --config, --set and options lie over it."""
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
    patience: Annotated[int | None, _CHOSEN] = None
    """Stop after so many epochs without a better one on val."""
    checkpoint_steps: Annotated[int | None, _STEPS] = None
    """Write a checkpoint after so many steps, beside those at the end of every epoch and every five minutes."""
    track: Annotated[str | None, _TRACKERS] = None
    """Tell these, beside metrics.jsonl: tensorboard, mlflow, wandb (each an extra), with commas; they write into the
    run folder only."""
    bad_files: Annotated[str | None, _POLICY] = None
    """What a picture that cannot be read is; skipped ones are named and counted."""
    max_bad: str = ""
    """How many may be skipped: 10% or 0.1 of all (1% if left out)."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _PRECISION] = None
    """auto is bf16 where the processor computes in it."""
    accumulate: Annotated[int | None, _CHOSEN] = None
    """Send the pictures of a step through the network in so many parts, which takes less memory."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto; under torchrun a GPU for each process."""
    workers: Annotated[int | None, _WORKERS] = None
    """Threads that read pictures while the network learns; 0: the loop itself. The result is the same for any."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = TIMEOUT
    """How long the processes that torchrun starts wait for each other."""
    config: str = ""
    """A .toml or .json file with parts of a recipe."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of the recipe, such as schedule.warmup=5; may be given more than once."""
    print_config: bool = False
    """Print the recipe that would run, and stop."""
    json: bool = False
    """One JSON document at the end instead of a table."""
    weights: Weights = AS_TOLD


def run(options: Options) -> int:
    with listening(SAME if launched() else 0.0) as stop:
        try:
            with together(options.device, options.timeout) as (ranks, device):
                return _run(options, stop, ranks, device)
        except Stopped as stopped:
            return _stopped(stopped, stop)


def _run(options: Options, stop: Signals, ranks: Ranks, device: str) -> int:
    changes = _changes(options)
    if options.print_config:
        return _print(options, changes)
    if options.resume and finished(Path(options.resume)):
        say(f"note: {options.resume} has finished already; nothing was done")
    _show(options, _train(replace(options, device=device), changes, stop, ranks))
    return 0


def _show(options: Options, made: Run) -> None:
    found = made.evaluation
    if options.json:
        values = {
            "part": found.part,
            "n": found.n,
            "correct": found.correct,
            "top1": found.top1,
            "interval": found.interval,
            "best_epoch": made.best,
            "epochs": len(made.epochs),
            "ended": made.results.ended or None,
            "notes": made.results.notes,
            "skipped": [{"file": name, "error": reason} for name, reason in found.skipped],
            "seconds": made.results.seconds,
        }
        results("train", run=str(made.path), model=made.card.name, data=made.recipe.data, **values)
    else:
        prose(f"{found.part}: {found.correct} of {found.n} right, {told(found.correct, found.n)}")
        prose(f"wrote {made.path} (the model of epoch {made.best} in model/, report.html, metrics.jsonl, run.toml)")
    for line in _aftermath(made):
        say(line)
    then("resnetkit evaluate", str(made.path), made.recipe.data)


def _train(options: Options, changes: dict[str, Any], stop: Signals, ranks: Ranks) -> Run:
    from resnetkit.commands.progress import Live, Plain
    from resnetkit.training.api import train

    with contextlib.closing(Live() if rewrites_lines() else Plain()) as shown:
        return train(
            options.data or None,
            options.model or None,
            out=options.out or None,
            resume=options.resume or None,
            override=options.override,
            device=options.device,
            settings=changes,
            watch=shown,
            tell=shown.reading,
            workers=options.workers,
            stop=stop,
            ranks=ranks,
        )


def _stopped(stopped: Stopped, stop: Signals) -> int:
    """What a signal led to, and how to go on."""
    number, launch = stopped.number or stop.number or signal.SIGINT, launched()
    if stopped.number and launch and launch.rank:  # all have agreed, and the first tells it
        return 128 + number
    say(f"{'terminated' if number == signal.SIGTERM else 'interrupted'}; {stopped}")
    if stopped.run:
        then("resnetkit train --resume", stopped.run)
    else:
        say("nothing was written: no step was saved")
    return 128 + number


def _aftermath(made: Run) -> list[str]:
    """What a person should know of a run beside its result."""
    skipped = made.evaluation.skipped
    lines = [f"note: it ended early: {made.results.ended}"] * bool(made.results.ended)
    return lines + [f"left out: {name}: {reason}" for name, reason in skipped]


def _changes(options: Options) -> dict[str, Any]:
    """The config file, then ``--set``, then the options: the nearer to the hand, the stronger."""
    named = (
        "recipe",
        "epochs",
        "batch_size",
        "lr",
        "seed",
        "split_seed",
        "patience",
        "checkpoint_steps",
        "track",
        "accumulate",
        "precision",
        "bad_files",
    )
    file = read_changes(Path(options.config)) if options.config else {}
    settings = over(file, parse_settings(options.set))
    given = {name: getattr(options, name) for name in named}
    said = {name: value or None for name, value in asdict(options.weights).items()}
    return with_options(settings, **given, **said, max_bad=options.max_bad or None)


def _print(options: Options, changes: dict[str, Any]) -> int:
    from resnetkit.data.open import open_data
    from resnetkit.serialization import to_toml

    if options.resume:
        require_run(Path(options.resume))
        print(to_toml(edit(read_recipe(Path(options.resume)), changes)), end="")
        return 0
    require_one(options.data, options.out, options.resume)
    model, spec = model_named(options.model or None, changes), None
    if is_weights_file(model):
        from resnetkit.training.setup import trained

        found = trained(model, changes)
        spec = found.card.spec if found else None
    print(to_toml(plan_run(len(open_data(options.data).first), options.data, model, changes, spec)), end="")
    return 0
