"""Versions, hardware and settings of this machine, for bug reports and for the record of a run.

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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.errors import read_extras

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "resnetkit", "torch", "torchvision", "numpy", "pillow", "simplejpeg", "safetensors", "rich", "scikit-learn",
    "pyarrow", "openvino", "nncf", "onnx", "onnxruntime", "tensorboard", "mlflow-skinny", "wandb",
)  # fmt: skip
_FEATURE_PREFIXES = ("avx2", "avx512_", "amx_", "neon", "sve")  # of the names in torch.cpu.get_capabilities()
_CPUINFO = Path("/proc/cpuinfo")
_CODECS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif"}  # optional features of a Pillow build


def collect_versions() -> dict[str, str]:
    """Return package -> version, or ``not installed``."""
    return {name: _get_version(name) for name in PACKAGES}


def collect_environment() -> dict[str, Any]:
    """Return versions, processor, GPUs and number of threads; GPU memory in bytes.

    If torch cannot be imported, ``error`` holds the reason.
    """
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
        return {"threads": None, "features": [], "gpus": [], "gpu_memory": [], "error": str(error)}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    flags = torch.cpu.get_capabilities().items()
    return {
        "threads": torch.get_num_threads(),
        "features": sorted(name for name, value in flags if value is True and name.startswith(_FEATURE_PREFIXES)),
        "gpus": [gpu.name for gpu in gpus],
        "gpu_memory": [gpu.total_memory for gpu in gpus],
    }


def _format_platform() -> str:
    """Return what `platform.platform` does, which would also start a process to read the processor's name."""
    uname = platform.uname()
    return "-".join(filter(None, (uname.system, uname.release, uname.machine, "".join(platform.libc_ver()))))


def get_processor_name() -> str:
    """Return the name of the processor; `platform.processor` would start a process."""
    return _read_cpuinfo("model name") or platform.machine()


_SPEED_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def get_cpu_features() -> tuple[str, ...]:
    """Return the instruction sets that decide the speed of inference, read without torch.

    Two virtual machines with the same processor name may offer different ones.
    """
    flags = _read_cpuinfo("flags").split()
    return tuple(name for name in _SPEED_FEATURES if name in flags)


def _read_cpuinfo(key: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo, or an empty string."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def select_decodable_formats(formats: Sequence[str]) -> list[str]:
    """Return the image formats that this build of Pillow can decode."""
    from PIL import features

    return [name for name in formats if name not in _CODECS or features.check(_CODECS[name])]


def list_extras() -> dict[str, list[str]]:
    """Return extra -> its missing packages, read from the metadata of resnetkit."""
    requirements = read_extras()
    return {extra: find_missing_packages(extra, requirements) for extra in requirements}


def find_missing_packages(extra: str, requirements: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the packages of an extra that are not installed.

    Args:
        extra: the name of the extra.
        requirements: extra -> packages; a package ``resnetkit[demo]`` stands for the extra ``demo``.
    """
    packages: list[str] = []
    for requirement in requirements.get(extra, ()):
        name, *nested_extras = re.findall(r"[\w.-]+", requirement.partition("]")[0])
        if name == "resnetkit":
            packages += chain.from_iterable(find_missing_packages(nested, requirements) for nested in nested_extras)
        elif _get_version(name) == _NOT_INSTALLED:
            packages.append(name)
    return packages


@dataclass(frozen=True)
class MatmulCheck:
    """The duration of a matrix multiplication on a device, and whether its result was exact."""

    precision: str
    milliseconds: float
    correct: bool


def run_matmul_checks(device: torch.device) -> list[MatmulCheck]:
    """Multiply two 256 x 256 matrices on a device, in fp32 and in bf16."""
    return [_check_matmul(device, precision) for precision in ("fp32", "bf16")]


def _check_matmul(device: torch.device, precision: str) -> MatmulCheck:
    import torch

    # Every partial sum is an integer up to 256, which fp32 and bf16 represent exactly in any order of additions.
    generator = torch.Generator().manual_seed(0)
    lhs, rhs = (torch.randint(-1, 2, (256, 256), generator=generator) for _ in range(2))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    operands = [matrix.to(device, dtype) for matrix in (lhs, rhs)]
    (operands[0] @ operands[1]).cpu()  # the first call also loads libraries
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
