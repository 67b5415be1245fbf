"""The gradient of a step: over micro-batches, and over processes, as if all pictures had been one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnetkit.runtime.distributed import Ranks
from resnetkit.training.sync_batch_norm import SyncedNorm


@dataclass(frozen=True)
class Learnt:
    """What a step came to, over all processes; ``loss`` is the mean of a picture."""

    seen: int
    right: float
    loss: float


def add_up(
    model: nn.Module,
    parts: Iterator[tuple[Tensor, Tensor]],
    ask: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    window: int,
    ranks: Ranks,
) -> Learnt:
    """The gradient of the mean loss, left in ``model``. ``ask`` gives (summed loss, right answers) of a part.

    Losses are divided by the ``window``, the pictures of the step in all processes, so that whose share is larger
    counts for more; where some of them could not be read, what was added up is put right by their number.
    """
    seen, sums = 0, torch.zeros(2, device=next(model.parameters()).device)
    for pixels, labels in parts:
        loss, right = ask(pixels, labels)
        (loss / window).backward()  # type: ignore[no-untyped-call]
        seen += len(labels)
        sums += torch.stack([right.float(), loss.detach().float()])
    counts = torch.cat([sums.new_tensor([seen]), sums])
    if ranks.world > 1:
        _over_all(model, counts, ranks)
    all_seen, right, loss = counts.tolist()
    if all_seen and all_seen != window:
        for gradient in _gradients(model):
            gradient.mul_(window / all_seen)
    return Learnt(int(all_seen), right, loss / all_seen if all_seen else math.nan)


def _over_all(model: nn.Module, counts: Tensor, ranks: Ranks) -> None:
    """Gradients and counts added, and the statistics of norms averaged, each process weighing as it has pictures."""
    statistics, seen = list(_statistics(model)), counts[0].clone()
    with torch.no_grad():
        for one in statistics:
            one.mul_(seen)
        ranks.add([*_gradients(model), *statistics, counts])
        for one in statistics:
            one.div_(counts[0].clamp(min=1))


def _gradients(model: nn.Module) -> list[Tensor]:
    """Of everything that learns; zeros where a process had no picture."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in learning if parameter.grad is not None]


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    """What norms have followed in this step, each process alone; synchronised ones have followed all."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.training and not isinstance(norm, SyncedNorm):
            yield from (buffer for buffer in norm.buffers() if buffer.is_floating_point())
