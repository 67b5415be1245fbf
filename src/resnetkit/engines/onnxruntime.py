"""ONNX Runtime on the processor. Opening needs neither torch nor onnx.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.engines.base import Choice, Engine, Logits
from resnetkit.engines.no_telemetry import quietly, silence
from resnetkit.engines.ranges import require_pixels
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    from resnetkit.network.layers import Network

_MODEL, _INPUT = "model.onnx", "pixels"
_PRODUCTS = ("Gemm", "MatMul")


def make(network: Network, artefact: Path, precision: str, pixels: Pixels | None) -> None:
    """``model.onnx``; weights are fp32, or int8 measured on the first of ``pixels``."""
    measured = require_pixels(precision, pixels)
    for package in ("onnx", "onnxscript"):
        quietly(package)
    path = artefact / _MODEL
    _export(network, path)
    if measured is not None:
        _quantise(path, precision, measured)


def _export(network: Network, path: Path) -> None:
    import torch

    from resnetkit.engines.export import exported

    with silence():
        torch.onnx.export(exported(network), (), path, input_names=[_INPUT], external_data=False, verbose=False)


def _quantise(path: Path, precision: str, pixels: Pixels) -> None:
    """In place. Unsigned activations and signed weights are what VNNI multiplies, without a step between."""
    onnx, by = quietly("onnx"), quietly("onnxruntime.quantization")
    model = onnx.load(path)
    with silence():
        by.quantize_static(
            model,
            path,
            _Measured(pixels),
            quant_format=by.QuantFormat.QDQ,
            per_channel=True,
            activation_type=by.QuantType.QUInt8,
            weight_type=by.QuantType.QInt8,
            nodes_to_exclude=[*_unrounded(model), *(_ends(model) if precision == "int8-body" else [])],
        )


def _ends(model: Any) -> list[str]:
    """The first convolution and the last matrix product, where there is one."""
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    products = [node.name for node in model.graph.node if node.op_type in _PRODUCTS]
    return convolutions[:1] + products[-1:]


def _unrounded(model: Any) -> list[str]:
    """Group norms, as they stand in the graph: onnxruntime fails at their weights, which are ones and zeros there."""
    return [node.name for node in model.graph.node if node.op_type == "InstanceNormalization"]


class _Measured:
    """Pictures one by one, as ``quantize_static`` reads them."""

    def __init__(self, pixels: Pixels) -> None:
        self._left: Iterator[dict[str, Pixels]] = ({_INPUT: pixels[i : i + 1]} for i in range(len(pixels)))

    def get_next(self) -> dict[str, Pixels] | None:
        """None behind the last."""
        return next(self._left, None)


class OnnxRuntime:
    """A session, which any number of threads may ask."""

    def __init__(self, choice: Choice, session: Any) -> None:
        self.choice = choice
        self._session = session

    def __call__(self, pixels: Pixels) -> Logits:
        found: Logits = self._session.run(None, {_INPUT: pixels})[0]
        return found


def open(folder: Path, artefact: Path, choice: Choice) -> Engine:  # noqa: A001  the word of `engine.Backend`
    """Its batch may be of any size."""
    runtime = quietly("onnxruntime")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4  # what is fatal is raised
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.intra_op_num_threads, settings.inter_op_num_threads = choice.threads, 1
    if choice.streams > 1:  # a thread that waits by spinning takes its core from the other stream
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.InferenceSession(artefact / _MODEL, settings, providers=["CPUExecutionProvider"])
    return OnnxRuntime(choice, session)
