"""A run as a page: the figures, the curves, the confusion matrix, each class, the recipe."""

from __future__ import annotations

from html import escape
from pathlib import Path

from resnetkit.learn.run import Run
from resnetkit.pages import chart, html
from resnetkit.text import to_toml

_MOST_CLASSES = 24


def report(run: Run) -> str:
    """The whole page; every name in it is text, never markup."""
    found = run.evaluation
    sections = [("In short", _figures(run)), ("Accuracy", _accuracy(run)), ("Loss", _loss(run))]
    if len(found.classes) <= _MOST_CLASSES:
        sections.append(("What was taken for what", chart.matrix("confusion matrix", found.classes, found.confusion)))
    sections += [("Each class", _classes(run)), ("Recipe", f"<pre>{escape(to_toml(run.recipe))}</pre>")]
    title = f"{run.card.name} on {Path(run.recipe.data).name}"
    lead = f"{found.correct} of {found.n} pictures of the {found.part} part were named rightly."
    return html.page(title, lead, sections)


def _figures(run: Run) -> str:
    found = run.evaluation
    pairs = [(f"top-1 on {found.part}", f"{found.top1:.2%}"), ("best epoch", f"{run.best} of {len(run.epochs)}")]
    pairs += [
        ("images/s, last epoch", f"{run.epochs[-1].images_per_second:,.0f}"),
        ("seconds", f"{run.seconds:,.0f}"),
    ]
    return html.figures(pairs)


def _accuracy(run: Run) -> str:
    series = {
        "val": [(float(e.epoch), 100 * e.val_accuracy) for e in run.epochs],
        "train (augmented)": [(float(e.epoch), 100 * e.accuracy) for e in run.epochs],
    }
    return chart.lines("accuracy in per cent over epochs", "epoch", series)


def _loss(run: Run) -> str:
    return chart.lines("loss over epochs", "epoch", {"train": [(float(e.epoch), e.loss) for e in run.epochs]})


def _classes(run: Run) -> str:
    rows = [(name, n, right, f"{right / n:.1%}") for name, n, right in run.evaluation.per_class()]
    return html.table(("class", "pictures", "right", "share"), rows)
