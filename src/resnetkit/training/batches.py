"""The batches of an epoch: which images each step and each process learns from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from resnetkit.data.dataset import Indices
from resnetkit.runtime.distributed import ProcessGroup, get_rank_slice
from resnetkit.training.augment import apply_transforms, load_augmented
from resnetkit.training.events import PreparedRun

Batch = tuple[Tensor, Tensor, Indices]  # pixels (N, H, W, C), labels (N), indices of the images


class TrainBatches:
    """The training batches of one process. An epoch's order depends on (seed, epoch) alone."""

    def __init__(self, run: PreparedRun, dist: ProcessGroup) -> None:
        self.run, self.dist, self.loader = run, dist, run.loaders["train"]
        self.has_sync_batch_norm = run.recipe.sync_batch_norm and dist.world_size > 1

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps; a last batch of one image is skipped, as batch norm needs two."""
        full_batches, remainder = divmod(len(self.loader), self.run.recipe.batch_size)
        return max(1, full_batches + (remainder > 1))

    def get_step_size(self, step: int) -> int:
        """Return the number of images of a step, over all processes."""
        batch_size = self.run.recipe.batch_size
        return min(batch_size, len(self.loader) - step * batch_size)

    def iter_epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Iterate over the batches of an epoch.

        Args:
            epoch: The epoch, from 1.
            first_step: The step to start from, from 0.
        """
        size, recipe = self.run.recipe.batch_size, self.run.recipe
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(self.loader))
        tasks = [
            partial(self._load_batch, epoch, step, order[step * size : (step + 1) * size])
            for step in range(first_step, self.steps_per_epoch)
        ]
        can_load_inline = self.loader.is_cached and not recipe.transforms
        return (task() for task in tasks) if can_load_inline else self.loader.prefetch(tasks)

    def _load_batch(self, epoch: int, step: int, step_indices: Indices) -> Batch:
        """Load this process's images of a step, without unreadable ones."""
        recipe, loader, seed = self.run.recipe, self.loader, (self.run.recipe.seed, epoch)
        local_slice = get_rank_slice(
            len(step_indices), self.dist.rank, self.dist.world_size, local_norms=not self.has_sync_batch_norm
        )
        pixels, indices = load_augmented(loader, step_indices, recipe.augment, seed, step, local_slice=local_slice)
        preparation = self.run.card.preparation
        pixels = apply_transforms(pixels, indices, recipe.transforms, preparation, seed, workers=loader.workers)
        return pixels, loader.labels[torch.from_numpy(indices)], indices

    def split_micro_batches(self, step: int, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Split a batch into what goes through the network at once.

        With synchronized batch norms, all processes have the same number of micro-batches. Otherwise a micro-batch of
        one image is skipped, as batch norm needs two.

        Args:
            step: The step, from 0.
            inputs: The inputs (N, C, H, W).
            targets: The labels (N) or the targets (N, classes).
        """
        n_images = self.get_step_size(step) // self.dist.world_size if self.has_sync_batch_norm else len(targets)
        n_chunks = min(self.run.recipe.accumulate, max(1, n_images // 2))
        for chunk in zip(inputs.tensor_split(n_chunks), targets.tensor_split(n_chunks), strict=True):
            if self.has_sync_batch_norm or len(chunk[1]) > 1:
                yield chunk
