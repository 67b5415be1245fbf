"""Translate a spec to the constructor arguments of other libraries, and back.

A library can express a network if the arguments for it, translated back, give the same spec. If they do not, the first
difference is the reason. Image sizes are ignored, because no constructor takes them.

This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from resnetkit.architecture import spec as specs
from resnetkit.architecture.catalog import add_blur
from resnetkit.errors import UsageError
from resnetkit.weights.dialects import is_vgg

ConstructorArgs = dict[str, Any]


@dataclass(frozen=True)
class Library:
    """A family of networks of a library, with the translation of a spec to its constructor arguments and back."""

    name: str
    to_args: Callable[[specs.Network], ConstructorArgs]
    to_spec: Callable[[ConstructorArgs], specs.Network]
    family: str = "resnet"


def build_constructor_args(spec: specs.Network, library: tuple[Library, ...]) -> ConstructorArgs:
    """Return the constructor arguments for a network, with ``family``.

    Args:
        spec: The network.
        library: The families of the library.

    Raises:
        UsageError: the library cannot express the network; the error has the first difference.
    """
    family = next((candidate for candidate in library if candidate.family == _select_family(spec)), library[0])
    if not specs.count_classes(spec.head):
        message = f"{family.name} cannot express this network: it has no classifier"
        raise UsageError(message, where="head", fix="add one with surgery.classes")
    kwargs = family.to_args(spec)
    their_spec = family.to_spec(kwargs)
    # no constructor takes the size of images, and stochastic depth does not change what the weights compute
    round_trip = replace(
        their_spec, input=(their_spec.input[0], *spec.input[1:]), stochastic_depth=spec.stochastic_depth
    )
    if round_trip != spec:
        path, our_value, their_value = _find_difference(spec, round_trip)
        message = f"{family.name} cannot express this network: it has {our_value}, {family.name} builds {their_value}"
        raise UsageError(message, where=path, fix="another dialect, or a model folder: --to resnetkit")
    return kwargs | {"family": family.family}


def _select_family(spec: specs.Network) -> str:
    return "vgg" if is_vgg(spec) else "resnetv2" if spec.order == "norm-act-conv" else "resnet"


def _find_difference(ours: Any, theirs: Any, path: str = "") -> tuple[str, str, str]:
    """Return (path, our value, their value) of the first difference."""
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        names = [field.name for field in dataclasses.fields(ours)]
        pairs = [(f"{path}.{name}".lstrip("."), getattr(ours, name), getattr(theirs, name)) for name in names]
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        pairs = [(f"{path.removesuffix('s')}{i}", *pair) for i, pair in enumerate(zip(ours, theirs, strict=True), 1)]
    else:
        return path, _format_value(ours), _format_value(theirs)
    return next(_find_difference(a, b, subpath) for subpath, a, b in pairs if a != b)


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} items"
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)


def _describe_branch(spec: specs.Network) -> tuple[str, int, int]:
    """Return (basic or bottleneck, groups, width of a group in the first stage)."""
    match spec.stages[0].branch:
        case specs.Bottleneck(width, groups):
            return "bottleneck", groups, max(width // max(groups, 1), 1)
    return "basic", 1, 64


def _build_stages(
    block: str, layers: list[int], groups: int = 1, width: int = 64, channels: Sequence[int] = (64, 128, 256, 512)
) -> tuple[specs.Stage, ...]:
    """Return one stage for each number of channels; all but the first halve the map.

    The constructors build a fixed number of stages, so missing ones have one block and further ones are ignored.
    """
    stages = []
    for i, planes in enumerate(channels):
        blocks = layers[i] if i < len(layers) else 1
        branch: specs.Branch = (
            specs.Basic(planes) if block == "basic" else specs.Bottleneck(int(planes * (width / 64)) * groups, groups)
        )
        out_channels = planes if block == "basic" else 4 * planes
        stages.append(specs.Stage(blocks, out_channels, branch, specs.FirstBlock(1 if i == 0 else 2)))
    return tuple(stages)


# ------------------------------------------------------------------------------------------------ torchvision and timm


def _build_torchvision_args(spec: specs.Network) -> ConstructorArgs:
    block, groups, width = _describe_branch(spec)
    return _describe_depth(spec) | {"block": block, "groups": groups, "width_per_group": width}


def _describe_depth(spec: specs.Network) -> ConstructorArgs:
    """Return the two arguments that torchvision's and timm's constructors share."""
    return {"layers": [stage.blocks for stage in spec.stages], "num_classes": specs.count_classes(spec.head)}


def _build_torchvision_spec(kwargs: ConstructorArgs) -> specs.Network:
    stages = _build_stages(kwargs["block"], kwargs["layers"], kwargs["groups"], kwargs["width_per_group"])
    return specs.Network(stages, _build_stem(64), specs.Linear(kwargs["num_classes"]))


def _build_timm_args(spec: specs.Network) -> ConstructorArgs:
    block, groups, width = _describe_branch(spec)
    stem_type, widths = _describe_stem(spec)
    attention_types = [type(attention) for attention in spec.stages[0].attention]
    return _describe_depth(spec) | {
        "block": block,
        "in_chans": spec.input[0],
        "cardinality": groups,
        "base_width": width,
        "stem_type": stem_type.replace("tiered", "deep_tiered"),
        "stem_width": widths[1] if stem_type else 64,
        "avg_down": spec.shortcuts == specs.OPTION_D,
        "attention": next((name for name, row in _ATTENTIONS.items() if [*map(type, row)] == attention_types), ""),
        "blur": spec.stem.blur[0].kernel if spec.stem.blur else 0,
        "drop_path_rate": spec.stochastic_depth,
    }


_ATTENTIONS: dict[str, tuple[specs.Attention, ...]] = {
    "": (), "se": (specs.SqueezeExcite(),), "eca": (specs.EfficientChannels(),),
}  # fmt: skip


def _describe_stem(spec: specs.Network) -> tuple[str, list[int]]:
    """Return timm's name for a stem and the channels of its convolutions; one convolution has no name."""
    widths = [conv.channels for conv in spec.stem.convs]
    return "" if len(widths) != 3 else "deep" if widths[0] == widths[1] else "tiered", widths


def _build_stem(*widths: int) -> specs.Stem:
    """Return the stem of a 7x7 convolution, or of three 3x3 convolutions."""
    first, *rest = widths
    convs = (specs.Conv(first, 3 if rest else 7, 2), *map(specs.Conv, rest))
    return specs.Stem(convs, (specs.MaxPool(3, 2),))


def _build_timm_spec(kwargs: ConstructorArgs) -> specs.Network:
    width = kwargs["stem_width"]
    first = width if kwargs["stem_type"] == "deep" else 3 * (width // 4)
    stem = _build_stem(first, width, 2 * width) if kwargs["stem_type"] else _build_stem(64)
    channels = kwargs.get("channels", (64, 128, 256, 512))
    stages = _build_stages(kwargs["block"], kwargs["layers"], kwargs["cardinality"], kwargs["base_width"], channels)
    stages = tuple(replace(stage, attention=_ATTENTIONS[kwargs["attention"]]) for stage in stages)
    shortcuts = specs.OPTION_D if kwargs["avg_down"] else specs.Shortcuts()
    head, input_shape = specs.Linear(kwargs["num_classes"]), (kwargs["in_chans"], 224, 224)
    network = specs.Network(stages, stem, head, input_shape, shortcuts)
    return add_blur(network, kwargs["blur"]) if kwargs["blur"] else network


def _build_timm_v2_args(spec: specs.Network) -> ConstructorArgs:
    stem_type, widths = _describe_stem(spec)
    return _describe_depth(spec) | {
        "channels": [stage.channels for stage in spec.stages],
        "basic": isinstance(spec.stages[0].branch, specs.Basic),
        "bottle_ratio": 1.0 if isinstance(spec.stages[0].branch, specs.Basic) else 0.25,
        "in_chans": spec.input[0],
        "stem_chs": widths[-1] if widths else 64,
        "stem_type": stem_type,
        "avg_down": spec.shortcuts == specs.OPTION_D,
    }


def _build_timm_v2_spec(kwargs: ConstructorArgs) -> specs.Network:
    out_channels, stem_type = kwargs["stem_chs"], kwargs["stem_type"]
    first = 3 * out_channels // 8 if stem_type == "tiered" else out_channels // 2
    stem = _build_stem(first, out_channels // 2, out_channels) if stem_type else _build_stem(out_channels)
    stages = tuple(
        specs.Stage(
            blocks,
            channels,
            specs.Basic(channels) if kwargs["basic"] else specs.Bottleneck(max(channels // 4, 1)),
            specs.FirstBlock(1 if i == 0 else 2),
        )
        for i, (blocks, channels) in enumerate(zip(kwargs["layers"], kwargs["channels"], strict=True))
    )
    return specs.Network(
        stages,
        stem,
        specs.Linear(kwargs["num_classes"]),
        (kwargs["in_chans"], 224, 224),
        specs.OPTION_D if kwargs["avg_down"] else specs.Shortcuts(),
        order="norm-act-conv",
        bias="never",
    )


_TIMM_DEPTHS = {
    10: (1, 1, 1, 1), 14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3),
    101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 201: (3, 24, 36, 4), 269: (3, 30, 48, 8),
}  # fmt: skip
_BASIC_DEPTHS = (10, 18, 34)
_TIMM_NAME = re.compile(
    r"(?P<attention>se|eca)?(?P<wide>wide_)?resnex?t(?P<blur>aa|blur)?(?P<depth>\d{2,3})(?P<variant>[cdst])?"
    r"(?:_(?P<groups>\d{1,3})x(?P<width>\d{1,3})d)?(?P<twice>_2)?"
)
_TIMM_V2_NAME = re.compile(r"resnetv2_(?P<depth>\d{2,3})(?P<variant>[dt])?")
_TIMM_BLURS = {None: 0, "aa": specs.AVERAGE_KERNEL, "blur": 3}
_TIMM_STEMS = {"c": "deep", "d": "deep", "s": "deep", "t": "deep_tiered"}
_TIMM_EXCEPTIONS: dict[str, ConstructorArgs] = {"seresnextaa201d_32x8d": {"stem_width": 64}}
_ANY = object()
_TIMM_NEUTRAL_ARGS: dict[str, tuple[Any, ...]] = {  # options of timm -> the values that change nothing
    "output_stride": (32, None), "global_pool": ("avg", "fast", None), "act_layer": (None, "relu"),
    "norm_layer": (None, "batchnorm2d"), "drop_rate": (_ANY,), "drop_path_rate": (_ANY,), "drop_block_rate": (_ANY,),
    "zero_init_last": (_ANY,), "aa_layer": (None,), "block_args": (None, {}), "replace_stem_pool": (False,),
    "block_reduce_first": (1,), "down_kernel_size": (1,),
}  # fmt: skip


def build_timm_architecture(name: str, model_args: Mapping[str, Any]) -> specs.Network:
    """Return the network that timm's ``create_model`` builds for a name and its arguments.

    Args:
        name: The name of the architecture, such as ``resnetblur50``.
        model_args: The arguments that differ from the defaults, such as ``layers``.

    Raises:
        UsageError: timm's name or one of the arguments is not supported.
    """
    bare_name = name.partition(".")[0]
    match, match_v2 = _TIMM_NAME.fullmatch(bare_name), _TIMM_V2_NAME.fullmatch(bare_name)
    depth = int((match or match_v2 or {"depth": 0})["depth"])
    is_wide = bool(match and match["wide"] and match["twice"])
    if depth not in _TIMM_DEPTHS or (match and not is_wide and (match["wide"] or match["twice"])):
        raise UsageError(f"the network {name[:60]!r} is not supported", where="architecture")
    build = _build_timm_spec if match else _build_timm_v2_spec
    kwargs = _list_timm_args(match, depth, is_wide) if match else _list_timm_v2_args(match_v2, depth)
    kwargs |= _TIMM_EXCEPTIONS.get(bare_name, {})
    for key, value in model_args.items():
        if key in kwargs and key not in ("attention", "blur", "block") and _has_type_of(value, kwargs[key]):
            kwargs[key] = value
        elif not any(allowed is _ANY or allowed == value for allowed in _TIMM_NEUTRAL_ARGS.get(key, ())):
            message = f"the option {key[:40]} = {str(value)[:40]} of {name[:60]} is not supported"
            raise UsageError(message, where="model_args")
    try:
        network = build(kwargs)
    except (TypeError, ValueError, KeyError, IndexError):
        raise UsageError("these options of timm do not describe a network", where="model_args") from None
    return network if kwargs["num_classes"] else replace(network, head=specs.Pooled())


def _has_type_of(value: Any, default: Any) -> bool:
    """Return whether an argument has the type of its default; lists hold integers."""
    return type(value) is type(default) and (not isinstance(value, list) or all(type(n) is int for n in value))


def _list_timm_args(match: re.Match[str], depth: int, is_wide: bool) -> ConstructorArgs:
    """Return the arguments that a name of timm's resnet stands for."""
    variant = match["variant"]
    return {
        "block": "basic" if depth in _BASIC_DEPTHS else "bottleneck",
        "layers": list(_TIMM_DEPTHS[depth]),
        "channels": [64, 128, 256, 512],
        "num_classes": 1000,
        "in_chans": 3,
        "cardinality": int(match["groups"] or 1),
        "base_width": 128 if is_wide else int(match["width"] or 64),
        "stem_type": _TIMM_STEMS.get(variant, ""),
        "stem_width": 64 if variant in (None, "s") else 32,
        "avg_down": variant in ("d", "t"),
        "attention": match["attention"] or "",
        "blur": _TIMM_BLURS[match["blur"]],
    }


def _list_timm_v2_args(match: Any, depth: int) -> ConstructorArgs:
    """Return the arguments that a name of timm's resnetv2 stands for."""
    is_basic = depth in _BASIC_DEPTHS
    return {
        "layers": list(_TIMM_DEPTHS[depth]),
        "channels": [64, 128, 256, 512] if is_basic else [256, 512, 1024, 2048],
        "basic": is_basic,
        "num_classes": 1000,
        "in_chans": 3,
        "stem_chs": 64,
        "stem_type": {None: "", "d": "deep", "t": "tiered"}[match["variant"]],
        "avg_down": match["variant"] is not None,
    }


def _build_vgg_args(spec: specs.Network) -> ConstructorArgs:
    head = spec.head if isinstance(spec.head, specs.MLP) else specs.MLP()
    cfg = [entry for stage in spec.stages for entry in [*[stage.channels] * stage.blocks, "M"]]
    has_norms = isinstance(spec.norm, specs.BatchNorm)
    return {"cfg": cfg, "batch_norm": has_norms, "num_classes": head.classes, "dropout": head.dropout}


def _build_vgg_spec(kwargs: ConstructorArgs) -> specs.Network:
    stages, blocks = [], 0
    for entry, next_entry in itertools.pairwise(kwargs["cfg"]):
        blocks = 0 if entry == "M" else blocks + 1
        if next_entry == "M":
            stages.append(specs.Stage(blocks, entry, specs.Chain((specs.Step(entry),)), specs.PoolAfter()))
    norm = specs.BatchNorm() if kwargs["batch_norm"] else specs.NoNorm()
    head = specs.MLP(kwargs["num_classes"], dropout=kwargs["dropout"])
    return specs.Network(
        tuple(stages), specs.Stem((), ()), head, shortcuts=specs.NoShortcuts(), norm=norm, bias="always"
    )


# ------------------------------------------------------------------------------------------------------ Hugging Face


def _build_hugging_face_args(spec: specs.Network) -> ConstructorArgs:
    first = spec.stages[0].branch
    return {
        "num_channels": spec.input[0],
        "embedding_size": spec.stem.convs[-1].channels if spec.stem.convs else 0,
        "hidden_sizes": [stage.channels for stage in spec.stages],
        "depths": [stage.blocks for stage in spec.stages],
        "layer_type": _describe_branch(spec)[0],
        "hidden_act": "relu",  # transformers uses another one only in the stem and behind additions, not in branches
        "downsample_in_first_stage": spec.stages[0].reduce.stride == 2,
        "downsample_in_bottleneck": isinstance(first, specs.Bottleneck) and first.stride_at == 1,
        "num_labels": specs.count_classes(spec.head),
    }


def build_hugging_face_spec(kwargs: Mapping[str, Any]) -> specs.Network:
    """Return the network that a ``config.json`` of transformers describes."""
    stages = []
    for i, (out_channels, blocks) in enumerate(zip(kwargs["hidden_sizes"], kwargs["depths"], strict=True)):
        branch: specs.Branch = specs.Basic(out_channels)
        if kwargs["layer_type"] == "bottleneck":
            stride_at: Literal[1, 2] = 1 if kwargs.get("downsample_in_bottleneck") else 2
            branch = specs.Bottleneck(max(out_channels // 4, 1), 1, stride_at)
        halves_map = i > 0 or kwargs.get("downsample_in_first_stage", False)
        stages.append(specs.Stage(blocks, out_channels, branch, specs.FirstBlock(2 if halves_map else 1)))
    input_shape = (kwargs.get("num_channels", 3), 224, 224)
    stem, head = _build_stem(kwargs["embedding_size"]), specs.Linear(kwargs["num_labels"])
    return specs.Network(tuple(stages), stem, head, input_shape)


# ----------------------------------------------------------------------------------------------- code for CIFAR


def _build_kuangliu_spec(kwargs: ConstructorArgs) -> specs.Network:
    stem = specs.Stem((specs.Conv(64, 3),), ())
    return specs.Network(
        _build_stages(kwargs["block"], kwargs["num_blocks"]), stem, specs.Linear(kwargs["num_classes"]), (3, 32, 32)
    )


def _build_akamaster_spec(kwargs: ConstructorArgs) -> specs.Network:
    stages = _build_stages("basic", kwargs["num_blocks"], channels=(16, 32, 64))
    return specs.Network(
        stages, specs.Stem((specs.Conv(16, 3),), ()), specs.Linear(kwargs["num_classes"]), (3, 32, 32), specs.OPTION_A
    )


def _build_cifar_args(spec: specs.Network) -> ConstructorArgs:
    depth = _describe_depth(spec)
    return {"block": _describe_branch(spec)[0], "num_blocks": depth.pop("layers"), **depth}


LIBRARIES: dict[str, tuple[Library, ...]] = {
    "torchvision": (
        Library("torchvision", _build_torchvision_args, _build_torchvision_spec),
        Library("torchvision", _build_vgg_args, _build_vgg_spec, "vgg"),
    ),
    "timm": (
        Library("timm", _build_timm_args, _build_timm_spec),
        Library("timm", _build_timm_v2_args, _build_timm_v2_spec, "resnetv2"),
    ),
    "hf": (Library("transformers", _build_hugging_face_args, build_hugging_face_spec),),
    "kuangliu": (Library("kuangliu's code", _build_cifar_args, _build_kuangliu_spec),),
    "akamaster": (Library("akamaster's code", _build_cifar_args, _build_akamaster_spec),),
}
