"""Is this data fit to learn from? Every picture is decoded once; nothing is changed.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.dataset import Data, Pictures, content_digest, listed
from resnetkit.data.open import open_data
from resnetkit.errors import PictureError
from resnetkit.images.decode import attempt

_UNEVEN = 10  # times as many pictures in the largest class as in the smallest
_CHUNK = 16  # pictures in a task, as handing over each small one costs more than decoding it
_RIBBON = 4  # times as long as wide: what is longer is not seen whole by any network here


@dataclass(frozen=True)
class Look:
    """What one picture is like; the size is 0 x 0 where it cannot be read, and ``error`` says why."""

    part: str
    number: int
    label: int
    where: str
    width: int = 0
    height: int = 0
    pixels: bytes = field(default=b"", repr=False)
    error: str = ""


@dataclass(frozen=True)
class Twins:
    """Pictures with the same pixels; ``same_bytes`` where they are the same file, too."""

    looks: tuple[Look, ...]
    same_bytes: bool

    @property
    def leak(self) -> bool:
        """Whether they stand in several parts."""
        return len({look.part for look in self.looks}) > 1

    @property
    def contradiction(self) -> bool:
        """Whether they stand in several classes."""
        return len({look.label for look in self.looks}) > 1


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, and every time that it was found."""

    kind: str
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """How often."""
        return len(self.examples)


@dataclass(frozen=True)
class Checked:
    """A data set that was looked at."""

    data: Data
    looks: tuple[Look, ...]
    twins: tuple[Twins, ...]

    @cached_property
    def unreadable(self) -> tuple[Look, ...]:
        """Those that cannot be decoded."""
        return tuple(look for look in self.looks if look.error)

    @cached_property
    def counts(self) -> dict[str, list[int]]:
        """Part -> how many pictures each class has."""
        counted = Counter((look.part, look.label) for look in self.looks)
        numbers = range(len(self.data.classes))
        return {part: [counted[part, label] for label in numbers] for part in self.data.parts}

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that is wrong; empty where the data are sound."""
        leaks = [twins for twins in self.twins if twins.leak]
        contradictions = [twins for twins in self.twins if twins.contradiction]
        others = [twins for twins in self.twins if not twins.leak and not twins.contradiction]
        told = [
            ("unreadable", [f"{look.where}: {look.error}" for look in self.unreadable]),
            ("in several parts", [_told(twins) for twins in leaks]),
            ("in several classes", [_told(twins) for twins in contradictions]),
            ("duplicates", [_told(twins) for twins in others]),
            ("missing classes", [f"{part} has no {listed(names)}" for part, names in self.data.lacking().items()]),
            ("uneven classes", list(self._uneven())),
        ]
        return tuple(Finding(kind, tuple(examples)) for kind, examples in told if examples)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is no fault and should be known."""
        ribbons = [look.where for look in self.looks if max(look.width, look.height) > _RIBBON * _short(look) > 0]
        words = f"more than {_RIBBON} times as long as wide, so that only the middle is seen: {listed(ribbons, 3)}"
        return (*self.data.notes, *[words] * bool(ribbons))

    def sizes(self) -> tuple[tuple[str, int, int], ...]:
        """(smallest, middle, largest) width and height of those that can be read."""
        read = sorted((look.width * look.height, look.width, look.height) for look in self.looks if not look.error)
        if not read:
            return ()
        places = (("smallest", 0), ("middle", len(read) // 2), ("largest", -1))
        return tuple((name, read[place][1], read[place][2]) for name, place in places)

    def _uneven(self) -> Iterator[str]:
        for part, counts in self.counts.items():
            present = [(n, label) for label, n in enumerate(counts) if n]
            (least, rare), (most, common) = min(present), max(present)
            if most > _UNEVEN * least:
                classes = self.data.classes
                yield f"{part}: {classes[common]} has {most:,} pictures, {classes[rare]} {least:,}"


def check(data: str | Path, *, tell: Callable[[int, int], None] | None = None) -> Checked:
    """Look at every picture of ``data`` (a folder, a table, an archive, digits) on all cores; nothing is written.

    Finds pictures that cannot be read, the same picture twice (by its pixels, upright and in RGB, whatever the file),
    in several parts or classes, classes that a part lacks, and classes of very different sizes. ``tell`` hears
    (done, all).
    """
    opened = open_data(data, tell)
    places = [(part, i) for part, pictures in opened.parts.items() for i in range(len(pictures))]
    looks: list[Look] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunks = [places[i : i + _CHUNK] for i in range(0, len(places), _CHUNK)]
        for found in pool.map(lambda chunk: [_look(opened.parts[part], part, i) for part, i in chunk], chunks):
            looks += found
            if tell:
                tell(len(looks), len(places))
    return Checked(opened, tuple(looks), tuple(_twins(opened, looks)))


def _look(pictures: Pictures, part: str, i: int) -> Look:
    where, label = pictures.where(i), int(pictures.labels[i])
    image = attempt(pictures.image, i)
    if isinstance(image, PictureError):
        return Look(part, i, label, where, error=image.what)
    return Look(part, i, label, where, image.width, image.height, _digest(image))


def _digest(image: Image.Image) -> bytes:
    """Of the size and the pixels."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(np.asarray(image.convert("RGB")).data)
    return digest.digest()


def _twins(data: Data, looks: Sequence[Look]) -> Iterator[Twins]:
    groups: dict[bytes, list[Look]] = defaultdict(list)
    for look in looks:
        if not look.error:
            groups[look.pixels].append(look)
    for group in groups.values():
        if len(group) > 1:
            yield Twins(tuple(group), len({content_digest(data.parts[look.part], look.number) for look in group}) == 1)


def _told(twins: Twins) -> str:
    how = "the same file" if twins.same_bytes else "the same pixels"
    return f"{' = '.join(look.where for look in twins.looks[:3])}{' = ...' * (len(twins.looks) > 3)} ({how})"


def _short(look: Look) -> int:
    return min(look.width, look.height)
