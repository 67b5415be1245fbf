"""Published accuracies of the networks in the catalog. resnetkit measured none of them.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedAccuracy:
    """Top-1 accuracy in percent, and its source."""

    top1: float
    source: str


_TORCHVISION_V1 = "torchvision, IMAGENET1K_V1, one crop"
_MSRA = "He et al., released models, one crop"
_PAPER_TEN_CROPS = "arXiv 1512.03385, table 2, ten crops"
_PAPER_TABLE_3 = "arXiv 1512.03385, table 3, ten crops"
_PAPER_CIFAR = "arXiv 1512.03385, table 6, CIFAR-10"
_KUANGLIU = "kuangliu/pytorch-cifar, CIFAR-10"

_TIMM = "timm, results-imagenet.csv, {} weights, 224 pixels"
_KERAS = "Keras Applications"

_TIMM_ROWS = {
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
}

PUBLISHED: dict[str, PublishedAccuracy] = {
    "resnet18": PublishedAccuracy(69.758, _TORCHVISION_V1),
    "resnet34": PublishedAccuracy(73.314, _TORCHVISION_V1),
    "resnet50": PublishedAccuracy(76.130, _TORCHVISION_V1),
    "resnet101": PublishedAccuracy(77.374, _TORCHVISION_V1),
    "resnet152": PublishedAccuracy(78.312, _TORCHVISION_V1),
    "resnext50_32x4d": PublishedAccuracy(77.618, _TORCHVISION_V1),
    "resnext101_32x8d": PublishedAccuracy(79.312, _TORCHVISION_V1),
    "resnext101_64x4d": PublishedAccuracy(83.246, "torchvision, IMAGENET1K_V1 (a newer recipe), one crop"),
    "wide_resnet50_2": PublishedAccuracy(78.468, _TORCHVISION_V1),
    "wide_resnet101_2": PublishedAccuracy(78.848, _TORCHVISION_V1),
    "resnet50_v1": PublishedAccuracy(75.3, _MSRA),
    "resnet101_v1": PublishedAccuracy(76.4, _MSRA),
    "resnet152_v1": PublishedAccuracy(77.0, _MSRA),
    "resnet18_a": PublishedAccuracy(72.12, _PAPER_TEN_CROPS),
    "plain18": PublishedAccuracy(72.06, _PAPER_TEN_CROPS),
    "plain34": PublishedAccuracy(71.46, _PAPER_TEN_CROPS),
    "resnet34_a": PublishedAccuracy(74.97, _PAPER_TABLE_3),
    "resnet34_c": PublishedAccuracy(75.81, _PAPER_TABLE_3),
    "resnet20": PublishedAccuracy(91.25, _PAPER_CIFAR),
    "resnet32": PublishedAccuracy(92.49, _PAPER_CIFAR),
    "resnet44": PublishedAccuracy(92.83, _PAPER_CIFAR),
    "resnet56": PublishedAccuracy(93.03, _PAPER_CIFAR),
    "resnet110": PublishedAccuracy(93.57, _PAPER_CIFAR),
    "resnet1202": PublishedAccuracy(92.07, _PAPER_CIFAR),
    "cifar_resnet18": PublishedAccuracy(93.02, _KUANGLIU),
    "cifar_resnet50": PublishedAccuracy(93.62, _KUANGLIU),
    "vgg16": PublishedAccuracy(71.93, _PAPER_TABLE_3),
    **{name: PublishedAccuracy(top1, _TIMM.format(weights)) for name, (top1, weights) in _TIMM_ROWS.items()},
    **{
        f"keras_resnet{name}": PublishedAccuracy(top1, _KERAS)
        for name, top1 in {"50": 74.9, "101": 76.4, "152": 76.6, "50v2": 76.0, "101v2": 77.2, "152v2": 78.0}.items()
    },
    "caffe_resnet50": PublishedAccuracy(75.3, _MSRA),
    "caffe_resnet101": PublishedAccuracy(76.4, _MSRA),
    "caffe_resnet152": PublishedAccuracy(77.0, _MSRA),
}
