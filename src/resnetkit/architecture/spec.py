"""The spec of a network: every decision of its author, and nothing that follows from them.

    network = stem, stages, head
    stage   = blocks that share a branch and a number of channels
    block   = activation(branch(x) + shortcut(x)), or with the activation first: branch(activation(x)) + shortcut(x)

`Shortcuts` names one adapter for each cause:

    wider     the block changes the number of channels
    smaller   the block only makes the feature map smaller
    same      the block changes neither

The options of the ResNet paper (arXiv 1512.03385, section 3.3) are `OPTION_A`, `OPTION_B` and `OPTION_C`. ResNet-D
(arXiv 1812.01187) uses `OPTION_D`.

Sizes are pixels; ``input`` is (channels, height, width). All classes are frozen: edit with `dataclasses.replace`.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Activation = Literal["relu", "leaky_relu", "elu", "silu", "gelu", "mish", "hardswish"]

# ------------------------------------------------------------------------------------------------------------- stem


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution of the stem with padding (kernel - 1) / 2; a norm and an activation follow it."""

    channels: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True, slots=True)
class MaxPool:
    """A max pool. Libraries treat the edge of the feature map differently, and shapes do not show it.

    - ``padded``: (kernel - 1) // 2 pixels of minus infinity (torch).
    - ``zeros``: as many pixels of 0 (Keras). The result is the same after a ReLU, but not before one.
    - ``ceil``: no padding; the last windows may extend beyond the edge (Caffe).
    """

    kernel: int = 3
    stride: int = 2
    edge: Literal["padded", "zeros", "ceil"] = "padded"


AVERAGE_KERNEL = 2


@dataclass(frozen=True, slots=True)
class Blur:
    """A fixed binomial filter with a stride, against aliasing (arXiv 1904.11486).

    Kernel 2 with stride 2 is an average pool without padding (timm's resnetaa).
    """

    kernel: int = 3
    stride: int = 2


@dataclass(frozen=True, slots=True)
class Stem:
    """The layers before the first stage: convolutions, then at most one pool, then at most one blur."""

    convs: tuple[Conv, ...] = (Conv(64, 7, 2),)
    pool: tuple[MaxPool, ...] = (MaxPool(3, 2),)
    blur: tuple[Blur, ...] = ()


# ----------------------------------------------------------------------------------------------------------- branch


@dataclass(frozen=True, slots=True)
class Step:
    """A convolution of a branch; a norm follows it, and an activation unless it is the last step."""

    channels: int
    kernel: int = 3
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Basic:
    """Two 3x3 convolutions with ``width`` channels between them; the first has the stride."""

    width: int


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A 1x1 convolution to ``width`` channels, a 3x3 in ``groups``, and a 1x1 to the channels of the stage.

    ``stride_at`` is 1 in the paper (v1: the first 1x1 has the stride) and 2 in torchvision (v1.5: the 3x3 has it).
    """

    width: int
    groups: int = 1
    stride_at: Literal[1, 2] = 2


@dataclass(frozen=True, slots=True)
class Chain:
    """Any sequence of convolutions; number ``stride_at`` (from 1) has the stride."""

    steps: tuple[Step, ...]
    stride_at: int = 1


Branch = Basic | Bottleneck | Chain


def list_steps(branch: Branch, channels: int) -> tuple[Step, ...]:
    """Return the convolutions of a branch.

    Args:
        branch: the branch.
        channels: the output channels of its stage.
    """
    match branch:
        case Basic(width):
            return (Step(width), Step(channels))
        case Bottleneck(width, groups):
            return (Step(width, 1), Step(width, 3, groups), Step(channels, 1))
        case Chain(steps):
            return steps


def get_stride_at(branch: Branch) -> int:
    """Return the number (from 1) of the convolution that has the stride."""
    return 1 if isinstance(branch, Basic) else branch.stride_at


# ---------------------------------------------------------------------------------------------------------- shortcut


@dataclass(frozen=True, slots=True)
class Identity:
    """The input itself, without operations or weights."""


@dataclass(frozen=True, slots=True)
class ZeroPadded:
    """Every stride-th pixel of the input, plus channels of zeros on both sides (He's CIFAR code) or at the end."""

    side: Literal["both", "end"] = "both"


@dataclass(frozen=True, slots=True)
class Projection:
    """A 1x1 convolution with the stride, and a norm."""


@dataclass(frozen=True, slots=True)
class PooledProjection:
    """An average pool as large as the stride (none if it is 1), a 1x1 convolution, and a norm."""


@dataclass(frozen=True, slots=True)
class Subsampled:
    """A max pool with the stride that keeps the channels; kernel 1 takes every stride-th pixel."""

    kernel: int = 1


Adapter = Identity | ZeroPadded | Projection | PooledProjection | Subsampled


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """The adapter for each cause; ``wider`` also applies if the block changes channels and size."""

    wider: Adapter = Projection()
    smaller: Adapter = Projection()
    same: Adapter = Identity()


@dataclass(frozen=True, slots=True)
class NoShortcuts:
    """No shortcuts: a block is its branch and an activation (a plain network)."""


OPTION_A = Shortcuts(ZeroPadded(), ZeroPadded(), Identity())
OPTION_A_END = Shortcuts(ZeroPadded("end"), ZeroPadded("end"), Identity())
OPTION_B = Shortcuts()
OPTION_C = Shortcuts(Projection(), Projection(), Projection())
OPTION_D = Shortcuts(PooledProjection(), PooledProjection(), Identity())

# ------------------------------------------------------------------------------------------------------ stages, head


@dataclass(frozen=True, slots=True)
class FirstBlock:
    """The first block of the stage has the stride; ``atrous`` keeps the map size and dilates instead."""

    stride: int = 1
    atrous: bool = False


@dataclass(frozen=True, slots=True)
class LastBlock:
    """The last block of the stage has the stride, as in Keras's V2 networks; ``atrous`` as in `FirstBlock`."""

    stride: int = 1
    atrous: bool = False


@dataclass(frozen=True, slots=True)
class BlurredFirstBlock:
    """The same as `FirstBlock`, but a blur after the convolution has the stride (arXiv 1904.11486)."""

    stride: int = 2
    atrous: bool = False
    blur: int = 3


@dataclass(frozen=True, slots=True)
class PoolAfter:
    """A max pool as large as the stride after the last block, as in VGG; ``atrous`` as in `FirstBlock`."""

    stride: int = 2
    atrous: bool = False


Reduce = FirstBlock | LastBlock | BlurredFirstBlock | PoolAfter


@dataclass(frozen=True, slots=True)
class SqueezeExcite:
    """Channel weights from two layers over the averages of the map (arXiv 1709.01507).

    The hidden layer has channels / ``reduction`` units, rounded to a multiple of 8 as in timm.
    """

    reduction: int = 16


@dataclass(frozen=True, slots=True)
class EfficientChannels:
    """Channel weights from a convolution over the averages of neighboring channels (ECA, arXiv 1910.03151).

    The kernel follows from the number of channels.
    """


Attention = SqueezeExcite | EfficientChannels


@dataclass(frozen=True, slots=True)
class Stage:
    """A sequence of ``blocks`` blocks with ``channels`` output channels; ``attention`` ends each branch."""

    blocks: int
    channels: int
    branch: Branch
    reduce: Reduce = FirstBlock()
    attention: tuple[Attention, ...] = ()


@dataclass(frozen=True, slots=True)
class Linear:
    """Global average pooling, then one fully connected layer."""

    classes: int = 1000


@dataclass(frozen=True, slots=True)
class MLP:
    """Average pooling to ``pool`` x ``pool``, then hidden layers with dropout, as in VGG."""

    classes: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    pool: int = 7
    dropout: float = 0.5


@dataclass(frozen=True, slots=True)
class Pooled:
    """Global average pooling: a feature vector."""


@dataclass(frozen=True, slots=True)
class NoHead:
    """No head: the output is the feature map of the last stage."""


@dataclass(frozen=True, slots=True)
class Features:
    """A backbone: the feature maps of these stages (from 1, the last one included), each under its name."""

    stages: tuple[int, ...]


Head = Linear | MLP | Pooled | NoHead | Features

# -------------------------------------------------------------------------------------------------------------- norm


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Batch norm; ``momentum`` is the weight of the new batch, as in torch."""

    eps: float = 1e-5
    momentum: float = 0.1


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Group norm: statistics per image over groups of channels."""

    groups: int = 32
    eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class NoNorm:
    """No norm."""


@dataclass(frozen=True, slots=True)
class FoldedNorm:
    """Batch norms folded into the convolutions before them, in a network with pre-activation.

    The norms without a convolution before them stay. In other networks all norms can be folded: use `NoNorm`.
    """

    eps: float = 1e-5
    momentum: float = 0.1


Norm = BatchNorm | GroupNorm | NoNorm | FoldedNorm


@dataclass(frozen=True, slots=True)
class Network:
    """A residual network. Networks that compute the same have equal specs, because a spec has no name.

    - ``order``: as in the paper, or pre-activation (arXiv 1603.05027): a norm and an activation before each
      convolution, and a last pair before the head.
    - ``bias``: convolutions have one if no norm follows them, or always (Keras, VGG), or never (timm's pre-activation).
    - ``stochastic_depth``: the rate at which training drops the last branch (arXiv 1603.09382); the rate grows
      linearly from 0 at the first branch.
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
    """Return the number of classes of a head; 0 without a classifier."""
    return head.classes if isinstance(head, Linear | MLP) else 0


def replace_classes(network: Network, classes: int) -> Network:
    """Return the network with another number of classes.

    Args:
        network: the spec; without a classifier it gets a linear one.
        classes: the number of classes.
    """
    head = replace(network.head, classes=classes) if isinstance(network.head, Linear | MLP) else Linear(classes)
    return replace(network, head=head)
