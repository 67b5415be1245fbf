"""Random changes of an image's geometry and colors for training. Pixels are (H, W, C), 8 bits.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnetkit.images.prepare import Pixels, convert_to_array

_BILINEAR = Image.Resampling.BILINEAR
_N_STRENGTHS = 31
ImageTransform = Callable[[Image.Image, float], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Map each output pixel (x, y) to the input by a 2 x 3 matrix; pixels from outside are black."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR)


def _make_enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> ImageTransform:
    return lambda image, magnitude: enhancer(image).enhance(1 + magnitude)


# name -> (function, largest magnitude, whether its sign is random): the wide space of arXiv 2103.10158, table 1
TRANSFORMS: dict[str, tuple[ImageTransform, float, bool]] = {
    "identity": (lambda image, magnitude: image, 0.0, False),
    "shear x": (lambda image, magnitude: _affine(image, 1, magnitude, 0, 0, 1, 0), 0.99, True),
    "shear y": (lambda image, magnitude: _affine(image, 1, 0, 0, magnitude, 1, 0), 0.99, True),
    "translate x": (lambda image, magnitude: _affine(image, 1, 0, -int(magnitude), 0, 1, 0), 32.0, True),
    "translate y": (lambda image, magnitude: _affine(image, 1, 0, 0, 0, 1, -int(magnitude)), 32.0, True),
    "rotate": (lambda image, magnitude: image.rotate(magnitude, _BILINEAR), 135.0, True),
    "brightness": (_make_enhance(ImageEnhance.Brightness), 0.99, True),
    "color": (_make_enhance(ImageEnhance.Color), 0.99, True),
    "contrast": (_make_enhance(ImageEnhance.Contrast), 0.99, True),
    "sharpness": (_make_enhance(ImageEnhance.Sharpness), 0.99, True),
    "posterize": (lambda image, magnitude: ImageOps.posterize(image, 8 - round(magnitude)), 6.0, False),
    "solarize": (lambda image, magnitude: ImageOps.solarize(image, math.ceil(255 - magnitude)), 255.0, False),
    "autocontrast": (lambda image, magnitude: ImageOps.autocontrast(image), 0.0, False),
    "equalize": (lambda image, magnitude: ImageOps.equalize(image), 0.0, False),
}


def apply_transform(pixels: Pixels, name: str, magnitude: float) -> Pixels:
    """Apply one of `TRANSFORMS`.

    Args:
        pixels: The image (H, W, C).
        name: A key of `TRANSFORMS`.
        magnitude: The strength in the transform's own unit (degrees, pixels, or a factor).
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return convert_to_array(TRANSFORMS[name][0](image, magnitude))


def trivial_augment(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply one random transform at one of 31 random strengths (arXiv 2103.10158, algorithm 1).

    Args:
        pixels: The image (H, W, C).
        rng: The source of randomness.
    """
    name, strength = tuple(TRANSFORMS)[rng.integers(len(TRANSFORMS))], rng.integers(_N_STRENGTHS)
    _, max_magnitude, is_signed = TRANSFORMS[name]
    sign = -1 if is_signed and rng.random() < 0.5 else 1
    return apply_transform(pixels, name, sign * max_magnitude * float(strength) / (_N_STRENGTHS - 1))


def color_jitter(pixels: Pixels, limits: Sequence[tuple[str, float]], rng: np.random.Generator) -> Pixels:
    """Apply each named transform with a random magnitude, in a random order.

    Args:
        pixels: The image (H, W, C).
        limits: (name, largest magnitude) of each transform.
        rng: The source of randomness.
    """
    for i in rng.permutation(len(limits)):
        name, max_magnitude = limits[i]
        pixels = apply_transform(pixels, name, rng.uniform(-max_magnitude, max_magnitude))
    return pixels


def random_erasing(pixels: Pixels, probability: float, fill: Sequence[int], rng: np.random.Generator) -> Pixels:
    """Fill a random box of 2 to 33 % of the image, with an aspect ratio of 0.3 to 3.3 (arXiv 1708.04896).

    Args:
        pixels: The image (H, W, C).
        probability: The probability that anything is erased.
        fill: The value of each channel, 0 to 255.
        rng: The source of randomness.
    """
    if rng.random() >= probability:
        return pixels
    height, width, _ = pixels.shape
    area, ratio = rng.uniform(0.02, 1 / 3) * height * width, math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    box_height, box_width = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
    top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
    result = pixels.copy()
    result[top : top + box_height, left : left + box_width] = fill
    return result
