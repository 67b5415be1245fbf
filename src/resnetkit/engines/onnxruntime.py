"""ONNX Runtime on the processor. Opening needs neither torch nor onnx.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.engines.base import Engine, EngineConfig, Logits
from resnetkit.engines.calibration import select_calibration_pixels
from resnetkit.engines.no_telemetry import import_without_telemetry, silence
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

_MODEL, _INPUT = "model.onnx", "pixels"
_MATMUL_OPS = ("Gemm", "MatMul")


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """``model.onnx``; weights are fp32, or int8 measured on the first of ``pixels``."""
    calibration = select_calibration_pixels(precision, pixels)
    for package in ("onnx", "onnxscript"):
        import_without_telemetry(package)
    path = artifact / _MODEL
    _export(network, path)
    if calibration is not None:
        _quantize(path, precision, calibration)


def _export(network: NetworkModule, path: Path) -> None:
    import torch

    from resnetkit.engines.export import export_program

    with silence():
        torch.onnx.export(export_program(network), (), path, input_names=[_INPUT], external_data=False, verbose=False)


def _quantize(path: Path, precision: str, pixels: Pixels) -> None:
    """In place. Unsigned activations and signed weights are what VNNI multiplies, without a step between."""
    onnx, quantization = import_without_telemetry("onnx"), import_without_telemetry("onnxruntime.quantization")
    model = onnx.load(path)
    with silence():
        quantization.quantize_static(
            model,
            path,
            _CalibrationReader(pixels),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[*_find_group_norms(model), *(_find_end_nodes(model) if precision == "int8-body" else [])],
        )


def _find_end_nodes(model: Any) -> list[str]:
    """The first convolution and the last matrix product, where there is one."""
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    products = [node.name for node in model.graph.node if node.op_type in _MATMUL_OPS]
    return convolutions[:1] + products[-1:]


def _find_group_norms(model: Any) -> list[str]:
    """Group norms, as they stand in the graph: onnxruntime fails at their weights, which are ones and zeros there."""
    return [node.name for node in model.graph.node if node.op_type == "InstanceNormalization"]


class _CalibrationReader:
    """Pictures one by one, as ``quantize_static`` reads them."""

    def __init__(self, pixels: Pixels) -> None:
        self._batches: Iterator[dict[str, Pixels]] = ({_INPUT: pixels[i : i + 1]} for i in range(len(pixels)))

    def get_next(self) -> dict[str, Pixels] | None:
        """None behind the last."""
        return next(self._batches, None)


class OnnxRuntimeEngine:
    """A session, which any number of threads may ask."""

    def __init__(self, config: EngineConfig, session: Any) -> None:
        self.config = config
        self._session = session

    def __call__(self, pixels: Pixels) -> Logits:
        logits: Logits = self._session.run(None, {_INPUT: pixels})[0]
        return logits


def load_engine(folder: Path, artifact: Path, config: EngineConfig) -> Engine:
    """Its batch may be of any size."""
    runtime = import_without_telemetry("onnxruntime")
    session_options = runtime.SessionOptions()
    session_options.log_severity_level = 4  # what is fatal is raised
    session_options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = config.threads, 1
    if config.streams > 1:  # a thread that waits by spinning takes its core from the other stream
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(artifact / _MODEL, session_options, providers=["CPUExecutionProvider"])
    return OnnxRuntimeEngine(config, session)
