"""Options about unreadable images.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument


@dataclass(frozen=True)
class BadFilesOptions:
    """How a command treats unreadable images."""

    bad_files: Annotated[str, Argument("skip|error")] = ""
    """How to treat unreadable images: skip (list and count them) or error. By default train skips and evaluate does
    not."""
    max_bad: Annotated[str, Argument("FRACTION")] = ""
    """The largest fraction of images that may be skipped, such as 10% or 0.1; 1% by default."""


DEFAULT_BAD_FILES = BadFilesOptions()
