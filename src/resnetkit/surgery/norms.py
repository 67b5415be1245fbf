"""Edit norms: fold batch norms into convolutions, or replace them by group norms."""

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
from resnetkit.network.consistency import check_editable
from resnetkit.network.inference import eval_mode
from resnetkit.network.layers import NetworkModule
from resnetkit.surgery.select import check_integer
from resnetkit.surgery.transfer import EditResult, check_model_argument, edit_card, transfer
from resnetkit.surgery.verify import finish_edit, verify_equal, verify_rounded

_FOLDED_NOTE = "with the norm behind it"
_NOT_FOLDED_REASONS: dict[type, str] = {
    GroupNorm: "group norm uses statistics of each image, which no weight can hold",
    FoldedNorm: "they are folded already",
}


@check_model_argument
def fold_norms(model: NetworkModule) -> EditResult:
    """Return the network with batch norms folded into the convolutions before them.

    It has fewer operations and the same outputs, which is verified. The result computes as in evaluation and has no
    statistics to train. A pre-activation network keeps the norms that have no convolution before them.

    Raises:
        UsageError: the network has no batch norms.
    """
    norm = model.card.spec.norm
    if not isinstance(norm, BatchNorm):
        fix = _NOT_FOLDED_REASONS.get(type(norm), "there are none")
        raise UsageError("this network has no batch norms to fold", where="norm", fix=fix)
    new_model = transfer(model, *_fold_batch_norms(model, norm))
    before, after = len(model.plan.nodes), len(new_model.plan.nodes)
    note = f"{before} operations -> {after}: {before - after} norms fewer to run"
    return finish_edit(model, new_model, verify_rounded(model, new_model), notes=[note])


def fold_for_inference(model: NetworkModule) -> NetworkModule:
    """Return the network for inference: batch norms folded, in evaluation mode, without gradients.

    It has no report and is not verified, because both take seconds. The two networks share the tensors that stay.

    Raises:
        UsageError: the network differs from its card.
    """
    check_editable(model)
    norm, tensors, new_model = model.card.spec.norm, model.state_dict(), build_meta_network(model.card, model.plan)
    if isinstance(norm, BatchNorm):
        card, folded_tensors = _fold_batch_norms(model, norm)
        new_model = build_meta_network(card)
        tensors |= {key: value for key, (value, _) in folded_tensors.items()}
    new_model.load_state_dict({key: tensors[key] for key in new_model.state_dict()}, assign=True)
    return new_model.eval().requires_grad_(False)


def _fold_batch_norms(model: NetworkModule, norm: BatchNorm) -> tuple[Card, dict[str, tuple[Tensor, str]]]:
    """Return the card of the folded network and the tensors that differ."""
    remaining_norm: Norm = NoNorm() if model.card.spec.order == "conv-norm-act" else FoldedNorm(norm.eps, norm.momentum)
    spec = replace(model.card.spec, norm=remaining_norm, bias="without-norm")
    card = edit_card(model.card, spec, "norms folded")
    tensors = model.state_dict()
    fused = {
        key: (value, _FOLDED_NOTE)
        for pair in _find_conv_norm_pairs(model)
        for key, value in fold_conv(tensors, norm.eps, *pair)
    }
    missing_biases = {
        key: (torch.zeros(shape), "zeros: there was none")
        for key, shape in get_tensor_shapes(plan(spec)).items()
        if key.endswith(".bias") and key not in tensors
    }
    return card, {**missing_biases, **fused}


def _find_conv_norm_pairs(model: NetworkModule) -> Iterator[tuple[str, str]]:
    """Yield the paths of each convolution and of the norm behind it."""
    nodes = model.plan.nodes
    for node in nodes:
        prefix, _, name = node.path.rpartition(".")
        if name.startswith("norm") and node.role not in ("pre-norm", "head-norm"):
            yield f"{prefix}.{name.replace('norm', 'conv')}", node.path


def fold_conv(tensors: Mapping[str, Tensor], eps: float, conv: str, norm: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight and bias of a convolution that computes what it and its norm compute, in fp64.

    Args:
        tensors: The tensors of the network.
        eps: The epsilon of the norm.
        conv: The path of the convolution.
        norm: The path of the norm.
    """
    weight, conv_bias = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
    scale, norm_bias, mean, variance = (
        tensors[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (variance + eps).sqrt()
    yield f"{conv}.weight", (weight.double() * factor[:, None, None, None]).to(weight.dtype)
    bias = norm_bias - mean * factor + (0 if conv_bias is None else conv_bias.double() * factor)
    yield f"{conv}.bias", bias.to(weight.dtype)


# --------------------------------------------------------------------------------------------------------- group norm


@check_model_argument
def group_norm(model: NetworkModule, images: Tensor, groups: int = 32) -> EditResult:
    """Return the network with group norms in place of batch norms, fitted on images.

    Scale and shift of each channel are those with which the new norm is nearest to the output of the old one on these
    images (least squares). Norms are fitted from first to last, each behind the fitted ones. The outputs change; the
    report tells by how much they differ on the images.

    Args:
        model: The network; it does not change.
        images: Normalized images (N, C, H, W).
        groups: The number of groups of each norm.

    Raises:
        UsageError: the network has no batch norms, or the images do not suit it.
    """
    spec = model.card.spec
    if not isinstance(spec.norm, BatchNorm):
        raise UsageError("this network has no batch norms to replace", where="norm", fix="use one with batch norms")
    check_integer(groups, "group_norm")
    _check_images(images, spec)
    new_spec = replace(spec, norm=GroupNorm(groups, spec.norm.eps))
    card = edit_card(model.card, new_spec, f"group norms fitted on {len(images)} images")
    fitted_tensors = _fit_norms(model, transfer(model, card), images)
    note = f"fitted on {len(images)} images"
    new_model = transfer(model, card, {key: (tensor, note) for key, tensor in fitted_tensors.items()})
    description, reason = f"the outputs for the {len(images)} images", "group norm uses statistics of each image"
    inputs = [images.double()]
    verification = verify_equal(description, model, new_model, None, reason=reason, inputs=inputs)
    return finish_edit(model, new_model, verification, notes=[_describe_agreement(model, new_model, images)])


def _check_images(images: Tensor, spec: Spec) -> None:
    channels = spec.input[0]
    if not isinstance(images, Tensor):
        raise UsageError(
            f"images must be a tensor, not {type(images).__name__}", where="images", fix="a tensor of N x C x H x W"
        )
    if images.ndim != 4 or not len(images) or images.shape[1] != channels or not images.is_floating_point():
        actual = f"{str(images.dtype).removeprefix('torch.')} of {'x'.join(map(str, images.shape))}"
        fix = f"normalized images of N x {channels} x H x W"
        raise UsageError(f"norms cannot be fitted on {actual}", where="images", fix=fix)
    if not images.isfinite().all():
        fix = "remove the images with these values"
        raise UsageError("the images have NaN or infinite values", where="images", fix=fix)
    plan(spec, (images.shape[2], images.shape[3]))


def _fit_norms(model: NetworkModule, new_model: NetworkModule, images: Tensor) -> dict[str, Tensor]:
    """Return weight and bias of every group norm; the images pass each network once."""
    targets: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}

    def record(path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        targets[path] = output

    def fit(path: str, layer: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        normalized = F.group_norm(inputs[0], layer.num_groups, eps=layer.eps)
        weight, bias = _fit_least_squares(normalized, targets.pop(path))
        tensors.update({f"{path}.weight": weight, f"{path}.bias": bias})
        return (normalized * weight[:, None, None] + bias[:, None, None]).to(normalized.dtype)

    _run_with_hooks(model, images, record)
    _run_with_hooks(new_model, images, fit)
    return tensors


def _run_with_hooks(model: NetworkModule, images: Tensor, hook_function: Callable[..., Tensor | None]) -> None:
    """Run the network on images with a hook (path, layer, inputs, output) on every norm."""
    paths = [node.path for node in model.plan.nodes if isinstance(node.op, NormOp)]
    handles = [model.get_submodule(path).register_forward_hook(partial(hook_function, path)) for path in paths]
    try:
        _compute_outputs(model, images)
    finally:
        for handle in handles:
            handle.remove()


def _compute_outputs(model: NetworkModule, images: Tensor) -> Tensor:
    with eval_mode(model), torch.inference_mode():
        return model(images.to(next(model.parameters())))  # type: ignore[no-any-return]


def _fit_least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of each channel that bring ``x`` nearest to ``y`` (N, C, H, W)."""
    x, y, dims = x.double(), y.double(), (0, 2, 3)
    mean_x, mean_y = x.mean(dims), y.mean(dims)
    centered = x - mean_x[:, None, None]
    variance = (centered * centered).mean(dims)
    scale = (centered * (y - mean_y[:, None, None])).mean(dims) / variance.clamp_min(1e-12)
    return scale, mean_y - scale * mean_x


def _describe_agreement(model: NetworkModule, new_model: NetworkModule, images: Tensor) -> str:
    """Return how many images keep their predicted class, if the network has a classifier."""
    if not count_classes(model.card.spec.head):
        return f"fitted on {len(images)} images"
    n_same = int((_compute_outputs(model, images).argmax(1) == _compute_outputs(new_model, images).argmax(1)).sum())
    return f"{n_same} of {len(images)} images keep their predicted class"
