"""ONNX Runtime on the CPU. Loading an engine needs neither torch nor onnx.

Shapes: pixels (N, H, W, C) uint8, logits (N, K) fp32.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.engines.base import Engine, EngineConfig, EngineContents, FunctionEngine
from resnetkit.engines.calibration import select_calibration_pixels
from resnetkit.engines.no_telemetry import import_without_telemetry, silence
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule

_MODEL, _INPUT = "model.onnx", "pixels"


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """Write ``model.onnx`` with weights in fp32, or quantized to int8.

    Args:
        network: the network to export.
        artifact: the folder to write into.
        precision: fp32, int8, or int8-body, which keeps the first convolution and the classifier in fp32.
        pixels: images for int8 calibration (N, H, W, C).

    Raises:
        UsageError: int8 without images.
        MachineError: onnx or onnxscript is not installed.
    """
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
    """Quantize the file in place; VNNI multiplies unsigned activations by signed weights directly."""
    onnx, quantization = import_without_telemetry("onnx"), import_without_telemetry("onnxruntime.quantization")
    model = onnx.load(path)
    # onnxruntime fails at the weights of group norms, which the graph holds as instance norms of ones and zeros
    excluded = _list_nodes(model, "InstanceNormalization")
    if precision == "int8-body":
        excluded += _list_nodes(model, "Conv")[:1] + _list_nodes(model, "Gemm", "MatMul")[-1:]
    with silence():
        quantization.quantize_static(
            model,
            path,
            _CalibrationReader(pixels),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=excluded,
        )


def _list_nodes(model: Any, *op_types: str) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in op_types]


class _CalibrationReader:
    """Images one by one, as ``quantize_static`` reads them."""

    def __init__(self, pixels: Pixels) -> None:
        self._batches: Iterator[dict[str, Pixels]] = ({_INPUT: pixels[i : i + 1]} for i in range(len(pixels)))

    def get_next(self) -> dict[str, Pixels] | None:
        """Return the next input, or None after the last."""
        return next(self._batches, None)


def load_engine(folder: Path, contents: EngineContents, config: EngineConfig) -> Engine:
    """Load ``model.onnx`` as a session, which accepts batches of any size from any number of threads.

    Args:
        folder: the model folder; not used.
        contents: the content of ``model.onnx``.
        config: the configuration to load.
    """
    runtime = import_without_telemetry("onnxruntime")
    session_options = runtime.SessionOptions()
    session_options.log_severity_level = 4  # fatal; errors are raised as well
    session_options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = config.threads, 1
    if config.streams > 1:  # a spinning thread takes its core from another stream
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # tensors that lie in other files are looked for here, and not found; a graph could name any file otherwise
    session_options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    session = runtime.InferenceSession(contents[_MODEL], session_options, providers=["CPUExecutionProvider"])
    run_options = runtime.RunOptions()
    return FunctionEngine(
        config,
        lambda pixels: session.run(None, {_INPUT: pixels}, run_options)[0],
        cancel=lambda: setattr(run_options, "terminate", True),
    )
