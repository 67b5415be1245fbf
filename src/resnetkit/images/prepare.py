"""Turn a decoded image into the pixels that a network expects, as the `Preparation` of its card says.

This module imports no torch.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Preparation
from resnetkit.images.decode import convert_mode, decode

Pixels = NDArray[np.uint8]  # (H, W, C)
Size = tuple[int, int]  # (width, height), as in Pillow
Box = tuple[float, float, float, float]  # left, top, right, bottom
_MAX_ASPECT_RATIO = 4  # only the center of longer images is resized, because Pillow's boxes are fp32


def resize_and_crop(image: Image.Image, preparation: Preparation) -> Pixels:
    """Resize the shorter side and crop the center; return pixels (H, W, C), 8 bits.

    Sizes and offsets are rounded as in torchvision's Resize and CenterCrop. Pixels outside the crop are never computed,
    so a pixel may differ from torchvision's by one level, and a rare one by two.

    Args:
        image: The decoded image.
        preparation: The sizes and the color mode.
    """
    image = convert_mode(image, preparation.color_mode)
    return convert_to_array(_center_crop(image, preparation.resize, preparation.crop))


def load_pixels(source: str | Path | bytes, preparation: Preparation) -> Pixels:
    """Decode an image, then resize and crop it; return pixels (H, W, C), 8 bits.

    Args:
        source: A path, or the bytes of a file.
        preparation: The sizes and the color mode.
    """
    return resize_and_crop(decode(source, preparation.color_mode, preparation.resize), preparation)


def random_resized_crop(
    image: Image.Image, preparation: Preparation, min_area: float, rng: np.random.Generator
) -> Pixels:
    """Crop a random window, resize it, and flip it at random; return pixels (H, W, C), 8 bits.

    This is the augmentation of Szegedy et al., arXiv 1409.4842, section 6, with aspect ratios from 3:4 to 4:3.

    Args:
        image: The decoded image.
        preparation: The crop size and the color mode.
        min_area: The smallest area of the window, as a fraction of the image.
        rng: The only source of randomness.
    """
    image = image.convert(preparation.color_mode)
    area_fraction, ratio = rng.uniform(min_area, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(image.width, max(1, round((image.width * image.height * area_fraction * ratio) ** 0.5)))
    height = min(image.height, max(1, round((image.width * image.height * area_fraction / ratio) ** 0.5)))
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    size, box = preparation.crop[::-1], (left, top, left + width, top + height)
    pixels = convert_to_array(image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < 0.5 else pixels


def compute_scale_and_shift(preparation: Preparation) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute (C,) arrays with ``pixels * scale + shift = (pixels / 255 - mean) / std``."""
    mean, std = np.asarray(preparation.mean), np.asarray(preparation.std)
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def _center_crop(image: Image.Image, side: int, crop: tuple[int, int]) -> Image.Image:
    """Crop the center of the image as if its shorter side were ``side``."""
    (width, height), (rows, columns) = _compute_resized_size(image.size, side), crop
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    right, bottom = left + columns, top + rows
    if (width, height) == image.size:
        return image if (left, top, right, bottom) == (0, 0, width, height) else image.crop((left, top, right, bottom))
    w, h = image.size
    region, box = _crop_long_image(image, (left * w / width, top * h / height, right * w / width, bottom * h / height))
    return region.resize((columns, rows), Image.Resampling.BILINEAR, box=box)


def _compute_resized_size(size: Size, side: int) -> Size:
    width, height = size
    if min(size) == side:
        return size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _crop_long_image(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """Cut a very long image around the box; return the region, and the box relative to it."""
    if max(image.size) <= _MAX_ASPECT_RATIO * min(image.size):
        return image, box
    margin = 2 + min(image.size)  # larger than the support of the filter
    left, top = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
    right, bottom = min(image.width, int(box[2]) + margin), min(image.height, int(box[3]) + margin)
    region = image.crop((left, top, right, bottom))
    return region, (box[0] - left, box[1] - top, box[2] - left, box[3] - top)


def convert_to_array(image: Image.Image) -> Pixels:
    """Convert an image to an array (H, W, C); C is 1 for grayscale."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def encode_thumbnail(image: Image.Image, side: int = 112) -> str:
    """Encode a thumbnail for a web page as a JPEG in base64; small images are enlarged without smoothing.

    Args:
        image: The decoded image.
        side: The largest width and height in pixels.
    """
    small = image.convert("RGB")
    factor = side // max(small.size)
    if factor > 1:
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
