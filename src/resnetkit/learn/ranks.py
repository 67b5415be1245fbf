"""Which process of a run this is, and what all of them must decide together. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """One process alone. Whoever joins several answers the same questions for all of them."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this one writes what is written once."""
        return self.rank == 0

    def agreed(self, said: bool) -> bool:
        """Whether any of them said so: all hear the same answer."""
        return said


ALONE = Ranks()
