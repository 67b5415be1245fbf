"""Changes of a picture's shape and colours, each as strong as it is told. Pixels are H W C, 8 bits.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnetkit.images.prepare import Pixels, convert_to_array

_BILINEAR = Image.Resampling.BILINEAR


def _shear(image: Image.Image, x_shear: float, y_shear: float) -> Image.Image:
    """Each row moved left by ``across`` times its distance from the top, each column up likewise; black comes in."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, x_shear, 0, y_shear, 1, 0), _BILINEAR)


def _translate(image: Image.Image, dx: float, dy: float) -> Image.Image:
    """By whole pixels."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -int(dx), 0, 1, -int(dy)), _BILINEAR)


def _make_enhance(
    enhancer: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, magnitude: enhancer(image).enhance(1 + magnitude)


# name -> (what it does, its strongest magnitude, whether the sign of it is drawn): arXiv 2103.10158, table 1, wide
TRANSFORMS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float, bool]] = {
    "identity": (lambda image, magnitude: image, 0.0, False),
    "shear x": (lambda image, magnitude: _shear(image, magnitude, 0), 0.99, True),
    "shear y": (lambda image, magnitude: _shear(image, 0, magnitude), 0.99, True),
    "translate x": (lambda image, magnitude: _translate(image, magnitude, 0), 32.0, True),
    "translate y": (lambda image, magnitude: _translate(image, 0, magnitude), 32.0, True),
    "rotate": (lambda image, magnitude: image.rotate(magnitude, _BILINEAR), 135.0, True),
    "brightness": (_make_enhance(ImageEnhance.Brightness), 0.99, True),
    "colour": (_make_enhance(ImageEnhance.Color), 0.99, True),
    "contrast": (_make_enhance(ImageEnhance.Contrast), 0.99, True),
    "sharpness": (_make_enhance(ImageEnhance.Sharpness), 0.99, True),
    "posterize": (lambda image, magnitude: ImageOps.posterize(image, 8 - round(magnitude)), 6.0, False),
    "solarize": (lambda image, magnitude: ImageOps.solarize(image, math.ceil(255 - magnitude)), 255.0, False),
    "autocontrast": (lambda image, magnitude: ImageOps.autocontrast(image), 0.0, False),
    "equalize": (lambda image, magnitude: ImageOps.equalize(image), 0.0, False),
}
_TRANSFORM_NAMES = tuple(TRANSFORMS)
_N_STRENGTHS = 31


def apply_transform(pixels: Pixels, name: str, magnitude: float) -> Pixels:
    """By one of `CHANGES`."""
    return convert_to_array(TRANSFORMS[name][0](_build_image(pixels), magnitude))


def trivial_augment(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """By one change that is drawn, at one of 31 strengths (arXiv 2103.10158, algorithm 1)."""
    name, strength = _TRANSFORM_NAMES[rng.integers(len(_TRANSFORM_NAMES))], rng.integers(_N_STRENGTHS)
    _, max_magnitude, is_signed = TRANSFORMS[name]
    sign = -1 if is_signed and rng.random() < 0.5 else 1
    return apply_transform(pixels, name, sign * max_magnitude * float(strength) / (_N_STRENGTHS - 1))


def color_jitter(pixels: Pixels, limits: Sequence[tuple[str, float]], rng: np.random.Generator) -> Pixels:
    """By each (change, how much at most), more or less of it, in an order that is drawn."""
    for i in rng.permutation(len(limits)):
        name, max_magnitude = limits[i]
        pixels = apply_transform(pixels, name, rng.uniform(-max_magnitude, max_magnitude))
    return pixels


def random_erasing(pixels: Pixels, probability: float, fill: Sequence[int], rng: np.random.Generator) -> Pixels:
    """Perhaps with a box painted over: 2 to 33 % of the picture, its sides at 0.3 to 3.3 (arXiv 1708.04896)."""
    if rng.random() >= probability:
        return pixels
    height, width, _ = pixels.shape
    area, ratio = rng.uniform(0.02, 1 / 3) * height * width, math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    box_height, box_width = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
    top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
    result = pixels.copy()
    result[top : top + box_height, left : left + box_width] = fill
    return result


def _build_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
