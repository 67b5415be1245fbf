"""The environment, in a form to paste into a report of a fault.

This module imports no torch.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "resnetkit",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "rich",
    "scikit-learn",
    "pyarrow",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "tensorboard",
    "mlflow-skinny",
    "wandb",
)
_FEATURE_PREFIXES = ("avx2", "avx512_", "amx_", "neon", "sve")  # and all that begin so
_CPUINFO = Path("/proc/cpuinfo")
_CODECS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}  # parts that Pillow may be built without


def collect_versions() -> dict[str, str]:
    """Package -> version, ``not installed`` where there is none."""
    return {name: _get_version(name) for name in PACKAGES}


def collect_environment() -> dict[str, Any]:
    """Versions, processor, devices and threads; memory in bytes. Imports torch, and says why where that fails."""
    return {
        "python": sys.version.split()[0],
        "system": _format_platform(),
        "machine": platform.machine(),
        "processor": get_processor_name(),
        "cores": os.cpu_count(),
        **_collect_torch_info(),
        "packages": collect_versions(),
    }


def _collect_torch_info() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return {"threads": None, "features": [], "gpus": [], "gpu_memory": [], "fault": str(error)}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    capabilities = torch.cpu.get_capabilities()
    return {
        "threads": torch.get_num_threads(),
        "features": sorted(
            name
            for name, is_supported in capabilities.items()
            if is_supported is True and name.startswith(_FEATURE_PREFIXES)
        ),
        "gpus": [gpu.name for gpu in gpus],
        "gpu_memory": [gpu.total_memory for gpu in gpus],
    }


def _format_platform() -> str:
    """As `platform.platform` says it, which would start a process to find out what nobody asks here."""
    uname = platform.uname()
    return "-".join(filter(None, (uname.system, uname.release, uname.machine, "".join(platform.libc_ver()))))


def get_processor_name() -> str:
    """What the processor is called. `platform.processor` would start a process, too."""
    return _read_cpuinfo("model name") or platform.machine()


_SPEED_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def get_cpu_features() -> tuple[str, ...]:
    """Those that decide how fast it multiplies: a machine of the same name may be given fewer. No torch."""
    flags = _read_cpuinfo("flags").split()
    return tuple(name for name in _SPEED_FEATURES if name in flags)


def _read_cpuinfo(key: str) -> str:
    """What the system says of the first processor; empty where it says nothing."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def select_decodable_formats(formats: Sequence[str]) -> list[str]:
    """The formats of pictures among these that Pillow can decode as it is built here."""
    from PIL import features

    return [name for name in formats if name not in _CODECS or features.check(_CODECS[name])]


def list_extras() -> dict[str, list[str]]:
    """Extra -> the packages of it that are missing; none where it is present. Read from the package's own metadata."""
    try:
        package_metadata = metadata.metadata("resnetkit")
    except metadata.PackageNotFoundError:  # run from its source, uninstalled
        return {}
    requirements = _parse_requirements(package_metadata.get_all("Requires-Dist") or [])
    return {
        extra: find_missing_packages(extra, requirements) for extra in package_metadata.get_all("Provides-Extra") or []
    }


def find_missing_packages(extra: str, requirements: Mapping[str, Sequence[str]]) -> list[str]:
    """What an extra needs and is not installed; an extra may name others: ``resnetkit[demo]``."""
    packages = []
    for requirement in requirements.get(extra, ()):
        name, _, nested_extras = requirement.rstrip("]").partition("[")
        if name == "resnetkit":
            packages += [
                package
                for nested_extra in nested_extras.split(",")
                for package in find_missing_packages(nested_extra, requirements)
            ]
        elif _get_version(name) == _NOT_INSTALLED:
            packages.append(name)
    return packages


def _parse_requirements(lines: Sequence[str]) -> dict[str, list[str]]:
    """Extra -> its packages, from lines such as ``scikit-learn>=1.7; extra == "demo"``."""
    requirements: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"""extra\s*==\s*['"]([\w.-]+)['"]""", line)
        package = re.match(r"[\w.-]+(\[[\w.,-]+\])?", line.replace(" ", ""))
        if extra and package:
            requirements.setdefault(extra[1], []).append(package[0])
    return requirements


@dataclass(frozen=True)
class MatmulCheck:
    """A multiplication of matrices that was tried on a device."""

    precision: str
    milliseconds: float
    correct: bool


def run_matmul_checks(device: torch.device) -> list[MatmulCheck]:
    """Multiply two small matrices on a device, in fp32 and in bf16."""
    return [_check_matmul(device, precision) for precision in ("fp32", "bf16")]


def _check_matmul(device: torch.device, precision: str) -> MatmulCheck:
    import torch

    # Every sum of products is a whole number up to 256, which both precisions hold exactly in any order of adding.
    generator = torch.Generator().manual_seed(0)
    lhs, rhs = (torch.randint(-1, 2, (256, 256), generator=generator) for _ in range(2))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    operands = [matrix.to(device, dtype) for matrix in (lhs, rhs)]
    (operands[0] @ operands[1]).cpu()  # the first time also loads libraries
    start = time.perf_counter()
    product = (operands[0] @ operands[1]).cpu()
    seconds = time.perf_counter() - start
    return MatmulCheck(precision, 1000 * seconds, torch.equal(product.long(), lhs @ rhs))


_NOT_INSTALLED = "not installed"


def _get_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _NOT_INSTALLED
