"""JSON records and lines of text that several commands print in the same form.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resnetkit.architecture.plan import Plan
from resnetkit.evaluation.result import Evaluation, format_accuracy


def build_plan_record(network_plan: Plan) -> dict[str, Any]:
    """Build the JSON record of a plan: input (C, H, W), counts, depth, receptive field in pixels."""
    names = ("input", "params", "macs", "depth", "receptive_field")
    return {name: getattr(network_plan, name) for name in names}


def build_accuracy_record(evaluation: Evaluation) -> dict[str, Any]:
    """Build the JSON record of an accuracy: the split, exact counts, accuracies (0 to 1), 95 % interval."""
    return {
        "split": evaluation.split,
        "n": evaluation.n,
        "correct": evaluation.correct,
        "top1": evaluation.top1,
        "interval": evaluation.interval,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "majority_class": evaluation.majority[0],
        "majority_accuracy": evaluation.majority[1] / max(evaluation.n, 1),
        "nonfinite": evaluation.n_nonfinite,
    }


def format_accuracy_line(evaluation: Evaluation) -> str:
    """Format the accuracy of a split on one line; if its classes are uneven, with a baseline."""
    accuracy = format_accuracy(evaluation.correct, evaluation.n)
    line = f"{evaluation.split}: {evaluation.correct} of {evaluation.n} correct, {accuracy}"
    if not evaluation.is_uneven:
        return line
    name, n_images = evaluation.majority
    return f"{line}; always {name}: {n_images / evaluation.n:.2%}; balanced accuracy {evaluation.balanced_accuracy:.2%}"


def build_file_errors(files: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Build the JSON records of files and the reason why each of them could not be used."""
    return [{"file": name, "error": reason} for name, reason in files]


def format_skipped(files: Sequence[tuple[str, str]]) -> list[str]:
    """Format a line for each skipped image and its reason."""
    return [f"skipped: {name}: {reason}" for name, reason in files]
