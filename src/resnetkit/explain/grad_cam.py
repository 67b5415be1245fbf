"""Explain the predictions of a trained network for one image: Grad-CAM maps and the strongest channels of each stage.

Grad-CAM (Selvaraju et al., arXiv 1610.02391) weights each channel of the last stage by the gradient of a class's logit,
averaged over the map. The positive part of the weighted sum of the channels is the evidence for the class.
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
from resnetkit.images.prepare import Pixels, load_pixels
from resnetkit.network.inference import PixelNormalizer, eval_mode
from resnetkit.network.layers import NetworkModule

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class PredictedClass:
    """A class, its probability, and the Grad-CAM map of its logit (H W of the last stage, not negative)."""

    label: str
    probability: float
    heatmap: FloatArray


@dataclass(frozen=True)
class ChannelActivation:
    """One channel of a stage: its index from 0, its mean over the map, and its values (H W)."""

    index: int
    mean: float
    values: FloatArray


@dataclass(frozen=True)
class StageActivations:
    """A stage by its path, its number of channels, and those with the highest means, in descending order."""

    path: str
    channels: int
    strongest: tuple[ChannelActivation, ...]


@dataclass(frozen=True)
class ImageExplanation:
    """The input pixels (H W C, 8 bits), the top predictions in descending order, and the stages."""

    pixels: Pixels
    predictions: tuple[PredictedClass, ...]
    stages: tuple[StageActivations, ...]


def explain_image(
    model: NetworkModule, image: str | Path | bytes, *, top: int = 3, n_maps: int = 8
) -> ImageExplanation:
    """Compute the top predictions for an image, their Grad-CAM maps, and the strongest channels.

    The image is decoded and resized as for prediction. The network is not changed.

    Args:
        model: a network with a classifier.
        image: path or contents of an image file.
        top: number of predictions.
        n_maps: number of channels for each stage.

    Raises:
        ImageError: the file is not a readable image.
        UsageError: the network has no classifier, or a count is less than 1.
    """
    _check_arguments(model, top, n_maps)
    pixels = load_pixels(image, model.card.preparation)
    paths = [child.path for child in model.plan.root.children if child.role == "stage"]
    with torch.inference_mode(False), torch.no_grad(), eval_mode(model):
        features = model.extract_features(_make_batch(model, pixels), paths)
        predictions = _predict_classes(model, features[paths[-1]], top)
    stages = tuple(_select_strongest_channels(path, features[path][0], n_maps) for path in paths)
    return ImageExplanation(pixels, predictions, stages)


def _check_arguments(model: NetworkModule, top: int, n_maps: int) -> None:
    if not model.card.labels:
        message, fix = "Grad-CAM needs a network with a classifier", "use one, or get the features with rk.embed"
        raise UsageError(message, where=model.card.name, fix=fix)
    for name, count in (("top", top), ("n_maps", n_maps)):
        if count < 1:
            raise UsageError(f"{name} is {count}", where=name, fix=f"set {name} to 1 or more")


def _make_batch(model: NetworkModule, pixels: Pixels) -> Tensor:
    """Normalize one image to a batch (1, C, H, W) of the network's device and dtype."""
    parameter = next(model.parameters())
    normalize = PixelNormalizer(model.card.preparation, parameter.device)
    return normalize(torch.tensor(pixels)[None]).to(parameter.dtype)


@torch.enable_grad()
def _predict_classes(model: NetworkModule, features: Tensor, top: int) -> tuple[PredictedClass, ...]:
    if features.ndim != 4:
        message = f"Grad-CAM needs a map of 4 dimensions (N C H W), got {features.ndim} from the last stage"
        raise UsageError(message, where=model.card.name, fix="flatten or average the map in the head instead")
    features = features.detach().requires_grad_()
    logits = _run_head(model, features)[0].float()
    top_classes = logits.detach().softmax(0).topk(min(top, len(logits)))
    pairs = zip(top_classes.values.tolist(), top_classes.indices.tolist(), strict=True)
    return tuple(
        PredictedClass(model.card.labels[i], probability, _compute_grad_cam(logits[i], features))
        for probability, i in pairs
    )


def _run_head(model: NetworkModule, features: Tensor) -> Tensor:
    """Compute the logits from the last map; only the map gets gradients.

    The head runs with copies of its tensors, because autograd refuses tensors that were created in inference mode.
    """
    head = model.get_submodule("head")
    copies = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    logits: Tensor = functional_call(head, copies, features)
    return logits


def _compute_grad_cam(logit: Tensor, features: Tensor) -> FloatArray:
    """Compute the Grad-CAM map (equations 1 and 2 of the paper)."""
    (gradient,) = torch.autograd.grad(logit, features, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return _to_numpy((weights * features).sum(1)[0].relu())


def _select_strongest_channels(path: str, output: Tensor, n_maps: int) -> StageActivations:
    """Select the channels with the highest means from the output of a stage (C, H, W)."""
    strongest = output.float().mean((1, 2)).topk(min(n_maps, len(output)))
    pairs = zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
    return StageActivations(
        path, len(output), tuple(ChannelActivation(i, mean, _to_numpy(output[i])) for i, mean in pairs)
    )


def _to_numpy(values: Tensor) -> FloatArray:
    """Copy the values, so that no larger tensor stays alive."""
    array: FloatArray = values.detach().float().cpu().numpy().copy()
    return array
