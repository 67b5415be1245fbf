"""``resnetkit evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetkit.commands.output import counting, results, say, table, then


@dataclass(frozen=True)
class Options:
    """Count how often a model is right: exact counts, in fp32 unless told otherwise.

    Examples: resnetkit evaluate runs/digits-resnet20-1 digits; resnetkit evaluate my-model/ flowers/ --part val --json
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a weights file (then with --network)."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder as train takes it, or digits."""
    part: Literal["train", "val", "test", "all"] | None = None
    """Which part; test, or else val, or else all, if it is left out."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """In what the network computes."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    network: str = ""
    """For a weights file: which network it is of."""
    dialect: str = "resnetkit"
    """For a weights file: how its tensors are called (resnetkit or torchvision)."""
    json: bool = False
    """One JSON document instead of a table."""


def run(options: Options) -> int:
    from resnetkit.learn.evaluate import evaluate
    from resnetkit.weights.store import load

    model = load(options.model, options.network or None, options.dialect)
    with counting("evaluating") as tell:
        found = evaluate(
            model, options.data, part=options.part, device=options.device, precision=options.precision, tell=tell
        )
    if not model.card.classes:
        say("note: the classes of this model have no names; they are taken to be the data's, in alphabetical order")
    if options.json:
        results(
            "evaluate",
            model=options.model,
            data=options.data,
            part=found.part,
            n=found.n,
            correct=found.correct,
            top1=found.top1,
            top5=found.top5 / found.n,
            classes=found.classes,
            confusion=found.confusion,
        )
        return 0
    rows = [(name, str(n), str(right), f"{right / n:.1%}") for name, n, right in found.per_class()]
    table(("class", "pictures", "right", "share"), rows)
    five = f"; {found.top5} within the first five" * (len(found.classes) > 5)
    print(f"{found.part}: {found.correct} of {found.n} right, {found.top1:.2%}{five}")
    then(f"resnetkit predict PICTURE --model {options.model}")
    return 0
