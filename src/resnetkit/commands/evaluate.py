"""``resnetkit evaluate``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from resnetkit.commands import output
from resnetkit.commands.arguments import Argument
from resnetkit.commands.bad_files_options import DEFAULT_BAD_FILES, BadFilesOptions
from resnetkit.commands.data_options import DEFAULT_DATA_READING, DataReadingOptions
from resnetkit.commands.distributed import DEFAULT_DEVICE, DeviceOptions, init_distributed
from resnetkit.commands.image_options import DEFAULT_IMAGE_OPTIONS, ImageOptions
from resnetkit.commands.records import build_accuracy_record, build_file_errors, format_accuracy_line, format_skipped
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.engines.select import EngineChoice
from resnetkit.evaluation.result import Evaluation
from resnetkit.formatting import join_names
from resnetkit.runtime.distributed import ProcessGroup


@dataclass(frozen=True)
class Options:
    """Measure the accuracy of a model on a dataset: exact counts, in fp32 by default.

    Examples: resnetkit evaluate runs/digits-resnet20-1 digits; resnetkit evaluate my-model/ flowers/ --split val
    --json; resnetkit evaluate my-model/ flowers/ --engine openvino-int8
    """

    model: Annotated[str, Argument("MODEL", is_positional=True)]
    """A run folder, a model folder, or a weights file of any library."""
    data: Annotated[str, Argument("DATA", is_positional=True)]
    """A folder, a table (.csv), Parquet or an archive as train takes it, or digits."""
    split: Literal["train", "val", "test", "all"] | None = None
    """The split to evaluate; by default test, else val, else all."""
    reading: DataReadingOptions = DEFAULT_DATA_READING
    bad_files: BadFilesOptions = DEFAULT_BAD_FILES
    engine: Annotated[str, Argument("torch|auto|NAME")] = "torch"
    """The inference engine: the network itself (torch), the fastest that optimize saved (auto), or one of those."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """The precision in which the network computes."""
    device: DeviceOptions = DEFAULT_DEVICE
    json: bool = False
    """Print one JSON document instead of a table."""
    images: ImageOptions = DEFAULT_IMAGE_OPTIONS
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    options.images.apply()
    with init_distributed(options.device) as (dist, device):
        return _run(options, dist, device)


def _run(options: Options, dist: ProcessGroup, device: str) -> int:
    from resnetkit.data.bad_files import parse_bad_files_policy
    from resnetkit.evaluation.api import open_inference, select_eval_engine
    from resnetkit.evaluation.metrics import prepare_evaluation

    bad_files_policy = parse_bad_files_policy(options.bad_files.bad_files or None, options.bad_files.max_bad or None)
    choice = EngineChoice(options.engine, options.device.device, options.precision)
    candidates = select_eval_engine(options.model, choice, options.weights.to_args(), dist)
    model = load_with_options(options.model, options.weights)
    with output.progress_bar("reading") as on_progress:
        prepared = prepare_evaluation(
            model,
            options.data,
            options.split,
            bad_files_policy,
            on_progress=on_progress,
            dist=dist,
            options=options.reading.build(),
        )
    with open_inference(candidates, model, device, options.precision) as (logits_fn, notes):
        for note in notes:
            output.log(output.sanitize_line(note))
        n_logged = len(notes)
        with output.progress_bar("evaluating") as on_progress:
            evaluation = prepared.run(logits_fn, on_progress)
    evaluation = replace(evaluation, notes=(*evaluation.notes, *notes[n_logged:]))
    if not model.card.classes:
        output.log("note: this model has no class names; the data's classes are used, in alphabetical order")
    if options.json:
        output.print_json("evaluate", model=options.model, data=options.data, **_build_record(evaluation))
    else:
        _show(evaluation)
    for line in _format_notes(evaluation):
        output.log(line)
    output.suggest_next("resnetkit predict IMAGE", "--model", options.model, *options.weights.to_args())
    return 0


def _build_record(evaluation: Evaluation) -> dict[str, object]:
    return {
        **build_accuracy_record(evaluation),
        "top5": evaluation.top5_correct / max(evaluation.n, 1),
        "loss": evaluation.loss,
        "calibration_error": evaluation.compute_calibration_error(),
        "skipped": build_file_errors(evaluation.skipped),
        "classes": evaluation.classes,
        "confusion": _build_confusion(evaluation),
        "notes": evaluation.notes,
    }


def _build_confusion(evaluation: Evaluation) -> dict[str, dict[str, int]]:
    """Return the confusion matrix as true class -> predicted class -> count, without zeros."""
    rows = [{name: n for name, n in zip(evaluation.classes, row, strict=True) if n} for row in evaluation.confusion]
    return {name: counts for name, counts in zip(evaluation.classes, rows, strict=True) if counts}


def _show(evaluation: Evaluation) -> None:
    rows = [(name, str(n), str(correct), f"{correct / n:.1%}") for name, n, correct in evaluation.count_per_class()]
    output.print_table(("class", "images", "correct", "accuracy"), rows)
    top5 = f"; {evaluation.top5_correct} in the top-5" if len(evaluation.classes) > 5 else ""
    output.print_text(format_accuracy_line(evaluation) + top5)


def _format_notes(evaluation: Evaluation) -> list[str]:
    present = {name for name, *_ in evaluation.count_per_class()}
    missing = [name for name in evaluation.classes if name not in present]
    notes = [f"note: {note}" for note in evaluation.notes]
    if missing:
        notes.append(f"note: no image has the class: {join_names(missing)}")
    return notes + format_skipped(evaluation.skipped)
