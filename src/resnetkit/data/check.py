"""Is this data fit to learn from? Every picture is decoded once; nothing is changed.

This module imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.dataset import Dataset, Images, hash_content, join_names
from resnetkit.data.open import open_dataset
from resnetkit.errors import ImageError
from resnetkit.images.decode import try_read

_MAX_IMBALANCE = 10  # times as many pictures in the largest class as in the smallest
_CHUNK_SIZE = 16  # pictures in a task, as handing over each small one costs more than decoding it
_MAX_ASPECT_RATIO = 4  # times as long as wide: what is longer is not seen whole by any network here


@dataclass(frozen=True)
class ImageInfo:
    """What one picture is like; the size is 0 x 0 where it cannot be read, and ``error`` says why."""

    split: str
    index: int
    label: int
    location: str
    width: int = 0
    height: int = 0
    pixel_digest: bytes = field(default=b"", repr=False)
    error: str = ""


@dataclass(frozen=True)
class DuplicateGroup:
    """Pictures with the same pixels; ``same_bytes`` where they are the same file, too."""

    images: tuple[ImageInfo, ...]
    same_bytes: bool

    @property
    def is_leak(self) -> bool:
        """Whether they stand in several parts."""
        return len({image.split for image in self.images}) > 1

    @property
    def has_conflicting_labels(self) -> bool:
        """Whether they stand in several classes."""
        return len({image.label for image in self.images}) > 1


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong, and every time that it was found."""

    kind: str
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """How often."""
        return len(self.examples)


@dataclass(frozen=True)
class CheckResult:
    """A data set that was looked at."""

    dataset: Dataset
    images: tuple[ImageInfo, ...]
    duplicates: tuple[DuplicateGroup, ...]

    @cached_property
    def unreadable(self) -> tuple[ImageInfo, ...]:
        """Those that cannot be decoded."""
        return tuple(image for image in self.images if image.error)

    @cached_property
    def counts(self) -> dict[str, list[int]]:
        """Part -> how many pictures each class has."""
        counter = Counter((image.split, image.label) for image in self.images)
        labels = range(len(self.dataset.classes))
        return {split: [counter[split, label] for label in labels] for split in self.dataset.splits}

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that is wrong; empty where the data are sound."""
        leaks = [group for group in self.duplicates if group.is_leak]
        conflicts = [group for group in self.duplicates if group.has_conflicting_labels]
        plain_duplicates = [
            group for group in self.duplicates if not group.is_leak and not group.has_conflicting_labels
        ]
        candidates = [
            ("unreadable", [f"{image.location}: {image.error}" for image in self.unreadable]),
            ("in several parts", [_format_duplicates(group) for group in leaks]),
            ("in several classes", [_format_duplicates(group) for group in conflicts]),
            ("duplicates", [_format_duplicates(group) for group in plain_duplicates]),
            (
                "missing classes",
                [f"{split} has no {join_names(names)}" for split, names in self.dataset.find_missing_classes().items()],
            ),
            ("uneven classes", list(self._find_imbalance())),
        ]
        return tuple(Finding(kind, tuple(examples)) for kind, examples in candidates if examples)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is no fault and should be known."""
        elongated = [
            image.location
            for image in self.images
            if max(image.width, image.height) > _MAX_ASPECT_RATIO * _get_shorter_side(image) > 0
        ]
        note = f"more than {_MAX_ASPECT_RATIO} times as long as wide, so that only the middle is seen: {join_names(elongated, 3)}"
        return (*self.dataset.notes, *[note] * bool(elongated))

    def summarize_sizes(self) -> tuple[tuple[str, int, int], ...]:
        """(smallest, middle, largest) width and height of those that can be read."""
        readable_sizes = sorted(
            (image.width * image.height, image.width, image.height) for image in self.images if not image.error
        )
        if not readable_sizes:
            return ()
        positions = (("smallest", 0), ("middle", len(readable_sizes) // 2), ("largest", -1))
        return tuple((name, readable_sizes[position][1], readable_sizes[position][2]) for name, position in positions)

    def _find_imbalance(self) -> Iterator[str]:
        for split, counts in self.counts.items():
            nonempty = [(n, label) for label, n in enumerate(counts) if n]
            (min_count, rarest), (max_count, most_common) = min(nonempty), max(nonempty)
            if max_count > _MAX_IMBALANCE * min_count:
                classes = self.dataset.classes
                yield f"{split}: {classes[most_common]} has {max_count:,} pictures, {classes[rarest]} {min_count:,}"


def check(data: str | Path, *, on_progress: Callable[[int, int], None] | None = None) -> CheckResult:
    """Look at every picture of ``data`` (a folder, a table, an archive, digits) on all cores; nothing is written.

    Finds pictures that cannot be read, the same picture twice (by its pixels, upright and in RGB, whatever the file),
    in several parts or classes, classes that a part lacks, and classes of very different sizes. ``tell`` hears
    (done, all).
    """
    dataset = open_dataset(data, on_progress)
    positions = [(split, i) for split, images in dataset.splits.items() for i in range(len(images))]
    image_infos: list[ImageInfo] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunks = [positions[i : i + _CHUNK_SIZE] for i in range(0, len(positions), _CHUNK_SIZE)]
        for chunk_infos in pool.map(
            lambda chunk: [_inspect_image(dataset.splits[split], split, i) for split, i in chunk], chunks
        ):
            image_infos += chunk_infos
            if on_progress:
                on_progress(len(image_infos), len(positions))
    return CheckResult(dataset, tuple(image_infos), tuple(_find_duplicates(dataset, image_infos)))


def _inspect_image(images: Images, split: str, i: int) -> ImageInfo:
    location, label = images.format_location(i), int(images.labels[i])
    image = try_read(images.load_image, i)
    if isinstance(image, ImageError):
        return ImageInfo(split, i, label, location, error=image.what)
    return ImageInfo(split, i, label, location, image.width, image.height, _hash_pixels(image))


def _hash_pixels(image: Image.Image) -> bytes:
    """Of the size and the pixels."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    digest.update(np.asarray(image.convert("RGB")).data)
    return digest.digest()


def _find_duplicates(dataset: Dataset, image_infos: Sequence[ImageInfo]) -> Iterator[DuplicateGroup]:
    groups: dict[bytes, list[ImageInfo]] = defaultdict(list)
    for info in image_infos:
        if not info.error:
            groups[info.pixel_digest].append(info)
    for group in groups.values():
        if len(group) > 1:
            yield DuplicateGroup(
                tuple(group), len({hash_content(dataset.splits[info.split], info.index) for info in group}) == 1
            )


def _format_duplicates(group: DuplicateGroup) -> str:
    relation = "the same file" if group.same_bytes else "the same pixels"
    return (
        f"{' = '.join(image.location for image in group.images[:3])}{' = ...' * (len(group.images) > 3)} ({relation})"
    )


def _get_shorter_side(image: ImageInfo) -> int:
    return min(image.width, image.height)
