"""Edit what goes into a network and what comes out: input channels, classes, heads, cuts and feature maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.architecture import spec as specs
from resnetkit.architecture.card import Preparation
from resnetkit.architecture.operations import ConvOp
from resnetkit.architecture.plan import Section, parse_block_number, parse_stage_number
from resnetkit.architecture.rules import check_spec, get_block_stride
from resnetkit.errors import UsageError, suggest_fix
from resnetkit.formatting import pluralize
from resnetkit.network.build import parse_classes
from resnetkit.network.compare import (
    OutputFunction,
    compute_output,
    flatten_maps,
    make_output_function,
    make_test_images,
)
from resnetkit.network.layers import NetworkModule
from resnetkit.network.report import Verification
from resnetkit.surgery.select import find_paths, select_stages
from resnetkit.surgery.transfer import AdaptedTensors, EditResult, check_model_argument, edit, edit_card, transfer
from resnetkit.surgery.verify import finish_edit, select_rounding_limit, verify_equal
from resnetkit.surgery.widths import repeat_channels

_CLASSIFIER, _CLASSIFIER_KEYS = "head.linear.", ("head.linear.weight", "head.linear.bias")

# ------------------------------------------------------------------------------------------------------------ classes


@check_model_argument
def classes(model: NetworkModule, classes: int | Sequence[str], *, seed: int = 0) -> EditResult:
    """Return the network with another classifier behind the same hidden layers.

    Classes that the network knows by name keep their rows, and so their logits (verified).

    Args:
        model: The network; it does not change.
        classes: The number of classes, or their names. Raises `UsageError` for anything else.
        seed: The seed for the rows of new classes.
    """
    names, n_classes = parse_classes(classes)
    card = model.card
    new_spec = specs.replace_classes(card.spec, n_classes)
    new_card = edit_card(card, new_spec, "with a new classifier", classes=names)
    old_indices = {name: i for i, name in enumerate(card.classes)}
    new = [i for i, name in enumerate(names) if name in old_indices]
    old = [old_indices[names[i]] for i in new]
    new_model = transfer(model, new_card, reinit_prefix=_CLASSIFIER, seed=seed)
    if not new:
        return finish_edit(model, new_model)
    rows = _copy_known_rows(model, new_model, old, new)
    new_model = transfer(model, new_card, rows, reinit_prefix=_CLASSIFIER, seed=seed)
    description = f"the logits of {pluralize(len(new), 'class')} that stayed"
    outputs = _select_columns(old), _select_columns(new)
    return finish_edit(model, new_model, verify_equal(description, model, new_model, outputs=outputs))


def _copy_known_rows(
    model: NetworkModule, reset_model: NetworkModule, old: list[int], new: list[int]
) -> AdaptedTensors:
    """Return the new classifier with the rows of known classes, given by their old and new indices."""
    note = f"{len(new)} of {specs.count_classes(reset_model.card.spec.head)} rows kept, by name"
    old_tensors, new_tensors = model.state_dict(), reset_model.state_dict()
    for key in _CLASSIFIER_KEYS:
        new_tensors[key][new] = old_tensors[key][old]
    return {key: (new_tensors[key], note) for key in _CLASSIFIER_KEYS}


def _select_columns(indices: list[int]) -> OutputFunction:
    return lambda network, x: network(x)[:, indices]


# ------------------------------------------------------------------------------------------------------ input channels

_NEW_CHANNEL_METHODS = ("zero", "mean", "cyclic")
_GRAYSCALE_NOTE = (
    "grayscale images are normalized with the average of the channels' statistics,"
    " so results differ slightly from repeating the channel"
)


@check_model_argument
def input_channels(model: NetworkModule, channels: int, *, method: str = "zero") -> EditResult:
    """Return the network for images with another number of channels; verify the outputs that stay equal.

    One channel gets the sum of all weights: outputs are those for an image of equal channels. From one channel to
    several, each gets an equal fraction of the weights.

    Args:
        model: The network; it does not change.
        channels: The new number of channels.
        method: How channels are added to several. ``zero``: they have no effect. ``mean``: they get the mean of the old
            weights and all are scaled, so an image of equal channels has the same output. ``cyclic``: they repeat the
            old channels and share their weights, so an image that repeats its channels has the same output.

    Raises:
        UsageError: the network cannot have so many channels.
    """
    card, old_channels = model.card, model.card.spec.input[0]
    _check_channels(model, channels, method)
    if channels == old_channels:
        return finish_edit(model, transfer(model, card))
    weight_key = f"{model.plan.nodes[0].path}.weight"
    weight = model.state_dict()[weight_key]
    tensor, note = _adapt_weight(weight.double(), channels, method)
    new_model = edit(
        model,
        replace(card.spec, input=(channels, *card.spec.input[1:])),
        f"for {pluralize(channels, 'input channel')}",
        {weight_key: (tensor.to(weight.dtype), note)},
        preparation=_adapt_preparation(card.preparation, channels),
        assumed=tuple(line for line in card.assumed if not line.startswith(("an image is ", "images are "))),
    )
    notes = [_GRAYSCALE_NOTE] if channels == 1 else []
    return finish_edit(model, new_model, _verify_same_output(model, new_model, method), notes=notes)


def _check_channels(model: NetworkModule, channels: int, method: str) -> None:
    spec, where = model.card.spec, "input_channels"
    old_channels = spec.input[0]
    if method not in _NEW_CHANNEL_METHODS:
        fix = suggest_fix(str(method), _NEW_CHANNEL_METHODS)
        raise UsageError(f"unknown method {str(method)!r}", where=where, fix=fix)
    if type(channels) is not int or channels < 1 or 1 < channels < old_channels:
        message = f"a network for {old_channels} channels cannot be adapted to {str(channels)[:20]}"
        raise UsageError(message, where=where, fix=f"1, or more than {old_channels}")
    check_spec(replace(spec, input=(channels, *spec.input[1:])))
    has_single_input_layer = spec.stem.convs or isinstance(spec.shortcuts, specs.NoShortcuts)
    op = model.plan.nodes[0].op
    if not (has_single_input_layer and isinstance(op, ConvOp) and op.groups == 1):
        message = "this network has no single convolution that reads the image"
        raise UsageError(message, where=where, fix="use a network with a stem")


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
        note = f"{old_channels} channels repeated, which share their weights"
        return repeat_channels(weight, torch.arange(channels) % old_channels), note
    zeros = weight.new_zeros(weight.shape[0], n_added, *weight.shape[2:])
    return torch.cat([weight, zeros], 1), f"zeros for {n_added} more channels"


def _verify_same_output(model: NetworkModule, new_model: NetworkModule, method: str) -> Verification:
    """Compare the outputs for images for which the old and the new network are the same function."""
    old_channels, new_channels = model.card.spec.input[0], new_model.card.spec.input[0]
    is_gray = 1 in (old_channels, new_channels) or method == "mean"
    if is_gray:
        description = "the outputs for an image of equal channels"
    elif method == "cyclic":
        description = "the outputs for an image that repeats its channels"
    else:
        description = f"the outputs, for any values in the {new_channels - old_channels} new channels"
    limit, reason = select_rounding_limit(model)

    def old_output(network: NetworkModule, x: Tensor) -> Tensor:
        return compute_output(network, x.expand(-1, old_channels, -1, -1) if is_gray else x)

    def new_output(network: NetworkModule, x: Tensor) -> Tensor:
        return compute_output(network, _expand_input(x, new_channels, method, is_gray=is_gray))

    inputs = [x[:, :1] if is_gray else x for x in make_test_images(model.card.spec)]
    outputs = old_output, new_output
    return verify_equal(description, model, new_model, limit, reason=reason, inputs=inputs, outputs=outputs)


def _expand_input(x: Tensor, channels: int, method: str, *, is_gray: bool) -> Tensor:
    if is_gray:
        return x.expand(-1, channels, -1, -1)
    if method == "cyclic":
        return x[:, torch.arange(channels) % x.shape[1]]
    rng = torch.Generator().manual_seed(1)
    added = torch.randn(len(x), channels - x.shape[1], *x.shape[2:], generator=rng, dtype=x.dtype)
    return torch.cat([x, added.to(x.device)], 1)


def _adapt_preparation(preparation: Preparation, channels: int) -> Preparation:
    """Return the statistics for so many channels: averaged, repeated, or mean 0 and std 1 for new ones."""
    mean, std = preparation.mean, preparation.std
    n_added = channels - len(mean)
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    elif len(mean) == 1:
        mean, std = mean * channels, std * channels
    else:
        mean, std = (*mean, *(0.0,) * n_added), (*std, *(1.0,) * n_added)
    return replace(preparation, mean=mean, std=std)


# ------------------------------------------------------------------------------------------------ heads, cuts, features

_HEADS: dict[str, specs.Head] = {"none": specs.NoHead(), "pooled": specs.Pooled()}


@check_model_argument
def head(model: NetworkModule, kind: str) -> EditResult:
    """Return the network without its classifier.

    The output equals the values in the whole network at that place, which is verified.

    Args:
        model: The network; it does not change.
        kind: ``pooled`` returns the average of the last map (N, C), ``none`` the map (N, C, H, W). `classes` adds a
            classifier.

    Raises:
        UsageError: the head is unknown.
    """
    if str(kind) not in _HEADS:
        fix = suggest_fix(str(kind), list(_HEADS), "none or pooled; classes adds a classifier")
        raise UsageError(f"unknown head {str(kind)!r}", where="head", fix=fix)
    new_model = edit(model, replace(model.card.spec, head=_HEADS[kind]), "without its classifier", classes=())
    last_stage = f"stage{len(model.card.spec.stages)}"
    if kind == "none":
        return _finish_with_maps(model, new_model, last_stage)
    feature_path = "head.act" if new_model.card.spec.order == "norm-act-conv" else last_stage
    if feature_path not in model.plan.parts:  # the norm that ends a pre-activation network is part of its head, and new
        return finish_edit(model, new_model)

    def old_output(network: NetworkModule, x: Tensor) -> Tensor:
        return make_output_function(feature_path)(network, x).mean((2, 3))

    outputs = old_output, compute_output
    verification = verify_equal("the averages of the last maps", model, new_model, outputs=outputs)
    return finish_edit(model, new_model, verification)


def _finish_with_maps(model: NetworkModule, new_model: NetworkModule, path: str) -> EditResult:
    """Verify that the output of the new network is the map that the old one has at a path."""
    outputs = make_output_function(path), compute_output
    verification = verify_equal(f"the maps of {path}", model, new_model, outputs=outputs)
    return finish_edit(model, new_model, verification)


@check_model_argument
def cut(model: NetworkModule, path: str) -> EditResult:
    """Return the network up to a stage or a block, with the map of that place as output (verified).

    Args:
        model: The network; it does not change.
        path: The stage or block. Raises `UsageError` if it does not exist.
    """
    (resolved_path,) = find_paths(model.plan, [path], ("stage", "block"))
    spec = replace(_truncate_spec(model.card.spec, resolved_path), head=specs.NoHead())
    return _finish_with_maps(model, edit(model, spec, f"cut behind {resolved_path}", classes=()), resolved_path)


def _truncate_spec(spec: specs.Network, path: str) -> specs.Network:
    """Return the stages up to a place; a cut stage loses its pool and the stride of a removed block."""
    number = parse_stage_number(path)
    stages = list(spec.stages[:number])
    if "." in path:
        stages[-1] = _shorten_stage(stages[-1], parse_block_number(path))
    return replace(spec, stages=tuple(stages))


def _shorten_stage(stage: specs.Stage, blocks: int) -> specs.Stage:
    """Return a stage with its first blocks only."""
    is_complete = blocks == stage.blocks and not isinstance(stage.reduce, specs.PoolAfter)
    keeps_reduce = is_complete or get_block_stride(stage, 1) > 1
    return replace(stage, blocks=blocks, reduce=stage.reduce if keeps_reduce else specs.FirstBlock())


@check_model_argument
def features(model: NetworkModule, stages: Iterable[int | str] | int | str) -> EditResult:
    """Return a backbone, whose output is the maps of stages: ``{"stage2": (N, C, H, W), ...}``.

    The backbone ends behind the last of these stages. ``model.feature_info`` has the ``output`` (C, H, W), ``stride``
    and ``receptive_field`` of each map. The maps equal those of the whole network (verified).

    Args:
        model: The network; it does not change.
        stages: Stages by number or path. Raises `UsageError` if one does not exist.
    """
    numbers = select_stages(model.plan, stages)
    spec = replace(model.card.spec, stages=model.card.spec.stages[: numbers[-1]], head=specs.Features(tuple(numbers)))
    new_model = edit(model, spec, f"as a backbone of {pluralize(len(numbers), 'map')}", classes=())
    names = list(new_model.feature_info)

    def old_output(network: NetworkModule, x: Tensor) -> Tensor:
        return flatten_maps(network.extract_features(x, names))

    outputs = old_output, compute_output
    verification = verify_equal("the maps of " + ", ".join(names), model, new_model, outputs=outputs)
    notes = [_describe_map(name, feature_map) for name, feature_map in new_model.feature_info.items()]
    return finish_edit(model, new_model, verification, notes=notes)


def _describe_map(name: str, feature_map: Section) -> str:
    channels, stride, field = feature_map.output[0], feature_map.stride, feature_map.receptive_field
    return f"{name}: {channels} channels, stride {stride}, receptive field {field}"
