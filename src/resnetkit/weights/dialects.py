"""How other ecosystems name the tensors of a network: tables from our paths to theirs, and back.

A row pairs two patterns. ``{s}``, ``{b}`` and ``{i}`` stand for the number of a stage, a block and a convolution as we
count them, from 1; ``{b-1}`` is the same number counted from 0, ``{s+3}`` from 4. ``*`` is a tensor's own name (weight,
running_mean).
Every table is a bijection on the tensors of a plan; a test holds each of them to it.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network, NoNorm, PoolAfter, PooledProjection, Shortcuts
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import UsageError

_PLACEHOLDER = re.compile(r"\{([a-z])([+-]\d)?\}|\*")


@dataclass(frozen=True)
class Layout:
    """What of a network decides how a library calls its tensors: a ``deep`` stem of three convolutions, shortcuts that
    are ``pooled``, activations ``first``, or VGG's blocks of each stage and whether norms stand between them.
    """

    deep: bool = False
    pooled: bool = False
    first: bool = False
    vgg: tuple[int, ...] = ()
    norms: bool = True


@dataclass(frozen=True)
class Dialect:
    """Names of tensors: rows of (ours, theirs). ``as_conv`` are linear layers that are 1x1 convolutions there."""

    name: str
    rows: tuple[tuple[str, str], ...]
    layout: Layout = Layout()
    as_conv: frozenset[str] = frozenset()

    def theirs(self, key: str) -> str:
        """Their name for our ``path.tensor``; raises `UsageError` where they have none."""
        return self._known(key, self._pairs.theirs(key))

    def ours(self, key: str) -> str:
        """Our ``path.tensor`` for their name; raises `UsageError` where we have none."""
        return self._known(key, self._pairs.ours(key))

    def table(self, plan: Plan) -> dict[str, str]:
        """Ours -> theirs for every tensor of a plan."""
        return {key: self.theirs(key) for key in tensors_of(plan)}

    def of_body(self, key: str) -> bool:
        """Whether their name begins as those of a body do, known or not: what else stands in a file is its head's."""
        return any(first.fullmatch(key.partition(".")[0]) for first in self._beginnings)

    def _known(self, key: str, found: str | None) -> str:
        if found is None:
            raise UsageError(f"{self.name} has no name for this tensor", where=key)
        return found

    @cached_property
    def _pairs(self) -> Pairs:
        return Pairs(self.rows)

    @cached_property
    def _beginnings(self) -> list[re.Pattern[str]]:
        bodies = {theirs.partition(".")[0] for ours, theirs in self.rows if not ours.startswith("head.linear")}
        return [_pattern(word) for word in sorted(bodies)]


class Pairs:
    """Rows of two patterns, to be read both ways; the first that matches counts."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        both = list(rows)
        self._forward = [(_pattern(ours), _offsets(ours), theirs) for ours, theirs in both]
        self._backward = [(_pattern(theirs), _offsets(theirs), ours) for ours, theirs in both]

    def theirs(self, key: str) -> str | None:
        """What stands on the right, for a name on the left."""
        return next(_translations(key, self._forward), None)

    def ours(self, key: str) -> str | None:
        """What stands on the left, for a name on the right."""
        return next(_translations(key, self._backward), None)

    def all_ours(self, key: str) -> Iterator[str]:
        """Everything that it may mean."""
        return _translations(key, self._backward)


_Row = tuple[re.Pattern[str], dict[str, int], str]


def _translations(key: str, rows: Iterable[_Row]) -> Iterator[str]:
    for pattern, offsets, target in rows:
        match = pattern.fullmatch(key)
        if match:
            yield _fill(target, match.groupdict(), offsets)


def _pattern(text: str) -> re.Pattern[str]:
    """A pattern whose groups hold the numbers as they are written (``s``, ``b``, ``i``), and the tensor's name."""
    parts, end = [], 0
    for mark in _PLACEHOLDER.finditer(text):
        parts.append(re.escape(text[end : mark.start()]))
        parts.append(rf"(?P<{mark[1]}>0|[1-9][0-9]{{0,8}})" if mark[1] else r"(?P<tensor>\w+)")
        end = mark.end()
    return re.compile("".join(parts) + re.escape(text[end:]))


def _offsets(text: str) -> dict[str, int]:
    """What is added to each of our numbers to write it as this text does."""
    return {mark[1]: int(mark[2] or 0) for mark in _PLACEHOLDER.finditer(text) if mark[1]}


def _fill(text: str, found: dict[str, str], offsets: dict[str, int]) -> str:
    """``text`` with the numbers of ``found``, which are ours and their ``offsets``."""

    def write(mark: re.Match[str]) -> str:
        return str(int(found[mark[1]]) - offsets[mark[1]] + int(mark[2] or 0)) if mark[1] else found["tensor"]

    return _PLACEHOLDER.sub(write, text)


def _numbered(conv: str, norm: str, shortcut: tuple[tuple[str, str], ...], head: str) -> tuple[tuple[str, str], ...]:
    """Rows of the many libraries that number stages as ``layer1`` and blocks from 0."""
    return (
        ("stem.conv1.*", conv),
        ("stem.norm1.*", norm),
        ("stage{s}.block{b}.branch.conv{i}.*", "layer{s}.{b-1}.conv{i}.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", "layer{s}.{b-1}.bn{i}.*"),
        *((f"stage{{s}}.block{{b}}.branch.attention.{part}.*", f"layer{{s}}.{{b-1}}.se.{part}.*") for part in _SE),
        *((f"stage{{s}}.block{{b}}.shortcut.{ours}.*", f"layer{{s}}.{{b-1}}.{theirs}.*") for ours, theirs in shortcut),
        ("head.linear.*", head),
    )


_SE = ("fc1", "fc2", "conv")


_PROJECTED = (("conv", "downsample.0"), ("norm", "downsample.1"))
_POOLED = (("conv", "downsample.1"), ("norm", "downsample.2"))  # behind the pool, or what stands for it
_DEEP = (
    ("stem.conv1.*", "conv1.0.*"),
    ("stem.norm1.*", "conv1.1.*"),
    ("stem.conv2.*", "conv1.3.*"),
    ("stem.norm2.*", "conv1.4.*"),
    ("stem.conv3.*", "conv1.6.*"),
    ("stem.norm3.*", "bn1.*"),
)
_PLAIN_ROWS = _numbered("conv1.*", "bn1.*", _PROJECTED, "fc.*")
_POOLED_ROWS = _numbered("conv1.*", "bn1.*", _POOLED, "fc.*")


def _hugging_face(before: str) -> tuple[tuple[str, str], ...]:
    layer = before + "encoder.stages.{s-1}.layers.{b-1}."
    return (
        ("stem.conv1.*", before + "embedder.embedder.convolution.*"),
        ("stem.norm1.*", before + "embedder.embedder.normalization.*"),
        ("stage{s}.block{b}.branch.conv{i}.*", layer + "layer.{i-1}.convolution.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", layer + "layer.{i-1}.normalization.*"),
        ("stage{s}.block{b}.shortcut.conv.*", layer + "shortcut.convolution.*"),
        ("stage{s}.block{b}.shortcut.norm.*", layer + "shortcut.normalization.*"),
        ("head.linear.*", "classifier.1.*"),
    )


TORCHVISION = Dialect("torchvision", _PLAIN_ROWS)
AKAMASTER = Dialect("akamaster", _numbered("conv1.*", "bn1.*", (), "linear.*"))
KUANGLIU = Dialect(
    "kuangliu", _numbered("conv1.*", "bn1.*", (("conv", "shortcut.0"), ("norm", "shortcut.1")), "linear.*")
)
FASTAI = Dialect(
    "fastai",
    (
        ("stem.conv1.*", "0.0.*"),
        ("stem.norm1.*", "0.1.*"),
        *((ours, theirs.replace("layer{s}", "0.{s+3}")) for ours, theirs in TORCHVISION.rows if "layer{s}" in theirs),
    ),
)
HUGGING_FACE = Dialect("hf", _hugging_face("resnet."))


def _pre_activation(stem: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Timm's resnetv2."""
    block = "stages.{s-1}.blocks.{b-1}."
    return (
        *stem,
        ("stage{s}.block{b}.pre.norm.*", block + "norm1.*"),
        ("stage{s}.block{b}.branch.conv{i}.*", block + "conv{i}.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", block + "norm{i+1}.*"),
        ("stage{s}.block{b}.shortcut.conv.*", block + "downsample.conv.*"),
        ("head.norm.*", "norm.*"),
        ("head.linear.*", "head.fc.*"),
    )


def _vgg(blocks: tuple[int, ...], norms: bool) -> Dialect:
    """Torchvision numbers everything in a row, activations and pools as well."""
    rows, index = [], 0
    for s, count in enumerate(blocks, 1):
        for b in range(1, count + 1):
            rows.append((f"stage{s}.block{b}.branch.conv1.*", f"features.{index}.*"))
            rows += [(f"stage{s}.block{b}.branch.norm1.*", f"features.{index + 1}.*")] * norms
            index += 2 + norms
        index += 1
    linear = (("linear1", 0), ("linear2", 3), ("linear", 6))
    rows += [(f"head.{ours}.*", f"classifier.{theirs}.*") for ours, theirs in linear]
    return Dialect("torchvision", tuple(rows), Layout(vgg=blocks, norms=norms))


_VGG = ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))
_ONE, _THREE = (("stem.conv1.*", "stem.conv.*"),), (("stem.conv{i}.*",) * 2, ("stem.norm{i}.*",) * 2)
_CLASSIFIER = frozenset({"head.linear.weight"})

# Tables of one name are tried in turn: how a library calls a tensor can depend on the network. The first that fits is
# taken, so torchvision's stands before timm's, which are the same where the network is one that both have.
TABLES: tuple[Dialect, ...] = (
    TORCHVISION,
    Dialect("timm", _PLAIN_ROWS),
    Dialect("timm", _DEEP + _PLAIN_ROWS[2:], Layout(deep=True)),
    Dialect("timm", _POOLED_ROWS, Layout(pooled=True)),
    Dialect("timm", _DEEP + _POOLED_ROWS[2:], Layout(deep=True, pooled=True)),
    Dialect("timm", _pre_activation(_ONE), Layout(first=True), _CLASSIFIER),
    Dialect("timm", _pre_activation(_THREE), Layout(first=True, deep=True, pooled=True), _CLASSIFIER),
    HUGGING_FACE,
    Dialect("hf", _hugging_face("")[:-1]),
    AKAMASTER,
    KUANGLIU,
    *(_vgg(blocks, norms) for blocks in _VGG for norms in (False, True)),
    FASTAI,  # a body alone: what its learners put behind it is no linear classifier
)
ALIASES = {"transformers": "hf"}  # the library, and the word for its dialect
NAMES = tuple(dict.fromkeys(table.name for table in TABLES))


def is_vgg(spec: Network) -> bool:
    """Whether stages end in pools, as in VGG."""
    return all(isinstance(stage.reduce, PoolAfter) for stage in spec.stages)


def layout_of(spec: Network) -> Layout:
    """What of this network decides the names of its tensors."""
    if is_vgg(spec):
        return Layout(vgg=tuple(stage.blocks for stage in spec.stages), norms=not isinstance(spec.norm, NoNorm))
    pooled = isinstance(spec.shortcuts, Shortcuts) and isinstance(spec.shortcuts.wider, PooledProjection)
    return Layout(len(spec.stem.convs) > 1, pooled, spec.order == "norm-act-conv")


def table_for(name: str, spec: Network) -> Dialect:
    """The table by which a dialect calls the tensors of this network; raises `UsageError` where it has none."""
    layout = layout_of(spec)
    found = [table for table in TABLES if (table.name, table.layout) == (name, layout)]
    if not found:
        raise UsageError(f"{name} has no names for a network with {_odd(layout)}")
    return found[0]


def _odd(layout: Layout) -> str:
    """The first thing that may keep a dialect from having names."""
    words = {"activations before convolutions": layout.first, "VGG's stages": bool(layout.vgg),
             "three convolutions in its stem": layout.deep, "a pool in its shortcuts": layout.pooled}  # fmt: skip
    return next(word for word, there in words.items() if there)
