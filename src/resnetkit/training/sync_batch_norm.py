"""Batch norm over the pictures of all processes. torch's own refuses the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Add = Callable[[list[Tensor]], None]


class SyncedNorm(nn.BatchNorm2d):
    """As `nn.BatchNorm2d`, with the statistics of all processes; tensors and their names are the same."""

    add: Add

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, (self.eps, self.add))
        self._follow(mean, variance * (count / (count - 1).clamp(min=1)))
        return y  # type: ignore[no-any-return]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None  # noqa: S101  for the type checker
        assert self.running_var is not None  # noqa: S101
        assert self.num_batches_tracked is not None  # noqa: S101
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum or 0.0)
        self.running_var.lerp_(variance, self.momentum or 0.0)


class _Normalise(torch.autograd.Function):
    """Mean, then variance around it, each added over all: two passes lose nothing to cancellation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, how: tuple[float, Add]) -> tuple[Tensor, ...]:
        eps, add = how
        wide, over = x.float(), (0, 2, 3)
        total, count = wide.sum(over), wide.new_tensor([x.numel() / x.shape[1]])
        add([total, count])
        mean = total / count.clamp(min=1)
        centred = wide - mean[:, None, None]
        squares = centred.square().sum(over)
        add([squares])
        variance = squares / count.clamp(min=1)
        scale = (variance + eps).rsqrt()
        unit = centred * scale[:, None, None]
        ctx.save_for_backward(unit, weight, scale, count)
        ctx.add = add
        y = unit * weight[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """Ioffe and Szegedy (arXiv 1502.03167), section 3, with the two means taken over all processes."""
        unit, weight, scale, count = ctx.saved_tensors
        above, over = given[0].float(), (0, 2, 3)
        for_bias, for_weight = above.sum(over), (above * unit).sum(over)
        means = [for_bias.clone(), for_weight.clone()]
        ctx.add(means)
        flat, along = (one[:, None, None] / count.clamp(min=1) for one in means)
        for_x = (above - flat - unit * along) * (weight * scale)[:, None, None]
        return for_x.to(given[0].dtype), for_weight, for_bias, None


def synchronise(model: nn.Module, add: Add) -> None:
    """Every batch norm of a network becomes one over all processes, in its place and with its own tensors."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, _synced(norm, add))


def _synced(norm: nn.BatchNorm2d, add: Add) -> SyncedNorm:
    made = SyncedNorm(norm.num_features, norm.eps, norm.momentum, device="meta")
    made.add = add
    made.weight, made.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(made, name, buffer)
    return made.train(norm.training)


def alone(model: nn.Module) -> None:
    """Synchronised norms of a model that is only tried out count in their own process."""
    for norm in model.modules():
        if isinstance(norm, SyncedNorm):
            norm.add = _nothing


def _nothing(tensors: list[Tensor]) -> None:
    """What one process adds to others that are not there."""
