"""The recipe: everything that decides how a network is trained, and its defaults.

``run.toml`` in a run folder holds a recipe. ``--config``, ``--set`` and the options of ``train`` edit it.
``RENAMED_KEYS`` maps keys in files of earlier versions to the keys of today.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from resnetkit.architecture.card import Preparation
from resnetkit.data.bad_files import BadFiles, Skip
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent. Weight decay acts on convolutions and the classifier, not on norms and biases."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay, on convolutions and the classifier."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.05


@dataclass(frozen=True, slots=True)
class Cosine:
    """Linear warm-up over ``warmup`` epochs, then cosine decay to zero."""

    warmup: float = 1.0


@dataclass(frozen=True, slots=True)
class Triangle:
    """Linear warm-up for the fraction ``pct_start`` of the run, then linear decay to zero."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"peak": "pct_start"}

    pct_start: float = 0.25


@dataclass(frozen=True, slots=True)
class MultiStep:
    """Linear warm-up over ``warmup`` epochs; each milestone (in epochs) multiplies the learning rate by ``gamma``."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"at": "milestones", "factor": "gamma"}

    milestones: tuple[float, ...]
    gamma: float = 0.1
    warmup: float = 0.0


@dataclass(frozen=True, slots=True)
class PadCrop:
    """Shift by up to ``padding`` pixels over black borders; if ``flip``, flip half of the images horizontally."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"pad": "padding"}

    padding: int = 4
    flip: bool = True


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Crop at least the fraction ``min_scale`` of the area, resize, and flip half of the images horizontally."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"area": "min_scale"}

    min_scale: float = 0.35


@dataclass(frozen=True, slots=True)
class NoAugment:
    """Use every image unchanged."""


@dataclass(frozen=True, slots=True)
class TrivialAugment:
    """Apply one of 14 operations at a random strength (arXiv 2103.10158, the wide space)."""


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Multiply brightness, contrast and saturation by 1 - x to 1 + x, in random order."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"colour": "saturation"}

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """Paint a box of 2% to 33% with the mean color, with probability ``p`` for each image (arXiv 1708.04896)."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"share": "p"}

    p: float = 0.1


@dataclass(frozen=True, slots=True)
class NoMix:
    """Do not mix images."""


@dataclass(frozen=True, slots=True)
class MixUp:
    """Interpolate two images and their labels by a weight from Beta(alpha, alpha) (arXiv 1710.09412)."""

    alpha: float = 0.2


@dataclass(frozen=True, slots=True)
class CutMix:
    """Paste a box of another image; its area comes from Beta(alpha, alpha) and weighs the label (arXiv 1905.04899)."""

    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class MixUpOrCutMix:
    """Apply CutMix with probability ``cutmix_prob`` to each batch, else MixUp."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "mix_up": "mixup_alpha",
        "cut_mix": "cutmix_alpha",
        "cut_share": "cutmix_prob",
    }

    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    cutmix_prob: float = 0.5


@dataclass(frozen=True, slots=True)
class NoEMA:
    """Use the weights of the last step."""


@dataclass(frozen=True, slots=True)
class EMA:
    """Use an exponential moving average of the weights, updated every ``update_every`` steps.

    The decay is at most (1 + n) / (10 + n) at the n-th update, so that the random start is forgotten soon.
    """

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"every": "update_every"}

    decay: float = 0.999
    update_every: int = 1


@dataclass(frozen=True, slots=True)
class Scratch:
    """Start from random weights; if ``zero_last_norm``, every block starts as its shortcut."""

    zero_last_norm: bool = False


@dataclass(frozen=True, slots=True)
class FineTune:
    """Start from the model's weights: train the head alone for ``head_epochs``, then all layers.

    The backbone (everything before the head) learns at ``backbone_lr_scale`` times the head's learning rate.
    ``frozen`` norms keep their statistics and learn only scale and shift; ``updated`` norms follow the new images.
    The last five fields say how a weights file is read; an empty value or 0 leaves that to the file.
    """

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"body_rate": "backbone_lr_scale", "norms": "norm_stats"}

    head_epochs: int = 2
    backbone_lr_scale: float = 0.1
    norm_stats: Literal["frozen", "updated"] = "frozen"
    network: str = ""
    dialect: str = ""
    state_dict: str = ""
    reset_head: int = 0
    input_channels: int = 0


Optimizer = SGD | AdamW
Schedule = Cosine | Triangle | MultiStep
Augment = PadCrop | RandomResizedCrop | NoAugment
Transform = TrivialAugment | ColorJitter | RandomErasing
Mix = NoMix | MixUp | CutMix | MixUpOrCutMix
Averaging = NoEMA | EMA
Start = Scratch | FineTune


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run. The same recipe on the same CPU gives the same weights.

    Attributes:
        data: The data as the user names it.
        model: The model as the user names it.
        epochs: The number of epochs.
        batch_size: The number of images in a step, over all processes.
        seed: Decides weights, order and augmentation.
        split_seed: Decides which images are held out if the data has no splits.
        precision: ``auto`` is bf16 if the processor computes in it, else fp32.
        label_smoothing: The smoothing of the targets, 0 to below 1.
        patience: Stop after so many epochs without a better one on ``val``; never if None.
        checkpoint_steps: Also write a checkpoint every so many steps; does not change the result.
        trackers: Experiment trackers beside ``metrics.jsonl``.
        accumulate: The number of micro-batches of a step in each process; more of them take less memory.
        sync_batch_norm: Whether batch norms use the images of all processes.
        start: Random weights or fine-tuning.
        bad_files: How to treat unreadable images.
        data_options: The columns of a table, and whether equal classes are merged.
        optimizer: The optimizer and its settings.
        schedule: The course of the learning rate.
        augment: How pixels are cut from an image.
        transforms: Transforms of each image after that, in order.
        mix: How the images of a batch are mixed.
        ema: Whether an average of the weights is the model that is validated and kept.
        stochastic_depth: The highest probability of dropping a branch; None for the network's own.
        input_size: The network's input (C, H, W); None for its own.
        preparation: How images are resized, cropped and normalized; None for the network's own.
    """

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "optimiser": "optimizer",
        "also": "transforms",
        "sync_norms": "sync_batch_norm",
        "image": "input_size",
    }

    data: str
    model: str
    epochs: int = 30
    batch_size: int = 128
    seed: int = 0
    split_seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    label_smoothing: float = 0.0
    patience: int | None = None
    checkpoint_steps: int | None = None
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    accumulate: int = 1
    sync_batch_norm: bool = False
    start: Start = Scratch()
    bad_files: BadFiles = Skip()  # noqa: RUF009 - frozen
    data_options: DataOptions = DEFAULT_DATA_OPTIONS
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    augment: Augment = PadCrop()
    transforms: tuple[Transform, ...] = ()
    mix: Mix = NoMix()
    ema: Averaging = NoEMA()
    stochastic_depth: float | None = None
    input_size: tuple[int, int, int] | None = None
    preparation: Preparation | None = None

    def count_weight_copies(self) -> int:
        """Count the tensors per weight that a checkpoint holds: model, best model, moments, average."""
        n_moments = 2 if isinstance(self.optimizer, AdamW) else int(self.optimizer.momentum > 0)
        return 2 + n_moments + isinstance(self.ema, EMA)


def build_default_recipe(data: str, model: str, image_size: int, n_images: int) -> Recipe:
    """Build the recipe that suits a number of images of a size.

    Small images are shifted and flipped (digits are shifted by one pixel only: a mirrored 2 is not a digit). Larger
    images are cropped at random. Few images get small batches, so that an epoch has at least about twenty steps.

    Args:
        data: The data as the user names it.
        model: The model as the user names it.
        image_size: The longer side of the network's input in pixels.
        n_images: The number of training images.
    """
    if data == "digits":
        augment: Augment = PadCrop(1, flip=False)
        return Recipe(data, model, 20, 32, optimizer=_build_sgd(32), augment=augment, input_size=(1, 16, 16))
    batch_size = 2 ** round(math.log2(min(64, max(16, n_images / 20))))
    batch_size = min(batch_size, 32) if image_size > 64 else batch_size
    augment = PadCrop(max(1, image_size // 8)) if image_size <= 64 else RandomResizedCrop()
    epochs = 10 if n_images >= 20_000 else 30
    return Recipe(data, model, epochs, batch_size, optimizer=_build_sgd(batch_size), augment=augment)


def adapt_for_fine_tuning(recipe: Recipe, input_size: tuple[int, int, int]) -> Recipe:
    """Return a recipe changed for a network with weights: shorter, with early stopping.

    The head has the usual learning rate. The backbone, which is trained already, learns at a tenth of it.

    Args:
        recipe: The recipe for training from random weights.
        input_size: The input (C, H, W) that the weights were trained with.
    """
    return replace(recipe, epochs=min(recipe.epochs, 20), patience=5, start=FineTune(), input_size=input_size)


def _build_sgd(batch_size: int) -> SGD:
    """Scale the learning rate with the batch size (Goyal et al., arXiv 1706.02677), from 0.1 at 64."""
    return SGD(lr=0.1 * batch_size / 64)
