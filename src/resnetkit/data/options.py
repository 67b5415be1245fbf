"""Options about how a dataset is read, the same for ``train``, ``check`` and ``evaluate``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How a dataset is read.

    Attributes:
        merge_classes: Whether names that mean one class, such as ``cat`` and ``Cat``, are merged.
        image_column: The column of a table that holds the image or its path; "" for the usual names.
        label_column: The column that holds the class.
        split_column: The column that holds the split.
    """

    merge_classes: bool = False
    image_column: str = ""
    label_column: str = ""
    split_column: str = ""

    def to_args(self) -> list[str]:
        """Return these options as arguments of a command; defaults are omitted."""
        values = {f"--{field.name.replace('_', '-')}": getattr(self, field.name) for field in fields(self)}
        return [
            text for name, value in values.items() if value for text in ([name] if value is True else [name, value])
        ]


DEFAULT_DATA_OPTIONS = DataOptions()
