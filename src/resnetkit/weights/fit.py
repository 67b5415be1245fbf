"""Whether tensors are those of a network, by names and shapes.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from resnetkit.architecture.tensors import Shapes, TensorShape

COUNT = "num_batches_tracked"  # of a batch norm; files written before torch counted batches lack it
_FLOAT = "a floating-point type"


@dataclass(frozen=True, slots=True)
class Misfit:
    """A tensor that keeps a file from being of a network: what came, and what was expected."""

    key: str
    came: TensorShape | str | None
    expected: TensorShape | str | None

    def __str__(self) -> str:
        return f"{short(self.key)}: came {_shown(self.came)}; expected {_shown(self.expected)}"

    @property
    def turned(self) -> bool:
        """Whether only the order of the axes differs."""
        both = (self.came, self.expected)
        return all(isinstance(shape, tuple) for shape in both) and sorted(self.came or ()) == sorted(
            self.expected or ()
        )


def _shown(value: TensorShape | str | None) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else short(str(list(value)))


def short(text: str, most: int = 100) -> str:
    """What a file says, fit to be printed: its authors choose the names of tensors."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[: most + 1])
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def misfits(wanted: Shapes, given: Shapes, whole: Mapping[str, str]) -> list[Misfit]:
    """Every tensor that differs, in the order of the network; ``whole`` has the types that hold no fractions."""
    found = [Misfit(key, given.get(key), shape) for key, shape in wanted.items() if given.get(key) != shape]
    found += [Misfit(key, whole[key], _FLOAT) for key, shape in wanted.items() if key in whole and given[key] == shape]
    return found + [Misfit(key, shape, None) for key, shape in given.items() if key not in wanted]


def listed(found: Sequence[Misfit], most: int = 5) -> list[str]:
    """The first of them in three lines at most."""
    lines = [str(misfit) for misfit in found[:most]]
    step = 1 if len(lines) <= 3 else 2
    return ["; ".join(lines[i : i + step]) for i in range(0, len(lines), step)]


def advice(found: Collection[Misfit], like: str, otherwise: str) -> str:
    """What to do about misfits, by what they have in common; ``like`` is what the file looks like, if it does."""
    if all(misfit.expected == _FLOAT for misfit in found):
        return "save the tensors as fp32, fp16 or bf16"
    if all(misfit.turned for misfit in found):
        return "save the tensors with their axes as torch has them: O I H W"
    if all(misfit.key.startswith("head.") for misfit in found):
        return f"all but the classifier fits; {otherwise}"
    return f"this file looks like {like}; {otherwise}" if like else otherwise
