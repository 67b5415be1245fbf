"""The catalog: the spec of every network that has a name. A new model is a new row.

- ``resnet50`` has the stride at the 3x3 (torchvision, v1.5), ``resnet50_v1`` at the first 1x1 (the paper).
- ``resnet20`` is the paper's CIFAR network with option A (zeros on both sides). ``_a_end`` has zeros at the end, ``_b``
  and ``_c`` have options B and C.
- ``cifar_resnet18`` has the stages for ImageNet after a 3x3 stem.
- ``plain34`` has no shortcuts.
- ``resnet50d``, ``resnetv2_50``, ``seresnet50`` and similar names are timm's.
- ``keras_`` and ``caffe_`` networks differ in strides, epsilon, biases and the edge of the pool.

This module imports no torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from resnetkit.architecture import spec as specs
from resnetkit.architecture.spec import Conv, Network, Shortcuts, Stage, Stem, count_classes, replace_classes
from resnetkit.errors import UsageError, find_closest
from resnetkit.serialization import from_json, from_toml, read_text

CIFAR_INPUT = (3, 32, 32)
STEMS_3X3 = {64: Stem((Conv(64, 3),), ()), 16: Stem((Conv(16, 3),), ())}


def _make_stages(blocks: tuple[int, ...], channels: int, branches: list[specs.Branch]) -> tuple[Stage, ...]:
    """Return stages that double the channels; all but the first halve the map."""
    return tuple(
        Stage(n, channels * 2**i, branch, specs.FirstBlock(1 if i == 0 else 2))
        for i, (n, branch) in enumerate(zip(blocks, branches, strict=True))
    )


def _make_basic(*blocks: int, channels: int = 64, **network_fields: Any) -> Network:
    branches: list[specs.Branch] = [specs.Basic(channels * 2**i) for i in range(len(blocks))]
    return Network(_make_stages(blocks, channels, branches), **network_fields)


def _make_bottleneck(
    *blocks: int, width: int = 64, groups: int = 1, v1: bool = False, **network_fields: Any
) -> Network:
    branches: list[specs.Branch] = [specs.Bottleneck(width * 2**i, groups, 1 if v1 else 2) for i in range(len(blocks))]
    return Network(_make_stages(blocks, 256, branches), **network_fields)


def _add_attention(network: Network, attention: specs.Attention) -> Network:
    """Add attention to the end of every branch."""
    return replace(network, stages=tuple(replace(stage, attention=(attention,)) for stage in network.stages))


def add_blur(network: Network, kernel: int = 3) -> Network:
    """Add a blur wherever the map gets smaller, except in shortcuts.

    Args:
        network: the network.
        kernel: 3 for timm's resnetblur; 2, an average pool, for its resnetaa, which has no max pool in the stem.
    """
    stages = [
        replace(stage, reduce=specs.BlurredFirstBlock(stage.reduce.stride, blur=kernel))
        if stage.reduce.stride > 1
        else stage
        for stage in network.stages
    ]
    pool = () if kernel == specs.AVERAGE_KERNEL else (specs.MaxPool(3, 1),)
    stem = replace(network.stem, pool=pool, blur=(specs.Blur(kernel),))
    return replace(network, stages=tuple(stages), stem=stem)


def _make_keras_v2(*blocks: int) -> Network:
    """Return a network of Keras V2, where the last block of a stage has the stride of the stage after it."""
    network = _make_bottleneck(*blocks, **_KERAS_V2)
    *stages, last_stage = network.stages
    stages = [replace(stage, reduce=specs.LastBlock(2)) for stage in stages]
    return replace(network, stages=(*stages, replace(last_stage, reduce=specs.LastBlock())))


def _make_vgg(*blocks: int, norm: specs.Norm = specs.NoNorm()) -> Network:  # noqa: B008  NoNorm is frozen
    """Return a VGG (arXiv 1409.1556, table 1): 3x3 convolutions, a pool after each stage, linear layers."""
    rows = zip(blocks, (64, 128, 256, 512, 512), strict=True)
    stages = [Stage(n, width, specs.Chain((specs.Step(width),)), specs.PoolAfter()) for n, width in rows]
    return Network(tuple(stages), Stem((), ()), specs.MLP(), shortcuts=specs.NoShortcuts(), norm=norm, bias="always")


def _make_cifar(depth: int, shortcuts: Shortcuts | specs.NoShortcuts) -> Network:
    """Return a network of the paper's section 4.2: 6n + 2 layers with 16, 32 and 64 channels."""
    blocks, stem, head = 3 * [(depth - 2) // 6], STEMS_3X3[16], specs.Linear(10)
    return _make_basic(*blocks, channels=16, stem=stem, head=head, input=CIFAR_INPUT, shortcuts=shortcuts)


def _adapt_to_cifar(network: Network) -> Network:
    """Return the stages of an ImageNet network after a 3x3 stem without a pool (kuangliu's networks)."""
    return Network(network.stages, STEMS_3X3[64], specs.Linear(10), CIFAR_INPUT)


_DEEP_STEM = Stem((Conv(32, 3, 2), Conv(32), Conv(64)))
_TIERED_STEM = Stem((Conv(24, 3, 2), Conv(32), Conv(64)))
_WIDE_STEM = Stem((Conv(64, 3, 2), Conv(64), Conv(128)))
_VARIANT_C: dict[str, Any] = {"stem": _DEEP_STEM}
_VARIANT_D: dict[str, Any] = {"stem": _DEEP_STEM, "shortcuts": specs.OPTION_D}
_VARIANT_S: dict[str, Any] = {"stem": _WIDE_STEM}
_VARIANT_T: dict[str, Any] = {"stem": _TIERED_STEM, "shortcuts": specs.OPTION_D}
_PRE_ACTIVATION: dict[str, Any] = {"order": "norm-act-conv", "bias": "never"}
_KERAS_NORM = specs.BatchNorm(1.001e-5, 0.01)
_KERAS: dict[str, Any] = {"v1": True, "norm": _KERAS_NORM, "bias": "always"}
_KERAS_V2: dict[str, Any] = {
    "order": "norm-act-conv",
    "norm": _KERAS_NORM,
    "shortcuts": Shortcuts(specs.Projection(), specs.Subsampled(), specs.Identity()),
    "stem": Stem(pool=(specs.MaxPool(3, 2, "zeros"),)),
}
_CAFFE: dict[str, Any] = {"v1": True, "stem": Stem(pool=(specs.MaxPool(3, 2, "ceil"),))}
_PLAIN: dict[str, Any] = {"shortcuts": specs.NoShortcuts()}
_VGG = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_BOTTLENECK_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # depth -> blocks of each stage
_CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)

CATALOG: dict[str, Network] = {
    "resnet18": _make_basic(2, 2, 2, 2),
    "resnet34": _make_basic(3, 4, 6, 3),
    "resnet50": _make_bottleneck(3, 4, 6, 3),
    "resnet101": _make_bottleneck(3, 4, 23, 3),
    "resnet152": _make_bottleneck(3, 8, 36, 3),
    "resnext50_32x4d": _make_bottleneck(3, 4, 6, 3, width=128, groups=32),
    "resnext101_32x8d": _make_bottleneck(3, 4, 23, 3, width=256, groups=32),
    "resnext101_64x4d": _make_bottleneck(3, 4, 23, 3, width=256, groups=64),
    "wide_resnet50_2": _make_bottleneck(3, 4, 6, 3, width=128),
    "wide_resnet101_2": _make_bottleneck(3, 4, 23, 3, width=128),
    **{f"resnet{depth}_v1": _make_bottleneck(*blocks, v1=True) for depth, blocks in _BOTTLENECK_BLOCKS.items()},
    "resnet18_a": _make_basic(2, 2, 2, 2, shortcuts=specs.OPTION_A),
    "resnet18_c": _make_basic(2, 2, 2, 2, shortcuts=specs.OPTION_C),
    "resnet34_a": _make_basic(3, 4, 6, 3, shortcuts=specs.OPTION_A),
    "resnet34_c": _make_basic(3, 4, 6, 3, shortcuts=specs.OPTION_C),
    "plain18": _make_basic(2, 2, 2, 2, **_PLAIN),
    "plain34": _make_basic(3, 4, 6, 3, **_PLAIN),
    **{f"resnet{depth}": _make_cifar(depth, specs.OPTION_A) for depth in _CIFAR_DEPTHS},
    **{f"resnet{depth}_a_end": _make_cifar(depth, specs.OPTION_A_END) for depth in _CIFAR_DEPTHS},
    **{f"resnet{depth}_b": _make_cifar(depth, specs.OPTION_B) for depth in _CIFAR_DEPTHS},
    **{f"resnet{depth}_c": _make_cifar(depth, specs.OPTION_C) for depth in _CIFAR_DEPTHS},
    **{f"plain{depth}": _make_cifar(depth, specs.NoShortcuts()) for depth in _CIFAR_DEPTHS if depth < 1000},
    "resnet10t": _make_basic(1, 1, 1, 1, **_VARIANT_T),
    "resnet14t": _make_bottleneck(1, 1, 1, 1, **_VARIANT_T),
    "resnet18d": _make_basic(2, 2, 2, 2, **_VARIANT_D),
    "resnet26": _make_bottleneck(2, 2, 2, 2),
    "resnet26d": _make_bottleneck(2, 2, 2, 2, **_VARIANT_D),
    "resnet26t": _make_bottleneck(2, 2, 2, 2, **_VARIANT_T),
    "resnet34d": _make_basic(3, 4, 6, 3, **_VARIANT_D),
    "resnet50c": _make_bottleneck(3, 4, 6, 3, **_VARIANT_C),
    "resnet50d": _make_bottleneck(3, 4, 6, 3, **_VARIANT_D),
    "resnet50s": _make_bottleneck(3, 4, 6, 3, **_VARIANT_S),
    "resnet50t": _make_bottleneck(3, 4, 6, 3, **_VARIANT_T),
    "resnet101d": _make_bottleneck(3, 4, 23, 3, **_VARIANT_D),
    "resnet152d": _make_bottleneck(3, 8, 36, 3, **_VARIANT_D),
    "resnet200": _make_bottleneck(3, 24, 36, 3),
    "resnet200d": _make_bottleneck(3, 24, 36, 3, **_VARIANT_D),
    "seresnet50": _add_attention(_make_bottleneck(3, 4, 6, 3), specs.SqueezeExcite()),
    "seresnext50_32x4d": _add_attention(_make_bottleneck(3, 4, 6, 3, width=128, groups=32), specs.SqueezeExcite()),
    "ecaresnet50d": _add_attention(_make_bottleneck(3, 4, 6, 3, **_VARIANT_D), specs.EfficientChannels()),
    "resnetblur18": add_blur(_make_basic(2, 2, 2, 2)),
    "resnetblur50": add_blur(_make_bottleneck(3, 4, 6, 3)),
    "resnetblur50d": add_blur(_make_bottleneck(3, 4, 6, 3, **_VARIANT_D)),
    "resnetblur101d": add_blur(_make_bottleneck(3, 4, 23, 3, **_VARIANT_D)),
    "resnetaa34d": add_blur(_make_basic(3, 4, 6, 3, **_VARIANT_D), specs.AVERAGE_KERNEL),
    "resnetaa50": add_blur(_make_bottleneck(3, 4, 6, 3), specs.AVERAGE_KERNEL),
    "resnetaa50d": add_blur(_make_bottleneck(3, 4, 6, 3, **_VARIANT_D), specs.AVERAGE_KERNEL),
    "resnetaa101d": add_blur(_make_bottleneck(3, 4, 23, 3, **_VARIANT_D), specs.AVERAGE_KERNEL),
    "resnetv2_50": _make_bottleneck(3, 4, 6, 3, **_PRE_ACTIVATION),
    "resnetv2_50d": _make_bottleneck(3, 4, 6, 3, **_VARIANT_D, **_PRE_ACTIVATION),
    "resnetv2_50t": _make_bottleneck(3, 4, 6, 3, **_VARIANT_T, **_PRE_ACTIVATION),
    "resnetv2_101": _make_bottleneck(3, 4, 23, 3, **_PRE_ACTIVATION),
    "resnetv2_101d": _make_bottleneck(3, 4, 23, 3, **_VARIANT_D, **_PRE_ACTIVATION),
    "resnetv2_152": _make_bottleneck(3, 8, 36, 3, **_PRE_ACTIVATION),
    "resnetv2_152d": _make_bottleneck(3, 8, 36, 3, **_VARIANT_D, **_PRE_ACTIVATION),
    **{f"keras_resnet{depth}": _make_bottleneck(*blocks, **_KERAS) for depth, blocks in _BOTTLENECK_BLOCKS.items()},
    **{f"keras_resnet{depth}v2": _make_keras_v2(*blocks) for depth, blocks in _BOTTLENECK_BLOCKS.items()},
    **{f"caffe_resnet{depth}": _make_bottleneck(*blocks, **_CAFFE) for depth, blocks in _BOTTLENECK_BLOCKS.items()},
    **{f"vgg{depth}": _make_vgg(*blocks) for depth, blocks in _VGG.items()},
    **{f"vgg{depth}_bn": _make_vgg(*blocks, norm=specs.BatchNorm()) for depth, blocks in _VGG.items()},
    "cifar_resnet18": _adapt_to_cifar(_make_basic(2, 2, 2, 2)),
    "cifar_resnet34": _adapt_to_cifar(_make_basic(3, 4, 6, 3)),
    **{
        f"cifar_resnet{depth}": _adapt_to_cifar(_make_bottleneck(*blocks))
        for depth, blocks in _BOTTLENECK_BLOCKS.items()
    },
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, in the order of the catalog.

    A pattern without wildcards matches any part of a name.
    """
    glob_pattern = pattern if any(wildcard in pattern for wildcard in "*?[") else f"*{pattern}*"
    return [name for name in CATALOG if fnmatchcase(name, glob_pattern)]


_WEIGHTS_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".ckpt", ".safetensors", ".h5", ".keras", ".npz")
_ALLOWED_SOURCES = "use a name of the catalog, a .toml or .json file, a model folder or a run folder"


def spec(source: str | Path | Network) -> Network:
    """Return the spec for a name of the catalog, a ``.toml`` or ``.json`` file, or a spec itself.

    Raises:
        UsageError: an unknown name (the error suggests a similar one), or a missing file.
        TextError: with all faults of the file.
    """
    if isinstance(source, Network):
        return source
    if str(source).endswith((".toml", ".json")):
        path = Path(source)
        parse = from_toml if path.suffix == ".toml" else from_json
        return parse(Network, read_text(path, "this network"), str(path))
    if source not in CATALOG and (os.sep in str(source) or str(source).endswith(_WEIGHTS_SUFFIXES)):
        parent = Path(source).parent
        siblings = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        closest = find_closest(Path(source).name, siblings)  # whole paths are similar if their parents are long
        is_hub_name = not parent.is_dir() and not str(source).endswith(_WEIGHTS_SUFFIXES)  # microsoft/resnet-50
        name = find_similar_network(str(source)) if is_hub_name else ""
        suggestion = str(parent / closest[0]) if closest else name
        fix = f"did you mean {suggestion}?" if suggestion else _ALLOWED_SOURCES
        raise UsageError("no such file or folder", where=str(source), fix=fix)
    if source not in CATALOG:
        name = find_similar_network(str(source))
        fix = f"did you mean {name}?" if name else "`resnetkit models` lists every name"
        raise UsageError(f"unknown network {str(source)!r}", where="model", fix=fix)
    return CATALOG[str(source)]


def find_similar_network(name: str) -> str:
    """Return the network that a name of another library or a mistyped name means, or nothing.

    ``microsoft/resnet-50``, ``ResNet50_Weights`` and ``resnet50.a1_in1k`` all mean ``resnet50``.
    """
    bare_name = name.rpartition("/")[2].partition(".")[0].lower().removesuffix("_weights")
    simple_names = {re.sub("[-_]", "", known): known for known in reversed(CATALOG)}
    simple_name = re.sub("[-_]", "", bare_name)
    return simple_names.get(simple_name) or next(iter(find_closest(name, CATALOG, cutoff=0.7, same_numbers=True)), "")


def get_network_name(source: str | Path | Network) -> str:
    """Return the name of a network: the given name, the stem of its file, or the row with its spec."""
    if isinstance(source, Network):
        return next((name for name, network in CATALOG.items() if network == source), "custom")
    return Path(source).stem


def find_catalog_name(spec: Network) -> str:
    """Return the name of the network that differs only in classes and image size, or ``custom``."""
    n_classes = count_classes(spec.head)
    for name, network in CATALOG.items():
        resized = replace(network, input=spec.input)
        if spec == (replace_classes(resized, n_classes) if n_classes else replace(resized, head=spec.head)):
            return name
    return "custom"
