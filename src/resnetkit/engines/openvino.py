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

from resnetkit.engines.base import Engine, EngineConfig, Logits, pad_batch
from resnetkit.engines.calibration import select_calibration_pixels
from resnetkit.engines.no_telemetry import import_without_telemetry, silence
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

_MODEL = "model.xml"


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """``model.xml`` and ``model.bin``; weights are fp32, or int8 measured on the first of ``pixels``."""
    calibration = select_calibration_pixels(precision, pixels)
    openvino = import_without_telemetry("openvino")
    from resnetkit.engines.export import export_program

    with silence():
        model = openvino.convert_model(export_program(network))
        preparation = network.card.preparation
        model.reshape([-1, *preparation.crop, len(preparation.mean)])  # the conversion forgets all sizes
        if calibration is not None:
            model = _quantize(model, precision, calibration, network.card.spec.activation)
        openvino.save_model(model, artifact / _MODEL, compress_to_fp16=False)


def _quantize(model: Any, precision: str, pixels: Pixels, activation: str) -> Any:
    nncf = import_without_telemetry("nncf")
    # a range that is symmetric wastes the half below zero, which only a ReLU leaves empty
    preset = nncf.QuantizationPreset.PERFORMANCE if activation == "relu" else nncf.QuantizationPreset.MIXED
    ignored_scope = nncf.IgnoredScope(names=_find_end_nodes(model)) if precision == "int8-body" else None
    dataset = nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))])
    return nncf.quantize(model, dataset, preset=preset, subset_size=len(pixels), ignored_scope=ignored_scope)


def _find_end_nodes(model: Any) -> list[str]:
    """The first convolution and the last matrix product, where there is one."""
    names_by_type: dict[str, list[str]] = {"Convolution": [], "MatMul": []}
    for node in model.get_ordered_ops():
        names_by_type.get(node.get_type_name(), []).append(node.get_friendly_name())
    return names_by_type["Convolution"][:1] + names_by_type["MatMul"][-1:]


class OpenVinoEngine:
    """A compiled graph; each thread that asks has a request of its own."""

    def __init__(self, config: EngineConfig, compiled: Any) -> None:
        self.config = config
        self._compiled = compiled
        self._thread_local = threading.local()

    def __call__(self, pixels: Pixels) -> Logits:
        batch = np.ascontiguousarray(pad_batch(pixels, self.config.batch_size))
        request = self._get_request()
        request.infer([batch], share_inputs=True)
        logits: Logits = request.get_output_tensor().data[: len(pixels)].copy()  # its memory is written again
        return logits

    def _get_request(self) -> Any:
        if not hasattr(self._thread_local, "request"):
            self._thread_local.request = self._compiled.create_infer_request()
        return self._thread_local.request


def load_engine(folder: Path, artifact: Path, config: EngineConfig) -> Engine:
    """Raises `MachineError` where the processor does not multiply in bf16 and was asked to."""
    core = _get_core()
    precision = _select_precision_hint(core, config.precision)
    model = core.read_model(artifact / _MODEL)
    model.reshape([config.batch_size, *(dim.get_length() for dim in model.input().get_partial_shape()[1:])])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": config.streams,
        "INFERENCE_NUM_THREADS": config.threads * config.streams,
    }
    compiled = core.compile_model(model, "CPU", settings)
    actual_precision = compiled.get_property("INFERENCE_PRECISION_HINT")
    if actual_precision.get_type_name() != precision:  # it takes another one without a word
        raise _build_bf16_error()
    engine = OpenVinoEngine(config, compiled)
    # Its Python part sets itself up in the first call, and hangs for ever where two threads make that at once.
    engine(np.zeros((1, *model.input().get_shape()[1:]), np.uint8))
    return engine


@functools.cache
def _get_core() -> Any:
    """One for the whole process.

    Each brings a stack on which signals are handled, and takes it away as it ends. Where the first of two ends first,
    the second puts the first one's stack back, which is gone, and the next signal is fatal.
    """
    return import_without_telemetry("openvino").Core()


def _select_precision_hint(core: Any, precision: str) -> str:
    """OpenVINO's word. What int8 leaves is in bf16 where that gains; OpenVINO would emulate it elsewhere."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise _build_bf16_error()
    return "f32" if precision == "fp32" or not has_bf16 else "bf16"


def _build_bf16_error() -> MachineError:
    return MachineError("this processor does not multiply in bf16", fix="an engine in fp32 or int8")
