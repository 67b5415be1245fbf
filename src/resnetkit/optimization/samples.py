"""Which pictures engines are measured with: some to find the range of each map for int8, others to compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Card, Preparation
from resnetkit.data.bad_files import Skip, SkippedFiles
from resnetkit.data.dataset import Dataset, ImageFiles, Images, Indices
from resnetkit.data.loader import ImageLoader
from resnetkit.data.open import open_dataset
from resnetkit.engines.calibration import N_CALIBRATION_IMAGES
from resnetkit.errors import DataError
from resnetkit.evaluation.metrics import choose_split, match_classes
from resnetkit.formatting import pluralize
from resnetkit.images.decode import SUFFIXES, find_images, is_folder, list_entries
from resnetkit.images.prepare import Pixels
from resnetkit.prediction.inputs import expand_inputs
from resnetkit.runtime.progress import ProgressCallback

_MAX_COMPARED = 10_000
_MAX_BYTES = 2**28
_N_SYNTHETIC = 16


@dataclass(frozen=True)
class EngineSamples:
    """``checked`` pictures with their ``names``, their classes (``truth``) where these are known, and those that
    ``ranges`` are measured with, none where there are no pictures. They are in no order, so that any first part of them
    will do. ``source`` says where they are from.
    """

    images: Pixels
    names: Sequence[str]
    source: str
    labels: NDArray[np.int64] | None = None
    calibration_images: Pixels | None = None

    def describe(self, n: int) -> str:
        """What the first ``n`` of them are."""
        amount = f"{n:,} of {pluralize(len(self.names), 'picture')}" if n < len(self.names) else pluralize(n, "picture")
        return f"{amount} {self.source}" + f", with their classes (one is {100 / n:.2g} points)" * (
            self.labels is not None
        )


def make_synthetic_samples(preparation: Preparation) -> EngineSamples:
    """Pictures that are drawn: enough to see that an engine computes the same, and not what photographs do to it."""
    height, width = preparation.crop
    rng = np.random.default_rng(0)
    pixels = [_draw_image(rng, height, width, len(preparation.mean)) for _ in range(_N_SYNTHETIC)]
    return EngineSamples(np.stack(pixels), [f"made picture {i + 1}" for i in range(_N_SYNTHETIC)], "that are made here")


def _draw_image(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """Soft patches of colour with some grain."""
    coarse = rng.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(channels)
    ]
    smooth = np.stack([np.asarray(plane) for plane in planes], 2)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def load_samples(
    source: str | Path, card: Card, is_trained: bool, on_progress: ProgressCallback | None = None
) -> EngineSamples:
    """From data. What was held out in training is checked, and ranges come from what was not; classes are compared
    where the network is ``trained``. A folder with pictures of no class will do, too.
    """
    data, split = _open_source(source, card, on_progress)
    calibration, comparison = _select_subsets(data, split, _compute_max_images(card.preparation))
    skipped = SkippedFiles(data, Skip(1.0))
    loaders = [
        ImageLoader(subset, card.preparation, skipped, on_progress=on_progress) for subset in (calibration, comparison)
    ]
    calibration_images, _ = loaders[0].load_eval_pixels(np.arange(len(calibration)))
    images, readable = loaders[1].load_eval_pixels(np.arange(len(comparison)))
    if not len(readable) or not len(calibration_images):
        raise DataError("too few of these pictures can be read", where=str(source), fix=f"resnetkit check {source}")
    labels = _map_labels(data, card, comparison, readable) if is_trained and data.classes else None
    names = [comparison.names[i] for i in readable]
    description = f"of {data.name}" + f", part {split}" * bool(data.classes)
    return EngineSamples(images.numpy(), names, description, labels, calibration_images.numpy())


def _open_source(source: str | Path, card: Card, on_progress: ProgressCallback | None) -> tuple[Dataset, str]:
    """The data and the part to check with."""
    folder = Path(source)
    if folder.is_dir() and _has_only_images(folder):
        paths = tuple(Path(item.name) for item in expand_inputs([folder]))
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        return Dataset(str(source), (), {"all": ImageFiles(paths, names, np.zeros(len(paths), np.int64))}), "all"
    return choose_split(open_dataset(source, on_progress), card, None)


def _has_only_images(folder: Path) -> bool:
    """Pictures of no class: none lies in a folder below."""
    entries = list_entries(folder)
    has_images = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    return has_images and not any(next(find_images(Path(e.path)), None) for e in entries if is_folder(e))


def _select_subsets(data: Dataset, split: str, max_images: int) -> tuple[Images, Images]:
    """(for ranges, to check); of one part alone the two share no picture, unless there is but one."""
    comparison = data.splits[split]
    if "train" in data.splits and split != "train":
        return _sample_images(data.splits["train"], N_CALIBRATION_IMAGES), _sample_images(comparison, max_images)
    indices = _shuffle_indices(len(comparison))
    n_calibration = min(N_CALIBRATION_IMAGES, max(1, len(indices) // 2))
    return comparison.take(indices[:n_calibration]), comparison.take(
        indices[n_calibration : n_calibration + max_images] if len(indices) > 1 else indices
    )


def _sample_images(dataset: Images, max_images: int) -> Images:
    """At most so many of them, from all over."""
    return dataset.take(_shuffle_indices(len(dataset))[:max_images])


def _shuffle_indices(n: int) -> Indices:
    """Their numbers in an order that is the same each time."""
    return np.random.default_rng(0).permutation(n)


def _compute_max_images(preparation: Preparation) -> int:
    """How many pictures are compared: as many as fit, as they are kept in memory."""
    return max(1, min(_MAX_COMPARED, _MAX_BYTES // (int(np.prod(preparation.crop)) * len(preparation.mean))))


def _map_labels(data: Dataset, card: Card, comparison: Images, readable: Indices) -> NDArray[np.int64]:
    class_indices = match_classes(data.classes, card.classes or len(card.labels)).numpy()
    return np.asarray(class_indices[comparison.labels[readable]])
