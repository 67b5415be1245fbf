"""What others call a place or an operation of a network, without a tensor: ``layer1.0.downsample`` of torchvision,
``conv2_block1_0_conv`` of Keras, ``res2a_branch1`` of Caffe.

The rows are written as those of `dialects`; a name means whatever it can mean in the network at hand.

This module imports no torch.
"""

from __future__ import annotations

import re
from functools import cache

from resnetkit.architecture.plan import Plan
from resnetkit.errors import UsageError, nearest, suggestion
from resnetkit.weights.dialects import ALIASES, TABLES, Layout, Pairs, layout_of
from resnetkit.weights.unwrap import without_prefix

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
    (f"{_BLOCK}.branch.attention", "layer{s}.{b-1}.se.fc1"),
    (f"{_BLOCK}.branch.attention", "layer{s}.{b-1}.se.fc2"),
    (f"{_BLOCK}.branch.attention", "layer{s}.{b-1}.se.conv"),
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
    (f"{_BLOCK}.add", "conv{s+1}_block{b}_add"),
    (f"{_BLOCK}.add", "conv{s+1}_block{b}_out"),
    (f"{_BLOCK}.act", "conv{s+1}_block{b}_out"),
    ("head.norm", "post_bn"),
    ("head.act", "post_relu"),
    ("head.pool", "avg_pool"),
    ("head.linear", "predictions"),
    ("head.linear", "probs"),
)
_CAFFE = (
    ("stem.norm1", "bn_conv1"),
    ("stem.norm1", "scale_conv1"),
    ("stem.act1", "conv1_relu"),
    ("stem.pool", "pool1"),
    (f"{_BLOCK}.shortcut.conv", "res{s+1}_{b}_branch1"),
    (f"{_BLOCK}.branch.conv1", "res{s+1}_{b}_branch2a"),
    (f"{_BLOCK}.branch.conv2", "res{s+1}_{b}_branch2b"),
    (f"{_BLOCK}.branch.conv3", "res{s+1}_{b}_branch2c"),
    *(row for kind in ("bn", "scale") for row in (
        (f"{_BLOCK}.shortcut.norm", kind + "{s+1}_{b}_branch1"),
        (f"{_BLOCK}.branch.norm1", kind + "{s+1}_{b}_branch2a"),
        (f"{_BLOCK}.branch.norm2", kind + "{s+1}_{b}_branch2b"),
        (f"{_BLOCK}.branch.norm3", kind + "{s+1}_{b}_branch2c"),
    )),
    (f"{_BLOCK}.add", "res{s+1}_{b}"),
    (f"{_BLOCK}.act", "res{s+1}_{b}_relu"),
    (f"{_BLOCK}.branch.act1", "res{s+1}_{b}_branch2a_relu"),
    (f"{_BLOCK}.branch.act2", "res{s+1}_{b}_branch2b_relu"),
    ("stage{s}", "conv{s+1}_x"),
    ("head.pool", "pool5"),
    ("head.linear", "fc1000"),
)  # fmt: skip
_VGG = (("stage{s}.block{b}.branch.conv1", "conv{s}_{b}"), ("stage{s}.pool", "pool{s}"))


def _places(library: str, layout: Layout) -> tuple[tuple[str, str], ...]:
    """What a library calls places in a network of this layout."""
    residual = not layout.vgg and not layout.first
    plain = residual and not layout.deep and not layout.pooled
    known = {
        "torchvision": _TORCHVISION * plain,
        "timm": _TIMM * residual + _TIMM_V2 * layout.first,
        "hf": _HUGGING_FACE * plain,
        "kuangliu": _CIFAR * plain,
        "keras": _KERAS * (not layout.vgg and not layout.deep and not layout.pooled),
        "caffe": (("stem.conv1", "conv1"), *_CAFFE) * plain + _VGG * bool(layout.vgg),
    }
    return known[library]


LIBRARIES = ("torchvision", "timm", "hf", "kuangliu", "keras", "caffe")


@cache
def _pairs(library: str, layout: Layout) -> Pairs:
    """The operations that a dialect names by their tensors in such a network, then places."""
    rows = [row for table in TABLES if (table.name, table.layout) == (library, layout) for row in table.rows]
    tensors = ((ours.removesuffix(".*"), theirs.removesuffix(".*")) for ours, theirs in rows)
    return Pairs((*tensors, *_places(library, layout)))


def understood(plan: Plan, word: str) -> str | None:
    """Our path for another library's name, if the network has such a place."""
    plain, layout = _numbered(word), layout_of(plan.spec)
    meanings = (path for library in LIBRARIES for path in _pairs(library, layout).all_ours(plain))
    return next((path for path in meanings if path in plan.parts), None)


def resolve(plan: Plan, word: str) -> str:
    """Our path for a path, another library's name, or a tensor of either; raises `UsageError` with the nearest ones."""
    bare = without_prefix(word.strip())
    tries = (word, bare, bare.rpartition(".")[0] if bare.endswith(_OF_TENSORS) else bare)
    found = next((path for each in tries if (path := each if each in plan.parts else understood(plan, each))), None)
    if found is None and word != "":
        theirs = {_called(plan, path, library) for path in plan.parts for library in ("torchvision", "hf", "keras")}
        near = nearest(word, [*plan.parts, *sorted(theirs)], 3) or tuple(child.path for child in plan.root.children)
        raise UsageError("there is no such path in this network", where=word, fix="try " + " or ".join(near))
    return found or ""


_OF_TENSORS = (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")


def _numbered(word: str) -> str:
    """Caffe's letters of blocks as numbers: ``res2a_branch1`` is block 1, ``res4b22_branch1`` block 23."""
    found = re.fullmatch(r"(res|bn|scale)(\d)([a-z])(\d{0,3})((?:_\w+)?)", word)
    if not found:
        return word
    kind, stage, letter, number, rest = found.groups()
    block = int(number) + 1 if number else ord(letter) - ord("a") + 1
    return f"{kind}{stage}_{block}{rest}"


def called(plan: Plan, path: str, library: str) -> str:
    """What a library calls a part of this network, and Keras's kind of block; empty where it has no name for it.

    Raises `UsageError` where it has no such network.
    """
    name = ALIASES.get(library, library)
    if name not in LIBRARIES:
        fix = suggestion(library, LIBRARIES)
        raise UsageError(f"the names of {library!r} are not known", where="--names", fix=fix)
    if not any(_called(plan, each, name) for each in plan.parts):
        raise UsageError(f"{library} has no names for a network like this", where="--names", fix="leave --names out")
    found = _called(plan, path, name)
    keras_block = name == "keras" and plan[path].role == "block"
    return f"{found} ({_kind(plan, path)})" if keras_block and found else found


def _called(plan: Plan, path: str, library: str) -> str:
    part = plan[path]
    if part.role == "shortcut" and not part.nodes:
        return ""  # an identity is nothing that others would name
    found = _pairs(library, layout_of(plan.spec)).theirs(path) or ""
    return _lettered(found, plan, path) if library == "caffe" else found


def _kind(plan: Plan, path: str) -> str:
    """Which of the two functions of Keras's first code makes a block."""
    return "conv_block" if any(node.role == "projection" for node in plan[path].nodes) else "identity_block"


def _lettered(name: str, plan: Plan, path: str) -> str:
    """Blocks by letters, or by numbers in the deeper networks, which have too many (``res4b22``)."""
    found = re.match(r"(res|bn|scale)(\d)_(\d+)", name)
    if not found:
        return name
    block, here = int(found[3]), plan.spec.stages[int(found[2]) - 2]
    crowded = here.blocks > 3 and max(stage.blocks for stage in plan.spec.stages) > 6
    letter = "a" if block == 1 else f"b{block - 1}" if crowded else chr(ord("a") + block - 1)
    return f"{found[1]}{found[2]}{letter}{name[found.end() :]}"
