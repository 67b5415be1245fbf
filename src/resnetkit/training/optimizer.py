"""What learns in an epoch, how fast each part does, and what is asked of a gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.network.layers import Network
from resnetkit.training.recipe import SGD, FineTune, Recipe


def alone_for(recipe: Recipe) -> int:
    """For how many epochs the head learns alone; all of them where the body never learns."""
    if not isinstance(recipe.start, FineTune):
        return 0
    return recipe.start.head_epochs if recipe.start.body_rate else recipe.epochs


def learning(model: Network, recipe: Recipe, epoch: int) -> None:
    """Set what learns in an epoch: all, or when fine-tuning first the head alone, and norms as the recipe says.

    A norm that does not learn its statistics is in evaluation mode, where it uses those it came with.
    """
    model.train()
    how = recipe.start
    if not isinstance(how, FineTune):
        return
    alone = epoch <= alone_for(recipe)
    for name, part in model.named_children():
        part.requires_grad_(name == "head" or not alone)
        part.train(name == "head" or not alone)
    if how.norms == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def copy_all(source: Iterable[Tensor], target: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for here, there in zip(source, target, strict=True):
            there.copy_(here)


def gradient_norm(model: Network) -> float:
    """Of the whole gradient."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def optimiser_for(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay on what multiplies (convolutions, classifier), none on norms and biases.

    ``share`` is what a group learns at of the rate.
    """
    how, body = recipe.optimiser, recipe.start.body_rate if isinstance(recipe.start, FineTune) else 1.0
    groups: list[dict[str, Any]] = []
    for share, in_head in ((body, False), (1.0, True)):
        chosen = [p for path, p in model.named_parameters() if path.startswith("head.") == in_head]
        groups.append({"params": [p for p in chosen if p.ndim > 1], "weight_decay": how.weight_decay, "share": share})
        groups.append({"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0, "share": share})
    if isinstance(how, SGD):
        return torch.optim.SGD(groups, lr=how.lr, momentum=how.momentum, nesterov=how.nesterov)
    return torch.optim.AdamW(groups, lr=how.lr, betas=(how.beta1, how.beta2))
