"""The operations of a plan: plain integers, and the shapes and counts that follow from them.

Every operation has an output shape, params, MACs, and a window (kernel, stride, dilation), which decides the receptive
field. Shapes are (C, H, W) for one image, or (C,) after the pooling of the head.

This module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from resnetkit.architecture.spec import BatchNorm, GroupNorm

Shape = tuple[int, ...]
Window = tuple[int, int, int]
Edge = Literal["padded", "zeros", "ceil"]


def compute_output_size(n: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return floor((n + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, as torch computes it.

    Args:
        n: the input size in pixels.
        kernel: the kernel size.
        stride: the stride.
        padding: the padding on each side.
        dilation: the distance between taps of the kernel.
    """
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def compute_output_size_ceil(n: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return the output size rounded up (ceil mode): the last window must start inside the map.

    Args:
        n: the input size in pixels.
        kernel: the kernel size.
        stride: the stride.
        padding: the padding on each side.
        dilation: the distance between taps of the kernel.
    """
    out = -(-(n + 2 * padding - dilation * (kernel - 1) - 1) // stride) + 1
    return out - 1 if (out - 1) * stride >= n + padding else out


def _format_window(name: str, kernel: int, stride: int, dilation: int) -> str:
    text = f"{name} {kernel}x{kernel}" + (f"/{stride}" if stride > 1 else "")
    return text + (f", dilation {dilation}" if dilation > 1 else "")


class Op(Protocol):
    """The interface of an operation."""

    @property
    def params(self) -> int: ...
    @property
    def window(self) -> Window: ...
    def compute_output_shape(self, shape: Shape) -> Shape: ...
    def count_macs(self, output_shape: Shape) -> int: ...


class _FreeOp:
    """An operation without params and MACs."""

    __slots__ = ()

    @property
    def params(self) -> int:
        return 0

    def count_macs(self, output_shape: Shape) -> int:
        return 0


class _PointOp:
    """An operation without a window: each output depends on one position, or on all."""

    __slots__ = ()

    @property
    def window(self) -> Window:
        return 1, 1, 1


class _PointwiseOp(_PointOp):
    """An operation whose outputs depend on one position each; it keeps the shape."""

    __slots__ = ()

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape


@dataclass(frozen=True, slots=True)
class ConvOp:
    """A square convolution with an odd kernel, padded so that stride 1 keeps the size."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    bias: bool = False

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel**2

    @property
    def params(self) -> int:
        return self.weights + self.out_channels * self.bias

    @property
    def window(self) -> Window:
        return self.kernel, self.stride, self.dilation

    def compute_output_shape(self, shape: Shape) -> Shape:
        return self.out_channels, *(
            compute_output_size(n, self.kernel, self.stride, self.padding, self.dilation) for n in shape[1:]
        )

    def count_macs(self, output_shape: Shape) -> int:
        return self.weights * output_shape[1] * output_shape[2]

    def __str__(self) -> str:
        text = _format_window("conv", self.kernel, self.stride, self.dilation)
        text += f", {self.in_channels} -> {self.out_channels}"
        return f"{text}, {self.groups} groups" if self.groups > 1 else text


@dataclass(frozen=True, slots=True)
class NormOp(_PointwiseOp):
    """A norm with a weight and a bias per channel."""

    norm: BatchNorm | GroupNorm
    channels: int

    @property
    def params(self) -> int:
        return 2 * self.channels

    def count_macs(self, output_shape: Shape) -> int:
        return 0

    def __str__(self) -> str:
        return "batch norm" if isinstance(self.norm, BatchNorm) else f"group norm, {self.norm.groups} groups"


@dataclass(frozen=True, slots=True)
class ActivationOp(_FreeOp, _PointwiseOp):
    """An activation, by its name in the spec."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AddOp(_FreeOp, _PointwiseOp):
    """The sum of branch and shortcut."""

    def __str__(self) -> str:
        return "branch + shortcut"


@dataclass(frozen=True, slots=True)
class MaxPoolOp(_FreeOp):
    """A max pool with an edge as in `MaxPool`; kernel 2 has no padding."""

    kernel: int
    stride: int
    dilation: int = 1
    edge: Edge = "padded"

    @property
    def padding(self) -> int:
        return 0 if self.edge == "ceil" else self.dilation * ((self.kernel - 1) // 2)

    @property
    def window(self) -> Window:
        return self.kernel, self.stride, self.dilation

    def compute_output_shape(self, shape: Shape) -> Shape:
        compute = compute_output_size_ceil if self.edge == "ceil" else compute_output_size
        return shape[0], *(compute(n, self.kernel, self.stride, self.padding, self.dilation) for n in shape[1:])

    def __str__(self) -> str:
        suffix = {"padded": "", "zeros": ", zero padding", "ceil": ", ceil mode"}[self.edge]
        return _format_window("max pool", self.kernel, self.stride, self.dilation) + suffix


@dataclass(frozen=True, slots=True)
class BlurOp(_FreeOp):
    """A fixed binomial filter on each channel with reflect padding: a depthwise convolution without params."""

    channels: int
    kernel: int
    stride: int
    dilation: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    @property
    def window(self) -> Window:
        return self.kernel, self.stride, self.dilation

    def compute_output_shape(self, shape: Shape) -> Shape:
        """Return the output shape, with sizes of 0 if the map is too small for reflect padding."""
        sizes = (compute_output_size(n, self.kernel, self.stride, self.padding, self.dilation) for n in shape[1:])
        return shape[0], *(out if n > self.padding else 0 for n, out in zip(shape[1:], sizes, strict=True))

    def count_macs(self, output_shape: Shape) -> int:
        return self.kernel**2 * math.prod(output_shape)

    def __str__(self) -> str:
        return _format_window("blur", self.kernel, self.stride, self.dilation)


@dataclass(frozen=True, slots=True)
class AvgPoolOp(_FreeOp):
    """An average pool in ceil mode that counts only the pixels inside the map."""

    kernel: int
    stride: int
    dilation: int = 1

    @property
    def window(self) -> Window:
        return self.kernel, self.stride, self.dilation

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape[0], *(-(-n // self.stride) for n in shape[1:])

    def __str__(self) -> str:
        return _format_window("average pool", self.kernel, self.stride, self.dilation)


@dataclass(frozen=True, slots=True)
class ZeroPadOp(_FreeOp):
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
class GlobalAvgPoolOp(_FreeOp, _PointOp):
    """The average over the whole feature map."""

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def __str__(self) -> str:
        return "average over the map"


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPoolOp(_FreeOp, _PointOp):
    """Adaptive average pooling to ``side`` x ``side``, flattened to one vector."""

    side: int

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0] * self.side**2,)

    def __str__(self) -> str:
        return f"average over {self.side}x{self.side} windows"


@dataclass(frozen=True, slots=True)
class DropoutOp(_FreeOp, _PointwiseOp):
    """Dropout at this rate in training; the identity in evaluation."""

    rate: float

    def __str__(self) -> str:
        return f"dropout {self.rate:g}"


@dataclass(frozen=True, slots=True)
class StochasticDepthOp(_FreeOp, _PointwiseOp):
    """Stochastic depth: drops the branch of single images at this rate in training."""

    rate: float

    def __str__(self) -> str:
        return f"stochastic depth {self.rate:.3g}"


@dataclass(frozen=True, slots=True)
class SqueezeExciteOp(_PointwiseOp):
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
class EfficientChannelsOp(_PointwiseOp):
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
class LinearOp(_PointOp):
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
