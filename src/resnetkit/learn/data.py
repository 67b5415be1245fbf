"""Pictures and their classes: where they are, and which part of them is for what.

    flowers/train/daisy/1.jpg  flowers/val/...  flowers/test/...     the parts that stand there
    flowers/daisy/1.jpg                                              parts drawn by a seed, class by class
    digits                                                           scikit-learn's 1,797 handwritten digits

``val`` selects the best epoch, ``test`` only measures. Of one folder of classes a fifth is held out as ``test``; where
``val`` is missing, a tenth of what is there for training becomes it. The draw depends on the seed and the names alone.

Classes have the names of their folders, and are matched by name everywhere. Hidden files and folders are passed over,
and so is all that has no picture's ending.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.errors import DataError, UsageError, extra_missing, nearest, suggestion
from resnetkit.images.decode import SUFFIXES, decode, is_folder, pictures_below, visible

Indices = NDArray[np.int64]
_TEST_SHARE, _VAL_SHARE = 0.2, 0.1
_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Files:
    """Pictures in files, with the number of their class."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, i: int, colour: str = "RGB") -> Image.Image:
        """The ``i``-th picture; raises `PictureError`."""
        return decode(self.paths[i], colour)

    def take(self, indices: Indices) -> Files:
        """Some of them."""
        chosen = indices.tolist()
        return Files(tuple(self.paths[i] for i in chosen), tuple(self.names[i] for i in chosen), self.labels[indices])


@dataclass(frozen=True)
class Arrays:
    """Pictures that are in memory already: N H W, 8 bits, grey."""

    pixels: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: Indices

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, i: int, colour: str = "L") -> Image.Image:
        """The ``i``-th picture."""
        return Image.fromarray(self.pixels[i]).convert(colour)

    def take(self, indices: Indices) -> Arrays:
        """Some of them."""
        return Arrays(self.pixels[indices], tuple(self.names[i] for i in indices.tolist()), self.labels[indices])


Pictures = Files | Arrays


@dataclass(frozen=True)
class Data:
    """A data set: its classes, in the order of their numbers, and its parts by name."""

    name: str
    classes: tuple[str, ...]
    parts: dict[str, Pictures]

    @property
    def first(self) -> Pictures:
        """The part to learn from: ``train``, or all."""
        return next(iter(self.parts.values()))

    def part(self, name: str) -> Pictures:
        """A part; raises `UsageError` where there is none of this name."""
        if name not in self.parts:
            raise UsageError(f"there is no part {name!r} here", where=self.name, fix="one of " + ", ".join(self.parts))
        return self.parts[name]


def open_data(source: str | Path) -> Data:
    """What stands there: the parts ``train``, ``val`` and ``test``, or ``all`` where there are no such folders.

    Raises `UsageError` for a folder that is not there, `DataError` for one that holds no pictures in classes.
    """
    if str(source) == "digits":  # a folder of this name is ./digits
        return _digits()
    root = Path(source)
    if root.is_file():
        raise UsageError("this is a file, not a folder", where=str(source), fix="name the folder of class folders")
    if not root.is_dir():
        fix = suggestion(str(source), ["digits"], "name a folder with a folder of pictures for each class, or: digits")
        raise UsageError("there is no such folder", where=str(source), fix=fix)
    folders = _part_folders(root) or {"all": root}
    found = {part: _scan(folder) for part, folder in folders.items()}
    classes = _classes(root, found)
    return Data(str(source), classes, {part: _files(folders[part], found[part], classes) for part in folders})


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
    return Data(data.name, data.classes, {part: parts[part] for part in _FOLDERS if part in parts})


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


# ----------------------------------------------------------------------------------------------------------- folders


def _part_folders(root: Path) -> dict[str, Path]:
    """Part -> folder. A single ``train`` among other folders is a class, of vehicles perhaps."""
    folders = [entry.name for entry in visible(root) if is_folder(entry)]
    found = {part: root / name for part, names in _FOLDERS.items() for name in names if name in folders}
    return found if len(found) > 1 or len(found) == len(folders) else {}


def _scan(folder: Path) -> dict[str, list[Path]]:
    """Class -> pictures, however deep they lie below the folder of the class; both sorted by name."""
    found = {}
    for entry in visible(folder):
        pictures = sorted(pictures_below(Path(entry.path))) if is_folder(entry) else []
        if pictures:
            found[_readable(entry.name, folder)] = pictures
    if not found:
        raise _nothing(folder)
    return found


def _readable(name: str, folder: Path) -> str:
    """The name of a class, which has to be text: it goes into cards, tables and pages."""
    if not name.isprintable() or any("\ud800" <= letter <= "\udfff" for letter in name):
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise DataError("the name of a class is not text", where=f"{folder}/{shown!r}", fix="rename the folder")
    return name


def _nothing(folder: Path) -> DataError:
    loose = any(entry.name.lower().endswith(SUFFIXES) for entry in visible(folder))
    what = "the pictures lie beside each other, not in classes" if loose else "there are no pictures here"
    return DataError(what, where=str(folder), fix="put the pictures of each class into a folder: CLASS/picture.jpg")


def _classes(root: Path, found: dict[str, dict[str, list[Path]]]) -> tuple[str, ...]:
    """The classes of the part to learn from; another part may lack some, and may have no other."""
    first = next(iter(found))
    for part, pictures in found.items():
        extra = [name for name in pictures if name not in found[first]]
        if extra:
            raise DataError(
                f"{part} has a class that {first} has not: {', '.join(extra[:5])}",
                where=str(root),
                fix=f"{_near(extra[0], found[first])}add it to {first}, or remove it from {part}",
            )
    return tuple(found[first])


def _near(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near[0]}? Otherwise " if near else ""


def _files(root: Path, found: dict[str, list[Path]], classes: tuple[str, ...]) -> Files:
    pairs = [(path, classes.index(name)) for name, paths in found.items() for path in paths]
    paths = tuple(path for path, _ in pairs)
    names = tuple(path.relative_to(root).as_posix() for path in paths)
    return Files(paths, names, np.array([label for _, label in pairs], dtype=np.int64))


def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise extra_missing("scikit-learn, which brings the digits,", "demo") from None
    found = load_digits()
    pixels = (found.images * (255 / 16)).round().astype(np.uint8)
    names = tuple(f"digit {i}" for i in range(len(pixels)))
    return Data("digits", tuple("0123456789"), {"all": Arrays(pixels, names, found.target.astype(np.int64))})
