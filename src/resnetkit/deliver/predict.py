"""Files to labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from resnetkit.architecture.card import Preparation
from resnetkit.errors import DataError, PictureError
from resnetkit.images.decode import attempt, pictures_below
from resnetkit.images.prepare import Pixels, open_prepared
from resnetkit.learn.device import Logits, Precision, answering, classes_of, pick
from resnetkit.learn.pixels import Tell, ahead
from resnetkit.network.layers import Network
from resnetkit.weights.store import load


@dataclass(frozen=True)
class Answer:
    """What a network says of one file: (class, probability), most probable first, or why nothing can be said."""

    file: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""

    @property
    def label(self) -> str:
        """The most probable class; empty where the file could not be read."""
        return self.top[0][0] if self.top else ""


def predict(
    files: str | Path | Sequence[str | Path],
    model: str | Path | Network,
    *,
    top: int = 5,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 32,
    tell: Tell | None = None,
) -> list[Answer]:
    """An `Answer` for each file, in order; a folder stands for the pictures in it, by name.

    A file that cannot be read is a row with its reason, never an end of the others. ``tell`` hears (done, all).
    """
    network = model if isinstance(model, Network) else load(model)
    chosen = expand([files] if isinstance(files, str | Path) else files)
    names = network.card.classes or tuple(f"class {i}" for i in range(classes_of(network)))
    chunks = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    answers: list[Answer] = []
    with answering(network, pick(device), precision) as logits:
        for chunk in _read(chunks, network.card.preparation):
            answers += _answers(chunk, logits, names, top)
            if tell:
                tell(len(answers), len(chosen))
    return answers


def expand(files: Sequence[str | Path]) -> list[Path]:
    """Files as they are and the pictures of folders, sorted; raises `DataError` for a folder without any."""
    found: list[Path] = []
    for path in map(Path, files):
        if path.is_dir():
            below = sorted(pictures_below(path))
            if not below:
                raise DataError("there are no pictures here", where=str(path), fix="name files, or another folder")
            found += below
        else:
            found.append(path)
    return found


_Read = tuple[Path, Pixels | PictureError]


def _read(chunks: Sequence[Sequence[Path]], preparation: Preparation) -> Iterator[list[_Read]]:
    """Each chunk decoded on all cores, while the network is at work on the one before."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        one = partial(attempt, partial(open_prepared, preparation=preparation))

        def read(chunk: Sequence[Path]) -> list[_Read]:
            return list(zip(chunk, pool.map(one, chunk), strict=True))

        yield from ahead(partial(read, chunk) for chunk in chunks)


def _answers(chunk: list[_Read], logits: Logits, names: Sequence[str], top: int) -> Iterator[Answer]:
    good = [pixels for _, pixels in chunk if not isinstance(pixels, PictureError)]
    shares = iter(logits(torch.from_numpy(np.stack(good))).softmax(1)) if good else iter(())
    for path, pixels in chunk:
        if isinstance(pixels, PictureError):
            yield Answer(str(path), error=pixels.what)
        else:
            best = next(shares).topk(min(top, len(names)))
            yield Answer(
                str(path), tuple((names[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True))
            )
