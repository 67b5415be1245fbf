"""``resnetkit predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.commands.output import (
    counting,
    output_file,
    plain_json,
    results,
    say,
    table,
    then,
)
from resnetkit.commands.source import AS_TOLD, Weights, loaded
from resnetkit.commands.stdin import files_or_stdin
from resnetkit.commands.together import TIMEOUT, together
from resnetkit.deliver.inputs import passed_over
from resnetkit.deliver.rows import Answer, answer_columns, csv_lines, json_lines, record, require_parquet, write_parquet
from resnetkit.errors import DataError, UsageError
from resnetkit.learn.ranks import Ranks
from resnetkit.tables import counted


@dataclass(frozen=True)
class Options:
    """Pictures to labels. A file that cannot be read is a row with its reason; then the exit code is 3.

    Examples: resnetkit predict cat.jpg --model runs/pets-resnet18-1; resnetkit predict inbox/ "more/**/*.jpg" --model
    my-model/ --csv > labels.csv; find . -name "*.jpg" | resnetkit predict - --model my-model/ --jsonl
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """Pictures, folders, patterns in quotes; - reads names (one a line) or one picture from standard input."""
    model: str
    """A run folder, a model folder, or a weights file of any library."""
    top: int = 1
    """How many classes to name for each picture."""
    csv: bool = False
    """CSV instead of a table."""
    json: bool = False
    """One JSON document instead of a table."""
    weights: Weights = AS_TOLD
    jsonl: bool = False
    """A JSON document for each picture, on a line of its own, as soon as it is known."""
    parquet: str = ""
    """A .parquet file to write."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto; under torchrun a GPU for each process."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = TIMEOUT
    """How long the processes that torchrun starts wait for each other."""
    precision: Annotated[str, tyro.conf.arg(metavar="auto|fp32|bf16")] = "fp32"
    """In what the network computes."""


def run(options: Options) -> int:
    with together(options.device, options.timeout) as (ranks, device):
        return _run(replace(options, device=device), ranks)


def _run(options: Options, ranks: Ranks) -> int:
    write = _writer(options) if ranks.writes else _nothing
    files = files_or_stdin(options.files, "resnetkit predict") if ranks.writes else []
    if options.top < 1:
        raise UsageError(f"--top {options.top} names no class", where="--top", fix="--top 1 or more")
    from resnetkit.deliver.predict import BATCH, answers, shared
    from resnetkit.learn.device import as_precision, classes_of

    model = loaded(options.model, options.weights)
    options = replace(options, top=min(options.top, classes_of(model)))
    precision = as_precision(options.precision)
    streaming = options.csv or options.jsonl
    counts = {"all": 0, "bad": 0}
    with counting("looking at pictures", shown=not (streaming and sys.stdout.isatty())) as tell:
        made = answers(
            shared(files, ranks),
            model,
            options.top,
            device=options.device,
            precision=precision,
            batch_size=BATCH,
            tell=tell,
            ranks=ranks,
        )
        found = _counted(made, counts)
        if streaming or not ranks.writes:
            write(found, options)
        else:
            found = iter(list(found))
    if not streaming and ranks.writes:  # a bar on the same terminal would stand in the table
        write(found, options)
    for note in passed_over(options.files):
        say(f"note: {note}")
    if counts["bad"]:
        say(
            str(DataError(f"{counts['bad']} of {counted(counts['all'], 'file')} could not be read; their rows say why"))
        )
    then("resnetkit embed FILES", "--model", options.model, *options.weights.words())
    return DataError.exit_code if counts["bad"] else 0


def _counted(answers: Iterable[Answer], counts: dict[str, int]) -> Iterator[Answer]:
    for answer in answers:
        counts["all"] += 1
        counts["bad"] += bool(answer.error)
        yield answer


_Writer = Callable[[Iterable[Answer], Options], None]


def _writer(options: Options) -> _Writer:
    asked = [name for name in _WRITERS if name != "table" and getattr(options, name)]
    if len(asked) > 1:
        raise UsageError("one form at a time", where=" ".join(f"--{name}" for name in asked), fix=f"--{asked[0]}")
    if options.parquet:
        output_file(options.parquet, ".parquet")
        require_parquet()
    return _WRITERS[asked[0] if asked else "table"]


def _nothing(answers: Iterable[Answer], options: Options) -> None:
    """Of a process that does not speak."""
    for _ in answers:
        pass


def _table(answers: Iterable[Answer], options: Options) -> None:
    told = [(answer.file, *_told(answer)) for answer in answers]
    table(("file", "label", "probability"), told, left=2)


def _told(answer: Answer) -> tuple[str, str]:
    if answer.error:
        return f"({answer.error})", ""
    return ", ".join(name for name, _ in answer.top), ", ".join(f"{share:.1%}" for _, share in answer.top)


def _csv(answers: Iterable[Answer], options: Options) -> None:
    _stream(csv_lines(answers, options.top))


def _jsonl(answers: Iterable[Answer], options: Options) -> None:
    _stream(json_lines(answers, plain_json()))


def _stream(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _json(answers: Iterable[Answer], options: Options) -> None:
    results("predict", model=options.model, answers=[record(answer) for answer in answers])


def _parquet(answers: Iterable[Answer], options: Options) -> None:
    columns = answer_columns(list(answers))
    write_parquet(Path(options.parquet), columns)
    print(f"wrote {len(columns['file'])} rows to {options.parquet}")


_WRITERS: dict[str, _Writer] = {"table": _table, "csv": _csv, "json": _json, "jsonl": _jsonl, "parquet": _parquet}
