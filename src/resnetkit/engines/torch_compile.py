"""torch.compile with frozen weights, for one batch size. It compiles when it is loaded.

Shapes: pixels (N, H, W, C) uint8, logits (N, K) fp32.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from resnetkit import files
from resnetkit.engines.base import Engine, EngineConfig, EngineContents, FunctionEngine, Logits, pad_batch
from resnetkit.engines.export import make_example_input, pixels_to_tensor
from resnetkit.engines.no_telemetry import silence
from resnetkit.engines.torch_eager import export_artifact as export_artifact  # noqa: PLC0414  nothing to export either
from resnetkit.engines.torch_eager import load_export_module
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_RECOMPILE_LIMIT = 128  # torch counts each engine of a process as a recompilation of one function, and stops at 8


def load_engine(folder: Path, contents: EngineContents, config: EngineConfig) -> Engine:
    """Compile the network of a model folder, with the user's cache for compiled code.

    The cache stays out of the model folder: resnetkit never runs code that a model folder holds.

    Args:
        folder: the model folder.
        contents: not used.
        config: the configuration to load.

    Raises:
        MachineError: no C++ compiler, or bf16 on a processor without bf16 instructions.
    """
    os.environ.setdefault(_CACHE_VARIABLE, str(files.get_cache_folder() / "inductor"))
    network, device = load_export_module(folder, config)
    compiled = torch.compile(network, dynamic=False, fullgraph=True)

    @torch.no_grad()  # as during compilation
    def infer(pixels: Pixels) -> Logits:
        if torch.get_num_threads() != config.threads:  # another number would compile it again
            torch.set_num_threads(config.threads)
        batch = pixels_to_tensor(pad_batch(pixels, config.batch_size)).to(device)
        return compiled(batch).cpu().numpy()[: len(pixels)]  # type: ignore[no-any-return]

    engine = FunctionEngine(config, infer)
    _warm_up(engine, make_example_input(network.network.card, config.batch_size).numpy())
    return engine


def _warm_up(engine: Engine, pixels: Pixels) -> None:
    """Run the first call, which compiles with the weights as constants."""
    from torch._dynamo import config as limits
    from torch._inductor import config, exc

    try:
        with silence(), config.patch(freezing=True), limits.patch(recompile_limit=_RECOMPILE_LIMIT):
            engine(pixels)
    except exc.InductorError as error:
        if not isinstance(error.inner_exception, exc.InvalidCxxCompiler):
            raise
        fix = "install g++ or clang (the variable CXX names it), or use another engine"
        raise MachineError("torch.compile needs a C++ compiler, and none is installed", fix=fix) from None
