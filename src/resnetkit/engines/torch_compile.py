"""torch.compile with frozen weights, for one size of batch. It compiles when it is opened.

Shapes: pixels are N H W C, 8 bits; logits are N K, fp32.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit import files
from resnetkit.engines import torch_eager as eager
from resnetkit.engines.base import Engine, EngineConfig, Logits, pad_batch
from resnetkit.engines.no_telemetry import silence
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    import torch

    from resnetkit.engines.export import ExportModule
    from resnetkit.network.layers import NetworkModule

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_RECOMPILE_LIMIT = 128  # in one process; torch takes each for another form of one function, and stops at 8


def export_artifact(network: NetworkModule, artifact: Path, precision: str, pixels: Pixels | None) -> None:
    """Nothing: what the compiler made is kept in the user's cache, as code from a model folder is never run."""


class CompiledEngine:
    """The network as its compiler left it."""

    def __init__(
        self, config: EngineConfig, function: Callable[[torch.Tensor], torch.Tensor], device: torch.device
    ) -> None:
        self.config = config
        self._function = function
        self._device = device

    def __call__(self, pixels: Pixels) -> Logits:
        import torch

        if torch.get_num_threads() != self.config.threads:  # it would be compiled again, for another number
            torch.set_num_threads(self.config.threads)
        batch = eager.as_tensor(pad_batch(pixels, self.config.batch_size)).to(self._device)
        with torch.no_grad():  # in which it was compiled
            logits: Logits = self._function(batch).cpu().numpy()
        return logits[: len(pixels)]


def load_engine(folder: Path, artifact: Path, config: EngineConfig) -> Engine:
    """Raises `MachineError` where there is no C++ compiler, and for what `eager` does."""
    import torch

    os.environ.setdefault(_CACHE_VARIABLE, str(files.get_cache_folder() / "inductor"))
    network, device = eager.load_export_module(folder, config)
    engine = CompiledEngine(config, torch.compile(network, dynamic=False, fullgraph=True), device)
    _warm_up(engine, network, config)
    return engine


def _warm_up(engine: Engine, network: ExportModule, engine_config: EngineConfig) -> None:
    """The first call, which compiles. Weights are frozen into the code, so no gradient can be asked for."""
    from torch._dynamo import config as limits
    from torch._inductor import config, exc

    from resnetkit.engines.export import make_example_input

    pixels = make_example_input(network.network.card, engine_config.batch_size).numpy()
    try:
        with silence(), config.patch(freezing=True), limits.patch(recompile_limit=_RECOMPILE_LIMIT):
            engine(pixels)
    except exc.InductorError as error:
        if not isinstance(error.inner_exception, exc.InvalidCxxCompiler):
            raise
        fix = "install g++ or clang (CXX names it), or take another engine"
        raise MachineError("torch compiles with a C++ compiler, and finds none here", fix=fix) from None
