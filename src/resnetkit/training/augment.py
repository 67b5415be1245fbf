"""Augmentation of training images: a function of (seed, epoch, step or image), without a state."""

from __future__ import annotations

from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.card import Preparation
from resnetkit.data.dataset import Indices
from resnetkit.data.loader import ImageLoader
from resnetkit.images.prepare import Pixels
from resnetkit.images.transforms import color_jitter, random_erasing, trivial_augment
from resnetkit.runtime.rng import make_rng
from resnetkit.runtime.threads import map_ordered
from resnetkit.training import recipe as config

_CHUNK_SIZE = 16  # images in a task, as handing over a small image costs more than transforming it

ALL_POSITIONS = slice(None)


def load_augmented(
    loader: ImageLoader,
    step_indices: Indices,
    augment: config.Augment,
    seed: tuple[int, int],
    step: int,
    *,
    local_slice: slice = ALL_POSITIONS,
) -> tuple[Tensor, Indices]:
    """Load this process's images of a step; their pixels do not depend on the number of processes.

    Args:
        loader: The training images.
        step_indices: The indices of all images of the step.
        augment: The augmentation.
        seed: The seed of the run and the epoch.
        step: The step in the epoch, from 0.
        local_slice: The positions in ``step_indices`` that belong to this process.

    Returns:
        Pixels (N, H, W, C), 8 bits, and the indices of the readable images.
    """
    indices = step_indices[local_slice]
    match augment:
        case config.NoAugment():
            return loader.load_eval_pixels(indices)
        case config.PadCrop(padding, flip):
            pixels, readable = loader.load_eval_pixels(indices)
            positions = np.arange(len(step_indices))[local_slice][np.isin(indices, readable)]
            rng = np.random.default_rng([*seed, step])
            pixels = pad_crop_flip(pixels, padding, flip, rng, n_drawn=len(step_indices), positions=positions)
            return pixels, readable
        case config.RandomResizedCrop(min_scale):
            return loader.load_random_crops(indices, min_scale, seed)


def pad_crop_flip(
    pixels: Tensor,
    padding: int,
    flip: bool,
    rng: np.random.Generator,
    *,
    n_drawn: int = 0,
    positions: Indices | None = None,
) -> Tensor:
    """Shift each image by up to ``padding`` pixels over black borders, and flip half of them horizontally.

    Args:
        pixels: The images (N, H, W, C).
        padding: The largest shift in pixels.
        flip: Whether to flip.
        rng: The random generator.
        n_drawn: The number of images that random numbers are drawn for; N if there are no positions.
        positions: The positions of these images among the drawn ones.
    """
    count, height, width, _ = pixels.shape
    n_drawn, positions = (count, np.arange(count)) if positions is None else (n_drawn, positions)
    row_shifts, column_shifts = rng.integers(2 * padding + 1, size=(2, n_drawn))[:, positions]
    is_flipped = rng.random(n_drawn)[positions] < 0.5 if flip else np.zeros(count, dtype=bool)
    columns = np.where(is_flipped[:, None], np.arange(width)[::-1], np.arange(width)) + column_shifts[:, None]
    rows = np.arange(height) + row_shifts[:, None]
    padded = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    batch_indices = torch.arange(count)[:, None, None]
    return padded[batch_indices, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]


def apply_transforms(
    pixels: Tensor,
    indices: Indices,
    transforms: tuple[config.Transform, ...],
    preparation: Preparation,
    seed: tuple[int, int],
    *,
    workers: int,
) -> Tensor:
    """Apply every transform to every image of a batch, the same for any number of workers.

    Args:
        pixels: The images (N, H, W, C), 8 bits.
        indices: Their indices in the split.
        transforms: The transforms, applied one after the other.
        preparation: The preparation, whose mean is the color of erased boxes.
        seed: The seed of the run and the epoch.
        workers: The number of threads.
    """
    if not transforms or not len(indices):
        return pixels
    transform = partial(_transform_image, transforms, tuple(round(255 * mean) for mean in preparation.mean), seed)
    chunks = [slice(i, i + _CHUNK_SIZE) for i in range(0, len(indices), _CHUNK_SIZE)]
    images = map_ordered(
        lambda chunk: list(map(transform, pixels[chunk].numpy(), indices[chunk].tolist())), chunks, workers
    )
    return torch.from_numpy(np.stack(list(chain.from_iterable(images))))


def _transform_image(
    transforms: tuple[config.Transform, ...], fill: tuple[int, ...], seed: tuple[int, int], pixels: Pixels, index: int
) -> Pixels:
    """Transform an image; its random numbers depend on the seed and its index alone."""
    rng = make_rng("augment", *seed, index)
    for transform in transforms:
        match transform:
            case config.TrivialAugment():
                pixels = trivial_augment(pixels, rng)
            case config.ColorJitter(brightness, contrast, saturation):
                factors = (("brightness", brightness), ("contrast", contrast), ("color", saturation))
                pixels = color_jitter(pixels, factors, rng)
            case config.RandomErasing(p):
                pixels = random_erasing(pixels, p, fill, rng)
    return pixels
