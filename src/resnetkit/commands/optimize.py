"""``resnetkit optimize``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.architecture.card import find_model_folder
from resnetkit.commands.output import can_rewrite_lines, log, print_json, print_table, print_text, suggest_next
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.engines.saved import (
    ENGINES_FOLDER,
    HEADINGS,
    REPORT_FILE,
    Measurement,
    OptimizeResult,
    find_baseline,
    format_table_row,
    get_throughput,
    group_skip_reasons,
    read_engines_file,
    select_best_per_engine,
)
from resnetkit.errors import ResnetkitError, UsageError
from resnetkit.optimization.accuracy_check import MAX_LOSS
from resnetkit.optimization.report import format_headline
from resnetkit.runtime.signals import handle_signals
from resnetkit.serialization import to_data


@dataclass(frozen=True)
class Options:
    """The fastest way to compute on this machine that still agrees with fp32: tried, checked, and kept for predict.

    Examples: resnetkit optimize runs/flowers-resnet18-1 --data flowers/; resnetkit optimize weights.pth --out fast/
    --data photos/ --minutes 3
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder or a model folder; with --out also a weights file of any library."""
    data: str = ""
    """Pictures to compare answers on, as evaluate takes them, or a folder without classes; int8 needs some."""
    out: str = ""
    """A new model folder to write, instead of keeping the engines in the folder of the model."""
    minutes: float = 5.0
    """How long to try."""
    max_loss: Annotated[float, tyro.conf.arg(metavar="POINTS")] = MAX_LOSS
    """How many points of accuracy an engine may lose, where the pictures have classes."""
    engines: tuple[str, ...] = ()
    """Which to try: openvino, onnxruntime, eager, compiled; all if left out."""
    precisions: tuple[str, ...] = ()
    """Which to try: int8, int8-body (stem and head wider), bf16, fp32; all if left out."""
    json: bool = False
    """One JSON document instead of a table."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    from resnetkit.optimization.api import optimize

    previous = _read_previous_result(options.out or options.model)
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
            log("stopped; what was kept before stays")
            return signals.exit_code
    folder = options.out or options.model
    if options.json:
        print_json("optimize", model=folder, **to_data(result))
    else:
        _show(result)
    slowdown_note = _format_slowdown(previous, result)
    if slowdown_note:
        log(slowdown_note)
    log(f"wrote {find_model_folder(folder) or folder}/{ENGINES_FOLDER}/{REPORT_FILE}")
    suggest_next("resnetkit predict PICTURES", "--model", folder)
    return 0


def _select_model_folder(options: Options) -> str:
    if options.weights.to_args():
        message = "a model folder says itself what is in it"
        raise UsageError(
            message, where=" ".join(options.weights.to_args()), fix="leave it out, or name an --out for weights"
        )
    return options.model


def _read_previous_result(folder: str) -> OptimizeResult | None:
    """What an earlier search has kept, if that can be known."""
    path = find_model_folder(folder)
    with contextlib.suppress(ResnetkitError):
        return read_engines_file(path) if path else None
    return None


def _format_slowdown(previous: OptimizeResult | None, result: OptimizeResult) -> str:
    """A sentence, where what takes the place of an earlier search's best is slower."""
    if previous is None or (previous.weights_digest, previous.machine) != (result.weights_digest, result.machine):
        return ""
    previous_speed, current_speed = get_throughput(previous), get_throughput(result)
    if not previous_speed or not current_speed or current_speed > _MIN_SPEED_RATIO * previous_speed:
        return ""
    names = ", ".join(
        dict.fromkeys(engine.config.name for engine in previous.engines if engine.purpose == "throughput")
    )
    return (
        f"note: {names}, kept before, gave {previous_speed:,.1f} images/s; this search has not found it, or not kept it"
    )


_MIN_SPEED_RATIO = 0.9


def _show(result: OptimizeResult) -> None:
    best = select_best_per_engine(result)
    rows = [format_table_row(measurement, result) for measurement in best if measurement.images_per_second]
    print_table(HEADINGS, rows, drop=("matches fp32 (%)", "latency (ms)", "start-up (s)", "accuracy change (points)"))
    for reason in group_skip_reasons(best):
        print_text(f"left out: {reason}")
    print(f"answers compared on {result.comparison_data}")
    reference = find_baseline(result.measurements)
    for engine in result.engines:
        speedup = _format_speedup(engine.measurement, reference) * (engine.purpose == "throughput")
        print(f"{engine.purpose + ':':<12}{engine.measurement.config}: {format_headline(engine)}{speedup}")


def _format_speedup(measurement: Measurement, reference: Measurement | None) -> str:
    """How many times faster than the plain way, which was measured beside it."""
    if reference is None or not reference.images_per_second:
        return ""
    return f", {(measurement.images_per_second or 0) / reference.images_per_second:.1f} times {reference.config}"


@contextlib.contextmanager
def _show_progress() -> Iterator[tuple[Callable[[Measurement], None], Callable[[int, int], None]]]:
    """Of rows and of pictures read: a line for each way that was tried, on a terminal the last one alone."""
    if not can_rewrite_lines():
        yield lambda measurement: log(_format_measurement(measurement)), lambda done, total: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("looking at the model") as status:

        def show(line: str) -> None:
            status.update(Text(line, no_wrap=True, overflow="ellipsis"))

        yield (
            lambda measurement: show(f"{_format_stage(measurement)}; last: {_format_measurement(measurement)}"),
            lambda done, total: show(f"reading pictures  {done:,}/{total:,}"),
        )


def _format_stage(measurement: Measurement) -> str:
    return "trying engines" if measurement.startup_seconds is None else "measuring the best once more"


def _format_measurement(measurement: Measurement) -> str:
    if measurement.startup_seconds is not None:
        text = f"{measurement.config}: opened anew in {measurement.startup_seconds:.2f} s"
    elif measurement.images_per_second:
        text = f"{measurement.config}: {measurement.images_per_second:,.1f} images/s"
    else:
        return f"{measurement.config.name}: {measurement.reason}"
    return ", ".join(filter(None, (text, measurement.reason)))
