"""The average of a model over its steps: what is measured, kept and saved where a recipe says so."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from resnetkit.network.layers import Network
from resnetkit.training.recipe import EMA, Average

SLOT = "ema"  # of a checkpoint's training tensors


class Shown:
    """The model that is measured and kept: the one that learns, or an average of it beside it.

    Norms' statistics are averaged as weights are; the count of their batches is copied.
    """

    def __init__(self, learning: Network, how: Average) -> None:
        self.learning, self.how = learning, how
        self.model = copy.deepcopy(learning).requires_grad_(False) if isinstance(how, EMA) else learning

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After a sound step, the ``steps``-th of the run."""
        if not isinstance(self.how, EMA) or steps % self.how.every:
            return
        done = steps // self.how.every
        decay = min(self.how.decay, (1 + done) / (10 + done))
        now = self.learning.state_dict()
        for path, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(now[path], 1 - decay)
            else:
                average.copy_(now[path])

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, which has the model that learns already."""
        return {} if self.model is self.learning else {f"{SLOT}/{k}": v for k, v in self.model.state_dict().items()}

    def restore(self, stored: dict[str, Tensor]) -> None:
        """The same put back; a run that had none before begins one with the model as it is."""
        if self.model is not self.learning:
            found = {key.removeprefix(f"{SLOT}/"): value for key, value in stored.items() if key.startswith(f"{SLOT}/")}
            self.model.load_state_dict(found or self.learning.state_dict())
