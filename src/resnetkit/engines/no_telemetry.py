"""The one way to openvino, nncf and onnxruntime: nothing is sent, written into home, or printed.

openvino and nncf bring `openvino_telemetry`, which writes into the home folder and sends usage data as soon as nncf is
imported or a model is converted, except under CI and pytest. Both do without the package where it is not installed, and
so they do where it cannot be imported. onnxruntime (from 1.29 on) does the same from its C++ code, except where
``ORT_DISABLE_TELEMETRY`` is set before it is imported.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from resnetkit.errors import missing_extra_error

_TELEMETRY = "openvino_telemetry"
_EXTRAS = {"openvino": "openvino", "nncf": "openvino", "onnxruntime": "onnx", "onnx": "onnx", "onnxscript": "onnx"}


def import_without_telemetry(module_name: str) -> ModuleType:
    """A library of these (``onnxruntime.quantization``); raises `MachineError` where its extra is not installed."""
    package = module_name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise missing_extra_error(package, _EXTRAS[package])
    _block_telemetry()
    with silence():
        module = importlib.import_module(module_name)
    if package == "onnxruntime":  # the most that can be done where somebody imported it before
        importlib.import_module(package).disable_telemetry_events()
    return module


def _block_telemetry() -> None:
    """No import finds the package from now on; what was imported by somebody before does nothing any more."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    telemetry = sys.modules.get(f"{_TELEMETRY}.main")
    for name in [name for name in sys.modules if name.partition(".")[0] == _TELEMETRY]:
        del sys.modules[name]
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as the import system has it: there is none
    for name, value in list(vars(telemetry.Telemetry).items()) if telemetry else ():
        if callable(value) and not name.startswith("__"):
            setattr(telemetry.Telemetry, name, _do_nothing)  # type: ignore[union-attr]


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of a method that sends."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What libraries print, log and warn of while they are imported or make an engine is not for the user.

    Errors come as exceptions all the same, and what an engine answers is compared with fp32.
    """
    root, previous_level = logging.getLogger(), logging.root.manager.disable
    handlers = root.handlers[:]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for category in (
            DeprecationWarning,
            PendingDeprecationWarning,
            FutureWarning,
        ):  # of their own use of each other
            warnings.simplefilter("ignore", category)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous_level)
            root.handlers[:] = handlers  # logging.warning() of a library gives the program a handler
