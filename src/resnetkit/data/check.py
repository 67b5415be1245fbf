"""Check a dataset before training: every image is decoded once, and nothing is changed.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.dataset import Dataset, Images, hash_content
from resnetkit.data.open import open_dataset
from resnetkit.errors import ImageError
from resnetkit.formatting import join_names
from resnetkit.images.decode import DEEP_DIGEST, DEEP_LEVELS, try_read
from resnetkit.runtime.progress import ProgressCallback

_MAX_IMBALANCE = 10  # largest class size divided by the smallest
_CHUNK_SIZE = 16  # images per task: submitting a task costs more than decoding a small image
_MIN_LEVELS = 32  # of an image with 16 bits, after its values are divided by 257
_MAX_ASPECT_RATIO = 4  # no preparation shows a longer image as a whole


@dataclass(frozen=True)
class ImageInfo:
    """One image; if it is unreadable, its size is 0 x 0 pixels and ``error`` holds the reason.

    ``n_levels`` is the number of gray levels that an image with 16 bits can use after conversion to 8 bits.
    """

    split: str
    index: int
    label: int
    location: str
    width: int = 0
    height: int = 0
    pixel_digest: bytes = field(default=b"", repr=False)
    n_levels: int = 256
    error: str = ""


@dataclass(frozen=True)
class DuplicateGroup:
    """Images with the same pixels; ``same_bytes`` says whether their files are equal, too."""

    images: tuple[ImageInfo, ...]
    same_bytes: bool

    @property
    def is_leak(self) -> bool:
        """Whether the images are in more than one split."""
        return len({image.split for image in self.images}) > 1

    @property
    def has_conflicting_labels(self) -> bool:
        """Whether the images have more than one label."""
        return len({image.label for image in self.images}) > 1

    def __str__(self) -> str:
        locations = " = ".join(image.location for image in self.images[:3]) + (" = ..." if self.images[3:] else "")
        return f"{locations} ({'the same file' if self.same_bytes else 'the same pixels'})"


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with a line for every occurrence."""

    kind: str
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """The number of occurrences."""
        return len(self.examples)


@dataclass(frozen=True)
class CheckResult:
    """The result of `check`: the dataset, every image, and the groups of duplicates."""

    dataset: Dataset
    images: tuple[ImageInfo, ...]
    duplicates: tuple[DuplicateGroup, ...]

    @cached_property
    def unreadable(self) -> tuple[ImageInfo, ...]:
        """The unreadable images."""
        return tuple(image for image in self.images if image.error)

    @cached_property
    def counts(self) -> dict[str, list[int]]:
        """The number of images per class, for each split."""
        counter, n_classes = Counter((image.split, image.label) for image in self.images), len(self.dataset.classes)
        return {split: [counter[split, label] for label in range(n_classes)] for split in self.dataset.splits}

    @cached_property
    def duplicates_by_kind(self) -> dict[str, list[DuplicateGroup]]:
        """The duplicates by the harm that they do; a group can be a leak and have conflicting labels."""
        groups = self.duplicates
        return {
            "leaks between splits": [group for group in groups if group.is_leak],
            "conflicting labels": [group for group in groups if group.has_conflicting_labels],
            "duplicates": [group for group in groups if not group.is_leak and not group.has_conflicting_labels],
        }

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All problems; empty if the data are sound."""
        missing_classes = self.dataset.find_missing_classes()
        examples_of_kind = {
            "unreadable images": [f"{image.location}: {image.error}" for image in self.unreadable],
            **{kind: list(map(str, groups)) for kind, groups in self.duplicates_by_kind.items()},
            "missing classes": [
                f"{split} has no images of {join_names(names)}" for split, names in missing_classes.items()
            ],
            "class imbalance": list(self._find_imbalance()),
        }
        return tuple(Finding(kind, tuple(examples)) for kind, examples in examples_of_kind.items() if examples)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Sentences that the user should read; none of them is a problem."""
        long_images = [
            image.location
            for image in self.images
            if max(image.width, image.height) > _MAX_ASPECT_RATIO * min(image.width, image.height) > 0
        ]
        dim_images = [image.location for image in self.images if image.n_levels < _MIN_LEVELS and not image.error]
        notes = list(self.dataset.notes)
        if long_images:
            notes.append(
                f"aspect ratio above {_MAX_ASPECT_RATIO}, so only the center is used: {join_names(long_images, 3)}"
            )
        if dim_images:
            kind = f"16-bit images that use fewer than {_MIN_LEVELS} of 256 levels, so that they are nearly uniform"
            notes.append(f"{len(dim_images):,} {kind}: {join_names(dim_images, 3)}; rescale their values")
        return tuple(notes)

    def summarize_sizes(self) -> tuple[tuple[str, int, int], ...]:
        """Return (name, width, height) in pixels of the smallest, the median and the largest readable image."""
        sizes = sorted(
            (image.width * image.height, image.width, image.height) for image in self.images if not image.error
        )
        positions = {"smallest": 0, "median": len(sizes) // 2, "largest": -1} if sizes else {}
        return tuple((name, *sizes[position][1:]) for name, position in positions.items())

    def _find_imbalance(self) -> Iterator[str]:
        for split, counts in self.counts.items():
            nonempty = [(n, label) for label, n in enumerate(counts) if n]
            (min_count, rarest), (max_count, most_common) = min(nonempty), max(nonempty)
            if max_count > _MAX_IMBALANCE * min_count:
                classes = self.dataset.classes
                yield f"{split}: {classes[most_common]} has {max_count:,} images, {classes[rarest]} has {min_count:,}"


def check(data: str | Path, *, on_progress: ProgressCallback | None = None) -> CheckResult:
    """Decode every image of a dataset on all cores and look for problems; nothing is written.

    Problems are unreadable images, duplicates (equal pixels after EXIF rotation, in RGB), leaks between splits,
    conflicting labels, missing classes, and class imbalance.

    Args:
        data: A folder, a table, an archive, or ``digits``, as in `open_dataset`.
        on_progress: Called with (images done, all images).
    """
    dataset = open_dataset(data, on_progress)
    positions = [(split, i) for split, images in dataset.splits.items() for i in range(len(images))]
    chunks = [positions[i : i + _CHUNK_SIZE] for i in range(0, len(positions), _CHUNK_SIZE)]
    images: list[ImageInfo] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for chunk in pool.map(
            lambda chunk: [_inspect_image(dataset.splits[split], split, i) for split, i in chunk], chunks
        ):
            images += chunk
            if on_progress:
                on_progress(len(images), len(positions))
    return CheckResult(dataset, tuple(images), tuple(_find_duplicates(dataset, images)))


def _inspect_image(images: Images, split: str, i: int) -> ImageInfo:
    location, label = images.format_location(i), int(images.labels[i])
    image = try_read(images.load_image, i)
    if isinstance(image, ImageError):
        return ImageInfo(split, i, label, location, error=image.what)
    return ImageInfo(
        split, i, label, location, image.width, image.height, _hash_pixels(image), image.info.get(DEEP_LEVELS, 256)
    )


def _hash_pixels(image: Image.Image) -> bytes:
    """Hash the size and the RGB pixels; of an image with 16 bits also its values."""
    digest = hashlib.blake2b(f"{image.size}".encode() + image.info.get(DEEP_DIGEST, b""), digest_size=16)
    digest.update(np.asarray(image.convert("RGB")).data)
    return digest.digest()


def _find_duplicates(dataset: Dataset, images: Sequence[ImageInfo]) -> Iterator[DuplicateGroup]:
    groups: dict[bytes, list[ImageInfo]] = defaultdict(list)
    for image in images:
        if not image.error:
            groups[image.pixel_digest].append(image)
    for group in groups.values():
        if len(group) > 1:
            contents = {hash_content(dataset.splits[image.split], image.index) for image in group}
            yield DuplicateGroup(tuple(group), len(contents) == 1)
