"""``resnetkit optimize``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.architecture.card import model_folder
from resnetkit.commands.output import results, rewrites_lines, say, table, then
from resnetkit.deliver.agreement import MAX_LOSS
from resnetkit.deliver.optimized import CELLS, FOLDER, REPORT, Kept, Optimized, Row, best_of_each, reference, told
from resnetkit.text import to_data


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


def run(options: Options) -> int:
    from resnetkit.deliver.optimize import optimize

    with _watching() as watch:
        found = optimize(
            options.model,
            data=options.data or None,
            out=options.out or None,
            minutes=options.minutes,
            max_loss=options.max_loss,
            engines=options.engines,
            precisions=options.precisions,
            watch=watch,
        )
    if options.json:
        results("optimize", model=options.model, **to_data(found))
    else:
        _show(found)
    folder = options.out or options.model
    say(f"wrote {model_folder(folder) or Path(folder)}/{FOLDER}/{REPORT}")
    then("resnetkit predict PICTURES", "--model", folder)
    return 0


def _show(found: Optimized) -> None:
    table(CELLS, [told(row) for row in best_of_each(found.rows)], left=2, drop=("ms a batch", "same"))
    print(f"answers compared on {found.checked}")
    plain = reference(found.rows)
    for kept in found.kept:
        print(f"{kept.purpose:<11}{_told(kept, plain)}")


def _told(kept: Kept, plain: Row | None) -> str:
    """A winner in a line, with how many times faster than the plain way it is."""
    row = kept.row
    if kept.purpose == "start":
        return f"{row.choice}: {row.seconds_to_start or 0:.2f} s from nothing to the first answer"
    if kept.purpose == "latency":
        return f"{row.choice}: {row.milliseconds or 0:.2f} ms"
    times = (row.images_per_second or 0) / plain.images_per_second if plain and plain.images_per_second else 0
    return f"{row.choice}: {row.images_per_second or 0:,.1f} images/s" + f", {times:.1f} times eager fp32" * bool(times)


@contextlib.contextmanager
def _watching() -> Iterator[Callable[[Row], None]]:
    """A line for each way that was tried: the last one alone on a terminal, where they would fill it."""
    if not rewrites_lines():
        yield lambda row: say(_line(row))
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("trying engines") as status:
        yield lambda row: status.update(f"tried {escape(_line(row))}")


def _line(row: Row) -> str:
    speed = f"{row.images_per_second:,.1f} images/s" if row.images_per_second else ""
    return f"{row.choice}: {', '.join(filter(None, (speed, row.why)))}"
