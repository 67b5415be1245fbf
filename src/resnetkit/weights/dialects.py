"""Translate the names of tensors between resnetkit and other libraries by tables.

A row pairs two patterns, ours and theirs. ``{s}``, ``{b}`` and ``{i}`` are the numbers of a stage, a block and a
convolution, from 1; ``{b-1}`` is the same number from 0, ``{s+3}`` from 4. ``*`` is the name of a tensor in its layer
(weight, running_mean). Every table is a bijection on the tensors of a plan, which a test checks.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network, NoNorm, PoolAfter, PooledProjection, Shortcuts
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import UsageError

_PLACEHOLDER = re.compile(r"\{([a-z])([+-]\d)?\}|\*")


@dataclass(frozen=True)
class Layout:
    """The properties of a network that decide how a library names its tensors.

    These are a stem of three convolutions, shortcuts behind a pool, pre-activation, and for VGG the blocks of each
    stage and whether it has norms.
    """

    deep_stem: bool = False
    pooled_shortcuts: bool = False
    pre_activation: bool = False
    vgg_blocks: tuple[int, ...] = ()
    has_norms: bool = True


@dataclass(frozen=True)
class Dialect:
    """Names of tensors as rows of (ours, theirs); ``conv_keys`` are linear layers that are 1x1 convolutions there."""

    name: str
    rows: tuple[tuple[str, str], ...]
    layout: Layout = Layout()
    conv_keys: frozenset[str] = frozenset()

    def to_theirs(self, key: str) -> str:
        """Return their name for our key; raises `UsageError` if they have none."""
        return self._check_known(key, self._name_map.to_theirs(key))

    def to_ours(self, key: str) -> str:
        """Return our key for their name; raises `UsageError` if we have none."""
        return self._check_known(key, self._name_map.to_ours(key))

    def find_theirs(self, key: str) -> str | None:
        """Return their name for our key, or None."""
        return self._name_map.to_theirs(key)

    def map_tensors(self, plan: Plan) -> dict[str, str]:
        """Return their name for each of our keys in a plan."""
        return {key: self.to_theirs(key) for key in get_tensor_shapes(plan)}

    def is_body_name(self, key: str) -> bool:
        """Return whether their name begins like a name of the body, known or not."""
        return any(pattern.fullmatch(key.partition(".")[0]) for pattern in self._body_patterns)

    def _check_known(self, key: str, name: str | None) -> str:
        if name is None:
            raise UsageError(f"{self.name} has no name for this tensor", where=key)
        return name

    @cached_property
    def _name_map(self) -> NameMap:
        return NameMap(self.rows)

    @cached_property
    def _body_patterns(self) -> list[re.Pattern[str]]:
        prefixes = {theirs.partition(".")[0] for ours, theirs in self.rows if not ours.startswith("head.linear")}
        return [_compile_pattern(prefix) for prefix in sorted(prefixes)]


class NameMap:
    """A translation in both directions by rows of two patterns; the first row that matches is used."""

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        pairs = list(rows)
        self._forward = [(_compile_pattern(ours), _parse_offsets(ours), theirs) for ours, theirs in pairs]
        self._backward = [(_compile_pattern(theirs), _parse_offsets(theirs), ours) for ours, theirs in pairs]

    def to_theirs(self, key: str) -> str | None:
        """Return their name for ours, or None."""
        return next(_iterate_translations(key, self._forward), None)

    def to_ours(self, key: str) -> str | None:
        """Return our name for theirs, or None."""
        return next(_iterate_translations(key, self._backward), None)

    def iterate_ours(self, key: str) -> Iterator[str]:
        """Yield each of our names that theirs may mean."""
        return _iterate_translations(key, self._backward)


_CompiledRow = tuple[re.Pattern[str], dict[str, int], str]


def _iterate_translations(key: str, rows: Iterable[_CompiledRow]) -> Iterator[str]:
    for pattern, offsets, target in rows:
        if match := pattern.fullmatch(key):
            yield _fill_placeholders(target, match.groupdict(), offsets)


def _compile_pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression with groups for the written numbers and for the tensor."""
    parts, end = [], 0
    for placeholder in _PLACEHOLDER.finditer(text):
        parts.append(re.escape(text[end : placeholder.start()]))
        parts.append(rf"(?P<{placeholder[1]}>0|[1-9][0-9]{{0,8}})" if placeholder[1] else r"(?P<tensor>\w+)")
        end = placeholder.end()
    return re.compile("".join(parts) + re.escape(text[end:]))


def _parse_offsets(text: str) -> dict[str, int]:
    """Return what a pattern adds to each of our numbers."""
    return {placeholder[1]: int(placeholder[2] or 0) for placeholder in _PLACEHOLDER.finditer(text) if placeholder[1]}


def _fill_placeholders(text: str, numbers: dict[str, str], offsets: dict[str, int]) -> str:
    """Return a pattern with numbers filled in; ``offsets`` is what their pattern added to them."""

    def replace_match(placeholder: re.Match[str]) -> str:
        name, offset = placeholder[1], int(placeholder[2] or 0)
        return str(int(numbers[name]) - offsets[name] + offset) if name else numbers["tensor"]

    return _PLACEHOLDER.sub(replace_match, text)


def _build_layer_rows(
    conv: str, norm: str, shortcut: tuple[tuple[str, str], ...], head: str
) -> tuple[tuple[str, str], ...]:
    """Return the rows of the many libraries that call stages ``layer1`` and count blocks from 0."""
    return (
        ("stem.conv1.*", conv),
        ("stem.norm1.*", norm),
        ("stage{s}.block{b}.branch.conv{i}.*", "layer{s}.{b-1}.conv{i}.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", "layer{s}.{b-1}.bn{i}.*"),
        ("stage{s}.block{b}.branch.attention.fc{i}.*", "layer{s}.{b-1}.se.fc{i}.*"),
        ("stage{s}.block{b}.branch.attention.conv.*", "layer{s}.{b-1}.se.conv.*"),
        *((f"stage{{s}}.block{{b}}.shortcut.{ours}.*", f"layer{{s}}.{{b-1}}.{theirs}.*") for ours, theirs in shortcut),
        ("head.linear.*", head),
    )


_PROJECTION_ROWS = (("conv", "downsample.0"), ("norm", "downsample.1"))
_POOLED_PROJECTION_ROWS = (("conv", "downsample.1"), ("norm", "downsample.2"))  # 0 is the pool, or an identity
_DEEP_STEM_ROWS = (
    ("stem.conv1.*", "conv1.0.*"),
    ("stem.norm1.*", "conv1.1.*"),
    ("stem.conv2.*", "conv1.3.*"),
    ("stem.norm2.*", "conv1.4.*"),
    ("stem.conv3.*", "conv1.6.*"),
    ("stem.norm3.*", "bn1.*"),
)
_PLAIN_ROWS = _build_layer_rows("conv1.*", "bn1.*", _PROJECTION_ROWS, "fc.*")
_POOLED_ROWS = _build_layer_rows("conv1.*", "bn1.*", _POOLED_PROJECTION_ROWS, "fc.*")


def _build_hugging_face_rows(prefix: str) -> tuple[tuple[str, str], ...]:
    layer = prefix + "encoder.stages.{s-1}.layers.{b-1}."
    return (
        ("stem.conv1.*", prefix + "embedder.embedder.convolution.*"),
        ("stem.norm1.*", prefix + "embedder.embedder.normalization.*"),
        ("stage{s}.block{b}.branch.conv{i}.*", layer + "layer.{i-1}.convolution.*"),
        ("stage{s}.block{b}.branch.norm{i}.*", layer + "layer.{i-1}.normalization.*"),
        ("stage{s}.block{b}.shortcut.conv.*", layer + "shortcut.convolution.*"),
        ("stage{s}.block{b}.shortcut.norm.*", layer + "shortcut.normalization.*"),
        ("head.linear.*", "classifier.1.*"),
    )


TORCHVISION = Dialect("torchvision", _PLAIN_ROWS)
AKAMASTER = Dialect("akamaster", _build_layer_rows("conv1.*", "bn1.*", (), "linear.*"))
KUANGLIU = Dialect(
    "kuangliu", _build_layer_rows("conv1.*", "bn1.*", (("conv", "shortcut.0"), ("norm", "shortcut.1")), "linear.*")
)
FASTAI = Dialect(
    "fastai",
    (
        ("stem.conv1.*", "0.0.*"),
        ("stem.norm1.*", "0.1.*"),
        *((ours, theirs.replace("layer{s}", "0.{s+3}")) for ours, theirs in TORCHVISION.rows if "layer{s}" in theirs),
    ),
)
HUGGING_FACE = Dialect("hf", _build_hugging_face_rows("resnet."))


def _build_pre_activation_rows(stem: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the rows of timm's resnetv2."""
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


def _build_vgg(blocks: tuple[int, ...], has_norms: bool) -> Dialect:
    """Return the table of a VGG of torchvision, which numbers all layers in a row, even pools."""
    rows, index = [], 0
    for s, count in enumerate(blocks, 1):
        for b in range(1, count + 1):
            rows.append((f"stage{s}.block{b}.branch.conv1.*", f"features.{index}.*"))
            if has_norms:
                rows.append((f"stage{s}.block{b}.branch.norm1.*", f"features.{index + 1}.*"))
            index += 2 + has_norms
        index += 1
    linear = (("linear1", 0), ("linear2", 3), ("linear", 6))
    rows += [(f"head.{ours}.*", f"classifier.{theirs}.*") for ours, theirs in linear]
    return Dialect("torchvision", tuple(rows), Layout(vgg_blocks=blocks, has_norms=has_norms))


_VGG_BLOCKS = ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))
_SINGLE_CONV_STEM = (("stem.conv1.*", "stem.conv.*"),)
_TRIPLE_CONV_STEM = (("stem.conv{i}.*",) * 2, ("stem.norm{i}.*",) * 2)
_CLASSIFIER_KEYS = frozenset({"head.linear.weight"})

# Tables of one name are tried in turn, because the name of a tensor can depend on the network. The first that fits is
# used. So torchvision's stands before timm's, because they are equal for networks that both have.
TABLES: tuple[Dialect, ...] = (
    TORCHVISION,
    Dialect("timm", _PLAIN_ROWS),
    Dialect("timm", _DEEP_STEM_ROWS + _PLAIN_ROWS[2:], Layout(deep_stem=True)),
    Dialect("timm", _POOLED_ROWS, Layout(pooled_shortcuts=True)),
    Dialect("timm", _DEEP_STEM_ROWS + _POOLED_ROWS[2:], Layout(deep_stem=True, pooled_shortcuts=True)),
    Dialect("timm", _build_pre_activation_rows(_SINGLE_CONV_STEM), Layout(pre_activation=True), _CLASSIFIER_KEYS),
    Dialect(
        "timm",
        _build_pre_activation_rows(_TRIPLE_CONV_STEM),
        Layout(pre_activation=True, deep_stem=True, pooled_shortcuts=True),
        _CLASSIFIER_KEYS,
    ),
    HUGGING_FACE,
    Dialect("hf", _build_hugging_face_rows("")[:-1]),
    AKAMASTER,
    KUANGLIU,
    *(_build_vgg(blocks, norms) for blocks in _VGG_BLOCKS for norms in (False, True)),
    FASTAI,  # a body alone: the head that fastai adds is not a linear classifier
)
ALIASES = {"transformers": "hf"}  # library -> dialect
DIALECT_NAMES = tuple(dict.fromkeys(table.name for table in TABLES))


def is_vgg(spec: Network) -> bool:
    """Return whether all stages end in pools, as in VGG."""
    return all(isinstance(stage.reduce, PoolAfter) for stage in spec.stages)


def derive_layout(spec: Network) -> Layout:
    """Return the properties of a network that decide the names of its tensors."""
    if is_vgg(spec):
        blocks = tuple(stage.blocks for stage in spec.stages)
        return Layout(vgg_blocks=blocks, has_norms=not isinstance(spec.norm, NoNorm))
    has_pooled_shortcuts = isinstance(spec.shortcuts, Shortcuts) and isinstance(spec.shortcuts.wider, PooledProjection)
    return Layout(len(spec.stem.convs) > 1, has_pooled_shortcuts, spec.order == "norm-act-conv")


def select_table(name: str, spec: Network) -> Dialect:
    """Return the table of a dialect for a network.

    Args:
        name: The dialect.
        spec: The network.

    Raises:
        UsageError: the dialect has no names for such a network.
    """
    layout = derive_layout(spec)
    tables = [table for table in TABLES if (table.name, table.layout) == (name, layout)]
    if not tables:
        raise UsageError(f"{name} has no names for a network with {_describe_layout(layout)}")
    return tables[0]


def _describe_layout(layout: Layout) -> str:
    """Return the first property for which a dialect may have no names."""
    features = {
        "activations before convolutions": layout.pre_activation, "VGG's stages": bool(layout.vgg_blocks),
        "three convolutions in its stem": layout.deep_stem, "a pool in its shortcuts": layout.pooled_shortcuts,
    }  # fmt: skip
    return next(text for text, is_present in features.items() if is_present)
