"""``resnetkit predict``.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from resnetkit.commands import output
from resnetkit.commands.arguments import Argument, format_options
from resnetkit.commands.distributed import DEFAULT_DEVICE, DeviceOptions, init_distributed
from resnetkit.commands.image_options import DEFAULT_IMAGE_OPTIONS, ImageOptions
from resnetkit.commands.stdin import read_file_arguments
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.engines.select import DEFAULT_BATCH_SIZE, EngineCandidates, EngineChoice, InferenceSession, select_engine
from resnetkit.errors import DataError, ResnetkitError, UsageError
from resnetkit.formatting import pluralize
from resnetkit.prediction import formats
from resnetkit.prediction.api import expand_on_main, predict_inputs
from resnetkit.prediction.inputs import ImageInput, describe_skipped_files
from resnetkit.prediction.resumable_output import Provenance, ResumableWriter
from resnetkit.runtime.distributed import ProcessGroup, read_launch_info
from resnetkit.runtime.signals import handle_signals

_RESUMABLE_ERRORS = (ResnetkitError, OSError, MemoryError, RuntimeError)  # a second attempt may succeed


@dataclass(frozen=True, kw_only=True)
class Options:
    """Classify images. An unreadable file gives a row with the reason; the exit code is then 3.

    Examples: resnetkit predict cat.jpg --model runs/pets-resnet18-1; resnetkit predict inbox/ "more/**/*.jpg" --model
    my-model/ --out labels.csv; resnetkit predict inbox/ --model my-model/ --out labels.csv --resume; resnetkit predict
    inbox/ --model my-model/ --engine openvino-int8 --csv > labels.csv; find . -name "*.jpg" | resnetkit predict -
    --model my-model/ --jsonl
    """

    files: Annotated[tuple[str, ...], Argument("FILES", is_positional=True)] = ()
    """Images, folders, patterns in quotes; - reads names (one per line) or one image from standard input."""
    model: Annotated[str, Argument("MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    top: int = 1
    """The number of classes to print for each image, most probable first."""
    csv: bool = False
    """Print CSV instead of a table."""
    csv_formulas: bool = False
    """In CSV, keep texts that begin with = + - @, which a spreadsheet would run; by default an apostrophe precedes
    them."""
    json: bool = False
    """Print one JSON document instead of a table."""
    jsonl: bool = False
    """Print a line of JSON for each image as soon as it is classified."""
    parquet: Annotated[str, Argument("FILE")] = ""
    """A .parquet file to write; --out does the same."""
    out: Annotated[str, Argument("FILE")] = ""
    """A .csv, .jsonl or .parquet file to write; it appears under its name when it is complete."""
    resume: bool = False
    """Continue the .csv or .jsonl file of --out after the same command was stopped or killed."""
    engine: Annotated[str, Argument("auto|torch|NAME")] = "auto"
    """The inference engine: the one that optimize saved and that finishes soonest (auto), one of those (openvino-int8),
    or torch."""
    device: DeviceOptions = DEFAULT_DEVICE
    precision: Annotated[str, Argument("auto|fp32|bf16")] = ""
    """The precision; by default that of the saved engine, or fp32. It makes torch compute, as --device does."""
    images: ImageOptions = DEFAULT_IMAGE_OPTIONS
    weights: WeightsOptions = DEFAULT_WEIGHTS

    @property
    def output_path(self) -> str:
        """The file to write; empty for standard output."""
        return self.out or self.parquet


def run(options: Options) -> int:
    """Run the command and return its exit code; if its rows can be resumed, an interrupt logs how."""
    _check_output_options(options)
    options.images.apply()
    if not options.out or options.out.endswith(".parquet") or read_launch_info():
        return _run_distributed(options)
    with handle_signals() as signals:
        try:
            return _run_distributed(options)
        except KeyboardInterrupt:
            output.log(f"stopped; to resume: {_format_resume_command(options)}")
            return signals.exit_code
        except _RESUMABLE_ERRORS as error:
            if _has_partial_rows(options) and not isinstance(error, UsageError):
                error.add_note(f"to resume: {_format_resume_command(options)}")
            raise


def _has_partial_rows(options: Options) -> bool:
    part_file = Path(f"{options.out}.part")
    return part_file.is_file() and part_file.stat().st_size > 0


def _format_resume_command(options: Options) -> str:
    args = [*options.files, *format_options(replace(options, files=(), resume=False)), "--resume"]
    stdin_note = " (with the same names on standard input)" if "-" in options.files else ""
    return " ".join(map(output.quote_argument, ["resnetkit", "predict", *args])) + stdin_note


def _run_distributed(options: Options) -> int:
    with init_distributed(options.device) as (dist, device):
        return _run(replace(options, device=replace(options.device, device=device)), dist)


def _run(options: Options, dist: ProcessGroup) -> int:
    writer = _create_writer(options) if dist.is_main else None
    files = read_file_arguments(options.files, "resnetkit predict") if dist.is_main else []
    if options.top < 1:
        raise UsageError(f"--top must be at least 1; got {options.top}", where="--top", fix="--top 1 or more")
    inputs = expand_on_main(files, dist)
    _check_resumable_inputs(options, inputs)
    candidates = _select_candidates(options, len(inputs), writer, dist)
    load_network = partial(load_with_options, options.model, options.weights)
    with candidates.open_session(load_network, DEFAULT_BATCH_SIZE, dist) as session:
        options = replace(options, top=min(options.top, len(session.card.labels)))
        if dist.world_size == 1:
            reason = f"; {output.sanitize_line(session.reason)}" if session.reason else ""
            output.log(f"engine: {session.engine.config}{reason}")
        with writer.lock() if writer else contextlib.nullcontext():
            counts = _predict_and_write(options, inputs, session, writer, dist)
    for note in describe_skipped_files(options.files):
        output.log(f"note: {output.sanitize_line(note)}")
    if counts.failed:
        total = pluralize(counts.total, "file")
        message = f"{counts.failed} of {total} {'has' if counts.total == 1 else 'have'} no prediction; the rows say why"
        output.log(str(DataError(message)))
    output.suggest_next("resnetkit embed FILES", "--model", options.model, *options.weights.to_args())
    return DataError.exit_code if counts.failed else 0


@dataclass
class _FileCounts:
    """The number of files, and of those without a prediction."""

    total: int = 0
    failed: int = 0

    def count(self, predictions: Iterable[formats.Prediction]) -> Iterator[formats.Prediction]:
        """Yield the same predictions and count them."""
        for prediction in predictions:
            self.total += 1
            self.failed += bool(prediction.error)
            yield prediction


def _predict_and_write(
    options: Options,
    inputs: Sequence[ImageInput],
    session: InferenceSession,
    writer: ResumableWriter | None,
    dist: ProcessGroup,
) -> _FileCounts:
    write_fn = _select_writer(options, writer, dist)
    indices, n_existing, *existing_counts = dist.run_on_main(lambda: _find_remaining(options, inputs, session, writer))
    counts, selected = _FileCounts(*existing_counts), inputs if indices is None else [inputs[i] for i in indices]
    is_streaming = not dist.is_main or _select_format(options) not in ("table", "json")
    is_bar_shown = not (sys.stdout.isatty() and (options.csv or options.jsonl))
    with contextlib.ExitStack() as stack:
        on_progress = stack.enter_context(output.progress_bar("classifying images", is_shown=is_bar_shown))
        predictions = predict_inputs(selected, session, options.top, on_progress=on_progress, dist=dist)
        stack.enter_context(contextlib.closing(predictions))
        new_predictions = counts.count(itertools.islice(predictions, n_existing, None))
        if is_streaming:
            write_fn(new_predictions, options)
        else:
            new_predictions = iter(list(new_predictions))
    if not is_streaming:  # after the progress bar is closed, so that it is not inside the table
        write_fn(new_predictions, options)
    if options.output_path and dist.is_main:
        print(f"wrote {pluralize(counts.total, 'row')} to {options.output_path}")
    return counts


# ------------------------------------------------------------------------------------------------------------- options


def _select_format(options: Options) -> str:
    return next((name for name in _FORMAT_WRITERS if getattr(options, name, "")), "table")


def _check_output_options(options: Options) -> None:
    names = [name for name in _FORMAT_WRITERS if getattr(options, name, "")]
    if len(names) > 1:
        where = " ".join(f"--{name}" for name in names)
        raise UsageError("more than one output format is given", where=where, fix=_suggest_format(names, options))
    if options.resume and not options.out.endswith((".csv", ".jsonl")):
        message = "--resume needs an --out file that ends in .csv or .jsonl"
        raise UsageError(message, where=f"--resume with --out {options.out}".rstrip(), fix="--out labels.csv --resume")


def _suggest_format(names: Sequence[str], options: Options) -> str:
    """Suggest one output option to keep, preferably one that names a file."""
    if not options.output_path:
        return f"use only --{names[0]}"
    kept = "out" if options.out else "parquet"
    path = Path(options.output_path)
    suffixes = [f".{name}" for name in ("csv", "jsonl") if name in names and path.suffix != f".{name}"]
    alternative = f", or --out {output.quote_argument(str(path.with_suffix(suffixes[0])))}" if suffixes else ""
    return f"remove {' '.join(f'--{name}' for name in names if name != kept)}{alternative}"


def _create_writer(options: Options) -> ResumableWriter | None:
    """Check the output file; return the writer of one that can be resumed."""
    if options.parquet:
        output.check_output_file(options.parquet, ".parquet")
    path = output.check_output_file(options.out, ".csv", ".jsonl", ".parquet") if options.out else None
    if options.output_path.endswith(".parquet"):
        formats.import_pyarrow()
        return None
    return ResumableWriter(path, options.resume) if path else None


def _check_resumable_inputs(options: Options, inputs: Sequence[ImageInput]) -> None:
    if options.resume and any(item.content is not None for item in inputs):
        message = "--resume needs files, and standard input holds an image"
        raise UsageError(message, where="--resume", fix="name files, or remove --resume")


def _select_candidates(
    options: Options, n_images: int, writer: ResumableWriter | None, dist: ProcessGroup
) -> EngineCandidates:
    """Select the engine; if rows are resumed and no engine is given, prefer the one that wrote them."""
    args = options.weights.to_args()
    choice = EngineChoice(options.engine, options.device.device, options.precision)
    previous = writer.read_provenance() if writer else None
    if previous and choice == EngineChoice():
        name = "torch" if previous.engine.startswith("torch-") else previous.engine
        with contextlib.suppress(UsageError):  # of another model, which lacks this engine; its rows are refused later
            preferred = replace(choice, engine=name).apply_weights_options(args)
            return select_engine(options.model, n_images, preferred, dist)
    return select_engine(options.model, n_images, choice.apply_weights_options(args), dist)


def _find_remaining(
    options: Options, inputs: Sequence[ImageInput], session: InferenceSession, writer: ResumableWriter | None
) -> tuple[list[int] | None, int, int, int]:
    """Return what is left to do if rows exist already.

    Returns:
        The indices of the inputs to classify (None for all), the number of these whose rows exist, the number of
        existing rows, and the number of those for unreadable files.
    """
    if writer is None:
        return None, 0, 0, 0
    config = session.engine.config
    row_format = formats.select_row_format(writer.path.suffix, options.top, options.csv_formulas)
    provenance = Provenance(
        session.compute_model_digest(),
        config.name,
        config.device,
        options.top,
        row_format.columns,
        session.compute_artifact_digest(),
        options.csv_formulas,
    )
    writer.check_existing(provenance, row_format)
    n_rows = len(writer.existing.names)
    if not n_rows:
        return None, 0, 0, 0
    output.log(f"resumed: {pluralize(n_rows, 'row')} of {len(inputs):,} exist in {writer.part_path}")
    return *writer.select_remaining(inputs, config.batch_size), n_rows, writer.existing.n_unreadable


# ------------------------------------------------------------------------------------------------------------- formats


_WriteFn = Callable[[Iterable[formats.Prediction], Options], None]


def _select_writer(options: Options, writer: ResumableWriter | None, dist: ProcessGroup) -> _WriteFn:
    if writer:
        row_format = formats.select_row_format(writer.path.suffix, options.top, options.csv_formulas)
        return lambda rows, options: writer.write_all(rows, row_format)
    return _FORMAT_WRITERS[_select_format(options)] if dist.is_main else _discard


def _discard(predictions: Iterable[formats.Prediction], options: Options) -> None:
    """Consume the predictions; only rank 0 writes them."""
    for _ in predictions:
        pass


def _write_table(predictions: Iterable[formats.Prediction], options: Options) -> None:
    rows = [(prediction.file, *_format_prediction(prediction)) for prediction in predictions]
    output.print_table(("file", "label", "probability"), rows, n_text_columns=2)


def _format_prediction(prediction: formats.Prediction) -> tuple[str, str]:
    if prediction.error:
        return f"({prediction.error})", ""
    names, probabilities = zip(*prediction.top, strict=True)
    return ", ".join(names), ", ".join(f"{probability:.1%}" for probability in probabilities)


def _write_csv(predictions: Iterable[formats.Prediction], options: Options) -> None:
    row_format, rows = formats.CsvFormat(options.top, options.csv_formulas), iter(predictions)
    first_rows = list(itertools.islice(rows, 1))  # nothing is printed before the first batch is computed
    print(row_format.header, flush=True)
    for prediction in itertools.chain(first_rows, rows):
        print(row_format.format_line(prediction), flush=True)


def _write_jsonl(predictions: Iterable[formats.Prediction], options: Options) -> None:
    for prediction in predictions:
        print(formats.format_json_line(prediction, not output.is_unicode_stdout()), flush=True)


def _write_json(predictions: Iterable[formats.Prediction], options: Options) -> None:
    records = [formats.build_record(prediction) for prediction in predictions]
    output.print_json("predict", model=options.model, predictions=records)


def _write_parquet(predictions: Iterable[formats.Prediction], options: Options) -> None:
    formats.write_predictions(Path(options.output_path), predictions)


_FORMAT_WRITERS: dict[str, _WriteFn] = {
    "csv": _write_csv, "json": _write_json, "jsonl": _write_jsonl,
    "parquet": _write_parquet, "out": _write_parquet, "table": _write_table,
}  # fmt: skip
