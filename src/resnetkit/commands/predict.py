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

from resnetkit.commands.distributed import TIMEOUT, init_distributed
from resnetkit.commands.output import (
    check_output_file,
    is_ascii_stdout,
    log,
    print_json,
    print_table,
    progress_bar,
    quote_argument,
    suggest_next,
    truncate,
)
from resnetkit.commands.stdin import read_file_arguments
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.engines.select import DEFAULT_BATCH_SIZE, EngineCandidates, EngineChoice, InferenceSession, select_engine
from resnetkit.errors import DataError, ResnetkitError, UsageError
from resnetkit.formatting import pluralize
from resnetkit.prediction.api import expand_on_main, predict_inputs
from resnetkit.prediction.formats import (
    CsvFormat,
    Prediction,
    build_record,
    check_parquet_installed,
    format_json_line,
    select_row_format,
    write_predictions,
)
from resnetkit.prediction.inputs import ImageInput, describe_skipped_files
from resnetkit.prediction.resumable_output import Provenance, ResumableWriter
from resnetkit.runtime.distributed import ProcessGroup, read_launch_info
from resnetkit.runtime.signals import handle_signals


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
    weights: WeightsOptions = DEFAULT_WEIGHTS
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
    def output_path(self) -> str:
        """What is to be written."""
        return self.out or self.parquet


def run(options: Options) -> int:
    """Where rows can be gone on with, Ctrl-C and SIGTERM end with the command that does so."""
    _check_output_options(options)
    if not options.out or options.out.endswith(".parquet") or read_launch_info():
        return _run_distributed(options)
    with handle_signals() as signals:
        try:
            return _run_distributed(options)
        except KeyboardInterrupt:
            log(f"stopped; this goes on: {_format_resume_command(options)}")
            return signals.exit_code
        except _RESUMABLE_ERRORS as error:
            if _has_partial_rows(options) and not isinstance(error, UsageError):
                error.add_note(f"this goes on where it ended: {_format_resume_command(options)}")
            raise


_RESUMABLE_ERRORS = (ResnetkitError, OSError, MemoryError, RuntimeError)  # what is not the same each time


def _has_partial_rows(options: Options) -> bool:
    """Whether there is any row to go on with."""
    part_file = Path(f"{options.out}.part")
    return part_file.is_file() and part_file.stat().st_size > 0


def _format_resume_command(options: Options) -> str:
    """The same command, which goes on."""
    args = ["resnetkit", "predict", *options.files]
    for field in fields(Options):
        value = getattr(options, field.name)
        if field.name not in ("files", "weights", "resume") and value != field.default:
            args += [f"--{field.name}", *([] if value is True else [str(value)])]
    stdin_note = " (the same names on standard input)" if "-" in options.files else ""
    return " ".join(map(quote_argument, [*args, *options.weights.to_args(), "--resume"])) + stdin_note


def _run_distributed(options: Options) -> int:
    with init_distributed(options.device, options.timeout) as (dist, device):
        return _run(replace(options, device=device), dist)


def _run(options: Options, dist: ProcessGroup) -> int:
    writer = _create_writer(options) if dist.is_main else None
    files = read_file_arguments(options.files, "resnetkit predict") if dist.is_main else []
    if options.top < 1:
        raise UsageError(f"--top {options.top} names no class", where="--top", fix="--top 1 or more")
    inputs = expand_on_main(files, dist)
    _check_resumable_inputs(options, inputs)
    candidates = _select_candidates(options, len(inputs), writer, dist)
    with candidates.open_session(
        lambda: load_with_options(options.model, options.weights), DEFAULT_BATCH_SIZE, dist
    ) as session:
        options = replace(options, top=min(options.top, len(session.card.labels)))
        if dist.world_size == 1:
            log(f"engine: {session.engine.config}{f', as {truncate(session.reason)}' if session.reason else ''}")
        with writer.lock() if writer else contextlib.nullcontext():
            counts = _predict_and_write(options, inputs, session, writer, dist)
    for note in describe_skipped_files(options.files):
        log(f"note: {truncate(note)}")
    if counts.failed:
        log(str(DataError(f"{counts.failed} of {pluralize(counts.total, 'file')} got no answer; their rows say why")))
    suggest_next("resnetkit embed FILES", "--model", options.model, *options.weights.to_args())
    return DataError.exit_code if counts.failed else 0


@dataclass
class FileCounts:
    """How many files there were, and how many of them have no answer."""

    total: int = 0
    failed: int = 0

    def count(self, answers: Iterable[Prediction]) -> Iterator[Prediction]:
        """The same answers."""
        for answer in answers:
            self.total += 1
            self.failed += bool(answer.error)
            yield answer


def _predict_and_write(
    options: Options,
    inputs: Sequence[ImageInput],
    session: InferenceSession,
    writer: ResumableWriter | None,
    dist: ProcessGroup,
) -> FileCounts:
    """Ask, and write what is answered."""
    write_fn = (
        _make_file_writer(writer) if writer else _FORMAT_WRITERS[_select_format(options)] if dist.is_main else _discard
    )
    indices, n_existing, *existing_counts = dist.run_on_main(lambda: _find_remaining(options, inputs, session, writer))
    counts, selected = FileCounts(*existing_counts), inputs if indices is None else [inputs[i] for i in indices]
    is_streaming = not dist.is_main or _select_format(options) not in ("table", "json")
    is_bar_shown = not (sys.stdout.isatty() and (options.csv or options.jsonl))
    with (
        progress_bar("looking at pictures", is_shown=is_bar_shown) as on_progress,
        contextlib.closing(
            predict_inputs(selected, session, options.top, on_progress=on_progress, dist=dist)
        ) as all_answers,
    ):
        new_answers = counts.count(itertools.islice(all_answers, n_existing, None))
        if is_streaming:
            write_fn(new_answers, options)
        else:
            new_answers = iter(list(new_answers))
    if not is_streaming:  # a bar on the same terminal would stand in the table
        write_fn(new_answers, options)
    if options.output_path and dist.is_main:
        print(f"wrote {pluralize(counts.total, 'row')} to {options.output_path}")
    return counts


# --------------------------------------------------------------------------------------------------- what is asked for


def _select_format(options: Options) -> str:
    return next((name for name in _FORMAT_WRITERS if getattr(options, name, "")), "table")


def _check_output_options(options: Options) -> None:
    formats = [name for name in _FORMAT_WRITERS if getattr(options, name, "")]
    if len(formats) > 1:
        raise UsageError(
            "one form at a time", where=" ".join(f"--{name}" for name in formats), fix=_suggest_format(formats, options)
        )
    if options.resume and not options.out.endswith((".csv", ".jsonl")):
        message = "only rows of .csv and .jsonl can be gone on with"
        raise UsageError(message, where=f"--resume with --out {options.out}".rstrip(), fix="--out labels.csv --resume")


def _suggest_format(formats: Sequence[str], options: Options) -> str:
    """What to say instead of several forms; a file that was named stays."""
    if not options.output_path:
        return f"--{formats[0]}"
    other_options = " ".join(f"--{name}" for name in formats if name != ("out" if options.out else "parquet"))
    path = Path(options.output_path)
    alternatives = [
        path.with_suffix(f".{name}") for name in ("csv", "jsonl") if name in formats and path.suffix != f".{name}"
    ]
    return f"leave {other_options} out{''.join(f', or --out {quote_argument(str(name))}' for name in alternatives[:1])}"


def _create_writer(options: Options) -> ResumableWriter | None:
    """Rows that can be gone on with, where such are asked for; what is written must not be there yet."""
    if options.parquet:
        check_output_file(options.parquet, ".parquet")
    path = check_output_file(options.out, ".csv", ".jsonl", ".parquet") if options.out else None
    if options.output_path.endswith(".parquet"):
        check_parquet_installed()
        return None
    return ResumableWriter(path, options.resume) if path else None


def _check_resumable_inputs(options: Options, inputs: Sequence[ImageInput]) -> None:
    if options.resume and any(item.content is not None for item in inputs):
        message = "one picture from standard input cannot be gone on with"
        raise UsageError(message, where="--resume", fix="name files, or leave --resume out")


def _select_candidates(
    options: Options, n_images: int, writer: ResumableWriter | None, dist: ProcessGroup
) -> EngineCandidates:
    """Who is asked; who was asked for the rows that stand, where nothing else is said."""
    choice = EngineChoice(options.engine, options.device, options.precision)
    previous = writer.read_provenance() if writer else None
    if previous and choice == EngineChoice():
        with contextlib.suppress(UsageError):  # another model has not that engine, and the rows tell it from theirs
            name = "torch" if previous.engine.startswith("torch-") else previous.engine
            return select_engine(
                options.model,
                n_images,
                replace(choice, engine=name).apply_weights_options(options.weights.to_args()),
                dist,
            )
    return select_engine(options.model, n_images, choice.apply_weights_options(options.weights.to_args()), dist)


def _find_remaining(
    options: Options, inputs: Sequence[ImageInput], session: InferenceSession, writer: ResumableWriter | None
) -> tuple[list[int] | None, int, int, int]:
    """The numbers of the inputs to look at, all where it is None; of how many of these the rows stand nevertheless; how
    many rows stand, and how many of them are of files that could not be read.
    """
    if writer is None:
        return None, 0, 0, 0
    choice, row_format = session.engine.config, select_row_format(writer.path.suffix, options.top)
    provenance = Provenance(
        session.compute_model_digest(),
        choice.name,
        choice.device,
        options.top,
        row_format.columns,
        session.compute_artifact_digest(),
    )
    writer.check_existing(provenance, row_format)
    if not writer.existing.names:
        return None, 0, 0, 0
    n_rows = len(writer.existing.names)
    log(f"resumed: {pluralize(n_rows, 'row')} of {len(inputs):,} stand in {writer.part_path}")
    return *writer.select_remaining(inputs, choice.batch_size), n_rows, writer.existing.n_unreadable


# --------------------------------------------------------------------------------------------------------------- forms


_WriteFn = Callable[[Iterable[Prediction], Options], None]


def _discard(answers: Iterable[Prediction], options: Options) -> None:
    """Of a process that does not speak."""
    for _ in answers:
        pass


def _make_file_writer(writer: ResumableWriter) -> _WriteFn:
    return lambda answers, options: writer.write_all(answers, select_row_format(writer.path.suffix, options.top))


def _write_table(answers: Iterable[Prediction], options: Options) -> None:
    rows = [(answer.file, *_format_answer(answer)) for answer in answers]
    print_table(("file", "label", "probability"), rows, n_text_columns=2)


def _format_answer(answer: Prediction) -> tuple[str, str]:
    if answer.error:
        return f"({answer.error})", ""
    return ", ".join(name for name, _ in answer.top), ", ".join(f"{probability:.1%}" for _, probability in answer.top)


def _write_csv(answers: Iterable[Prediction], options: Options) -> None:
    row_format = CsvFormat(options.top)
    print(row_format.header, flush=True)
    for answer in answers:
        print(row_format.format_line(answer), flush=True)


def _write_jsonl(answers: Iterable[Prediction], options: Options) -> None:
    for answer in answers:
        print(format_json_line(answer, is_ascii_stdout()), flush=True)


def _write_json(answers: Iterable[Prediction], options: Options) -> None:
    print_json("predict", model=options.model, answers=[build_record(answer) for answer in answers])


def _write_parquet(answers: Iterable[Prediction], options: Options) -> None:
    write_predictions(Path(options.output_path), answers)


_FORMAT_WRITERS: dict[str, _WriteFn] = {
    "csv": _write_csv, "json": _write_json, "jsonl": _write_jsonl, "parquet": _write_parquet, "out": _write_parquet, "table": _write_table
}  # fmt: skip
