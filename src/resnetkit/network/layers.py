"""The modules of a network. The plan has decided every number, so that ``forward`` reads like the formula.

Shapes are (N, C, H, W). A section of the plan is a sequence of its children, an operation is one module. The path of a
module is the path of its node: ``model.stage1.block1.branch.conv1``. The node ``add`` has no module: it is the ``+``.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from resnetkit.architecture import operations as ops
from resnetkit.architecture.card import Card
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.architecture.spec import BatchNorm, Features
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.network.report import TensorReport


class PartSequence(nn.Module):
    """Modules in sequence, by name. Modules that are set later, such as a criterion or a metric, do not run.

    Args:
        parts: the modules in the order in which they run.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.part_names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.part_names:
            x = getattr(self, name)(x)
        return x

    def __iter__(self) -> Iterator[nn.Module]:
        return (getattr(self, name) for name in self.part_names)

    def __len__(self) -> int:
        return len(self.part_names)

    def __getitem__(self, index: int) -> nn.Module:
        return self.get_submodule(self.part_names[index])

    def __prepare_scriptable__(self) -> nn.Module:  # torch.jit.script compiles nn.Sequential, but not getattr
        return nn.Sequential(OrderedDict(zip(self.part_names, self, strict=True))).train(self.training)


class Block(nn.Module):
    """A block: activation(branch(x) + shortcut(x)) (arXiv 1512.03385, equations 1 and 2).

    An empty shortcut is the identity.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> Self:  # torch.jit.script replaces the children of what it prepares
        return type(self)(self.branch, self.shortcut, self.act).train(self.training)


class PreBlock(nn.Module):
    """A pre-activation block: branch(pre(x)) + shortcut(x) (arXiv 1603.05027, figure 4 e)."""

    def __init__(self, pre: nn.Module, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.pre = pre
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.pre(x)) + self.shortcut(x)  # type: ignore[no-any-return]

    def __prepare_scriptable__(self) -> Self:
        return type(self)(self.pre, self.branch, self.shortcut).train(self.training)


class ProjectedPreBlock(PreBlock):
    """A pre-activation block whose shortcut has weights, and so takes the activated map."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        return self.branch(x) + self.shortcut(x)  # type: ignore[no-any-return]


class PlainBlock(PartSequence):
    """A block without a shortcut: branch, then activation."""


class StageModule(PartSequence):
    """The blocks of a stage."""


class CheckpointedStage(StageModule):
    """A stage with activation checkpointing: it keeps only its input and runs again in the backward pass.

    The second run does not update the statistics of norms, because the first one did.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return super().forward(x)
        if torch.compiler.is_compiling():  # the compiled graph updates statistics once
            return checkpoint(super().forward, x, use_reentrant=False)
        contexts = contextlib.nullcontext(), _preserve_statistics(self)  # of the first run and of the second run
        return checkpoint(super().forward, x, use_reentrant=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def _preserve_statistics(stage: nn.Module) -> Iterator[None]:
    """Let norms update copies of their statistics while the body runs."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    originals = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers()]
    for norm, name, buffer in originals:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in originals:
            setattr(norm, name, buffer)


class NetworkModule(PartSequence):
    """A network: stem, stages and head in sequence.

    ``plan`` describes its structure, ``card`` the model, and ``report`` the origin of its tensors. The modules at
    ``frozen_paths`` stay in evaluation mode.

    Args:
        plan: the plan of the network.
        card: the card of the model.
        children: stem, stages and head by name.
    """

    def __init__(self, plan: Plan, card: Card, children: Mapping[str, nn.Module]) -> None:
        super().__init__(children)
        self.plan = plan
        self.card = card
        self.report = TensorReport()
        self.frozen_paths: frozenset[str] = frozenset()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for path in self.frozen_paths:
            self.get_submodule(path).eval()
        return self

    @property
    def feature_info(self) -> dict[str, Section]:
        """The stages whose maps a backbone returns, with their shape, stride and receptive field."""
        head = self.card.spec.head
        stages = head.stages if isinstance(head, Features) else (len(self.card.spec.stages),)
        return {f"stage{i}": section for i in stages if isinstance(section := self.plan[f"stage{i}"], Section)}

    def extract_features(self, x: Tensor, paths: Iterable[str]) -> dict[str, Tensor]:
        """Return the outputs of some modules; the modules after the last of them do not run.

        Args:
            x: images, (N, C, H, W).
            paths: paths out of `list_feature_paths`, such as ``stem``, ``stage1`` or ``stage2.block1``.

        Raises:
            UsageError: an unknown path.
        """
        wanted = set(paths)
        self.check_feature_paths(wanted)
        outputs: dict[str, Tensor] = {}
        _collect_outputs(self, "", x, wanted, outputs)
        return outputs

    def list_feature_paths(self) -> list[str]:
        """Return the paths whose output goes to the next module: stem, stages, blocks, head and their layers."""
        return list(_iterate_paths(self, ""))

    def check_feature_paths(self, paths: Iterable[str]) -> None:
        """Check that all paths are in `list_feature_paths`.

        Raises:
            UsageError: an unknown path.
        """
        known = self.list_feature_paths()
        for path in paths:
            if path not in known:
                fix = suggest_fix(path, known, "one of " + ", ".join(name for name in known if "." not in name))
                raise UsageError(f"this network has no section {path!r}", fix=fix)


class Backbone(NetworkModule):
    """A network that returns the maps of some stages by name, (N, C, H, W) each."""

    def __init__(self, plan: Plan, card: Card, children: Mapping[str, nn.Module]) -> None:
        super().__init__(plan, card, children)
        self.output_names = tuple(self.feature_info)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        outputs: dict[str, Tensor] = {}
        for name in self.part_names:
            x = getattr(self, name)(x)
            if name in self.output_names:
                outputs[name] = x
        return outputs

    def __prepare_scriptable__(self) -> nn.Module:
        return _ScriptableBackbone(super().__prepare_scriptable__(), self.output_names)


class _ScriptableBackbone(nn.Module):
    """The form of a backbone that torch.jit.script can compile; its tensors have the same names."""

    def __init__(self, parts: nn.Module, output_names: tuple[str, ...]) -> None:
        super().__init__()
        self.output_names = list(output_names)
        for name, part in parts.named_children():
            self.add_module(name, part)
        self.train(parts.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for name, part in self.named_children():
            x = part(x)
            if name in self.output_names:
                outputs[name] = x
        return outputs


def _iterate_paths(parent: PartSequence, path: str) -> Iterator[str]:
    for name in parent.part_names:
        yield path + name
        if isinstance(child := getattr(parent, name), PartSequence):
            yield from _iterate_paths(child, f"{path}{name}.")


def _collect_outputs(
    parent: PartSequence, path: str, x: Tensor, wanted: set[str], outputs: dict[str, Tensor]
) -> Tensor:
    """Run the parts of a sequence until all wanted outputs are there."""
    for name in parent.part_names:
        if wanted == outputs.keys():
            break
        child, child_path = getattr(parent, name), path + name
        has_wanted_child = any(wanted_path.startswith(child_path + ".") for wanted_path in wanted - outputs.keys())
        x = _collect_outputs(child, child_path + ".", x, wanted, outputs) if has_wanted_child else child(x)
        if child_path in wanted:
            outputs[child_path] = x
    return x


# --------------------------------------------------------------------------------------- operations that torch lacks


class _Layer(nn.Module):
    """A layer that prints its settings."""

    def extra_repr(self) -> str:
        names = [name for name in vars(self) if name != "training" and not name.startswith("_")]
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class ZeroPad(_Layer):
    """Every stride-th pixel, with channels of zeros before and after the channels (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class DilatedAvgPool2d(_Layer):
    """`nn.AvgPool2d(kernel, stride, ceil_mode=True, count_include_pad=False)` with dilation."""

    def __init__(self, op: ops.AvgPoolOp) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = op.kernel, op.stride, op.dilation
        self._offsets = [op.dilation * i for i in range(op.kernel)]

    def forward(self, x: Tensor) -> Tensor:
        mean = self._sum_windows(x) / self._sum_windows(torch.ones_like(x[:1, :1]))
        return mean[..., :: self.stride, :: self.stride]

    def _sum_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        reach = self.dilation * (self.kernel - 1)
        padded = F.pad(x, (0, reach, 0, reach))
        rows = torch.stack([padded[..., i : i + height, :] for i in self._offsets]).sum(0)
        return torch.stack([rows[..., j : j + width] for j in self._offsets]).sum(0)


class GlobalAvgPool2d(nn.Module):
    """Global average pooling: (N, C, H, W) -> (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class PaddedMaxPool2d(_Layer):
    """A max pool with explicit padding: zeros as in Keras, or minus infinity.

    The pool of torch has no zero padding, and too little padding for dilation.
    """

    def __init__(self, op: ops.MaxPoolOp) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.padding = op.kernel, op.stride, op.dilation, op.padding
        self.pad_value = 0.0 if op.edge == "zeros" else -math.inf

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.padding,) * 4, value=self.pad_value)
        return F.max_pool2d(padded, self.kernel, self.stride, dilation=self.dilation)


class BlurPool2d(_Layer):
    """A binomial filter on each channel with reflect padding (arXiv 1904.11486).

    With dilation each sub-grid of the map is padded by itself, so that an atrous network blurs as the original does.
    """

    def __init__(self, op: ops.BlurOp) -> None:
        super().__init__()
        self.channels, self.stride, self.dilation, self.padding = op.channels, op.stride, op.dilation, op.padding
        self.weights = [math.comb(op.kernel - 1, i) / 2 ** (op.kernel - 1) for i in range(op.kernel)]

    def forward(self, x: Tensor) -> Tensor:
        taps = torch.tensor(self.weights, dtype=x.dtype, device=x.device)
        kernel = (taps[:, None] * taps).expand(self.channels, 1, -1, -1)
        return F.conv2d(self._reflect_pad(x), kernel, None, self.stride, 0, self.dilation, self.channels)

    def _reflect_pad(self, x: Tensor) -> Tensor:
        if self.dilation == 1:
            return F.pad(x, (self.padding,) * 4, "reflect")
        rows, columns = [self._compute_source_indices(n, x.device) for n in x.shape[-2:]]
        return x[:, :, rows[:, None], columns]

    def _compute_source_indices(self, n: int, device: torch.device) -> Tensor:
        """Return, for each position of a padded row of ``n`` pixels, the index of its source pixel."""
        position = torch.arange(-self.padding, n + self.padding, device=device)
        grid = position % self.dilation
        last_index = (n - 1 - grid) // self.dilation
        on_grid = (position - grid) // self.dilation % (2 * last_index).clamp_min(1)
        return torch.minimum(on_grid, 2 * last_index - on_grid) * self.dilation + grid


class AdaptiveAvgPoolFlatten(_Layer):
    """Adaptive average pooling, flattened: (N, C, H, W) -> (N, C * side * side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.side).flatten(1)


class SqueezeExcitation(nn.Module):
    """Multiplies each channel by a weight of 0 to 1 from two layers (arXiv 1709.01507, equation 3)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, reduced, 1, device=_META_DEVICE)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(reduced, channels, 1, device=_META_DEVICE)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()  # type: ignore[no-any-return]


class EfficientChannelAttention(nn.Module):
    """Multiplies each channel by a weight of 0 to 1 from a convolution along the channel averages."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=(kernel - 1) // 2, bias=False, device=_META_DEVICE)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]  # type: ignore[no-any-return]


class StochasticDepth(_Layer):
    """Sets the branch of some images to zero in training, and scales the others up (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep_mask = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.rate
        return x * keep_mask.to(x.dtype) / (1 - self.rate)


# ------------------------------------------------------------------------------------------------- node -> module

_META_DEVICE = "meta"  # an argument of each layer, because a `torch.device` context doubles the time
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}


def _build_convolution(op: ops.ConvOp) -> nn.Module:
    geometry = (op.kernel, op.stride, op.padding, op.dilation, op.groups)
    return nn.Conv2d(op.in_channels, op.out_channels, *geometry, bias=op.bias, device=_META_DEVICE)


def _build_norm(op: ops.NormOp) -> nn.Module:
    if isinstance(op.norm, BatchNorm):
        return nn.BatchNorm2d(op.channels, op.norm.eps, op.norm.momentum, device=_META_DEVICE)
    return nn.GroupNorm(op.norm.groups, op.channels, op.norm.eps, device=_META_DEVICE)


def _build_avg_pool(op: ops.AvgPoolOp) -> nn.Module:
    if op.stride == op.kernel and op.dilation == 1:
        return nn.AvgPool2d(op.kernel, op.stride, ceil_mode=True, count_include_pad=False)
    return DilatedAvgPool2d(op)


def _build_max_pool(op: ops.MaxPoolOp) -> nn.Module:
    if op.edge == "zeros" or (op.dilation > 1 and op.padding):
        return PaddedMaxPool2d(op)
    return nn.MaxPool2d(op.kernel, op.stride, op.padding, op.dilation, ceil_mode=op.edge == "ceil")


_LAYER_BUILDERS: dict[type, Callable[[Any], nn.Module]] = {
    ops.ConvOp: _build_convolution,
    ops.NormOp: _build_norm,
    ops.ActivationOp: lambda op: ACTIVATIONS[op.name](),
    ops.MaxPoolOp: _build_max_pool,
    ops.BlurOp: BlurPool2d,
    ops.AdaptiveAvgPoolOp: lambda op: AdaptiveAvgPoolFlatten(op.side),
    ops.SqueezeExciteOp: lambda op: SqueezeExcitation(op.channels, op.reduced),
    ops.EfficientChannelsOp: lambda op: EfficientChannelAttention(op.kernel),
    ops.StochasticDepthOp: lambda op: StochasticDepth(op.rate),
    ops.DropoutOp: lambda op: nn.Dropout(op.rate),
    ops.AvgPoolOp: _build_avg_pool,
    ops.ZeroPadOp: lambda op: ZeroPad(op.before, op.after, op.stride),
    ops.GlobalAvgPoolOp: lambda op: GlobalAvgPool2d(),
    ops.LinearOp: lambda op: nn.Linear(op.in_features, op.out_features, device=_META_DEVICE),
}


def build_module(part: Section | Node) -> nn.Module:
    """Build the module of a node or section on the meta device, without data."""
    if isinstance(part, Node):
        return _LAYER_BUILDERS[type(part.op)](part.op)
    children = build_children(part)
    if part.role == "block" and "shortcut" in children:
        return _build_block(children)
    return {"block": PlainBlock, "stage": StageModule}.get(part.role, PartSequence)(children)


def build_children(section: Section) -> dict[str, nn.Module]:
    """Build the modules of the children of a section, by name."""
    return {part.path.rpartition(".")[2]: build_module(part) for part in section.children if part.role != "add"}


def _build_block(children: dict[str, nn.Module]) -> nn.Module:
    if "pre" not in children:
        return Block(**children)
    return (ProjectedPreBlock if list(children["shortcut"].parameters()) else PreBlock)(**children)
