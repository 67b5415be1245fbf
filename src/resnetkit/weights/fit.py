"""Whether tensors are those of a network, by names and shapes.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from resnetkit.architecture.tensors import TensorShape, TensorShapes

BATCH_COUNT = "num_batches_tracked"  # of a batch norm; files written before torch counted batches lack it
_FLOAT_TYPE = "a floating-point type"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that keeps a file from being of a network: what came, and what was expected."""

    key: str
    actual: TensorShape | str | None
    expected: TensorShape | str | None

    def __str__(self) -> str:
        return f"{sanitize_text(self.key)}: came {_format_value(self.actual)}; expected {_format_value(self.expected)}"

    @property
    def is_transposed(self) -> bool:
        """Whether only the order of the axes differs."""
        shapes = (self.actual, self.expected)
        return all(isinstance(shape, tuple) for shape in shapes) and sorted(self.actual or ()) == sorted(
            self.expected or ()
        )


def _format_value(value: TensorShape | str | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else sanitize_text(str(list(value)))


def sanitize_text(text: str, max_length: int = 100) -> str:
    """What a file says, fit to be printed: its authors choose the names of tensors."""
    printable = "".join(char if char.isprintable() else "?" for char in text[: max_length + 1])
    return printable if len(printable) <= max_length else printable[: max_length - 3] + "..."


def find_mismatches(expected: TensorShapes, actual: TensorShapes, integer_types: Mapping[str, str]) -> list[Mismatch]:
    """Every tensor that differs, in the order of the network; ``whole`` has the types that hold no fractions."""
    mismatches = [Mismatch(key, actual.get(key), shape) for key, shape in expected.items() if actual.get(key) != shape]
    mismatches += [
        Mismatch(key, integer_types[key], _FLOAT_TYPE)
        for key, shape in expected.items()
        if key in integer_types and actual[key] == shape
    ]
    return mismatches + [Mismatch(key, shape, None) for key, shape in actual.items() if key not in expected]


def format_mismatches(mismatches: Sequence[Mismatch], limit: int = 5) -> list[str]:
    """The first of them in three lines at most."""
    lines = [str(mismatch) for mismatch in mismatches[:limit]]
    step = 1 if len(lines) <= 3 else 2
    return ["; ".join(lines[i : i + step]) for i in range(0, len(lines), step)]


def suggest_weights_fix(mismatches: Collection[Mismatch], lookalike: str, default_fix: str) -> str:
    """What to do about misfits, by what they have in common; ``like`` is what the file looks like, if it does."""
    if all(mismatch.expected == _FLOAT_TYPE for mismatch in mismatches):
        return "save the tensors as fp32, fp16 or bf16"
    if all(mismatch.is_transposed for mismatch in mismatches):
        return "save the tensors with their axes as torch has them: O I H W"
    if all(mismatch.key.startswith("head.") for mismatch in mismatches):
        return f"all but the classifier fits; {default_fix}"
    return f"this file looks like {lookalike}; {default_fix}" if lookalike else default_fix
