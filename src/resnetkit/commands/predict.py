"""``resnetkit predict``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import counting, results, say, table
from resnetkit.errors import DataError, UsageError


@dataclass(frozen=True)
class Options:
    """Pictures to labels. A file that cannot be read is a row with its reason; then the exit code is 3.

    Examples: resnetkit predict cat.jpg --model runs/pets-resnet18-1; resnetkit predict inbox/ --model my-model/ --json
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """Pictures, and folders of pictures."""
    model: str
    """A run folder, a model folder, or a weights file (then with --network)."""
    top: int = 1
    """How many classes to name for each picture."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    network: str = ""
    """For a weights file: which network it is of."""
    dialect: str = "resnetkit"
    """For a weights file: how its tensors are called (resnetkit or torchvision)."""
    json: bool = False
    """One JSON document instead of a table."""


def run(options: Options) -> int:
    if not options.files:
        raise UsageError("there is no picture to look at", where="resnetkit predict", fix="name files or folders")
    if options.top < 1:
        raise UsageError(f"--top {options.top} names no class", where="--top", fix="--top 1 or more")
    from resnetkit.deliver.predict import predict
    from resnetkit.weights.store import load

    model = load(options.model, options.network or None, options.dialect)
    with counting("looking at pictures") as tell:
        answers = predict(options.files, model, top=options.top, device=options.device, tell=tell)
    if options.json:
        rows = [{"file": a.file, "label": a.label, "top": a.top, "error": a.error or None} for a in answers]
        results("predict", model=options.model, answers=rows)
    else:
        found = [(a.file, *_told(a.top, a.error)) for a in answers]
        table(("file", "label", "probability"), found, left=2)
    bad = sum(bool(answer.error) for answer in answers)
    if bad:
        say(str(DataError(f"{bad} of {len(answers)} files could not be read; their rows say why")))
    return DataError.exit_code if bad else 0


def _told(top: tuple[tuple[str, float], ...], error: str) -> tuple[str, str]:
    if error:
        return f"({error})", ""
    return ", ".join(name for name, _ in top), ", ".join(f"{share:.1%}" for _, share in top)
