"""``resnetkit evaluate``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetkit.commands.distributed import TIMEOUT, init_distributed
from resnetkit.commands.output import log, print_json, print_table, print_text, progress_bar, suggest_next, truncate
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.data.dataset import join_names
from resnetkit.engines.select import EngineChoice
from resnetkit.evaluation.result import Evaluation, format_accuracy
from resnetkit.runtime.distributed import ProcessGroup


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
    split: Literal["train", "val", "test", "all"] | None = None
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
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    with init_distributed(options.device, options.timeout) as (dist, device):
        return _run(options, dist, device)


def _run(options: Options, dist: ProcessGroup, device: str) -> int:
    from resnetkit.data.bad_files import parse_bad_files_policy
    from resnetkit.evaluation.api import open_inference, select_eval_engine
    from resnetkit.evaluation.metrics import prepare_evaluation

    bad_file_policy = parse_bad_files_policy(options.bad_files or None, options.max_bad or None)
    choice = EngineChoice(options.engine, options.device, options.precision)
    candidates = select_eval_engine(options.model, choice, options.weights.to_args(), dist)
    model = load_with_options(options.model, options.weights)
    with progress_bar("reading") as on_progress:
        prepared = prepare_evaluation(
            model, options.data, options.split, bad_file_policy, on_progress=on_progress, dist=dist
        )
    with open_inference(candidates, model, device, options.precision) as (logits_fn, engine_note):
        if engine_note:
            log(f"engine: {truncate(engine_note)}")
        with progress_bar("evaluating") as on_progress:
            evaluation = prepared.run(logits_fn, on_progress)
    if not model.card.classes:
        log("note: the classes of this model have no names; they are taken to be the data's, in alphabetical order")
    if options.json:
        print_json("evaluate", model=options.model, data=options.data, **_build_record(evaluation))
    else:
        _show(evaluation)
    for line in _format_notes(evaluation):
        log(line)
    suggest_next("resnetkit predict PICTURE", "--model", options.model, *options.weights.to_args())
    return 0


def _build_record(evaluation: Evaluation) -> dict[str, object]:
    return {
        "part": evaluation.split,
        "n": evaluation.n,
        "correct": evaluation.correct,
        "top1": evaluation.top1,
        "interval": evaluation.interval,
        "top5": evaluation.top5_correct / max(evaluation.n, 1),
        "loss": evaluation.loss,
        "calibration_error": evaluation.compute_calibration_error(),
        "skipped": [{"file": name, "error": reason} for name, reason in evaluation.skipped],
        "classes": evaluation.classes,
        "confusion": _build_confusion(evaluation),
        "notes": evaluation.notes,
    }


def _build_confusion(evaluation: Evaluation) -> dict[str, dict[str, int]]:
    """Of each class how often it was taken for which; what never happened is left out."""
    counts: dict[str, dict[str, int]] = {}
    for label, prediction in zip(evaluation.predictions.labels, evaluation.predictions.predicted, strict=True):
        row = counts.setdefault(evaluation.classes[label], {})
        row[evaluation.classes[prediction]] = row.get(evaluation.classes[prediction], 0) + 1
    return counts


def _show(evaluation: Evaluation) -> None:
    rows = [(name, str(n), str(correct), f"{correct / n:.1%}") for name, n, correct in evaluation.count_per_class()]
    print_table(("class", "pictures", "right", "share"), rows)
    top5_text = f"; {evaluation.top5_correct} within the first five" * (len(evaluation.classes) > 5)
    print_text(
        f"{evaluation.split}: {evaluation.correct} of {evaluation.n} right, {format_accuracy(evaluation.correct, evaluation.n)}{top5_text}"
    )


def _format_notes(evaluation: Evaluation) -> list[str]:
    present = {name for name, *_ in evaluation.count_per_class()}
    missing = [name for name in evaluation.classes if name not in present]
    notes = [f"note: {note}" for note in evaluation.notes]
    notes += [f"note: there is no picture of: {join_names(missing)}"] * bool(missing)
    return notes + [f"left out: {name}: {reason}" for name, reason in evaluation.skipped]
