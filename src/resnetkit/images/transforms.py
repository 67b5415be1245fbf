"""Changes of a picture's shape and colours, each as strong as it is told. Pixels are H W C, 8 bits.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from resnetkit.images.prepare import Pixels, as_array

_SMOOTH = Image.Resampling.BILINEAR


def _sheared(image: Image.Image, across: float, down: float) -> Image.Image:
    """Each row moved left by ``across`` times its distance from the top, each column up likewise; black comes in."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, across, 0, down, 1, 0), _SMOOTH)


def _moved(image: Image.Image, right: float, down: float) -> Image.Image:
    """By whole pixels."""
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -int(right), 0, 1, -int(down)), _SMOOTH)


def _enhanced(how: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, by: how(image).enhance(1 + by)


# name -> (what it does, its strongest magnitude, whether the sign of it is drawn): arXiv 2103.10158, table 1, wide
CHANGES: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float, bool]] = {
    "identity": (lambda image, by: image, 0.0, False),
    "shear x": (lambda image, by: _sheared(image, by, 0), 0.99, True),
    "shear y": (lambda image, by: _sheared(image, 0, by), 0.99, True),
    "translate x": (lambda image, by: _moved(image, by, 0), 32.0, True),
    "translate y": (lambda image, by: _moved(image, 0, by), 32.0, True),
    "rotate": (lambda image, by: image.rotate(by, _SMOOTH), 135.0, True),
    "brightness": (_enhanced(ImageEnhance.Brightness), 0.99, True),
    "colour": (_enhanced(ImageEnhance.Color), 0.99, True),
    "contrast": (_enhanced(ImageEnhance.Contrast), 0.99, True),
    "sharpness": (_enhanced(ImageEnhance.Sharpness), 0.99, True),
    "posterize": (lambda image, by: ImageOps.posterize(image, 8 - round(by)), 6.0, False),
    "solarize": (lambda image, by: ImageOps.solarize(image, math.ceil(255 - by)), 255.0, False),
    "autocontrast": (lambda image, by: ImageOps.autocontrast(image), 0.0, False),
    "equalize": (lambda image, by: ImageOps.equalize(image), 0.0, False),
}
_NAMES = tuple(CHANGES)
_STRENGTHS = 31


def changed(pixels: Pixels, name: str, magnitude: float) -> Pixels:
    """By one of `CHANGES`."""
    return as_array(CHANGES[name][0](_image(pixels), magnitude))


def trivially_augmented(pixels: Pixels, draw: np.random.Generator) -> Pixels:
    """By one change that is drawn, at one of 31 strengths (arXiv 2103.10158, algorithm 1)."""
    name, strength = _NAMES[draw.integers(len(_NAMES))], draw.integers(_STRENGTHS)
    _, strongest, signed = CHANGES[name]
    sign = -1 if signed and draw.random() < 0.5 else 1
    return changed(pixels, name, sign * strongest * float(strength) / (_STRENGTHS - 1))


def jittered(pixels: Pixels, by: Sequence[tuple[str, float]], draw: np.random.Generator) -> Pixels:
    """By each (change, how much at most), more or less of it, in an order that is drawn."""
    for i in draw.permutation(len(by)):
        name, most = by[i]
        pixels = changed(pixels, name, draw.uniform(-most, most))
    return pixels


def erased(pixels: Pixels, share: float, colour: Sequence[int], draw: np.random.Generator) -> Pixels:
    """Perhaps with a box painted over: 2 to 33 % of the picture, its sides at 0.3 to 3.3 (arXiv 1708.04896)."""
    if draw.random() >= share:
        return pixels
    height, width, _ = pixels.shape
    area, ratio = draw.uniform(0.02, 1 / 3) * height * width, math.exp(draw.uniform(math.log(0.3), math.log(3.3)))
    rows, columns = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
    top, left = draw.integers(height - rows + 1), draw.integers(width - columns + 1)
    painted = pixels.copy()
    painted[top : top + rows, left : left + columns] = colour
    return painted


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
