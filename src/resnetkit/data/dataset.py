"""Images with class labels, and their division into splits.

The ``val`` split selects the best epoch; the ``test`` split is only used for the final measurement. If the data have no
splits, a fifth of the images becomes ``test``. If there is no ``val``, a tenth of the training images becomes ``val``.
The choice depends only on the seed and on the names of the images.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.class_names import check_classes, find_spellings
from resnetkit.data.readers.row_index import ImageRows, concatenate_rows
from resnetkit.data.readers.row_index import Indices as Indices  # noqa: PLC0414  defined there, public here
from resnetkit.errors import DataError, UsageError
from resnetkit.formatting import join_names
from resnetkit.images.decode import decode

SPLIT_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
ALIAS_TO_SPLIT = {alias: split for split, aliases in SPLIT_ALIASES.items() for alias in aliases}
COPY_AGAIN = "copy or download it again"
_TEST_FRACTION, _VAL_FRACTION = 0.2, 0.1


@dataclass(frozen=True)
class ImageFiles:
    """N images in files, with their names relative to the dataset and their labels, an int64 array (N,)."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.paths)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """Decode an image.

        Args:
            i: The index of the image.
            color_mode: ``RGB`` or ``L``.
            shorter_side: The size to which the caller resizes, as in `decode`.

        Raises:
            ImageError: the image cannot be read.
        """
        return decode(self.paths[i], color_mode, shorter_side)

    def format_location(self, i: int) -> str:
        """Return the path of image ``i``, for messages."""
        return str(self.paths[i])

    def take(self, indices: Indices) -> ImageFiles:
        """Select images by index, in that order."""
        selected = indices.tolist()
        paths, names = tuple(self.paths[i] for i in selected), tuple(self.names[i] for i in selected)
        return ImageFiles(paths, names, self.labels[indices])


@dataclass(frozen=True)
class ImageArrays:
    """N images in memory: 8-bit pixels (N, H, W) for grayscale or (N, H, W, 3), names, and int64 labels (N,)."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.pixels)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """Convert an image to Pillow's format.

        Args:
            i: The index of the image.
            color_mode: ``RGB`` or ``L``.
            shorter_side: Unused; the image is returned at full size.
        """
        return Image.fromarray(self.pixels[i]).convert(color_mode)

    def format_location(self, i: int) -> str:
        """Return the name of image ``i``, for messages."""
        return self.names[i]

    def take(self, indices: Indices) -> ImageArrays:
        """Select images by index, in that order."""
        return ImageArrays(self.pixels[indices], tuple(self.names[i] for i in indices.tolist()), self.labels[indices])


Images = ImageFiles | ImageArrays | ImageRows


@dataclass(frozen=True)
class Dataset:
    """The images of each split, and what their labels mean.

    Attributes:
        name: The source as the user wrote it.
        classes: The class names; label ``k`` means ``classes[k]``.
        splits: The images of ``train``, ``val`` and ``test`` in this order, or of ``all`` if the data has no splits.
        notes: Sentences that the user should read, such as skipped files. None of them is an error.
        findings: Kind of problem -> its occurrences, as far as opening the data finds them, such as skipped files.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Images]
    notes: tuple[str, ...] = ()
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def train_split(self) -> Images:
        """The images to train on: those of ``train``, or of ``all``."""
        return next(iter(self.splits.values()))

    def find_missing_classes(self) -> dict[str, list[str]]:
        """Find the classes without an image in each split; splits with all classes are omitted."""
        labels = np.arange(len(self.classes))
        missing = {split: np.setdiff1d(labels, images.labels) for split, images in self.splits.items()}
        return {split: [self.classes[i] for i in indices] for split, indices in missing.items() if len(indices)}

    def get_split(self, name: str) -> Images:
        """Return the images of a split; ``all`` joins every split.

        Raises:
            UsageError: no split has this name.
        """
        if name == "all" and name not in self.splits:
            return concatenate_images(tuple(self.splits.values()))
        if name not in self.splits:
            fix = f"one of {', '.join(self.splits)}"
            raise UsageError(f"the data has no split {name!r}", where=self.name, fix=fix)
        return self.splits[name]


def concatenate_images(splits: Sequence[Images]) -> Images:
    """Join several splits of one dataset."""
    rows = [split for split in splits if isinstance(split, ImageRows)]
    if rows:
        return concatenate_rows(rows)
    names = tuple(name for split in splits for name in split.names)
    labels = np.concatenate([split.labels for split in splits])
    arrays = [split.pixels for split in splits if isinstance(split, ImageArrays)]
    if arrays:
        return ImageArrays(np.concatenate(arrays), names, labels)
    paths = (path for split in splits if isinstance(split, ImageFiles) for path in split.paths)
    return ImageFiles(tuple(paths), names, labels)


# ------------------------------------------------------------------------------------------------------------- classes


def merge_spellings(dataset: Dataset) -> Dataset:
    """Merge the classes whose names mean the same, under the shortest name; a note lists them."""
    groups = find_spellings(dataset.classes)
    first_spelling = {name: group[0] for group in groups for name in group}
    classes = tuple(name for name in dataset.classes if first_spelling.get(name, name) == name)
    label_of_class = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of_class[first_spelling.get(name, name)] for name in dataset.classes], np.int64)
    splits = {split: replace(images, labels=labels[images.labels]) for split, images in dataset.splits.items()}
    notes = [f"merged classes: {join_names([' = '.join(map(repr, group)) for group in groups])}"] if groups else []
    return replace(dataset, classes=classes, splits=splits, notes=(*dataset.notes, *notes))


def check_split_classes(dataset: Dataset) -> None:
    """Check that ``train`` has every class of the other splits; raises `DataError` like `check_classes`."""
    classes = np.array(dataset.classes, dtype=object)
    names = {split: classes[np.unique(images.labels)].tolist() for split, images in dataset.splits.items()}
    check_classes(names, dataset.name)


# -------------------------------------------------------------------------------------------------------------- splits


def split_dataset(dataset: Dataset, seed: int) -> Dataset:
    """Divide a dataset into ``train``, ``val`` and ``test`` as far as it has no splits of its own.

    Args:
        dataset: The dataset.
        seed: The seed of the random choice.

    Raises:
        DataError: there is no ``train`` split, or there are too few images.
    """
    splits = dict(dataset.splits)
    if "all" in splits:
        splits["train"], splits["test"] = _hold_out(splits.pop("all"), _TEST_FRACTION, f"{seed}/test")
    if "train" not in splits:
        raise DataError("the data have no train split", where=dataset.name, fix="add a folder train/CLASS/")
    if "val" not in splits:
        splits["train"], splits["val"] = _hold_out(splits["train"], _VAL_FRACTION, f"{seed}/val")
    if not all(map(len, splits.values())) or len(splits["train"]) < 2:
        raise DataError(f"too few images to split: {len(dataset.train_split)}", where=dataset.name, fix="add images")
    return replace(dataset, splits={split: splits[split] for split in SPLIT_ALIASES if split in splits})


def _hold_out(images: Images, fraction: float, seed: str) -> tuple[Images, Images]:
    """Return (rest, held out): a fraction of each class, by the hashes of names; the rest keeps an image."""
    hashes = [hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest() for name in images.names]
    is_held_out = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels):
        members = sorted(np.flatnonzero(images.labels == label).tolist(), key=hashes.__getitem__)
        is_held_out[members[: max(round(fraction * len(members)), min(1, len(members) - 1))]] = True
    return images.take(np.flatnonzero(~is_held_out)), images.take(np.flatnonzero(is_held_out))
