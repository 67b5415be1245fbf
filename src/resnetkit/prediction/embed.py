"""Compute embeddings of images: the output of a layer as one vector per image."""

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
    """A row of ``vectors`` (N, D, fp32) for each file; it is NaN if ``errors`` has a reason for the file."""

    files: tuple[str, ...]
    vectors: NDArray[np.float32]
    errors: tuple[str, ...]
    layer: str

    def write(self, path: str | Path) -> Path:
        """Write ``.npz`` (files, vectors, errors, layer; no pickle) or ``.parquet`` (file, vector, error).

        Raises:
            UsageError: another suffix.
        """
        path = Path(path)
        if path.suffix == ".npz":
            arrays = {"files": self.files, "vectors": self.vectors, "errors": self.errors, "layer": self.layer}
            with file_utils.atomic_write(path) as temporary_path, temporary_path.open("wb") as file:
                np.savez(file, **{name: np.array(values) for name, values in arrays.items()})  # type: ignore[arg-type]
        elif path.suffix == ".parquet":
            reasons = [error or None for error in self.errors]
            write_parquet(path, {"file": self.files, "vector": self.vectors, "error": reasons})
        else:
            raise UsageError(f"got {path.suffix or 'no suffix'}; allowed: .npz or .parquet", where=str(path))
        return path


def embed(
    files: InputLike | Sequence[InputLike],
    model: str | os.PathLike[str] | NetworkModule,
    *,
    layer: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_progress: ProgressCallback | None = None,
) -> Embeddings:
    """Compute the output of a layer for each image; a feature map is averaged over its positions.

    Args:
        files: images, folders and patterns.
        model: a path, or a network.
        layer: stage3, stage2.block1, head.pool, ...; the input of the classifier by default.
        device: cpu, cuda, cuda:1 or auto.
        precision: fp32, bf16 or auto.
        batch_size: the number of images per call.
        on_progress: called with the number of images done, and of all images.

    Raises:
        UsageError: the network does not have this layer.
    """
    network = model if isinstance(model, NetworkModule) else load_network(model)
    inputs = expand_inputs([files] if isinstance(files, InputLike) else files)
    last_layer = "head.pool" if "head.pool" in network.list_feature_paths() else f"stage{len(network.card.spec.stages)}"
    layer = layer or last_layer
    network.check_feature_paths([layer])

    def forward(x: Tensor) -> Tensor:
        features = network.extract_features(x, [layer])[layer]
        return features.mean((2, 3)) if features.ndim == 4 else features

    rows: list[NDArray[np.float32] | ImageError] = []
    with open_torch_engine(network, device, precision, batch_size, forward) as engine:
        for batch in run_pipeline(inputs, network.card.preparation, engine, batch_size, 1):
            rows += [row for _, row in batch]
            if on_progress:
                on_progress(len(rows), len(inputs))
    errors = tuple(row.what if isinstance(row, ImageError) else "" for row in rows)
    return Embeddings(tuple(item.name for item in inputs), _stack_vectors(rows), errors, layer)


def _stack_vectors(rows: Sequence[NDArray[np.float32] | ImageError]) -> NDArray[np.float32]:
    dim = next((len(row) for row in rows if not isinstance(row, ImageError)), 0)
    nan_row = np.full(dim, np.nan, np.float32)
    return np.array([nan_row if isinstance(row, ImageError) else row for row in rows], np.float32)
