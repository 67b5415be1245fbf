"""Norms: folded into the convolutions before them, or group norms in place of batch norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.architecture.card import Card
from resnetkit.architecture.operations import Normalisation
from resnetkit.architecture.plan import plan
from resnetkit.architecture.spec import BatchNorm, FoldedNorm, GroupNorm, NoNorm, Norm, class_count
from resnetkit.architecture.spec import Network as Spec
from resnetkit.architecture.tensors import tensors_of
from resnetkit.errors import UsageError
from resnetkit.network.build import shell
from resnetkit.network.inference import evaluating
from resnetkit.network.layers import Network
from resnetkit.surgery.select import whole
from resnetkit.surgery.transfer import Edited, carry, edit, edited, told
from resnetkit.surgery.verify import compared, finished, rounded

_FOLDED = "with the norm behind it"


@edit
def fold_norms(model: Network) -> Edited:
    """Batch norms made part of the convolutions before them, for use: fewer operations, the same answers (proved).

    What is left computes as evaluation does, and has no statistics to learn. Pre-activation keeps the norms that no
    convolution stands before. Raises `UsageError` where there is no batch norm.
    """
    norm = model.card.spec.norm
    if not isinstance(norm, BatchNorm):
        raise UsageError("this network has no batch norms that could be folded", where="norm", fix=_why_not(norm))
    card, brought = _fold(model, norm)
    made = carry(model, card, brought)
    gone = len(model.plan.nodes) - len(made.plan.nodes)
    told(model, made, [f"{len(model.plan.nodes)} operations -> {len(made.plan.nodes)}: {gone} norms fewer to run"])
    limit, why = rounded(model)
    return finished(made, compared("the answers", model, made, limit, why=why))


def folded(model: Network) -> Network:
    """The network as it is used: batch norms folded as by `fold_norms`, in evaluation mode, nothing that learns.

    Without proof and account, which take seconds. ``model`` stays as it is, and the two share the tensors that stay.
    """
    norm, tensors, made = model.card.spec.norm, model.state_dict(), shell(model.card, model.plan)
    if isinstance(norm, BatchNorm):
        card, brought = _fold(model, norm)
        made = shell(card)
        tensors |= {key: value for key, (value, _) in brought.items()}
    made.load_state_dict({key: tensors[key] for key in made.state_dict()}, assign=True)
    return made.eval().requires_grad_(False)


def _fold(model: Network, norm: BatchNorm) -> tuple[Card, dict[str, tuple[Tensor, str]]]:
    """The card of the folded network, and the tensors that it does not share with this one."""
    left: Norm = NoNorm() if model.card.spec.order == "conv-norm-act" else FoldedNorm(norm.eps, norm.momentum)
    spec = replace(model.card.spec, norm=left, bias="without-norm")
    card = edited(model.card, spec, "norms folded")
    tensors = model.state_dict()
    fused = {key: (value, _FOLDED) for pair in _pairs(model) for key, value in _folded(tensors, norm.eps, *pair)}
    zeros = {key: (torch.zeros(shape), "zeros: there was none") for key, shape in _biases(spec, model)}
    return card, {**zeros, **fused}


def _why_not(norm: Norm) -> str:
    return {
        GroupNorm: "group norm takes its statistics from each image, so no weight can hold them",
        FoldedNorm: "they are folded already",
    }.get(type(norm), "there are none")


def _pairs(model: Network) -> Iterator[tuple[str, str]]:
    """(convolution, norm behind it) by path."""
    nodes = model.plan.nodes
    for node in nodes:
        head, _, name = node.path.rpartition(".")
        if name.startswith("norm") and node.role not in ("pre-norm", "head-norm"):
            yield f"{head}.{name.replace('norm', 'conv')}", node.path


def _folded(tensors: Mapping[str, Tensor], eps: float, conv: str, norm: str) -> Iterator[tuple[str, Tensor]]:
    """The weight and the bias of a convolution that does what it and its norm do, worked out in fp64."""
    weight, shift = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
    scale, offset, mean, spread = (
        tensors[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / (spread + eps).sqrt()
    yield f"{conv}.weight", (weight.double() * factor[:, None, None, None]).to(weight.dtype)
    constant = offset - mean * factor + (0 if shift is None else shift.double() * factor)
    yield f"{conv}.bias", constant.to(weight.dtype)


def _biases(spec: Spec, model: Network) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Biases of the new network that the old one has not."""
    old = model.state_dict()
    shapes = tensors_of(plan(spec))
    return ((key, shape) for key, shape in shapes.items() if key.endswith(".bias") and key not in old)


# --------------------------------------------------------------------------------------------------------- group norm


@edit
def group_norm(model: Network, images: Tensor, groups: int = 32) -> Edited:
    """Group norms in place of batch norms, refitted on ``images`` (N C H W, prepared as for the network).

    Scale and shift of each channel become those with which the new norm is nearest to what the old one hands on for
    these images (least squares, from the first norm to the last, each behind those that were refitted). That is no
    identity: the report says how far the answers are apart on the images. Raises `UsageError`.
    """
    spec = model.card.spec
    if not isinstance(spec.norm, BatchNorm):
        raise UsageError("this network has no batch norms to be replaced", where="norm", fix="one with batch norms")
    whole(groups, "group_norm")
    _require_images(images, spec)
    made_of = replace(spec, norm=GroupNorm(groups, spec.norm.eps))
    card = edited(model.card, made_of, f"group norms fitted on {len(images)} images")
    started = carry(model, card)
    fitted = _fitted(model, started, images)
    how = f"refitted on {len(images)} images"
    made = carry(model, card, {key: (tensor, how) for key, tensor in fitted.items()})
    told(model, made, [_agreement(model, made, images)])
    why = "group norm takes its statistics from each image"
    what = f"the answers for the {len(images)} images"
    return finished(made, compared(what, model, made, None, why=why, given=[images.double()]))


def _require_images(images: Tensor, spec: Spec) -> None:
    channels = spec.input[0]
    if not isinstance(images, Tensor):
        raise UsageError(f"norms are fitted on a tensor, and this is {type(images).__name__}", where="images")
    if images.ndim != 4 or not len(images) or images.shape[1] != channels or not images.is_floating_point():
        came = f"{str(images.dtype).removeprefix('torch.')} of {'x'.join(map(str, images.shape))}"
        fix = f"numbers of N x {channels} x H x W, prepared"
        raise UsageError(f"norms are fitted on images, and this is {came}", where="images", fix=fix)
    if not images.isfinite().all():
        raise UsageError("norms are fitted on images, and these hold numbers that are not finite", where="images")
    plan(spec, (images.shape[2], images.shape[3]))


def _norms(model: Network) -> list[str]:
    return [node.path for node in model.plan.nodes if isinstance(node.op, Normalisation)]


def _fitted(model: Network, made: Network, images: Tensor) -> dict[str, Tensor]:
    """Weight and bias of every group norm, found while the images pass both networks once."""
    wanted, found = _handed_on(model, images), {}

    def fit(path: str, layer: nn.GroupNorm, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        plain = F.group_norm(given[0], layer.num_groups, eps=layer.eps)
        weight, bias = _least_squares(plain, wanted.pop(path))
        found.update({f"{path}.weight": weight, f"{path}.bias": bias})
        return (plain * weight[:, None, None] + bias[:, None, None]).to(plain.dtype)

    _seen_through(made, images, fit)
    return found


def _handed_on(model: Network, images: Tensor) -> dict[str, Tensor]:
    """What each norm hands on for the images (N C H W)."""
    found: dict[str, Tensor] = {}

    def keep(path: str, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        found[path] = output

    _seen_through(model, images, keep)
    return found


def _seen_through(model: Network, images: Tensor, look: Callable[..., Tensor | None]) -> None:
    """The images sent through, with a look (path, layer, what it is given, what it hands on) at every norm."""
    hooks = [model.get_submodule(path).register_forward_hook(partial(look, path)) for path in _norms(model)]
    try:
        _answers(model, images)
    finally:
        for hook in hooks:
            hook.remove()


def _answers(model: Network, images: Tensor) -> Tensor:
    with evaluating(model), torch.inference_mode():
        return model(images.to(next(model.parameters())))  # type: ignore[no-any-return]


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of each channel that bring ``x`` nearest to ``y`` (N C H W)."""
    x, y, over = x.double(), y.double(), (0, 2, 3)
    mean_x, mean_y = x.mean(over), y.mean(over)
    centred = x - mean_x[:, None, None]
    spread = (centred * centred).mean(over)
    scale = (centred * (y - mean_y[:, None, None])).mean(over) / spread.clamp_min(1e-12)
    return scale, mean_y - scale * mean_x


def _agreement(model: Network, made: Network, images: Tensor) -> str:
    """How often the two give the same class, where they give one."""
    if not class_count(model.card.spec.head):
        return f"fitted on {len(images)} images"
    same = int((_answers(model, images).argmax(1) == _answers(made, images).argmax(1)).sum())
    return f"of the {len(images)} images {same} get the class that they had"
