"""The type of a function that hears of progress.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int], None]
