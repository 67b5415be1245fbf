"""Batch norm over the images of all processes. `torch.nn.SyncBatchNorm` does not run on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

AllReduce = Callable[[list[Tensor]], None]


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all processes; tensors and their names are the same."""

    all_reduce: AllReduce

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _SyncNormFunction.apply(x, self.weight, self.bias, (self.eps, self.all_reduce))
        self._update_running_stats(mean, variance * (count / (count - 1).clamp(min=1)))
        return y  # type: ignore[no-any-return]

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor) -> None:
        running_mean, running_var, num_batches_tracked = self.buffers()
        num_batches_tracked.add_(1)
        running_mean.lerp_(mean, self.momentum or 0.0)
        running_var.lerp_(variance, self.momentum or 0.0)


class _SyncNormFunction(torch.autograd.Function):
    """Mean, then variance around it, each summed over all processes: two passes avoid cancellation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, options: tuple[float, AllReduce]
    ) -> tuple[Tensor, ...]:
        eps, all_reduce = options
        x32, dims = x.float(), (0, 2, 3)
        total, count = x32.sum(dims), x32.new_tensor([x.numel() / x.shape[1]])
        all_reduce([total, count])
        mean = total / count.clamp(min=1)
        centered = x32 - mean[:, None, None]
        square_sum = centered.square().sum(dims)
        all_reduce([square_sum])
        variance = square_sum / count.clamp(min=1)
        inv_std = (variance + eps).rsqrt()
        normalized = centered * inv_std[:, None, None]
        ctx.save_for_backward(normalized, weight, inv_std, count)
        ctx.all_reduce = all_reduce
        y = normalized * weight[:, None, None] + bias[:, None, None]
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of arXiv 1502.03167, section 3, with means over all processes."""
        normalized, weight, inv_std, count = ctx.saved_tensors
        grad_y, dims = grad_outputs[0].float(), (0, 2, 3)
        grad_bias, grad_weight = grad_y.sum(dims), (grad_y * normalized).sum(dims)
        sums = [grad_bias.clone(), grad_weight.clone()]
        ctx.all_reduce(sums)
        mean_grad, mean_product = (total[:, None, None] / count.clamp(min=1) for total in sums)
        grad_x = (grad_y - mean_grad - normalized * mean_product) * (weight * inv_std)[:, None, None]
        return grad_x.to(grad_outputs[0].dtype), grad_weight, grad_bias, None


def convert_sync_batchnorm(model: nn.Module, all_reduce: AllReduce) -> None:
    """Replace every batch norm of a network by a synchronized one with the same tensors.

    Args:
        model: The network, changed in place.
        all_reduce: A function that sums tensors over all processes, in place.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, _make_sync_norm(norm, all_reduce))


def _make_sync_norm(norm: nn.BatchNorm2d, all_reduce: AllReduce) -> SyncBatchNorm2d:
    sync_norm = SyncBatchNorm2d(norm.num_features, norm.eps, norm.momentum, device="meta")
    sync_norm.all_reduce = all_reduce
    sync_norm.weight, sync_norm.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(sync_norm, name, buffer)
    return sync_norm.train(norm.training)


def disable_sync(model: nn.Module) -> None:
    """Let synchronized norms use the images of their own process only, for a step that is only tried out."""
    for norm in model.modules():
        if isinstance(norm, SyncBatchNorm2d):
            norm.all_reduce = _skip_all_reduce


def _skip_all_reduce(tensors: list[Tensor]) -> None:
    """Leave the tensors as they are."""
