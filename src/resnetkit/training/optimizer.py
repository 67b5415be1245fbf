"""The update of the weights: parameter groups, frozen layers, learning rate, gradients over all processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import ProcessGroup
from resnetkit.training.mixup import count_correct
from resnetkit.training.recipe import SGD, FineTune, Recipe
from resnetkit.training.sync_batch_norm import SyncBatchNorm2d


def count_head_epochs(recipe: Recipe) -> int:
    """Return for how many epochs the head trains alone; all of them if the backbone never trains."""
    if not isinstance(recipe.start, FineTune):
        return 0
    return recipe.start.head_epochs if recipe.start.backbone_lr_scale else recipe.epochs


def set_trainable(model: NetworkModule, recipe: Recipe, epoch: int) -> None:
    """Set which layers train in an epoch, and which norms update their statistics.

    A norm that keeps its statistics is in evaluation mode.

    Args:
        model: The network.
        recipe: The recipe; ``start`` says how long the head trains alone.
        epoch: The epoch, from 1.
    """
    model.train()
    start = recipe.start
    if not isinstance(start, FineTune):
        return
    head_only = epoch <= count_head_epochs(recipe)
    for name, child in model.named_children():
        child.requires_grad_(name == "head" or not head_only)
        child.train(name == "head" or not head_only)
    if start.norm_stats == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def build_optimizer(model: NetworkModule, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer, without weight decay for norms and biases.

    Args:
        model: The network.
        recipe: The recipe with the optimizer's settings.

    Returns:
        The optimizer. A group's ``lr_scale`` is its share of the learning rate.
    """
    config, start = recipe.optimizer, recipe.start
    groups: list[dict[str, Any]] = []
    for is_head in (False, True):
        lr_scale = start.backbone_lr_scale if isinstance(start, FineTune) and not is_head else 1.0
        parameters = [p for path, p in model.named_parameters() if path.startswith("head.") == is_head]
        for has_decay, weight_decay in ((True, config.weight_decay), (False, 0.0)):
            params = [p for p in parameters if (p.ndim > 1) == has_decay]
            groups.append({"params": params, "weight_decay": weight_decay, "lr_scale": lr_scale})
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group.

    Args:
        optimizer: An optimizer from `build_optimizer`.
        lr: The learning rate of the head.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def copy_tensors(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    """Copy tensors in place.

    Args:
        source: The tensors to read.
        target: The tensors to overwrite, one per tensor of ``source``.
    """
    with torch.no_grad():
        for source_tensor, target_tensor in zip(source, target, strict=True):
            target_tensor.copy_(source_tensor)


# ------------------------------------------------------------------------------------------------------- gradients


@dataclass(frozen=True)
class StepResult:
    """The result of a step over all processes; ``loss`` is the mean over the images."""

    n_images: int
    n_correct: float
    loss: float


def count_micro_batch(outputs: Tensor, targets: Tensor, loss_sum: Tensor) -> Tensor:
    """Count images, correct predictions and loss of a micro-batch as a tensor (3) on its device.

    Args:
        outputs: The logits (N, classes).
        targets: The labels (N) or the targets (N, classes).
        loss_sum: The loss, summed over the images.
    """
    loss = loss_sum.detach().float()
    return torch.stack([loss.new_tensor(len(targets)), count_correct(outputs, targets).float(), loss])


def reduce_step(model: nn.Module, totals: Tensor, step_size: int, dist: ProcessGroup) -> StepResult:
    """Make the gradient in ``model`` that of the mean loss over the images of all processes.

    Losses were divided by the step's size, so that a process with more images has more weight. If some images were
    unreadable, the gradient is rescaled to their number.

    Args:
        model: The network with its gradients.
        totals: The images, correct predictions and loss of this process, summed over its micro-batches.
        step_size: The images of the step, unreadable ones included.
        dist: The processes of the run.
    """
    if dist.world_size > 1:
        _all_reduce(model, totals, dist)
    n_images, n_correct, loss_sum = totals.tolist()
    if n_images and n_images != step_size:
        for gradient in _list_gradients(model):
            gradient.mul_(step_size / n_images)
    return StepResult(int(n_images), n_correct, loss_sum / n_images if n_images else math.nan)


def _all_reduce(model: nn.Module, counts: Tensor, dist: ProcessGroup) -> None:
    """Sum gradients and counts; average the statistics of norms, weighted by the images of each process."""
    statistics, n_images = list(_iter_norm_statistics(model)), counts[0].clone()
    with torch.no_grad():
        for buffer in statistics:
            buffer.mul_(n_images)
        dist.all_reduce_sum([*_list_gradients(model), *statistics, counts])
        for buffer in statistics:
            buffer.div_(counts[0].clamp(min=1))


def _list_gradients(model: nn.Module) -> list[Tensor]:
    """List the gradients of everything that trains; zeros if this process had no image."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in trainable if parameter.grad is not None]


def _iter_norm_statistics(model: nn.Module) -> Iterator[Tensor]:
    """Iterate over norm statistics that each process updates by itself; synchronized norms are equal."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.training and not isinstance(norm, SyncBatchNorm2d):
            yield from (buffer for buffer in norm.buffers() if buffer.is_floating_point())


def compute_gradient_norm(model: NetworkModule) -> float:
    """Compute the norm of the whole gradient."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))
