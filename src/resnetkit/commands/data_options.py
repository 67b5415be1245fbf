"""Options about how a dataset is read.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.data.options import DataOptions


@dataclass(frozen=True)
class DataReadingOptions:
    """How a command reads a dataset."""

    merge_classes: bool = False
    """Merge classes that differ only in how they are written, such as cat and Cat, or 1 and 1.0."""
    image_column: Annotated[str, Argument("NAME")] = ""
    """The column of a table that holds the image or its path; by default the one with a usual name."""
    label_column: Annotated[str, Argument("NAME")] = ""
    """The column of a table that holds the class."""
    split_column: Annotated[str, Argument("NAME")] = ""
    """The column of a table that holds train, val or test, or true for val as in is_valid."""

    def build(self) -> DataOptions:
        """Return the options as the readers take them."""
        return DataOptions(**asdict(self))


DEFAULT_DATA_READING = DataReadingOptions()
