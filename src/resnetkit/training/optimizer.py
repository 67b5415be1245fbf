"""What learns in an epoch, how fast each part does, and what is asked of a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.network.layers import NetworkModule
from resnetkit.training.recipe import SGD, FineTune, Recipe


def count_head_epochs(recipe: Recipe) -> int:
    """For how many epochs the head learns alone; all of them where the body never learns."""
    if not isinstance(recipe.start, FineTune):
        return 0
    return recipe.start.head_epochs if recipe.start.backbone_lr_scale else recipe.epochs


def set_trainable(model: NetworkModule, recipe: Recipe, epoch: int) -> None:
    """Set what learns in an epoch: all, or when fine-tuning first the head alone, and norms as the recipe says.

    A norm that does not learn its statistics is in evaluation mode, where it uses those it came with.
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


def copy_tensors(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for source_tensor, target_tensor in zip(source, target, strict=True):
            target_tensor.copy_(source_tensor)


def compute_gradient_norm(model: NetworkModule) -> float:
    """Of the whole gradient."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def build_optimizer(model: NetworkModule, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on what multiplies (convolutions, classifier), none on norms and biases.

    ``share`` is what a group learns at of the rate.
    """
    config, backbone_scale = (
        recipe.optimizer,
        recipe.start.backbone_lr_scale if isinstance(recipe.start, FineTune) else 1.0,
    )
    groups: list[dict[str, Any]] = []
    for lr_scale, is_head in ((backbone_scale, False), (1.0, True)):
        parameters = [p for path, p in model.named_parameters() if path.startswith("head.") == is_head]
        groups.append(
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay, "share": lr_scale}
        )
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "share": lr_scale})
    if isinstance(config, SGD):
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))
