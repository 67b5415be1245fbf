"""What happens to unreadable images: a policy, and the list of what was skipped.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnetkit.errors import DataError, ImageError, UsageError

if TYPE_CHECKING:
    from resnetkit.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Skip:
    """Pictures that cannot be read are left out, up to the share ``at_most`` of all."""

    max_fraction: float = 0.01


@dataclass(frozen=True, slots=True)
class Error:
    """The first picture that cannot be read ends the run."""


BadFiles = Skip | Error


def parse_bad_files_policy(bad_files: str | None, max_bad: str | float | None) -> BadFiles:
    """``error`` or ``skip``, and how many may be skipped: a share (0.1) or per cent (10%); raises `UsageError`."""
    if bad_files not in (None, "error", "skip") or (bad_files == "error" and max_bad is not None):
        raise UsageError("bad files are an error, or skipped up to a share", where=f"--bad-files {bad_files}")
    if bad_files == "error" or (bad_files is None and max_bad is None):
        return Error()
    return Skip() if max_bad is None else Skip(_parse_fraction(max_bad))


def _parse_fraction(value: str | float) -> float:
    text = str(value).strip()
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise UsageError(f"{text!r} is no share of the pictures", where="--max-bad", fix="--max-bad 10% or 0.1")
    return fraction


_MAX_LISTED = 20


class SkippedFiles:
    """The pictures of a data set that could not be read; raises `DataError` as soon as there are too many."""

    def __init__(self, dataset: Dataset, policy: BadFiles) -> None:
        self.dataset_name, self.policy = dataset.name, policy
        self.n_images = sum(map(len, dataset.splits.values()))
        self.max_skipped = math.floor(policy.max_fraction * self.n_images + 1e-9) if isinstance(policy, Skip) else 0
        self.reasons: dict[str, str] = {}
        self.n_synced = 0  # how many of them the other processes know

    def add_errors(self, errors: Iterable[ImageError]) -> None:
        """Remember them."""
        self.add_reasons({error.where[0]: error.what for error in errors})

    def add_reasons(self, reasons: Mapping[str, str]) -> None:
        """The same by their names."""
        self.reasons |= reasons
        if len(self.reasons) > self.max_skipped:
            raise self._make_too_many_error()

    def _make_too_many_error(self) -> DataError:
        lines = [f"{path}: {reason}" for path, reason in list(self.reasons.items())[:_MAX_LISTED]]
        remainder = [f"... and {len(self.reasons) - _MAX_LISTED:,} more"] * (len(self.reasons) > _MAX_LISTED)
        count = "1 picture" if len(self.reasons) == 1 else f"{len(self.reasons):,} pictures"
        what, fix = (
            f"{count} cannot be read",
            f"resnetkit check {self.dataset_name} --write-list bad.txt names every one",
        )
        if isinstance(self.policy, Skip):
            what += f" of {self.n_images:,}, and {self.max_skipped:,} may be skipped ({self.policy.max_fraction:.3g} of all)"
            fix += "; repair or remove them, or allow more: --max-bad 10%"
        return DataError(
            what, where=lines + remainder, fix=fix if isinstance(self.policy, Skip) else _NONE_SKIPPED_HINT + fix
        )


_NONE_SKIPPED_HINT = "repair or remove them, as none was skipped (--bad-files skip); "
