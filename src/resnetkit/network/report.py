"""Where every tensor of a network came from: what loading says, and every later change of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Proof:
    """What was compared after a change, and how far it is apart: the largest difference, of the largest number.

    Without a ``limit`` nothing was promised, and ``why`` says why not.
    """

    what: str
    figure: float
    limit: float | None = None
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is as near as it was promised to be; numbers that are none are near to nothing."""
        return math.isfinite(self.figure) and (self.limit is None or self.figure <= self.limit)

    def __str__(self) -> str:
        if self.limit is None:
            return f"not exact by nature ({self.why}): {self.what} differ by {self.figure:.2g}"
        return f"proved: {self.what} differ by {self.figure:.2g} ({self.limit:g} is allowed)"


@dataclass(frozen=True)
class Report:
    """Every tensor of the new network is in exactly one of the first four; ``dropped`` ones were only in the old.

    ``renamed`` tells the old name of each, ``adapted`` and ``initialised`` how and why. ``notes`` are sentences, with
    numbers of the plan; ``proved`` is what was measured of old and new network side by side.
    """

    kept: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    initialised: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    proved: tuple[Proof, ...] = ()

    def then(self, later: Report) -> Report:
        """Two changes in a row as one: where the tensors of the last network came from."""
        came = {**{key: key for key in later.kept}, **later.renamed}
        names = {key: self.renamed.get(between, between) for key, between in came.items()}
        again = {key: how for key, how in later.adapted.items() if key in self.initialised}
        plain = {key: between for key, between in came.items() if between in self.kept or between in self.renamed}
        return Report(
            tuple(key for key in plain if names[key] == key),
            {key: names[key] for key in plain if names[key] != key},
            _followed(self.adapted, came, {key: how for key, how in later.adapted.items() if key not in again}),
            _followed(self.initialised, came, {**later.initialised, **again}),
            (*self.dropped, *(self.renamed.get(key, key) for key in later.dropped if key not in self.initialised)),
            (*self.notes, *later.notes),
            (*self.proved, *later.proved),
        )

    def __str__(self) -> str:
        return "\n".join([self.tensors, *self.notes, *map(str, self.proved)])

    @property
    def tensors(self) -> str:
        """What became of the tensors, counted, on one line."""
        told = [f"{len(self.kept):,} kept", f"{len(self.renamed):,} renamed"]
        for name, how in (("adapted", self.adapted), ("initialised", self.initialised)):
            ways = ", ".join(sorted(set(how.values())))
            told.append(f"{len(how):,} {name}" + f" ({ways})" * bool(ways))
        return ", ".join([*told, f"{len(self.dropped):,} dropped"])


def _followed(before: Mapping[str, str], came: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What was said of tensors before, under the names they have now, and what is said of others now."""
    told = {key: before[between] for key, between in came.items() if between in before}
    return told | {key: _both(before.get(came.get(key, key)), how) for key, how in after.items()}


def _both(before: str | None, now: str) -> str:
    return f"{before}, then {now}" if before else now
