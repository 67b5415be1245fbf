"""The engine protocol, and the table of engines.

An engine computes logits (N, K) in fp32 from pixels (N, H, W, C) in uint8, as `images.prepare` makes them.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import MachineError, missing_extra_error
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.distributed import count_cores
from resnetkit.runtime.threads import WorkerPool, wait_for_result

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

Logits = NDArray[np.float32]
EngineContents = Mapping[str, bytes]  # of each file of an engine, by its name
MAX_BATCH_OR_STREAMS = 1024


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """An engine with its precision, device and layout.

    A call computes ``batch_size`` images; ``streams`` calls run in parallel, each on its share of the cores.
    """

    engine: str
    precision: str
    batch_size: int = 1
    streams: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Engine, precision, and the device unless it is the CPU; each name has its own exported files."""
        return f"{self.engine}-{self.precision}{'' if self.device == 'cpu' else f'-{self.device}'}"

    @property
    def threads(self) -> int:
        """The number of threads of each stream."""
        return max(1, count_cores() // self.streams)

    def __str__(self) -> str:
        label = f"{self.engine}{'-' if self.engine in ENGINE_SPECS else ' '}{self.precision}"
        return (
            f"{label}, batch {self.batch_size} x {self.streams}{'' if self.device == 'cpu' else f' on {self.device}'}"
        )


class EngineError(MachineError):
    """A saved engine cannot be loaded, or fails."""


class Engine(Protocol):
    """Compute logits of at most ``config.batch_size`` images; ``config.streams`` threads may call it at once."""

    @property
    def config(self) -> EngineConfig:
        """The configuration it was loaded with."""

    def __call__(self, pixels: Pixels) -> Logits:
        """Return logits (N, K) of pixels (N, H, W, C), in the same order."""


@dataclass(frozen=True, slots=True)
class FunctionEngine:
    """An engine made of its configuration and a function from pixels (N, H, W, C) to logits (N, K)."""

    config: EngineConfig
    function: Callable[[Pixels], Logits]
    cancel: Callable[[], None] = lambda: None  # ends running calls, if the library can

    def __call__(self, pixels: Pixels) -> Logits:
        return self.function(pixels)


class Backend(Protocol):
    """The functions that each engine module of `resnetkit.engines` has."""

    def export_artifact(self, network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
        """Write the files that `load_engine` needs beside the model folder.

        Args:
            network: the network to export.
            artifact: a new, empty folder.
            precision: a precision that the engine supports.
            pixels: images for int8 calibration (N, H, W, C); other precisions ignore them.
        """

    def load_engine(self, folder: Path, contents: EngineContents, config: EngineConfig) -> Engine:
        """Load the engine of a model folder; it opens no other file than those of the model itself.

        Args:
            folder: the model folder.
            contents: the content of the files that `export_artifact` wrote.
            config: the configuration to load.
        """


# (images per call, cores per call; None: all cores), most often the fastest first
_LAYOUTS = ((1, None), (4, 1), (16, None), (1, 1), (8, 1), (8, 4), (32, None), (32, 1), (4, None))
_GPU_BATCH_SIZES = (1, 32, 256)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An entry of the table of engines.

    ``packages`` are needed to run it and ``export_packages`` to export for it; ``extra`` installs both.
    ``layouts`` are the combinations of batch size and cores per call that `optimize` measures. ``files`` are the names
    of all files that `Backend.export_artifact` writes.
    """

    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    extra: str = ""
    export_packages: tuple[str, ...] = ()
    layouts: tuple[tuple[int, int | None], ...] = _LAYOUTS
    devices: tuple[str, ...] = ("cpu",)
    files: tuple[str, ...] = ()

    def check_packages(self, for_export: bool = False) -> None:
        """Check that the packages are installed, also those for export if ``for_export``.

        Raises:
            MachineError: a package is missing; the fix is the command that installs it.
        """
        for package in (*self.packages, *(self.export_packages if for_export else ())):
            if importlib.util.find_spec(package) is None:
                raise missing_extra_error(package, self.extra)

    def get_versions(self) -> tuple[str, ...]:
        """Return the packages that run it with their versions, such as ``openvino 2026.4.1``."""
        return tuple(f"{package} {_get_version(package)}" for package in self.packages)

    def import_backend(self) -> Backend:
        """Import and return the engine's module."""
        return cast(Backend, importlib.import_module(self.module))

    def list_variants(self, config: EngineConfig) -> list[EngineConfig]:
        """Return the configurations of this engine, precision and device that `optimize` measures."""
        if config.device != "cpu":
            return [replace(config, batch_size=batch_size) for batch_size in _GPU_BATCH_SIZES]
        n_cores = count_cores()
        layouts = [(batch_size, max(1, n_cores // (cores or n_cores))) for batch_size, cores in self.layouts]
        return [replace(config, batch_size=batch_size, streams=n) for batch_size, n in dict.fromkeys(layouts)]


def _get_version(package: str) -> str:
    """Return the version of a module, whose distribution may have another name (onnxruntime-gpu)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "of unknown version"))


_make_torch_spec = partial(EngineSpec, packages=("torch",), devices=("cpu", "cuda"))
ENGINE_SPECS: dict[str, EngineSpec] = {  # the baseline, then the others, most promising first
    "eager": _make_torch_spec(
        "resnetkit.engines.torch_eager", precisions=("fp32", "bf16"), layouts=((1, None), (16, None), (4, 1))
    ),
    "openvino": EngineSpec(
        "resnetkit.engines.openvino",
        ("openvino",),
        ("int8", "int8-body", "bf16", "fp32"),
        "openvino",
        ("nncf",),
        files=("model.xml", "model.bin"),
    ),
    "compiled": _make_torch_spec(
        "resnetkit.engines.torch_compile", precisions=("bf16", "fp32"), layouts=((1, None), (16, None))
    ),
    "onnxruntime": EngineSpec(
        "resnetkit.engines.onnxruntime",
        ("onnxruntime",),
        ("int8", "int8-body", "fp32"),
        "onnx",
        ("onnx", "onnxscript"),
        files=("model.onnx",),
    ),
}


def bf16_unsupported_error() -> MachineError:
    """Return the error for bf16 on a processor that would only emulate it."""
    return MachineError("this processor has no bf16 instructions", fix="use an engine in fp32 or int8")


@contextlib.contextmanager
def batch_calls(engine: Engine) -> Iterator[Callable[[Pixels], Logits]]:
    """Yield a function that splits any number of images into batches and runs them on all streams.

    The same threads call the engine for as long as the body runs.
    """
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
    """Append black images up to a batch; the caller drops their logits.

    Args:
        pixels: (N, H, W, C), N at most ``batch_size``.
        batch_size: the number of images of a full batch.

    Returns:
        (batch_size, H, W, C); ``pixels`` itself if it is full.
    """
    if len(pixels) == batch_size:
        return pixels
    return np.concatenate([pixels, np.zeros((batch_size - len(pixels), *pixels.shape[1:]), pixels.dtype)])
