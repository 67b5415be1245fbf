"""The images that `optimize` uses: some for int8 calibration, others to compare predictions on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Card, Preparation
from resnetkit.data.bad_files import Skip, SkippedFiles
from resnetkit.data.dataset import Dataset, ImageFiles, Images, Indices
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.engines.base import Logits
from resnetkit.engines.calibration import N_CALIBRATION_IMAGES
from resnetkit.errors import DataError
from resnetkit.evaluation.metrics import choose_split, match_classes
from resnetkit.formatting import pluralize
from resnetkit.images.decode import SUFFIXES, find_images, is_folder, list_entries
from resnetkit.images.prepare import Pixels
from resnetkit.network.inference import inference
from resnetkit.network.layers import NetworkModule
from resnetkit.prediction.inputs import expand_inputs
from resnetkit.runtime.progress import ProgressCallback

_MAX_COMPARED = 10_000
_MAX_BYTES = 2**28  # of the compared images, which stay in memory
_N_SYNTHETIC = 16
_REFERENCE_BATCH_SIZE = 32


@dataclass(frozen=True)
class EngineSamples:
    """Images for the comparison with fp32 and for int8 calibration, in random order.

    ``images`` (N, H, W, C) have ``names`` and, if known, ``labels`` (N,). ``calibration_images`` is None for synthetic
    images. ``source`` describes their origin.
    """

    images: Pixels
    names: Sequence[str]
    source: str
    labels: NDArray[np.int64] | None = None
    calibration_images: Pixels | None = None

    def describe(self, n: int) -> str:
        """Describe the first ``n`` images in a phrase."""
        total = pluralize(len(self.names), "image")
        amount = f"{n:,} of {total}" if n < len(self.names) else total
        labels = "" if self.labels is None else f", with labels (one image is {100 / n:.2g} points)"
        return f"{amount} {self.source}{labels}"


def make_synthetic_samples(preparation: Preparation) -> EngineSamples:
    """Make random images; they show that an engine computes the same, but not its error on photographs."""
    height, width = preparation.crop
    rng = np.random.default_rng(0)
    pixels = [_draw_image(rng, height, width, len(preparation.mean)) for _ in range(_N_SYNTHETIC)]
    names = [f"synthetic image {i + 1}" for i in range(_N_SYNTHETIC)]
    return EngineSamples(np.stack(pixels), names, "(synthetic)")


def _draw_image(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """Return smooth random colors with some noise."""
    coarse = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    planes = (
        Image.fromarray(coarse[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(channels)
    )
    smooth = np.stack([np.asarray(plane) for plane in planes], 2)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def load_samples(
    source: str | Path, card: Card, is_trained: bool, on_progress: ProgressCallback | None = None
) -> EngineSamples:
    """Load images from a dataset, or from a folder of images without classes.

    Predictions are compared on images that were held out in training, and calibration uses the others.

    Args:
        source: the dataset or folder.
        card: the model's card.
        is_trained: whether the network is trained; otherwise labels are not used.
        on_progress: called with the number of images read, and of all images.

    Raises:
        DataError: too few images are readable, or the data has classes that the model does not have.
    """
    dataset, split = _open_source(source, card, on_progress)
    calibration, comparison = _select_subsets(dataset, split, _compute_max_images(card.preparation))
    skipped = SkippedFiles(dataset, Skip(1.0))
    (calibration_images, _), (images, readable) = (
        ImageLoader(subset, card.preparation, skipped, on_progress=on_progress).load_eval_pixels(np.arange(len(subset)))
        for subset in (calibration, comparison)
    )
    if not len(readable) or not len(calibration_images):
        raise DataError("too few readable images", where=str(source), fix=f"resnetkit check {source}")
    labels = _map_labels(dataset, card, comparison, readable) if is_trained and dataset.classes else None
    names = [comparison.names[i] for i in readable]
    description = f"of {dataset.name}{f', split {split}' if dataset.classes else ''}"
    return EngineSamples(images.numpy(), names, description, labels, calibration_images.numpy())


def _open_source(source: str | Path, card: Card, on_progress: ProgressCallback | None) -> tuple[Dataset, str]:
    """Return the dataset and the split to compare predictions on."""
    folder = Path(source)
    if folder.is_dir() and _has_only_images(folder):
        paths = tuple(Path(item.name) for item in expand_inputs([folder]))
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        return Dataset(str(source), (), {"all": ImageFiles(paths, names, np.zeros(len(paths), np.int64))}), "all"
    return choose_split(open_dataset(source, on_progress), card, None)[:2]


def _has_only_images(folder: Path) -> bool:
    """Return whether the folder has images and none of its subfolders has any."""
    entries = list_entries(folder)
    has_images = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    return has_images and not any(next(find_images(Path(e.path)), None) for e in entries if is_folder(e))


def _select_subsets(dataset: Dataset, split: str, max_images: int) -> tuple[Images, Images]:
    """Return the images for calibration and for comparison; disjoint unless there is only one."""
    comparison = dataset.splits[split]
    if "train" in dataset.splits and split != "train":
        return _sample_images(dataset.splits["train"], N_CALIBRATION_IMAGES), _sample_images(comparison, max_images)
    n_calibration = min(N_CALIBRATION_IMAGES, max(1, len(comparison) // 2))
    first = n_calibration if len(comparison) > 1 else 0
    return _sample_images(comparison, n_calibration), _sample_images(comparison, max_images, first)


def _sample_images(images: Images, max_images: int, first: int = 0) -> Images:
    """Return images from position ``first`` of an order that is random, but the same in every run."""
    return images.take(np.random.default_rng(0).permutation(len(images))[first : first + max_images])


def _compute_max_images(preparation: Preparation) -> int:
    """Return how many images to compare at most, so that they fit into `_MAX_BYTES`."""
    return max(1, min(_MAX_COMPARED, _MAX_BYTES // (int(np.prod(preparation.crop)) * len(preparation.mean))))


def _map_labels(dataset: Dataset, card: Card, comparison: Images, readable: Indices) -> NDArray[np.int64]:
    """Return the labels as class indices of the model."""
    class_indices = match_classes(dataset.classes, card.classes or len(card.labels)).numpy()
    return np.asarray(class_indices[comparison.labels[readable]])


def compute_reference_logits(
    network: NetworkModule, images: Pixels, seconds: float, clock: Callable[[], float]
) -> Logits:
    """Compute logits in fp32 of as many images as the time allows, and at least one batch.

    Args:
        network: the network.
        images: (N, H, W, C).
        seconds: the time to start batches in.
        clock: returns the time in seconds.

    Returns:
        (n, K), n at most N.
    """
    outputs, deadline = [], clock() + seconds
    with inference(network, torch.device("cpu")) as infer:
        for start in range(0, len(images), _REFERENCE_BATCH_SIZE):
            outputs.append(infer(torch.from_numpy(images[start : start + _REFERENCE_BATCH_SIZE])).numpy())
            if clock() > deadline:
                break
    return np.concatenate(outputs)
