"""Pictures as training sees them: a function of (seed, epoch, step or picture), never a state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.learn.data import Indices
from resnetkit.learn.pixels import PixelSource
from resnetkit.learn.recipe import Augment, NoAugment, PadCrop, RandomCrop


def augmented(
    source: PixelSource, indices: Indices, augment: Augment, seed: tuple[int, int], step: int
) -> tuple[Tensor, Indices]:
    """N H W C, 8 bits, and which pictures they are; ``seed`` is (seed of the run, epoch)."""
    match augment:
        case NoAugment():
            return source.prepared(indices)
        case PadCrop(pad, flip):
            pixels, good = source.prepared(indices)
            return moved(pixels, pad, flip, np.random.default_rng([*seed, step])), good
        case RandomCrop(area):
            return source.cropped(indices, area, seed)


def moved(pixels: Tensor, pad: int, flip: bool, draw: np.random.Generator) -> Tensor:
    """Each picture of a batch (N H W C) moved by up to ``pad`` pixels over black, and perhaps mirrored."""
    count, height, width, _ = pixels.shape
    down, right = draw.integers(2 * pad + 1, size=(2, count))
    mirrored = draw.random(count) < 0.5 if flip else np.zeros(count, dtype=bool)
    columns = np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + right[:, None]
    rows = np.arange(height) + down[:, None]
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    which = torch.arange(count)[:, None, None]
    return padded[which, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]
