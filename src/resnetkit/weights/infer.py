"""Infer a network from the shapes of its tensors by our keys.

Shapes tell depth, blocks, widths, groups, stem, classes and input channels. They do not tell strides, pools, or what an
adapter without weights does. Those are conventions of the dialect; every convention that is used is listed.

This module imports no torch.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from resnetkit.architecture import spec as specs
from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation
from resnetkit.architecture.rules import compute_reduced_channels, find_shortcut_cause, find_spec_faults
from resnetkit.architecture.tensors import TensorShape, TensorShapes

AVERAGED_MAP = "the last map is averaged"
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Convention:
    """The choices of a dialect that shapes do not tell: an adapter without weights, and the statistics of images."""

    padding_adapter: specs.Adapter | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


CONVENTIONS = {
    "akamaster": Convention(padding_adapter=specs.ZeroPadded()),
    "kuangliu": Convention(mean=_CIFAR_MEAN, std=_CIFAR_STD),
}
DEFAULT_CONVENTION = Convention()


class UnknownNetworkError(Exception):
    """The reason why no network can be inferred from these shapes."""


def infer_spec(
    shapes: TensorShapes, convention: Convention = DEFAULT_CONVENTION, pooled_shortcuts: bool = False
) -> tuple[specs.Network, tuple[str, ...]]:
    """Return the network that has these tensors, and the assumptions behind it as sentences.

    Args:
        shapes: The shapes by our keys.
        convention: The choices of the dialect.
        pooled_shortcuts: Whether shortcuts average before they project.

    Raises:
        UnknownNetworkError: no network that is known has these tensors.
    """
    if "head.linear1.weight" in shapes:
        spec, notes = _infer_vgg(shapes), ["a max pool 2x2/2 ends each stage"]
    else:
        spec, notes = _infer_residual(shapes, convention, pooled_shortcuts)
    for fault in find_spec_faults(spec):
        raise UnknownNetworkError(str(fault))
    return spec, (*notes, *_list_assumptions(spec))


def _infer_residual(
    shapes: TensorShapes, convention: Convention, pooled_shortcuts: bool
) -> tuple[specs.Network, list[str]]:
    adapter = specs.PooledProjection() if pooled_shortcuts else specs.Projection()
    stem, notes = _infer_stem(shapes)
    stages = tuple(_infer_stage(shapes, number, blocks) for number, blocks in _check_block_counts(shapes).items())
    shortcuts = _infer_shortcuts(shapes, stages, stem, adapter, convention)
    side = 224 if stem.pool else 32
    input_shape = (shapes["stem.conv1.weight"][1], side, side)
    spec = specs.Network(stages, stem, _infer_head(shapes), input_shape, shortcuts)
    if not any(".pre." in key for key in shapes):
        return spec, notes
    bias: Literal["without-norm", "never"] = "without-norm" if "stem.conv1.bias" in shapes else "never"
    note = "shortcuts average before they project" if pooled_shortcuts else "shortcuts project with their stride"
    return replace(spec, order="norm-act-conv", bias=bias), [*notes, note]


def _infer_vgg(shapes: TensorShapes) -> specs.Network:
    """Return a network of 3x3 convolutions and of linear layers behind them."""
    stages = []
    for number, blocks in _check_block_counts(shapes).items():
        shape = shapes.get(f"stage{number}.block1.branch.conv1.weight", ())
        channels, _, kernel = _parse_conv_shape(shape)
        stages.append(specs.Stage(blocks, channels, specs.Chain((specs.Step(channels, kernel),)), specs.PoolAfter()))
    hidden: list[TensorShape] = []
    while linear_shape := shapes.get(f"head.linear{len(hidden) + 1}.weight"):
        hidden.append(linear_shape)
    classifier_shape = shapes.get("head.linear.weight", ())
    if not all(len(shape) == 2 for shape in (*hidden, classifier_shape)) or stages[-1].channels < 1:
        raise UnknownNetworkError("its classifier is unknown")
    side = math.isqrt(hidden[0][-1] // stages[-1].channels)
    norm = specs.BatchNorm() if "stage1.block1.branch.norm1.weight" in shapes else specs.NoNorm()
    head = specs.MLP(classifier_shape[0], tuple(shape[0] for shape in hidden), max(side, 1))
    in_channels = shapes["stage1.block1.branch.conv1.weight"][1]
    input_shape = (in_channels, 32 * max(side, 1), 32 * max(side, 1))
    return specs.Network(tuple(stages), specs.Stem((), ()), head, input_shape, specs.NoShortcuts(), norm, bias="always")


def infer_preparation(spec: specs.Network, convention: Convention) -> Preparation | None:
    """Return the preparation of images that a dialect uses, or None if it is the usual one.

    Args:
        spec: The network.
        convention: The choices of the dialect.
    """
    if spec.input[0] != 3 or convention.mean == IMAGENET_MEAN:
        return None
    height, width = spec.input[1:]
    return Preparation(max(height, width), (height, width), convention.mean, convention.std)


def _infer_stem(shapes: TensorShapes) -> tuple[specs.Stem, list[str]]:
    convs = _parse_convs(shapes, "stem")
    kernels = tuple(kernel for _, _, kernel in convs)
    if kernels not in _STEM_NOTES:
        raise UnknownNetworkError("its stem is unknown")
    pool = () if kernels == (3,) else (specs.MaxPool(3, 2),)
    first, *rest = (specs.Conv(channels, kernel) for channels, _, kernel in convs)
    return specs.Stem((replace(first, stride=2 if pool else 1), *rest), pool), [_STEM_NOTES[kernels]]


_STEM_NOTES = {  # the kernels of the convolutions -> what their shapes do not tell
    (7,): "the 7x7 of the stem has stride 2, and a max pool 3x3/2 padded by 1 follows it",
    (3,): "the 3x3 of the stem has stride 1, and no pool follows it",
    (3, 3, 3): "the first 3x3 of the stem has stride 2, and a max pool 3x3/2 padded by 1 follows the third",
}


def _parse_convs(shapes: TensorShapes, path: str) -> list[tuple[int, int, int]]:
    """Return the numbers of each convolution of a stem or branch, as `_parse_conv_shape` does."""
    keys = itertools.takewhile(shapes.__contains__, (f"{path}.conv{i}.weight" for i in itertools.count(1)))
    return [_parse_conv_shape(shapes[key]) for key in keys]


def _parse_conv_shape(shape: TensorShape) -> tuple[int, int, int]:
    """Return (output channels, input channels of a group, kernel size)."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UnknownNetworkError("the kernel of a convolution is not square")
    return shape[0], shape[1], shape[2]


def count_blocks(shapes: TensorShapes) -> dict[int, int]:
    """Return the highest block number of each stage, in the order of the stages."""
    blocks: dict[int, int] = {}
    for key in shapes:
        if match := re.match(r"stage(\d{1,4})\.block(\d{1,4})\.", key):
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]))
    return dict(sorted(blocks.items()))


def _check_block_counts(shapes: TensorShapes) -> dict[int, int]:
    """Return the number of blocks of each stage; the stages must count from 1."""
    blocks = count_blocks(shapes)
    if not blocks or list(blocks) != list(range(1, len(blocks) + 1)):
        raise UnknownNetworkError("its stages are not numbered from 1")
    return blocks


def _infer_stage(shapes: TensorShapes, number: int, blocks: int) -> specs.Stage:
    convs = _parse_convs(shapes, f"stage{number}.block1.branch")
    reduce = specs.FirstBlock(1 if number == 1 else 2)
    branch: specs.Branch
    match [kernel for _, _, kernel in convs]:
        case [3, 3]:
            branch = specs.Basic(convs[0][0])
        case [1, 3, 1]:
            width, group_width = convs[0][0], max(convs[1][1], 1)
            branch = specs.Bottleneck(width, max(width // group_width, 1))
        case _:
            raise UnknownNetworkError(f"the blocks of stage {number} are unknown")
    return specs.Stage(blocks, convs[-1][0], branch, reduce, _infer_attention(shapes, number, convs[-1][0]))


def _infer_attention(shapes: TensorShapes, number: int, channels: int) -> tuple[specs.Attention, ...]:
    path = f"stage{number}.block1.branch.attention"
    if f"{path}.conv.weight" in shapes:
        return (specs.EfficientChannels(),)
    reduced = (*shapes.get(f"{path}.fc1.weight", ()), 0)[0]
    if not reduced:
        return ()
    reductions = (r for r in (16, max(channels // reduced, 1)) if compute_reduced_channels(channels, r) == reduced)
    return (specs.SqueezeExcite(next(reductions, 1)),)


def _infer_shortcuts(
    shapes: TensorShapes,
    stages: tuple[specs.Stage, ...],
    stem: specs.Stem,
    adapter: specs.Adapter,
    convention: Convention,
) -> specs.Shortcuts:
    """Return the adapter for each cause; one without tensors follows the convention, if it has one."""
    adapters: dict[str, specs.Adapter] = {}
    in_channels = stem.convs[-1].channels
    for number, stage in enumerate(stages, 1):
        for block in range(1, stage.blocks + 1):
            stride = stage.reduce.stride if block == 1 else 1
            cause = find_shortcut_cause(in_channels, stage.channels, stride)
            has_projection = f"stage{number}.block{block}.shortcut.conv.weight" in shapes
            adapter_without_weights = specs.Identity() if cause == "same" else convention.padding_adapter
            block_adapter = adapter if has_projection else adapter_without_weights
            if block_adapter is None:
                raise UnknownNetworkError("no tensor for shortcuts that change channels: option A, or no shortcuts?")
            if adapters.setdefault(cause, block_adapter) != block_adapter:
                raise UnknownNetworkError("some blocks have a projection and blocks like them have none")
            in_channels = stage.channels
    defaults = specs.OPTION_A if convention.padding_adapter else specs.Shortcuts(adapter, adapter, specs.Identity())
    return specs.Shortcuts(*(adapters.get(cause, getattr(defaults, cause)) for cause in ("wider", "smaller", "same")))


def _infer_head(shapes: TensorShapes) -> specs.Linear | specs.Pooled:
    shape = shapes.get("head.linear.weight")
    return specs.Linear(shape[0]) if shape is not None and len(shape) == 2 else specs.Pooled()


def _list_assumptions(spec: specs.Network) -> list[str]:
    """Return the assumptions apart from those about the stem."""
    notes = [f"an image is {'x'.join(map(str, spec.input))}", "norms have epsilon 1e-05"]
    if not isinstance(spec.head, specs.MLP):
        notes.insert(0, "every stage but the first halves the map; none is dilated or blurred")
    if any(isinstance(stage.branch, specs.Bottleneck) for stage in spec.stages):
        notes.insert(0, "the 3x3 of a bottleneck has the stride (v1.5)")
    notes.append(f"activations are {spec.activation}")
    if isinstance(spec.head, specs.Pooled):
        notes.append(AVERAGED_MAP)
    if isinstance(spec.shortcuts, specs.Shortcuts) and isinstance(spec.shortcuts.wider, specs.ZeroPadded):
        side = {"both": "on both sides", "end": "at the end"}[spec.shortcuts.wider.side]
        notes.insert(0, f"shortcuts that change channels pad with zeros {side} (option A)")
    return notes
