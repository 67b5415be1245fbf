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

from resnetkit.errors import extra_missing
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.distributed import cores
from resnetkit.runtime.threads import Pool, outcome

if TYPE_CHECKING:
    from resnetkit.network.layers import Network

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to compute: by which engine, in what it multiplies, and how its work is cut.

    ``batch`` pictures are a call; ``streams`` calls run beside each other, each on its share of the cores.
    """

    engine: str
    precision: str
    batch: int = 1
    streams: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Engine, precision, and the device where it is not the processor: what has an artefact of its own."""
        return "-".join([self.engine, self.precision, *[self.device] * (self.device != "cpu")])

    @property
    def threads(self) -> int:
        """Of each stream."""
        return max(1, cores() // self.streams)

    def __str__(self) -> str:
        place = "" if self.device == "cpu" else f" on {self.device}"
        who = f"{self.engine}-{self.precision}" if self.engine in KINDS else f"{self.engine} {self.precision}"
        return f"{who}, batch {self.batch} x {self.streams}{place}"


class Engine(Protocol):
    """At most ``choice.batch`` pictures to their logits; ``choice.streams`` threads may ask at once."""

    @property
    def choice(self) -> Choice:
        """How it was opened."""

    def __call__(self, pixels: Pixels) -> Logits:
        """The answers, in the order of the pictures."""


class Backend(Protocol):
    """What a module of `resnetkit.engines` has."""

    def make(self, network: Network, artefact: Path, precision: str, pixels: Pixels | None) -> None:
        """Fill the new folder ``artefact`` with what `open` needs beside the model folder; int8 measures ``pixels``."""

    def open(self, folder: Path, artefact: Path, choice: Choice) -> Engine:
        """The engine of a model folder, from its artefact."""


# (pictures in a call, cores that work on it; None: all of them), what helps most often first
_CUTS = ((1, None), (4, 1), (16, None), (1, 1), (8, 1), (8, 4), (32, None), (32, 1), (4, None))
_OF_A_GPU = (1, 32, 256)
MOST = 1024  # pictures in a call, and calls beside each other


@dataclass(frozen=True, slots=True)
class Kind:
    """A row: which module runs it, what that needs installed to run and to ``make``, what is worth trying."""

    module: str
    packages: tuple[str, ...]
    precisions: tuple[str, ...]
    extra: str = ""
    makes: tuple[str, ...] = ()
    cuts: tuple[tuple[int, int | None], ...] = _CUTS
    devices: tuple[str, ...] = ("cpu",)

    def require(self, making: bool = False) -> None:
        """Raise `MachineError` with the exact command where a package is missing."""
        for package in (*self.packages, *(self.makes if making else ())):
            if importlib.util.find_spec(package) is None:
                raise extra_missing(package, self.extra)

    def versions(self) -> tuple[str, ...]:
        """``openvino 2026.4.1``, of what runs it."""
        return tuple(f"{package} {_version(package)}" for package in self.packages)

    def backend(self) -> Backend:
        """Its module, imported now."""
        return cast(Backend, importlib.import_module(self.module))

    def ways(self, choice: Choice) -> list[Choice]:
        """How its work can be cut on this machine."""
        if choice.device != "cpu":
            return [replace(choice, batch=batch) for batch in _OF_A_GPU]
        all_of_them = cores()
        cut = [
            replace(choice, batch=batch, streams=max(1, all_of_them // (each or all_of_them)))
            for batch, each in self.cuts
        ]
        return list(dict.fromkeys(cut))


def _version(package: str) -> str:
    """Of a module, which may come with a distribution of another name (onnxruntime-gpu)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(package), "__version__", "of no version"))


_HERE = "resnetkit.engines"
KINDS: dict[str, Kind] = {  # what others are compared with, then the most promising first
    "eager": Kind(
        f"{_HERE}.eager", ("torch",), ("fp32", "bf16"), cuts=((1, None), (16, None), (4, 1)), devices=("cpu", "cuda")
    ),
    "openvino": Kind(f"{_HERE}.openvino", ("openvino",), ("int8", "int8-body", "bf16", "fp32"), "openvino", ("nncf",)),
    "compiled": Kind(
        f"{_HERE}.compiled", ("torch",), ("bf16", "fp32"), cuts=((1, None), (16, None)), devices=("cpu", "cuda")
    ),
    "onnxruntime": Kind(
        f"{_HERE}.onnx_runtime", ("onnxruntime",), ("int8", "int8-body", "fp32"), "onnx", ("onnx", "onnxscript")
    ),
}


@contextlib.contextmanager
def whole(engine: Engine) -> Iterator[Callable[[Pixels], Logits]]:
    """An engine for any number of pictures at once, whose calls all its streams share; the same threads for all."""
    batch, pool = engine.choice.batch, Pool(engine.choice.streams)

    def logits(pixels: Pixels) -> Logits:
        starts = range(0, len(pixels), batch)
        asked = [pool.submit(partial(engine, np.ascontiguousarray(pixels[i : i + batch]))) for i in starts]
        return np.concatenate([outcome(answer) for answer in asked])

    try:
        yield logits
    finally:
        pool.end()
        pool.join()


def padded(pixels: Pixels, batch: int) -> Pixels:
    """``batch`` pictures: behind those given there are black ones, whose answers nobody reads."""
    if len(pixels) == batch:
        return pixels
    return np.concatenate([pixels, np.zeros((batch - len(pixels), *pixels.shape[1:]), pixels.dtype)])
