"""``resnetkit optimize``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import can_rewrite_lines, log, print_json, print_table, print_text, suggest_next
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.engines import saved
from resnetkit.engines.accuracy_check import MAX_LOSS
from resnetkit.errors import ResnetkitError, UsageError
from resnetkit.optimization.report import format_headline
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.runtime.signals import handle_signals
from resnetkit.serialization import to_data
from resnetkit.weights.model_source import find_model_folder

_MIN_SPEED_RATIO = 0.9  # of the previous search; a smaller difference is noise
_DROPPED_COLUMNS = [saved.HEADINGS[i] for i in (6, 3, 4, 7)]  # match rate, latency, start-up, points of accuracy


@dataclass(frozen=True)
class Options:
    """Find the fastest inference engine on this machine whose predictions match fp32, and save it for predict.

    Examples: resnetkit optimize runs/flowers-resnet18-1 --data flowers/; resnetkit optimize weights.pth --out fast/
    --data photos/ --minutes 3
    """

    model: Annotated[str, Argument("MODEL", is_positional=True)]
    """A run folder or a model folder; with --out also a weights file of any library."""
    data: Annotated[str, Argument("DIR")] = ""
    """Images on which predictions are compared: a dataset as evaluate takes it, or a folder without classes. int8 needs
    them."""
    out: Annotated[str, Argument("DIR")] = ""
    """A new model folder to write; by default the engines are saved in the folder of the model."""
    minutes: Annotated[float, Argument("MINUTES")] = 5.0
    """The time to search."""
    max_loss: Annotated[float, Argument("POINTS")] = MAX_LOSS
    """How many percentage points of accuracy an engine may lose, if the images have classes."""
    engines: Annotated[tuple[str, ...], Argument("NAME")] = ()
    """The engines to try: openvino, onnxruntime, eager, compiled; all by default."""
    precisions: Annotated[tuple[str, ...], Argument("NAME")] = ()
    """The precisions to try: int8, int8-body (stem and head in higher precision), bf16, fp32; all by default."""
    json: bool = False
    """Print one JSON document instead of a table."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    from resnetkit.optimization.api import optimize

    folder = options.out or options.model
    previous = _read_previous_result(folder)
    with handle_signals() as signals, _show_progress() as (on_event, on_progress):
        try:
            result = optimize(
                load_with_options(options.model, options.weights) if options.out else _select_model_folder(options),
                data=options.data or None,
                out=options.out or None,
                minutes=options.minutes,
                max_loss=options.max_loss,
                engines=options.engines,
                precisions=options.precisions,
                on_event=on_event,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            log("stopped; engines that were saved before are unchanged")
            return signals.exit_code
    if options.json:
        print_json("optimize", model=folder, **to_data(result))
    else:
        _show(result)
    slowdown_note = _format_slowdown(previous, result)
    if slowdown_note:
        log(slowdown_note)
    log(f"wrote {find_model_folder(folder) or folder}/{saved.ENGINES_FOLDER}/{saved.REPORT_FILE}")
    suggest_next("resnetkit predict IMAGES", "--model", folder)
    return 0


def _select_model_folder(options: Options) -> str:
    args = options.weights.to_args()
    if args:
        message = "options about a weights file do not apply to a model folder"
        raise UsageError(message, where=" ".join(args), fix="remove them, or add --out for a weights file")
    return options.model


def _read_previous_result(folder: str) -> saved.OptimizeResult | None:
    """Return the result of an earlier search, if it can be read."""
    with contextlib.suppress(ResnetkitError):  # with --out the folder does not exist yet
        path = find_model_folder(folder)
        return saved.read_engines_file(path) if path else None
    return None


def _format_slowdown(previous: saved.OptimizeResult | None, result: saved.OptimizeResult) -> str:
    """Format a note if the best engine of an earlier search on this machine was faster."""
    if previous is None or (previous.weights_digest, previous.machine) != (result.weights_digest, result.machine):
        return ""
    previous_speed, current_speed = saved.get_throughput(previous), saved.get_throughput(result)
    if not previous_speed or not current_speed or current_speed > _MIN_SPEED_RATIO * previous_speed:
        return ""
    names = dict.fromkeys(item.config.name for item in previous.engines if item.purpose == "throughput")
    return f"note: the previous search saved {', '.join(names)} at {previous_speed:,.1f} images/s; this one is slower"


def _show(result: saved.OptimizeResult) -> None:
    best = saved.select_best_per_engine(result)
    rows = [saved.format_table_row(measurement, result) for measurement in best if measurement.images_per_second]
    print_table(saved.HEADINGS, rows, drop=_DROPPED_COLUMNS)
    for reason in saved.group_skip_reasons(best):
        print_text(f"skipped: {reason}")
    print(f"predictions compared on {result.comparison_data}")
    baseline = saved.find_baseline(result.measurements)
    for engine in result.engines:
        speedup = _format_speedup(engine.measurement, baseline) if engine.purpose == "throughput" else ""
        print(f"{engine.purpose + ':':<12}{engine.measurement.config}: {format_headline(engine)}{speedup}")


def _format_speedup(measurement: saved.Measurement, baseline: saved.Measurement | None) -> str:
    """Format the ratio to the throughput of the baseline, which was measured in the same search."""
    if baseline is None or not baseline.images_per_second:
        return ""
    ratio = (measurement.images_per_second or 0) / baseline.images_per_second
    return f", {ratio:.1f} times {baseline.config}"


@contextlib.contextmanager
def _show_progress() -> Iterator[tuple[Callable[[saved.Measurement], None], ProgressCallback]]:
    """Show each measurement on a line, or on a terminal only the last; yield callbacks that do so."""
    if not can_rewrite_lines():
        yield lambda measurement: log(_format_measurement(measurement)), lambda done, total: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("loading the model") as status:

        def show(line: str) -> None:
            status.update(Text(line, no_wrap=True, overflow="ellipsis"))

        yield (
            lambda measurement: show(f"{_format_stage(measurement)}; last: {_format_measurement(measurement)}"),
            lambda done, total: show(f"reading images  {done:,}/{total:,}"),
        )


def _format_stage(measurement: saved.Measurement) -> str:
    return "trying engines" if measurement.startup_seconds is None else "measuring the best again"


def _format_measurement(measurement: saved.Measurement) -> str:
    if measurement.startup_seconds is not None:
        text = f"{measurement.config}: starts in {measurement.startup_seconds:.2f} s"
    elif measurement.images_per_second:
        text = f"{measurement.config}: {measurement.images_per_second:,.1f} images/s"
    else:
        return f"{measurement.config.name}: {measurement.reason}"
    return ", ".join(filter(None, (text, measurement.reason)))
