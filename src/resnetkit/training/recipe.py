"""How a network is trained, as data.

A recipe is what `run.toml` of a run folder holds; ``--config``, ``--set`` and the options of ``train`` all edit it.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resnetkit.architecture.card import Preparation, card_of, is_hugging_face, model_folder, preparation_faults
from resnetkit.architecture.catalog import ROWS
from resnetkit.architecture.spec import Network
from resnetkit.errors import Fault, TextError
from resnetkit.serialization import from_data, over, to_data

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

    peak: float = 0.25


@dataclass(frozen=True, slots=True)
class Steps:
    """Multiplied by ``factor`` at each of the epochs ``at``, after ``warmup`` epochs in a line."""

    at: tuple[float, ...]
    factor: float = 0.1
    warmup: float = 0.0


@dataclass(frozen=True, slots=True)
class PadCrop:
    """Moved by up to ``pad`` pixels over black borders, and mirrored half of the time where ``flip`` says so."""

    pad: int = 4
    flip: bool = True


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A window of at least the share ``area`` of the picture, resized, and mirrored half of the time."""

    area: float = 0.35


@dataclass(frozen=True, slots=True)
class NoAugment:
    """Every picture as it is."""


@dataclass(frozen=True, slots=True)
class TrivialAugment:
    """One change of shape or colour out of 14, as strong as is drawn (arXiv 2103.10158, the wide space)."""


@dataclass(frozen=True, slots=True)
class ColourJitter:
    """Brightness, contrast and colour, each times 1 - x to 1 + x, in an order that is drawn."""

    brightness: float = 0.4
    contrast: float = 0.4
    colour: float = 0.4


@dataclass(frozen=True, slots=True)
class RandomErasing:
    """In the share ``share`` of pictures a box of 2 to 33 % is painted over with the mean (arXiv 1708.04896)."""

    share: float = 0.1


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

    mix_up: float = 0.2
    cut_mix: float = 1.0
    cut_share: float = 0.5


@dataclass(frozen=True, slots=True)
class NoEMA:
    """The weights of the last step are the model."""


@dataclass(frozen=True, slots=True)
class EMA:
    """The model is an average over the steps: ``decay`` of what it was, the rest of what it is, each ``every`` steps.

    At first less of what it was, (1 + n) / (10 + n) after n of them, so that the beginning is soon forgotten.
    """

    decay: float = 0.999
    every: int = 1


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
    body_rate: float = 0.1
    norms: Literal["frozen", "learnt"] = "frozen"
    network: str = ""
    dialect: str = ""
    reset_head: int = 0
    input_channels: int = 0


@dataclass(frozen=True, slots=True)
class Skip:
    """Pictures that cannot be read are left out, up to the share ``at_most`` of all."""

    at_most: float = 0.01


@dataclass(frozen=True, slots=True)
class Error:
    """The first picture that cannot be read ends the run."""


Optimiser = SGD | AdamW
Schedule = Cosine | Triangle | Steps
Augment = PadCrop | RandomCrop | NoAugment
Further = TrivialAugment | ColourJitter | RandomErasing
Mix = NoMix | MixUp | CutMix | MixUpOrCutMix
Average = NoEMA | EMA
Start = Scratch | FineTune
BadFiles = Skip | Error


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
    sync_norms: bool = False
    start: Start = Scratch()
    bad_files: BadFiles = Skip()
    optimiser: Optimiser = SGD()
    schedule: Schedule = Cosine()
    augment: Augment = PadCrop()
    also: tuple[Further, ...] = ()
    mix: Mix = NoMix()
    ema: Average = NoEMA()
    stochastic_depth: float | None = None
    image: tuple[int, int, int] | None = None
    preparation: Preparation | None = None


# ------------------------------------------------------------------------------------------------- making and editing


def recipe_for(data: str, model: str, side: int, pictures: int) -> Recipe:
    """The starting point for a network that sees ``side`` pixels and trains on ``pictures`` of them.

    Small images are shifted and mirrored (the digits shifted by a pixel only: a mirrored 2 is none), larger ones are
    cropped at random. Few pictures get small batches, so that an epoch has at least some twenty steps.
    """
    batch = 2 ** round(math.log2(min(64, max(16, pictures / 20))))
    batch = min(batch, 32) if side > 64 else batch
    if data == "digits":
        return Recipe(data, model, 20, 32, optimiser=_sgd(32), augment=PadCrop(1, flip=False), image=(1, 16, 16))
    augment: Augment = PadCrop(max(1, side // 8)) if side <= 64 else RandomCrop()
    return Recipe(data, model, 10 if pictures >= 20_000 else 30, batch, optimiser=_sgd(batch), augment=augment)


def tuned(recipe: Recipe, image: tuple[int, int, int]) -> Recipe:
    """The same for a network that has weights: shorter, slower, and it ends when ``val`` gets no better.

    The head's rate is the usual one; the body, which knows pictures already, learns at a tenth of it.
    """
    epochs = min(recipe.epochs, 20)
    return replace(recipe, epochs=epochs, patience=5, start=FineTune(), image=image)


def _sgd(batch: int) -> SGD:
    """The rate grows with the batch (Goyal et al., arXiv 1706.02677), from 0.1 at 64."""
    return SGD(lr=0.1 * batch / 64)


def plan_run(
    pictures: int, data: str, model: str | None, settings: Mapping[str, Any], trained: Network | None = None
) -> Recipe:
    """The recipe that suits a network and a number of pictures, with ``settings`` laid over it; raises `TextError`.

    A model that has weights is fine-tuned, any other starts from random ones; ``trained`` is a weights file's spec.
    ``data`` and ``model`` as named here are stronger than in the settings; without either the model is resnet18.
    """
    named = model_named(model, settings)
    asked = {key: settings[key] for key in ("image",) if key in settings}
    own = (trained or card_of(named).spec).input
    image = from_data(_Recipe, asked, "what is set").image or own
    start = recipe_for(data, named, max(image[1:]), pictures)
    if (trained or model_folder(named)) and beginning(settings).get("kind") != "scratch":
        start = tuned(start, own)
    start = start if start.image else replace(start, image=image)
    return edit(start, {**settings, "data": data, "model": named})


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What has to be known before the rest of a recipe can be chosen."""

    model: str = "resnet18"
    image: tuple[int, int, int] | None = None


def model_named(model: str | None, settings: Mapping[str, Any]) -> str:
    """The model as it is named, by hand or in the settings."""
    asked = {"model": settings["model"]} if "model" in settings else {}
    return from_data(_Recipe, asked | ({"model": model} if model else {}), "what is set").model


def beginning(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings say of the start, which may be a word alone."""
    begin = settings.get("start", {})
    return {"kind": begin} if isinstance(begin, str) else dict(begin) if isinstance(begin, Mapping) else {}


def is_weights_file(model: str) -> bool:
    """Whether a model is named by a file that holds weights, or a folder of transformers."""
    if model in ROWS or model.endswith((".toml", ".json")) or model_folder(model):
        return False
    return Path(model).is_file() or is_hugging_face(Path(model))


def edit(recipe: Recipe, changes: Mapping[str, Any], what: str = "what is set") -> Recipe:
    """A recipe with nested ``changes`` laid over it; raises `TextError` with every fault."""
    return check(from_data(Recipe, over(to_data(recipe), changes), what), what)


def check(recipe: Recipe, what: str = "what is set") -> Recipe:
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
        *_start_limits(recipe.start),
        *_bad_files_limits(recipe.bad_files),
        *_optimiser_limits(recipe.optimiser),
        *_schedule_limits(recipe.schedule),
        *_augment_limits(recipe.augment),
        *(limit for i, step in enumerate(recipe.also, 1) for limit in _further_limits(f"also.{i}", step)),
        *_mix_limits(recipe.mix),
        *_ema_limits(recipe.ema),
        ("stochastic_depth", recipe.stochastic_depth, 0 <= (recipe.stochastic_depth or 0) < 1, "0 to below 1"),
    ]
    faults = [Fault(path, str(came), allowed) for path, came, fits, allowed in limits if not fits]
    if recipe.preparation:
        channels = recipe.image[0] if recipe.image else len(recipe.preparation.mean)
        faults += preparation_faults(recipe.preparation, channels)
    if faults:
        raise TextError(f"{what} does not describe a recipe", faults)
    return recipe


Limit = tuple[str, object, bool, str]


def _optimiser_limits(optimiser: Optimiser) -> list[Limit]:
    lr, decay = optimiser.lr, optimiser.weight_decay
    shared: list[Limit] = [
        ("optimiser.lr", lr, lr > 0, "more than 0"),
        ("optimiser.weight_decay", decay, 0 <= decay <= 1000, "0 to 1000"),
    ]
    if isinstance(optimiser, AdamW):
        betas = (("beta1", optimiser.beta1), ("beta2", optimiser.beta2))
        return shared + [(f"optimiser.{name}", beta, 0 <= beta < 1, "0 to below 1") for name, beta in betas]
    least = "more than 0, as nesterov is on," if optimiser.nesterov else "0"
    fits = 0 <= optimiser.momentum < 1 and not (optimiser.nesterov and optimiser.momentum == 0)
    return [*shared, ("optimiser.momentum", optimiser.momentum, fits, f"{least} to below 1")]


def _start_limits(start: Start) -> list[Limit]:
    if isinstance(start, Scratch):
        return []
    return [
        ("start.head_epochs", start.head_epochs, start.head_epochs >= 0, "0 or more"),
        ("start.body_rate", start.body_rate, 0 <= start.body_rate <= 1, "0 to 1, a share of the head's rate"),
    ]


def _bad_files_limits(policy: BadFiles) -> list[Limit]:
    at_most = policy.at_most if isinstance(policy, Skip) else 0.0
    return [("bad_files.at_most", at_most, 0 <= at_most <= 1, "0 to 1, a share of all pictures")]


def _schedule_limits(schedule: Schedule) -> list[Limit]:
    match schedule:
        case Cosine(warmup):
            return [("schedule.warmup", warmup, warmup >= 0, "0 or more epochs")]
        case Triangle(peak):
            return [("schedule.peak", peak, 0 <= peak <= 1, "0 to 1, a share of the run")]
        case Steps(at, factor, warmup):
            return [
                ("schedule.at", list(at), all(step >= 0 for step in at), "epochs"),
                ("schedule.factor", factor, 0 < factor <= 1, "more than 0, to 1"),
                ("schedule.warmup", warmup, warmup >= 0, "0 or more epochs"),
            ]


def _augment_limits(augment: Augment) -> list[Limit]:
    match augment:
        case PadCrop(pad):
            return [("augment.pad", pad, 0 <= pad <= 1000, "0 to 1000 pixels")]
        case RandomCrop(area):
            return [("augment.area", area, 0 < area <= 1, "more than 0, to 1: a share of the picture")]
        case NoAugment():
            return []


def _further_limits(path: str, step: Further) -> list[Limit]:
    match step:
        case TrivialAugment():
            return []
        case ColourJitter(brightness, contrast, colour):
            jitter = {"brightness": brightness, "contrast": contrast, "colour": colour}
            return [(f"{path}.{name}", x, 0 <= x <= 1, "0 to 1") for name, x in jitter.items()]
        case RandomErasing(share):
            return [(f"{path}.share", share, 0 <= share <= 1, "0 to 1, a share of the pictures")]


def _mix_limits(mix: Mix) -> list[Limit]:
    match mix:
        case NoMix():
            return []
        case MixUp(alpha) | CutMix(alpha):
            return [_beta("mix.alpha", alpha)]
        case MixUpOrCutMix(mix_up, cut_mix, share):
            cut: Limit = ("mix.cut_share", share, 0 <= share <= 1, "0 to 1, a share of the batches")
            return [_beta("mix.mix_up", mix_up), _beta("mix.cut_mix", cut_mix), cut]


def _beta(path: str, alpha: float) -> Limit:
    return (path, alpha, 0 < alpha <= 100, "more than 0, to 100")


def _ema_limits(ema: Average) -> list[Limit]:
    if isinstance(ema, NoEMA):
        return []
    return [
        ("ema.decay", ema.decay, 0 <= ema.decay < 1, "0 to below 1"),
        ("ema.every", ema.every, 1 <= ema.every <= 100_000, "1 to 100,000 steps"),
    ]


# ---------------------------------------------------------------------------------------------------------- schedule


def rate(schedule: Schedule, epoch: float, epochs: int) -> float:
    """What the learning rate is multiplied by, ``epoch`` (a fraction counts) epochs into a run of ``epochs``."""
    match schedule:
        case Cosine(warmup):
            if epoch < warmup:
                return epoch / warmup
            done = (epoch - warmup) / max(epochs - warmup, 1e-9)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        case Triangle(peak):
            done = epoch / epochs
            return done / peak if done < peak else max(0.0, (1 - done) / max(1 - peak, 1e-9))
        case Steps(at, factor, warmup):
            return min(1.0, epoch / warmup if warmup else 1.0) * factor ** sum(epoch >= step for step in at)
