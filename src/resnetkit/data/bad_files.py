"""The policy for unreadable images, and the list of those that were skipped.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from resnetkit.errors import DataError, UsageError
from resnetkit.formatting import limit_lines, pluralize

if TYPE_CHECKING:
    from resnetkit.data.dataset import Dataset

_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Skip:
    """Skip unreadable images, at most this fraction of all images."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"at_most": "max_fraction"}

    max_fraction: float = 0.01


@dataclass(frozen=True, slots=True)
class Error:
    """Raise an error at the first unreadable image."""


BadFiles = Skip | Error


def parse_bad_files_policy(bad_files: str | None, max_bad: str | float | None) -> BadFiles:
    """Parse the options ``--bad-files`` and ``--max-bad``.

    Args:
        bad_files: ``error`` or ``skip``; None means skip if ``max_bad`` is given, else error.
        max_bad: The largest skipped fraction of the images: 0.1 or 10%.

    Raises:
        UsageError: a value is not allowed.
    """
    if bad_files not in (None, "error", "skip"):
        raise UsageError(f"unknown policy for unreadable images: {bad_files}", where="--bad-files", fix="error or skip")
    if bad_files == "error" and max_bad is not None:
        raise UsageError("max_bad needs the policy skip, got error", where="--max-bad", fix="--bad-files skip")
    if max_bad is not None:
        return Skip(_parse_fraction(max_bad))
    return Skip() if bad_files == "skip" else Error()


def _parse_fraction(value: str | float) -> float:
    text = str(value).strip()
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise UsageError(f"not a fraction of the images: {text!r}", where="--max-bad", fix="--max-bad 10% or 0.1")
    return fraction


class SkippedFiles:
    """The unreadable images of a dataset, with the reason of each, and the policy that limits their number.

    Attributes:
        reasons: Location of the image -> the reason why it cannot be read.
        max_skipped: The largest number of images that may be skipped.
        n_synced: The number of reasons that all processes of a distributed run know.
    """

    def __init__(self, dataset: Dataset, policy: BadFiles) -> None:
        self.dataset_name, self.policy = dataset.name, policy
        self.n_images = sum(map(len, dataset.splits.values()))
        self.max_skipped = math.floor(policy.max_fraction * self.n_images + 1e-9) if isinstance(policy, Skip) else 0
        self.reasons: dict[str, str] = {}
        self.n_synced = 0

    def add_reasons(self, reasons: Mapping[str, str]) -> None:
        """Record unreadable images by location.

        Raises:
            DataError: there are more of them than the policy allows.
        """
        self.reasons |= reasons
        if len(self.reasons) > self.max_skipped:
            raise self._build_too_many_error()

    def _build_too_many_error(self) -> DataError:
        lines = limit_lines([f"{location}: {reason}" for location, reason in self.reasons.items()], _MAX_LISTED)
        what = pluralize(len(self.reasons), "unreadable image")
        fix = f"resnetkit check {self.dataset_name} --write-list bad.txt lists all of them"
        if not isinstance(self.policy, Skip):
            return DataError(what, where=lines, fix=f"repair or remove them, or skip them (--bad-files skip); {fix}")
        limit = f"at most {self.max_skipped:,} may be skipped ({self.policy.max_fraction:.3g} of all)"
        fix += "; repair or remove them, or allow more: --max-bad 10%"
        return DataError(f"{what} of {self.n_images:,}; {limit}", where=lines, fix=fix)
