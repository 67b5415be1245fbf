"""Norms: folded into the convolutions before them, or group norms in place of batch norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.architecture.card import Card
from resnetkit.architecture.operations import NormOp
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import BatchNorm, FoldedNorm, GroupNorm, NoNorm, Norm, count_classes
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import get_tensor_shapes
from resnetkit.errors import UsageError
from resnetkit.network.build import build_meta_network
from resnetkit.network.inference import eval_mode
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import check_integer
from resnetkit.surgery.transfer import EditResult, add_notes, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import finish_edit, select_rounding_limit, verify_equal

_FOLDED_NOTE = "with the norm behind it"


@check_model_argument
def fold_norms(model: NetworkModule) -> EditResult:
    """Batch norms made part of the convolutions before them, for use: fewer operations, the same answers (proved).

    What is left computes as evaluation does, and has no statistics to learn. Pre-activation keeps the norms that no
    convolution stands before. Raises `UsageError` where there is no batch norm.
    """
    norm = model.card.spec.norm
    if not isinstance(norm, BatchNorm):
        raise UsageError(
            "this network has no batch norms that could be folded", where="norm", fix=_explain_no_folding(norm)
        )
    card, tensors = _fold_batch_norms(model, norm)
    new_model = transfer(model, card, tensors)
    n_removed = len(model.plan.nodes) - len(new_model.plan.nodes)
    add_notes(
        model,
        new_model,
        [f"{len(model.plan.nodes)} operations -> {len(new_model.plan.nodes)}: {n_removed} norms fewer to run"],
    )
    limit, reason = select_rounding_limit(model)
    return finish_edit(new_model, verify_equal("the answers", model, new_model, limit, reason=reason))


def fold_for_inference(model: NetworkModule) -> NetworkModule:
    """The network as it is used: batch norms folded as by `fold_norms`, in evaluation mode, nothing that learns.

    Without proof and account, which take seconds. ``model`` stays as it is, and the two share the tensors that stay.
    """
    norm, tensors, new_model = model.card.spec.norm, model.state_dict(), build_meta_network(model.card, model.plan)
    if isinstance(norm, BatchNorm):
        card, folded_tensors = _fold_batch_norms(model, norm)
        new_model = build_meta_network(card)
        tensors |= {key: value for key, (value, _) in folded_tensors.items()}
    new_model.load_state_dict({key: tensors[key] for key in new_model.state_dict()}, assign=True)
    return new_model.eval().requires_grad_(False)


def _fold_batch_norms(model: NetworkModule, norm: BatchNorm) -> tuple[Card, dict[str, tuple[Tensor, str]]]:
    """The card of the folded network, and the tensors that it does not share with this one."""
    remaining_norm: Norm = NoNorm() if model.card.spec.order == "conv-norm-act" else FoldedNorm(norm.eps, norm.momentum)
    spec = replace(model.card.spec, norm=remaining_norm, bias="without-norm")
    card = edit_card(model.card, spec, "norms folded")
    tensors = model.state_dict()
    fused = {
        key: (value, _FOLDED_NOTE)
        for pair in _find_conv_norm_pairs(model)
        for key, value in _fold_conv(tensors, norm.eps, *pair)
    }
    zeros = {key: (torch.zeros(shape), "zeros: there was none") for key, shape in _find_missing_biases(spec, model)}
    return card, {**zeros, **fused}


def _explain_no_folding(norm: Norm) -> str:
    return {
        GroupNorm: "group norm takes its statistics from each image, so no weight can hold them",
        FoldedNorm: "they are folded already",
    }.get(type(norm), "there are none")


def _find_conv_norm_pairs(model: NetworkModule) -> Iterator[tuple[str, str]]:
    """(convolution, norm behind it) by path."""
    nodes = model.plan.nodes
    for node in nodes:
        prefix, _, name = node.path.rpartition(".")
        if name.startswith("norm") and node.role not in ("pre-norm", "head-norm"):
            yield f"{prefix}.{name.replace('norm', 'conv')}", node.path


def _fold_conv(tensors: Mapping[str, Tensor], eps: float, conv: str, norm: str) -> Iterator[tuple[str, Tensor]]:
    """The weight and the bias of a convolution that does what it and its norm do, worked out in fp64."""
    weight, conv_bias = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
    scale, norm_bias, mean, variance = (
        tensors[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + eps).sqrt()
    yield f"{conv}.weight", (weight.double() * factor[:, None, None, None]).to(weight.dtype)
    bias = norm_bias - mean * factor + (0 if conv_bias is None else conv_bias.double() * factor)
    yield f"{conv}.bias", bias.to(weight.dtype)


def _find_missing_biases(spec: Spec, model: NetworkModule) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Biases of the new network that the old one has not."""
    old_tensors = model.state_dict()
    shapes = get_tensor_shapes(plan(spec))
    return ((key, shape) for key, shape in shapes.items() if key.endswith(".bias") and key not in old_tensors)


# --------------------------------------------------------------------------------------------------------- group norm


@check_model_argument
def group_norm(model: NetworkModule, images: Tensor, groups: int = 32) -> EditResult:
    """Group norms in place of batch norms, refitted on ``images`` (N C H W, prepared as for the network).

    Scale and shift of each channel become those with which the new norm is nearest to what the old one hands on for
    these images (least squares, from the first norm to the last, each behind those that were refitted). That is no
    identity: the report says how far the answers are apart on the images. Raises `UsageError`.
    """
    spec = model.card.spec
    if not isinstance(spec.norm, BatchNorm):
        raise UsageError("this network has no batch norms to be replaced", where="norm", fix="one with batch norms")
    check_integer(groups, "group_norm")
    _check_images(images, spec)
    new_spec = replace(spec, norm=GroupNorm(groups, spec.norm.eps))
    card = edit_card(model.card, new_spec, f"group norms fitted on {len(images)} images")
    initial_model = transfer(model, card)
    fitted_tensors = _fit_norms(model, initial_model, images)
    note = f"refitted on {len(images)} images"
    new_model = transfer(model, card, {key: (tensor, note) for key, tensor in fitted_tensors.items()})
    add_notes(model, new_model, [_describe_agreement(model, new_model, images)])
    reason = "group norm takes its statistics from each image"
    description = f"the answers for the {len(images)} images"
    return finish_edit(
        new_model, verify_equal(description, model, new_model, None, reason=reason, inputs=[images.double()])
    )


def _check_images(images: Tensor, spec: Spec) -> None:
    channels = spec.input[0]
    if not isinstance(images, Tensor):
        raise UsageError(f"norms are fitted on a tensor, and this is {type(images).__name__}", where="images")
    if images.ndim != 4 or not len(images) or images.shape[1] != channels or not images.is_floating_point():
        actual = f"{str(images.dtype).removeprefix('torch.')} of {'x'.join(map(str, images.shape))}"
        fix = f"numbers of N x {channels} x H x W, prepared"
        raise UsageError(f"norms are fitted on images, and this is {actual}", where="images", fix=fix)
    if not images.isfinite().all():
        raise UsageError("norms are fitted on images, and these hold numbers that are not finite", where="images")
    plan(spec, (images.shape[2], images.shape[3]))


def _list_norms(model: NetworkModule) -> list[str]:
    return [node.path for node in model.plan.nodes if isinstance(node.op, NormOp)]


def _fit_norms(model: NetworkModule, new_model: NetworkModule, images: Tensor) -> dict[str, Tensor]:
    """Weight and bias of every group norm, found while the images pass both networks once."""
    targets, tensors = _record_norm_outputs(model, images), {}

    def fit(path: str, layer: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        normalized = F.group_norm(inputs[0], layer.num_groups, eps=layer.eps)
        weight, bias = _fit_least_squares(normalized, targets.pop(path))
        tensors.update({f"{path}.weight": weight, f"{path}.bias": bias})
        return (normalized * weight[:, None, None] + bias[:, None, None]).to(normalized.dtype)

    _run_with_hooks(new_model, images, fit)
    return tensors


def _record_norm_outputs(model: NetworkModule, images: Tensor) -> dict[str, Tensor]:
    """What each norm hands on for the images (N C H W)."""
    outputs: dict[str, Tensor] = {}

    def record(path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[path] = output

    _run_with_hooks(model, images, record)
    return outputs


def _run_with_hooks(model: NetworkModule, images: Tensor, hook_function: Callable[..., Tensor | None]) -> None:
    """The images sent through, with a look (path, layer, what it is given, what it hands on) at every norm."""
    handles = [
        model.get_submodule(path).register_forward_hook(partial(hook_function, path)) for path in _list_norms(model)
    ]
    try:
        _compute_outputs(model, images)
    finally:
        for handle in handles:
            handle.remove()


def _compute_outputs(model: NetworkModule, images: Tensor) -> Tensor:
    with eval_mode(model), torch.inference_mode():
        return model(images.to(next(model.parameters())))  # type: ignore[no-any-return]


def _fit_least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of each channel that bring ``x`` nearest to ``y`` (N C H W)."""
    x, y, dims = x.double(), y.double(), (0, 2, 3)
    mean_x, mean_y = x.mean(dims), y.mean(dims)
    centered = x - mean_x[:, None, None]
    variance = (centered * centered).mean(dims)
    scale = (centered * (y - mean_y[:, None, None])).mean(dims) / variance.clamp_min(1e-12)
    return scale, mean_y - scale * mean_x


def _describe_agreement(model: NetworkModule, new_model: NetworkModule, images: Tensor) -> str:
    """How often the two give the same class, where they give one."""
    if not count_classes(model.card.spec.head):
        return f"fitted on {len(images)} images"
    n_same = int((_compute_outputs(model, images).argmax(1) == _compute_outputs(new_model, images).argmax(1)).sum())
    return f"of the {len(images)} images {n_same} get the class that they had"
