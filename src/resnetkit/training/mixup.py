"""Batches mixed in pairs, and their labels with them. Inputs are N C H W, labels N, targets N K (classes)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.runtime.rng import drawn_for
from resnetkit.training.recipe import CutMix, Mix, MixUp, MixUpOrCutMix, NoMix


def mixed(inputs: Tensor, labels: Tensor, mix: Mix, classes: int, *seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and what should be answered: the labels as they are, or a share for each class.

    Which is mixed with which, and how much, depends on ``seed`` alone: seed of the run, epoch, step, rank.
    """
    if isinstance(mix, NoMix):
        return inputs, labels
    draw = drawn_for("mix", *seed)
    alpha, cut = _chosen(mix, draw)
    share, partner = draw.beta(alpha, alpha), torch.from_numpy(draw.permutation(len(labels))).to(labels.device)
    others = inputs[partner]
    inputs, share = _cut(inputs, others, share, draw) if cut else (inputs * share + others * (1 - share), share)
    single = F.one_hot(labels, classes).float()
    return inputs, single * share + single[partner] * (1 - share)


def _chosen(mix: MixUp | CutMix | MixUpOrCutMix, draw: np.random.Generator) -> tuple[float, bool]:
    """(alpha, whether a box is cut)."""
    if isinstance(mix, MixUpOrCutMix):
        cut = draw.random() < mix.cut_share
        return (mix.cut_mix if cut else mix.mix_up), cut
    return mix.alpha, isinstance(mix, CutMix)


def _cut(inputs: Tensor, others: Tensor, share: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """The same box of every other picture, cut off at the edge, and what is left then (section 3.1 of the paper)."""
    height, width = inputs.shape[2:]
    half = 0.5 * (1 - share) ** 0.5
    row, column = draw.integers(height), draw.integers(width)
    rows = slice(max(0, int(row - half * height)), min(height, int(row + half * height)))
    columns = slice(max(0, int(column - half * width)), min(width, int(column + half * width)))
    inputs = inputs.clone()
    inputs[:, :, rows, columns] = others[:, :, rows, columns]
    return inputs, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def agreement(answers: Tensor, targets: Tensor) -> Tensor:
    """How many answers are right, where a picture has a share of two classes the share that was named."""
    best = answers.argmax(1)
    right = targets == best if targets.ndim == 1 else targets.gather(1, best[:, None])
    return right.sum()
