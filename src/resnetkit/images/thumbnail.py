"""Small pictures for pages.

This module imports no torch.
"""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image


def encode_thumbnail(image: Image.Image, side: int = 112) -> str:
    """At most ``side`` pixels wide and high, as a JPEG in base64; small pictures are enlarged without smoothing."""
    small = image.convert("RGB")
    factor = side // max(small.size)
    if factor > 1:
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
