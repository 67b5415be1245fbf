"""Published recipes, as changes to the default recipe.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resnetkit.errors import UsageError, suggest_fix


@dataclass(frozen=True, slots=True)
class Preset:
    """A published recipe; ``differences`` lists what the publication does and resnetkit does not."""

    changes: dict[str, Any]
    published_accuracy: str
    source: str
    differences: tuple[str, ...]


_NORM_DECAY = "weight decay on norms and biases"

PRESETS = {
    # 64,000 steps of 128 of 45,000 images are 182 epochs; 32,000 and 48,000 steps are 91 and 136.5 epochs
    "paper-cifar10": Preset(
        {
            "epochs": 182,
            "batch_size": 128,
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False},
            "schedule": {"kind": "multi-step", "milestones": [91, 136.5], "gamma": 0.1, "warmup": 0},
            "augment": {"kind": "pad-crop", "padding": 4, "flip": True},
        },
        "error 8.75 % (ResNet-20), 7.51 % (32), 7.17 % (44), 6.97 % (56)",
        "arXiv 1512.03385, section 4.2",
        (_NORM_DECAY,),
    ),
    "imagenet-v1": Preset(
        {
            "epochs": 90,
            "batch_size": 256,
            "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False},
            "schedule": {"kind": "multi-step", "milestones": [30, 60], "gamma": 0.1, "warmup": 0},
            "augment": {"kind": "random-resized-crop", "min_scale": 0.08},
        },
        "top-1 76.13 % (ResNet-50)",
        "torchvision's reference, V1 weights",
        (_NORM_DECAY,),
    ),
    "imagenet-v2": Preset(
        {
            "epochs": 600,
            "batch_size": 1024,
            "label_smoothing": 0.1,
            "optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 2e-5, "nesterov": False},
            "schedule": {"kind": "cosine", "warmup": 5},
            "augment": {"kind": "random-resized-crop", "min_scale": 0.08},
            "transforms": ["trivial-augment", {"kind": "random-erasing", "p": 0.1}],
            "mix": {"kind": "mix-up-or-cut-mix", "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
            "ema": {"kind": "ema", "decay": 0.9989, "update_every": 32},
        },
        "top-1 80.86 % (ResNet-50)",
        "torchvision's reference, V2 weights",
        (
            "training on 176 pixels and evaluation on 224",
            "repeated augmentation",
            "warm-up from a hundredth of the learning rate, and one learning rate for each epoch",
            "weight decay on the bias of the classifier",
        ),
    ),
}


def get_preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        UsageError: no preset has this name.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown recipe {name!r}", where="--recipe", fix=suggest_fix(name, list(PRESETS)))
    return PRESETS[name]
