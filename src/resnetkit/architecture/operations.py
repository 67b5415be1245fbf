"""The operations a plan is made of: plain integers, and what follows from them.

Every operation answers the same four questions: the shape it hands on, its params, its MACs, and its window (kernel,
stride, dilation), from which the receptive field follows. Shapes are (C, H, W) for one image, or (C,) behind the head's
average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from resnetkit.architecture.spec import BatchNorm, GroupNorm

Shape = tuple[int, ...]
Window = tuple[int, int, int]
Edge = Literal["padded", "zeros", "ceil"]
_POINT_WINDOW: Window = (1, 1, 1)


def compute_output_size(n: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Out = floor((in + 2*padding - dilation*(kernel-1) - 1) / stride) + 1"""
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def compute_output_size_ceil(n: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """The same, rounded up: the last window may hang over the end, but has to begin inside."""
    out = -(-(n + 2 * padding - dilation * (kernel - 1) - 1) // stride) + 1
    return out - 1 if (out - 1) * stride >= n + padding else out


def _format_window(name: str, kernel: int, stride: int, dilation: int) -> str:
    return f"{name} {kernel}x{kernel}" + f"/{stride}" * (stride > 1) + f", dilation {dilation}" * (dilation > 1)


class Op(Protocol):
    """What a plan asks of an operation."""

    @property
    def params(self) -> int: ...
    @property
    def window(self) -> Window: ...
    def compute_output_shape(self, shape: Shape) -> Shape: ...
    def count_macs(self, output_shape: Shape) -> int: ...


class _FreeOp:
    """Nothing to learn, and nothing that MACs count."""

    __slots__ = ()

    @property
    def params(self) -> int:
        return 0

    def count_macs(self, output_shape: Shape) -> int:
        return 0


class _PointwiseOp:
    """Every output sees one input, and the shape stays."""

    __slots__ = ()

    @property
    def window(self) -> Window:
        return _POINT_WINDOW

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape


@dataclass(frozen=True, slots=True)
class ConvOp:
    """A square convolution, padded so that stride 1 keeps the size (odd kernels)."""

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
        return f"{text}, {self.in_channels} -> {self.out_channels}" + f", {self.groups} groups" * (self.groups > 1)


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
    """Where branch and shortcut meet."""

    def __str__(self) -> str:
        return "branch + shortcut"


@dataclass(frozen=True, slots=True)
class MaxPoolOp(_FreeOp):
    """A max pool; `MaxPool` says what the edges are. Kernel 2 pads by nothing."""

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
        suffix = {"padded": "", "zeros": ", zeros around", "ceil": ", over the end"}[self.edge]
        return _format_window("max pool", self.kernel, self.stride, self.dilation) + suffix


@dataclass(frozen=True, slots=True)
class BlurOp(_FreeOp):
    """A fixed filter of binomial weights on each channel, mirrored at the edge: no weight to learn."""

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
        """A map too small to be mirrored has nothing left."""
        sizes = (compute_output_size(n, self.kernel, self.stride, self.padding, self.dilation) for n in shape[1:])
        return shape[0], *(out if n > self.padding else 0 for n, out in zip(shape[1:], sizes, strict=True))

    def __str__(self) -> str:
        return _format_window("blur", self.kernel, self.stride, self.dilation)


@dataclass(frozen=True, slots=True)
class AvgPoolOp(_FreeOp):
    """An average over what lies inside the map: windows may hang over the end, and count only what they see."""

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
    """Every stride-th pixel, with channels of zeros before and after."""

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
class GlobalAvgPoolOp(_FreeOp):
    """The average over the whole map."""

    @property
    def window(self) -> Window:
        return _POINT_WINDOW

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape[:1]

    def __str__(self) -> str:
        return "average over the map"


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPoolOp(_FreeOp):
    """Averages over ``side`` x ``side`` windows, however large the map is, as one vector."""

    side: int

    @property
    def window(self) -> Window:
        return _POINT_WINDOW

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0] * self.side**2,)

    def __str__(self) -> str:
        return f"average over {self.side}x{self.side} windows"


@dataclass(frozen=True, slots=True)
class DropoutOp(_FreeOp, _PointwiseOp):
    """In training, each number is left out this often; nothing in evaluation."""

    rate: float

    def __str__(self) -> str:
        return f"dropout {self.rate:g}"


@dataclass(frozen=True, slots=True)
class StochasticDepthOp(_FreeOp, _PointwiseOp):
    """In training, the branch is left out this often, image by image; nothing in evaluation."""

    rate: float

    def __str__(self) -> str:
        return f"left out {self.rate:.3g} of the time"


@dataclass(frozen=True, slots=True)
class SqueezeExciteOp(_PointwiseOp):
    """Channels weighed by two layers over their averages."""

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
    """Channels weighed by a convolution along them, over their averages."""

    channels: int
    kernel: int

    @property
    def params(self) -> int:
        return self.kernel

    def count_macs(self, output_shape: Shape) -> int:
        return self.kernel * self.channels

    def __str__(self) -> str:
        return f"efficient channel attention, {self.kernel} neighbours"


@dataclass(frozen=True, slots=True)
class LinearOp:
    """A linear layer with a bias."""

    in_features: int
    out_features: int

    @property
    def window(self) -> Window:
        return _POINT_WINDOW

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
    """1st, 2nd, 3rd, 4th ..., for the small numbers that strides are."""
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(n, f"{n}th")
