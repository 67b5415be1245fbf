"""How other libraries are told which network to make: a spec as the words of their constructors, and back.

A library can express a network exactly where the words that describe it, read back, give the same spec; where they do
not, the first difference is the reason. Image sizes are left out: no constructor takes them.

This module imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from resnetkit.architecture.spec import (
    MLP,
    OPTION_A,
    OPTION_D,
    Attention,
    Basic,
    BatchNorm,
    Blur,
    BlurredFirstBlock,
    Bottleneck,
    Branch,
    Chain,
    Conv,
    EfficientChannels,
    FirstBlock,
    Linear,
    MaxPool,
    Network,
    NoNorm,
    NoShortcuts,
    PoolAfter,
    Shortcuts,
    SqueezeExcite,
    Stage,
    Stem,
    Step,
    class_count,
)
from resnetkit.errors import UsageError
from resnetkit.weights.dialects import is_vgg

Words = dict[str, Any]
_IMAGENET_STEM = Stem((Conv(64, 7, 2),), (MaxPool(3, 2),))


@dataclass(frozen=True)
class Library:
    """``words`` describes a spec as far as a ``family`` of the library has words for it, ``spec`` is what they mean
    there.
    """

    name: str
    words: Callable[[Network], Words]
    spec: Callable[[Words], Network]
    family: str = "resnet"


def expressed(spec: Network, library: tuple[Library, ...]) -> Words:
    """The words for this network, ``family`` among them; raises `UsageError` with the first thing that has none."""
    family = next((each for each in library if each.family == _family(spec)), library[0])
    if not class_count(spec.head):
        raise UsageError(f"{family.name} cannot express this network: it has no classifier", where="head")
    words = family.words(spec)
    there = family.spec(words)
    # no constructor takes the size of images; what is left out in training is no part of what weights mean
    meant = replace(there, input=(there.input[0], *spec.input[1:]), stochastic_depth=spec.stochastic_depth)
    if meant != spec:
        where, here, other = _difference(spec, meant)
        what = f"{family.name} cannot express this network: it has {here} here, and {other} there"
        raise UsageError(what, where=where)
    return words | {"family": family.family}


def _family(spec: Network) -> str:
    return "vgg" if is_vgg(spec) else "resnetv2" if spec.order == "norm-act-conv" else "resnet"


def _difference(here: Any, there: Any, path: str = "") -> tuple[str, str, str]:
    """(path, value here, value there) of the first difference."""
    if dataclasses.is_dataclass(here) and type(here) is type(there):
        names = [field.name for field in dataclasses.fields(here)]
        pairs = [(f"{path}.{name}".lstrip("."), getattr(here, name), getattr(there, name)) for name in names]
    elif isinstance(here, tuple) and isinstance(there, tuple) and len(here) == len(there):
        pairs = [(f"{path.removesuffix('s')}{i}", *both) for i, both in enumerate(zip(here, there, strict=True), 1)]
    else:
        return path, _shown(here), _shown(there)
    return next(_difference(a, b, where) for where, a, b in pairs if a != b)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} of them"
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)


def _branch(spec: Network) -> tuple[str, int, int]:
    """(basic or bottleneck, groups, width of a group in the first stage)."""
    first = spec.stages[0].branch
    if isinstance(first, Bottleneck):
        return "bottleneck", first.groups, max(first.width // max(first.groups, 1), 1)
    return "basic", 1, 64


def _layers(spec: Network) -> list[int]:
    return [stage.blocks for stage in spec.stages]


def _stages(block: str, layers: list[int], groups: int = 1, width: int = 64, channels: int = 64) -> tuple[Stage, ...]:
    """Stages that double their channels; all but the first halve the map."""
    made = []
    for i, blocks in enumerate(layers):
        planes = channels * 2**i
        branch: Branch = Basic(planes) if block == "basic" else Bottleneck(int(planes * (width / 64)) * groups, groups)
        out = planes if block == "basic" else 4 * planes
        made.append(Stage(blocks, out, branch, FirstBlock(1 if i == 0 else 2)))
    return tuple(made)


# ------------------------------------------------------------------------------------------------ torchvision and timm


def _torchvision_words(spec: Network) -> Words:
    block, groups, width = _branch(spec)
    return {
        "block": block,
        "layers": _layers(spec),
        "num_classes": _classes(spec),
        "groups": groups,
        "width_per_group": width,
    }


def _torchvision_spec(words: Words) -> Network:
    layers = (words["layers"] + [1, 1, 1, 1])[:4]  # it makes four stages, whatever it is asked for
    stages = _stages(words["block"], layers, words["groups"], words["width_per_group"])
    return Network(stages, _IMAGENET_STEM, Linear(words["num_classes"]))


def _timm_words(spec: Network) -> Words:
    block, groups, width = _branch(spec)
    widths = [conv.channels for conv in spec.stem.convs]
    kind = "" if len(widths) != 3 else "deep" if widths[0] == widths[1] else "deep_tiered"
    return {
        "block": block,
        "layers": _layers(spec),
        "num_classes": _classes(spec),
        "in_chans": spec.input[0],
        "cardinality": groups,
        "base_width": width,
        "stem_type": kind,
        "stem_width": widths[1] if kind else 64,
        "avg_down": spec.shortcuts == OPTION_D,
        "attention": _attention(spec),
        "blur": bool(spec.stem.blur),
        "drop_path_rate": spec.stochastic_depth,
    }


def _attention(spec: Network) -> str:
    return {SqueezeExcite: "se", EfficientChannels: "eca"}.get(type((*spec.stages[0].attention, None)[0]), "")


def _timm_spec(words: Words) -> Network:
    stem, width = _IMAGENET_STEM, words["stem_width"]
    if words["stem_type"]:
        first = width if words["stem_type"] == "deep" else 3 * (width // 4)
        stem = Stem((Conv(first, 3, 2), Conv(width), Conv(2 * width)), (MaxPool(3, 2),))
    layers = (words["layers"] + [1, 1, 1, 1])[:4]  # it makes four stages, whatever it is asked for
    stages = _stages(words["block"], layers, words["cardinality"], words["base_width"])
    known: dict[str, tuple[Attention, ...]] = {"se": (SqueezeExcite(),), "eca": (EfficientChannels(),)}
    attention = known.get(words["attention"], ())
    stages = tuple(replace(stage, attention=attention) for stage in stages)
    if words["blur"]:
        stem = replace(stem, pool=(MaxPool(3, 1),), blur=(Blur(),))
        stages = (stages[0], *(replace(stage, reduce=BlurredFirstBlock()) for stage in stages[1:]))
    shortcuts = OPTION_D if words["avg_down"] else Shortcuts()
    return Network(stages, stem, Linear(words["num_classes"]), (words["in_chans"], 224, 224), shortcuts)


def _timm_v2_words(spec: Network) -> Words:
    widths = [conv.channels for conv in spec.stem.convs]
    kind = "" if len(widths) != 3 else "deep" if widths[0] == widths[1] else "tiered"
    return {
        "layers": _layers(spec),
        "channels": [stage.channels for stage in spec.stages],
        "num_classes": _classes(spec),
        "in_chans": spec.input[0],
        "stem_chs": widths[-1] if widths else 64,
        "stem_type": kind,
        "avg_down": spec.shortcuts == OPTION_D,
    }


def _timm_v2_spec(words: Words) -> Network:
    out, kind = words["stem_chs"], words["stem_type"]
    first = 3 * out // 8 if kind == "tiered" else out // 2
    convs = (Conv(first, 3, 2), Conv(out // 2), Conv(out)) if kind else (Conv(out, 7, 2),)
    stages = tuple(
        Stage(blocks, channels, Bottleneck(max(channels // 4, 1)), FirstBlock(1 if i == 0 else 2))
        for i, (blocks, channels) in enumerate(zip(words["layers"], words["channels"], strict=True))
    )
    return Network(
        stages,
        Stem(convs, (MaxPool(3, 2),)),
        Linear(words["num_classes"]),
        (words["in_chans"], 224, 224),
        OPTION_D if words["avg_down"] else Shortcuts(),
        order="norm-act-conv",
        bias="never",
    )


def _vgg_words(spec: Network) -> Words:
    head = spec.head if isinstance(spec.head, MLP) else MLP()
    cfg = [entry for stage in spec.stages for entry in [*[stage.channels] * stage.blocks, "M"]]
    norms = isinstance(spec.norm, BatchNorm)
    return {"cfg": cfg, "batch_norm": norms, "num_classes": head.classes, "dropout": head.dropout}


def _vgg_spec(words: Words) -> Network:
    runs: list[int] = []
    stages: list[Stage] = []
    for entry in words["cfg"]:
        if entry == "M":
            stages.append(Stage(len(runs), runs[-1], Chain((Step(runs[-1]),)), PoolAfter()))
            runs = []
        else:
            runs.append(entry)
    norm = BatchNorm() if words["batch_norm"] else NoNorm()
    head = MLP(words["num_classes"], dropout=words["dropout"])
    return Network(tuple(stages), Stem((), ()), head, shortcuts=NoShortcuts(), norm=norm, bias="always")


def _classes(spec: Network) -> int:
    return spec.head.classes if isinstance(spec.head, Linear) else 0


# ------------------------------------------------------------------------------------------------------ Hugging Face


def _hugging_face_words(spec: Network) -> Words:
    first = spec.stages[0].branch
    return {
        "num_channels": spec.input[0],
        "embedding_size": spec.stem.convs[-1].channels if spec.stem.convs else 0,
        "hidden_sizes": [stage.channels for stage in spec.stages],
        "depths": _layers(spec),
        "layer_type": "bottleneck" if isinstance(first, Bottleneck) else "basic",
        "hidden_act": "relu",  # another one would be used in the stem and behind additions only, never in a branch
        "downsample_in_first_stage": spec.stages[0].reduce.stride == 2,
        "downsample_in_bottleneck": isinstance(first, Bottleneck) and first.stride_at == 1,
        "num_labels": _classes(spec),
    }


def hugging_face_spec(words: Mapping[str, Any]) -> Network:
    """What a ``config.json`` of transformers means."""
    stages = []
    for i, (out, blocks) in enumerate(zip(words["hidden_sizes"], words["depths"], strict=True)):
        at = 1 if words.get("downsample_in_bottleneck") else 2
        basic = words["layer_type"] == "basic"
        branch: Branch = Basic(out) if basic else Bottleneck(max(out // 4, 1), 1, 1 if at == 1 else 2)
        halved = i > 0 or words.get("downsample_in_first_stage", False)
        stages.append(Stage(blocks, out, branch, FirstBlock(2 if halved else 1)))
    stem = Stem((Conv(words["embedding_size"], 7, 2),), (MaxPool(3, 2),))
    images = (words.get("num_channels", 3), 224, 224)
    return Network(tuple(stages), stem, Linear(words["num_labels"]), images)


# ----------------------------------------------------------------------------------------------- code for CIFAR


def _kuangliu_spec(words: Words) -> Network:
    layers = (words["num_blocks"] + [1, 1, 1, 1])[:4]
    stem = Stem((Conv(64, 3),), ())
    return Network(_stages(words["block"], layers), stem, Linear(words["num_classes"]), (3, 32, 32))


def _akamaster_spec(words: Words) -> Network:
    stages = _stages("basic", (words["num_blocks"] + [1, 1, 1])[:3], channels=16)
    return Network(stages, Stem((Conv(16, 3),), ()), Linear(words["num_classes"]), (3, 32, 32), OPTION_A)


def _cifar_words(spec: Network) -> Words:
    return {"block": _branch(spec)[0], "num_blocks": _layers(spec), "num_classes": _classes(spec)}


LIBRARIES: dict[str, tuple[Library, ...]] = {
    "torchvision": (
        Library("torchvision", _torchvision_words, _torchvision_spec),
        Library("torchvision", _vgg_words, _vgg_spec, "vgg"),
    ),
    "timm": (
        Library("timm", _timm_words, _timm_spec),
        Library("timm", _timm_v2_words, _timm_v2_spec, "resnetv2"),
    ),
    "hf": (Library("transformers", _hugging_face_words, hugging_face_spec),),
    "kuangliu": (Library("kuangliu's code", _cifar_words, _kuangliu_spec),),
    "akamaster": (Library("akamaster's code", _cifar_words, _akamaster_spec),),
}
