"""The report of a run, and the comparison of several runs, as HTML pages. All names are escaped.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from resnetkit.architecture.plan import plan
from resnetkit.evaluation.result import NO_PREDICTION, Evaluation, format_accuracy
from resnetkit.formatting import format_duration
from resnetkit.html import charts as chart
from resnetkit.html import page as html
from resnetkit.serialization import to_data, to_toml
from resnetkit.training.events import EpochMetrics
from resnetkit.training.overrides import flatten_settings
from resnetkit.training.run_folder import THUMBNAILS_PER_GROUP, VAL_BIAS_NOTE, Run
from resnetkit.training.schedule import compute_lr

_MAX_CLASSES = 24
_EMPTY_CELL = "-"


def build_run_report(runs: Sequence[Run]) -> str:
    """Build the page of one run, or the comparison of several."""
    return _build_single_page(runs[0]) if len(runs) == 1 else _build_comparison_page(runs)


def _build_single_page(run: Run) -> str:
    evaluation = run.evaluation
    sections = [("Summary", _summarize_run(run)), ("Training curves", html.render_charts(_draw_curves([run])))]
    if len(evaluation.classes) <= _MAX_CLASSES:
        matrix = chart.draw_confusion_matrix("confusion matrix", evaluation.classes, evaluation.confusion)
        sections.append(("Confusion matrix", html.render_scroll_box(matrix)))
    sections += [
        ("Per-class accuracy", _build_class_table(evaluation)),
        ("Calibration", _describe_calibration(evaluation)),
        *_build_galleries(run),
        ("Data", _describe_data(run)),
        ("Recipe", f"<pre>{escape(to_toml(run.recipe))}</pre>"),
        ("Machine", html.render_html_list(_describe_machine(run))),
    ]
    counts = f"{evaluation.correct:,} of {evaluation.n:,} images of {evaluation.split}"
    lead = f"{counts} are classified correctly: {format_accuracy(evaluation.correct, evaluation.n)}"
    lead += f"; {VAL_BIAS_NOTE}." if evaluation.split == "val" else "."
    title = f"{run.path.absolute().name}: {run.card.name} on {Path(run.recipe.data).name}"
    return html.render_html(title, lead, sections)


def _summarize_run(run: Run) -> str:
    evaluation, (low, high) = run.evaluation, run.evaluation.interval
    pairs = [
        (f"top-1 on {evaluation.split}", f"{evaluation.top1:.2%}"),
        ("95% interval", f"{low:.1%} to {high:.1%}"),
        ("best epoch", f"{run.best_epoch} of {len(run.epochs)}"),
        ("images/s in training", f"{run.epochs[-1].images_per_second:,.0f}"),
        ("time", format_duration(run.results.seconds)),
    ]
    if len(evaluation.classes) > 5 and evaluation.n:
        pairs.append(("top-5", f"{evaluation.top5_correct / evaluation.n:.2%}"))
    if evaluation.is_uneven:
        pairs.append((f"always {evaluation.majority[0]}", f"{evaluation.majority[1] / evaluation.n:.2%}"))
        pairs.append(("balanced accuracy", f"{evaluation.balanced_accuracy:.2%}"))
    stop_note = html.render_note(f"Training ended early: {run.results.stop_reason}.") if run.results.stop_reason else ""
    return html.render_stats(pairs) + stop_note


_CURVES: tuple[tuple[str, tuple[tuple[str, Callable[[EpochMetrics], float]], ...]], ...] = (
    ("Accuracy, %", (("val", lambda e: 100 * e.val_accuracy), ("train, augmented", lambda e: 100 * e.accuracy))),
    ("Loss", (("val", lambda e: e.val_loss), ("train, augmented", lambda e: e.loss))),
    ("Throughput (images/s)", (("training", lambda e: e.images_per_second),)),
)


def _draw_curves(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Draw all curves of one run; of several runs the first curve of each kind, with a color for each run."""
    charts, is_single, named_runs = [], len(runs) == 1, list(zip(_name_runs(runs), runs, strict=True))
    for title, curves in _CURVES:
        series = {
            name if is_single else label: [(float(epoch.epoch), get_value(epoch)) for epoch in run.epochs]
            for name, get_value in (curves if is_single else curves[:1])
            for label, run in named_runs
        }
        heading = title if is_single else f"{title}, {curves[0][0]}"
        charts.append((heading, chart.draw_line_chart(f"{title} over epochs", "epoch", series)))
    lr_series = {"highest" if is_single else label: _sample_lr(run) for label, run in named_runs}
    lr_chart = chart.draw_line_chart("learning rate over epochs", "epoch", lr_series, y_min=0.0)
    return [*charts, ("Learning rate", lr_chart)]


def _sample_lr(run: Run, n_points: int = 120) -> list[tuple[float, float]]:
    positions = [len(run.epochs) * i / n_points for i in range(n_points + 1)]
    return [(position, compute_lr(run.recipe, position)) for position in positions]


def _build_class_table(evaluation: Evaluation) -> str:
    class_counts = evaluation.count_per_class()
    rows = [(name, n, n_correct, _format_short_accuracy(n_correct, n)) for name, n, n_correct in class_counts]
    n_absent = len(evaluation.classes) - len(class_counts)
    note = html.render_note(f"{n_absent:,} classes have no image in this split.") if n_absent else ""
    return html.render_html_table(("class", "images", "correct", "accuracy (95%)"), rows) + note


def _format_short_accuracy(n_correct: int, n: int) -> str:
    return format_accuracy(n_correct, n).replace("95% interval ", "").replace(" to ", "-").replace("%-", "-")


def _describe_calibration(evaluation: Evaluation) -> str:
    bins = evaluation.compute_calibration()
    points = [(100 * b.confidence, 100 * b.accuracy) for b in bins]
    lowest = min([*(x for x, _ in points), 100.0])
    ideal = [(lowest, lowest), (100.0, 100.0)]
    series = {"predictions": points, "perfect calibration": ideal}
    curve = chart.draw_line_chart("accuracy over confidence", "confidence, %", series)
    rows = [(f"{b.low:.0%} to {b.high:.0%}", b.n, f"{b.confidence:.1%}", f"{b.accuracy:.1%}") for b in bins]
    table = html.render_html_table(("confidence", "images", "mean confidence", "accuracy"), rows)
    explanation = (
        "If the confidence is 80%, 80% of the predictions should be correct. Below the straight line the network is "
        f"overconfident. The calibration error is {100 * evaluation.compute_calibration_error():.1f} percentage points."
    )
    return html.render_note(explanation) + html.render_charts([("Accuracy, %", curve), ("Table", table)])


def _build_galleries(run: Run) -> list[tuple[str, str]]:
    evaluation = run.evaluation
    jpegs = {thumbnail.index: thumbnail.jpeg for thumbnail in run.results.thumbnails}
    groups = (
        ("Most confident mistakes", evaluation.find_mistakes(THUMBNAILS_PER_GROUP)),
        ("Least confident predictions", evaluation.find_least_confident(THUMBNAILS_PER_GROUP)),
    )
    galleries = [
        (title, [_build_figure(evaluation, i, jpegs[i]) for i in indices if i in jpegs]) for title, indices in groups
    ]
    return [(title, html.render_gallery(figures)) for title, figures in galleries if figures]


def _build_figure(evaluation: Evaluation, i: int, jpeg: str) -> tuple[str, str, str]:
    predictions = evaluation.predictions
    label, predicted = evaluation.classes[predictions.labels[i]], predictions.predicted[i]
    prediction = "NaN" if predicted == NO_PREDICTION else evaluation.classes[predicted]
    caption = f"{prediction}, {predictions.confidence[i]:.0%}"
    return jpeg, caption if label == prediction else f"{caption}; it is {label}", predictions.names[i]


def _describe_data(run: Run) -> str:
    split_table = html.render_html_table(("split", "images"), [(name, f"{n:,}") for name, n in run.results.split_sizes])
    skipped = [f"skipped: {name}: {reason}" for name, reason in run.evaluation.skipped]
    return split_table + html.render_html_list([*run.results.notes, *run.evaluation.notes, *skipped])


def _describe_machine(run: Run) -> list[str]:
    environment = {**run.environment, **run.environment.get("packages", {}), "packages": None}
    values = {"device": f"{run.results.device}, {run.results.precision}", **environment}
    return [f"{name}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in values.items() if v]


# ---------------------------------------------------------------------------------------------------- several runs


def _name_runs(runs: Sequence[Run]) -> list[str]:
    """Name each run by its folder, with as much of the path as makes the names unique."""
    for length in range(1, 10):
        names = ["/".join(run.path.absolute().parts[-length:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"run {i}" for i in range(1, len(runs) + 1)]


def _build_comparison_page(runs: Sequence[Run]) -> str:
    sections = [
        ("Summary", _build_overview(runs)),
        ("Is the difference significant?", _compare_runs(runs)),
        ("Training curves", html.render_charts(_draw_curves(runs))),
        ("Differences of the recipes", _diff_recipes(runs)),
        ("Accuracy by class", _compare_classes(runs)),
    ]
    return html.render_html(f"{len(runs)} runs", ", ".join(_name_runs(runs)), sections)


def _build_overview(runs: Sequence[Run]) -> str:
    rows = [
        (
            name,
            run.card.name,
            Path(run.recipe.data).name,
            run.evaluation.split,
            f"{run.evaluation.correct:,} of {run.evaluation.n:,}",
            _format_short_accuracy(run.evaluation.correct, run.evaluation.n),
            f"{run.best_epoch} of {len(run.epochs)}",
            f"{plan(run.card.spec).params:,}",
            format_duration(run.results.seconds),
        )
        for run, name in zip(runs, _name_runs(runs), strict=True)
    ]
    headings = ("run", "model", "data", "split", "correct", "top-1 (95%)", "best epoch", "params", "time")
    return html.render_html_table(headings, rows)


def _compare_runs(runs: Sequence[Run]) -> str:
    """Compare each run with the first, on the images that both were evaluated on."""
    rows = [_compare_pair(runs[0], run, name) for run, name in zip(runs[1:], _name_runs(runs)[1:], strict=True)]
    headers = ("compared with the first", "common images", "only the first correct", "only this one correct", "p-value")
    explanation = (
        "Two runs differ in the images that only one classifies correctly. The last column is the p-value of a sign "
        "test: how often two equally good networks differ at least as much. Above 5% the difference is not significant."
    )
    return html.render_note(explanation) + html.render_html_table(headers, rows)


def _compare_pair(first: Run, second: Run, name: str) -> tuple[str, str, str, str, str]:
    first_correct, second_correct = _collect_correct(first.evaluation), _collect_correct(second.evaluation)
    common_keys = first_correct.keys() & second_correct.keys() if _has_same_data(first, second) else set()
    if not common_keys:
        return name, "none: different data", _EMPTY_CELL, _EMPTY_CELL, _EMPTY_CELL
    n_first_only = sum(first_correct[key] > second_correct[key] for key in common_keys)
    n_second_only = sum(first_correct[key] < second_correct[key] for key in common_keys)
    p_value = compute_sign_test(n_first_only, n_second_only)
    return name, f"{len(common_keys):,}", f"{n_first_only:,}", f"{n_second_only:,}", f"{p_value:.1%}"


def _has_same_data(first: Run, second: Run) -> bool:
    """Return whether a name means the same image in both."""
    fingerprints = [run.card.training.fingerprint if run.card.training else None for run in (first, second)]
    return fingerprints[0] is not None and fingerprints[0] == fingerprints[1]


def _collect_correct(evaluation: Evaluation) -> dict[tuple[str, str], bool]:
    predictions = evaluation.predictions
    rows = zip(predictions.names, predictions.labels, predictions.predicted, strict=True)
    return {(name, evaluation.classes[label]): label == predicted for name, label, predicted in rows}


def compute_sign_test(a: int, b: int) -> float:
    """Compute the two-sided p-value of a sign test: of ``a + b`` fair coins falling at least as unevenly.

    Args:
        a: The number of heads.
        b: The number of tails.
    """
    n, smaller = a + b, min(a, b)
    # in logarithms, as the binomials of a large n overflow
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(smaller + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, log_terms)))


def _diff_recipes(runs: Sequence[Run]) -> str:
    flat_recipes = [flatten_settings(to_data(run.recipe)) for run in runs]
    keys = sorted({key for values in flat_recipes for key in values})
    rows = [(key, *(values.get(key, _EMPTY_CELL) for values in flat_recipes)) for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    table = html.render_html_table(("setting", *_name_runs(runs)), rows)
    return table if rows else html.render_note("The recipes are equal.")


def _compare_classes(runs: Sequence[Run]) -> str:
    accuracies = [
        {name: f"{n_correct / n:.1%}" for name, n, n_correct in run.evaluation.count_per_class()} for run in runs
    ]
    names = list(dict.fromkeys(name for class_accuracies in accuracies for name in class_accuracies))
    return html.render_html_table(
        ("class", *_name_runs(runs)),
        [(n, *(class_accuracies.get(n, _EMPTY_CELL) for class_accuracies in accuracies)) for n in names],
    )
