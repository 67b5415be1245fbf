"""Differences between the tensors of a file and those of a network, by name and shape.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from resnetkit.architecture.tensors import TensorShape, TensorShapes

BATCH_COUNT = "num_batches_tracked"  # of a batch norm; files written before torch counted batches lack it
FLOAT_FIX = "save the tensors as fp32, fp16 or bf16"
_FLOAT_TYPE = "a floating-point type"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that keeps a file from fitting a network: its key, what the file has, what the network expects."""

    key: str
    actual: TensorShape | str | None
    expected: TensorShape | str | None

    def __str__(self) -> str:
        return f"{sanitize_text(self.key)}: got {_format_value(self.actual)}; expected {_format_value(self.expected)}"

    @property
    def is_transposed(self) -> bool:
        """Whether only the order of the axes differs."""
        actual, expected = self.actual, self.expected
        return isinstance(actual, tuple) and isinstance(expected, tuple) and sorted(actual) == sorted(expected)


def _format_value(value: TensorShape | str | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else sanitize_text(str(list(value)))


def sanitize_text(text: str, max_length: int = 100) -> str:
    """Return text from a file as printable characters only.

    The author of a file chooses the names of its tensors.

    Args:
        text: The text in the file.
        max_length: The largest number of characters to keep.
    """
    printable = "".join(char if char.isprintable() else "?" for char in text[: max_length + 1])
    return printable if len(printable) <= max_length else printable[: max_length - 3] + "..."


def find_mismatches(expected: TensorShapes, actual: TensorShapes, integer_types: Mapping[str, str]) -> list[Mismatch]:
    """Return every tensor that differs, in the order of the network and then of the file.

    Args:
        expected: The shapes that the network has, by key.
        actual: The shapes that the file has, by key.
        integer_types: The types of tensors that should hold fractions and hold integers, by key.
    """
    mismatches = [Mismatch(key, actual.get(key), shape) for key, shape in expected.items() if actual.get(key) != shape]
    mismatches += [
        Mismatch(key, integer_types[key], _FLOAT_TYPE)
        for key, shape in expected.items()
        if key in integer_types and actual[key] == shape
    ]
    return mismatches + [Mismatch(key, shape, None) for key, shape in actual.items() if key not in expected]


def format_mismatches(mismatches: Sequence[Mismatch], limit: int = 5) -> list[str]:
    """Return the first mismatches as at most three lines.

    Args:
        mismatches: All mismatches.
        limit: The largest number of mismatches to show.
    """
    lines = [str(mismatch) for mismatch in mismatches[:limit]]
    step = 1 if len(lines) <= 3 else 2
    return ["; ".join(lines[i : i + step]) for i in range(0, len(lines), step)]


def suggest_weights_fix(mismatches: Collection[Mismatch], lookalike: str, default_fix: str) -> str:
    """Return what to do about mismatches, by what they have in common.

    Args:
        mismatches: At least one mismatch.
        lookalike: The networks that the file looks like; empty if there are none.
        default_fix: The advice if the mismatches have nothing in common.
    """
    if all(mismatch.expected == _FLOAT_TYPE for mismatch in mismatches):
        return FLOAT_FIX
    if all(mismatch.is_transposed for mismatch in mismatches):
        return "save the tensors with the axes in torch's order: O I H W"
    if is_only_head(mismatches):
        return f"only the classifier does not fit; {default_fix}"
    return add_lookalike(lookalike, default_fix)


def is_only_head(mismatches: Collection[Mismatch]) -> bool:
    """Return whether nothing but the head differs."""
    return all(mismatch.key.startswith("head.") for mismatch in mismatches)


def add_lookalike(lookalike: str, fix: str) -> str:
    """Return a fix with the networks that a file looks like, if there are any, before it.

    Args:
        lookalike: The networks that the file looks like; empty if there are none.
        fix: The advice.
    """
    return f"this file looks like {lookalike}; {fix}" if lookalike else fix
