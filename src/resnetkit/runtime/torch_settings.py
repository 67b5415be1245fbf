"""Context managers for torch's global settings: number of threads and TF32.

Torch is imported when a setting is changed.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Restore torch's number of threads and its TF32 settings after the body."""
    import torch

    threads, matmul_precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    cudnn_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul_precision)
        torch.backends.cudnn.allow_tf32 = cudnn_tf32


@contextlib.contextmanager
def strict_fp32(precision: str, device: str) -> Iterator[None]:
    """Disable TF32 during the body, and restore it afterwards.

    Args:
        precision: the precision of the network; nothing changes unless it is ``fp32``.
        device: the type of the device; nothing changes unless it is ``cuda``.
    """
    with restore_torch_settings() if _can_use_tf32(precision, device) else contextlib.nullcontext():
        disable_tf32(precision, device)
        yield


def disable_tf32(precision: str, device: str) -> None:
    """Disable TF32, which rounds the factors of a convolution to 10 bits and is torch's default on GPUs.

    Args:
        precision: the precision of the network; nothing changes unless it is ``fp32``.
        device: the type of the device; nothing changes unless it is ``cuda``.
    """
    if _can_use_tf32(precision, device):
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")


def _can_use_tf32(precision: str, device: str) -> bool:
    return precision == "fp32" and device == "cuda"
