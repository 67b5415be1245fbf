"""Report the origin of every tensor of a network, after loading and after each later change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verification:
    """A comparison of a network before and after a change.

    ``difference`` is the largest difference, relative to the largest number. Without a ``limit`` any
    difference is accepted, and ``reason`` says why.
    """

    subject: str
    difference: float
    limit: float | None = None
    reason: str = ""

    @property
    def is_within_limit(self) -> bool:
        """True if the difference is finite and at most the limit."""
        return math.isfinite(self.difference) and (self.limit is None or self.difference <= self.limit)

    def __str__(self) -> str:
        if self.limit is None:
            return f"not exact ({self.reason}): {self.subject} differ by {self.difference:.2g}"
        return f"verified: {self.subject} differ by {self.difference:.2g} (limit {self.limit:g})"


@dataclass(frozen=True)
class TensorReport:
    """The origin of every tensor of a network.

    Each tensor of the new network is in exactly one of ``kept``, ``renamed`` (new name -> old name), ``adapted`` and
    ``initialized`` (name -> method). ``dropped`` lists tensors of the old network only. ``notes`` are sentences with
    numbers of the plan.
    """

    kept: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    initialized: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    verifications: tuple[Verification, ...] = ()

    def combine(self, later: TensorReport) -> TensorReport:
        """Return the report of this change followed by a later one."""
        origins = {**{key: key for key in later.kept}, **later.renamed}
        old_names = {key: self.renamed.get(middle_key, middle_key) for key, middle_key in origins.items()}
        reinitialized = {key: method for key, method in later.adapted.items() if key in self.initialized}
        adapted = {key: method for key, method in later.adapted.items() if key not in reinitialized}
        unmodified = [key for key, middle in origins.items() if middle in self.kept or middle in self.renamed]
        return TensorReport(
            tuple(key for key in unmodified if old_names[key] == key),
            {key: old_names[key] for key in unmodified if old_names[key] != key},
            _carry_methods(self.adapted, origins, adapted),
            _carry_methods(self.initialized, origins, {**later.initialized, **reinitialized}),
            (*self.dropped, *(self.renamed.get(key, key) for key in later.dropped if key not in self.initialized)),
            (*self.notes, *later.notes),
            (*self.verifications, *later.verifications),
        )

    def __str__(self) -> str:
        return "\n".join([self.tensor_summary, *self.notes, *map(str, self.verifications)])

    @property
    def tensor_summary(self) -> str:
        """The number of tensors of each kind, on one line."""
        counts = [f"{len(self.kept):,} kept", f"{len(self.renamed):,} renamed"]
        for name, methods in (("adapted", self.adapted), ("initialized", self.initialized)):
            distinct = ", ".join(sorted(set(methods.values())))
            counts.append(f"{len(methods):,} {name}" + (f" ({distinct})" if distinct else ""))
        return ", ".join([*counts, f"{len(self.dropped):,} dropped"])


def _carry_methods(earlier: Mapping[str, str], origins: Mapping[str, str], later: Mapping[str, str]) -> dict[str, str]:
    """Return the earlier methods under the present names, and the later methods."""
    carried = {key: earlier[middle] for key, middle in origins.items() if middle in earlier}
    return carried | {key: _join_methods(earlier.get(origins.get(key, key)), method) for key, method in later.items()}


def _join_methods(earlier: str | None, later: str) -> str:
    return f"{earlier}, then {later}" if earlier else later
