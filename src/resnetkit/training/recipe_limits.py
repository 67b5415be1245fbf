"""The allowed values of a recipe, and edits that are checked against them.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from resnetkit.architecture.card import find_preparation_faults
from resnetkit.data.bad_files import Skip
from resnetkit.errors import Fault, TextError
from resnetkit.serialization import from_data, merge, to_data
from resnetkit.training import recipe as config

Limit = tuple[Callable[[Any], bool], str]  # (whether a value is allowed, the allowed values in words)

_POSITIVE: Limit = (lambda x: x > 0, "more than 0")
_BELOW_1: Limit = (lambda x: 0 <= x < 1, "0 to below 1")
_SEED: Limit = (lambda n: 0 <= n < 2**63, "0 to 2**63 - 1")
_DECAY: Limit = (lambda x: 0 <= x <= 1000, "0 to 1000")
_WARMUP: Limit = (lambda x: x >= 0, "0 or more epochs")
_BETA: Limit = (lambda x: 0 < x <= 100, "more than 0, to 100")
_AREA: Limit = (lambda x: 0 < x <= 1, "more than 0, to 1: a fraction of the image's area")
_JITTER: Limit = (lambda x: 0 <= x <= 1, "0 to 1")


def _fraction(of: str) -> Limit:
    return lambda x: 0 <= x <= 1, f"0 to 1, a fraction of {of}"


_LIMITS: dict[type, dict[str, Limit]] = {
    config.Recipe: {
        "epochs": (lambda n: 1 <= n <= 100_000, "1 to 100,000"),
        "batch_size": (lambda n: 2 <= n <= 65_536, "2 to 65,536"),
        "seed": _SEED,
        "split_seed": _SEED,
        "label_smoothing": _BELOW_1,
        "patience": (lambda n: n is None or n >= 1, "1 or more epochs"),
        "checkpoint_steps": (lambda n: n is None or n >= 1, "1 or more steps"),
        "stochastic_depth": (lambda x: x is None or 0 <= x < 1, "0 to below 1"),
    },
    config.FineTune: {
        "head_epochs": (lambda n: n >= 0, "0 or more"),
        "backbone_lr_scale": _fraction("the head's learning rate"),
    },
    Skip: {"max_fraction": _fraction("all images")},
    config.SGD: {"lr": _POSITIVE, "weight_decay": _DECAY, "momentum": _BELOW_1},
    config.AdamW: {"lr": _POSITIVE, "weight_decay": _DECAY, "beta1": _BELOW_1, "beta2": _BELOW_1},
    config.Cosine: {"warmup": _WARMUP},
    config.Triangle: {"pct_start": _fraction("the run")},
    config.MultiStep: {
        "milestones": (lambda epochs: all(epoch >= 0 for epoch in epochs), "epochs"),
        "gamma": (lambda x: 0 < x <= 1, "more than 0, to 1"),
        "warmup": _WARMUP,
    },
    config.PadCrop: {"padding": (lambda n: 0 <= n <= 1000, "0 to 1000 pixels")},
    config.RandomResizedCrop: {"min_scale": _AREA},
    config.ColorJitter: {"brightness": _JITTER, "contrast": _JITTER, "saturation": _JITTER},
    config.RandomErasing: {"p": _fraction("the images")},
    config.MixUp: {"alpha": _BETA},
    config.CutMix: {"alpha": _BETA},
    config.MixUpOrCutMix: {"mixup_alpha": _BETA, "cutmix_alpha": _BETA, "cutmix_prob": _fraction("the batches")},
    config.EMA: {"decay": _BELOW_1, "update_every": (lambda n: 1 <= n <= 100_000, "1 to 100,000 steps")},
}


def edit_recipe(recipe: config.Recipe, changes: Mapping[str, Any], source: str = "this configuration") -> config.Recipe:
    """Return a recipe with nested changes; raises `TextError` with every fault.

    Args:
        recipe: The recipe to change.
        changes: Nested settings, such as ``{"schedule": {"warmup": 2}}``.
        source: The name of the changes in an error.
    """
    return check_recipe(from_data(config.Recipe, merge(to_data(recipe), changes), source), source)


def check_recipe(recipe: config.Recipe, source: str = "this configuration") -> config.Recipe:
    """Check every value of a recipe and return the recipe.

    Args:
        recipe: The recipe to check.
        source: The recipe's name in an error.

    Raises:
        TextError: a value is not allowed; it lists all of them.
    """
    if faults := list(_find_faults(recipe)):
        raise TextError(f"{source} does not describe a recipe", faults)
    return recipe


def _find_faults(recipe: config.Recipe) -> Iterator[Fault]:
    parts: dict[str, object] = {"": recipe}
    parts |= {f"{name}.": getattr(recipe, name) for name in ("start", "bad_files", "optimizer", "schedule", "augment")}
    parts |= {f"transform{i}.": transform for i, transform in enumerate(recipe.transforms, 1)}
    parts |= {"mix.": recipe.mix, "ema.": recipe.ema}
    for prefix, part in parts.items():
        for name, (is_allowed, allowed) in _LIMITS.get(type(part), {}).items():
            if not is_allowed(value := getattr(part, name)):
                yield Fault(prefix + name, str(list(value) if isinstance(value, tuple) else value), allowed)
    if not 1 <= recipe.accumulate <= recipe.batch_size // 2:
        yield Fault("accumulate", str(recipe.accumulate), "1 to half of batch_size")
    if isinstance(recipe.optimizer, config.SGD) and recipe.optimizer.nesterov and recipe.optimizer.momentum == 0:
        yield Fault("optimizer.momentum", "0.0", "more than 0 if nesterov is on, to below 1")
    if recipe.preparation:
        channels = recipe.input_size[0] if recipe.input_size else len(recipe.preparation.mean)
        yield from find_preparation_faults(recipe.preparation, channels)
