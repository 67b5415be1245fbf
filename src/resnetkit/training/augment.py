"""Pictures as training sees them: a function of (seed, epoch, step or picture), never a state."""

from __future__ import annotations

from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.card import Preparation
from resnetkit.data.dataset import Indices
from resnetkit.data.loader import PixelSource
from resnetkit.images.prepare import Pixels
from resnetkit.images.transforms import erased, jittered, trivially_augmented
from resnetkit.runtime.rng import drawn_for
from resnetkit.runtime.threads import each as spread
from resnetkit.training.recipe import (
    Augment,
    ColourJitter,
    Further,
    NoAugment,
    PadCrop,
    RandomCrop,
    RandomErasing,
    TrivialAugment,
)

_CHUNK = 16  # pictures in a task, as handing over each small one costs more than changing it

ALL = slice(None)


def augmented(
    source: PixelSource, window: Indices, augment: Augment, seed: tuple[int, int], step: int, *, share: slice = ALL
) -> tuple[Tensor, Indices]:
    """N H W C, 8 bits, and which pictures they are; ``seed`` is (seed of the run, epoch).

    Of a step's ``window`` the ``share`` of one process: the same pixels, however many processes there are.
    """
    indices = window[share]
    match augment:
        case NoAugment():
            return source.prepared(indices)
        case PadCrop(pad, flip):
            pixels, good = source.prepared(indices)
            places = np.arange(len(window))[share][np.isin(indices, good)]
            return moved(
                pixels, pad, flip, np.random.default_rng([*seed, step]), among=len(window), places=places
            ), good
        case RandomCrop(area):
            return source.cropped(indices, area, seed)


def moved(
    pixels: Tensor, pad: int, flip: bool, draw: np.random.Generator, *, among: int = 0, places: Indices | None = None
) -> Tensor:
    """Each picture of a batch (N H W C) moved by up to ``pad`` pixels over black, and perhaps mirrored.

    What is drawn is for ``among`` pictures, of which these have the ``places``; for these alone if nothing is said.
    """
    count, height, width, _ = pixels.shape
    among, places = (count, np.arange(count)) if places is None else (among, places)
    down, right = draw.integers(2 * pad + 1, size=(2, among))[:, places]
    mirrored = draw.random(among)[places] < 0.5 if flip else np.zeros(count, dtype=bool)
    columns = np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + right[:, None]
    rows = np.arange(height) + down[:, None]
    padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
    which = torch.arange(count)[:, None, None]
    return padded[which, torch.from_numpy(rows)[:, :, None], torch.from_numpy(columns)[:, None, :]]


def further(
    pixels: Tensor,
    which: Indices,
    also: tuple[Further, ...],
    preparation: Preparation,
    seed: tuple[int, int],
    *,
    workers: int,
) -> Tensor:
    """A batch (N H W C) with each step of ``also`` done to each picture; ``seed`` is (seed of the run, epoch)."""
    if not also or not len(which):
        return pixels
    each = partial(_changed, also, tuple(round(255 * mean) for mean in preparation.mean), seed)
    chunks = [slice(i, i + _CHUNK) for i in range(0, len(which), _CHUNK)]
    changed = spread(lambda chunk: list(map(each, pixels[chunk].numpy(), which[chunk].tolist())), chunks, workers)
    return torch.from_numpy(np.stack(list(chain.from_iterable(changed))))


def _changed(
    also: tuple[Further, ...], colour: tuple[int, ...], seed: tuple[int, int], pixels: Pixels, number: int
) -> Pixels:
    """A picture; what is drawn for it depends on ``seed`` and its number alone."""
    draw = drawn_for("also", *seed, number)
    for step in also:
        match step:
            case TrivialAugment():
                pixels = trivially_augmented(pixels, draw)
            case ColourJitter(brightness, contrast, amount):
                by = (("brightness", brightness), ("contrast", contrast), ("colour", amount))
                pixels = jittered(pixels, by, draw)
            case RandomErasing(share):
                pixels = erased(pixels, share, colour, draw)
    return pixels
