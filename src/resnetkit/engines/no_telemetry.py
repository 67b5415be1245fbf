"""Import openvino, nncf and onnxruntime so that they send nothing, write nothing into home and print nothing.

openvino and nncf install `openvino_telemetry`. It writes into the home folder and sends usage data as soon as nncf is
imported or a model is converted; it does not under CI and pytest. Both libraries work without that package, so this
module makes its import fail. onnxruntime (from 1.29 on) sends usage data from its C++ code, unless
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
    """Import a module of openvino, nncf, onnx, onnxscript or onnxruntime with telemetry disabled.

    Raises:
        MachineError: the extra of the package is not installed.
    """
    package = module_name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise missing_extra_error(package, _EXTRAS[package])
    block_telemetry()
    with silence():
        module = importlib.import_module(module_name)
    if package == "onnxruntime":  # the user's program may have imported it before the variable was set
        importlib.import_module(package).disable_telemetry_events()
    return module


def block_telemetry() -> None:
    """Make later imports of the telemetry package fail, and disable the one already imported, if any."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    telemetry = sys.modules.get(f"{_TELEMETRY}.main")
    for name in [name for name in sys.modules if name.partition(".")[0] == _TELEMETRY]:
        del sys.modules[name]
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system raises ImportError for None
    for name, value in list(vars(telemetry.Telemetry).items()) if telemetry else ():
        if callable(value) and not name.startswith("__"):
            setattr(telemetry.Telemetry, name, _do_nothing)  # type: ignore[union-attr]


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Replace a method that sends usage data."""


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress what libraries print, log and warn about while they are imported or export an engine.

    Errors are still raised, and `optimize` compares the engine's logits with fp32.
    """
    root, previous_level = logging.getLogger(), logging.root.manager.disable
    handlers = root.handlers[:]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # about their own code
            warnings.simplefilter("ignore", category)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous_level)
            root.handlers[:] = handlers  # a library's logging.warning() adds a handler to the root logger
