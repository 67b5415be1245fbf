"""Run a network on images: normalize pixels, and compute logits in evaluation mode."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from resnetkit.architecture.card import Preparation, get_labels
from resnetkit.images.prepare import compute_scale_and_shift
from resnetkit.network.consistency import check_class_count
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.device import Precision, select_precision
from resnetkit.runtime.torch_settings import strict_fp32


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Set evaluation mode while the body runs; then restore the mode of each module."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


LogitsFunction = Callable[[Tensor], Tensor]


class PixelNormalizer:
    """Normalizes pixels (N, H, W, C; 8 bits) to the input of a network (N, C, H, W; fp32; channels last).

    Engines normalize inside their graph (`engines.export`), with the same scale and shift.

    Args:
        preparation: holds the mean and standard deviation of the channels.
        device: the device of the result.
    """

    def __init__(self, preparation: Preparation, device: torch.device) -> None:
        scale, shift = compute_scale_and_shift(preparation)
        self._scale = torch.from_numpy(scale)[:, None, None].to(device)
        self._shift = torch.from_numpy(shift)[:, None, None].to(device)
        self._device = device

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device).permute(0, 3, 1, 2).float() * self._scale + self._shift


@contextlib.contextmanager
def inference(
    network: NetworkModule,
    device: torch.device,
    precision: Precision = "fp32",
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[LogitsFunction]:
    """Yield a function from pixels (N, H, W, C; 8 bits) to logits (N, classes; fp32; on the CPU).

    On leaving, the network returns to its device and modes; its weights stay in channels-last order. On a GPU, fp32 is
    strict fp32 and not TF32.

    Args:
        network: the network.
        device: the device to compute on.
        precision: ``fp32``, ``bf16`` or ``auto``.
        forward: compute another output than the logits.

    Raises:
        UsageError: the classifier was replaced by one with another number of classes.
    """
    check_class_count(network)
    run_network = forward or network
    original_device = next(network.parameters()).device
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalize = PixelNormalizer(network.card.preparation, device)
    selected_precision = select_precision(precision, device)

    @torch.inference_mode()
    def compute_logits(pixels: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=selected_precision == "bf16"):
            outputs: Tensor = run_network(normalize(pixels))
        return outputs.float().cpu()

    try:
        with eval_mode(network), strict_fp32(selected_precision, device.type):
            yield compute_logits
    finally:
        network.to(original_device)


def count_network_classes(network: NetworkModule) -> int:
    """Return the number of classes of a network.

    Raises:
        UsageError: the network has no classifier.
    """
    return len(get_labels(network.card))


def compute_network_digest(network: NetworkModule) -> str:
    """Return a digest of all weights and statistics of a network."""
    hasher = hashlib.blake2b(digest_size=16)
    for tensor in network.state_dict().values():
        hasher.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
