"""``resnetkit evaluate``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetkit.commands.distributed import TIMEOUT, together
from resnetkit.commands.output import counting, one_line, prose, results, say, table, then
from resnetkit.commands.weights_options import AS_TOLD, Weights, loaded
from resnetkit.data.dataset import listed
from resnetkit.evaluation.result import Evaluation, told
from resnetkit.prediction.api import By
from resnetkit.runtime.distributed import Ranks


@dataclass(frozen=True)
class Options:
    """Count how often a model is right: exact counts, in fp32 unless told otherwise.

    Examples: resnetkit evaluate runs/digits-resnet20-1 digits; resnetkit evaluate my-model/ flowers/ --part val --json;
    resnetkit evaluate my-model/ flowers/ --engine openvino-int8
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder, a table (.csv), Parquet or an archive as train takes it, or digits."""
    part: Literal["train", "val", "test", "all"] | None = None
    """Which part; test, or else val, or else all, if it is left out."""
    bad_files: Annotated[str, tyro.conf.arg(metavar="error|skip")] = ""
    """What a picture that cannot be read is (error if nothing is said); skipped ones are named and counted."""
    max_bad: str = ""
    """How many may be skipped: 10% or 0.1 of all (1% if left out)."""
    engine: Annotated[str, tyro.conf.arg(metavar="torch|auto|NAME")] = "torch"
    """What computes: the network itself (torch), or what optimize has kept: the fastest (auto), or one of them."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """In what the network computes."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto; under torchrun a GPU for each process."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = TIMEOUT
    """How long the processes that torchrun starts wait for each other."""
    json: bool = False
    """One JSON document instead of a table."""
    weights: Weights = AS_TOLD


def run(options: Options) -> int:
    with together(options.device, options.timeout) as (ranks, device):
        return _run(options, ranks, device)


def _run(options: Options, ranks: Ranks, device: str) -> int:
    from resnetkit.evaluation.api import answers_of, who
    from resnetkit.evaluation.metrics import examination
    from resnetkit.training.overrides import policy

    bad = policy(options.bad_files or None, options.max_bad or None)
    by = By(options.engine, options.device, options.precision)
    asked = who(options.model, by, options.weights.words(), ranks)
    model = loaded(options.model, options.weights)
    with counting("reading") as tell:
        exam = examination(model, options.data, options.part, bad, tell=tell, ranks=ranks)
    with answers_of(asked, model, device, options.precision) as (logits, said):
        if said:
            say(f"engine: {one_line(said)}")
        with counting("evaluating") as tell:
            found = exam.of(logits, tell)
    if not model.card.classes:
        say("note: the classes of this model have no names; they are taken to be the data's, in alphabetical order")
    if options.json:
        results("evaluate", model=options.model, data=options.data, **_record(found))
    else:
        _show(found)
    for line in _notes(found):
        say(line)
    then("resnetkit predict PICTURE", "--model", options.model, *options.weights.words())
    return 0


def _record(found: Evaluation) -> dict[str, object]:
    return {
        "part": found.part,
        "n": found.n,
        "correct": found.correct,
        "top1": found.top1,
        "interval": found.interval,
        "top5": found.top5 / max(found.n, 1),
        "loss": found.loss,
        "calibration_error": found.calibration_error(),
        "skipped": [{"file": name, "error": reason} for name, reason in found.skipped],
        "classes": found.classes,
        "confusion": _confusion(found),
        "notes": found.notes,
    }


def _confusion(found: Evaluation) -> dict[str, dict[str, int]]:
    """Of each class how often it was taken for which; what never happened is left out."""
    taken: dict[str, dict[str, int]] = {}
    for truth, answer in zip(found.answers.truth, found.answers.answer, strict=True):
        row = taken.setdefault(found.classes[truth], {})
        row[found.classes[answer]] = row.get(found.classes[answer], 0) + 1
    return taken


def _show(found: Evaluation) -> None:
    rows = [(name, str(n), str(right), f"{right / n:.1%}") for name, n, right in found.per_class()]
    table(("class", "pictures", "right", "share"), rows)
    five = f"; {found.top5} within the first five" * (len(found.classes) > 5)
    prose(f"{found.part}: {found.correct} of {found.n} right, {told(found.correct, found.n)}{five}")


def _notes(found: Evaluation) -> list[str]:
    counted = {name for name, *_ in found.per_class()}
    lacking = [name for name in found.classes if name not in counted]
    notes = [f"note: {note}" for note in found.notes]
    notes += [f"note: there is no picture of: {listed(lacking)}"] * bool(lacking)
    return notes + [f"left out: {name}: {reason}" for name, reason in found.skipped]
