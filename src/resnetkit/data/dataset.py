"""Pictures and their classes, and which part of them is for what.

``val`` selects the best epoch, ``test`` only measures. Of data without parts a fifth is held out as ``test``; where
``val`` is missing, a tenth of what is there for training becomes it. The draw depends on the seed and the names alone.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.readers.row_index import ImageRows, concatenate_rows
from resnetkit.errors import DataError, ImageError, UsageError
from resnetkit.images.decode import decode

Indices = NDArray[np.int64]
SPLIT_ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
ALIAS_TO_SPLIT = {alias: split for split, aliases in SPLIT_ALIASES.items() for alias in aliases}
_TEST_FRACTION, _VAL_FRACTION = 0.2, 0.1


@dataclass(frozen=True)
class ImageFiles:
    """Pictures in files, with the number of their class."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.paths)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """The ``i``-th picture, reduced where ``shorter`` allows it as in `decode`; raises `PictureError`."""
        return decode(self.paths[i], color_mode, shorter_side)

    def format_location(self, i: int) -> str:
        """Where the ``i``-th picture stands."""
        return str(self.paths[i])

    def take(self, indices: Indices) -> ImageFiles:
        """Some of them."""
        index_list = indices.tolist()
        return ImageFiles(
            tuple(self.paths[i] for i in index_list), tuple(self.names[i] for i in index_list), self.labels[indices]
        )


@dataclass(frozen=True)
class ImageArrays:
    """Pictures that are in memory already: N H W (grey) or N H W 3, 8 bits."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.pixels)

    def load_image(self, i: int, color_mode: str = "RGB", shorter_side: int = 0) -> Image.Image:
        """The ``i``-th picture, whole, as it is there already."""
        return Image.fromarray(self.pixels[i]).convert(color_mode)

    def format_location(self, i: int) -> str:
        """What the ``i``-th picture is called."""
        return self.names[i]

    def take(self, indices: Indices) -> ImageArrays:
        """Some of them."""
        return ImageArrays(self.pixels[indices], tuple(self.names[i] for i in indices.tolist()), self.labels[indices])


Images = ImageFiles | ImageArrays | ImageRows


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes, in the order of their numbers, and its parts by name.

    ``notes`` are sentences about what was found that is no fault and should be known.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, Images]
    notes: tuple[str, ...] = ()

    @property
    def train_split(self) -> Images:
        """The part to learn from: ``train``, or all."""
        return next(iter(self.splits.values()))

    def find_missing_classes(self) -> dict[str, list[str]]:
        """Part -> the classes of which it has no picture; without the parts that have all."""
        labels_of_split = {split: set(np.unique(images.labels).tolist()) for split, images in self.splits.items()}
        missing = {
            split: [name for i, name in enumerate(self.classes) if i not in labels]
            for split, labels in labels_of_split.items()
        }
        return {split: names for split, names in missing.items() if names}

    def get_split(self, name: str) -> Images:
        """A part, or ``all`` of them; raises `UsageError` where there is none of this name."""
        if name == "all" and name not in self.splits:
            return concatenate_images(tuple(self.splits.values()))
        if name not in self.splits:
            raise UsageError(f"there is no part {name!r} here", where=self.name, fix="one of " + ", ".join(self.splits))
        return self.splits[name]


def concatenate_images(splits: Sequence[Images]) -> Images:
    """Several parts of one data set as one."""
    rows = [split for split in splits if isinstance(split, ImageRows)]
    if rows:
        return concatenate_rows(rows)
    names = tuple(name for split in splits for name in split.names)
    labels = np.concatenate([split.labels for split in splits])
    arrays = [split.pixels for split in splits if isinstance(split, ImageArrays)]
    if arrays:
        return ImageArrays(np.concatenate(arrays), names, labels)
    return ImageFiles(
        tuple(path for split in splits if isinstance(split, ImageFiles) for path in split.paths), names, labels
    )


def is_text(name: str) -> bool:
    """Whether a class may be called so: it goes into cards, tables and pages."""
    return name.isprintable() and not any("\ud800" <= character <= "\udfff" for character in name)


def join_names(names: Sequence[str], limit: int = 5) -> str:
    """``a, b, c and 7 more``."""
    return ", ".join(names[:limit]) + f" and {len(names) - limit:,} more" * (len(names) > limit)


def split_dataset(dataset: Dataset, seed: int) -> Dataset:
    """``train``, ``val`` and, where there are enough folders or one folder to draw from, ``test``."""
    splits = dict(dataset.splits)
    if "all" in splits:
        splits["train"], splits["test"] = _hold_out(splits.pop("all"), _TEST_FRACTION, f"{seed}/test")
    if "train" not in splits:
        raise DataError("there is no train folder beside the others", where=dataset.name, fix="name one: train/CLASS/")
    if "val" not in splits:
        splits["train"], splits["val"] = _hold_out(splits["train"], _VAL_FRACTION, f"{seed}/val")
    empty = [split for split in splits if not len(splits[split])]
    if empty or len(splits["train"]) < 2:
        what = "there are too few pictures to hold some out"
        raise DataError(what, where=dataset.name, fix=f"add pictures: {len(dataset.train_split)} are too few")
    return replace(dataset, splits={split: splits[split] for split in SPLIT_ALIASES if split in splits})


def compute_fingerprint(dataset: Dataset) -> str:
    """A hash of the names of all pictures and of their parts: the same data, wherever it lies."""
    digest = hashlib.blake2b(digest_size=16)
    for split, images in sorted(dataset.splits.items()):
        for name, label in zip(images.names, images.labels.tolist(), strict=True):
            digest.update(f"{split}/{label}/{name}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _hold_out(images: Images, fraction: float, seed: str) -> tuple[Images, Images]:
    """(rest, drawn): of each class the ``share`` whose names hash lowest; every class keeps one picture at least."""
    hashes = [hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest() for name in images.names]
    held_out: list[int] = []
    for label in np.unique(images.labels):
        members = sorted(np.flatnonzero(images.labels == label).tolist(), key=hashes.__getitem__)
        count = max(round(fraction * len(members)), min(1, len(members) - 1))
        held_out += members[:count]
    mask = np.zeros(len(images), dtype=bool)
    mask[held_out] = True
    return images.take(np.flatnonzero(~mask)), images.take(np.flatnonzero(mask))


# ------------------------------------------------------------------------------------------------------------- leaks


def find_leaks(dataset: Dataset) -> list[tuple[str, str]]:
    """(picture, its twin in another part): files of the same bytes, or arrays of the same pixels.

    Only files whose size occurs in several parts are read, so that large photographs cost next to nothing.
    """
    groups: dict[tuple[int, bytes], list[tuple[str, str]]] = defaultdict(list)
    for split, i, size in _find_shared_sizes(dataset):
        images = dataset.splits[split]
        groups[size, hash_content(images, i)].append((split, images.format_location(i)))
    return [
        (members[0][1], location)
        for members in groups.values()
        for split, location in members
        if split != members[0][0]
    ]


def _find_shared_sizes(dataset: Dataset) -> list[tuple[str, int, int]]:
    """(part, number, size) of every picture whose size in bytes is found in more than one part."""
    entries = [
        (split, i, _get_byte_size(images, i)) for split, images in dataset.splits.items() for i in range(len(images))
    ]
    splits_of_size: dict[int, set[str]] = defaultdict(set)
    for split, _, size in entries:
        splits_of_size[size].add(split)
    return [entry for entry in entries if entry[2] >= 0 and len(splits_of_size[entry[2]]) > 1]


def _get_byte_size(images: Images, i: int) -> int:
    """In bytes; -1 for a file that cannot be asked, which whoever decodes it will tell."""
    if isinstance(images, ImageArrays):
        return int(images.pixels[i].nbytes)
    if isinstance(images, ImageRows):
        return images.get_byte_size(i)
    try:
        status = images.paths[i].stat()
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def hash_content(images: Images, i: int) -> bytes:
    """Of the bytes of a file or a row, or the pixels of an array."""
    if isinstance(images, ImageArrays):
        return hashlib.blake2b(np.ascontiguousarray(images.pixels[i]).data, digest_size=16).digest()
    try:
        if isinstance(images, ImageRows):
            return hashlib.blake2b(images.read_content(i)).digest()
        with images.paths[i].open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, ImageError):  # what cannot be read is like nothing else
        return images.format_location(i).encode("utf-8", "surrogateescape")
