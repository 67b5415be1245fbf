"""Load batches of pixels (N, H, W, C), 8 bits.

If the prepared images fit into memory, they are read once and cached. Otherwise worker threads read them batch by
batch, one batch ahead. Unreadable images are skipped, listed and counted; they are never replaced by other images.
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

EVAL_BATCH_SIZE = 128  # small enough that several processes can share a small dataset

T = TypeVar("T")


def get_cache_limit() -> int:
    """Return the largest cache in bytes: 2 GiB, or this process's share of a quarter of the memory."""
    if not hasattr(os, "sysconf"):
        return 2 * 2**30
    launch_info = read_launch_info()
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return min(2 * 2**30, quarter // (launch_info.local_world_size if launch_info else 1))


def resolve_workers(workers: int | None) -> int:
    """Return the number of reader threads; None means one per core.

    Raises:
        UsageError: the number is out of range.
    """
    if workers is None:
        return count_cores()
    if not 0 <= workers <= MAX_WORKERS:
        fix = f"use 0 (no threads) to {MAX_WORKERS:,}, or omit it for one thread per core"
        raise UsageError(f"the number of workers is out of range: {workers:,}", where="--workers", fix=fix)
    return workers


class ImageLoader:
    """Load the prepared images of one split by index.

    Args:
        images: The N images of the split.
        preparation: The sizes and the color mode.
        skipped: Collects the unreadable images of all splits.
        cache: Whether to read all images now and keep their pixels in memory.
        on_progress: Called with (images done, all images) while the cache is filled.
        workers: The number of reader threads, 0 for none, None for one per core.
    """

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
        self.images, self.preparation, self.skipped = images, preparation, skipped
        self.labels = torch.from_numpy(images.labels)
        self._is_unreadable = np.zeros(len(images), dtype=bool)
        self._cached_pixels: Tensor | None = None
        if cache:  # the pixels at the index of an unreadable image are never used
            pixels, _ = self._read_batch(self._load_eval_image, np.arange(len(self)), on_progress)
            self._cached_pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_cached(self) -> bool:
        """Whether the pixels are in memory."""
        return self._cached_pixels is not None

    def mark_unreadable(self, reasons: Mapping[str, str]) -> None:
        """Skip these images (location -> reason) from now on, so that all epochs of a run use the same images."""
        self.skipped.reasons = {**reasons, **self.skipped.reasons}
        is_listed = [self.images.format_location(i) in reasons for i in range(len(self))]
        self._is_unreadable |= np.array(is_listed, dtype=bool)

    def select_readable(self, indices: Indices) -> Indices:
        """Remove the indices of images that are known to be unreadable."""
        return indices[~self._is_unreadable[indices]]

    def load_eval_pixels(self, indices: Indices) -> tuple[Tensor, Indices]:
        """Load images as evaluation uses them: resized and center-cropped.

        Returns:
            The pixels (M, H, W, C) of the readable images, and their indices (M,).
        """
        readable = self.select_readable(indices)
        if self._cached_pixels is not None:
            return self._cached_pixels[torch.from_numpy(readable)], readable
        return self._read_readable(self._load_eval_image, readable)

    def load_random_crops(self, indices: Indices, area: float, seed: Sequence[int]) -> tuple[Tensor, Indices]:
        """Load a random window of each image; it depends only on the seed and the image's index.

        Args:
            indices: The images to load.
            area: The smallest area of a window, as a fraction of the image.
            seed: The seed; the index of the image is appended to it.

        Returns:
            The pixels (M, H, W, C) of the readable images, and their indices (M,).
        """
        return self._read_readable(partial(self._load_random_crop, area, tuple(seed)), self.select_readable(indices))

    def iter_batches(
        self, *, dist: ProcessGroup = SINGLE_PROCESS, batch_size: int = EVAL_BATCH_SIZE
    ) -> Iterator[tuple[Tensor, Indices]]:
        """Yield the evaluation pixels and indices of all images in order.

        Process ``rank`` gets the batches rank, rank + world_size, and so on. A batch thus holds the same images for any
        number of processes. All processes get equally many batches; the last ones may be empty.

        Args:
            dist: The processes that share the images.
            batch_size: The number of images per batch.
        """
        starts = range(dist.rank * batch_size, len(self) + dist.rank * batch_size, batch_size * dist.world_size)
        chunks = [np.arange(start, min(start + batch_size, len(self))) for start in starts]
        if self.is_cached:
            return map(self.load_eval_pixels, chunks)
        return self.prefetch([partial(self.load_eval_pixels, chunk) for chunk in chunks])

    def prefetch(self, tasks: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Run the tasks in order; with workers, the next one runs while the caller uses the previous result."""
        return prefetch(tasks, self.workers)

    def _load_eval_image(self, i: int) -> Pixels:
        preparation = self.preparation
        return resize_and_crop(self.images.load_image(i, preparation.color_mode, preparation.resize), preparation)

    def _load_random_crop(self, area: float, seed: tuple[int, ...], i: int) -> Pixels:
        rng = np.random.default_rng([*seed, i])
        return random_resized_crop(self.images.load_image(i, self.preparation.color_mode), self.preparation, area, rng)

    def _read_readable(self, read: Callable[[int], Pixels], indices: Indices) -> tuple[Tensor, Indices]:
        pixels, readable = self._read_batch(read, indices)
        return torch.from_numpy(pixels if len(readable) == len(indices) else pixels[readable]), indices[readable]

    def _read_batch(
        self, read: Callable[[int], Pixels], indices: Indices, on_progress: ProgressCallback | None = None
    ) -> tuple[Pixels, Indices]:
        """Read images with all workers; return pixels for all of them, and the positions of the readable ones."""
        pixels = np.empty((len(indices), *self.preparation.crop, len(self.preparation.mean)), np.uint8)
        errors: dict[int, ImageError] = {}
        describe = self.images.format_location
        read_named = partial(try_read_named, read, describe)
        for position, result in enumerate(map_ordered(read_named, indices.tolist(), self.workers, describe)):
            if isinstance(result, ImageError):
                errors[position] = result
            else:
                pixels[position] = result
            if on_progress:
                on_progress(position + 1, len(indices))
        self._is_unreadable[indices[list(errors)]] = True
        self.skipped.add_reasons({error.where[0]: error.what for error in errors.values()})
        return pixels, np.delete(np.arange(len(indices)), list(errors))


def sync_unreadable(loaders: Collection[ImageLoader], dist: ProcessGroup) -> None:
    """Skip in every process what any process could not read; all processes must call this together.

    Args:
        loaders: The loaders of the run, which share one `SkippedFiles`.
        dist: The processes.
    """
    skipped = next(iter(loaders)).skipped
    if dist.world_size == 1 or not dist.all_reduce_any(len(skipped.reasons) > skipped.n_synced):
        return
    all_reasons = {name: reason for reasons in dist.all_gather(skipped.reasons) for name, reason in reasons.items()}
    skipped.reasons, skipped.n_synced = {}, len(all_reasons)
    skipped.add_reasons(all_reasons)
    for loader in loaders:
        loader.mark_unreadable(all_reasons)
