"""``resnetkit optimize``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.architecture.card import model_folder
from resnetkit.commands.output import prose, results, rewrites_lines, say, table, then
from resnetkit.commands.weights_options import AS_TOLD, Weights, loaded
from resnetkit.engines.saved import (
    FOLDER,
    HEADINGS,
    REPORT,
    Optimized,
    Row,
    best_of_each,
    cells,
    left_out,
    plain,
    read,
    throughput,
)
from resnetkit.errors import ResnetkitError, UsageError
from resnetkit.optimization.accuracy_check import MAX_LOSS
from resnetkit.optimization.report import figure
from resnetkit.runtime.signals import listening
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
    weights: Weights = AS_TOLD


def run(options: Options) -> int:
    from resnetkit.optimization.search import optimize

    before = _before(options.out or options.model)
    with listening() as asked, _watching() as (watch, tell):
        try:
            found = optimize(
                loaded(options.model, options.weights) if options.out else _as_it_stands(options),
                data=options.data or None,
                out=options.out or None,
                minutes=options.minutes,
                max_loss=options.max_loss,
                engines=options.engines,
                precisions=options.precisions,
                watch=watch,
                tell=tell,
            )
        except KeyboardInterrupt:
            say("stopped; what was kept before stays")
            return asked.exit_code
    folder = options.out or options.model
    if options.json:
        results("optimize", model=folder, **to_data(found))
    else:
        _show(found)
    slower = _slower(before, found)
    if slower:
        say(slower)
    say(f"wrote {model_folder(folder) or folder}/{FOLDER}/{REPORT}")
    then("resnetkit predict PICTURES", "--model", folder)
    return 0


def _as_it_stands(options: Options) -> str:
    if options.weights.words():
        what = "a model folder says itself what is in it"
        raise UsageError(
            what, where=" ".join(options.weights.words()), fix="leave it out, or name an --out for weights"
        )
    return options.model


def _before(folder: str) -> Optimized | None:
    """What an earlier search has kept, if that can be known."""
    standing = model_folder(folder)
    with contextlib.suppress(ResnetkitError):
        return read(standing) if standing else None
    return None


def _slower(before: Optimized | None, found: Optimized) -> str:
    """A sentence, where what takes the place of an earlier search's best is slower."""
    if before is None or (before.weights, before.processor) != (found.weights, found.processor):
        return ""
    old, new = throughput(before), throughput(found)
    if not old or not new or new > _ALIKE * old:
        return ""
    names = ", ".join(dict.fromkeys(kept.row.choice.name for kept in before.kept if kept.purpose == "throughput"))
    return f"note: {names}, kept before, gave {old:,.1f} images/s; this search has not found it, or not kept it"


_ALIKE = 0.9


def _show(found: Optimized) -> None:
    best = best_of_each(found)
    rows = [cells(row, found.kept) for row in best if row.images_per_second]
    table(HEADINGS, rows, drop=("same", "ms a call", "s to start", "points"))
    for reason in left_out(best):
        prose(f"left out: {reason}")
    print(f"answers compared on {found.checked}")
    compared = plain(found.rows)
    for kept in found.kept:
        faster = _times(kept.row, compared) * (kept.purpose == "throughput")
        print(f"{kept.purpose + ':':<12}{kept.row.choice}: {figure(kept)}{faster}")


def _times(row: Row, compared: Row | None) -> str:
    """How many times faster than the plain way, which was measured beside it."""
    if compared is None or not compared.images_per_second:
        return ""
    return f", {(row.images_per_second or 0) / compared.images_per_second:.1f} times {compared.choice}"


@contextlib.contextmanager
def _watching() -> Iterator[tuple[Callable[[Row], None], Callable[[int, int], None]]]:
    """Of rows and of pictures read: a line for each way that was tried, on a terminal the last one alone."""
    if not rewrites_lines():
        yield lambda row: say(_line(row)), lambda done, total: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("looking at the model") as status:

        def show(line: str) -> None:
            status.update(Text(line, no_wrap=True, overflow="ellipsis"))

        yield (
            lambda row: show(f"{_stage(row)}; last: {_line(row)}"),
            lambda done, total: show(f"reading pictures  {done:,}/{total:,}"),
        )


def _stage(row: Row) -> str:
    return "trying engines" if row.seconds_to_start is None else "measuring the best once more"


def _line(row: Row) -> str:
    if row.seconds_to_start is not None:
        told = f"{row.choice}: opened anew in {row.seconds_to_start:.2f} s"
    elif row.images_per_second:
        told = f"{row.choice}: {row.images_per_second:,.1f} images/s"
    else:
        return f"{row.choice.name}: {row.why}"
    return ", ".join(filter(None, (told, row.why)))
