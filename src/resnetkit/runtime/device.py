"""Where a network runs, and in which precision."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from resnetkit.architecture.card import Preparation, labels_of
from resnetkit.errors import MachineError, UsageError, suggestion
from resnetkit.images.prepare import scale_and_shift
from resnetkit.network.inference import evaluating
from resnetkit.network.layers import Network
from resnetkit.runtime.torch_settings import exactly

Precision = Literal["auto", "fp32", "bf16"]
Logits = Callable[[Tensor], Tensor]


def pick(device: str = "auto") -> torch.device:
    """``auto`` is the GPU where there is one; raises `UsageError` or `MachineError` for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no kind of device called {device!r}", fix="--device cpu, cuda or auto") from None
    if picked.type not in ("cpu", "cuda"):
        raise UsageError(f"resnetkit does not compute on {device!r}", fix="--device cpu, cuda or auto")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"this machine has no {device}", fix="--device auto takes what there is")
    return picked


def gains_by_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies in bf16 (AVX512-BF16 or AMX on a CPU), so that it is faster and not emulated."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """``auto`` decided."""
    if precision == "auto":
        return "bf16" if gains_by_bf16(device) else "fp32"
    return precision


def as_precision(word: str) -> Precision:
    """A word of the command line as a `Precision`; raises `UsageError`."""
    known = typing.get_args(Precision)
    if word not in known:
        raise UsageError(f"there is no precision called {word!r}", where="--precision", fix=suggestion(word, known))
    return typing.cast(Precision, word)


class ToInput:
    """From pixels (N H W C, 8 bits) to what the network takes (N C H W, fp32, channels last) on a device."""

    def __init__(self, preparation: Preparation, device: torch.device) -> None:
        scale, shift = scale_and_shift(preparation)
        self._scale = torch.from_numpy(scale)[:, None, None].to(device)
        self._shift = torch.from_numpy(shift)[:, None, None].to(device)
        self._device = device

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device).permute(0, 3, 1, 2).float() * self._scale + self._shift


@contextlib.contextmanager
def answering(
    network: Network,
    device: torch.device,
    precision: Precision = "fp32",
    ask: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Logits]:
    """A function from pixels to logits (N classes, fp32, on the CPU); fp32 on a GPU is fp32, not TF32.

    Afterwards the network is on the device and in the modes in which it was; its weights stay in channels-last order.

    ``ask`` is another question to the network than for its answer.
    """
    asked = ask or network
    place = next(network.parameters()).device
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    to_input = ToInput(network.card.preparation, device)
    computed = resolve(precision, device)

    @torch.inference_mode()
    def logits(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=computed == "bf16"):
            answer: Tensor = asked(to_input(pixels))
        return answer.float().cpu()

    try:
        with evaluating(network), exactly(computed, device.type):
            yield logits
    finally:
        network.to(place)


def classes_of(network: Network) -> int:
    """How many classes a network tells apart; raises `UsageError` where it has no classifier."""
    return len(labels_of(network.card))
