"""From a picture to the pixels that a network sees, as its card's `Preparation` says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Preparation
from resnetkit.images.decode import decode

Pixels = NDArray[np.uint8]
_LONGEST = 4  # how many times as long as wide a picture may be before its ends are left out


def prepare(image: Image.Image, preparation: Preparation) -> Pixels:
    """H W C, 8 bits: the shorter side resized, the centre taken (sizes and places rounded as torchvision does)."""
    return as_array(_centre(_resize(image.convert(preparation.colour), preparation.resize), preparation.crop))


def open_prepared(source: str | Path | bytes, preparation: Preparation) -> Pixels:
    """`prepare` of what `decode` reads."""
    return prepare(decode(source, preparation.colour), preparation)


def random_crop(image: Image.Image, preparation: Preparation, area: float, draw: np.random.Generator) -> Pixels:
    """A window of at least ``area`` of the picture, its sides at 3:4 to 4:3, resized to the crop and perhaps mirrored.

    What is drawn depends on ``draw`` alone (Szegedy et al., arXiv 1409.4842, section 6, with a larger area).
    """
    image = image.convert(preparation.colour)
    share, ratio = draw.uniform(area, 1.0), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(image.width, max(1, round((image.width * image.height * share * ratio) ** 0.5)))
    height = min(image.height, max(1, round((image.width * image.height * share / ratio) ** 0.5)))
    left, top = draw.integers(image.width - width + 1), draw.integers(image.height - height + 1)
    box = (int(left), int(top), int(left) + width, int(top) + height)
    rows, columns = preparation.crop
    taken = as_array(image.resize((columns, rows), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    return np.ascontiguousarray(taken[:, ::-1]) if draw.random() < 0.5 else taken


def scale_and_shift(preparation: Preparation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per channel, such that pixels * scale + shift = (pixels / 255 - mean) / std."""
    mean, std = np.asarray(preparation.mean), np.asarray(preparation.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _resize(image: Image.Image, side: int) -> Image.Image:
    short, long = sorted(image.size)
    if long > _LONGEST * short:  # of a ribbon only the middle can be seen; resizing all of it could take any memory
        image, long = _centre(image, _middle(image.size)), _LONGEST * short
    if short == side:
        return image
    other = max(side, int(side * long / short))
    size = (side, other) if image.width <= image.height else (other, side)
    return image.resize(size, Image.Resampling.BILINEAR)


def _middle(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the middle of a ribbon."""
    width, height = size
    return (min(height, _LONGEST * width), min(width, _LONGEST * height))


def _centre(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    height, width = crop
    if (image.height, image.width) == crop:
        return image
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def as_array(image: Image.Image) -> Pixels:
    """H W C, grey ones, too."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
