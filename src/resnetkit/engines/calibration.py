"""Images for int8 calibration, which measures the value range of every feature map.

This module imports no torch.
"""

from __future__ import annotations

from resnetkit.errors import UsageError
from resnetkit.images.prepare import Pixels

N_CALIBRATION_IMAGES = 300  # nncf's default; more images do not change the ranges
NO_CALIBRATION_IMAGES = "int8 needs images for calibration"
ADD_CALIBRATION_IMAGES = "--data DIR"


def select_calibration_pixels(precision: str, pixels: Pixels | None) -> Pixels | None:
    """Return the first `N_CALIBRATION_IMAGES` images for int8, and None for other precisions.

    Args:
        precision: the precision to export.
        pixels: the available images (N, H, W, C), if any.

    Raises:
        UsageError: int8 without any image.
    """
    if not precision.startswith("int8"):
        return None
    if pixels is None or not len(pixels):
        raise UsageError(NO_CALIBRATION_IMAGES, fix=ADD_CALIBRATION_IMAGES)
    return pixels[:N_CALIBRATION_IMAGES]
