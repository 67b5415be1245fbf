"""The modules of a network. The plan has decided every number; what is left is the formula.

Shapes are N C H W. A place of the plan is a sequence of its parts, an operation is one module, and every module stands
at its path: ``model.stage1.block1.branch.conv1``. The one node without a module is ``add``, which is the ``+`` below.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnetkit.architecture import operations as ops
from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.architecture.spec import BatchNorm, Features
from resnetkit.errors import UsageError, suggestion
from resnetkit.network.report import Report


class Stem(nn.Sequential):
    """From the image to the first stage."""


class Pre(nn.Sequential):
    """What comes before the branch of a pre-activation block: a norm and an activation."""


class Branch(nn.Sequential):
    """The way through the convolutions of a block."""


class Shortcut(nn.Sequential):
    """The way around them; an empty one is the identity."""


class Block(nn.Module):
    """Branch and shortcut, added, then activated (arXiv 1512.03385, equations 1 and 2)."""

    def __init__(self, branch: Branch, shortcut: Shortcut, act: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))  # type: ignore[no-any-return]


class PreBlock(nn.Module):
    """Activated before the branch; the shortcut is around both (arXiv 1603.05027, figure 4 e)."""

    def __init__(self, pre: Pre, branch: Branch, shortcut: Shortcut) -> None:
        super().__init__()
        self.pre = pre
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.pre(x)) + self.shortcut(x)  # type: ignore[no-any-return]


class ProjectedPreBlock(PreBlock):
    """The same where the shortcut has weights: it sees the activated map, too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        return self.branch(x) + self.shortcut(x)  # type: ignore[no-any-return]


class PlainBlock(nn.Sequential):
    """Branch, then activation: a block of a network without shortcuts."""


class Stage(nn.Sequential):
    """Blocks in a row."""


class RecomputedStage(Stage):
    """A stage that keeps its input alone for the backward pass, and runs again there: less memory for more time.

    The second run leaves the statistics of norms as they are: they have seen this batch already.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        once = partial(_twice, self)
        return checkpoint(super().forward, x, use_reentrant=False, context_fn=once)  # type: ignore[no-any-return]


def _twice(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first run, and the second."""
    return contextlib.nullcontext(), _statistics_kept(stage)


@contextlib.contextmanager
def _statistics_kept(stage: nn.Module) -> Iterator[None]:
    """Norms write into copies for as long as the body runs."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    own = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        _give(norm, {name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            _give(norm, buffers)


def _give(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        setattr(module, name, buffer)


class Head(nn.Sequential):
    """From the last map to the answer."""


class Network(nn.Module):
    """Stem, stages and head in a row. ``plan`` is what it was built from, ``card`` what belongs to it.

    ``report`` says where its tensors came from, if they were loaded or changed. What is ``frozen`` (paths) stays in
    evaluation mode, whatever `train` says.
    """

    def __init__(self, plan: Plan, card: Card, parts: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.plan = plan
        self.card = card
        self.report = Report()
        self.frozen: frozenset[str] = frozenset()
        for name, part in parts:
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation; what is frozen stays in evaluation."""
        super().train(mode)
        for path in self.frozen:
            self.get_submodule(path).eval()
        return self

    @property
    def maps(self) -> dict[str, Place]:
        """What a backbone hands on: each has ``output`` (C, H, W), ``stride`` and ``receptive_field``, in pixels."""
        head = self.card.spec.head
        chosen = head.stages if isinstance(head, Features) else (len(self.card.spec.stages),)
        return {f"stage{i}": place for i in chosen if isinstance(place := self.plan[f"stage{i}"], Place)}

    def features(self, x: Tensor, places: Iterable[str]) -> dict[str, Tensor]:
        """What the named places (``stem``, ``stage1``, ``stage2.block1`` ...) hand on for images ``x``.

        Nothing later runs. Raises `UsageError` for a place that is not among `places`.
        """
        wanted = set(places)
        self.require(wanted)
        found: dict[str, Tensor] = {}
        _gather(self, "", x, wanted, found)
        return found

    def places(self) -> list[str]:
        """Every path whose output is handed on to the next: stem, stages, blocks, head, and what they are made of."""
        return list(_places_of(self, ""))

    def require(self, places: Iterable[str]) -> None:
        """Raise `UsageError` for a path that is not among `places`."""
        known = self.places()
        for place in places:
            if place not in known:
                fix = suggestion(place, known, "one of " + ", ".join(name for name in known if "." not in name))
                raise UsageError(f"this network has no place called {place!r}", fix=fix)


class Backbone(Network):
    """A network whose answer is the maps of some stages, by name: N C H W each."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        found: dict[str, Tensor] = {}
        for name, part in self.named_children():
            x = part(x)
            found[name] = x
        return {name: found[name] for name in self.maps}


def _places_of(part: nn.Module, path: str) -> Iterator[str]:
    for name, child in part.named_children():
        yield path + name
        if isinstance(child, nn.Sequential):
            yield from _places_of(child, f"{path}{name}.")


def _gather(part: nn.Module, path: str, x: Tensor, wanted: set[str], found: dict[str, Tensor]) -> Tensor:
    """Run the children of a sequence until everything that is wanted has been found."""
    for name, child in part.named_children():
        if wanted == found.keys():
            break
        here = path + name
        inside = any(place.startswith(here + ".") for place in wanted - found.keys())
        x = _gather(child, here + ".", x, wanted, found) if inside else child(x)
        if here in wanted:
            found[here] = x
    return x


# ------------------------------------------------------------------------------------------- operations torch lacks


class ZeroPad(nn.Module):
    """Every stride-th pixel, with channels of zeros around (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"{self.before}, {self.after}, stride={self.stride}"


class DilatedAverage(nn.Module):
    """`nn.AvgPool2d(kernel, stride, ceil_mode=True, count_include_pad=False)` with dilation, for a trous stages."""

    def __init__(self, op: ops.AveragePooling) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = op.kernel, op.stride, op.dilation

    def forward(self, x: Tensor) -> Tensor:
        mean = self._sum(x) / self._sum(torch.ones_like(x[:1, :1]))
        return mean[..., :: self.stride, :: self.stride]

    def _sum(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        reach = self.dilation * (self.kernel - 1)
        padded = F.pad(x, (0, reach, 0, reach))
        steps = range(0, reach + 1, self.dilation)
        shifted = [padded[..., i : i + height, j : j + width] for i in steps for j in steps]
        return torch.stack(shifted).sum(0)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}, dilation={self.dilation}"


class GlobalAverage(nn.Module):
    """N C H W -> N C."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class EdgedMax(nn.Module):
    """A max pool whose edge is written out: zeros, as Keras pads it, or numbers that never win, where torch's own pool
    takes no such padding (dilated ones).
    """

    def __init__(self, op: ops.MaxPooling) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.padding = op.kernel, op.stride, op.dilation, op.padding
        self.edge = 0.0 if op.edge == "zeros" else -math.inf

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.padding,) * 4, value=self.edge)
        return F.max_pool2d(padded, self.kernel, self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}, dilation={self.dilation}, edge={self.edge}"


class Blur(nn.Module):
    """A binomial filter on each channel, mirrored at the edge (arXiv 1904.11486).

    A dilated one mirrors each of the grids that its taps lie on by itself, so that an a trous network blurs as the
    original does.
    """

    def __init__(self, op: ops.Blurring) -> None:
        super().__init__()
        self.channels, self.stride, self.dilation, self.padding = op.channels, op.stride, op.dilation, op.padding
        self.weights = tuple(math.comb(op.kernel - 1, i) / 2 ** (op.kernel - 1) for i in range(op.kernel))

    def forward(self, x: Tensor) -> Tensor:
        line = x.new_tensor(self.weights)
        kernel = (line[:, None] * line).expand(self.channels, 1, -1, -1)
        return F.conv2d(self._mirrored(x), kernel, None, self.stride, 0, self.dilation, self.channels)

    def _mirrored(self, x: Tensor) -> Tensor:
        if self.dilation == 1:
            return F.pad(x, (self.padding,) * 4, "reflect")
        rows, columns = (self._source(n, x.device) for n in x.shape[-2:])
        return x[..., rows[:, None], columns]

    def _source(self, n: int, device: torch.device) -> Tensor:
        """For each place of a padded line of ``n`` pixels the pixel that stands there."""
        place = torch.arange(-self.padding, n + self.padding, device=device)
        grid = place % self.dilation
        last = (n - 1 - grid) // self.dilation
        on_grid = (place - grid) // self.dilation % (2 * last).clamp_min(1)
        return torch.minimum(on_grid, 2 * last - on_grid) * self.dilation + grid

    def extra_repr(self) -> str:
        return f"{len(self.weights)}, stride={self.stride}"


class AverageTo(nn.Module):
    """N C H W -> N (C side side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.side).flatten(1)

    def extra_repr(self) -> str:
        return f"{self.side}"


class SqueezeAndExcite(nn.Module):
    """Each channel times a weight of 0 to 1 that two layers make of all averages (arXiv 1709.01507, equation 3)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1, device=_NOWHERE)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1, device=_NOWHERE)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


class WeighByNeighbours(nn.Module):
    """Each channel times a weight of 0 to 1 that a convolution along the channels makes of their averages."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=(kernel - 1) // 2, bias=False, device=_NOWHERE)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]  # type: ignore[no-any-return]


class DropBranch(nn.Module):
    """In training, zeros for some images of a batch, the others enlarged so that the mean stays (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * kept.to(x.dtype) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"


# ------------------------------------------------------------------------------------------------- node -> module

_NOWHERE = "meta"  # said to each layer, as a `torch.device` context costs as much as the layers themselves
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}


def _convolution(op: ops.Convolution) -> nn.Module:
    return nn.Conv2d(
        op.inputs,
        op.outputs,
        op.kernel,
        op.stride,
        op.padding,
        op.dilation,
        op.groups,
        op.bias,
        device=_NOWHERE,
    )


def _norm(op: ops.Normalisation) -> nn.Module:
    if isinstance(op.norm, BatchNorm):
        return nn.BatchNorm2d(op.channels, op.norm.eps, op.norm.momentum, device=_NOWHERE)
    return nn.GroupNorm(op.norm.groups, op.channels, op.norm.eps, device=_NOWHERE)


def _average(op: ops.AveragePooling) -> nn.Module:
    if op.stride == op.kernel and op.dilation == 1:
        return nn.AvgPool2d(op.kernel, op.stride, ceil_mode=True, count_include_pad=False)
    return DilatedAverage(op)


def _max_pool(op: ops.MaxPooling) -> nn.Module:
    if op.edge == "zeros" or (op.dilation > 1 and op.padding):
        return EdgedMax(op)
    return nn.MaxPool2d(op.kernel, op.stride, op.padding, op.dilation, ceil_mode=op.edge == "ceil")


_LAYERS: dict[type, Callable[[Any], nn.Module]] = {
    ops.Convolution: _convolution,
    ops.Normalisation: _norm,
    ops.Activate: lambda op: _ACTIVATIONS[op.name](),
    ops.MaxPooling: _max_pool,
    ops.Blurring: Blur,
    ops.AverageTo: lambda op: AverageTo(op.side),
    ops.SqueezeAndExcite: lambda op: SqueezeAndExcite(op.channels, op.reduced),
    ops.WeighByNeighbours: lambda op: WeighByNeighbours(op.kernel),
    ops.DropBranch: lambda op: DropBranch(op.rate),
    ops.DropOut: lambda op: nn.Dropout(op.rate),
    ops.AveragePooling: _average,
    ops.ZeroPad: lambda op: ZeroPad(op.before, op.after, op.stride),
    ops.GlobalAverage: lambda op: GlobalAverage(),
    ops.FullyConnected: lambda op: nn.Linear(op.inputs, op.outputs, device=_NOWHERE),
}

_PLACES: dict[str, type[nn.Sequential]] = {
    "stem": Stem,
    "stage": Stage,
    "pre": Pre,
    "branch": Branch,
    "shortcut": Shortcut,
    "head": Head,
}


def module(part: Place | Node) -> nn.Module:
    """The module of a node or a place of a plan, on the meta device: shapes, and no numbers yet."""
    if isinstance(part, Node):
        return _LAYERS[type(part.op)](part.op)
    parts = {name(child): module(child) for child in part.children if child.role != "add"}
    if part.role == "block" and "shortcut" in parts:
        return _block(parts)
    place = PlainBlock() if part.role == "block" else _PLACES[part.role]()
    for key, child in parts.items():
        place.add_module(key, child)
    return place


def _block(parts: dict[str, nn.Module]) -> nn.Module:
    if "pre" not in parts:
        return Block(**parts)  # type: ignore[arg-type]
    learns = any(True for _ in parts["shortcut"].parameters())
    return (ProjectedPreBlock if learns else PreBlock)(**parts)  # type: ignore[arg-type]


def name(part: Place | Node) -> str:
    """The last word of a path."""
    return part.path.rpartition(".")[2]
