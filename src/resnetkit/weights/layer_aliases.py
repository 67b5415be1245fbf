"""Translate the names that other libraries give to layers and blocks.

Examples are ``layer1.0.downsample`` of torchvision, ``conv2_block1_0_conv`` of Keras and ``res2a_branch1`` of Caffe.
The rows have the syntax of `dialects`. A name resolves to the first path that exists in the network.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from resnetkit.architecture.plan import Plan
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.weights.dialects import ALIASES, TABLES, Layout, NameMap, derive_layout
from resnetkit.weights.unwrap import strip_prefix

_BLOCK = "stage{s}.block{b}"
_LAYERS = (
    ("stem.pool", "maxpool"),
    ("stem", "conv1"),
    ("stage{s}", "layer{s}"),
    (_BLOCK, "layer{s}.{b-1}"),
    (f"{_BLOCK}.shortcut", "layer{s}.{b-1}.downsample"),
    (f"{_BLOCK}.shortcut.pool", "layer{s}.{b-1}.downsample.0"),
    (f"{_BLOCK}.branch.attention", "layer{s}.{b-1}.se"),
    (f"{_BLOCK}.branch.blur", "layer{s}.{b-1}.aa"),
)
_TORCHVISION = (
    *_LAYERS,
    ("stem.act1", "relu"),
    (f"{_BLOCK}.act", "layer{s}.{b-1}.relu"),
    ("head.pool", "avgpool"),
)
_TIMM = (
    *_LAYERS,
    ("stem.act1", "act1"),
    (f"{_BLOCK}.branch.act{{i}}", "layer{s}.{b-1}.act{i}"),
    *((f"{_BLOCK}.branch.attention", f"layer{{s}}.{{b-1}}.se.{layer}") for layer in ("fc1", "fc2", "conv")),
    ("head.pool", "global_pool"),
)
_TIMM_V2 = (
    ("stem.pool", "stem.pool"),
    ("stage{s}", "stages.{s-1}"),
    (_BLOCK, "stages.{s-1}.blocks.{b-1}"),
    (f"{_BLOCK}.shortcut", "stages.{s-1}.blocks.{b-1}.downsample"),
    ("head.pool", "head.global_pool"),
)
_CIFAR = (
    ("stage{s}", "layer{s}"),
    (_BLOCK, "layer{s}.{b-1}"),
    (f"{_BLOCK}.shortcut", "layer{s}.{b-1}.shortcut"),
)
_HUGGING_FACE = (
    ("stem", "resnet.embedder"),
    ("stem.pool", "resnet.embedder.pooler"),
    ("stage{s}", "resnet.encoder.stages.{s-1}"),
    (_BLOCK, "resnet.encoder.stages.{s-1}.layers.{b-1}"),
    (f"{_BLOCK}.branch", "resnet.encoder.stages.{s-1}.layers.{b-1}.layer"),
    (f"{_BLOCK}.shortcut", "resnet.encoder.stages.{s-1}.layers.{b-1}.shortcut"),
    ("head.pool", "resnet.pooler"),
)
_KERAS = (
    ("stem.conv1", "conv1_conv"),
    ("stem.norm1", "conv1_bn"),
    ("stem.act1", "conv1_relu"),
    ("stem.pool", "pool1_pool"),
    (_BLOCK, "conv{s+1}_block{b}"),
    (f"{_BLOCK}.shortcut.conv", "conv{s+1}_block{b}_0_conv"),
    (f"{_BLOCK}.shortcut.norm", "conv{s+1}_block{b}_0_bn"),
    (f"{_BLOCK}.pre.norm", "conv{s+1}_block{b}_preact_bn"),
    (f"{_BLOCK}.pre.act", "conv{s+1}_block{b}_preact_relu"),
    (f"{_BLOCK}.branch.conv{{i}}", "conv{s+1}_block{b}_{i}_conv"),
    (f"{_BLOCK}.branch.norm{{i}}", "conv{s+1}_block{b}_{i}_bn"),
    (f"{_BLOCK}.branch.act{{i}}", "conv{s+1}_block{b}_{i}_relu"),
    ("head.norm", "post_bn"),
    ("head.act", "post_relu"),
    ("head.pool", "avg_pool"),
    ("head.linear", "predictions"),
    ("head.linear", "probs"),
)
_KERAS_ENDS = ((f"{_BLOCK}.add", "conv{s+1}_block{b}_add"), (f"{_BLOCK}.act", "conv{s+1}_block{b}_out"))
_KERAS_V2_ENDS = ((f"{_BLOCK}.add", "conv{s+1}_block{b}_out"),)
_CAFFE = (
    ("stem.norm1", "bn_conv1"),
    ("stem.norm1", "scale_conv1"),
    ("stem.act1", "conv1_relu"),
    ("stem.pool", "pool1"),
    (f"{_BLOCK}.shortcut.conv", "res{s+1}_{b}_branch1"),
    (f"{_BLOCK}.shortcut.norm", "bn{s+1}_{b}_branch1"),
    (f"{_BLOCK}.shortcut.norm", "scale{s+1}_{b}_branch1"),
    *((f"{_BLOCK}.branch.{layer}{i}", f"{prefix}{{s+1}}_{{b}}_branch2{letter}")
      for layer, prefix in (("conv", "res"), ("norm", "bn"), ("norm", "scale"))
      for i, letter in enumerate("abc", 1)),
    (f"{_BLOCK}.add", "res{s+1}_{b}"),
    (f"{_BLOCK}.act", "res{s+1}_{b}_relu"),
    (f"{_BLOCK}.branch.act1", "res{s+1}_{b}_branch2a_relu"),
    (f"{_BLOCK}.branch.act2", "res{s+1}_{b}_branch2b_relu"),
    ("stage{s}", "conv{s+1}_x"),
    ("head.pool", "pool5"),
    ("head.linear", "fc1000"),
)  # fmt: skip
_VGG = (("stage{s}.block{b}.branch.conv1", "conv{s}_{b}"), ("stage{s}.pool", "pool{s}"))


def _list_aliases(library: str, layout: Layout) -> tuple[tuple[str, str], ...]:
    """Return the names of a library for the parts of a network of this layout."""
    is_residual = not layout.vgg_blocks and not layout.pre_activation
    is_plain = is_residual and not layout.deep_stem and not layout.pooled_shortcuts
    aliases: dict[str, list[tuple[object, tuple[tuple[str, str], ...]]]] = {
        "torchvision": [(is_plain, _TORCHVISION)],
        "timm": [(is_residual, _TIMM), (layout.pre_activation, _TIMM_V2)],
        "hf": [(is_plain, _HUGGING_FACE)],
        "kuangliu": [(is_plain, _CIFAR)],
        "keras": [
            (not (layout.vgg_blocks or layout.deep_stem or layout.pooled_shortcuts), _KERAS),
            (is_plain, _KERAS_ENDS),
            (layout.pre_activation, _KERAS_V2_ENDS),
        ],
        "caffe": [(is_plain, (("stem.conv1", "conv1"), *_CAFFE)), (layout.vgg_blocks, _VGG)],
    }
    return tuple(row for applies, rows in aliases[library] if applies for row in rows)


ALIASED_LIBRARIES = ("torchvision", "timm", "hf", "kuangliu", "keras", "caffe")


@cache
def _build_name_map(library: str, layout: Layout) -> NameMap:
    """Return the names of operations, from those of their tensors, then of larger parts."""
    rows = [row for table in TABLES if (table.name, table.layout) == (library, layout) for row in table.rows]
    tensor_rows = ((ours.removesuffix(".*"), theirs.removesuffix(".*")) for ours, theirs in rows)
    return NameMap((*tensor_rows, *_list_aliases(library, layout)))


def find_path(plan: Plan, name: str) -> str | None:
    """Return our path for a path, another library's name, or a tensor of either, or None.

    Args:
        plan: The plan of the network.
        name: The name that the user gave.
    """
    names = _list_candidates(name)
    paths = (path for candidate in names for path in (candidate, *_iterate_paths(plan, candidate)))
    return next((path for path in paths if path in plan.parts), None)


def find_shortcut_without_layer(plan: Plan, name: str) -> str | None:
    """Return the shortcut to which a layer of another library would belong, if it has no such layer.

    Args:
        plan: The plan of the network.
        name: The name in another library, such as ``res3b_branch1`` of a block whose shortcut is the identity.
    """
    paths = (path for candidate in _list_candidates(name) for path in _iterate_paths(plan, candidate))
    shortcuts = (path.rpartition(".shortcut.")[0] + ".shortcut" for path in paths if ".shortcut." in path)
    return next((path for path in shortcuts if path in plan.parts), None)


def _list_candidates(name: str) -> list[str]:
    """Return a name with and without prefixes of training programs, and without the name of a tensor."""
    bare_name = strip_prefix(name.strip())
    layer = bare_name.rpartition(".")[0] if bare_name.endswith(_TENSOR_SUFFIXES) else bare_name
    return list(dict.fromkeys((name, bare_name, layer)))


def _iterate_paths(plan: Plan, name: str) -> Iterator[str]:
    """Yield the paths that a name has in each library, whether the network has them or not."""
    layout, numbered_name = derive_layout(plan.spec), _number_caffe_blocks(name)
    for library in ALIASED_LIBRARIES:
        for alias in (numbered_name, f"resnet.{name}") if library == "hf" else (numbered_name,):
            yield from _build_name_map(library, layout).iterate_ours(alias)


def list_aliases(plan: Plan) -> list[str]:
    """List the names of all parts in torchvision, transformers and Keras."""
    libraries = ("torchvision", "hf", "keras")
    return sorted({_find_alias(plan, path, library) for path in plan.parts for library in libraries} - {""})


_TENSOR_SUFFIXES = (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")


def _number_caffe_blocks(name: str) -> str:
    """Return a name of Caffe with block numbers for letters: ``2a`` is block 1, ``4b22`` block 23."""
    match = re.fullmatch(r"(res|bn|scale)(\d)([a-z])(\d{0,3})((?:_\w+)?)", name)
    if not match:
        return name
    kind, stage, letter, number, suffix = match.groups()
    block = int(number) + 1 if number else ord(letter) - ord("a") + 1
    return f"{kind}{stage}_{block}{suffix}"


def translate_path(plan: Plan, path: str, library: str) -> str:
    """Return a library's name for a part, with the function for a block of Keras; empty if it has no name.

    Args:
        plan: The plan of the network.
        path: The path of the part.
        library: The library or its dialect.

    Raises:
        UsageError: the library is unknown, or has no names for such a network.
    """
    dialect = ALIASES.get(library, library)
    if dialect not in ALIASED_LIBRARIES:
        fix = suggest_fix(library, ALIASED_LIBRARIES)
        raise UsageError(f"unknown library {library!r}", where="--names", fix=fix)
    if not any(_find_alias(plan, part_path, dialect) for part_path in plan.parts):
        raise UsageError(f"{library} has no names for a network like this", where="--names", fix="omit --names")
    alias = _find_alias(plan, path, dialect)
    is_keras_block = dialect == "keras" and plan[path].role == "block"
    return f"{alias} ({_name_keras_block(plan, path)})" if is_keras_block and alias else alias


def _find_alias(plan: Plan, path: str, library: str) -> str:
    part = plan[path]
    if part.role == "shortcut" and not part.nodes:
        return ""  # other libraries have no name for an identity
    alias = _build_name_map(library, derive_layout(plan.spec)).to_theirs(path) or ""
    return _letter_caffe_blocks(alias, plan, path) if library == "caffe" else alias


def _name_keras_block(plan: Plan, path: str) -> str:
    """Return the function of the first Keras code that builds a block."""
    return "conv_block" if any(node.role == "projection" for node in plan[path].nodes) else "identity_block"


def _letter_caffe_blocks(name: str, plan: Plan, path: str) -> str:
    """Return a name of Caffe with letters for blocks, or with numbers in deep networks (``res4b22``)."""
    match = re.match(r"(res|bn|scale)(\d)_(\d+)", name)
    if not match:
        return name
    block, stage_spec = int(match[3]), plan.spec.stages[int(match[2]) - 2]
    has_many_blocks = stage_spec.blocks > 3 and max(stage.blocks for stage in plan.spec.stages) > 6
    letter = "a" if block == 1 else f"b{block - 1}" if has_many_blocks else chr(ord("a") + block - 1)
    return f"{match[1]}{match[2]}{letter}{name[match.end() :]}"
