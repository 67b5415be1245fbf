"""The environment, in a form to paste into a report of a fault."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("resnetkit", "torch", "torchvision", "numpy", "pillow", "safetensors", "tyro", "rich", "scikit-learn")
_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")


def versions() -> dict[str, str]:
    """Package -> version, ``not installed`` where there is none."""
    return {name: _version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Versions, processor, devices and threads. Imports torch."""
    import torch

    able = torch.cpu.get_capabilities()
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": [name for name in _FEATURES if able.get(name)],
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
