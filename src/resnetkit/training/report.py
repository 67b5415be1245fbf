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
from resnetkit.evaluation.result import Evaluation, told
from resnetkit.html import charts as chart
from resnetkit.html import page as html
from resnetkit.serialization import to_data, to_toml
from resnetkit.training.recipe import rate
from resnetkit.training.run_folder import KIND, SHOWN, Epoch, Run

_MOST_CLASSES = 24
_NONE = "-"
_Series = dict[str, list[tuple[float, float]]]


def report(runs: Sequence[Run]) -> str:
    """The whole page."""
    return _single(runs[0]) if len(runs) == 1 else _several(runs)


def _single(run: Run) -> str:
    found = run.evaluation
    sections = [
        ("In short", _figures(run)),
        ("Over the epochs", html.charts(_curves([run]))),
        *([("What was taken for what", _matrix(found))] if len(found.classes) <= _MOST_CLASSES else []),
        ("Each class", _classes(found)),
        ("How sure, how often right", _calibration(found)),
        *_galleries(run),
        ("The data", _data(run)),
        ("Recipe", f"<pre>{escape(to_toml(run.recipe))}</pre>"),
        ("Machine", html.items(_machine(run))),
    ]
    kind = f"; {KIND}" * (found.part == "val")
    lead = (
        f"{found.correct:,} of {found.n:,} pictures of the {found.part} part were named rightly: {_sure(found)}{kind}."
    )
    title = f"{run.path.absolute().name}: {run.card.name} on {Path(run.recipe.data).name}"
    return html.page(title, lead, sections)


def _matrix(found: Evaluation) -> str:
    return html.scroll(chart.matrix("confusion matrix", found.classes, found.confusion))


def _sure(found: Evaluation) -> str:
    return told(found.correct, found.n)


def _figures(run: Run) -> str:
    found, (low, high) = run.evaluation, run.evaluation.interval
    pairs = [
        (f"top-1 on {found.part}", f"{found.top1:.2%}"),
        ("95% interval", f"{low:.1%} to {high:.1%}"),
        ("best epoch", f"{run.best} of {len(run.epochs)}"),
        ("images/s in training", f"{run.epochs[-1].images_per_second:,.0f}"),
        ("time", _clock(run.results.seconds)),
    ]
    pairs += [("top-5", f"{found.top5 / found.n:.2%}")] * (len(found.classes) > 5 and found.n > 0)
    ended = html.note(f"The run ended early: {run.results.ended}.") if run.results.ended else ""
    return html.figures(pairs) + ended


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_CURVES: tuple[tuple[str, tuple[tuple[str, Callable[[Epoch], float]], ...]], ...] = (
    ("Accuracy, %", (("val", lambda e: 100 * e.val_accuracy), ("train, augmented", lambda e: 100 * e.accuracy))),
    ("Loss", (("val", lambda e: e.val_loss), ("train, augmented", lambda e: e.loss))),
    ("Images a second", (("training", lambda e: e.images_per_second),)),
)


def _curves(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Of one run all it has; of several the first curve of each kind, a colour for each run."""
    drawn = []
    for title, curves in _CURVES:
        series: _Series = {}
        for name, value in curves if len(runs) == 1 else curves[:1]:
            for run, label in zip(runs, _names(runs), strict=True):
                told = name if len(runs) == 1 else label
                series[told] = [(float(epoch.epoch), value(epoch)) for epoch in run.epochs]
        heading = title if len(runs) == 1 else f"{title}, {curves[0][0]}"
        drawn.append((heading, chart.lines(f"{title} over epochs", "epoch", series)))
    rates = {label: _rates(run) for run, label in zip(runs, _names(runs), strict=True)}
    rates = {"highest": rates.popitem()[1]} if len(runs) == 1 else rates
    return [*drawn, ("Learning rate", chart.lines("learning rate over epochs", "epoch", rates, low=0.0))]


def _rates(run: Run, points: int = 120) -> list[tuple[float, float]]:
    recipe = run.recipe
    places = [len(run.epochs) * i / points for i in range(points + 1)]
    return [(place, recipe.optimiser.lr * rate(recipe.schedule, place, recipe.epochs)) for place in places]


def _classes(found: Evaluation) -> str:
    counted = found.per_class()
    rows = [(name, n, right, _short(right, n)) for name, n, right in counted]
    absent = len(found.classes) - len(counted)
    none = html.note(f"{absent:,} classes have no picture in this part.") if absent else ""
    return html.table(("class", "pictures", "right", "share (95%)"), rows) + none


def _short(right: int, n: int) -> str:
    return told(right, n).replace("95% interval ", "").replace(" to ", "-").replace("%-", "-")


def _calibration(found: Evaluation) -> str:
    bins = found.calibration()
    points = [(100 * b.confidence, 100 * b.accuracy) for b in bins]
    lowest = min([*(x for x, _ in points), 100.0])
    ideal = [(lowest, lowest), (100.0, 100.0)]
    drawn = chart.lines("accuracy over confidence", "confidence, %", {"answers": points, "as sure as right": ideal})
    rows = [(f"{b.low:.0%} to {b.high:.0%}", b.n, f"{b.confidence:.1%}", f"{b.accuracy:.1%}") for b in bins]
    table = html.table(("confidence", "pictures", "mean confidence", "right"), rows)
    words = (
        "Among the answers that are 80 % sure, 80 % should be right. Below the straight line the network is too sure "
        f"of itself. The mean distance from it is {100 * found.calibration_error():.1f} points."
    )
    return html.note(words) + html.charts([("Right, %", drawn), ("In numbers", table)])


def _galleries(run: Run) -> list[tuple[str, str]]:
    found = run.evaluation
    pictures = {small.number: small.jpeg for small in run.results.thumbnails}
    groups = (("The most confident mistakes", found.mistakes(SHOWN)), ("The least sure answers", found.unsure(SHOWN)))
    shown = [(title, [_figure(found, i, pictures[i]) for i in chosen if i in pictures]) for title, chosen in groups]
    return [(title, html.gallery(figures)) for title, figures in shown if figures]


def _figure(found: Evaluation, i: int, jpeg: str) -> tuple[str, str, str]:
    answers = found.answers
    truth, answer = found.classes[answers.truth[i]], found.classes[answers.answer[i]]
    said = f"{answer}, {answers.confidence[i]:.0%}"
    return jpeg, said if truth == answer else f"{said}; it is {truth}", answers.names[i]


def _data(run: Run) -> str:
    parts = html.table(("part", "pictures"), [(name, f"{n:,}") for name, n in run.results.parts])
    skipped = [f"left out, as it could not be read: {name}: {why}" for name, why in run.evaluation.skipped]
    return parts + html.items([*run.results.notes, *run.evaluation.notes, *skipped])


def _machine(run: Run) -> list[str]:
    environment = {**run.environment, **run.environment.get("packages", {})}
    environment.pop("packages", None)
    told = {"device": f"{run.results.device}, {run.results.precision}", **environment}
    return [f"{name}: {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in told.items() if v]


# ---------------------------------------------------------------------------------------------------- several runs


def _names(runs: Sequence[Run]) -> list[str]:
    """What to call them: the folder's name, with as much of its path as tells them apart."""
    for length in range(1, 10):
        names = ["/".join(run.path.absolute().parts[-length:]) for run in runs]
        if len(set(names)) == len(names):
            return names
    return [f"run {i}" for i in range(1, len(runs) + 1)]


def _several(runs: Sequence[Run]) -> str:
    sections = [
        ("In short", _overview(runs)),
        ("Is the difference real?", _duels(runs)),
        ("Over the epochs", html.charts(_curves(runs))),
        ("What differs in the recipes", _differences(runs)),
        ("Each class", _classes_of_all(runs)),
    ]
    return html.page(f"{len(runs)} runs", ", ".join(_names(runs)), sections)


def _overview(runs: Sequence[Run]) -> str:
    rows = [
        (
            name,
            run.card.name,
            Path(run.recipe.data).name,
            run.evaluation.part,
            f"{run.evaluation.correct:,} of {run.evaluation.n:,}",
            _short(run.evaluation.correct, run.evaluation.n),
            f"{run.best} of {len(run.epochs)}",
            f"{plan(run.card.spec).params:,}",
            _clock(run.results.seconds),
        )
        for run, name in zip(runs, _names(runs), strict=True)
    ]
    return html.table(("run", "model", "data", "part", "right", "top-1 (95%)", "best epoch", "params", "time"), rows)


def _duels(runs: Sequence[Run]) -> str:
    """Each run against the first, on the pictures that both were measured on."""
    rows = [_duel(runs[0], run, name) for run, name in zip(runs[1:], _names(runs)[1:], strict=True)]
    heads = ("against the first", "pictures in common", "only the first right", "only this one right", "by chance")
    words = (
        "Two runs differ in the pictures that one names rightly and the other does not. The last column says how often "
        "two equally good networks would differ at least as much (sign test); above 5 % nothing is shown."
    )
    return html.note(words) + html.table(heads, rows)


def _duel(first: Run, other: Run, name: str) -> tuple[str, str, str, str, str]:
    right, theirs = _right(first.evaluation), _right(other.evaluation)
    common = right.keys() & theirs.keys() if _same_data(first, other) else set()
    if not common:
        return name, "none: other data", _NONE, _NONE, _NONE
    lost, won = sum(right[k] > theirs[k] for k in common), sum(right[k] < theirs[k] for k in common)
    return name, f"{len(common):,}", f"{lost:,}", f"{won:,}", f"{sign_test(lost, won):.1%}"


def _same_data(first: Run, other: Run) -> bool:
    """Whether a name means the same picture in both."""
    one, two = first.card.training, other.card.training
    return one is not None and two is not None and one.fingerprint == two.fingerprint


def _right(found: Evaluation) -> dict[tuple[str, str], bool]:
    answers = found.answers
    return {
        (answers.names[i], found.classes[answers.truth[i]]): answers.truth[i] == answers.answer[i]
        for i in range(found.n)
    }


def sign_test(a: int, b: int) -> float:
    """How often a fair coin, thrown ``a + b`` times, falls at least as unevenly as ``a`` to ``b``."""
    n, least = a + b, min(a, b)
    # logarithms, as the binomials of a large n are larger than a float
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _differences(runs: Sequence[Run]) -> str:
    flat = [_flat(to_data(run.recipe)) for run in runs]
    keys = sorted({key for values in flat for key in values})
    rows = [(key, *(values.get(key, _NONE) for values in flat)) for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return html.table(("setting", *_names(runs)), rows) if rows else html.note("Nothing.")


def _flat(data: Any, path: str = "") -> dict[str, str]:
    """Nested settings as one level: ``optimiser.lr``."""
    if not isinstance(data, dict):
        return {path: str(data)}
    return {
        key: value for name, inner in data.items() for key, value in _flat(inner, f"{path}.{name}".lstrip(".")).items()
    }


def _classes_of_all(runs: Sequence[Run]) -> str:
    shares = [{name: f"{right / n:.1%}" for name, n, right in run.evaluation.per_class()} for run in runs]
    names = list(dict.fromkeys(name for found in shares for name in found))
    return html.table(("class", *_names(runs)), [(n, *(found.get(n, _NONE) for found in shares)) for n in names])
