"""Switches of torch, which belong to the whole program: who asks a network turns them, and turns them back.

Torch is imported when a setting is changed.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def restore_torch_settings() -> Iterator[None]:
    """After the body torch has the number of threads, and multiplies fp32 in what it did, as before it."""
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
    """`multiply_exactly` for as long as the body runs; nothing is touched where there is nothing to turn."""
    with restore_torch_settings() if _can_use_tf32(precision, device) else contextlib.nullcontext():
        disable_tf32(precision, device)
        yield


def _can_use_tf32(precision: str, device: str) -> bool:
    """Whether torch would multiply in less than is asked for."""
    return precision == "fp32" and device == "cuda"


def disable_tf32(precision: str, device: str) -> None:
    """Let fp32 on a GPU be fp32: by itself torch rounds what convolutions multiply to the 10 bits of TF32."""
    if _can_use_tf32(precision, device):
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
