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
from resnetkit.images.prepare import Pixels, open_prepared, scale_and_shift
from resnetkit.network.inference import evaluating
from resnetkit.network.layers import Network

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """A class, its probability, and the Grad-CAM map of its logit: H W of the last stage, nowhere below 0."""

    label: str
    share: float
    evidence: Map


@dataclass(frozen=True)
class Channel:
    """What one channel (from 0) of a stage hands on, H W, and its strength: the mean over the map."""

    number: int
    strength: float
    values: Map


@dataclass(frozen=True)
class Stage:
    """A stage by its path, how many channels it hands on, and the strongest of them, first the strongest."""

    path: str
    channels: int
    strongest: tuple[Channel, ...]


@dataclass(frozen=True)
class Inside:
    """The picture as the network gets it (H W C, 8 bits), the answers, most probable first, and the stages."""

    pixels: Pixels
    answers: tuple[Answer, ...]
    stages: tuple[Stage, ...]


def look(model: Network, picture: str | Path | bytes, *, top: int = 3, maps: int = 8) -> Inside:
    """The ``top`` answers to a picture, each with its evidence, and the ``maps`` strongest maps of each stage.

    The picture is read and prepared as for prediction, and the network stays as it is. Raises `PictureError` for a file
    that is no picture, and `UsageError` for a network without a classifier.
    """
    _require(model, top, maps)
    pixels = open_prepared(picture, model.card.preparation)
    paths = [place.path for place in model.plan.root.children if place.role == "stage"]
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        found = model.features(_to_input(model, pixels), paths)
        answers = _answers(model, found[paths[-1]], top)
    return Inside(pixels, answers, tuple(_stage(path, found[path][0], maps) for path in paths))


def _require(model: Network, top: int, maps: int) -> None:
    if not model.card.labels:
        what = "this network has no classifier, so there is no answer to find evidence for"
        fix = "look into a network that ends in one; rk.embed gives what this one hands on"
        raise UsageError(what, where=model.card.name, fix=fix)
    for name, count in (("top", top), ("maps", maps)):
        if count < 1:
            raise UsageError(f"{count} of them leave nothing to show", where=name, fix=f"{name} of 1 or more")


def _to_input(model: Network, pixels: Pixels) -> Tensor:
    """One picture as a batch, N C H W, where the network is and in its type of number."""
    scale, shift = scale_and_shift(model.card.preparation)
    return torch.from_numpy(pixels * scale + shift).permute(2, 0, 1)[None].to(next(model.parameters()))


@torch.enable_grad()
def _answers(model: Network, last: Tensor, top: int) -> tuple[Answer, ...]:
    if last.ndim != 4:
        what = f"the last stage hands on {last.ndim} dimensions, and evidence is found on a map of 4 (N C H W)"
        raise UsageError(what, where=model.card.name, fix="let the last stage hand on a map, and the head average it")
    last = last.detach().requires_grad_()
    logits = _head(model, last)[0].float()
    best = logits.detach().softmax(0).topk(min(top, len(logits)))
    told = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return tuple(Answer(model.card.labels[i], share, _evidence(logits[i], last)) for share, i in told)


def _head(model: Network, last: Tensor) -> Tensor:
    """The logits from the last map; gradients run to the map alone, through copies of the head's parameters.

    The copies also serve a model that was made in inference mode, whose own tensors autograd refuses.
    """
    head = model.get_submodule("head")
    copies = {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
    answer: Tensor = functional_call(head, copies, last)
    return answer


def _evidence(logit: Tensor, last: Tensor) -> Map:
    """The formula of the paper (equations 1 and 2)."""
    (gradient,) = torch.autograd.grad(logit, last, retain_graph=True)
    weights = gradient.mean((2, 3), keepdim=True)
    return _array((weights * last).sum(1)[0].relu())


def _stage(path: str, output: Tensor, maps: int) -> Stage:
    """Of the output of a stage, C H W."""
    best = output.float().mean((1, 2)).topk(min(maps, len(output)))
    told = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Stage(path, len(output), tuple(Channel(i, strength, _array(output[i])) for i, strength in told))


def _array(values: Tensor) -> Map:
    """A copy, which keeps nothing else of what was computed."""
    array: Map = values.detach().float().cpu().numpy().copy()
    return array
