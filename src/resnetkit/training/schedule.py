"""Learning-rate schedules.

This module imports no torch.
"""

from __future__ import annotations

import math

from resnetkit.training.recipe import Cosine, MultiStep, Recipe, Schedule, Triangle


def compute_lr(recipe: Recipe, epoch: float) -> float:
    """Compute the learning rate of the head.

    Args:
        recipe: The recipe with the optimizer, the schedule and the number of epochs.
        epoch: The epochs trained so far; fractions count.
    """
    return recipe.optimizer.lr * compute_lr_factor(recipe.schedule, epoch, recipe.epochs)


def compute_lr_factor(schedule: Schedule, epoch: float, epochs: int) -> float:
    """Compute what the highest learning rate is multiplied by, 0 to 1.

    Args:
        schedule: The schedule.
        epoch: The epochs trained so far; fractions count.
        epochs: The epochs of the run.
    """
    match schedule:
        case Cosine(warmup):
            if epoch < warmup:
                return epoch / warmup
            progress = (epoch - warmup) / max(epochs - warmup, 1e-9)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        case Triangle(pct_start):
            progress = epoch / epochs
            return progress / pct_start if progress < pct_start else max(0.0, (1 - progress) / max(1 - pct_start, 1e-9))
        case MultiStep(milestones, gamma, warmup):
            warmup_factor = min(1.0, epoch / warmup if warmup else 1.0)
            return warmup_factor * gamma ** sum(epoch >= milestone for milestone in milestones)
