"""Where every tensor of a network came from: what loading says, and every later change of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verification:
    """What was compared after a change, and how far it is apart: the largest difference, of the largest number.

    Without a ``limit`` nothing was promised, and ``why`` says why not.
    """

    subject: str
    difference: float
    limit: float | None = None
    reason: str = ""

    @property
    def is_within_limit(self) -> bool:
        """Whether it is as near as it was promised to be; numbers that are none are near to nothing."""
        return math.isfinite(self.difference) and (self.limit is None or self.difference <= self.limit)

    def __str__(self) -> str:
        if self.limit is None:
            return f"not exact by nature ({self.reason}): {self.subject} differ by {self.difference:.2g}"
        return f"proved: {self.subject} differ by {self.difference:.2g} ({self.limit:g} is allowed)"


@dataclass(frozen=True)
class TensorReport:
    """Every tensor of the new network is in exactly one of the first four; ``dropped`` ones were only in the old.

    ``renamed`` tells the old name of each, ``adapted`` and ``initialised`` how and why. ``notes`` are sentences, with
    numbers of the plan; ``proved`` is what was measured of old and new network side by side.
    """

    kept: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    initialized: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verifications: tuple[Verification, ...] = ()

    def combine(self, later: TensorReport) -> TensorReport:
        """Two changes in a row as one: where the tensors of the last network came from."""
        origins = {**{key: key for key in later.kept}, **later.renamed}
        old_names = {key: self.renamed.get(middle_key, middle_key) for key, middle_key in origins.items()}
        reinitialized = {key: method for key, method in later.adapted.items() if key in self.initialized}
        unmodified = {
            key: middle_key
            for key, middle_key in origins.items()
            if middle_key in self.kept or middle_key in self.renamed
        }
        return TensorReport(
            tuple(key for key in unmodified if old_names[key] == key),
            {key: old_names[key] for key in unmodified if old_names[key] != key},
            _carry_notes(
                self.adapted,
                origins,
                {key: method for key, method in later.adapted.items() if key not in reinitialized},
            ),
            _carry_notes(self.initialized, origins, {**later.initialized, **reinitialized}),
            (*self.dropped, *(self.renamed.get(key, key) for key in later.dropped if key not in self.initialized)),
            (*self.notes, *later.notes),
            (*self.verifications, *later.verifications),
        )

    def __str__(self) -> str:
        return "\n".join([self.tensor_summary, *self.notes, *map(str, self.verifications)])

    @property
    def tensor_summary(self) -> str:
        """What became of the tensors, counted, on one line."""
        counts = [f"{len(self.kept):,} kept", f"{len(self.renamed):,} renamed"]
        for name, methods in (("adapted", self.adapted), ("initialised", self.initialized)):
            distinct = ", ".join(sorted(set(methods.values())))
            counts.append(f"{len(methods):,} {name}" + f" ({distinct})" * bool(distinct))
        return ", ".join([*counts, f"{len(self.dropped):,} dropped"])


def _carry_notes(earlier: Mapping[str, str], origins: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """What was said of tensors before, under the names they have now, and what is said of others now."""
    notes = {key: earlier[middle_key] for key, middle_key in origins.items() if middle_key in earlier}
    return notes | {key: _join_notes(earlier.get(origins.get(key, key)), note) for key, note in later.items()}


def _join_notes(earlier: str | None, later: str) -> str:
    return f"{earlier}, then {later}" if earlier else later
