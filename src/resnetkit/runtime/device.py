"""Selection of the device and the precision that a network runs in."""

from __future__ import annotations

import typing
from typing import Literal

import torch

from resnetkit.errors import MachineError, UsageError, suggest_fix

Precision = Literal["auto", "fp32", "bf16"]


def select_device(device: str = "auto") -> torch.device:
    """Return the device with this name; ``auto`` is the GPU if the machine has one.

    Raises:
        UsageError: the name is not a device that resnetkit supports.
        MachineError: this machine does not have the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}", fix="--device cpu, cuda or auto") from None
    if selected.type not in ("cpu", "cuda"):
        raise UsageError(f"resnetkit does not support the device {device!r}", fix="--device cpu, cuda or auto")
    if selected.type == "cuda" and (selected.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"this machine does not have {device}", fix="--device auto, or --device cpu")
    return selected


def has_fast_bf16(device: torch.device) -> bool:
    """Check whether the device multiplies bf16 natively (AVX512-BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def select_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision; for ``auto``, bf16 if the device is fast in it, else fp32.

    Args:
        precision: the requested precision.
        device: the device that the network runs on.
    """
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def parse_precision(text: str) -> Precision:
    """Return the value of ``--precision`` as a `Precision`.

    Raises:
        UsageError: the text is not ``auto``, ``fp32`` or ``bf16``.
    """
    allowed = typing.get_args(Precision)
    if text not in allowed:
        raise UsageError(f"unknown precision {text!r}", where="--precision", fix=suggest_fix(text, allowed))
    return typing.cast(Precision, text)
