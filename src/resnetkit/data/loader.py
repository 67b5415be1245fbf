"""From pictures to batches of pixels: N H W C, 8 bits.

What fits is prepared once and kept in memory; the rest is read as it is needed, by workers, one batch ahead. A
picture that cannot be read is left out of its batch, named and counted, and never replaced by another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation
from resnetkit.data.bad_files import SkippedFiles
from resnetkit.data.dataset import Images, Indices
from resnetkit.errors import ImageError, UsageError
from resnetkit.images.decode import try_read_named
from resnetkit.images.prepare import Pixels, random_resized_crop, resize_and_crop
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, count_cores, read_launch_info
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.runtime.threads import MAX_WORKERS, map_ordered, prefetch

EVAL_BATCH_SIZE = 128  # pictures in a batch of an evaluation: several processes share few, too

T = TypeVar("T")


def get_cache_limit() -> int:
    """What prepared pictures may take in memory: 2 GiB, or the part of a process of a quarter of the machine."""
    if not hasattr(os, "sysconf"):
        return 2 * 2**30
    launch_info = read_launch_info()
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return min(2 * 2**30, quarter // (launch_info.local_world_size if launch_info else 1))


def resolve_workers(workers: int | None) -> int:
    """How many threads read pictures: as told, or one for each core; raises `UsageError`."""
    if workers is None:
        return count_cores()
    if not 0 <= workers <= MAX_WORKERS:
        fix = f"0 (the loop itself) to {MAX_WORKERS:,}; leave it out for one on each core"
        raise UsageError(f"there cannot be {workers:,} workers", where="--workers", fix=fix)
    return workers


class ImageLoader:
    """The prepared pictures of a part, by number."""

    def __init__(
        self,
        images: Images,
        preparation: Preparation,
        skipped: SkippedFiles,
        *,
        cache: bool = True,
        on_progress: ProgressCallback | None = None,
        workers: int | None = None,
    ) -> None:
        self.workers = resolve_workers(workers)
        self.images = images
        self.preparation = preparation
        self.labels = torch.from_numpy(images.labels)
        self.skipped = skipped
        self._is_unreadable = np.zeros(len(images), dtype=bool)
        self._cached_pixels = self._read_all(on_progress) if cache else None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_cached(self) -> bool:
        """Whether reading them again costs nothing."""
        return self._cached_pixels is not None

    def mark_unreadable(self, reasons: Mapping[str, str]) -> None:
        """Those that could not be read before, with the reasons: what failed once stays out of a run."""
        self.skipped.reasons = {**reasons, **self.skipped.reasons}
        self._is_unreadable |= np.array(
            [self.images.format_location(i) in reasons for i in range(len(self))], dtype=bool
        )

    def select_readable(self, indices: Indices) -> Indices:
        """Those that are not known to be unreadable."""
        return indices[~self._is_unreadable[indices]]

    def load_eval_pixels(self, indices: Indices) -> tuple[Tensor, Indices]:
        """The pictures as evaluation sees them, and which of ``indices`` they are."""
        if self._cached_pixels is not None:
            readable = self.select_readable(indices)
            return self._cached_pixels[torch.from_numpy(readable)], readable
        return self._read_readable(self._load_eval_image, self.select_readable(indices))

    def load_random_crops(self, indices: Indices, area: float, seed: Sequence[int]) -> tuple[Tensor, Indices]:
        """Random windows; what is drawn for a picture depends on ``seed`` and its number alone."""
        return self._read_readable(partial(self._load_random_crop, area, tuple(seed)), self.select_readable(indices))

    def iter_batches(
        self, *, dist: ProcessGroup = SINGLE_PROCESS, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Indices]]:
        """All of them in order: (pixels, numbers). Of W processes process r gets the batches r, r + W, r + 2 W ...

        So a batch holds the same pictures whatever W is. All get as many batches; the last ones may be empty.
        """
        batch_size = batch_size or EVAL_BATCH_SIZE
        round_starts, offset = range(0, len(self), batch_size * dist.world_size), dist.rank * batch_size
        chunks = [np.arange(start + offset, min(start + offset + batch_size, len(self))) for start in round_starts]
        return (
            map(self.load_eval_pixels, chunks)
            if self.is_cached
            else self.prefetch([partial(self.load_eval_pixels, chunk) for chunk in chunks])
        )

    def prefetch(self, tasks: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Batches in order, one read while the one before it is in use, where there are workers."""
        return prefetch(tasks, self.workers)

    def _load_eval_image(self, i: int) -> Pixels:
        preparation = self.preparation
        return resize_and_crop(self.images.load_image(i, preparation.color_mode, preparation.resize), preparation)

    def _load_random_crop(self, area: float, seed: tuple[int, ...], i: int) -> Pixels:
        rng = np.random.default_rng([*seed, i])
        return random_resized_crop(self.images.load_image(i, self.preparation.color_mode), self.preparation, area, rng)

    def _read_readable(self, read: Callable[[int], Pixels], indices: Indices) -> tuple[Tensor, Indices]:
        """``read`` of each on all cores, in order, without those that cannot be read; what failed once stays out."""
        pixels, readable = self._read_batch(read, indices)
        return torch.from_numpy(pixels if len(readable) == len(indices) else pixels[readable]), indices[readable]

    def _read_batch(
        self, read: Callable[[int], Pixels], indices: Indices, on_progress: ProgressCallback | None = None
    ) -> tuple[Pixels, Indices]:
        """A place for each, and the places that hold a picture."""
        pixels = np.empty((len(indices), *self.preparation.crop, len(self.preparation.mean)), np.uint8)
        errors: dict[int, ImageError] = {}
        for position, result in enumerate(self._attempt_reads(read, indices.tolist())):
            if isinstance(result, ImageError):
                errors[position] = result
            else:
                pixels[position] = result
            if on_progress:
                on_progress(position + 1, len(indices))
        self._is_unreadable[indices[list(errors)]] = True
        self.skipped.add_errors(errors.values())
        return pixels, np.delete(np.arange(len(indices)), list(errors))

    def _attempt_reads(self, read: Callable[[int], Pixels], indices: list[int]) -> Iterator[Pixels | ImageError]:
        """In order; what no picture should cause is an error that names the picture."""
        describe = self.images.format_location
        yield from map_ordered(partial(try_read_named, read, describe), indices, self.workers, describe)

    def _read_all(self, on_progress: ProgressCallback | None) -> Tensor:
        """Every picture at its number; what stands at the number of an unreadable one is never used."""
        return torch.from_numpy(self._read_batch(self._load_eval_image, np.arange(len(self)), on_progress)[0])


def sync_unreadable(loaders: Collection[ImageLoader], dist: ProcessGroup) -> None:
    """What one process could not read stays out in all of them. They call this at the same places."""
    skipped = next(iter(loaders)).skipped
    if dist.world_size == 1 or not dist.all_reduce_any(len(skipped.reasons) > skipped.n_synced):
        return
    all_reasons = {name: reason for reasons in dist.all_gather(skipped.reasons) for name, reason in reasons.items()}
    skipped.reasons, skipped.n_synced = {}, len(all_reasons)
    skipped.add_reasons(all_reasons)
    for loader in loaders:
        loader.mark_unreadable(all_reasons)
