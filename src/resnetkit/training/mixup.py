"""Batches mixed in pairs, and their labels with them. Inputs are N C H W, labels N, targets N K (classes)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.runtime.rng import make_rng
from resnetkit.training.recipe import CutMix, Mix, MixUp, MixUpOrCutMix, NoMix


def mix_batch(inputs: Tensor, labels: Tensor, mix: Mix, n_classes: int, *seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and what should be answered: the labels as they are, or a share for each class.

    Which is mixed with which, and how much, depends on ``seed`` alone: seed of the run, epoch, step, rank.
    """
    if isinstance(mix, NoMix):
        return inputs, labels
    rng = make_rng("mix", *seed)
    alpha, is_cutmix = _choose_mix(mix, rng)
    lam, permutation = rng.beta(alpha, alpha), torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
    partner_inputs = inputs[permutation]
    inputs, lam = (
        _paste_box(inputs, partner_inputs, lam, rng) if is_cutmix else (inputs * lam + partner_inputs * (1 - lam), lam)
    )
    one_hot = F.one_hot(labels, n_classes).float()
    return inputs, one_hot * lam + one_hot[permutation] * (1 - lam)


def _choose_mix(mix: MixUp | CutMix | MixUpOrCutMix, rng: np.random.Generator) -> tuple[float, bool]:
    """(alpha, whether a box is cut)."""
    if isinstance(mix, MixUpOrCutMix):
        is_cutmix = rng.random() < mix.cutmix_prob
        return (mix.cutmix_alpha if is_cutmix else mix.mixup_alpha), is_cutmix
    return mix.alpha, isinstance(mix, CutMix)


def _paste_box(inputs: Tensor, partner_inputs: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The same box of every other picture, cut off at the edge, and what is left then (section 3.1 of the paper)."""
    height, width = inputs.shape[2:]
    half = 0.5 * (1 - lam) ** 0.5
    row, column = rng.integers(height), rng.integers(width)
    rows = slice(max(0, int(row - half * height)), min(height, int(row + half * height)))
    columns = slice(max(0, int(column - half * width)), min(width, int(column + half * width)))
    inputs = inputs.clone()
    inputs[:, :, rows, columns] = partner_inputs[:, :, rows, columns]
    return inputs, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many answers are right, where a picture has a share of two classes the share that was named."""
    predictions = outputs.argmax(1)
    correct = targets == predictions if targets.ndim == 1 else targets.gather(1, predictions[:, None])
    return correct.sum()
