"""The plan of a network: everything that follows from a spec, with one node per operation.

    plan(spec)                             checks the rules; any image size
    plan["stage2.block1.shortcut"]         a section or a node, by its path
    plan.nodes                             the operations in the order in which they run

One function adds the nodes of each section (stem, stage, block, branch, shortcut, head) to a `_PlanBuilder`. It knows
the shape of the current feature map, and two numbers of its pixels. The receptive field counts the image pixels that
one of them sees; the stride counts the image pixels to its neighbor.

This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from resnetkit.architecture import operations as ops
from resnetkit.architecture import rules
from resnetkit.architecture import spec as specs
from resnetkit.architecture.catalog import spec as resolve_spec
from resnetkit.architecture.operations import Op, Shape
from resnetkit.architecture.spec import Network, Stage, Step, get_stride_at, list_steps
from resnetkit.errors import Fault, SpecError, UsageError, find_closest

Role = Literal[
    # sections
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
    """One operation. Shapes are (C, H, W) for one image; ``receptive_field`` and ``stride`` are in image pixels."""

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
        """The node itself, so that nodes and sections have the same interface."""
        return (self,)

    @property
    def params(self) -> int:
        """The number of trainable parameters."""
        return self.op.params

    @property
    def macs(self) -> int:
        """The multiply-adds of all convolutions (fixed blurs included) and linear layers for one image."""
        return self.op.count_macs(self.output)

    @property
    def activations(self) -> int:
        """The size of the output for one image."""
        return math.prod(self.output)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the network: its children in order, and the reason for its structure."""

    path: str
    role: Role
    children: tuple[Section | Node, ...]
    input: Shape
    output: Shape
    receptive_field: int
    stride: int
    reason: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The operations of the section in the order in which they run."""
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
    """All nodes and sections of a spec for one image size."""

    spec: Network
    root: Section

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All operations in the order in which they run."""
        return self.root.nodes

    @cached_property
    def parts(self) -> dict[str, Section | Node]:
        """All sections and nodes by path; the path of the network itself is ``""``."""
        return {part.path: part for part in _walk(self.root)}

    @property
    def input(self) -> Shape:
        """The channels, height and width of one image."""
        return self.root.input

    @property
    def output(self) -> Shape:
        return self.root.output

    @cached_property
    def params(self) -> int:
        """The number of trainable parameters."""
        return self.root.params

    @cached_property
    def macs(self) -> int:
        """The multiply-adds of all convolutions (fixed blurs included) and linear layers for one image."""
        return self.root.macs

    @cached_property
    def activations(self) -> int:
        """The size of all outputs for one image; fp32 training keeps at most 4 bytes for each."""
        return self.root.activations

    @property
    def receptive_field(self) -> int:
        """The side of the square of image pixels that one pixel of the last stage sees."""
        return self.root.receptive_field

    @cached_property
    def depth(self) -> int:
        """The number in the network's name: the stem counts as one layer, shortcuts and attention as none."""
        n_layers = sum(node.role in ("branch-conv", "hidden", "classifier") for node in self.nodes)
        return n_layers + bool(self.spec.stem.convs)

    def __getitem__(self, path: str) -> Section | Node:
        if path not in self.parts:
            matches = find_closest(path, self.parts, 3) or tuple(child.path for child in self.root.children)
            raise UsageError("this network has no such path", where=path, fix=f"try {' or '.join(matches)}")
        return self.parts[path]

    def __str__(self) -> str:
        from resnetkit.architecture.summary import format_summary  # summary imports plan

        return format_summary(self)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        from resnetkit.architecture.summary import format_summary_html

        return format_summary_html(self)


def plan(spec: Network | str | Path, image: int | tuple[int, int] | tuple[int, int, int] | None = None) -> Plan:
    """Return the plan of a network.

    Args:
        spec: a spec, a name of the catalog, or a ``.toml`` or ``.json`` file.
        image: another image size than that of the spec: a side, (H, W) or (C, H, W).

    Raises:
        SpecError: with all faults of the spec, or with the node at which the feature map becomes empty.
        UsageError: an unknown name.
    """
    spec = resolve_spec(spec)
    rules.check_spec(spec)
    if image is not None:
        spec = replace(spec, input=_input_shape(spec, image))
        rules.check_spec(spec)
    builder = _PlanBuilder(spec.input)
    return Plan(spec, builder.build_section("", "network", partial(_add_network, spec, builder)))


def _input_shape(spec: Network, image: int | tuple[int, ...]) -> tuple[int, int, int]:
    shape = (image, image) if isinstance(image, int) else tuple(image)
    channels, *sides = shape if len(shape) == 3 else (spec.input[0], *shape)
    if len(sides) != 2 or channels != spec.input[0]:
        fault = Fault("image", "x".join(map(str, shape)), f"H and W, for {spec.input[0]} input channels")
        raise SpecError("this image does not fit the network", [fault])
    return channels, sides[0], sides[1]


def parse_stage_number(path: str) -> int:
    """Return the number of the stage in a path, from 1."""
    return int(path.split(".", maxsplit=1)[0].removeprefix("stage"))


def parse_block_number(path: str) -> int:
    """Return the number of the block in a path, from 1 in its stage."""
    return int(path.split(".")[1].removeprefix("block"))


def _walk(part: Section | Node) -> Iterator[Section | Node]:
    yield part
    for child in part.children if isinstance(part, Section) else ():
        yield from _walk(child)


# ------------------------------------------------------------------------------------------------------- the builder


@dataclass
class _PlanBuilder:
    """The current state of the feature map, and the parts added so far."""

    shape: Shape
    receptive_field: int = 1
    stride: int = 1
    parts: list[Section | Node] = field(default_factory=list)

    def add_node(self, path: str, role: Role, op: Op, reason: str = "") -> None:
        """Add an operation and move the state behind it."""
        output = op.compute_output_shape(self.shape)
        if min(output) < 1:
            raise _empty_map_error(path, self.shape, output)
        kernel, stride, dilation = op.window
        self.receptive_field += dilation * (kernel - 1) * self.stride
        self.stride *= stride
        self.parts.append(Node(path, role, op, self.shape, output, self.receptive_field, self.stride, reason))
        self.shape = output

    def build_section(self, path: str, role: Role, add_parts: Callable[[], str | None]) -> Section:
        """Add the section of the parts that ``add_parts`` adds; its return value is the reason."""
        outer_parts, input_shape = self.parts, self.shape
        self.parts = []
        reason = add_parts() or ""
        parts = tuple(self.parts)
        section = Section(path, role, parts, input_shape, self.shape, self.receptive_field, self.stride, reason)
        self.parts = [*outer_parts, section]
        return section

    def fork(self) -> _PlanBuilder:
        """Return a builder in the same state, without parts."""
        return _PlanBuilder(self.shape, self.receptive_field, self.stride)


def _empty_map_error(path: str, shape: Shape, output: Shape) -> SpecError:
    size = "x".join(map(str, shape[1:]))
    fault = Fault(path, f"a feature map of {size}, too small for this operation", "a larger image, or fewer strides")
    return SpecError("the feature map becomes empty", [fault], fix="use a larger image")


# ------------------------------------------------------------------------------------------------------------- parts


def _add_network(spec: Network, builder: _PlanBuilder) -> None:
    if spec.stem.convs or spec.stem.pool or spec.stem.blur:
        builder.build_section("stem", "stem", partial(_add_stem, spec, builder))
    dilation, n_blocks = 1, 0
    for i, stage in enumerate(spec.stages, 1):
        stage_builder = _StageBuilder(spec, stage, builder, f"stage{i}", n_blocks, dilation)
        builder.build_section(stage_builder.path, "stage", stage_builder.add_blocks)
        dilation, n_blocks = stage_builder.dilation, n_blocks + stage.blocks
    if not isinstance(spec.head, specs.NoHead | specs.Features):
        builder.build_section("head", "head", partial(_add_head, spec, builder))


def _add_stem(spec: Network, builder: _PlanBuilder) -> None:
    for i, conv in enumerate(spec.stem.convs, 1):
        step, without_norm = Step(conv.channels, conv.kernel), _is_pre_activation(spec) and i == len(spec.stem.convs)
        op = _make_convolution(spec, builder.shape[0], step, conv.stride, without_norm=without_norm)
        builder.add_node(f"stem.conv{i}", "stem-conv", op)
        if not without_norm:
            _add_norm(spec, builder, f"stem.norm{i}", "stem-norm")
            builder.add_node(f"stem.act{i}", "stem-act", ops.ActivationOp(spec.activation))
    for pool in spec.stem.pool:
        builder.add_node("stem.pool", "stem-pool", ops.MaxPoolOp(pool.kernel, pool.stride, 1, pool.edge))
    for blur in spec.stem.blur:
        builder.add_node("stem.blur", "stem-blur", ops.BlurOp(builder.shape[0], blur.kernel, blur.stride))


def _add_head(spec: Network, builder: _PlanBuilder) -> None:
    if _is_pre_activation(spec):
        _add_norm(spec, builder, "head.norm", "head-norm")
        builder.add_node("head.act", "head-act", ops.ActivationOp(spec.activation))
    match spec.head:
        case specs.Linear(classes):
            builder.add_node("head.pool", "global-average", ops.GlobalAvgPoolOp())
            builder.add_node("head.linear", "classifier", ops.LinearOp(builder.shape[0], classes))
        case specs.MLP(classes, hidden, pool, dropout):
            builder.add_node("head.pool", "average", ops.AdaptiveAvgPoolOp(pool))
            for i, width in enumerate(hidden, 1):
                builder.add_node(f"head.linear{i}", "hidden", ops.LinearOp(builder.shape[0], width))
                builder.add_node(f"head.act{i}", "head-act", ops.ActivationOp(spec.activation))
                if dropout:
                    builder.add_node(f"head.drop{i}", "head-drop", ops.DropoutOp(dropout))
            builder.add_node("head.linear", "classifier", ops.LinearOp(builder.shape[0], classes))
        case specs.Pooled():
            builder.add_node("head.pool", "global-average", ops.GlobalAvgPoolOp())


@dataclass
class _StageBuilder:
    """Adds the blocks of a stage; ``dilation`` is that of the next block."""

    spec: Network
    stage: Stage
    builder: _PlanBuilder
    path: str
    n_previous_blocks: int
    dilation: int

    def add_blocks(self) -> None:
        for b in range(1, self.stage.blocks + 1):
            path, stride = f"{self.path}.block{b}", rules.get_block_stride(self.stage, b)
            self.builder.build_section(path, "block", partial(self.add_block, path, b, stride))
            self._update_dilation(stride)
        if isinstance(self.stage.reduce, specs.PoolAfter):
            stride = self.stage.reduce.stride
            op = ops.MaxPoolOp(stride, self._get_effective_stride(stride), self.dilation)
            self.builder.add_node(f"{self.path}.pool", "stage-pool", op)
            self._update_dilation(stride)

    def _get_effective_stride(self, stride: int) -> int:
        """Return the stride of an operation, which is 1 in an atrous stage."""
        return 1 if self.stage.reduce.atrous else stride

    def _update_dilation(self, stride: int) -> None:
        """Dilate all later operations by a stride that an atrous stage does not apply."""
        if self.stage.reduce.atrous:
            self.dilation *= stride

    def add_block(self, path: str, number: int, stride: int) -> None:
        """Add branch, shortcut and activation; the shortcut starts at the input or at the activated map."""
        input_builder = self.builder.fork()
        if _is_pre_activation(self.spec):
            self.builder.build_section(f"{path}.pre", "pre", partial(self.add_pre_activation, f"{path}.pre"))
        activated_builder = self.builder.fork()
        add_branch = partial(self.add_branch, f"{path}.branch", number, stride)
        self.builder.build_section(f"{path}.branch", "branch", add_branch)
        if not isinstance(self.spec.shortcuts, specs.NoShortcuts):
            adapter = rules.select_adapter(self.spec.shortcuts, input_builder.shape[0], self.stage.channels, stride)
            shortcut_builder = activated_builder if rules.has_weights(adapter) else input_builder
            add_parts = partial(self.add_shortcut, f"{path}.shortcut", adapter, shortcut_builder, stride)
            self.builder.parts.append(shortcut_builder.build_section(f"{path}.shortcut", "shortcut", add_parts))
            self.builder.receptive_field = max(self.builder.receptive_field, shortcut_builder.receptive_field)
            self.builder.add_node(f"{path}.add", "add", ops.AddOp())
        if not _is_pre_activation(self.spec):
            self.builder.add_node(f"{path}.act", "block-act", ops.ActivationOp(self.spec.activation))

    def add_pre_activation(self, path: str) -> None:
        """Add the norm and the activation before the branch of a pre-activation block."""
        _add_norm(self.spec, self.builder, f"{path}.norm", "pre-norm")
        self.builder.add_node(f"{path}.act", "pre-act", ops.ActivationOp(self.spec.activation))

    def add_branch(self, path: str, number: int, stride: int) -> None:
        """Add the steps; if a stride turns into dilation, the steps after it are dilated."""
        steps, stride_position = list_steps(self.stage.branch, self.stage.channels), get_stride_at(self.stage.branch)
        effective_stride = self._get_effective_stride(stride)
        is_blurred = isinstance(self.stage.reduce, specs.BlurredFirstBlock) and stride > 1
        for i, step in enumerate(steps, 1):
            is_last = i == len(steps)
            without_norm = is_last and _is_pre_activation(self.spec)
            conv_stride = effective_stride if i == stride_position and not is_blurred else 1
            dilation = self.dilation * (stride // effective_stride if i > stride_position else 1)
            in_channels = self.builder.shape[0]
            op = _make_convolution(self.spec, in_channels, step, conv_stride, dilation, without_norm=without_norm)
            self.builder.add_node(f"{path}.conv{i}", "branch-conv", op)
            if not without_norm:
                _add_norm(self.spec, self.builder, f"{path}.norm{i}", "branch-last-norm" if is_last else "branch-norm")
            if not is_last:
                self.builder.add_node(f"{path}.act{i}", "branch-act", ops.ActivationOp(self.spec.activation))
            if is_blurred and i == stride_position and isinstance(self.stage.reduce, specs.BlurredFirstBlock):
                blur = ops.BlurOp(self.builder.shape[0], self.stage.reduce.blur, effective_stride, self.dilation)
                self.builder.add_node(f"{path}.blur", "branch-blur", blur)
        self.add_branch_end(path, number)

    def add_branch_end(self, path: str, number: int) -> None:
        """Add attention and stochastic depth between the last step and the addition."""
        channels = self.builder.shape[0]
        for attention in self.stage.attention:
            match attention:
                case specs.SqueezeExcite(reduction):
                    op: Op = ops.SqueezeExciteOp(channels, rules.compute_reduced_channels(channels, reduction))
                case specs.EfficientChannels():
                    op = ops.EfficientChannelsOp(channels, rules.compute_eca_kernel(channels))
            self.builder.add_node(f"{path}.attention", "branch-attention", op)
        n_blocks = sum(stage.blocks for stage in self.spec.stages)
        rate = self.spec.stochastic_depth * (self.n_previous_blocks + number - 1) / max(n_blocks - 1, 1)
        if rate:
            self.builder.add_node(f"{path}.drop", "branch-drop", ops.StochasticDepthOp(rate))

    def add_shortcut(self, path: str, adapter: specs.Adapter, builder: _PlanBuilder, stride: int) -> str:
        """Add the operations of a shortcut and return the reason for them.

        The stride of the spec decides, so that an atrous stage has the same shortcuts as the original.
        """
        in_channels, input_shape = builder.shape[0], builder.shape
        effective_stride = self._get_effective_stride(stride)
        match adapter:
            case specs.Identity():
                return f"{in_channels} channels{_format_location(input_shape)} on both paths"
            case specs.ZeroPadded(side):
                n_zeros = self.stage.channels - in_channels
                n_leading = n_zeros // 2 if side == "both" else 0
                op = ops.ZeroPadOp(n_leading, n_zeros - n_leading, effective_stride)
                builder.add_node(f"{path}.pad", "shortcut-pad", op)
            case specs.Subsampled(kernel):
                pool: Op = ops.MaxPoolOp(kernel, effective_stride, self.dilation)
                builder.add_node(f"{path}.pool", "shortcut-pool", pool)
            case specs.PooledProjection():
                if stride > 1:
                    pool = ops.AvgPoolOp(stride, effective_stride, self.dilation)
                    builder.add_node(f"{path}.pool", "shortcut-pool", pool)
                self.add_projection(path, builder, 1)
            case specs.Projection():
                self.add_projection(path, builder, effective_stride)
        return self.describe_cause(input_shape, builder.shape, stride)

    def add_projection(self, path: str, builder: _PlanBuilder, stride: int) -> None:
        step, without_norm = Step(self.stage.channels, 1), _is_pre_activation(self.spec)
        op = _make_convolution(self.spec, builder.shape[0], step, stride, without_norm=without_norm)
        builder.add_node(f"{path}.conv", "projection", op)
        if not without_norm:
            _add_norm(self.spec, builder, f"{path}.norm", "projection-norm")

    def describe_cause(self, input_shape: Shape, output_shape: Shape, stride: int) -> str:
        """Return the differences between the input and the output of a block, with their numbers."""
        causes = []
        if input_shape[0] != output_shape[0]:
            causes.append(f"channels {input_shape[0]} -> {output_shape[0]}")
        if stride > 1:
            dilated = ", kept as dilation" if self.stage.reduce.atrous else ""
            causes.append(f"stride {stride}{dilated}: {_format_size(input_shape)} -> {_format_size(output_shape)}")
        same = f"nothing differs ({input_shape[0]} channels{_format_location(input_shape)})"
        return " and ".join(causes) or f"{same}: the spec sets it for every block"


def _is_pre_activation(spec: Network) -> bool:
    """Return True if activations precede convolutions."""
    return spec.order == "norm-act-conv"


def _make_convolution(
    spec: Network, in_channels: int, step: Step, stride: int, dilation: int = 1, *, without_norm: bool = False
) -> ops.ConvOp:
    """Return a convolution, without dilation if its kernel is 1; ``without_norm``: no norm follows it."""
    is_norm_free = without_norm or isinstance(spec.norm, specs.NoNorm | specs.FoldedNorm)
    bias = is_norm_free if spec.bias == "without-norm" else spec.bias == "always"
    effective_dilation = dilation if step.kernel > 1 else 1
    return ops.ConvOp(in_channels, step.channels, step.kernel, stride, effective_dilation, step.groups, bias)


def _add_norm(spec: Network, builder: _PlanBuilder, path: str, role: Role) -> None:
    match spec.norm:
        case specs.FoldedNorm(eps, momentum):
            if role in ("pre-norm", "head-norm"):
                builder.add_node(path, role, ops.NormOp(specs.BatchNorm(eps, momentum), builder.shape[0]))
        case specs.BatchNorm() | specs.GroupNorm() as norm:
            builder.add_node(path, role, ops.NormOp(norm, builder.shape[0]))


def _format_location(shape: Shape) -> str:
    return f" at {shape[1]}x{shape[2]}"


def _format_size(shape: Shape) -> str:
    return str(shape[1]) if shape[1] == shape[2] else f"{shape[1]}x{shape[2]}"
