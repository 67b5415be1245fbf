"""The mode of a network, put back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from resnetkit.network.layers import Network


@contextlib.contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Evaluation for as long as the body runs; afterwards each module is in the mode in which it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
