"""From pictures to batches of pixels: N H W C, 8 bits.

What fits is prepared once and kept in memory; the rest is read as it is needed, by workers, one batch ahead. A
picture that cannot be read is left out of its batch, named and counted, and never replaced by another one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation
from resnetkit.data.dataset import Data, Indices, Pictures
from resnetkit.errors import DataError, PictureError, UsageError
from resnetkit.images.decode import attempt_named
from resnetkit.images.prepare import Pixels, prepare, random_crop
from resnetkit.runtime.distributed import ALONE, Ranks, cores, launched
from resnetkit.runtime.threads import MOST, ahead, each
from resnetkit.training.recipe import BadFiles, Skip

EVALUATED = 128  # pictures in a batch of an evaluation: several processes share few, too
_SHOWN = 20

T = TypeVar("T")
Tell = Callable[[int, int], None]


def kept_bytes() -> int:
    """What prepared pictures may take in memory: 2 GiB, or the part of a process of a quarter of the machine."""
    if not hasattr(os, "sysconf"):
        return 2 * 2**30
    launch = launched()
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return min(2 * 2**30, quarter // (launch.local_world if launch else 1))


def workers_of(told: int | None) -> int:
    """How many threads read pictures: as told, or one for each core; raises `UsageError`."""
    if told is None:
        return cores()
    if not 0 <= told <= MOST:
        fix = f"0 (the loop itself) to {MOST:,}; leave it out for one on each core"
        raise UsageError(f"there cannot be {told:,} workers", where="--workers", fix=fix)
    return told


class Skipped:
    """The pictures of a data set that could not be read; raises `DataError` as soon as there are too many."""

    def __init__(self, data: Data, policy: BadFiles) -> None:
        self.data, self.policy = data.name, policy
        self.all = sum(map(len, data.parts.values()))
        self.most = math.floor(policy.at_most * self.all + 1e-9) if isinstance(policy, Skip) else 0
        self.reasons: dict[str, str] = {}
        self.told = 0  # how many of them the other processes know

    def note(self, bad: Iterable[PictureError]) -> None:
        """Remember them."""
        self.add({error.where[0]: error.what for error in bad})

    def add(self, reasons: Mapping[str, str]) -> None:
        """The same by their names."""
        self.reasons |= reasons
        if len(self.reasons) > self.most:
            raise self._too_many()

    def _too_many(self) -> DataError:
        told = [f"{path}: {reason}" for path, reason in list(self.reasons.items())[:_SHOWN]]
        more = [f"... and {len(self.reasons) - _SHOWN:,} more"] * (len(self.reasons) > _SHOWN)
        count = "1 picture" if len(self.reasons) == 1 else f"{len(self.reasons):,} pictures"
        what, fix = f"{count} cannot be read", f"resnetkit check {self.data} --write-list bad.txt names every one"
        if isinstance(self.policy, Skip):
            what += f" of {self.all:,}, and {self.most:,} may be skipped ({self.policy.at_most:.3g} of all)"
            fix += "; repair or remove them, or allow more: --max-bad 10%"
        return DataError(what, where=told + more, fix=fix if isinstance(self.policy, Skip) else _NONE + fix)


_NONE = "repair or remove them, as none was skipped (--bad-files skip); "


class PixelSource:
    """The prepared pictures of a part, by number."""

    def __init__(
        self,
        pictures: Pictures,
        preparation: Preparation,
        skipped: Skipped,
        *,
        keep: bool = True,
        tell: Tell | None = None,
        workers: int | None = None,
    ) -> None:
        self.workers = workers_of(workers)
        self.pictures = pictures
        self.preparation = preparation
        self.labels = torch.from_numpy(pictures.labels)
        self.skipped = skipped
        self._bad = np.zeros(len(pictures), dtype=bool)
        self._kept = self._read_all(tell) if keep else None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def in_memory(self) -> bool:
        """Whether reading them again costs nothing."""
        return self._kept is not None

    def leave_out(self, known: Mapping[str, str]) -> None:
        """Those that could not be read before, with the reasons: what failed once stays out of a run."""
        self.skipped.reasons = {**known, **self.skipped.reasons}
        self._bad |= np.array([self.pictures.where(i) in known for i in range(len(self))], dtype=bool)

    def readable(self, indices: Indices) -> Indices:
        """Those that are not known to be unreadable."""
        return indices[~self._bad[indices]]

    def prepared(self, indices: Indices) -> tuple[Tensor, Indices]:
        """The pictures as evaluation sees them, and which of ``indices`` they are."""
        if self._kept is not None:
            good = self.readable(indices)
            return self._kept[torch.from_numpy(good)], good
        return self._read(self._one, self.readable(indices))

    def cropped(self, indices: Indices, area: float, seed: Sequence[int]) -> tuple[Tensor, Indices]:
        """Random windows; what is drawn for a picture depends on ``seed`` and its number alone."""
        return self._read(partial(self._crop, area, tuple(seed)), self.readable(indices))

    def batches(self, *, ranks: Ranks = ALONE, size: int | None = None) -> Iterator[tuple[Tensor, Indices]]:
        """All of them in order: (pixels, numbers). Of W processes process r gets the batches r, r + W, r + 2 W ...

        So a batch holds the same pictures whatever W is. All get as many batches; the last ones may be empty.
        """
        size = size or EVALUATED
        rounds, own = range(0, len(self), size * ranks.world), ranks.rank * size
        chunks = [np.arange(start + own, min(start + own + size, len(self))) for start in rounds]
        return map(self.prepared, chunks) if self.in_memory else self.ahead([partial(self.prepared, c) for c in chunks])

    def ahead(self, tasks: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Batches in order, one read while the one before it is in use, where there are workers."""
        return ahead(tasks, self.workers)

    def _one(self, i: int) -> Pixels:
        how = self.preparation
        return prepare(self.pictures.image(i, how.colour, how.resize), how)

    def _crop(self, area: float, seed: tuple[int, ...], i: int) -> Pixels:
        draw = np.random.default_rng([*seed, i])
        return random_crop(self.pictures.image(i, self.preparation.colour), self.preparation, area, draw)

    def _read(self, read: Callable[[int], Pixels], indices: Indices) -> tuple[Tensor, Indices]:
        """``read`` of each on all cores, in order, without those that cannot be read; what failed once stays out."""
        pixels, good = self._read_each(read, indices)
        return torch.from_numpy(pixels if len(good) == len(indices) else pixels[good]), indices[good]

    def _read_each(
        self, read: Callable[[int], Pixels], indices: Indices, tell: Tell | None = None
    ) -> tuple[Pixels, Indices]:
        """A place for each, and the places that hold a picture."""
        pixels = np.empty((len(indices), *self.preparation.crop, len(self.preparation.mean)), np.uint8)
        bad: dict[int, PictureError] = {}
        for place, found in enumerate(self._attempts(read, indices.tolist())):
            if isinstance(found, PictureError):
                bad[place] = found
            else:
                pixels[place] = found
            if tell:
                tell(place + 1, len(indices))
        self._bad[indices[list(bad)]] = True
        self.skipped.note(bad.values())
        return pixels, np.delete(np.arange(len(indices)), list(bad))

    def _attempts(self, read: Callable[[int], Pixels], numbers: list[int]) -> Iterator[Pixels | PictureError]:
        """In order; what no picture should cause is an error that names the picture."""
        where = self.pictures.where
        yield from each(partial(attempt_named, read, where), numbers, self.workers, where)

    def _read_all(self, tell: Tell | None) -> Tensor:
        """Every picture at its number; what stands at the number of an unreadable one is never used."""
        return torch.from_numpy(self._read_each(self._one, np.arange(len(self)), tell)[0])


def tell_unreadable(sources: Collection[PixelSource], ranks: Ranks) -> None:
    """What one process could not read stays out in all of them. They call this at the same places."""
    skipped = next(iter(sources)).skipped
    if ranks.world == 1 or not ranks.agreed(len(skipped.reasons) > skipped.told):
        return
    every = {name: why for reasons in ranks.each(skipped.reasons) for name, why in reasons.items()}
    skipped.reasons, skipped.told = {}, len(every)
    skipped.add(every)
    for source in sources:
        source.leave_out(every)
