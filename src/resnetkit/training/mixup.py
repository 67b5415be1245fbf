"""MixUp and CutMix: mix the images of a batch in pairs, and their labels with them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.runtime.rng import make_rng
from resnetkit.training.recipe import CutMix, Mix, MixUp, MixUpOrCutMix, NoMix


def mix_batch(inputs: Tensor, labels: Tensor, mix: Mix, n_classes: int, *seed: int) -> tuple[Tensor, Tensor]:
    """Mix the images of a batch in pairs; the pairs and the weights depend on the seed alone.

    Args:
        inputs: The inputs (N, C, H, W).
        labels: The classes (N).
        mix: The kind of mixing.
        n_classes: The number of classes.
        *seed: The seed: seed of the run, epoch, step, rank.

    Returns:
        The inputs, and the labels (N) or the targets (N, classes).
    """
    if isinstance(mix, NoMix):
        return inputs, labels
    rng = make_rng("mix", *seed)
    alpha, is_cutmix = _choose_mix(mix, rng)
    lam, permutation = rng.beta(alpha, alpha), torch.from_numpy(rng.permutation(len(labels))).to(labels.device)
    partner_inputs = inputs[permutation]
    if is_cutmix:
        inputs, lam = _paste_box(inputs, partner_inputs, lam, rng)
    else:
        inputs = inputs * lam + partner_inputs * (1 - lam)
    one_hot = F.one_hot(labels, n_classes).float()
    return inputs, one_hot * lam + one_hot[permutation] * (1 - lam)


def _choose_mix(mix: MixUp | CutMix | MixUpOrCutMix, rng: np.random.Generator) -> tuple[float, bool]:
    """Choose alpha, and whether to paste a box."""
    if isinstance(mix, MixUpOrCutMix):
        is_cutmix = rng.random() < mix.cutmix_prob
        return (mix.cutmix_alpha if is_cutmix else mix.mixup_alpha), is_cutmix
    return mix.alpha, isinstance(mix, CutMix)


def _paste_box(inputs: Tensor, partner_inputs: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of every partner, clipped at the edge; return the area left (paper, section 3.1)."""
    height, width = inputs.shape[2:]
    half = 0.5 * (1 - lam) ** 0.5
    row, column = rng.integers(height), rng.integers(width)
    rows = slice(max(0, int(row - half * height)), min(height, int(row + half * height)))
    columns = slice(max(0, int(column - half * width)), min(width, int(column + half * width)))
    inputs = inputs.clone()
    inputs[:, :, rows, columns] = partner_inputs[:, :, rows, columns]
    return inputs, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def count_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Count the correct predictions. A mixed image counts by the weight of the predicted class.

    Args:
        outputs: The logits (N, classes).
        targets: The labels (N) or the targets (N, classes).
    """
    predictions = outputs.argmax(1)
    correct = targets == predictions if targets.ndim == 1 else targets.gather(1, predictions[:, None])
    return correct.sum()
