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
    """Build the JSON record of an accuracy: the split, exact counts, top-1 (0 to 1) and its 95 % interval."""
    return {name: getattr(evaluation, name) for name in ("split", "n", "correct", "top1", "interval")}


def format_accuracy_line(evaluation: Evaluation) -> str:
    """Format the accuracy of a split on one line."""
    accuracy = format_accuracy(evaluation.correct, evaluation.n)
    return f"{evaluation.split}: {evaluation.correct} of {evaluation.n} correct, {accuracy}"


def build_file_errors(files: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Build the JSON records of files and the reason why each of them could not be used."""
    return [{"file": name, "error": reason} for name, reason in files]


def format_skipped(files: Sequence[tuple[str, str]]) -> list[str]:
    """Format a line for each skipped image and its reason."""
    return [f"skipped: {name}: {reason}" for name, reason in files]
