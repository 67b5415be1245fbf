"""OpenVINO: the graph as its IR, compiled when it is opened. Opening needs no torch.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.

This module imports no torch.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetkit.engines.base import Choice, Engine, Logits, padded
from resnetkit.engines.no_telemetry import quietly, silence
from resnetkit.engines.ranges import require_pixels
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import Network

_MODEL = "model.xml"


def make(network: Network, artefact: Path, precision: str, pixels: Pixels | None) -> None:
    """``model.xml`` and ``model.bin``; weights are fp32, or int8 measured on the first of ``pixels``."""
    measured = require_pixels(precision, pixels)
    openvino = quietly("openvino")
    from resnetkit.engines.export import exported

    with silence():
        model = openvino.convert_model(exported(network))
        how = network.card.preparation
        model.reshape([-1, *how.crop, len(how.mean)])  # the conversion forgets all sizes
        if measured is not None:
            model = _quantised(model, precision, measured, network.card.spec.activation)
        openvino.save_model(model, artefact / _MODEL, compress_to_fp16=False)


def _quantised(model: Any, precision: str, pixels: Pixels, activation: str) -> Any:
    nncf = quietly("nncf")
    # a range that is symmetric wastes the half below zero, which only a ReLU leaves empty
    preset = nncf.QuantizationPreset.PERFORMANCE if activation == "relu" else nncf.QuantizationPreset.MIXED
    left = nncf.IgnoredScope(names=_ends(model)) if precision == "int8-body" else None
    one_by_one = nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))])
    return nncf.quantize(model, one_by_one, preset=preset, subset_size=len(pixels), ignored_scope=left)


def _ends(model: Any) -> list[str]:
    """The first convolution and the last matrix product, where there is one."""
    kinds: dict[str, list[str]] = {"Convolution": [], "MatMul": []}
    for node in model.get_ordered_ops():
        kinds.get(node.get_type_name(), []).append(node.get_friendly_name())
    return kinds["Convolution"][:1] + kinds["MatMul"][-1:]


class OpenVino:
    """A compiled graph; each thread that asks has a request of its own."""

    def __init__(self, choice: Choice, compiled: Any) -> None:
        self.choice = choice
        self._compiled = compiled
        self._own = threading.local()

    def __call__(self, pixels: Pixels) -> Logits:
        given = np.ascontiguousarray(padded(pixels, self.choice.batch))
        request = self._request()
        request.infer([given], share_inputs=True)
        found: Logits = request.get_output_tensor().data[: len(pixels)].copy()  # its memory is written again
        return found

    def _request(self) -> Any:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        return self._own.request


def open(folder: Path, artefact: Path, choice: Choice) -> Engine:  # noqa: A001  the word of `engine.Backend`
    """Raises `MachineError` where the processor does not multiply in bf16 and was asked to."""
    core = _core()
    precision = _multiplied_in(core, choice.precision)
    model = core.read_model(artefact / _MODEL)
    model.reshape([choice.batch, *(size.get_length() for size in model.input().get_partial_shape()[1:])])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": choice.streams,
        "INFERENCE_NUM_THREADS": choice.threads * choice.streams,
    }
    compiled = core.compile_model(model, "CPU", settings)
    taken = compiled.get_property("INFERENCE_PRECISION_HINT")
    if taken.get_type_name() != precision:  # it takes another one without a word
        raise _no_bf16()
    engine = OpenVino(choice, compiled)
    # Its Python part sets itself up in the first call, and hangs for ever where two threads make that at once.
    engine(np.zeros((1, *model.input().get_shape()[1:]), np.uint8))
    return engine


@functools.cache
def _core() -> Any:
    """One for the whole process.

    Each brings a stack on which signals are handled, and takes it away as it ends. Where the first of two ends first,
    the second puts the first one's stack back, which is gone, and the next signal is fatal.
    """
    return quietly("openvino").Core()


def _multiplied_in(core: Any, precision: str) -> str:
    """OpenVINO's word. What int8 leaves is in bf16 where that gains; OpenVINO would emulate it elsewhere."""
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not able:
        raise _no_bf16()
    return "f32" if precision == "fp32" or not able else "bf16"


def _no_bf16() -> MachineError:
    return MachineError("this processor does not multiply in bf16", fix="an engine in fp32 or int8")
