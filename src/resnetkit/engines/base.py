"""What computes: one small protocol, and a row for each library behind it.

Shapes: pixels are N H W C, 8 bits, as `images.prepare` makes them; logits are N K, fp32.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import missing_extra_error
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import WorkerPool, wait_for_result

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """One way to compute: by which engine, in what it multiplies, and how its work is cut.

    ``batch`` pictures are a call; ``streams`` calls run beside each other, each on its share of the cores.
    """

    engine: str
    precision: str
    batch_size: int = 1
    streams: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Engine, precision, and the device where it is not the processor: what has an artefact of its own."""
        return "-".join([self.engine, self.precision, *[self.device] * (self.device != "cpu")])

    @property
    def threads(self) -> int:
        """Of each stream."""
        return max(1, count_cores() // self.streams)

    def __str__(self) -> str:
        suffix = "" if self.device == "cpu" else f" on {self.device}"
        label = f"{self.engine}-{self.precision}" if self.engine in ENGINE_SPECS else f"{self.engine} {self.precision}"
        return f"{label}, batch {self.batch_size} x {self.streams}{suffix}"


class Engine(Protocol):
    """At most ``choice.batch`` pictures to their logits; ``choice.streams`` threads may ask at once."""

    @property
    def config(self) -> EngineConfig:
        """How it was opened."""

    def __call__(self, pixels: Pixels) -> Logits:
        """The answers, in the order of the pictures."""


class Backend(Protocol):
    """What a module of `resnetkit.engines` has."""

    def export_artifact(self, network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
        """Fill the new folder ``artefact`` with what `open` needs beside the model folder; int8 measures ``pixels``."""

    def load_engine(self, folder: Path, artifact: Path, config: EngineConfig) -> Engine:
        """The engine of a model folder, from its artefact."""


# (pictures in a call, cores that work on it; None: all of them), what helps most often first
_LAYOUTS = ((1, None), (4, 1), (16, None), (1, 1), (8, 1), (8, 4), (32, None), (32, 1), (4, None))
_GPU_BATCH_SIZES = (1, 32, 256)
MAX_BATCH_OR_STREAMS = 1024  # pictures in a call, and calls beside each other


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A row: which module runs it, what that needs installed to run and to ``make``, what is worth trying."""

    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    extra: str = ""
    export_packages: tuple[str, ...] = ()
    layouts: tuple[tuple[int, int | None], ...] = _LAYOUTS
    devices: tuple[str, ...] = ("cpu",)

    def check_packages(self, for_export: bool = False) -> None:
        """Raise `MachineError` with the exact command where a package is missing."""
        for package in (*self.packages, *(self.export_packages if for_export else ())):
            if importlib.util.find_spec(package) is None:
                raise missing_extra_error(package, self.extra)

    def get_versions(self) -> tuple[str, ...]:
        """``openvino 2026.4.1``, of what runs it."""
        return tuple(f"{package} {_get_version(package)}" for package in self.packages)

    def import_backend(self) -> Backend:
        """Its module, imported now."""
        return cast(Backend, importlib.import_module(self.module))

    def list_variants(self, config: EngineConfig) -> list[EngineConfig]:
        """How its work can be cut on this machine."""
        if config.device != "cpu":
            return [replace(config, batch_size=batch_size) for batch_size in _GPU_BATCH_SIZES]
        n_cores = count_cores()
        variants = [
            replace(config, batch_size=batch_size, streams=max(1, n_cores // (stream_cores or n_cores)))
            for batch_size, stream_cores in self.layouts
        ]
        return list(dict.fromkeys(variants))


def _get_version(package: str) -> str:
    """Of a module, which may come with a distribution of another name (onnxruntime-gpu)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "of no version"))


_BACKENDS_PACKAGE = "resnetkit.engines"
ENGINE_SPECS: dict[str, EngineSpec] = {  # what others are compared with, then the most promising first
    "eager": EngineSpec(
        f"{_BACKENDS_PACKAGE}.torch_eager",
        ("torch",),
        ("fp32", "bf16"),
        layouts=((1, None), (16, None), (4, 1)),
        devices=("cpu", "cuda"),
    ),
    "openvino": EngineSpec(
        f"{_BACKENDS_PACKAGE}.openvino", ("openvino",), ("int8", "int8-body", "bf16", "fp32"), "openvino", ("nncf",)
    ),
    "compiled": EngineSpec(
        f"{_BACKENDS_PACKAGE}.torch_compile",
        ("torch",),
        ("bf16", "fp32"),
        layouts=((1, None), (16, None)),
        devices=("cpu", "cuda"),
    ),
    "onnxruntime": EngineSpec(
        f"{_BACKENDS_PACKAGE}.onnxruntime",
        ("onnxruntime",),
        ("int8", "int8-body", "fp32"),
        "onnx",
        ("onnx", "onnxscript"),
    ),
}


@contextlib.contextmanager
def batch_calls(engine: Engine) -> Iterator[Callable[[Pixels], Logits]]:
    """An engine for any number of pictures at once, whose calls all its streams share; the same threads for all."""
    batch_size, pool = engine.config.batch_size, WorkerPool(engine.config.streams)

    def infer(pixels: Pixels) -> Logits:
        starts = range(0, len(pixels), batch_size)
        futures = [pool.submit(partial(engine, np.ascontiguousarray(pixels[i : i + batch_size]))) for i in starts]
        return np.concatenate([wait_for_result(future) for future in futures])

    try:
        yield infer
    finally:
        pool.shutdown()
        pool.join()


def pad_batch(pixels: Pixels, batch_size: int) -> Pixels:
    """``batch`` pictures: behind those given there are black ones, whose answers nobody reads."""
    if len(pixels) == batch_size:
        return pixels
    return np.concatenate([pixels, np.zeros((batch_size - len(pixels), *pixels.shape[1:]), pixels.dtype)])
