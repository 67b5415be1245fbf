"""Where a network runs, and in which precision."""

from __future__ import annotations

import typing
from typing import Literal

import torch

from resnetkit.errors import MachineError, UsageError, suggest_fix

Precision = Literal["auto", "fp32", "bf16"]


def select_device(device: str = "auto") -> torch.device:
    """``auto`` is the GPU where there is one; raises `UsageError` or `MachineError` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        selected = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no kind of device called {device!r}", fix="--device cpu, cuda or auto") from None
    if selected.type not in ("cpu", "cuda"):
        raise UsageError(f"resnetkit does not compute on {device!r}", fix="--device cpu, cuda or auto")
    if selected.type == "cuda" and (selected.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"this machine has no {device}", fix="--device auto takes what there is")
    return selected


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies in bf16 (AVX512-BF16 or AMX on a CPU), so that it is faster and not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def select_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """``auto`` decided."""
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def parse_precision(text: str) -> Precision:
    """A word of the command line as a `Precision`; raises `UsageError`."""
    allowed = typing.get_args(Precision)
    if text not in allowed:
        raise UsageError(f"there is no precision called {text!r}", where="--precision", fix=suggest_fix(text, allowed))
    return typing.cast(Precision, text)
