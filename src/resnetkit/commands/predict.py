"""``resnetkit predict``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from resnetkit.commands.distributed import TIMEOUT, together
from resnetkit.commands.output import (
    counting,
    one_line,
    output_file,
    plain_json,
    quoted,
    results,
    say,
    table,
    then,
)
from resnetkit.commands.stdin import files_or_stdin
from resnetkit.commands.weights_options import AS_TOLD, Weights, loaded
from resnetkit.errors import DataError, ResnetkitError, UsageError
from resnetkit.formatting import counted
from resnetkit.prediction import api as predicting
from resnetkit.prediction.api import By, Found, Server, answers, find, shared
from resnetkit.prediction.formats import (
    Answer,
    csv_cells,
    csv_columns,
    csv_line,
    json_line,
    record,
    require_parquet,
    write_answers,
)
from resnetkit.prediction.inputs import Input, passed_over
from resnetkit.prediction.resumable_output import MadeWith, Part, form_of
from resnetkit.runtime.distributed import Ranks, launched
from resnetkit.runtime.signals import listening


@dataclass(frozen=True)
class Options:
    """Pictures to labels. A file that cannot be read is a row with its reason; then the exit code is 3.

    Examples: resnetkit predict cat.jpg --model runs/pets-resnet18-1; resnetkit predict inbox/ "more/**/*.jpg" --model
    my-model/ --out labels.csv; resnetkit predict inbox/ --model my-model/ --out labels.csv --resume; resnetkit predict
    inbox/ --model my-model/ --engine openvino-int8 --csv > labels.csv; find . -name "*.jpg" | resnetkit predict -
    --model my-model/ --jsonl
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
    """A .parquet file to write; --out does the same."""
    out: str = ""
    """A .csv, .jsonl or .parquet file to write; it has its name as soon as all rows are there."""
    resume: bool = False
    """Go on with the .csv or .jsonl of --out where the same command was stopped or killed."""
    engine: Annotated[str, tyro.conf.arg(metavar="auto|torch|NAME")] = "auto"
    """What computes: of what optimize has kept the soonest done (auto), one of them (openvino-int8), or torch."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto; under torchrun a GPU for each process. With a device torch computes."""
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = TIMEOUT
    """How long the processes that torchrun starts wait for each other."""
    precision: Annotated[str, tyro.conf.arg(metavar="auto|fp32|bf16")] = ""
    """In what the network computes: as it was optimized, or else fp32. With a precision torch computes."""

    @property
    def file(self) -> str:
        """What is to be written."""
        return self.out or self.parquet


def run(options: Options) -> int:
    """Where rows can be gone on with, Ctrl-C and SIGTERM end with the command that does so."""
    _require_one_form(options)
    if not options.out or options.out.endswith(".parquet") or launched():
        return _together(options)
    with listening() as asked:
        try:
            return _together(options)
        except KeyboardInterrupt:
            say(f"stopped; this goes on: {_again(options)}")
            return asked.exit_code
        except _GOING_ON as error:
            if _stands(options) and not isinstance(error, UsageError):
                error.add_note(f"this goes on where it ended: {_again(options)}")
            raise


_GOING_ON = (ResnetkitError, OSError, MemoryError, RuntimeError)  # what is not the same each time


def _stands(options: Options) -> bool:
    """Whether there is any row to go on with."""
    part = Path(f"{options.out}.part")
    return part.is_file() and part.stat().st_size > 0


def _again(options: Options) -> str:
    """The same command, which goes on."""
    words = ["resnetkit", "predict", *options.files]
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in ("files", "weights", "resume") and value != field.default:
            words += [f"--{field.name}", *([] if value is True else [str(value)])]
    names = " (the same names on standard input)" if "-" in options.files else ""
    return " ".join(map(quoted, [*words, *options.weights.words(), "--resume"])) + names


def _together(options: Options) -> int:
    with together(options.device, options.timeout) as (ranks, device):
        return _run(replace(options, device=device), ranks)


def _run(options: Options, ranks: Ranks) -> int:
    part = _part(options) if ranks.writes else None
    files = files_or_stdin(options.files, "resnetkit predict") if ranks.writes else []
    if options.top < 1:
        raise UsageError(f"--top {options.top} names no class", where="--top", fix="--top 1 or more")
    inputs = shared(files, ranks)
    _refuse_bytes(options, inputs)
    found = _found(options, len(inputs), part, ranks)
    with found.opened(lambda: loaded(options.model, options.weights), predicting.BATCH, ranks) as server:
        options = replace(options, top=min(options.top, len(server.card.labels)))
        if ranks.world == 1:
            say(f"engine: {server.engine.choice}{f', as {one_line(server.why)}' if server.why else ''}")
        with part.held() if part else contextlib.nullcontext():
            seen = _answered(options, inputs, server, part, ranks)
    for note in passed_over(options.files):
        say(f"note: {one_line(note)}")
    if seen.bad:
        say(str(DataError(f"{seen.bad} of {counted(seen.all, 'file')} got no answer; their rows say why")))
    then("resnetkit embed FILES", "--model", options.model, *options.weights.words())
    return DataError.exit_code if seen.bad else 0


@dataclass
class Seen:
    """How many files there were, and how many of them have no answer."""

    all: int = 0
    bad: int = 0

    def counting(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """The same answers."""
        for answer in answers:
            self.all += 1
            self.bad += bool(answer.error)
            yield answer


def _answered(options: Options, inputs: Sequence[Input], server: Server, part: Part | None, ranks: Ranks) -> Seen:
    """Ask, and write what is answered."""
    write = _into(part) if part else _WRITERS[_form(options)] if ranks.writes else _nothing
    numbers, again, *there = ranks.first(lambda: _left(options, inputs, server, part))
    seen, chosen = Seen(*there), inputs if numbers is None else [inputs[i] for i in numbers]
    at_once = not ranks.writes or _form(options) not in ("table", "json")
    shown = not (sys.stdout.isatty() and (options.csv or options.jsonl))
    with (
        counting("looking at pictures", shown=shown) as tell,
        contextlib.closing(answers(chosen, server, options.top, tell=tell, ranks=ranks)) as made,
    ):
        found = seen.counting(itertools.islice(made, again, None))
        if at_once:
            write(found, options)
        else:
            found = iter(list(found))
    if not at_once:  # a bar on the same terminal would stand in the table
        write(found, options)
    if options.file and ranks.writes:
        print(f"wrote {counted(seen.all, 'row')} to {options.file}")
    return seen


# --------------------------------------------------------------------------------------------------- what is asked for


def _form(options: Options) -> str:
    return next((name for name in _WRITERS if getattr(options, name, "")), "table")


def _require_one_form(options: Options) -> None:
    asked = [name for name in _WRITERS if getattr(options, name, "")]
    if len(asked) > 1:
        raise UsageError(
            "one form at a time", where=" ".join(f"--{name}" for name in asked), fix=_one_of(asked, options)
        )
    if options.resume and not options.out.endswith((".csv", ".jsonl")):
        what = "only rows of .csv and .jsonl can be gone on with"
        raise UsageError(what, where=f"--resume with --out {options.out}".rstrip(), fix="--out labels.csv --resume")


def _one_of(asked: Sequence[str], options: Options) -> str:
    """What to say instead of several forms; a file that was named stays."""
    if not options.file:
        return f"--{asked[0]}"
    others = " ".join(f"--{name}" for name in asked if name != ("out" if options.out else "parquet"))
    path = Path(options.file)
    other = [path.with_suffix(f".{name}") for name in ("csv", "jsonl") if name in asked and path.suffix != f".{name}"]
    return f"leave {others} out{''.join(f', or --out {quoted(str(name))}' for name in other[:1])}"


def _part(options: Options) -> Part | None:
    """Rows that can be gone on with, where such are asked for; what is written must not be there yet."""
    if options.parquet:
        output_file(options.parquet, ".parquet")
    path = output_file(options.out, ".csv", ".jsonl", ".parquet") if options.out else None
    if options.file.endswith(".parquet"):
        require_parquet()
        return None
    return Part(path, options.resume) if path else None


def _refuse_bytes(options: Options, inputs: Sequence[Input]) -> None:
    if options.resume and any(one.content is not None for one in inputs):
        what = "one picture from standard input cannot be gone on with"
        raise UsageError(what, where="--resume", fix="name files, or leave --resume out")


def _found(options: Options, pictures: int, part: Part | None, ranks: Ranks) -> Found:
    """Who is asked; who was asked for the rows that stand, where nothing else is said."""
    by = By(options.engine, options.device, options.precision)
    before = part.made_with() if part else None
    if before and by == By():
        with contextlib.suppress(UsageError):  # another model has not that engine, and the rows tell it from theirs
            name = "torch" if before.engine.startswith("torch-") else before.engine
            return find(options.model, pictures, replace(by, engine=name).about(options.weights.words()), ranks)
    return find(options.model, pictures, by.about(options.weights.words()), ranks)


def _left(
    options: Options, inputs: Sequence[Input], server: Server, part: Part | None
) -> tuple[list[int] | None, int, int, int]:
    """The numbers of the inputs to look at, all where it is None; of how many of these the rows stand nevertheless; how
    many rows stand, and how many of them are of files that could not be read.
    """
    if part is None:
        return None, 0, 0, 0
    choice, form = server.engine.choice, form_of(part.path.suffix, options.top)
    made = MadeWith(server.model(), choice.name, choice.device, options.top, form.columns, server.artefact())
    part.begin(made, form)
    if not part.standing.names:
        return None, 0, 0, 0
    there = len(part.standing.names)
    say(f"resumed: {counted(there, 'row')} of {len(inputs):,} stand in {part.part}")
    return *part.left(inputs, choice.batch), there, part.standing.bad


# --------------------------------------------------------------------------------------------------------------- forms


_Writer = Callable[[Iterable[Answer], Options], None]


def _nothing(answers: Iterable[Answer], options: Options) -> None:
    """Of a process that does not speak."""
    for _ in answers:
        pass


def _into(part: Part) -> _Writer:
    return lambda answers, options: part.fill(answers, form_of(part.path.suffix, options.top))


def _table(answers: Iterable[Answer], options: Options) -> None:
    told = [(answer.file, *_told(answer)) for answer in answers]
    table(("file", "label", "probability"), told, left=2)


def _told(answer: Answer) -> tuple[str, str]:
    if answer.error:
        return f"({answer.error})", ""
    return ", ".join(name for name, _ in answer.top), ", ".join(f"{share:.1%}" for _, share in answer.top)


def _csv(answers: Iterable[Answer], options: Options) -> None:
    print(csv_cells(csv_columns(options.top)), flush=True)
    for answer in answers:
        print(csv_line(answer, options.top), flush=True)


def _jsonl(answers: Iterable[Answer], options: Options) -> None:
    for answer in answers:
        print(json_line(answer, plain_json()), flush=True)


def _json(answers: Iterable[Answer], options: Options) -> None:
    results("predict", model=options.model, answers=[record(answer) for answer in answers])


def _parquet(answers: Iterable[Answer], options: Options) -> None:
    write_answers(Path(options.file), answers)


_WRITERS: dict[str, _Writer] = {
    "csv": _csv, "json": _json, "jsonl": _jsonl, "parquet": _parquet, "out": _parquet, "table": _table
}  # fmt: skip
