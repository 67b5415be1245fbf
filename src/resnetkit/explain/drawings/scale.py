"""Square-root scales, colors and legend texts that the three drawings of a network share.

This module imports no torch.
"""

from __future__ import annotations

import math

from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Plan
from resnetkit.architecture.summary import describe_shortcut
from resnetkit.explain.describe import list_shortcuts

TEXT_COLOR, MUTED_COLOR = "#1c2733", "#5d6b7a"
IDENTITY_COLOR, PROJECTION_COLOR, PADDED_COLOR = "#8b98a5", "#d9480f", "#1864ab"
SHORTCUT_LABELS = {  # legend texts; the keys are the values of `describe_shortcut`
    "identity": "shortcut: the input itself",
    "projection": "shortcut with a 1x1 convolution",
    "pooled projection": "shortcut with an average pool and a 1x1 convolution",
    "padded identity": "shortcut with zeros for the added channels",
    "pooled identity": "shortcut with a max pool",
}


def list_shortcut_kinds(*plans: Plan) -> list[str]:
    """Return the kinds of shortcuts that the networks contain, in the order of the legend."""
    kinds = {describe_shortcut(shortcut) for plan in plans for shortcut in list_shortcuts(plan)}
    return [kind for kind in SHORTCUT_LABELS if kind in kinds]


def get_longer_side(shape: Shape) -> int:
    """Return the longer side of a map in pixels; a vector counts as one pixel."""
    return max(shape[1:], default=1)


def scale_height(side: int, largest_side: int, max_height: float, min_height: float) -> float:
    """Return the height of a box in pixels, proportional to the square root of the side of its map.

    Args:
        side: longer side of the map in pixels.
        largest_side: longer side of the map that is drawn at full height.
        max_height: height of that map in the drawing.
        min_height: smallest height of a box in the drawing.
    """
    return max(min_height, max_height * math.sqrt(side / largest_side))


def compute_width_units(shape: Shape, min_channels: int, vector_units: float) -> float:
    """Return the relative width of a box: the square root of its number of channels.

    Args:
        shape: output of the part.
        min_channels: maps with fewer channels are drawn as wide as this many.
        vector_units: width of a vector; its length does not count, or the classifier would be the widest box.
    """
    return math.sqrt(max(shape[0], min_channels)) if len(shape) == 3 else vector_units
