"""Files to vectors: what a place of the network hands on, as one vector for each picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnetkit import files as writing
from resnetkit.data.loader import Tell
from resnetkit.engines.reference import reference
from resnetkit.errors import PictureError, UsageError
from resnetkit.network.layers import Network
from resnetkit.prediction.api import BATCH, Named
from resnetkit.prediction.formats import write_parquet
from resnetkit.prediction.inputs import expand
from resnetkit.prediction.pipeline import streamed
from resnetkit.runtime.device import Precision
from resnetkit.weights.load import load


@dataclass(frozen=True)
class Vectors:
    """``vectors`` has a row for each file (N D, fp32): NaN for one that could not be read, and ``errors`` says why."""

    files: tuple[str, ...]
    vectors: NDArray[np.float32]
    errors: tuple[str, ...]
    place: str

    def write(self, path: str | Path) -> Path:
        """As ``.npz`` (files, vectors, errors, place; no pickle) or as ``.parquet`` (file, vector, error)."""
        path = Path(path)
        if path.suffix == ".npz":
            files, errors, place = map(np.array, (self.files, self.errors, self.place))
            with writing.replacing(path) as part, part.open("wb") as opened:
                np.savez(opened, files=files, vectors=self.vectors, errors=errors, place=place)
        elif path.suffix == ".parquet":
            reasons = [error or None for error in self.errors]
            write_parquet(path, {"file": self.files, "vector": self.vectors, "error": reasons})
        else:
            raise UsageError("vectors are written as .npz or .parquet", where=str(path))
        return path


def embed(
    files: Named | Sequence[Named],
    model: str | os.PathLike[str] | Network,
    *,
    place: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = BATCH,
    tell: Tell | None = None,
) -> Vectors:
    """What ``place`` (``stage3``, ``stage2.block1``, ``head.pool`` ...) hands on; of a map the mean over it.

    Without ``place`` it is what the classifier sees. Raises `UsageError` for a place that is not there.
    """
    network = model if isinstance(model, Network) else load(model)
    chosen = expand([files] if isinstance(files, Named) else files)
    place = place or last_place(network)
    network.require([place])

    def ask(x: Tensor) -> Tensor:
        found = network.features(x, [place])[place]
        return found.mean((2, 3)) if found.ndim == 4 else found

    rows: list[NDArray[np.float32] | PictureError] = []
    with reference(network, device, precision, batch_size, ask) as vectors:
        for chunk in streamed(chosen, network.card.preparation, vectors, batch_size, 1):
            rows += [row for _, row in chunk]
            if tell:
                tell(len(rows), len(chosen))
    errors = tuple(row.what if isinstance(row, PictureError) else "" for row in rows)
    return Vectors(tuple(one.name for one in chosen), _table(rows), errors, place)


def last_place(network: Network) -> str:
    """What the classifier sees: the pooled map, or the last stage where there is no head."""
    return "head.pool" if "head.pool" in network.places() else f"stage{len(network.card.spec.stages)}"


def _table(rows: Sequence[NDArray[np.float32] | PictureError]) -> NDArray[np.float32]:
    size = next((len(row) for row in rows if not isinstance(row, PictureError)), 0)
    nothing = np.full(size, np.nan, np.float32)
    return np.array([nothing if isinstance(row, PictureError) else row for row in rows], np.float32)
