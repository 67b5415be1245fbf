"""Accuracies that others published, as rows. None of them was measured by us.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """Top-1 in per cent, and where it stands."""

    top1: float
    source: str


_V1 = "torchvision, IMAGENET1K_V1, one crop"
_MSRA = "He et al., released models, one crop"
_TEN = "arXiv 1512.03385, table 2, ten crops"
_TABLE_3 = "arXiv 1512.03385, table 3, ten crops"
_CIFAR = "arXiv 1512.03385, table 6, CIFAR-10"
_KUANGLIU = "kuangliu/pytorch-cifar, CIFAR-10"

_TIMM = "timm, results-imagenet.csv, {} weights, 224 pixels"
_KERAS = "Keras Applications"

PUBLISHED: dict[str, Published] = {
    "resnet18": Published(69.758, _V1),
    "resnet34": Published(73.314, _V1),
    "resnet50": Published(76.130, _V1),
    "resnet101": Published(77.374, _V1),
    "resnet152": Published(78.312, _V1),
    "resnext50_32x4d": Published(77.618, _V1),
    "resnext101_32x8d": Published(79.312, _V1),
    "resnext101_64x4d": Published(83.246, "torchvision, IMAGENET1K_V1 (a newer recipe), one crop"),
    "wide_resnet50_2": Published(78.468, _V1),
    "wide_resnet101_2": Published(78.848, _V1),
    "resnet50_v1": Published(75.3, _MSRA),
    "resnet101_v1": Published(76.4, _MSRA),
    "resnet152_v1": Published(77.0, _MSRA),
    "resnet18_a": Published(72.12, _TEN),
    "plain18": Published(72.06, _TEN),
    "plain34": Published(71.46, _TEN),
    "resnet34_a": Published(74.97, _TABLE_3),
    "resnet34_c": Published(75.81, _TABLE_3),
    "resnet20": Published(91.25, _CIFAR),
    "resnet32": Published(92.49, _CIFAR),
    "resnet44": Published(92.83, _CIFAR),
    "resnet56": Published(93.03, _CIFAR),
    "resnet110": Published(93.57, _CIFAR),
    "resnet1202": Published(92.07, _CIFAR),
    "cifar_resnet18": Published(93.02, _KUANGLIU),
    "cifar_resnet50": Published(93.62, _KUANGLIU),
    "vgg16": Published(71.93, _TABLE_3),
    **{
        name: Published(top1, _TIMM.format(weights))
        for name, (top1, weights) in {
            "resnet10t": (68.354, "its own"),
            "resnet14t": (72.242, "its own"),
            "resnet18d": (72.296, "ra2"),
            "resnet26": (75.298, "bt"),
            "resnet50c": (78.016, "gluon"),
            "resnet50d": (80.546, "ra2"),
            "resnet50s": (78.710, "gluon"),
            "seresnet50": (80.260, "ra2"),
            "resnetblur50": (79.306, "bt"),
            "resnetv2_50": (80.410, "a1h"),
        }.items()
    },
    **{
        f"keras_resnet{name}": Published(top1, _KERAS)
        for name, top1 in (("50", 74.9), ("101", 76.4), ("152", 76.6), ("50v2", 76.0), ("101v2", 77.2), ("152v2", 78.0))
    },
    **{f"caffe_resnet{depth}": Published(top1, _MSRA) for depth, top1 in ((50, 75.3), (101, 76.4), (152, 77.0))},
}
