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

from resnetkit.data.readers.row_index import Rows, joined_rows
from resnetkit.errors import DataError, PictureError, UsageError
from resnetkit.images.decode import decode

Indices = NDArray[np.int64]
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
PLACES = {alias: part for part, names in PARTS.items() for alias in names}
_TEST_SHARE, _VAL_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Files:
    """Pictures in files, with the number of their class."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int, colour: str = "RGB", shorter: int = 0) -> Image.Image:
        """The ``i``-th picture, reduced where ``shorter`` allows it as in `decode`; raises `PictureError`."""
        return decode(self.paths[i], colour, shorter)

    def where(self, i: int) -> str:
        """Where the ``i``-th picture stands."""
        return str(self.paths[i])

    def take(self, indices: Indices) -> Files:
        """Some of them."""
        chosen = indices.tolist()
        return Files(tuple(self.paths[i] for i in chosen), tuple(self.names[i] for i in chosen), self.labels[indices])


@dataclass(frozen=True)
class Arrays:
    """Pictures that are in memory already: N H W (grey) or N H W 3, 8 bits."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, i: int, colour: str = "RGB", shorter: int = 0) -> Image.Image:
        """The ``i``-th picture, whole, as it is there already."""
        return Image.fromarray(self.pixels[i]).convert(colour)

    def where(self, i: int) -> str:
        """What the ``i``-th picture is called."""
        return self.names[i]

    def take(self, indices: Indices) -> Arrays:
        """Some of them."""
        return Arrays(self.pixels[indices], tuple(self.names[i] for i in indices.tolist()), self.labels[indices])


Pictures = Files | Arrays | Rows


@dataclass(frozen=True)
class Data:
    """A data set: its classes, in the order of their numbers, and its parts by name.

    ``notes`` are sentences about what was found that is no fault and should be known.
    """

    name: str
    classes: tuple[str, ...]
    parts: dict[str, Pictures]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Pictures:
        """The part to learn from: ``train``, or all."""
        return next(iter(self.parts.values()))

    def lacking(self) -> dict[str, list[str]]:
        """Part -> the classes of which it has no picture; without the parts that have all."""
        found = {part: set(np.unique(pictures.labels).tolist()) for part, pictures in self.parts.items()}
        missing = {
            part: [name for i, name in enumerate(self.classes) if i not in there] for part, there in found.items()
        }
        return {part: names for part, names in missing.items() if names}

    def part(self, name: str) -> Pictures:
        """A part, or ``all`` of them; raises `UsageError` where there is none of this name."""
        if name == "all" and name not in self.parts:
            return joined(tuple(self.parts.values()))
        if name not in self.parts:
            raise UsageError(f"there is no part {name!r} here", where=self.name, fix="one of " + ", ".join(self.parts))
        return self.parts[name]


def joined(parts: Sequence[Pictures]) -> Pictures:
    """Several parts of one data set as one."""
    rows = [part for part in parts if isinstance(part, Rows)]
    if rows:
        return joined_rows(rows)
    names = tuple(name for part in parts for name in part.names)
    labels = np.concatenate([part.labels for part in parts])
    arrays = [part.pixels for part in parts if isinstance(part, Arrays)]
    if arrays:
        return Arrays(np.concatenate(arrays), names, labels)
    return Files(tuple(path for part in parts if isinstance(part, Files) for path in part.paths), names, labels)


def is_text(name: str) -> bool:
    """Whether a class may be called so: it goes into cards, tables and pages."""
    return name.isprintable() and not any("\ud800" <= letter <= "\udfff" for letter in name)


def listed(names: Sequence[str], most: int = 5) -> str:
    """``a, b, c and 7 more``."""
    return ", ".join(names[:most]) + f" and {len(names) - most:,} more" * (len(names) > most)


def divide(data: Data, seed: int) -> Data:
    """``train``, ``val`` and, where there are enough folders or one folder to draw from, ``test``."""
    parts = dict(data.parts)
    if "all" in parts:
        parts["train"], parts["test"] = _draw(parts.pop("all"), _TEST_SHARE, f"{seed}/test")
    if "train" not in parts:
        raise DataError("there is no train folder beside the others", where=data.name, fix="name one: train/CLASS/")
    if "val" not in parts:
        parts["train"], parts["val"] = _draw(parts["train"], _VAL_SHARE, f"{seed}/val")
    empty = [part for part in parts if not len(parts[part])]
    if empty or len(parts["train"]) < 2:
        what = "there are too few pictures to hold some out"
        raise DataError(what, where=data.name, fix=f"add pictures: {len(data.first)} are too few")
    return replace(data, parts={part: parts[part] for part in PARTS if part in parts})


def fingerprint(data: Data) -> str:
    """A hash of the names of all pictures and of their parts: the same data, wherever it lies."""
    digest = hashlib.blake2b(digest_size=16)
    for part, pictures in sorted(data.parts.items()):
        for name, label in zip(pictures.names, pictures.labels.tolist(), strict=True):
            digest.update(f"{part}/{label}/{name}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _draw(pictures: Pictures, share: float, seed: str) -> tuple[Pictures, Pictures]:
    """(rest, drawn): of each class the ``share`` whose names hash lowest; every class keeps one picture at least."""
    ranks = [hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest() for name in pictures.names]
    drawn: list[int] = []
    for label in np.unique(pictures.labels):
        members = sorted(np.flatnonzero(pictures.labels == label).tolist(), key=ranks.__getitem__)
        count = max(round(share * len(members)), min(1, len(members) - 1))
        drawn += members[:count]
    mask = np.zeros(len(pictures), dtype=bool)
    mask[drawn] = True
    return pictures.take(np.flatnonzero(~mask)), pictures.take(np.flatnonzero(mask))


# ------------------------------------------------------------------------------------------------------------- leaks


def leaks(data: Data) -> list[tuple[str, str]]:
    """(picture, its twin in another part): files of the same bytes, or arrays of the same pixels.

    Only files whose size occurs in several parts are read, so that large photographs cost next to nothing.
    """
    groups: dict[tuple[int, bytes], list[tuple[str, str]]] = defaultdict(list)
    for part, i, size in _shared_sizes(data):
        pictures = data.parts[part]
        groups[size, content_digest(pictures, i)].append((part, pictures.where(i)))
    return [(members[0][1], other) for members in groups.values() for part, other in members if part != members[0][0]]


def _shared_sizes(data: Data) -> list[tuple[str, int, int]]:
    """(part, number, size) of every picture whose size in bytes is found in more than one part."""
    found = [(part, i, _size(pictures, i)) for part, pictures in data.parts.items() for i in range(len(pictures))]
    parts: dict[int, set[str]] = defaultdict(set)
    for part, _, size in found:
        parts[size].add(part)
    return [entry for entry in found if entry[2] >= 0 and len(parts[entry[2]]) > 1]


def _size(pictures: Pictures, i: int) -> int:
    """In bytes; -1 for a file that cannot be asked, which whoever decodes it will tell."""
    if isinstance(pictures, Arrays):
        return int(pictures.pixels[i].nbytes)
    if isinstance(pictures, Rows):
        return pictures.size(i)
    try:
        known = pictures.paths[i].stat()
    except OSError:
        return -1
    return known.st_size if stat.S_ISREG(known.st_mode) else -1


def content_digest(pictures: Pictures, i: int) -> bytes:
    """Of the bytes of a file or a row, or the pixels of an array."""
    if isinstance(pictures, Arrays):
        return hashlib.blake2b(np.ascontiguousarray(pictures.pixels[i]).data, digest_size=16).digest()
    try:
        if isinstance(pictures, Rows):
            return hashlib.blake2b(pictures.content(i)).digest()
        with pictures.paths[i].open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except (OSError, PictureError):  # what cannot be read is like nothing else
        return pictures.where(i).encode("utf-8", "surrogateescape")
