"""From a trained classifier to a segmentation of grey pictures: six lines of surgery, then a small training.

python examples/segmentation.py [MODEL] [--epochs N] [--steps N]

MODEL is a run folder, a model folder or a weights file of a network with four stages, such as resnet18 or resnet50.
Without one, a resnet18 is first trained for some seconds to tell suns from moons. The pictures that are segmented are
drawn: bright discs and dark squares on a slope with noise. Each pixel is nothing, disc or square.
"""

import argparse
import inspect
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resnetkit as rk
import two_classes

CLASSES = ("nothing", "disc", "square")
SIDE, BATCH, HELD_OUT = 64, 8, 32


def classifier(folder: Path, epochs: int, count: int = 60):
    """A network that has learnt to tell suns from moons, from ``count`` pictures of each."""
    pictures = two_classes.make(folder / "sky", count)
    settings = {"input_size": [3, SIDE, SIDE]}
    return rk.load(rk.train(pictures, "resnet18", out=folder / "run", epochs=epochs, settings=settings).path)


def backbone(model):
    """Six edits, each with its report."""
    model, grey = rk.surgery.input_channels(model, 1)
    model, dense = rk.surgery.dilate(model, output_stride=8)
    model, maps = rk.surgery.features(model, stages=(2, 4))
    model, norms = rk.surgery.freeze_norms(model)
    model, early = rk.surgery.freeze(model, ("stem", 1))
    model, spare = rk.surgery.checkpoint(model, stages=4)
    return model, [grey, dense, maps, norms, early, spare]


def lines() -> list[str]:
    """The six, as they are written above."""
    return [line.strip() for line in inspect.getsource(backbone).splitlines() if "rk.surgery." in line]


class Segmenter(nn.Module):
    """A 1x1 convolution on the maps of a backbone, all of one size; N 1 H W -> N classes H W."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Conv2d(sum(place.output[0] for place in body.feature_info.values()), len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat(list(self.body(x).values()), 1)
        return F.interpolate(self.head(maps), x.shape[-2:], mode="bilinear", align_corners=False)


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N 1 H W, 0 to 1) and the class of each pixel (N H W)."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pictures, truth = np.empty((count, SIDE, SIDE)), np.zeros((count, SIDE, SIDE), dtype=np.int64)
    for picture, classes in zip(pictures, truth, strict=True):
        picture[:] = 0.5 + draw.uniform(-0.2, 0.2) * (columns / SIDE - 0.5) + draw.normal(0, 0.08, (SIDE, SIDE))
        for which in draw.permutation([1, 1, 2, 2]):
            y, x, r = *draw.integers(0, SIDE, 2), draw.integers(5, 13)
            away = np.abs(rows - y), np.abs(columns - x)
            inside = np.hypot(*away) < r if which == 1 else np.maximum(*away) < r
            picture[inside] += 0.3 if which == 1 else -0.3
            classes[inside] = which
    return torch.from_numpy(pictures.clip(0, 1)).float()[:, None], torch.from_numpy(truth)


def prepared(pictures: Tensor, card) -> Tensor:
    """As the network is used to seeing them."""
    (mean,), (std,) = card.preparation.mean, card.preparation.std
    return (pictures - mean) / std


def overlap(model: Segmenter, x: Tensor, truth: Tensor) -> list[float]:
    """Intersection over union of each class."""
    with torch.inference_mode():
        found = model.eval()(x).argmax(1)
    pairs = [(found == i, truth == i) for i in range(len(CLASSES))]
    return [float((a & b).sum() / (a | b).sum().clamp_min(1)) for a, b in pairs]


def learn(model: Segmenter, steps: int) -> list[float]:
    """The loss of each step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-4)
    losses = []
    model.train()
    for step in range(steps):
        pictures, truth = drawn(BATCH, seed=1000 + step)
        loss = F.cross_entropy(model(prepared(pictures, model.body.card)), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def told(shares: list[float]) -> str:
    each = ", ".join(f"{name} {share:.2f}" for name, share in zip(CLASSES, shares, strict=True))
    return f"{sum(shares) / len(shares):.2f} ({each})"


def example(model, steps: int) -> dict:
    """Everything behind the classifier; what it prints, as numbers."""
    body, reports = backbone(model)
    for line, report in zip(lines(), reports, strict=True):
        print(f">>> {line}\n{report}\n")
    torch.manual_seed(0)
    segmenter, (pictures, truth) = Segmenter(body), drawn(HELD_OUT, seed=0)
    x = prepared(pictures, body.card)
    before = overlap(segmenter, x, truth)
    losses = learn(segmenter, steps)
    after = overlap(segmenter, x, truth)
    if steps:
        print(f"intersection over union before: {told(before)}")
        print(f"after {steps} steps of {BATCH} pictures: {told(after)}")
    return {"reports": reports, "before": before, "after": after, "losses": losses}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--epochs", type=int, default=8, help="of the classifier")
    parser.add_argument("--steps", type=int, default=60, help="of the segmentation")
    options = parser.parse_args()
    try:
        if options.model:
            example(rk.load(options.model), options.steps)
        else:
            with tempfile.TemporaryDirectory() as folder:
                example(classifier(Path(folder), options.epochs), options.steps)
    except rk.ResnetkitError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
