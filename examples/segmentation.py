"""Turn a trained classifier into a segmentation network: six lines of surgery, then a short training.

python examples/segmentation.py [MODEL] [--epochs N] [--steps N]

MODEL is a run folder, a model folder or a weights file of a network with four stages, such as resnet18 or resnet50.
Without MODEL, the example first trains a resnet18 for some seconds to tell suns from moons. It then draws grayscale
images to segment: bright discs and dark squares on a noisy slope. Each pixel is background, disc or square.
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

CLASSES = ("background", "disc", "square")
SIDE, BATCH, HELD_OUT = 64, 8, 32


def train_classifier(folder: Path, epochs: int, count: int = 60):
    """Train a network to tell suns from moons, on ``count`` images of each."""
    data = two_classes.write_dataset(folder / "sky", count)
    settings = {"input_size": [3, SIDE, SIDE]}
    return rk.load(rk.train(data, "resnet18", out=folder / "run", epochs=epochs, settings=settings).path)


def make_backbone(model):
    """Apply six edits; return the backbone and the report of each edit."""
    model, gray = rk.surgery.input_channels(model, 1)
    model, dense = rk.surgery.dilate(model, output_stride=8)
    model, maps = rk.surgery.features(model, stages=(2, 4))
    model, norms = rk.surgery.freeze_norms(model)
    model, early = rk.surgery.freeze(model, ("stem", 1))
    model, memory = rk.surgery.checkpoint(model, stages=4)
    return model, [gray, dense, maps, norms, early, memory]


def list_edits() -> list[str]:
    """List the source lines of the six edits."""
    return [line.strip() for line in inspect.getsource(make_backbone).splitlines() if "rk.surgery." in line]


class Segmenter(nn.Module):
    """A 1x1 convolution on the feature maps of a backbone, all of one size; (N, 1, H, W) -> (N, classes, H, W)."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Conv2d(sum(feature.output[0] for feature in body.feature_info.values()), len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat(list(self.body(x).values()), 1)
        return F.interpolate(self.head(maps), x.shape[-2:], mode="bilinear", align_corners=False)


def draw_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images (N, 1, H, W; 0 to 1) and the class of each pixel (N, H, W)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, truth = np.empty((count, SIDE, SIDE)), np.zeros((count, SIDE, SIDE), dtype=np.int64)
    for image, labels in zip(images, truth, strict=True):
        image[:] = 0.5 + rng.uniform(-0.2, 0.2) * (columns / SIDE - 0.5) + rng.normal(0, 0.08, (SIDE, SIDE))
        for label in rng.permutation([1, 1, 2, 2]):
            y, x, radius = *rng.integers(0, SIDE, 2), rng.integers(5, 13)
            distances = np.abs(rows - y), np.abs(columns - x)
            inside = np.hypot(*distances) < radius if label == 1 else np.maximum(*distances) < radius
            image[inside] += 0.3 if label == 1 else -0.3
            labels[inside] = label
    return torch.from_numpy(images.clip(0, 1)).float()[:, None], torch.from_numpy(truth)


def normalize(images: Tensor, card) -> Tensor:
    """Normalize images with the statistics of the model."""
    (mean,), (std,) = card.preparation.mean, card.preparation.std
    return (images - mean) / std


def compute_iou(model: Segmenter, x: Tensor, truth: Tensor) -> list[float]:
    """Compute the intersection over union of each class."""
    with torch.inference_mode():
        predicted = model.eval()(x).argmax(1)
    pairs = [(predicted == i, truth == i) for i in range(len(CLASSES))]
    return [float((a & b).sum() / (a | b).sum().clamp_min(1)) for a, b in pairs]


def train(model: Segmenter, steps: int) -> list[float]:
    """Train the segmenter; return the loss of each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-4)
    losses = []
    model.train()
    for step in range(steps):
        images, truth = draw_images(BATCH, seed=1000 + step)
        loss = F.cross_entropy(model(normalize(images, model.body.card)), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def format_iou(values: list[float]) -> str:
    classes = ", ".join(f"{name} {value:.2f}" for name, value in zip(CLASSES, values, strict=True))
    return f"{sum(values) / len(values):.2f} ({classes})"


def run_example(model, steps: int) -> dict:
    """Edit and train the model; return the printed numbers."""
    body, reports = make_backbone(model)
    for line, report in zip(list_edits(), reports, strict=True):
        print(f">>> {line}\n{report}\n")
    torch.manual_seed(0)
    segmenter, (images, truth) = Segmenter(body), draw_images(HELD_OUT, seed=0)
    x = normalize(images, body.card)
    before = compute_iou(segmenter, x, truth)
    losses = train(segmenter, steps)
    after = compute_iou(segmenter, x, truth)
    if steps:
        print(f"intersection over union before: {format_iou(before)}")
        print(f"after {steps} steps of {BATCH} images: {format_iou(after)}")
    return {"reports": reports, "before": before, "after": after, "losses": losses}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of the classifier")
    parser.add_argument("--steps", type=int, default=60, help="steps of the segmentation")
    options = parser.parse_args()
    try:
        if options.model:
            run_example(rk.load(options.model), options.steps)
        else:
            with tempfile.TemporaryDirectory() as folder:
                run_example(train_classifier(Path(folder), options.epochs), options.steps)
    except rk.ResnetkitError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
