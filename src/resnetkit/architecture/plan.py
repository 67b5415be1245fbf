"""Everything that follows from a spec: one node per operation, one place per part of the network.

    plan(spec)                             checked against the rules; any image size
    plan["stage2.block1.shortcut"]         a place or a node, by its path
    plan.nodes                             the operations, in the order in which they run

One generator per part: stem, stage, block, branch, shortcut, head. Each writes its operations on a trail, which knows
where it stands: the shape of the map, how many pixels of the image one pixel of the map sees (receptive field), and how
many pixels of the image lie between two of the map (stride).

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from resnetkit.architecture.catalog import spec as spec_of
from resnetkit.architecture.operations import (
    Activate,
    Add,
    AveragePooling,
    AverageTo,
    Blurring,
    Convolution,
    DropBranch,
    DropOut,
    FullyConnected,
    GlobalAverage,
    MaxPooling,
    Normalisation,
    Op,
    Shape,
    SqueezeAndExcite,
    WeighByNeighbours,
    ZeroPad,
)
from resnetkit.architecture.rules import answer, block_stride, has_weights, neighbours, reduced_channels, require
from resnetkit.architecture.spec import (
    MLP,
    Adapter,
    BatchNorm,
    BlurredFirstBlock,
    EfficientChannels,
    Features,
    FoldedNorm,
    GroupNorm,
    Identity,
    Linear,
    Network,
    NoHead,
    NoNorm,
    NoShortcuts,
    PoolAfter,
    Pooled,
    PooledProjection,
    Projection,
    SqueezeExcite,
    Stage,
    Step,
    Subsampled,
    ZeroPadded,
    steps,
    stride_at,
)
from resnetkit.errors import Fault, SpecError, UsageError, nearest

Role = Literal[
    # places
    "network", "stem", "stage", "block", "pre", "branch", "shortcut", "head",
    # operations
    "stem-conv", "stem-norm", "stem-act", "stem-pool", "stem-blur",
    "pre-norm", "pre-act",
    "branch-conv", "branch-norm", "branch-last-norm", "branch-act", "branch-blur", "branch-attention", "branch-drop",
    "projection", "projection-norm", "shortcut-pool", "shortcut-pad",
    "add", "block-act", "stage-pool",
    "head-norm", "head-act", "global-average", "average", "hidden", "head-drop", "classifier",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. Shapes are (C, H, W) for one image; ``receptive_field`` and ``stride`` are pixels of the image."""

    path: str
    role: Role
    op: Op
    input: Shape
    output: Shape
    receptive_field: int
    stride: int
    reason: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Itself: a node and a place can be asked the same."""
        return (self,)

    @property
    def params(self) -> int:
        """Numbers that training changes."""
        return self.op.params

    @property
    def macs(self) -> int:
        """Multiply-adds of convolutions and fully connected layers, for one image."""
        return self.op.macs(self.output)

    @property
    def activations(self) -> int:
        """Numbers that the operation hands on, for one image."""
        return math.prod(self.output)


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the network: its operations and its parts, in order, and why it is as it is."""

    path: str
    role: Role
    children: tuple[Place | Node, ...]
    input: Shape
    output: Shape
    receptive_field: int
    stride: int
    reason: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations in it, in the order in which they run."""
        return tuple(node for child in self.children for node in child.nodes)

    @property
    def params(self) -> int:
        return sum(node.params for node in self.nodes)

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def activations(self) -> int:
        return sum(node.activations for node in self.nodes)


@dataclass(frozen=True)
class Plan:
    """A spec worked out for one size of image."""

    spec: Network
    root: Place

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every operation, in the order in which they run."""
        return self.root.nodes

    @cached_property
    def parts(self) -> dict[str, Place | Node]:
        """Every place and every operation, by path; the network itself is ``""``."""
        return {part.path: part for part in _walk(self.root)}

    @property
    def input(self) -> Shape:
        """Channels, height and width of one image."""
        return self.root.input

    @property
    def output(self) -> Shape:
        return self.root.output

    @cached_property
    def params(self) -> int:
        """Numbers that training changes."""
        return self.root.params

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of convolutions and fully connected layers, for one image."""
        return self.root.macs

    @cached_property
    def activations(self) -> int:
        """Numbers that all operations hand on, for one image; times 4 bytes is what training in fp32 keeps at most."""
        return self.root.activations

    @property
    def receptive_field(self) -> int:
        """The side, in pixels of the image, of what one pixel of the last stage sees."""
        return self.root.receptive_field

    @cached_property
    def depth(self) -> int:
        """The number in a network's name: the stem counts one; shortcuts, norms and attention none."""
        counted = sum(node.role in ("branch-conv", "hidden", "classifier") for node in self.nodes)
        return counted + bool(self.spec.stem.convs)

    def __getitem__(self, path: str) -> Place | Node:
        if path not in self.parts:
            near = nearest(path, self.parts, 3) or tuple(child.path for child in self.root.children)
            raise UsageError("there is no such path in this network", where=path, fix="try " + " or ".join(near))
        return self.parts[path]

    def __str__(self) -> str:
        from resnetkit.architecture.summary import text  # a view of the plan, which is fetched when it is asked for

        return text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from resnetkit.architecture.summary import markup

        return markup(self)


def plan(spec: Network | str | Path, image: int | tuple[int, int] | tuple[int, int, int] | None = None) -> Plan:
    """Work ``spec`` (or what names one) out, for its own input or another ``image``: a side, (H, W), or (C, H, W).

    Raises `SpecError` with every fault of the spec, or with the node at which the map vanishes.
    """
    spec = spec_of(spec)
    require(spec)
    if image is not None:
        spec = replace(spec, input=_input_shape(spec, image))
        require(spec)
    trail = _Trail(spec.input)
    return Plan(spec, trail.place("", "network", partial(_network, spec, trail)))


def _input_shape(spec: Network, image: int | tuple[int, ...]) -> tuple[int, int, int]:
    given = (image, image) if isinstance(image, int) else tuple(image)
    channels, *sides = given if len(given) == 3 else (spec.input[0], *given)
    if len(sides) != 2 or channels != spec.input[0]:
        fault = Fault("image", "x".join(map(str, given)), f"H and W, for {spec.input[0]} input channels")
        raise SpecError("this image does not fit the network", [fault])
    return channels, sides[0], sides[1]


def stage_number(path: str) -> int:
    """Of a path, from 1."""
    return int(path.split(".", maxsplit=1)[0].removeprefix("stage"))


def block_number(path: str) -> int:
    """Of a path, from 1 in its stage."""
    return int(path.split(".")[1].removeprefix("block"))


def _walk(part: Place | Node) -> Iterator[Place | Node]:
    yield part
    for child in part.children if isinstance(part, Place) else ():
        yield from _walk(child)


# --------------------------------------------------------------------------------------------------------- the trail


@dataclass
class _Trail:
    """Where the planner stands, and what it has written so far."""

    shape: Shape
    receptive_field: int = 1
    stride: int = 1
    written: list[Place | Node] = field(default_factory=list)

    def run(self, path: str, role: Role, op: Op, reason: str = "") -> None:
        """Write an operation and stand behind it."""
        output = op.output(self.shape)
        if min(output) < 1:
            raise _vanished(path, self.shape, output)
        kernel, stride, dilation = op.window
        self.receptive_field += dilation * (kernel - 1) * self.stride
        self.stride *= stride
        self.written.append(Node(path, role, op, self.shape, output, self.receptive_field, self.stride, reason))
        self.shape = output

    def place(self, path: str, role: Role, write: Callable[[], str | None]) -> Place:
        """A place that holds what ``write`` writes; what it returns is the reason."""
        outside, start = self.written, self.shape
        self.written = []
        reason = write() or ""
        made = Place(path, role, tuple(self.written), start, self.shape, self.receptive_field, self.stride, reason)
        self.written = [*outside, made]
        return made

    def fork(self) -> _Trail:
        """The same position, with nothing written."""
        return _Trail(self.shape, self.receptive_field, self.stride)


def _vanished(path: str, came: Shape, output: Shape) -> SpecError:
    size = "x".join(map(str, came[1:]))
    fault = Fault(path, f"a map of {size}, of which nothing is left", "a larger image, or fewer strides before it")
    return SpecError("the map vanishes", [fault], fix="give a larger image")


# ------------------------------------------------------------------------------------------------------------- parts


def _network(spec: Network, trail: _Trail) -> None:
    if spec.stem.convs or spec.stem.pool or spec.stem.blur:
        trail.place("stem", "stem", partial(_stem, spec, trail))
    dilation, first = 1, 0
    for i, stage in enumerate(spec.stages, 1):
        writer = _Stage(spec, stage, trail, f"stage{i}", first, dilation)
        trail.place(writer.path, "stage", writer.write)
        dilation, first = writer.dilation, first + stage.blocks
    if not isinstance(spec.head, NoHead | Features):
        trail.place("head", "head", partial(_head, spec, trail))


def _stem(spec: Network, trail: _Trail) -> None:
    for i, conv in enumerate(spec.stem.convs, 1):
        bare = _pre(spec) and i == len(spec.stem.convs)
        op = _convolution(spec, trail.shape[0], Step(conv.channels, conv.kernel), conv.stride, bare=bare)
        trail.run(f"stem.conv{i}", "stem-conv", op)
        if not bare:
            _norm(spec, trail, f"stem.norm{i}", "stem-norm")
            trail.run(f"stem.act{i}", "stem-act", Activate(spec.activation))
    for pool in spec.stem.pool:
        trail.run("stem.pool", "stem-pool", MaxPooling(pool.kernel, pool.stride, 1, pool.edge))
    for blur in spec.stem.blur:
        trail.run("stem.blur", "stem-blur", Blurring(trail.shape[0], blur.kernel, blur.stride))


def _head(spec: Network, trail: _Trail) -> None:
    if _pre(spec):
        _norm(spec, trail, "head.norm", "head-norm")
        trail.run("head.act", "head-act", Activate(spec.activation))
    match spec.head:
        case Linear(classes):
            trail.run("head.pool", "global-average", GlobalAverage())
            trail.run("head.linear", "classifier", FullyConnected(trail.shape[0], classes))
        case MLP(classes, hidden, pool, dropout):
            trail.run("head.pool", "average", AverageTo(pool))
            for i, width in enumerate(hidden, 1):
                trail.run(f"head.linear{i}", "hidden", FullyConnected(trail.shape[0], width))
                trail.run(f"head.act{i}", "head-act", Activate(spec.activation))
                if dropout:
                    trail.run(f"head.drop{i}", "head-drop", DropOut(dropout))
            trail.run("head.linear", "classifier", FullyConnected(trail.shape[0], classes))
        case Pooled():
            trail.run("head.pool", "global-average", GlobalAverage())


@dataclass
class _Stage:
    """A stage being written, whose blocks follow ``first`` others; ``dilation`` is what its blocks have so far."""

    spec: Network
    stage: Stage
    trail: _Trail
    path: str
    first: int
    dilation: int

    def write(self) -> None:
        for b in range(1, self.stage.blocks + 1):
            path, stride = f"{self.path}.block{b}", block_stride(self.stage, b)
            self.trail.place(path, "block", partial(self.block, path, b, stride))
            self._keep(stride)
        if isinstance(self.stage.reduce, PoolAfter):
            stride = self.stage.reduce.stride
            self.trail.run(f"{self.path}.pool", "stage-pool", MaxPooling(stride, self._real(stride), self.dilation))
            self._keep(stride)

    def _real(self, stride: int) -> int:
        """The stride that an operation has: an a trous stage has none."""
        return 1 if self.stage.reduce.atrous else stride

    def _keep(self, stride: int) -> None:
        """What comes later is dilated by a stride that was not taken."""
        if self.stage.reduce.atrous:
            self.dilation *= stride

    def block(self, path: str, number: int, stride: int) -> None:
        start = self.trail.fork()
        if _pre(self.spec):
            self.trail.place(f"{path}.pre", "pre", partial(self.activate, f"{path}.pre"))
        activated = self.trail.fork()
        self.trail.place(f"{path}.branch", "branch", partial(self.branch, f"{path}.branch", number, stride))
        if not isinstance(self.spec.shortcuts, NoShortcuts):
            adapter = answer(self.spec.shortcuts, start.shape[0], self.stage.channels, stride)
            seen = activated if has_weights(adapter) else start
            write = partial(self.shortcut, f"{path}.shortcut", adapter, seen, stride)
            self.trail.written.append(seen.place(f"{path}.shortcut", "shortcut", write))
            self.trail.receptive_field = max(self.trail.receptive_field, seen.receptive_field)
            self.trail.run(f"{path}.add", "add", Add())
        if not _pre(self.spec):
            self.trail.run(f"{path}.act", "block-act", Activate(self.spec.activation))

    def activate(self, path: str) -> None:
        """What comes before the branch of a pre-activation block."""
        _norm(self.spec, self.trail, f"{path}.norm", "pre-norm")
        self.trail.run(f"{path}.act", "pre-act", Activate(self.spec.activation))

    def branch(self, path: str, number: int, stride: int) -> None:
        """The convolution that loses its stride keeps the dilation it had; those behind it get the new one."""
        chain, at = steps(self.stage.branch, self.stage.channels), stride_at(self.stage.branch)
        real, blurred = self._real(stride), isinstance(self.stage.reduce, BlurredFirstBlock) and stride > 1
        for i, step in enumerate(chain, 1):
            last = i == len(chain)
            bare = last and _pre(self.spec)
            taken = real if i == at and not blurred else 1
            gained = stride // real if i > at else 1
            op = _convolution(self.spec, self.trail.shape[0], step, taken, self.dilation * gained, bare=bare)
            self.trail.run(f"{path}.conv{i}", "branch-conv", op)
            if not bare:
                _norm(self.spec, self.trail, f"{path}.norm{i}", "branch-last-norm" if last else "branch-norm")
            if not last:
                self.trail.run(f"{path}.act{i}", "branch-act", Activate(self.spec.activation))
            if blurred and i == at and isinstance(self.stage.reduce, BlurredFirstBlock):
                blur = Blurring(self.trail.shape[0], self.stage.reduce.blur, real, self.dilation)
                self.trail.run(f"{path}.blur", "branch-blur", blur)
        self.ending(path, number)

    def ending(self, path: str, number: int) -> None:
        """What stands between the convolutions of a branch and the addition."""
        channels = self.trail.shape[0]
        for attention in self.stage.attention:
            match attention:
                case SqueezeExcite(reduction):
                    op: Op = SqueezeAndExcite(channels, reduced_channels(channels, reduction))
                case EfficientChannels():
                    op = WeighByNeighbours(channels, neighbours(channels))
            self.trail.run(f"{path}.attention", "branch-attention", op)
        blocks = sum(stage.blocks for stage in self.spec.stages)
        rate = self.spec.stochastic_depth * (self.first + number - 1) / max(blocks - 1, 1)
        if rate:
            self.trail.run(f"{path}.drop", "branch-drop", DropBranch(rate))

    def shortcut(self, path: str, adapter: Adapter, trail: _Trail, stride: int) -> str:
        """Decided by the written stride, so that no shortcut comes or goes when a stage turns a trous."""
        inputs, outputs, before = trail.shape[0], self.stage.channels, trail.shape
        real = self._real(stride)
        match adapter:
            case Identity():
                return f"{inputs} channels{_at(before)} on both ways"
            case ZeroPadded(side):
                zeros = outputs - inputs
                first = zeros // 2 if side == "both" else 0
                trail.run(f"{path}.pad", "shortcut-pad", ZeroPad(first, zeros - first, real))
            case Subsampled(kernel):
                trail.run(f"{path}.pool", "shortcut-pool", MaxPooling(kernel, real, self.dilation))
            case PooledProjection():
                if stride > 1:
                    trail.run(f"{path}.pool", "shortcut-pool", AveragePooling(stride, real, self.dilation))
                self.project(path, trail, 1)
            case Projection():
                self.project(path, trail, real)
        return self.cause(before, trail.shape, stride)

    def project(self, path: str, trail: _Trail, stride: int) -> None:
        bare = _pre(self.spec)
        op = _convolution(self.spec, trail.shape[0], Step(self.stage.channels, 1), stride, bare=bare)
        trail.run(f"{path}.conv", "projection", op)
        if not bare:
            _norm(self.spec, trail, f"{path}.norm", "projection-norm")

    def cause(self, before: Shape, after: Shape, stride: int) -> str:
        """What differs between the two ways, with its numbers."""
        causes = [f"channels {before[0]} -> {after[0]}"] * (before[0] != after[0])
        if stride > 1 and self.stage.reduce.atrous:
            causes.append(f"stride {stride}, kept as dilation: {_side(before)} -> {_side(after)}")
        elif stride > 1:
            causes.append(f"stride {stride}: {_side(before)} -> {_side(after)}")
        return " and ".join(causes) or f"nothing differs ({before[0]} channels{_at(before)}): asked for in every block"


def _pre(spec: Network) -> bool:
    """Whether activations come before convolutions."""
    return spec.order == "norm-act-conv"


def _convolution(
    spec: Network, inputs: int, step: Step, stride: int, dilation: int = 1, *, bare: bool = False
) -> Convolution:
    """A kernel of 1 has no dilation to speak of. ``bare`` ones have no norm behind them."""
    bias = bare or isinstance(spec.norm, NoNorm | FoldedNorm) if spec.bias == "without-norm" else spec.bias == "always"
    spread = dilation if step.kernel > 1 else 1
    return Convolution(inputs, step.channels, step.kernel, stride, spread, step.groups, bias)


def _norm(spec: Network, trail: _Trail, path: str, role: Role) -> None:
    match spec.norm:
        case FoldedNorm(eps, momentum):
            if role in ("pre-norm", "head-norm"):
                trail.run(path, role, Normalisation(BatchNorm(eps, momentum), trail.shape[0]))
        case BatchNorm() | GroupNorm() as norm:
            trail.run(path, role, Normalisation(norm, trail.shape[0]))


def _at(shape: Shape) -> str:
    return f" at {shape[1]}x{shape[2]}"


def _side(shape: Shape) -> str:
    return str(shape[1]) if shape[1] == shape[2] else f"{shape[1]}x{shape[2]}"
