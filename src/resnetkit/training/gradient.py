"""The gradient of a step: over micro-batches, and over processes, as if all pictures had been one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnetkit.runtime.distributed import ProcessGroup
from resnetkit.training.sync_batch_norm import SyncBatchNorm2d


@dataclass(frozen=True)
class StepResult:
    """What a step came to, over all processes; ``loss`` is the mean of a picture."""

    n_images: int
    n_correct: float
    loss: float


def accumulate_gradients(
    model: nn.Module,
    micro_batches: Iterator[tuple[Tensor, Tensor]],
    forward_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    global_batch_size: int,
    dist: ProcessGroup,
) -> StepResult:
    """The gradient of the mean loss, left in ``model``. ``ask`` gives (summed loss, right answers) of a part.

    Losses are divided by the ``window``, the pictures of the step in all processes, so that whose share is larger
    counts for more; where some of them could not be read, what was added up is put right by their number.
    """
    n_images, totals = 0, torch.zeros(2, device=next(model.parameters()).device)
    for inputs, labels in micro_batches:
        loss, n_correct = forward_loss(inputs, labels)
        (loss / global_batch_size).backward()  # type: ignore[no-untyped-call]
        n_images += len(labels)
        totals += torch.stack([n_correct.float(), loss.detach().float()])
    counts = torch.cat([totals.new_tensor([n_images]), totals])
    if dist.world_size > 1:
        _all_reduce(model, counts, dist)
    total_images, n_correct, loss = counts.tolist()
    if total_images and total_images != global_batch_size:
        for gradient in _list_gradients(model):
            gradient.mul_(global_batch_size / total_images)
    return StepResult(int(total_images), n_correct, loss / total_images if total_images else math.nan)


def _all_reduce(model: nn.Module, counts: Tensor, dist: ProcessGroup) -> None:
    """Gradients and counts added, and the statistics of norms averaged, each process weighing as it has pictures."""
    statistics, n_images = list(_iter_norm_statistics(model)), counts[0].clone()
    with torch.no_grad():
        for buffer in statistics:
            buffer.mul_(n_images)
        dist.all_reduce_sum([*_list_gradients(model), *statistics, counts])
        for buffer in statistics:
            buffer.div_(counts[0].clamp(min=1))


def _list_gradients(model: nn.Module) -> list[Tensor]:
    """Of everything that learns; zeros where a process had no picture."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in trainable if parameter.grad is not None]


def _iter_norm_statistics(model: nn.Module) -> Iterator[Tensor]:
    """What norms have followed in this step, each process alone; synchronised ones have followed all."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.training and not isinstance(norm, SyncBatchNorm2d):
            yield from (buffer for buffer in norm.buffers() if buffer.is_floating_point())
