"""What goes in and what comes out: channels of the image, classes, heads, and where the network ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation
from resnetkit.architecture.operations import ConvOp
from resnetkit.architecture.plan import Section, parse_block_number, parse_stage_number
from resnetkit.architecture.rules import check_spec, get_block_stride
from resnetkit.architecture.spec import (
    Features,
    FirstBlock,
    Head,
    NoHead,
    NoShortcuts,
    PoolAfter,
    Pooled,
    Stage,
    count_classes,
    replace_classes,
)
from resnetkit.architecture.spec import Network as Spec
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.build import parse_classes
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import find_paths, select_stages
from resnetkit.surgery.transfer import AdaptedTensors, EditResult, add_notes, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import (
    EXACT,
    OutputFunction,
    compute_output,
    finish_edit,
    flatten_maps,
    make_output_function,
    make_test_images,
    select_rounding_limit,
    verify_equal,
)

_CLASSIFIER_KEYS = ("head.linear.weight", "head.linear.bias")

# ------------------------------------------------------------------------------------------------------------ classes


@check_model_argument
def classes(model: NetworkModule, classes: int | Sequence[str], *, seed: int = 0) -> EditResult:
    """Another classifier, behind the same hidden layers: a number of classes, or their names.

    Classes that the network knows by name keep their rows, and so their logits (proved); the others start from
    ``seed``. Raises `UsageError` for what are no classes.
    """
    names, n_classes = parse_classes(classes)
    card = model.card
    new_card = edit_card(card, replace_classes(card.spec, n_classes), "with a new classifier", classes=names)
    old_indices = {name: i for i, name in enumerate(card.classes)}
    index_pairs = [(new, old_indices[name]) for new, name in enumerate(names) if name in old_indices]
    reset_model = transfer(model, new_card, reinit_prefix="head.linear.", seed=seed)
    if not index_pairs:
        add_notes(model, reset_model)
        return finish_edit(reset_model)
    new_model = transfer(
        model, new_card, _copy_known_rows(model, reset_model, index_pairs), reinit_prefix="head.linear.", seed=seed
    )
    add_notes(model, new_model)
    new, old = ([pair[i] for pair in index_pairs] for i in (0, 1))
    description = f"the logits of {pluralize(len(index_pairs), 'class')} that stayed"
    return finish_edit(
        new_model,
        verify_equal(
            description, model, new_model, EXACT, old_output=_select_columns(old), new_output=_select_columns(new)
        ),
    )


def _copy_known_rows(
    model: NetworkModule, reset_model: NetworkModule, index_pairs: Sequence[tuple[int, int]]
) -> AdaptedTensors:
    """The new classifier with the rows of classes that are known, as (new, old) numbers."""
    note, tensors = f"{len(index_pairs)} of {count_classes(reset_model.card.spec.head)} rows kept, by name", {}
    new, old = ([pair[i] for pair in index_pairs] for i in (0, 1))
    old_tensors, new_tensors = model.state_dict(), reset_model.state_dict()
    for key in _CLASSIFIER_KEYS:
        tensor = new_tensors[key].clone()
        tensor[new] = old_tensors[key][old]
        tensors[key] = (tensor, note)
    return tensors


def _select_columns(indices: list[int]) -> OutputFunction:
    return lambda network, x: network(x)[:, indices]


# ------------------------------------------------------------------------------------------------------ input channels

_NEW_CHANNEL_METHODS = ("zero", "mean", "cyclic")


@check_model_argument
def input_channels(model: NetworkModule, channels: int, *, how: str = "zero") -> EditResult:
    """The same network for images of so many channels; raises `UsageError` where that cannot be.

    One channel has the sum of the weights of all: the answers are those for an image whose channels are alike. From
    one to several each has its share. Beside several, new channels are ``zero``, so that they have no influence; or
    ``mean``: each has the mean of the others, and all are made smaller, so that an image of equal channels is answered
    as before; or ``cyclic``: they repeat the others in turn, which share their weights, so that an image whose
    channels repeat in the same way is. All of that is proved.
    """
    card, old_channels = model.card, model.card.spec.input[0]
    _check_channels(model, channels, how)
    if channels == old_channels:
        new_model = transfer(model, card)
        return finish_edit(new_model)
    weight_key = f"{model.plan.nodes[0].path}.weight"
    change = f"for {pluralize(channels, 'input channel')}"
    assumed = tuple(line for line in card.assumed if not line.startswith(("an image is ", "images are ")))
    new_card = edit_card(card, replace(card.spec, input=(channels, *card.spec.input[1:])), change,
                 preparation=_adapt_preparation(card.preparation, channels), assumed=assumed)  # fmt: skip
    weight = model.state_dict()[weight_key]
    tensor, note = _adapt_weight(weight.double(), channels, how)
    new_model = transfer(model, new_card, {weight_key: (tensor.to(weight.dtype), note)})
    add_notes(model, new_model, [_GRAY_NOTE] * (channels == 1))
    return finish_edit(new_model, _verify_same_output(model, new_model, how))


_GRAY_NOTE = (
    "a grey picture is prepared with the mean of the channels' statistics, which no repeated one is: a little apart"
)


def _check_channels(model: NetworkModule, channels: int, method: str) -> None:
    old_channels = model.card.spec.input[0]
    if method not in _NEW_CHANNEL_METHODS:
        message = f"there is no way called {str(method)!r}"
        raise UsageError(message, where="input_channels", fix=suggest_fix(str(method), _NEW_CHANNEL_METHODS))
    if type(channels) is not int or channels < 1 or 1 < channels < old_channels:
        message = f"a network for {old_channels} channels is not made one for {str(channels)[:20]}"
        raise UsageError(message, where="input_channels", fix=f"1, or more than {old_channels}")
    check_spec(replace(model.card.spec, input=(channels, *model.card.spec.input[1:])))
    has_single_input_layer = model.card.spec.stem.convs or isinstance(model.card.spec.shortcuts, NoShortcuts)
    op = model.plan.nodes[0].op
    if not (has_single_input_layer and isinstance(op, ConvOp) and op.groups == 1):
        message = "this network has no convolution that alone sees the image, so there is none to adapt"
        raise UsageError(message, where="input_channels", fix="a network with a stem")


def _adapt_weight(weight: Tensor, channels: int, method: str) -> tuple[Tensor, str]:
    old_channels = weight.shape[1]
    n_added = channels - old_channels
    if channels == 1:
        return weight.sum(1, keepdim=True), f"the sum of {old_channels} channels"
    if old_channels == 1:
        return weight.expand(-1, channels, -1, -1) / channels, f"1/{channels} for each channel"
    if method == "mean":
        mean = weight.mean(1, keepdim=True).expand(-1, n_added, -1, -1)
        note = f"the mean for {n_added} more channels, {old_channels}/{channels} of all"
        return torch.cat([weight, mean], 1) * (old_channels / channels), note
    if method == "cyclic":
        indices = torch.arange(channels) % old_channels
        counts = torch.bincount(indices)[indices].to(weight)[:, None, None]
        return weight[:, indices] / counts, f"{old_channels} channels in turn, which share their weights"
    zeros = weight.new_zeros(weight.shape[0], n_added, *weight.shape[2:])
    return torch.cat([weight, zeros], 1), f"zeros for {n_added} more channels"


def _verify_same_output(model: NetworkModule, new_model: NetworkModule, method: str) -> Verification:
    """On images for which old and new network are the same function."""
    old_channels, new_channels = model.card.spec.input[0], new_model.card.spec.input[0]
    is_gray = 1 in (old_channels, new_channels) or method == "mean"
    inputs = [x[:, :1] if is_gray else x for x in make_test_images(model.card.spec)]
    description = (
        "the answers for an image of equal channels" if is_gray else "the answers for an image whose channels repeat"
    )
    description = (
        description
        if is_gray or method == "cyclic"
        else f"the answers, whatever the {new_channels - old_channels} new channels hold"
    )
    limit, reason = select_rounding_limit(model)

    def old_output(network: NetworkModule, x: Tensor) -> Tensor:
        return compute_output(network, x.expand(-1, old_channels, -1, -1) if is_gray else x)

    def new_output(network: NetworkModule, x: Tensor) -> Tensor:
        return compute_output(network, _expand_input(x, new_channels, method, is_gray=is_gray))

    return verify_equal(
        description, model, new_model, limit, reason=reason, old_output=old_output, new_output=new_output, inputs=inputs
    )


def _expand_input(x: Tensor, channels: int, method: str, *, is_gray: bool) -> Tensor:
    if is_gray:
        return x.expand(-1, channels, -1, -1)
    if method == "cyclic":
        return x[:, torch.arange(channels) % x.shape[1]]
    rng = torch.Generator().manual_seed(1)
    added = torch.randn(len(x), channels - x.shape[1], *x.shape[2:], generator=rng, dtype=x.dtype)
    return torch.cat([x, added.to(x.device)], 1)


def _adapt_preparation(preparation: Preparation, channels: int) -> Preparation:
    """For so many channels: the mean of the statistics, the same ones again, or none for what is added."""
    n_added = channels - len(preparation.mean)
    if channels == 1:
        return replace(
            preparation,
            mean=(sum(preparation.mean) / len(preparation.mean),),
            std=(sum(preparation.std) / len(preparation.std),),
        )
    if len(preparation.mean) == 1:
        return replace(preparation, mean=preparation.mean * channels, std=preparation.std * channels)
    return replace(preparation, mean=(*preparation.mean, *(0.0,) * n_added), std=(*preparation.std, *(1.0,) * n_added))


# ------------------------------------------------------------------------------------------------ heads, cuts, features

_HEADS: dict[str, Head] = {"none": NoHead(), "pooled": Pooled()}


@check_model_argument
def head(model: NetworkModule, kind: str) -> EditResult:
    """Without the classifier: ``pooled`` hands on the average of the last map (N C), ``none`` the map itself (N C H W).

    What it hands on is what the whole network has there, which is proved. `classes` gives it a classifier again.
    """
    if str(kind) not in _HEADS:
        fix = suggest_fix(str(kind), list(_HEADS), "none or pooled; classes gives a classifier")
        raise UsageError(f"there is no head called {str(kind)!r}", where="head", fix=fix)
    spec = replace(model.card.spec, head=_HEADS[kind])
    new_model = transfer(model, edit_card(model.card, spec, "without its classifier", classes=()))
    add_notes(model, new_model)
    last_stage = f"stage{len(spec.stages)}"
    if kind == "none":
        return finish_edit(
            new_model,
            verify_equal(
                f"the maps of {last_stage}", model, new_model, EXACT, old_output=make_output_function(last_stage)
            ),
        )
    feature_path = "head.act" if new_model.card.spec.order == "norm-act-conv" else last_stage
    if feature_path not in model.plan.parts:  # the norm that ends a pre-activation network is part of its head, and new
        return finish_edit(new_model)
    return finish_edit(
        new_model,
        verify_equal(
            "the averages of the last maps",
            model,
            new_model,
            EXACT,
            old_output=_make_pooled_output_function(feature_path),
        ),
    )


def _make_pooled_output_function(path: str) -> OutputFunction:
    return lambda network, x: make_output_function(path)(network, x).mean((2, 3))


@check_model_argument
def cut(model: NetworkModule, path: str) -> EditResult:
    """The network up to a stage or a block, which hands on the map that it has there (proved: the same numbers)."""
    (resolved_path,) = find_paths(model.plan, [path], ("stage", "block"))
    spec = _truncate_spec(model.card.spec, resolved_path)
    new_model = transfer(
        model, edit_card(model.card, replace(spec, head=NoHead()), f"cut behind {resolved_path}", classes=())
    )
    add_notes(model, new_model)
    return finish_edit(
        new_model,
        verify_equal(
            f"the maps of {resolved_path}", model, new_model, EXACT, old_output=make_output_function(resolved_path)
        ),
    )


def _truncate_spec(spec: Spec, path: str) -> Spec:
    """The stages up to a place; one that is cut has neither a pool behind it nor a stride in a block that is gone."""
    number = parse_stage_number(path)
    stages = list(spec.stages[:number])
    if "." in path:
        stages[-1] = shorten_stage(stages[-1], parse_block_number(path))
    return replace(spec, stages=tuple(stages))


def shorten_stage(stage: Stage, blocks: int) -> Stage:
    """The first ``blocks`` of a stage."""
    is_complete = blocks == stage.blocks and not isinstance(stage.reduce, PoolAfter)
    keeps_reduce = is_complete or get_block_stride(stage, 1) > 1
    return replace(stage, blocks=blocks, reduce=stage.reduce if keeps_reduce else FirstBlock())


@check_model_argument
def features(model: NetworkModule, stages: Iterable[int | str] | int | str) -> EditResult:
    """A backbone: it hands on the maps of some stages, ``{"stage2": N C H W, ...}``, and ends behind the last of them.

    ``model.maps`` tells of each its ``output`` (channels, height, width), ``stride`` and ``receptive_field``. The maps
    are those of the whole network, which is proved. Raises `UsageError`.
    """
    numbers = select_stages(model.plan, stages)
    spec = replace(model.card.spec, stages=model.card.spec.stages[: numbers[-1]], head=Features(tuple(numbers)))
    new_model = transfer(
        model, edit_card(model.card, spec, f"as a backbone of {pluralize(len(numbers), 'map')}", classes=())
    )
    add_notes(
        model, new_model, [_describe_map(name, feature_map) for name, feature_map in new_model.feature_info.items()]
    )
    names = list(new_model.feature_info)

    def old_output(network: NetworkModule, x: Tensor) -> Tensor:
        return flatten_maps(network.extract_features(x, names))

    return finish_edit(
        new_model, verify_equal("the maps of " + ", ".join(names), model, new_model, EXACT, old_output=old_output)
    )


def _describe_map(name: str, feature_map: Section) -> str:
    return f"{name}: {feature_map.output[0]} channels, stride {feature_map.stride}, each pixel sees {feature_map.receptive_field}"
