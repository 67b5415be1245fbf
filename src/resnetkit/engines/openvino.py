"""OpenVINO on the CPU, which compiles the graph as it is loaded. Loading an engine needs no torch.

Shapes: pixels (N, H, W, C) uint8, logits (N, K) fp32.

This module imports no torch.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetkit.engines.base import Engine, EngineConfig, EngineContents, Logits, bf16_unsupported_error, pad_batch
from resnetkit.engines.calibration import select_calibration_pixels
from resnetkit.engines.no_telemetry import import_without_telemetry, silence
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

_MODEL, _WEIGHTS = "model.xml", "model.bin"


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """Write ``model.xml`` and ``model.bin`` with weights in fp32, or quantized to int8.

    Args:
        network: the network to export.
        artifact: the folder to write into.
        precision: fp32, bf16, int8, or int8-body, which does not quantize the first convolution and the classifier.
        pixels: images for int8 calibration (N, H, W, C).

    Raises:
        UsageError: int8 without images.
        MachineError: openvino or nncf is not installed.
    """
    calibration = select_calibration_pixels(precision, pixels)
    openvino = import_without_telemetry("openvino")
    from resnetkit.engines.export import export_program

    with silence():
        model = openvino.convert_model(export_program(network))
        preparation = network.card.preparation
        model.reshape([-1, *preparation.crop, len(preparation.mean)])  # the conversion drops all sizes
        if calibration is not None:
            model = _quantize(model, precision, calibration, network.card.spec.activation)
        openvino.save_model(model, artifact / _MODEL, compress_to_fp16=False)


def _quantize(model: Any, precision: str, pixels: Pixels, activation: str) -> Any:
    nncf = import_without_telemetry("nncf")
    # a symmetric range wastes the half below zero, which is empty only after a ReLU
    preset = nncf.QuantizationPreset.PERFORMANCE if activation == "relu" else nncf.QuantizationPreset.MIXED
    ignored_scope = nncf.IgnoredScope(names=_find_end_nodes(model)) if precision == "int8-body" else None
    dataset = nncf.Dataset([pixels[i : i + 1] for i in range(len(pixels))])
    return nncf.quantize(model, dataset, preset=preset, subset_size=len(pixels), ignored_scope=ignored_scope)


def _find_end_nodes(model: Any) -> list[str]:
    """Return the names of the first convolution and of the last matrix product, if there is one."""
    names_by_type: dict[str, list[str]] = {"Convolution": [], "MatMul": []}
    for node in model.get_ordered_ops():
        names_by_type.get(node.get_type_name(), []).append(node.get_friendly_name())
    return names_by_type["Convolution"][:1] + names_by_type["MatMul"][-1:]


class OpenVinoEngine:
    """A compiled graph; each thread that calls it has its own inference request."""

    def __init__(self, config: EngineConfig, compiled: Any) -> None:
        self.config = config
        self.compiled = compiled
        self._thread_local = threading.local()
        self._requests: list[Any] = []

    def __call__(self, pixels: Pixels) -> Logits:
        batch = np.ascontiguousarray(pad_batch(pixels, self.config.batch_size))
        request = self._get_request()
        request.infer([batch], share_inputs=True)
        logits: Logits = request.get_output_tensor().data[: len(pixels)].copy()  # the next call overwrites it
        return logits

    def cancel(self) -> None:
        """End all running calls with an error."""
        for request in self._requests:
            request.cancel()

    def _get_request(self) -> Any:
        if not hasattr(self._thread_local, "request"):
            self._thread_local.request = self.compiled.create_infer_request()
            self._requests.append(self._thread_local.request)
        return self._thread_local.request


def load_engine(folder: Path, contents: EngineContents, config: EngineConfig) -> Engine:
    """Compile ``model.xml`` for one batch size.

    Args:
        folder: the model folder; not used.
        contents: the content of ``model.xml`` and ``model.bin``.
        config: the configuration to load.

    Raises:
        MachineError: bf16 on a processor without bf16 instructions, or ``model.xml`` is not XML.
    """
    if not contents[_MODEL].startswith(b"<?xml"):  # openvino also reads other formats, which may name other files
        raise MachineError(f"{_MODEL} is not an OpenVINO graph")
    core = get_core()
    precision = _select_precision_hint(core, config.precision)
    model = core.read_model(contents[_MODEL], contents[_WEIGHTS])
    model.reshape([config.batch_size, *(dim.get_length() for dim in model.input().get_partial_shape()[1:])])
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": config.streams,
        "INFERENCE_NUM_THREADS": config.threads * config.streams,
    }
    compiled = core.compile_model(model, "CPU", settings)
    actual_precision = compiled.get_property("INFERENCE_PRECISION_HINT")
    if actual_precision.get_type_name() != precision:  # openvino changes the precision without an error
        raise bf16_unsupported_error()
    engine = OpenVinoEngine(config, compiled)
    # openvino's Python code initializes itself in the first call, and deadlocks if two threads do that at once
    engine(np.zeros((1, *model.input().get_shape()[1:]), np.uint8))
    return engine


@functools.cache
def get_core() -> Any:
    """Return the OpenVINO core, one for the whole process.

    Each core installs an alternative signal stack and restores the previous one when it is destroyed. If the first of
    two cores is destroyed first, the second restores a stack that is freed, and the next signal crashes the process.
    """
    return import_without_telemetry("openvino").Core()


def _select_precision_hint(core: Any, precision: str) -> str:
    """Return OpenVINO's name; layers that int8 leaves run in bf16 if the processor does not emulate it."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise bf16_unsupported_error()
    return "f32" if precision == "fp32" or not has_bf16 else "bf16"
