"""A network from the shapes of its tensors, whose names are ours already.

Shapes tell depth, blocks, widths, groups, stem, classes and input channels. They do not tell strides, pools, or what an
adapter without weights does: those are conventions of whoever wrote the file, and each that is used is said.

This module imports no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from resnetkit.architecture.card import IMAGENET_MEAN, IMAGENET_STD, Preparation
from resnetkit.architecture.rules import cause_of, faults, reduced_channels
from resnetkit.architecture.spec import (
    MLP,
    OPTION_A,
    Adapter,
    Attention,
    Basic,
    BatchNorm,
    Bottleneck,
    Branch,
    Chain,
    Conv,
    EfficientChannels,
    FirstBlock,
    Identity,
    Linear,
    MaxPool,
    Network,
    NoNorm,
    NoShortcuts,
    PoolAfter,
    Pooled,
    PooledProjection,
    Projection,
    Shortcuts,
    SqueezeExcite,
    Stage,
    Stem,
    Step,
    ZeroPadded,
)
from resnetkit.architecture.tensors import Shapes, TensorShape

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Convention:
    """What the authors of a dialect do where shapes say nothing."""

    padded: Adapter | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


CONVENTIONS = {
    "akamaster": Convention(padded=ZeroPadded()),
    "kuangliu": Convention(mean=_CIFAR_MEAN, std=_CIFAR_STD),
}
USUAL = Convention()


@dataclass(frozen=True)
class Inferred:
    """A spec, and the sentences about what was assumed for it."""

    spec: Network
    assumed: tuple[str, ...]


class Unknown(Exception):  # noqa: N818  part of the way, not an error that is shown
    """Why no network can be told from these shapes."""


def infer(shapes: Shapes, convention: Convention = USUAL, pooled: bool = False) -> Inferred:
    """The network that has these tensors; raises `Unknown`. ``pooled`` shortcuts stand behind an average pool."""
    if "head.linear1.weight" in shapes:
        spec, said = _vgg(shapes), ["a max pool 2x2/2 ends each stage"]
    else:
        spec, said = _residual(shapes, convention, pooled)
    if faults(spec):
        raise Unknown(str(faults(spec)[0]))
    return Inferred(spec, (*said, *_assumed(spec)))


def _residual(shapes: Shapes, convention: Convention, pooled: bool) -> tuple[Network, list[str]]:
    adapter = PooledProjection() if pooled else Projection()
    stem, said = _stem(shapes)
    stages = _stages(shapes)
    answers = _shortcuts(shapes, stages, stem, adapter, convention)
    made = Network(stages, stem, _head(shapes), _input(shapes, stem), answers)
    if not any(".pre." in key for key in shapes):
        return made, said
    bias: Literal["without-norm", "never"] = "without-norm" if "stem.conv1.bias" in shapes else "never"
    told = "shortcuts average before they project" if pooled else "shortcuts project with their stride"
    return replace(made, order="norm-act-conv", bias=bias), [*said, told]


def _vgg(shapes: Shapes) -> Network:
    """A chain of 3x3 convolutions, and linear layers behind it."""
    counts = _blocks(shapes)
    convs = {s: _convolution(shapes.get(f"stage{s}.block1.branch.conv1.weight", ())) for s in counts}
    stages = tuple(Stage(counts[s], convs[s][0], Chain((Step(convs[s][0], convs[s][2]),)), PoolAfter()) for s in counts)
    hidden: list[TensorShape] = []
    while last := shapes.get(f"head.linear{len(hidden) + 1}.weight"):
        hidden.append(last)
    end = shapes.get("head.linear.weight", ())
    if not all(len(shape) == 2 for shape in (*hidden, end)) or stages[-1].channels < 1:
        raise Unknown("its classifier is none that is known")
    side = math.isqrt(hidden[0][-1] // stages[-1].channels)
    norm = BatchNorm() if "stage1.block1.branch.norm1.weight" in shapes else NoNorm()
    head = MLP(end[0], tuple(shape[0] for shape in hidden), max(side, 1))
    images = (convs[1][1], 32 * max(side, 1), 32 * max(side, 1))
    return Network(stages, Stem((), ()), head, images, NoShortcuts(), norm, bias="always")


def preparation(spec: Network, convention: Convention) -> Preparation | None:
    """The dialect's own way to prepare images, where it is not the usual one."""
    if spec.input[0] != 3 or convention.mean == IMAGENET_MEAN:
        return None
    height, width = spec.input[1:]
    return Preparation(max(height, width), (height, width), convention.mean, convention.std)


def _stem(shapes: Shapes) -> tuple[Stem, list[str]]:
    convs: list[tuple[int, int, int]] = []
    while (shape := shapes.get(f"stem.conv{len(convs) + 1}.weight")) is not None:
        convs.append(_convolution(shape))
    match [conv[2] for conv in convs]:
        case [7]:
            told = "the 7x7 of the stem has stride 2, and a max pool 3x3/2 padded by 1 follows it"
            return Stem((Conv(convs[0][0], 7, 2),), (MaxPool(3, 2),)), [told]
        case [3]:
            return Stem((Conv(convs[0][0], 3, 1),), ()), ["the 3x3 of the stem has stride 1, and no pool follows it"]
        case [3, 3, 3]:
            first, second, third = (Conv(out, 3, 2 if i == 0 else 1) for i, (out, _, _) in enumerate(convs))
            told = "the first 3x3 of the stem has stride 2, and a max pool 3x3/2 padded by 1 follows the third"
            return Stem((first, second, third), (MaxPool(3, 2),)), [told]
    raise Unknown("its stem is none that is known")


def _convolution(shape: TensorShape) -> tuple[int, int, int]:
    """(outputs, inputs of a group, kernel)."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise Unknown("a convolution has no square kernel")
    return shape[0], shape[1], shape[2]


def _stages(shapes: Shapes) -> tuple[Stage, ...]:
    return tuple(_stage(shapes, number, blocks) for number, blocks in _blocks(shapes).items())


def deepest(shapes: Shapes) -> dict[int, int]:
    """The highest number of a block in each stage, in the order of the stages."""
    blocks: dict[int, int] = {}
    for key in shapes:
        place = re.match(r"stage(\d{1,4})\.block(\d{1,4})\.", key)
        if place:
            blocks[int(place[1])] = max(blocks.get(int(place[1]), 0), int(place[2]))
    return dict(sorted(blocks.items()))


def _blocks(shapes: Shapes) -> dict[int, int]:
    """How many blocks each stage has, from 1."""
    blocks = deepest(shapes)
    if not blocks or list(blocks) != list(range(1, len(blocks) + 1)):
        raise Unknown("its stages cannot be counted")
    return blocks


def _stage(shapes: Shapes, number: int, blocks: int) -> Stage:
    convs: list[tuple[int, int, int]] = []
    while (shape := shapes.get(f"stage{number}.block1.branch.conv{len(convs) + 1}.weight")) is not None:
        convs.append(_convolution(shape))
    reduce = FirstBlock(1 if number == 1 else 2)
    branch: Branch
    match [kernel for _, _, kernel in convs]:
        case [3, 3]:
            branch = Basic(convs[0][0])
        case [1, 3, 1]:
            width, each = convs[0][0], max(convs[1][1], 1)
            branch = Bottleneck(width, max(width // each, 1))
        case _:
            raise Unknown(f"the blocks of stage {number} are none that are known")
    return Stage(blocks, convs[-1][0], branch, reduce, _attention(shapes, number, convs[-1][0]))


def _attention(shapes: Shapes, number: int, channels: int) -> tuple[Attention, ...]:
    path = f"stage{number}.block1.branch.attention"
    if f"{path}.conv.weight" in shapes:
        return (EfficientChannels(),)
    reduced = (*shapes.get(f"{path}.fc1.weight", ()), 0)[0]
    if not reduced:
        return ()
    fits = (r for r in (16, max(channels // reduced, 1)) if reduced_channels(channels, r) == reduced)
    return (SqueezeExcite(next(fits, 1)),)


def _shortcuts(
    shapes: Shapes, stages: tuple[Stage, ...], stem: Stem, adapter: Adapter, convention: Convention
) -> Shortcuts:
    """Which cause has a projection in the file; one without tensors is the convention's, if it has one."""
    answers: dict[str, Adapter] = {}
    received = stem.convs[-1].channels
    for number, stage in enumerate(stages, 1):
        for block in range(1, stage.blocks + 1):
            stride = stage.reduce.stride if block == 1 else 1
            cause = cause_of(received, stage.channels, stride)
            there = f"stage{number}.block{block}.shortcut.conv.weight" in shapes
            answer = adapter if there else Identity() if cause == "same" else convention.padded
            if answer is None:
                raise Unknown("where channels change there is no shortcut's tensor: option A, or no shortcut at all?")
            if answers.setdefault(cause, answer) != answer:
                raise Unknown("some blocks have a projection where others alike have none")
            received = stage.channels
    usual = OPTION_A if convention.padded else Shortcuts(adapter, adapter, Identity())
    return Shortcuts(*(answers.get(cause, getattr(usual, cause)) for cause in ("wider", "smaller", "same")))


def _head(shapes: Shapes) -> Linear | Pooled:
    shape = shapes.get("head.linear.weight")
    return Linear(shape[0]) if shape is not None and len(shape) == 2 else Pooled()


def _input(shapes: Shapes, stem: Stem) -> tuple[int, int, int]:
    side = 224 if stem.pool else 32
    return shapes["stem.conv1.weight"][1], side, side


def _assumed(spec: Network) -> list[str]:
    """What was assumed beside the stem."""
    said = [f"an image is {'x'.join(map(str, spec.input))}", "norms have epsilon 1e-05"]
    if not isinstance(spec.head, MLP):
        said.insert(0, "every stage but the first halves the map, none is dilated or blurred")
    if any(isinstance(stage.branch, Bottleneck) for stage in spec.stages):
        said.insert(0, "the 3x3 of a bottleneck has the stride (v1.5)")
    said.append(f"activations are {spec.activation}")
    if isinstance(spec.head, Pooled):
        said.append("the last map is averaged")
    if isinstance(spec.shortcuts, Shortcuts) and isinstance(spec.shortcuts.wider, ZeroPadded):
        side = {"both": "on both sides", "end": "at the end"}[spec.shortcuts.wider.side]
        said.insert(0, f"where channels change, zeros are added {side} (option A)")
    return said
