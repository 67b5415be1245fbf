"""Where every tensor of a network came from: what loading says, and every later change of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """Every tensor of the new network is in exactly one of the first four; ``dropped`` ones were only in the old.

    ``renamed`` tells the old name of each, ``adapted`` and ``initialised`` how and why.
    """

    kept: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    initialised: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def then(self, later: Report) -> Report:
        """Two changes in a row as one: where the tensors of the last network came from."""
        kept = tuple(key for key in later.kept if key in self.kept)
        return Report(
            kept,
            {key: self.renamed[key] for key in later.kept if key in self.renamed},
            {**{key: self.adapted[key] for key in later.kept if key in self.adapted}, **later.adapted},
            {**{key: self.initialised[key] for key in later.kept if key in self.initialised}, **later.initialised},
            (*self.dropped, *(self.renamed.get(key, key) for key in later.dropped)),
        )

    def __str__(self) -> str:
        told = [f"{len(self.kept):,} kept", f"{len(self.renamed):,} renamed"]
        for name, how in (("adapted", self.adapted), ("initialised", self.initialised)):
            ways = ", ".join(sorted(set(how.values())))
            told.append(f"{len(how):,} {name}" + f" ({ways})" * bool(ways))
        return ", ".join([*told, f"{len(self.dropped):,} dropped"])
