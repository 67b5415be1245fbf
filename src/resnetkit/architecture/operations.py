"""The operations of a plan: plain integers, and the shapes and counts that follow from them.

Every operation has an output shape, params, MACs, and a window (kernel, stride, dilation), which decides the receptive
field. Shapes are (C, H, W) for one image, or (C,) after the pooling of the head.

This module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnetkit.architecture.spec import BatchNorm, GroupNorm

Shape = tuple[int, ...]
Window = tuple[int, int, int]
Edge = Literal["padded", "zeros", "ceil"]


class Op:
    """An operation. By default it keeps the shape, has no window and no params, and needs no MACs."""

    __slots__ = ()

    @property
    def params(self) -> int:
        """The number of trainable parameters."""
        return 0

    @property
    def window(self) -> Window:
        """The kernel, stride and dilation; (1, 1, 1) if an output depends on one position, or on all."""
        return 1, 1, 1

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output for an input of this shape."""
        return shape

    def count_macs(self, output_shape: Shape) -> int:
        """Return the multiply-adds for an output of this shape."""
        return 0


class WindowOp(Op):
    """An operation whose outputs depend on a square window of the map."""

    __slots__ = ()
    kernel: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        """The padding on each side in pixels."""
        return self.dilation * (self.kernel - 1) // 2

    @property
    def window(self) -> Window:
        return self.kernel, self.stride, self.dilation

    def compute_output_size(self, n: int) -> int:
        """Return the height or width of the output for ``n`` input pixels, as torch computes it."""
        return (n + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape[0], *map(self.compute_output_size, shape[1:])

    def describe_window(self, name: str) -> str:
        """Return the name of the operation with its kernel, stride and dilation."""
        stride = f"/{self.stride}" if self.stride > 1 else ""
        dilation = f", dilation {self.dilation}" if self.dilation > 1 else ""
        return f"{name} {self.kernel}x{self.kernel}{stride}{dilation}"


@dataclass(frozen=True, slots=True)
class ConvOp(WindowOp):
    """A square convolution with an odd kernel, padded so that stride 1 keeps the size."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        return self.weights + self.out_channels * self.bias

    def compute_output_shape(self, shape: Shape) -> Shape:
        return self.out_channels, *map(self.compute_output_size, shape[1:])

    def count_macs(self, output_shape: Shape) -> int:
        return self.weights * output_shape[1] * output_shape[2]

    def __str__(self) -> str:
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.describe_window('conv')}, {self.in_channels} -> {self.out_channels}{groups}"


@dataclass(frozen=True, slots=True)
class NormOp(Op):
    """A norm with a weight and a bias per channel."""

    norm: BatchNorm | GroupNorm
    channels: int

    @property
    def params(self) -> int:
        return 2 * self.channels

    def __str__(self) -> str:
        return "batch norm" if isinstance(self.norm, BatchNorm) else f"group norm, {self.norm.groups} groups"


@dataclass(frozen=True, slots=True)
class ActivationOp(Op):
    """An activation, by its name in the spec."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AddOp(Op):
    """The sum of branch and shortcut."""

    def __str__(self) -> str:
        return "branch + shortcut"


@dataclass(frozen=True, slots=True)
class MaxPoolOp(WindowOp):
    """A max pool with an edge as in `MaxPool`; kernel 2 has no padding."""

    kernel: int
    stride: int
    dilation: int = 1
    edge: Edge = "padded"

    @property
    def padding(self) -> int:
        return 0 if self.edge == "ceil" else self.dilation * ((self.kernel - 1) // 2)

    def compute_output_size(self, n: int) -> int:
        """Return the output size; ceil mode rounds up, but the last window starts inside the map."""
        if self.edge != "ceil":
            return WindowOp.compute_output_size(self, n)
        n_strides = -(-(n - self.dilation * (self.kernel - 1) - 1) // self.stride)
        return n_strides if n_strides * self.stride >= n else n_strides + 1

    def __str__(self) -> str:
        suffix = {"padded": "", "zeros": ", zero padding", "ceil": ", ceil mode"}[self.edge]
        return self.describe_window("max pool") + suffix


@dataclass(frozen=True, slots=True)
class BlurOp(WindowOp):
    """A fixed binomial filter on each channel with reflect padding: a depthwise convolution without params."""

    channels: int
    kernel: int
    stride: int
    dilation: int = 1

    def compute_output_size(self, n: int) -> int:
        """Return the size of the output; 0 if the map is too small for reflect padding."""
        return WindowOp.compute_output_size(self, n) if n > self.padding else 0

    def count_macs(self, output_shape: Shape) -> int:
        return self.kernel**2 * math.prod(output_shape)

    def __str__(self) -> str:
        return self.describe_window("blur")


@dataclass(frozen=True, slots=True)
class AvgPoolOp(WindowOp):
    """An average pool in ceil mode that counts only the pixels inside the map."""

    kernel: int
    stride: int
    dilation: int = 1

    def compute_output_size(self, n: int) -> int:
        return -(-n // self.stride)

    def __str__(self) -> str:
        return self.describe_window("average pool")


@dataclass(frozen=True, slots=True)
class ZeroPadOp(Op):
    """Every stride-th pixel, with channels of zeros before and after the channels."""

    before: int
    after: int
    stride: int = 1

    @property
    def window(self) -> Window:
        return 1, self.stride, 1

    def compute_output_shape(self, shape: Shape) -> Shape:
        return self.before + shape[0] + self.after, *(-(-n // self.stride) for n in shape[1:])

    def __str__(self) -> str:
        subsampling = f"every {format_ordinal(self.stride)} pixel, " if self.stride > 1 else ""
        return f"{subsampling}{self.before} + {self.after} channels of zeros"


@dataclass(frozen=True, slots=True)
class GlobalAvgPoolOp(Op):
    """The average over the whole feature map."""

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def __str__(self) -> str:
        return "average over the map"


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPoolOp(Op):
    """Adaptive average pooling to ``side`` x ``side``, flattened to one vector."""

    side: int

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0] * self.side**2,)

    def __str__(self) -> str:
        return f"average over {self.side}x{self.side} windows"


@dataclass(frozen=True, slots=True)
class DropoutOp(Op):
    """Dropout at this rate in training; the identity in evaluation."""

    rate: float

    def __str__(self) -> str:
        return f"dropout {self.rate:g}"


@dataclass(frozen=True, slots=True)
class StochasticDepthOp(Op):
    """Stochastic depth: drops the branch of single images at this rate in training."""

    rate: float

    def __str__(self) -> str:
        return f"stochastic depth {self.rate:.3g}"


@dataclass(frozen=True, slots=True)
class SqueezeExciteOp(Op):
    """Channel weights from two layers over the channel averages."""

    channels: int
    reduced: int

    @property
    def params(self) -> int:
        return 2 * self.channels * self.reduced + self.channels + self.reduced

    def count_macs(self, output_shape: Shape) -> int:
        return 2 * self.channels * self.reduced

    def __str__(self) -> str:
        return f"squeeze and excite, {self.channels} -> {self.reduced} -> {self.channels}"


@dataclass(frozen=True, slots=True)
class EfficientChannelsOp(Op):
    """Channel weights from a convolution along the channel averages."""

    channels: int
    kernel: int

    @property
    def params(self) -> int:
        return self.kernel

    def count_macs(self, output_shape: Shape) -> int:
        return self.kernel * self.channels

    def __str__(self) -> str:
        return f"efficient channel attention, kernel {self.kernel}"


@dataclass(frozen=True, slots=True)
class LinearOp(Op):
    """A linear layer with a bias."""

    in_features: int
    out_features: int

    @property
    def params(self) -> int:
        return (self.in_features + 1) * self.out_features

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (self.out_features,)

    def count_macs(self, output_shape: Shape) -> int:
        return self.in_features * self.out_features

    def __str__(self) -> str:
        return f"linear, {self.in_features} -> {self.out_features}"


def format_ordinal(n: int) -> str:
    """Return 1st, 2nd, 3rd, 4th ... for a small number such as a stride."""
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")
