"""From a picture to the pixels that a network sees, as its card's `Preparation` says.

This module imports no torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Preparation
from resnetkit.images.decode import decode

Pixels = NDArray[np.uint8]
Size = tuple[int, int]  # (width, height), as Pillow has it
Box = tuple[float, float, float, float]  # left, top, right, bottom
_MAX_ASPECT_RATIO = 4  # times as long as wide: of what is longer only the middle is resized, as Pillow's boxes are fp32


def resize_and_crop(image: Image.Image, preparation: Preparation) -> Pixels:
    """H W C, 8 bits: the centre of the picture with its shorter side resized.

    Sizes and places are rounded as torchvision's Resize and CenterCrop round them. What lies outside the centre is
    never computed, so that a pixel may be one level apart from theirs, and a rare one two.
    """
    image = image if image.mode == preparation.color_mode else image.convert(preparation.color_mode)
    return convert_to_array(_center_crop(image, preparation.resize, preparation.crop))


def load_pixels(source: str | Path | bytes, preparation: Preparation) -> Pixels:
    """`prepare` of what `decode` reads."""
    return resize_and_crop(decode(source, preparation.color_mode, preparation.resize), preparation)


def random_resized_crop(
    image: Image.Image, preparation: Preparation, min_area: float, rng: np.random.Generator
) -> Pixels:
    """A window of at least ``area`` of the picture, its sides at 3:4 to 4:3, resized to the crop and perhaps mirrored.

    What is drawn depends on ``draw`` alone (Szegedy et al., arXiv 1409.4842, section 6, with a larger area).
    """
    image = image.convert(preparation.color_mode)
    area_fraction, ratio = rng.uniform(min_area, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(image.width, max(1, round((image.width * image.height * area_fraction * ratio) ** 0.5)))
    height = min(image.height, max(1, round((image.width * image.height * area_fraction / ratio) ** 0.5)))
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    box = (int(left), int(top), int(left) + width, int(top) + height)
    rows, columns = preparation.crop
    pixels = convert_to_array(image.resize((columns, rows), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


def compute_scale_and_shift(preparation: Preparation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Per channel, such that pixels * scale + shift = (pixels / 255 - mean) / std."""
    mean, std = np.asarray(preparation.mean), np.asarray(preparation.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _center_crop(image: Image.Image, side: int, crop: tuple[int, int]) -> Image.Image:
    """The middle of the picture as it would be with a shorter side of ``side``."""
    (width, height), (rows, columns) = _compute_resized_size(image.size, side), crop
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    crop_box = (left, top, left + columns, top + rows)
    if (width, height) == image.size:
        return image if crop_box == (0, 0, width, height) else image.crop(crop_box)
    full_width, full_height = image.width, image.height
    box = (
        left * full_width / width,
        top * full_height / height,
        crop_box[2] * full_width / width,
        crop_box[3] * full_height / height,
    )
    region, box = _crop_long_image(image, box)
    return region.resize((columns, rows), Image.Resampling.BILINEAR, box=box)


def _compute_resized_size(size: Size, side: int) -> Size:
    width, height = size
    if min(size) == side:
        return size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _crop_long_image(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """Of a ribbon only the place of the box and its neighbours, with the box as it lies there."""
    if max(image.size) <= _MAX_ASPECT_RATIO * min(image.size):
        return image, box
    margin = 2 + min(image.size)  # more than the filter reaches
    left, top = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
    right, bottom = min(image.width, int(box[2]) + margin), min(image.height, int(box[3]) + margin)
    region = image.crop((left, top, right, bottom))
    return region, (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def convert_to_array(image: Image.Image) -> Pixels:
    """H W C, grey ones, too."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
