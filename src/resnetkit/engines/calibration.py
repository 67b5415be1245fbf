"""Which pictures engines are measured with: some to find the range of each map for int8, others to compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.architecture.card import Card, Preparation
from resnetkit.data.dataset import Data, Files, Indices, Pictures
from resnetkit.data.loader import PixelSource, Skipped, Tell
from resnetkit.data.open import open_data
from resnetkit.engines.ranges import MEASURED
from resnetkit.errors import DataError
from resnetkit.evaluation.metrics import chosen_part, class_numbers
from resnetkit.formatting import counted
from resnetkit.images.decode import SUFFIXES, is_folder, pictures_below, visible
from resnetkit.images.prepare import Pixels
from resnetkit.prediction.inputs import expand
from resnetkit.training.recipe import Skip

_MOST_CHECKED = 10_000
_MOST_BYTES = 2**28
_MADE = 16


@dataclass(frozen=True)
class Samples:
    """``checked`` pictures with their ``names``, their classes (``truth``) where these are known, and those that
    ``ranges`` are measured with, none where there are no pictures. They are in no order, so that any first part of them
    will do. ``source`` says where they are from.
    """

    checked: Pixels
    names: Sequence[str]
    source: str
    truth: NDArray[np.int64] | None = None
    ranges: Pixels | None = None

    def told(self, n: int) -> str:
        """What the first ``n`` of them are."""
        some = f"{n:,} of {counted(len(self.names), 'picture')}" if n < len(self.names) else counted(n, "picture")
        return f"{some} {self.source}" + f", with their classes (one is {100 / n:.2g} points)" * (
            self.truth is not None
        )


def made(preparation: Preparation) -> Samples:
    """Pictures that are drawn: enough to see that an engine computes the same, and not what photographs do to it."""
    height, width = preparation.crop
    draw = np.random.default_rng(0)
    pixels = [_drawn(draw, height, width, len(preparation.mean)) for _ in range(_MADE)]
    return Samples(np.stack(pixels), [f"made picture {i + 1}" for i in range(_MADE)], "that are made here")


def _drawn(draw: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """Soft patches of colour with some grain."""
    coarse = draw.integers(0, 256, (5, 5, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., i]).resize((width, height), Image.Resampling.BICUBIC) for i in range(channels)
    ]
    smooth = np.stack([np.asarray(plane) for plane in planes], 2)
    return np.clip(smooth + draw.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def taken(source: str | Path, card: Card, trained: bool, tell: Tell | None = None) -> Samples:
    """From data. What was held out in training is checked, and ranges come from what was not; classes are compared
    where the network is ``trained``. A folder with pictures of no class will do, too.
    """
    data, part = _opened(source, card, tell)
    ranged, checked = _divided(data, part, _most(card.preparation))
    skipped = Skipped(data, Skip(1.0))
    pixels = [PixelSource(pictures, card.preparation, skipped, tell=tell) for pictures in (ranged, checked)]
    ranges, _ = pixels[0].prepared(np.arange(len(ranged)))
    found, good = pixels[1].prepared(np.arange(len(checked)))
    if not len(good) or not len(ranges):
        raise DataError("too few of these pictures can be read", where=str(source), fix=f"resnetkit check {source}")
    truth = _truth(data, card, checked, good) if trained and data.classes else None
    names = [checked.names[i] for i in good]
    where = f"of {data.name}" + f", part {part}" * bool(data.classes)
    return Samples(found.numpy(), names, where, truth, ranges.numpy())


def _opened(source: str | Path, card: Card, tell: Tell | None) -> tuple[Data, str]:
    """The data and the part to check with."""
    folder = Path(source)
    if folder.is_dir() and _holds_pictures_alone(folder):
        paths = tuple(Path(one.name) for one in expand([folder]))
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        return Data(str(source), (), {"all": Files(paths, names, np.zeros(len(paths), np.int64))}), "all"
    return chosen_part(open_data(source, tell), card, None)


def _holds_pictures_alone(folder: Path) -> bool:
    """Pictures of no class: none lies in a folder below."""
    entries = visible(folder)
    loose = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
    return loose and not any(next(pictures_below(Path(e.path)), None) for e in entries if is_folder(e))


def _divided(data: Data, part: str, most: int) -> tuple[Pictures, Pictures]:
    """(for ranges, to check); of one part alone the two share no picture, unless there is but one."""
    checked = data.parts[part]
    if "train" in data.parts and part != "train":
        return _drawn_from(data.parts["train"], MEASURED), _drawn_from(checked, most)
    every = _mixed(len(checked))
    count = min(MEASURED, max(1, len(every) // 2))
    return checked.take(every[:count]), checked.take(every[count : count + most] if len(every) > 1 else every)


def _drawn_from(pictures: Pictures, most: int) -> Pictures:
    """At most so many of them, from all over."""
    return pictures.take(_mixed(len(pictures))[:most])


def _mixed(n: int) -> Indices:
    """Their numbers in an order that is the same each time."""
    return np.random.default_rng(0).permutation(n)


def _most(preparation: Preparation) -> int:
    """How many pictures are compared: as many as fit, as they are kept in memory."""
    return max(1, min(_MOST_CHECKED, _MOST_BYTES // (int(np.prod(preparation.crop)) * len(preparation.mean))))


def _truth(data: Data, card: Card, checked: Pictures, good: Indices) -> NDArray[np.int64]:
    numbers = class_numbers(data.classes, card.classes or len(card.labels)).numpy()
    return np.asarray(numbers[checked.labels[good]])
