"""Runs as a page: one told in full, several laid over each other. Every name in it is text, never markup.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from resnetkit.architecture.plan import plan
from resnetkit.evaluation.result import Evaluation, format_accuracy
from resnetkit.html import charts as chart
from resnetkit.html import page as html
from resnetkit.serialization import to_data, to_toml
from resnetkit.training.recipe import compute_lr_factor
from resnetkit.training.run_folder import THUMBNAILS_PER_GROUP, VAL_BIAS_NOTE, EpochMetrics, Run

_MAX_CLASSES = 24
_EMPTY_CELL = "-"
_Series = dict[str, list[tuple[float, float]]]


def build_run_report(runs: Sequence[Run]) -> str:
    """The whole page."""
    return _build_single_page(runs[0]) if len(runs) == 1 else _build_comparison_page(runs)


def _build_single_page(run: Run) -> str:
    evaluation = run.evaluation
    sections = [
        ("In short", _summarize_run(run)),
        ("Over the epochs", html.render_charts(_draw_curves([run]))),
        *(
            [("What was taken for what", _draw_confusion_matrix(evaluation))]
            if len(evaluation.classes) <= _MAX_CLASSES
            else []
        ),
        ("Each class", _build_class_table(evaluation)),
        ("How sure, how often right", _describe_calibration(evaluation)),
        *_build_galleries(run),
        ("The data", _describe_data(run)),
        ("Recipe", f"<pre>{escape(to_toml(run.recipe))}</pre>"),
        ("Machine", html.render_html_list(_describe_machine(run))),
    ]
    bias_note = f"; {VAL_BIAS_NOTE}" * (evaluation.split == "val")
    lead = f"{evaluation.correct:,} of {evaluation.n:,} pictures of the {evaluation.split} part were named rightly: {_format_interval(evaluation)}{bias_note}."
    title = f"{run.path.absolute().name}: {run.card.name} on {Path(run.recipe.data).name}"
    return html.render_html(title, lead, sections)


def _draw_confusion_matrix(evaluation: Evaluation) -> str:
    return html.render_scroll_box(
        chart.draw_confusion_matrix("confusion matrix", evaluation.classes, evaluation.confusion)
    )


def _format_interval(evaluation: Evaluation) -> str:
    return format_accuracy(evaluation.correct, evaluation.n)


def _summarize_run(run: Run) -> str:
    evaluation, (low, high) = run.evaluation, run.evaluation.interval
    pairs = [
        (f"top-1 on {evaluation.split}", f"{evaluation.top1:.2%}"),
        ("95% interval", f"{low:.1%} to {high:.1%}"),
        ("best epoch", f"{run.best_epoch} of {len(run.epochs)}"),
        ("images/s in training", f"{run.epochs[-1].images_per_second:,.0f}"),
        ("time", _format_duration(run.results.seconds)),
    ]
    pairs += [("top-5", f"{evaluation.top5_correct / evaluation.n:.2%}")] * (
        len(evaluation.classes) > 5 and evaluation.n > 0
    )
    stop_note = html.render_note(f"The run ended early: {run.results.stop_reason}.") if run.results.stop_reason else ""
    return html.render_stats(pairs) + stop_note


def _format_duration(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes else f"{remainder} s"


_CURVES: tuple[tuple[str, tuple[tuple[str, Callable[[EpochMetrics], float]], ...]], ...] = (
    ("Accuracy, %", (("val", lambda e: 100 * e.val_accuracy), ("train, augmented", lambda e: 100 * e.accuracy))),
    ("Loss", (("val", lambda e: e.val_loss), ("train, augmented", lambda e: e.loss))),
    ("Images a second", (("training", lambda e: e.images_per_second),)),
)


def _draw_curves(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Of one run all it has; of several the first curve of each kind, a colour for each run."""
    charts = []
    for title, curves in _CURVES:
        series: _Series = {}
        for name, get_value in curves if len(runs) == 1 else curves[:1]:
            for run, label in zip(runs, _name_runs(runs), strict=True):
                series_name = name if len(runs) == 1 else label
                series[series_name] = [(float(epoch.epoch), get_value(epoch)) for epoch in run.epochs]
        heading = title if len(runs) == 1 else f"{title}, {curves[0][0]}"
        charts.append((heading, chart.draw_line_chart(f"{title} over epochs", "epoch", series)))
    lr_series = {label: _sample_lr(run) for run, label in zip(runs, _name_runs(runs), strict=True)}
    lr_series = {"highest": lr_series.popitem()[1]} if len(runs) == 1 else lr_series
    return [
        *charts,
        ("Learning rate", chart.draw_line_chart("learning rate over epochs", "epoch", lr_series, y_min=0.0)),
    ]


def _sample_lr(run: Run, n_points: int = 120) -> list[tuple[float, float]]:
    recipe = run.recipe
    positions = [len(run.epochs) * i / n_points for i in range(n_points + 1)]
    return [
        (position, recipe.optimizer.lr * compute_lr_factor(recipe.schedule, position, recipe.epochs))
        for position in positions
    ]


def _build_class_table(evaluation: Evaluation) -> str:
    class_counts = evaluation.count_per_class()
    rows = [(name, n, n_correct, _format_short_accuracy(n_correct, n)) for name, n, n_correct in class_counts]
    n_absent = len(evaluation.classes) - len(class_counts)
    note = html.render_note(f"{n_absent:,} classes have no picture in this part.") if n_absent else ""
    return html.render_html_table(("class", "pictures", "right", "share (95%)"), rows) + note


def _format_short_accuracy(n_correct: int, n: int) -> str:
    return format_accuracy(n_correct, n).replace("95% interval ", "").replace(" to ", "-").replace("%-", "-")


def _describe_calibration(evaluation: Evaluation) -> str:
    bins = evaluation.compute_calibration()
    points = [(100 * b.confidence, 100 * b.accuracy) for b in bins]
    lowest = min([*(x for x, _ in points), 100.0])
    ideal = [(lowest, lowest), (100.0, 100.0)]
    curve = chart.draw_line_chart(
        "accuracy over confidence", "confidence, %", {"answers": points, "as sure as right": ideal}
    )
    rows = [(f"{b.low:.0%} to {b.high:.0%}", b.n, f"{b.confidence:.1%}", f"{b.accuracy:.1%}") for b in bins]
    table = html.render_html_table(("confidence", "pictures", "mean confidence", "right"), rows)
    explanation = (
        "Among the answers that are 80 % sure, 80 % should be right. Below the straight line the network is too sure "
        f"of itself. The mean distance from it is {100 * evaluation.compute_calibration_error():.1f} points."
    )
    return html.render_note(explanation) + html.render_charts([("Right, %", curve), ("In numbers", table)])


def _build_galleries(run: Run) -> list[tuple[str, str]]:
    evaluation = run.evaluation
    jpegs = {thumbnail.index: thumbnail.jpeg for thumbnail in run.results.thumbnails}
    groups = (
        ("The most confident mistakes", evaluation.find_mistakes(THUMBNAILS_PER_GROUP)),
        ("The least sure answers", evaluation.find_least_confident(THUMBNAILS_PER_GROUP)),
    )
    galleries = [
        (title, [_build_figure(evaluation, i, jpegs[i]) for i in indices if i in jpegs]) for title, indices in groups
    ]
    return [(title, html.render_gallery(figures)) for title, figures in galleries if figures]


def _build_figure(evaluation: Evaluation, i: int, jpeg: str) -> tuple[str, str, str]:
    predictions = evaluation.predictions
    label, prediction = evaluation.classes[predictions.labels[i]], evaluation.classes[predictions.predicted[i]]
    caption = f"{prediction}, {predictions.confidence[i]:.0%}"
    return jpeg, caption if label == prediction else f"{caption}; it is {label}", predictions.names[i]


def _describe_data(run: Run) -> str:
    split_table = html.render_html_table(
        ("part", "pictures"), [(name, f"{n:,}") for name, n in run.results.split_sizes]
    )
    skipped = [f"left out, as it could not be read: {name}: {reason}" for name, reason in run.evaluation.skipped]
    return split_table + html.render_html_list([*run.results.notes, *run.evaluation.notes, *skipped])


def _describe_machine(run: Run) -> list[str]:
    environment = {**run.environment, **run.environment.get("packages", {})}
    environment.pop("packages", None)
    values = {"device": f"{run.results.device}, {run.results.precision}", **environment}
    return [f"{name}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in values.items() if v]


# ---------------------------------------------------------------------------------------------------- several runs


def _name_runs(runs: Sequence[Run]) -> list[str]:
    """What to call them: the folder's name, with as much of its path as tells them apart."""
    for length in range(1, 10):
        names = ["/".join(run.path.absolute().parts[-length:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"run {i}" for i in range(1, len(runs) + 1)]


def _build_comparison_page(runs: Sequence[Run]) -> str:
    sections = [
        ("In short", _build_overview(runs)),
        ("Is the difference real?", _compare_runs(runs)),
        ("Over the epochs", html.render_charts(_draw_curves(runs))),
        ("What differs in the recipes", _diff_recipes(runs)),
        ("Each class", _compare_classes(runs)),
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
            _format_duration(run.results.seconds),
        )
        for run, name in zip(runs, _name_runs(runs), strict=True)
    ]
    return html.render_html_table(
        ("run", "model", "data", "part", "right", "top-1 (95%)", "best epoch", "params", "time"), rows
    )


def _compare_runs(runs: Sequence[Run]) -> str:
    """Each run against the first, on the pictures that both were measured on."""
    rows = [_compare_pair(runs[0], run, name) for run, name in zip(runs[1:], _name_runs(runs)[1:], strict=True)]
    headers = ("against the first", "pictures in common", "only the first right", "only this one right", "by chance")
    explanation = (
        "Two runs differ in the pictures that one names rightly and the other does not. The last column says how often "
        "two equally good networks would differ at least as much (sign test); above 5 % nothing is shown."
    )
    return html.render_note(explanation) + html.render_html_table(headers, rows)


def _compare_pair(first: Run, second: Run, name: str) -> tuple[str, str, str, str, str]:
    first_correct, second_correct = _collect_correct(first.evaluation), _collect_correct(second.evaluation)
    common_keys = first_correct.keys() & second_correct.keys() if _has_same_data(first, second) else set()
    if not common_keys:
        return name, "none: other data", _EMPTY_CELL, _EMPTY_CELL, _EMPTY_CELL
    n_first_only, n_second_only = (
        sum(first_correct[k] > second_correct[k] for k in common_keys),
        sum(first_correct[k] < second_correct[k] for k in common_keys),
    )
    return (
        name,
        f"{len(common_keys):,}",
        f"{n_first_only:,}",
        f"{n_second_only:,}",
        f"{compute_sign_test(n_first_only, n_second_only):.1%}",
    )


def _has_same_data(first: Run, second: Run) -> bool:
    """Whether a name means the same picture in both."""
    first_training, second_training = first.card.training, second.card.training
    return (
        first_training is not None
        and second_training is not None
        and first_training.fingerprint == second_training.fingerprint
    )


def _collect_correct(evaluation: Evaluation) -> dict[tuple[str, str], bool]:
    predictions = evaluation.predictions
    return {
        (predictions.names[i], evaluation.classes[predictions.labels[i]]): predictions.labels[i]
        == predictions.predicted[i]
        for i in range(evaluation.n)
    }


def compute_sign_test(a: int, b: int) -> float:
    """How often a fair coin, thrown ``a + b`` times, falls at least as unevenly as ``a`` to ``b``."""
    n, smaller = a + b, min(a, b)
    # logarithms, as the binomials of a large n are larger than a float
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(smaller + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, log_terms)))


def _diff_recipes(runs: Sequence[Run]) -> str:
    flat_recipes = [_flatten(to_data(run.recipe)) for run in runs]
    keys = sorted({key for values in flat_recipes for key in values})
    rows = [(key, *(values.get(key, _EMPTY_CELL) for values in flat_recipes)) for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return html.render_html_table(("setting", *_name_runs(runs)), rows) if rows else html.render_note("Nothing.")


def _flatten(data: Any, path: str = "") -> dict[str, str]:
    """Nested settings as one level: ``optimiser.lr``."""
    if not isinstance(data, dict):
        return {path: str(data)}
    return {
        key: value
        for name, inner in data.items()
        for key, value in _flatten(inner, f"{path}.{name}".lstrip(".")).items()
    }


def _compare_classes(runs: Sequence[Run]) -> str:
    accuracies = [
        {name: f"{n_correct / n:.1%}" for name, n, n_correct in run.evaluation.count_per_class()} for run in runs
    ]
    names = list(dict.fromkeys(name for class_accuracies in accuracies for name in class_accuracies))
    return html.render_html_table(
        ("class", *_name_runs(runs)),
        [(n, *(class_accuracies.get(n, _EMPTY_CELL) for class_accuracies in accuracies)) for n in names],
    )
