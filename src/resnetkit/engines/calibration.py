"""The pictures on which int8 measures the ranges of maps.

This module imports no torch.
"""

from __future__ import annotations

from resnetkit.errors import UsageError
from resnetkit.images.prepare import Pixels

N_CALIBRATION_IMAGES = 300  # what nncf takes by default: more pictures move the ranges no further


def select_calibration_pixels(precision: str, pixels: Pixels | None) -> Pixels | None:
    """The first `MEASURED` for int8, None for other precisions; raises `UsageError` where there are none to measure."""
    if not precision.startswith("int8"):
        return None
    if pixels is None or not len(pixels):
        raise UsageError("int8 needs pictures to measure ranges", fix="--data DIR")
    return pixels[:N_CALIBRATION_IMAGES]
