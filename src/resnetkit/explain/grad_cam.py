"""What a trained network sees in a picture: its answers, where the evidence for each lies, and its strongest maps.

Where the evidence lies is Grad-CAM (Selvaraju et al., arXiv 1610.02391): the gradient of a class's logit, averaged over
the last stage's map, weighs each channel; what is above 0 in the weighted sum of the channels speaks for the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from resnetkit.errors import UsageError
from resnetkit.images.prepare import Pixels, compute_scale_and_shift, load_pixels
from resnetkit.network.inference import eval_mode
from resnetkit.network.layers import NetworkModule

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PredictedClass:
    """A class, its probability, and the Grad-CAM map of its logit: H W of the last stage, nowhere below 0."""

    label: str
    probability: float
    heatmap: FloatArray


@dataclass(frozen=True)
class ChannelActivation:
    """What one channel (from 0) of a stage hands on, H W, and its strength: the mean over the map."""

    index: int
    mean: float
    values: FloatArray


@dataclass(frozen=True)
class StageActivations:
    """A stage by its path, how many channels it hands on, and the strongest of them, first the strongest."""

    path: str
    channels: int
    strongest: tuple[ChannelActivation, ...]


@dataclass(frozen=True)
class ImageExplanation:
    """The picture as the network gets it (H W C, 8 bits), the answers, most probable first, and the stages."""

    pixels: Pixels
    predictions: tuple[PredictedClass, ...]
    stages: tuple[StageActivations, ...]


def explain_image(
    model: NetworkModule, image: str | Path | bytes, *, top: int = 3, n_maps: int = 8
) -> ImageExplanation:
    """The ``top`` answers to a picture, each with its evidence, and the ``maps`` strongest maps of each stage.

    The picture is read and prepared as for prediction, and the network stays as it is. Raises `PictureError` for a file
    that is no picture, and `UsageError` for a network without a classifier.
    """
    _check_arguments(model, top, n_maps)
    pixels = load_pixels(image, model.card.preparation)
    paths = [child.path for child in model.plan.root.children if child.role == "stage"]
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        features = model.extract_features(_make_batch(model, pixels), paths)
        predictions = _predict_classes(model, features[paths[-1]], top)
    return ImageExplanation(
        pixels, predictions, tuple(_select_strongest_channels(path, features[path][0], n_maps) for path in paths)
    )


def _check_arguments(model: NetworkModule, top: int, n_maps: int) -> None:
    if not model.card.labels:
        message = "this network has no classifier, so there is no answer to find evidence for"
        fix = "look into a network that ends in one; rk.embed gives what this one hands on"
        raise UsageError(message, where=model.card.name, fix=fix)
    for name, count in (("top", top), ("n_maps", n_maps)):
        if count < 1:
            raise UsageError(f"{count} of them leave nothing to show", where=name, fix=f"{name} of 1 or more")


def _make_batch(model: NetworkModule, pixels: Pixels) -> Tensor:
    """One picture as a batch, N C H W, where the network is and in its type of number."""
    scale, shift = compute_scale_and_shift(model.card.preparation)
    return torch.from_numpy(pixels * scale + shift).permute(2, 0, 1)[None].to(next(model.parameters()))


@torch.enable_grad()
def _predict_classes(model: NetworkModule, features: Tensor, top: int) -> tuple[PredictedClass, ...]:
    if features.ndim != 4:
        message = f"the last stage hands on {features.ndim} dimensions, and evidence is found on a map of 4 (N C H W)"
        raise UsageError(
            message, where=model.card.name, fix="let the last stage hand on a map, and the head average it"
        )
    features = features.detach().requires_grad_()
    logits = _run_head(model, features)[0].float()
    top_classes = logits.detach().softmax(0).topk(min(top, len(logits)))
    pairs = zip(top_classes.values.tolist(), top_classes.indices.tolist(), strict=True)
    return tuple(
        PredictedClass(model.card.labels[i], probability, _compute_grad_cam(logits[i], features))
        for probability, i in pairs
    )


def _run_head(model: NetworkModule, features: Tensor) -> Tensor:
    """The logits from the last map; gradients run to the map alone, through copies of the head's parameters.

    The copies also serve a model that was made in inference mode, whose own tensors autograd refuses.
    """
    head = model.get_submodule("head")
    copies = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    logits: Tensor = functional_call(head, copies, features)
    return logits


def _compute_grad_cam(logit: Tensor, features: Tensor) -> FloatArray:
    """The formula of the paper (equations 1 and 2)."""
    (gradient,) = torch.autograd.grad(logit, features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return _to_numpy((weights * features).sum(1)[0].relu())


def _select_strongest_channels(path: str, output: Tensor, n_maps: int) -> StageActivations:
    """Of the output of a stage, C H W."""
    strongest = output.float().mean((1, 2)).topk(min(n_maps, len(output)))
    pairs = zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
    return StageActivations(
        path, len(output), tuple(ChannelActivation(i, mean, _to_numpy(output[i])) for i, mean in pairs)
    )


def _to_numpy(values: Tensor) -> FloatArray:
    """A copy, which keeps nothing else of what was computed."""
    array: FloatArray = values.detach().float().cpu().numpy().copy()
    return array
