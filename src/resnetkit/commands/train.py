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

from resnetkit.commands.distributed import SAME_SIGNAL_SECONDS, TIMEOUT, init_distributed
from resnetkit.commands.output import can_rewrite_lines, log, print_json, print_text, suggest_next
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions
from resnetkit.errors import ResnetkitInterrupt
from resnetkit.evaluation.result import format_accuracy
from resnetkit.runtime.distributed import ProcessGroup, read_launch_info
from resnetkit.runtime.signals import SignalHandler, handle_signals
from resnetkit.serialization import merge
from resnetkit.training.overrides import merge_options, parse_settings, read_config_file
from resnetkit.training.recipe_limits import edit_recipe
from resnetkit.training.resolve import is_weights_file, resolve_model_name, resolve_recipe
from resnetkit.training.run_folder import check_new_or_resume, check_run_folder, is_run_finished, read_recipe

if TYPE_CHECKING:
    from resnetkit.training.run_folder import Run

_HINT = "(default: by the data, or --config)"
_NUMBER_ARG = tyro.conf.arg(metavar="NUMBER", help_behavior_hint=_HINT)
_WORKERS_ARG = tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: one on each core)")
_STEPS_ARG = tyro.conf.arg(metavar="NUMBER", help_behavior_hint="(default: none, or --config)")
_TRACKERS_ARG = tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: none, or --config)")
_RECIPE_ARG = tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")
_BAD_FILES_ARG = tyro.conf.arg(metavar="skip|error", help_behavior_hint="(default: skip, or --config)")
_PRECISION_ARG = tyro.conf.arg(metavar="auto|fp32|bf16", help_behavior_hint=_HINT)


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
    recipe: Annotated[str | None, _RECIPE_ARG] = None
    """Begin with a published recipe instead of the one that suits the data: paper-cifar10, imagenet-v1, imagenet-v2;
    --config, --set and options lie over it."""
    epochs: Annotated[int | None, _NUMBER_ARG] = None
    """How often each picture is seen."""
    batch_size: Annotated[int | None, _NUMBER_ARG] = None
    """Pictures in a step."""
    lr: Annotated[float | None, _NUMBER_ARG] = None
    """The highest learning rate."""
    seed: Annotated[int | None, _NUMBER_ARG] = None
    """Decides weights, order and augmentation."""
    split_seed: Annotated[int | None, _NUMBER_ARG] = None
    """Decides which pictures are held out where the folders do not say."""
    patience: Annotated[int | None, _NUMBER_ARG] = None
    """Stop after so many epochs without a better one on val."""
    checkpoint_steps: Annotated[int | None, _STEPS_ARG] = None
    """Write a checkpoint after so many steps, beside those at the end of every epoch and every five minutes."""
    track: Annotated[str | None, _TRACKERS_ARG] = None
    """Tell these, beside metrics.jsonl: tensorboard, mlflow, wandb (each an extra), with commas; they write into the
    run folder only."""
    bad_files: Annotated[str | None, _BAD_FILES_ARG] = None
    """What a picture that cannot be read is; skipped ones are named and counted."""
    max_bad: str = ""
    """How many may be skipped: 10% or 0.1 of all (1% if left out)."""
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _PRECISION_ARG] = None
    """auto is bf16 where the processor computes in it."""
    accumulate: Annotated[int | None, _NUMBER_ARG] = None
    """Send the pictures of a step through the network in so many parts, which takes less memory."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto; under torchrun a GPU for each process."""
    workers: Annotated[int | None, _WORKERS_ARG] = None
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
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    with handle_signals(SAME_SIGNAL_SECONDS if read_launch_info() else 0.0) as signals:
        try:
            with init_distributed(options.device, options.timeout) as (dist, device):
                return _run(options, signals, dist, device)
        except ResnetkitInterrupt as error:
            return _report_stop(error, signals)


def _run(options: Options, signals: SignalHandler, dist: ProcessGroup, device: str) -> int:
    overrides = _collect_overrides(options)
    if options.print_config:
        return _print_config(options, overrides)
    if options.resume and is_run_finished(Path(options.resume)):
        log(f"note: {options.resume} has finished already; nothing was done")
    _show(options, _train(replace(options, device=device), overrides, signals, dist))
    return 0


def _show(options: Options, run: Run) -> None:
    evaluation = run.evaluation
    if options.json:
        values = {
            "part": evaluation.split,
            "n": evaluation.n,
            "correct": evaluation.correct,
            "top1": evaluation.top1,
            "interval": evaluation.interval,
            "best_epoch": run.best_epoch,
            "epochs": len(run.epochs),
            "ended": run.results.stop_reason or None,
            "notes": run.results.notes,
            "skipped": [{"file": name, "error": reason} for name, reason in evaluation.skipped],
            "seconds": run.results.seconds,
        }
        print_json("train", run=str(run.path), model=run.card.name, data=run.recipe.data, **values)
    else:
        print_text(
            f"{evaluation.split}: {evaluation.correct} of {evaluation.n} right, {format_accuracy(evaluation.correct, evaluation.n)}"
        )
        print_text(
            f"wrote {run.path} (the model of epoch {run.best_epoch} in model/, report.html, metrics.jsonl, run.toml)"
        )
    for line in _format_notes(run):
        log(line)
    suggest_next("resnetkit evaluate", str(run.path), run.recipe.data)


def _train(options: Options, overrides: dict[str, Any], signals: SignalHandler, dist: ProcessGroup) -> Run:
    from resnetkit.commands.progress import LiveProgress, LogProgress
    from resnetkit.training.api import train

    with contextlib.closing(LiveProgress() if can_rewrite_lines() else LogProgress()) as progress:
        return train(
            options.data or None,
            options.model or None,
            out=options.out or None,
            resume=options.resume or None,
            override=options.override,
            device=options.device,
            settings=overrides,
            on_event=progress,
            on_progress=progress.on_progress,
            workers=options.workers,
            stop=signals,
            dist=dist,
        )


def _report_stop(error: ResnetkitInterrupt, signals: SignalHandler) -> int:
    """What a signal led to, and how to go on."""
    signal_number, launch = error.signal_number or signals.number or signal.SIGINT, read_launch_info()
    if error.signal_number and launch and launch.rank:  # all have agreed, and the first tells it
        return 128 + signal_number
    log(f"{'terminated' if signal_number == signal.SIGTERM else 'interrupted'}; {error}")
    if error.run:
        suggest_next("resnetkit train --resume", error.run)
    else:
        log("nothing was written: no step was saved")
    return 128 + signal_number


def _format_notes(run: Run) -> list[str]:
    """What a person should know of a run beside its result."""
    skipped = run.evaluation.skipped
    lines = [f"note: it ended early: {run.results.stop_reason}"] * bool(run.results.stop_reason)
    return lines + [f"left out: {name}: {reason}" for name, reason in skipped]


def _collect_overrides(options: Options) -> dict[str, Any]:
    """The config file, then ``--set``, then the options: the nearer to the hand, the stronger."""
    option_names = (
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
    file_overrides = read_config_file(Path(options.config)) if options.config else {}
    overrides = merge(file_overrides, parse_settings(options.set))
    option_values = {name: getattr(options, name) for name in option_names}
    weights_values = {name: value or None for name, value in asdict(options.weights).items()}
    return merge_options(overrides, **option_values, **weights_values, max_bad=options.max_bad or None)


def _print_config(options: Options, overrides: dict[str, Any]) -> int:
    from resnetkit.data.open import open_dataset
    from resnetkit.serialization import to_toml

    if options.resume:
        check_run_folder(Path(options.resume))
        print(to_toml(edit_recipe(read_recipe(Path(options.resume)), overrides)), end="")
        return 0
    check_new_or_resume(options.data, options.out, options.resume)
    model, spec = resolve_model_name(options.model or None, overrides), None
    if is_weights_file(model):
        from resnetkit.training.setup import load_base_network

        network = load_base_network(model, overrides)
        spec = network.card.spec if network else None
    print(
        to_toml(resolve_recipe(len(open_dataset(options.data).train_split), options.data, model, overrides, spec)),
        end="",
    )
    return 0
