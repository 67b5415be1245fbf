"""Exponential moving average of the weights: the model that is validated and kept if the recipe says so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from resnetkit.network.layers import NetworkModule
from resnetkit.training.recipe import EMA, Averaging

EMA_SLOT = "ema"  # the prefix of the average in a checkpoint


class EvalModel:
    """Model used for validation: the trained one, or its exponential moving average.

    Statistics of norms are averaged like weights; the number of batches that they have seen is copied.
    """

    def __init__(self, training_model: NetworkModule, config: Averaging) -> None:
        self.training_model, self.config, self._decay = training_model, config, 0.0
        self._average: AveragedModel | None = None
        if isinstance(config, EMA):
            self._average = AveragedModel(training_model, multi_avg_fn=self._update_tensors, use_buffers=True)
            self._average.requires_grad_(False)

    @property
    def model(self) -> NetworkModule:
        """The network to validate and to save."""
        module = self._average.module if self._average else self.training_model
        assert isinstance(module, NetworkModule)  # noqa: S101 - for mypy
        return module

    def update(self, global_step: int) -> None:
        """Update the average after a valid step, the ``global_step``-th of the run."""
        if not self._average or not isinstance(self.config, EMA) or global_step % self.config.update_every:
            return
        n_updates = global_step // self.config.update_every
        self._decay = min(self.config.decay, (1 + n_updates) / (10 + n_updates))
        self._average.n_averaged.fill_(n_updates)  # follows from the step, so that a checkpoint need not hold it
        self._average.update_parameters(self.training_model)

    def _update_tensors(self, averages: Sequence[Tensor], values: Sequence[Tensor], _n_averaged: Tensor | int) -> None:
        with torch.no_grad():
            for average, value in zip(averages, values, strict=True):
                if average.is_floating_point():
                    average.lerp_(value, 1 - self._decay)
                else:
                    average.copy_(value)

    def get_tensors(self) -> dict[str, Tensor]:
        """Return the average for a checkpoint; empty without one, as the checkpoint holds the trained model."""
        return {f"{EMA_SLOT}/{key}": value for key, value in self.model.state_dict().items()} if self._average else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the average from a checkpoint; without one there it starts from the trained model."""
        if self._average:
            prefix = f"{EMA_SLOT}/"
            averages = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            self.model.load_state_dict(averages or self.training_model.state_dict())
