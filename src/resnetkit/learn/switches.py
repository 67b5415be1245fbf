"""Switches of torch, which belong to the whole program: who asks a network turns them, and turns them back.

No torch, until it is to be turned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """After the body torch has the number of threads, and multiplies fp32 in what it did, as before it."""
    import torch

    threads, exact = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(exact)
        torch.backends.cudnn.allow_tf32 = convolutions


def multiply_exactly(precision: str, device: str) -> None:
    """Let fp32 on a GPU be fp32: by itself torch rounds what convolutions multiply to the 10 bits of TF32."""
    if precision == "fp32" and device == "cuda":
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
