"""What the author of a network decides, and nothing that follows from it.

    network = stem, stages, head
    stage   = blocks that share a branch and a number of channels
    block   = activation(branch(x) + shortcut(x)), or with the activation first: branch(activation(x)) + shortcut(x)

A shortcut is an answer to a cause: `Shortcuts` says which adapter answers when a block changes the number of channels
(``wider``), when it only makes the map smaller (``smaller``), and when it changes neither (``same``). The options of
the ResNet paper (arXiv 1512.03385, section 3.3) are `OPTION_A`, `OPTION_B`, `OPTION_C`; that of ResNet-D
(arXiv 1812.01187) is `OPTION_D`.

Sizes are pixels, ``input`` is (channels, height, width). Everything is frozen: edit with `dataclasses.replace`.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "mish", "hardswish"]

# ------------------------------------------------------------------------------------------------------------- stem


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution of the stem; a norm and an activation follow it. The padding is (kernel - 1) / 2."""

    channels: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True, slots=True)
class MaxPool:
    """A max pool. What happens at the edge of the map differs between libraries, and shapes do not tell it.

    ``padded`` by (kernel - 1) // 2 pixels that never win (torch); ``zeros`` are that many pixels of 0 (Keras: the same
    behind a ReLU, not before one); ``ceil`` pads nothing, and the last windows may hang over the end (Caffe).
    """

    kernel: int = 3
    stride: int = 2
    edge: Literal["padded", "zeros", "ceil"] = "padded"


@dataclass(frozen=True, slots=True)
class Blur:
    """A fixed binomial filter with a stride: the map is smoothed before it is thinned out (arXiv 1904.11486)."""

    kernel: int = 3
    stride: int = 2


@dataclass(frozen=True, slots=True)
class Stem:
    """From the image to the first stage: convolutions, then at most one pool, then at most one blur."""

    convs: tuple[Conv, ...] = (Conv(64, 7, 2),)
    pool: tuple[MaxPool, ...] = (MaxPool(3, 2),)
    blur: tuple[Blur, ...] = ()


# ----------------------------------------------------------------------------------------------------------- branch


@dataclass(frozen=True, slots=True)
class Step:
    """A convolution of a branch; a norm follows it, and an activation unless it is the last."""

    channels: int
    kernel: int = 3
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Basic:
    """Two 3x3 convolutions; the first has the stride. ``width`` is what lies between them."""

    width: int


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """1x1 to ``width``, 3x3 in ``groups``, 1x1 to the channels of the stage.

    ``stride_at`` is 1 in the paper's network (v1: the first 1x1 has the stride) and 2 in torchvision's (v1.5: the 3x3).
    """

    width: int
    groups: int = 1
    stride_at: Literal[1, 2] = 2


@dataclass(frozen=True, slots=True)
class Chain:
    """Any convolutions in a row, the ``stride_at``-th of which (from 1) has the stride."""

    steps: tuple[Step, ...]
    stride_at: int = 1


Branch = Basic | Bottleneck | Chain


def list_steps(branch: Branch, channels: int) -> tuple[Step, ...]:
    """The convolutions of a branch that hands on ``channels``."""
    match branch:
        case Basic(width):
            return (Step(width), Step(channels))
        case Bottleneck(width, groups):
            return (Step(width, 1), Step(width, 3, groups), Step(channels, 1))
        case Chain(steps):
            return steps


def get_stride_at(branch: Branch) -> int:
    """Which convolution of the branch, from 1, has the stride."""
    return 1 if isinstance(branch, Basic) else branch.stride_at


# ---------------------------------------------------------------------------------------------------------- shortcut


@dataclass(frozen=True, slots=True)
class Identity:
    """The input itself: no operation, no weight."""


@dataclass(frozen=True, slots=True)
class ZeroPadded:
    """The input, every stride-th pixel of it, with channels of zeros: on both sides (He's CIFAR code) or at the end."""

    side: Literal["both", "end"] = "both"


@dataclass(frozen=True, slots=True)
class Projection:
    """A 1x1 convolution with the stride, and a norm."""


@dataclass(frozen=True, slots=True)
class PooledProjection:
    """An average pool as large as the stride (none where the stride is 1), a 1x1 convolution, and a norm."""


@dataclass(frozen=True, slots=True)
class Subsampled:
    """A max pool with the stride; the channels stay. With kernel 1 it picks every stride-th pixel."""

    kernel: int = 1


Adapter = Identity | ZeroPadded | Projection | PooledProjection | Subsampled


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """Which adapter answers which cause; ``wider`` answers when both hold."""

    wider: Adapter = Projection()
    smaller: Adapter = Projection()
    same: Adapter = Identity()


@dataclass(frozen=True, slots=True)
class NoShortcuts:
    """A plain network: a block is its branch and an activation."""


OPTION_A = Shortcuts(ZeroPadded(), ZeroPadded(), Identity())
OPTION_A_END = Shortcuts(ZeroPadded("end"), ZeroPadded("end"), Identity())
OPTION_B = Shortcuts()
OPTION_C = Shortcuts(Projection(), Projection(), Projection())
OPTION_D = Shortcuts(PooledProjection(), PooledProjection(), Identity())

# ------------------------------------------------------------------------------------------------------ stages, head


@dataclass(frozen=True, slots=True)
class FirstBlock:
    """The first block of the stage has the stride; ``atrous`` keeps the map large and dilates instead."""

    stride: int = 1
    atrous: bool = False


@dataclass(frozen=True, slots=True)
class LastBlock:
    """The last block of the stage has the stride, as in Keras's V2 networks; ``atrous`` as in `FirstBlock`."""

    stride: int = 1
    atrous: bool = False


@dataclass(frozen=True, slots=True)
class BlurredFirstBlock:
    """As `FirstBlock`, but the convolution keeps the map, and a blur with the stride follows it (arXiv 1904.11486)."""

    stride: int = 2
    atrous: bool = False
    blur: int = 3


@dataclass(frozen=True, slots=True)
class PoolAfter:
    """A max pool as large as the stride behind the last block, as in VGG; ``atrous`` as in `FirstBlock`."""

    stride: int = 2
    atrous: bool = False


Reduce = FirstBlock | LastBlock | BlurredFirstBlock | PoolAfter


@dataclass(frozen=True, slots=True)
class SqueezeExcite:
    """Weighs the channels of a branch: averages over the map go through two layers (arXiv 1709.01507).

    Between the two stand 1 / ``reduction`` of the channels, rounded to 8s as timm does.
    """

    reduction: int = 16


@dataclass(frozen=True, slots=True)
class EfficientChannels:
    """Weighs each channel by the averages of its neighbours (ECA, arXiv 1910.03151); their number follows from the
    channels.
    """


Attention = SqueezeExcite | EfficientChannels


@dataclass(frozen=True, slots=True)
class Stage:
    """``blocks`` blocks, each of which hands on ``channels`` channels; ``attention``, if any, ends each branch."""

    blocks: int
    channels: int
    branch: Branch
    reduce: Reduce = FirstBlock()
    attention: tuple[Attention, ...] = ()


@dataclass(frozen=True, slots=True)
class Linear:
    """The average over the map, then one fully connected layer."""

    classes: int = 1000


@dataclass(frozen=True, slots=True)
class MLP:
    """The average over ``pool`` x ``pool`` windows of the map, then hidden layers with dropout, as in VGG."""

    classes: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    pool: int = 7
    dropout: float = 0.5


@dataclass(frozen=True, slots=True)
class Pooled:
    """The average over the map: a vector of features."""


@dataclass(frozen=True, slots=True)
class NoHead:
    """The map of the last stage itself."""


@dataclass(frozen=True, slots=True)
class Features:
    """The maps of some stages (counted from 1, the last among them), each under its name: a backbone."""

    stages: tuple[int, ...]


Head = Linear | MLP | Pooled | NoHead | Features

# -------------------------------------------------------------------------------------------------------------- norm


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """``momentum`` in torch's sense: the weight of the new batch."""

    eps: float = 1e-5
    momentum: float = 0.1


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Statistics per image over groups of channels."""

    groups: int = 32
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class NoNorm:
    """No norm."""


@dataclass(frozen=True, slots=True)
class FoldedNorm:
    """Batch norms that became part of the convolutions before them. Those of pre-activation that have none before them
    stand; elsewhere all are gone, and that is `NoNorm`.
    """

    eps: float = 1e-5
    momentum: float = 0.1


Norm = BatchNorm | GroupNorm | NoNorm | FoldedNorm


@dataclass(frozen=True, slots=True)
class Network:
    """A residual network. Two networks that compute the same have equal specs; a name is not part of one.

    ``order`` is that of the paper, or pre-activation (arXiv 1603.05027): a norm and an activation before each
    convolution, and a last pair before the head. ``bias``: convolutions have one where no norm follows them, or always
    (Keras, VGG), or never (timm's pre-activation). ``stochastic_depth`` (arXiv 1603.09382) is how often the last branch
    is left out in training; from the first one on the rate grows evenly.
    """

    stages: tuple[Stage, ...]
    stem: Stem = Stem()
    head: Head = Linear()
    input: tuple[int, int, int] = (3, 224, 224)
    shortcuts: Shortcuts | NoShortcuts = Shortcuts()
    norm: Norm = BatchNorm()
    activation: Activation = "relu"
    order: Literal["conv-norm-act", "norm-act-conv"] = "conv-norm-act"
    bias: Literal["without-norm", "always", "never"] = "without-norm"
    stochastic_depth: float = 0.0


def count_classes(head: Head) -> int:
    """How many classes a head tells apart; 0 where it has no classifier."""
    return head.classes if isinstance(head, Linear | MLP) else 0


def replace_classes(network: Network, classes: int) -> Network:
    """The same network for so many classes; one without a classifier gets a linear one."""
    head = replace(network.head, classes=classes) if isinstance(network.head, Linear | MLP) else Linear(classes)
    return replace(network, head=head)
