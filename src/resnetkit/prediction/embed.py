"""Files to vectors: what a place of the network hands on, as one vector for each picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from resnetkit import files as file_utils
from resnetkit.engines.reference import open_torch_engine
from resnetkit.engines.select import DEFAULT_BATCH_SIZE
from resnetkit.errors import ImageError, UsageError
from resnetkit.network.layers import NetworkModule
from resnetkit.prediction.api import InputLike
from resnetkit.prediction.formats import write_parquet
from resnetkit.prediction.inputs import expand_inputs
from resnetkit.prediction.pipeline import run_pipeline
from resnetkit.runtime.device import Precision
from resnetkit.runtime.progress import ProgressCallback
from resnetkit.weights.load import load_network


@dataclass(frozen=True)
class Embeddings:
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
            with file_utils.atomic_write(path) as temporary_path, temporary_path.open("wb") as file:
                np.savez(file, files=files, vectors=self.vectors, errors=errors, place=place)
        elif path.suffix == ".parquet":
            reasons = [error or None for error in self.errors]
            write_parquet(path, {"file": self.files, "vector": self.vectors, "error": reasons})
        else:
            raise UsageError("vectors are written as .npz or .parquet", where=str(path))
        return path


def embed(
    files: InputLike | Sequence[InputLike],
    model: str | os.PathLike[str] | NetworkModule,
    *,
    place: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: ProgressCallback | None = None,
) -> Embeddings:
    """What ``place`` (``stage3``, ``stage2.block1``, ``head.pool`` ...) hands on; of a map the mean over it.

    Without ``place`` it is what the classifier sees. Raises `UsageError` for a place that is not there.
    """
    network = model if isinstance(model, NetworkModule) else load_network(model)
    inputs = expand_inputs([files] if isinstance(files, InputLike) else files)
    place = place or find_last_place(network)
    network.check_feature_paths([place])

    def forward(x: Tensor) -> Tensor:
        features = network.extract_features(x, [place])[place]
        return features.mean((2, 3)) if features.ndim == 4 else features

    rows: list[NDArray[np.float32] | ImageError] = []
    with open_torch_engine(network, device, precision, batch_size, forward) as engine:
        for batch in run_pipeline(inputs, network.card.preparation, engine, batch_size, 1):
            rows += [row for _, row in batch]
            if on_progress:
                on_progress(len(rows), len(inputs))
    errors = tuple(row.what if isinstance(row, ImageError) else "" for row in rows)
    return Embeddings(tuple(item.name for item in inputs), _stack_vectors(rows), errors, place)


def find_last_place(network: NetworkModule) -> str:
    """What the classifier sees: the pooled map, or the last stage where there is no head."""
    return "head.pool" if "head.pool" in network.list_feature_paths() else f"stage{len(network.card.spec.stages)}"


def _stack_vectors(rows: Sequence[NDArray[np.float32] | ImageError]) -> NDArray[np.float32]:
    dim = next((len(row) for row in rows if not isinstance(row, ImageError)), 0)
    nan_row = np.full(dim, np.nan, np.float32)
    return np.array([nan_row if isinstance(row, ImageError) else row for row in rows], np.float32)
