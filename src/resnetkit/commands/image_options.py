"""Options about decoding images.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.images.memory import set_max_memory


@dataclass(frozen=True)
class ImageOptions:
    """How images are decoded."""

    max_memory: Annotated[
        str, Argument("SIZE", default_text="1GB, or a quarter of the free memory if that is less")
    ] = ""
    """The memory for decoding images in all threads together, such as 500MB. A larger image is decoded alone."""

    def apply(self) -> None:
        """Set the options for this process."""
        set_max_memory(self.max_memory)


DEFAULT_IMAGE_OPTIONS = ImageOptions()
