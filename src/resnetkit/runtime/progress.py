"""The type of a progress callback.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int], None]  # called with (items done, items in all)
