"""``resnetkit train``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnetkit.commands.arguments import Argument
from resnetkit.commands.bad_files_options import DEFAULT_BAD_FILES, BadFilesOptions
from resnetkit.commands.data_options import DEFAULT_DATA_READING, DataReadingOptions
from resnetkit.commands.distributed import DEFAULT_DEVICE, SAME_SIGNAL_SECONDS, DeviceOptions, init_distributed
from resnetkit.commands.image_options import DEFAULT_IMAGE_OPTIONS, ImageOptions
from resnetkit.commands.output import can_rewrite_lines, log, print_json, print_text, suggest_next
from resnetkit.commands.records import build_accuracy_record, build_file_errors, format_accuracy_line, format_skipped
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions
from resnetkit.errors import ResnetkitInterrupt
from resnetkit.runtime.distributed import ProcessGroup, read_launch_info
from resnetkit.runtime.signals import SignalHandler, handle_signals
from resnetkit.serialization import merge
from resnetkit.training.overrides import merge_options, parse_settings, read_config_file
from resnetkit.training.recipe_limits import edit_recipe
from resnetkit.training.resolve import get_data_options, resolve_model_name, resolve_recipe
from resnetkit.weights.model_source import HuggingFaceFolder, WeightsFile, resolve_model

if TYPE_CHECKING:
    from resnetkit.training.run_folder import Run

_BY_DATA = Argument("NUMBER", default_text="from --config, or chosen for the data")
_OVERRIDES = ("recipe", "epochs", "batch_size", "lr", "seed", "split_seed", "patience", "checkpoint_steps", "track",
              "accumulate", "precision")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Train a network and write a run folder: recipe, metrics, report and the model of the best epoch.

    If a run was interrupted or killed, --resume continues it; on the same CPU it ends with exactly the same weights.
    Ctrl-C finishes the step and saves; a second Ctrl-C stops at once.

    Examples: resnetkit train digits --model resnet20; resnetkit train flowers/ --model resnet18 --epochs 20; resnetkit
    train flowers/ --model mine.toml --set schedule.warmup=2 --print-config; resnetkit train --resume
    runs/flowers-resnet18-1; torchrun --nproc-per-node 2 -m resnetkit train flowers/ --model resnet18
    """

    data: Annotated[str, Argument("[DATA]", is_positional=True)] = ""
    """A folder with one folder per class, or with train/, val/ and test/ of such; a table (.csv) of paths and labels;
    Parquet, or a dataset that Hugging Face datasets saved; CIFAR's binary archive; or: digits. Not needed with
    --resume."""
    model: Annotated[str, Argument("MODEL")] = ""
    """A name (`resnetkit models` lists them), a .toml or .json file, or a trained model to fine-tune (a run folder, a
    model folder, a weights file); by default that of --config, or resnet18."""
    out: Annotated[str, Argument("DIR")] = ""
    """The run folder to write; by default runs/DATA-MODEL-1, or the next free number."""
    resume: Annotated[str, Argument("RUN")] = ""
    """Resume an unfinished run from its newest checkpoint. Changed settings are printed."""
    override: bool = False
    """Resume even though a changed setting makes the result differ from both the old and the new configuration."""
    recipe: Annotated[str | None, Argument("NAME", default_text="none")] = None
    """Start from a published recipe instead of the default for the data: paper-cifar10, imagenet-v1, imagenet-v2;
    --config, --set and options override it."""
    epochs: Annotated[int | None, _BY_DATA] = None
    """The number of epochs."""
    batch_size: Annotated[int | None, _BY_DATA] = None
    """The number of images per step."""
    lr: Annotated[float | None, _BY_DATA] = None
    """The peak learning rate."""
    seed: Annotated[int | None, _BY_DATA] = None
    """The seed of weights, order and augmentation."""
    split_seed: Annotated[int | None, _BY_DATA] = None
    """The seed that selects held-out images, if the data has no split folders."""
    patience: Annotated[int | None, _BY_DATA] = None
    """Stop after this number of epochs without a better validation accuracy."""
    checkpoint_steps: Annotated[int | None, Argument("NUMBER", default_text="from --config, or none")] = None
    """Also write a checkpoint after this number of steps, beside those of each epoch and every five minutes."""
    track: Annotated[str | None, Argument("NAMES", default_text="from --config, or none")] = None
    """Also log to these trackers (comma-separated): tensorboard, mlflow, wandb. Each needs its extra, and writes into
    the run folder only."""
    reading: DataReadingOptions = DEFAULT_DATA_READING
    bad_files: BadFilesOptions = DEFAULT_BAD_FILES
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _BY_DATA] = None
    """The precision of the computation; auto is bf16 if the processor has bf16 instructions."""
    accumulate: Annotated[int | None, _BY_DATA] = None
    """Divide each step into this number of micro-batches, which uses less memory."""
    device: DeviceOptions = DEFAULT_DEVICE
    workers: Annotated[int | None, Argument("NUMBER", default_text="one per core")] = None
    """The number of threads that read images ahead; with 0 the training loop reads them. The result is the same."""
    config: Annotated[str, Argument("FILE")] = ""
    """A .toml or .json file with parts of a recipe."""
    set: Annotated[tuple[str, ...], Argument("KEY=VALUE", is_repeatable=True)] = ()
    """A setting of the recipe, such as schedule.warmup=5."""
    print_config: bool = False
    """Print the recipe that would run, and stop."""
    json: bool = False
    """Print one JSON document at the end instead of a table."""
    images: ImageOptions = DEFAULT_IMAGE_OPTIONS
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    options.images.apply()
    with handle_signals(SAME_SIGNAL_SECONDS if read_launch_info() else 0.0) as signals:
        try:
            with init_distributed(options.device) as (dist, device):
                return _run(options, signals, dist, device)
        except ResnetkitInterrupt as error:
            return _report_stop(error, signals)


def _run(options: Options, signals: SignalHandler, dist: ProcessGroup, device: str) -> int:
    from resnetkit.training.run_folder import is_run_finished

    overrides = _collect_overrides(options)
    if options.print_config:
        return _print_config(options, overrides)
    if options.resume and is_run_finished(Path(options.resume)):
        log(f"note: {options.resume} is finished; there is nothing to do")
    _show(options, _train(options, overrides, signals, dist, device))
    return 0


def _show(options: Options, run: Run) -> None:
    evaluation = run.evaluation
    if options.json:
        values = {
            **build_accuracy_record(evaluation),
            "best_epoch": run.best_epoch,
            "epochs": len(run.epochs),
            "stop_reason": run.results.stop_reason or None,
            "notes": (*run.results.notes, *evaluation.notes),
            "skipped": build_file_errors(evaluation.skipped),
            "seconds": run.results.seconds,
        }
        print_json("train", run=str(run.path), model=run.card.name, data=run.recipe.data, **values)
    else:
        print_text(format_accuracy_line(evaluation))
        files = f"the model of epoch {run.best_epoch} in model/, report.html, metrics.jsonl, run.toml"
        print_text(f"wrote {run.path} ({files})")
    if run.results.stop_reason:
        log(f"note: training stopped early: {run.results.stop_reason}")
    for line in (*(f"note: {note}" for note in evaluation.notes), *format_skipped(evaluation.skipped)):
        log(line)
    suggest_next("resnetkit evaluate", str(run.path), run.recipe.data, *run.recipe.data_options.to_args())


def _train(options: Options, overrides: dict[str, Any], signals: SignalHandler, dist: ProcessGroup, device: str) -> Run:
    from resnetkit.commands.progress import LiveProgress, LogProgress
    from resnetkit.training.api import train

    with contextlib.closing(LiveProgress() if can_rewrite_lines() else LogProgress()) as progress:
        return train(
            options.data or None,
            options.model or None,
            out=options.out or None,
            resume=options.resume or None,
            override=options.override,
            device=device,
            settings=overrides,
            on_event=progress,
            on_progress=progress.on_progress,
            workers=options.workers,
            stop=signals,
            dist=dist,
        )


def _report_stop(error: ResnetkitInterrupt, signals: SignalHandler) -> int:
    """Log that a signal stopped the run and how to resume it; return the exit code."""
    signal_number, launch = error.signal_number or signals.number or signal.SIGINT, read_launch_info()
    if error.signal_number and launch and launch.rank:  # all processes agreed on the signal, and rank 0 reports it
        return 128 + signal_number
    log(f"{'interrupted' if signal_number == signal.SIGINT else 'terminated'}; {error}")
    if error.run:
        suggest_next("resnetkit train --resume", error.run)
    else:
        log("nothing was written: no step was saved")
    return 128 + signal_number


def _collect_overrides(options: Options) -> dict[str, Any]:
    """Merge the config file, ``--set`` and the options; later ones take precedence."""
    file_overrides = read_config_file(Path(options.config)) if options.config else {}
    overrides = merge(file_overrides, parse_settings(options.set))
    values = {name: getattr(options, name) for name in _OVERRIDES}
    groups = asdict(options.weights) | asdict(options.bad_files) | asdict(options.reading)
    values |= {name: value or None for name, value in groups.items()}
    return merge_options(overrides, **values)


def _print_config(options: Options, overrides: dict[str, Any]) -> int:
    from resnetkit.data.open import open_dataset
    from resnetkit.serialization import to_toml
    from resnetkit.training.run_folder import check_new_or_resume, check_run_folder, read_recipe

    if options.resume:
        check_run_folder(Path(options.resume))
        print(to_toml(edit_recipe(read_recipe(Path(options.resume)), overrides)), end="")
        return 0
    check_new_or_resume(options.data, options.out, options.resume)
    model, spec = resolve_model_name(options.model or None, overrides), None
    if isinstance(resolve_model(model), WeightsFile | HuggingFaceFolder):
        from resnetkit.training.setup import load_base_network

        network = load_base_network(model, overrides)
        spec = network.card.spec if network else None
    n_images = len(open_dataset(options.data, options=get_data_options(overrides)).train_split)
    print(to_toml(resolve_recipe(n_images, options.data, model, overrides, spec)), end="")
    return 0
