"""The average of a model over its steps: what is measured, kept and saved where a recipe says so."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from resnetkit.network.layers import NetworkModule
from resnetkit.training.recipe import EMA, Averaging

EMA_SLOT = "ema"  # of a checkpoint's training tensors


class EvalModel:
    """The model that is measured and kept: the one that learns, or an average of it beside it.

    Norms' statistics are averaged as weights are; the count of their batches is copied.
    """

    def __init__(self, training_model: NetworkModule, config: Averaging) -> None:
        self.training_model, self.config = training_model, config
        self.model = copy.deepcopy(training_model).requires_grad_(False) if isinstance(config, EMA) else training_model

    @torch.no_grad()
    def update(self, global_step: int) -> None:
        """After a sound step, the ``steps``-th of the run."""
        if not isinstance(self.config, EMA) or global_step % self.config.update_every:
            return
        n_updates = global_step // self.config.update_every
        decay = min(self.config.decay, (1 + n_updates) / (10 + n_updates))
        weights = self.training_model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(weights[name], 1 - decay)
            else:
                average.copy_(weights[name])

    def get_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, which has the model that learns already."""
        return (
            {}
            if self.model is self.training_model
            else {f"{EMA_SLOT}/{k}": v for k, v in self.model.state_dict().items()}
        )

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The same put back; a run that had none before begins one with the model as it is."""
        if self.model is not self.training_model:
            averages = {
                key.removeprefix(f"{EMA_SLOT}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{EMA_SLOT}/")
            }
            self.model.load_state_dict(averages or self.training_model.state_dict())
