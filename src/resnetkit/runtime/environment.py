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
    "tyro",
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
_FEATURES = ("avx2", "avx512_", "amx_", "neon", "sve")  # and all that begin so
_PROCESSORS = Path("/proc/cpuinfo")
_CODECS = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp"}  # parts that Pillow may be built without


def versions() -> dict[str, str]:
    """Package -> version, ``not installed`` where there is none."""
    return {name: _version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Versions, processor, devices and threads; memory in bytes. Imports torch, and says why where that fails."""
    return {
        "python": sys.version.split()[0],
        "system": _system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        **_seen_by_torch(),
        "packages": versions(),
    }


def _seen_by_torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return {"threads": None, "features": [], "gpus": [], "gpu_memory": [], "fault": str(error)}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    able = torch.cpu.get_capabilities()
    return {
        "threads": torch.get_num_threads(),
        "features": sorted(name for name, has in able.items() if has is True and name.startswith(_FEATURES)),
        "gpus": [gpu.name for gpu in gpus],
        "gpu_memory": [gpu.total_memory for gpu in gpus],
    }


def _system() -> str:
    """As `platform.platform` says it, which would start a process to find out what nobody asks here."""
    known = platform.uname()
    return "-".join(filter(None, (known.system, known.release, known.machine, "".join(platform.libc_ver()))))


def processor() -> str:
    """What the processor is called. `platform.processor` would start a process, too."""
    return _told_of_it("model name") or platform.machine()


_DECIDES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def abilities() -> tuple[str, ...]:
    """Those that decide how fast it multiplies: a machine of the same name may be given fewer. No torch."""
    flags = _told_of_it("flags").split()
    return tuple(name for name in _DECIDES if name in flags)


def _told_of_it(what: str) -> str:
    """What the system says of the first processor; empty where it says nothing."""
    try:
        told = _PROCESSORS.read_text("utf-8", "replace")
    except OSError:
        return ""
    found = re.search(rf"^{what}\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else ""


def decodable(formats: Sequence[str]) -> list[str]:
    """The formats of pictures among these that Pillow can decode as it is built here."""
    from PIL import features

    return [name for name in formats if name not in _CODECS or features.check(_CODECS[name])]


def extras() -> dict[str, list[str]]:
    """Extra -> the packages of it that are missing; none where it is present. Read from the package's own metadata."""
    try:
        own = metadata.metadata("resnetkit")
    except metadata.PackageNotFoundError:  # run from its source, uninstalled
        return {}
    needs = _needs(own.get_all("Requires-Dist") or [])
    return {extra: missing(extra, needs) for extra in own.get_all("Provides-Extra") or []}


def missing(extra: str, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """What an extra needs and is not installed; an extra may name others: ``resnetkit[demo]``."""
    found = []
    for need in needs.get(extra, ()):
        name, _, others = need.rstrip("]").partition("[")
        if name == "resnetkit":
            found += [package for other in others.split(",") for package in missing(other, needs)]
        elif _version(name) == _ABSENT:
            found.append(name)
    return found


def _needs(lines: Sequence[str]) -> dict[str, list[str]]:
    """Extra -> its packages, from lines such as ``scikit-learn>=1.7; extra == "demo"``."""
    needs: dict[str, list[str]] = {}
    for line in lines:
        extra = re.search(r"""extra\s*==\s*['"]([\w.-]+)['"]""", line)
        package = re.match(r"[\w.-]+(\[[\w.,-]+\])?", line.replace(" ", ""))
        if extra and package:
            needs.setdefault(extra[1], []).append(package[0])
    return needs


@dataclass(frozen=True)
class Trial:
    """A multiplication of matrices that was tried on a device."""

    precision: str
    milliseconds: float
    right: bool


def try_out(device: torch.device) -> list[Trial]:
    """Multiply two small matrices on a device, in fp32 and in bf16."""
    return [_multiply(device, precision) for precision in ("fp32", "bf16")]


def _multiply(device: torch.device, precision: str) -> Trial:
    import torch

    # Every sum of products is a whole number up to 256, which both precisions hold exactly in any order of adding.
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-1, 2, (256, 256), generator=draw) for _ in range(2))
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    ours = [matrix.to(device, kind) for matrix in (left, right)]
    (ours[0] @ ours[1]).cpu()  # the first time also loads libraries
    begun = time.perf_counter()
    answer = (ours[0] @ ours[1]).cpu()
    seconds = time.perf_counter() - begun
    return Trial(precision, 1000 * seconds, torch.equal(answer.long(), left @ right))


_ABSENT = "not installed"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _ABSENT
