"""How a network is trained, as data.

A recipe is what `run.toml` of a run folder holds; ``--config``, ``--set`` and the options of ``train`` all edit it.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from resnetkit.architecture.card import (
    Preparation,
    find_preparation_faults,
)
from resnetkit.architecture.spec import Network
from resnetkit.data.bad_files import BadFiles, Skip
from resnetkit.errors import Fault, TextError
from resnetkit.serialization import from_data, merge, to_data
from resnetkit.weights.model_source import find_model_folder, load_card

# -------------------------------------------------------------------------------------------------------- the pieces


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent; weight decay acts on convolutions and the classifier, not on norms and biases."""

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
    """Up in a line over ``warmup`` epochs, then down to nothing along half a cosine."""

    warmup: float = 1.0


@dataclass(frozen=True, slots=True)
class Triangle:
    """Up in a line for the share ``peak`` of the run, then down in a line to nothing."""

    pct_start: float = 0.25


@dataclass(frozen=True, slots=True)
class MultiStep:
    """Multiplied by ``factor`` at each of the epochs ``at``, after ``warmup`` epochs in a line."""

    milestones: tuple[float, ...]
    gamma: float = 0.1
    warmup: float = 0.0


@dataclass(frozen=True, slots=True)
class PadCrop:
    """Moved by up to ``pad`` pixels over black borders, and mirrored half of the time where ``flip`` says so."""

    padding: int = 4
    flip: bool = True


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A window of at least the share ``area`` of the picture, resized, and mirrored half of the time."""

    min_scale: float = 0.35


@dataclass(frozen=True, slots=True)
class NoAugment:
    """Every picture as it is."""


@dataclass(frozen=True, slots=True)
class TrivialAugment:
    """One change of shape or colour out of 14, as strong as is drawn (arXiv 2103.10158, the wide space)."""


@dataclass(frozen=True, slots=True)
class ColorJitter:
    """Brightness, contrast and colour, each times 1 - x to 1 + x, in an order that is drawn."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """In the share ``share`` of pictures a box of 2 to 33 % is painted over with the mean (arXiv 1708.04896)."""

    p: float = 0.1


@dataclass(frozen=True, slots=True)
class NoMix:
    """Every picture and its label alone."""


@dataclass(frozen=True, slots=True)
class MixUp:
    """Two pictures laid over each other, and their labels (arXiv 1710.09412): Beta(alpha, alpha) says how much."""

    alpha: float = 0.2


@dataclass(frozen=True, slots=True)
class CutMix:
    """A box of another picture, and as much of its label (arXiv 1905.04899): Beta(alpha, alpha) says how large."""

    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class MixUpOrCutMix:
    """One of both for each batch: the second in the share ``cut_share`` of them."""

    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    cutmix_prob: float = 0.5


@dataclass(frozen=True, slots=True)
class NoEMA:
    """The weights of the last step are the model."""


@dataclass(frozen=True, slots=True)
class EMA:
    """The model is an average over the steps: ``decay`` of what it was, the rest of what it is, each ``every`` steps.

    At first less of what it was, (1 + n) / (10 + n) after n of them, so that the beginning is soon forgotten.
    """

    decay: float = 0.999
    update_every: int = 1


@dataclass(frozen=True, slots=True)
class Scratch:
    """From random weights; ``zero_last_norm`` lets every block start as its shortcut."""

    zero_last_norm: bool = False


@dataclass(frozen=True, slots=True)
class FineTune:
    """From the weights that the model has: the head alone for ``head_epochs``, then all of it.

    The body (everything before the head) learns at the share ``body_rate`` of the head's rate. ``frozen`` norms keep
    the statistics they came with and learn only their scale and shift; ``learnt`` ones follow the new pictures.
    The last four are stronger than what a weights file tells of itself; 0 is what it tells.
    """

    head_epochs: int = 2
    backbone_lr_scale: float = 0.1
    norm_stats: Literal["frozen", "learnt"] = "frozen"
    network: str = ""
    dialect: str = ""
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

    ``split_seed`` decides which pictures are held out where the data does not say; ``seed`` decides weights, order
    and augmentation. ``precision`` ``auto`` is bf16 where the processor computes in it, fp32 elsewhere.
    ``patience`` ends a run after so many epochs without a better one on ``val``; never if left out.
    ``checkpoint_steps`` writes a checkpoint after so many steps, beside the usual ones; it decides nothing else.
    ``trackers`` are told beside ``metrics.jsonl``. A step learns from ``batch_size`` pictures in all processes
    together; ``accumulate`` sends those of a process through the network in so many parts, which takes less memory.
    ``sync_norms`` lets batch norms see the pictures of all processes. ``augment`` is where pixels come from, ``also``
    what happens to each picture then, step after step, and ``mix`` what is done with a batch; ``ema`` is the model that
    is measured and kept. ``image`` (channels, height, width) is what the network sees, ``preparation`` how it comes
    about, and ``stochastic_depth`` how often branches are dropped; the network's own if left out.
    """

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
    optimizer: Optimizer = SGD()
    schedule: Schedule = Cosine()
    augment: Augment = PadCrop()
    transforms: tuple[Transform, ...] = ()
    mix: Mix = NoMix()
    ema: Averaging = NoEMA()
    stochastic_depth: float | None = None
    input_size: tuple[int, int, int] | None = None
    preparation: Preparation | None = None


# ------------------------------------------------------------------------------------------------- making and editing


def build_default_recipe(data: str, model: str, image_size: int, n_images: int) -> Recipe:
    """The starting point for a network that sees ``side`` pixels and trains on ``pictures`` of them.

    Small images are shifted and mirrored (the digits shifted by a pixel only: a mirrored 2 is none), larger ones are
    cropped at random. Few pictures get small batches, so that an epoch has at least some twenty steps.
    """
    batch_size = 2 ** round(math.log2(min(64, max(16, n_images / 20))))
    batch_size = min(batch_size, 32) if image_size > 64 else batch_size
    if data == "digits":
        return Recipe(
            data, model, 20, 32, optimizer=_build_sgd(32), augment=PadCrop(1, flip=False), input_size=(1, 16, 16)
        )
    augment: Augment = PadCrop(max(1, image_size // 8)) if image_size <= 64 else RandomResizedCrop()
    return Recipe(
        data, model, 10 if n_images >= 20_000 else 30, batch_size, optimizer=_build_sgd(batch_size), augment=augment
    )


def adapt_for_fine_tuning(recipe: Recipe, input_size: tuple[int, int, int]) -> Recipe:
    """The same for a network that has weights: shorter, slower, and it ends when ``val`` gets no better.

    The head's rate is the usual one; the body, which knows pictures already, learns at a tenth of it.
    """
    epochs = min(recipe.epochs, 20)
    return replace(recipe, epochs=epochs, patience=5, start=FineTune(), input_size=input_size)


def _build_sgd(batch_size: int) -> SGD:
    """The rate grows with the batch (Goyal et al., arXiv 1706.02677), from 0.1 at 64."""
    return SGD(lr=0.1 * batch_size / 64)


def resolve_recipe(
    n_images: int, data: str, model: str | None, settings: Mapping[str, Any], weights_spec: Network | None = None
) -> Recipe:
    """The recipe that suits a network and a number of pictures, with ``settings`` laid over it; raises `TextError`.

    A model that has weights is fine-tuned, any other starts from random ones; ``trained`` is a weights file's spec.
    ``data`` and ``model`` as named here are stronger than in the settings; without either the model is resnet18.
    """
    model_name = resolve_model_name(model, settings)
    size_settings = {key: settings[key] for key in ("input_size",) if key in settings}
    native_size = (weights_spec or load_card(model_name).spec).input
    input_size = from_data(_Recipe, size_settings, "what is set").input_size or native_size
    recipe = build_default_recipe(data, model_name, max(input_size[1:]), n_images)
    if (weights_spec or find_model_folder(model_name)) and get_start_settings(settings).get("kind") != "scratch":
        recipe = adapt_for_fine_tuning(recipe, native_size)
    recipe = recipe if recipe.input_size else replace(recipe, input_size=input_size)
    return edit_recipe(recipe, {**settings, "data": data, "model": model_name})


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What has to be known before the rest of a recipe can be chosen."""

    model: str = "resnet18"
    input_size: tuple[int, int, int] | None = None


def resolve_model_name(model: str | None, settings: Mapping[str, Any]) -> str:
    """The model as it is named, by hand or in the settings."""
    values = {"model": settings["model"]} if "model" in settings else {}
    return from_data(_Recipe, values | ({"model": model} if model else {}), "what is set").model


def get_start_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of the start, which may be a word alone."""
    start = settings.get("start", {})
    return {"kind": start} if isinstance(start, str) else dict(start) if isinstance(start, Mapping) else {}


def edit_recipe(recipe: Recipe, changes: Mapping[str, Any], source: str = "what is set") -> Recipe:
    """A recipe with nested ``changes`` laid over it; raises `TextError` with every fault."""
    return check_recipe(from_data(Recipe, merge(to_data(recipe), changes), source), source)


def check_recipe(recipe: Recipe, source: str = "what is set") -> Recipe:
    """The recipe itself; raises `TextError` with every number that is out of its range."""
    limits = [
        ("epochs", recipe.epochs, 1 <= recipe.epochs <= 100_000, "1 to 100,000"),
        ("batch_size", recipe.batch_size, 2 <= recipe.batch_size <= 65_536, "2 to 65,536"),
        ("seed", recipe.seed, 0 <= recipe.seed < 2**63, "0 to 2**63 - 1"),
        ("split_seed", recipe.split_seed, 0 <= recipe.split_seed < 2**63, "0 to 2**63 - 1"),
        ("label_smoothing", recipe.label_smoothing, 0 <= recipe.label_smoothing < 1, "0 to below 1"),
        ("patience", recipe.patience, recipe.patience is None or recipe.patience >= 1, "1 or more epochs"),
        ("checkpoint_steps", recipe.checkpoint_steps, (recipe.checkpoint_steps or 1) >= 1, "1 or more steps"),
        ("accumulate", recipe.accumulate, 1 <= recipe.accumulate <= recipe.batch_size // 2, "1 to half of batch_size"),
        *_list_start_limits(recipe.start),
        *_list_bad_files_limits(recipe.bad_files),
        *_list_optimizer_limits(recipe.optimizer),
        *_list_schedule_limits(recipe.schedule),
        *_list_augment_limits(recipe.augment),
        *(
            limit
            for i, transform in enumerate(recipe.transforms, 1)
            for limit in _list_transform_limits(f"transform{i}", transform)
        ),
        *_list_mix_limits(recipe.mix),
        *_list_ema_limits(recipe.ema),
        ("stochastic_depth", recipe.stochastic_depth, 0 <= (recipe.stochastic_depth or 0) < 1, "0 to below 1"),
    ]
    faults = [Fault(path, str(value), allowed) for path, value, is_valid, allowed in limits if not is_valid]
    if recipe.preparation:
        channels = recipe.input_size[0] if recipe.input_size else len(recipe.preparation.mean)
        faults += find_preparation_faults(recipe.preparation, channels)
    if faults:
        raise TextError(f"{source} does not describe a recipe", faults)
    return recipe


Limit = tuple[str, object, bool, str]


def _list_optimizer_limits(optimizer: Optimizer) -> list[Limit]:
    lr, decay = optimizer.lr, optimizer.weight_decay
    shared: list[Limit] = [
        ("optimizer.lr", lr, lr > 0, "more than 0"),
        ("optimizer.weight_decay", decay, 0 <= decay <= 1000, "0 to 1000"),
    ]
    if isinstance(optimizer, AdamW):
        betas = (("beta1", optimizer.beta1), ("beta2", optimizer.beta2))
        return shared + [(f"optimizer.{name}", beta, 0 <= beta < 1, "0 to below 1") for name, beta in betas]
    minimum = "more than 0, as nesterov is on," if optimizer.nesterov else "0"
    is_valid = 0 <= optimizer.momentum < 1 and not (optimizer.nesterov and optimizer.momentum == 0)
    return [*shared, ("optimizer.momentum", optimizer.momentum, is_valid, f"{minimum} to below 1")]


def _list_start_limits(start: Start) -> list[Limit]:
    if isinstance(start, Scratch):
        return []
    return [
        ("start.head_epochs", start.head_epochs, start.head_epochs >= 0, "0 or more"),
        (
            "start.backbone_lr_scale",
            start.backbone_lr_scale,
            0 <= start.backbone_lr_scale <= 1,
            "0 to 1, a share of the head's rate",
        ),
    ]


def _list_bad_files_limits(policy: BadFiles) -> list[Limit]:
    max_fraction = policy.max_fraction if isinstance(policy, Skip) else 0.0
    return [("bad_files.max_fraction", max_fraction, 0 <= max_fraction <= 1, "0 to 1, a share of all pictures")]


def _list_schedule_limits(schedule: Schedule) -> list[Limit]:
    match schedule:
        case Cosine(warmup):
            return [("schedule.warmup", warmup, warmup >= 0, "0 or more epochs")]
        case Triangle(pct_start):
            return [("schedule.pct_start", pct_start, 0 <= pct_start <= 1, "0 to 1, a share of the run")]
        case MultiStep(milestones, gamma, warmup):
            return [
                ("schedule.milestones", list(milestones), all(milestone >= 0 for milestone in milestones), "epochs"),
                ("schedule.gamma", gamma, 0 < gamma <= 1, "more than 0, to 1"),
                ("schedule.warmup", warmup, warmup >= 0, "0 or more epochs"),
            ]


def _list_augment_limits(augment: Augment) -> list[Limit]:
    match augment:
        case PadCrop(padding):
            return [("augment.padding", padding, 0 <= padding <= 1000, "0 to 1000 pixels")]
        case RandomResizedCrop(min_scale):
            return [("augment.min_scale", min_scale, 0 < min_scale <= 1, "more than 0, to 1: a share of the picture")]
        case NoAugment():
            return []


def _list_transform_limits(path: str, transform: Transform) -> list[Limit]:
    match transform:
        case TrivialAugment():
            return []
        case ColorJitter(brightness, contrast, saturation):
            jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
            return [(f"{path}.{name}", x, 0 <= x <= 1, "0 to 1") for name, x in jitter.items()]
        case RandomErasing(p):
            return [(f"{path}.p", p, 0 <= p <= 1, "0 to 1, a share of the pictures")]


def _list_mix_limits(mix: Mix) -> list[Limit]:
    match mix:
        case NoMix():
            return []
        case MixUp(alpha) | CutMix(alpha):
            return [_make_beta_limit("mix.alpha", alpha)]
        case MixUpOrCutMix(mixup_alpha, cutmix_alpha, cutmix_prob):
            prob_limit: Limit = (
                "mix.cutmix_prob",
                cutmix_prob,
                0 <= cutmix_prob <= 1,
                "0 to 1, a share of the batches",
            )
            return [
                _make_beta_limit("mix.mixup_alpha", mixup_alpha),
                _make_beta_limit("mix.cutmix_alpha", cutmix_alpha),
                prob_limit,
            ]


def _make_beta_limit(path: str, alpha: float) -> Limit:
    return (path, alpha, 0 < alpha <= 100, "more than 0, to 100")


def _list_ema_limits(ema: Averaging) -> list[Limit]:
    if isinstance(ema, NoEMA):
        return []
    return [
        ("ema.decay", ema.decay, 0 <= ema.decay < 1, "0 to below 1"),
        ("ema.update_every", ema.update_every, 1 <= ema.update_every <= 100_000, "1 to 100,000 steps"),
    ]


# ---------------------------------------------------------------------------------------------------------- schedule


def compute_lr_factor(schedule: Schedule, epoch: float, epochs: int) -> float:
    """What the learning rate is multiplied by, ``epoch`` (a fraction counts) epochs into a run of ``epochs``."""
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
            return min(1.0, epoch / warmup if warmup else 1.0) * gamma ** sum(
                epoch >= milestone for milestone in milestones
            )
