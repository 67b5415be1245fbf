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
from resnetkit.engines.base import Choice, Engine, Logits, padded
from resnetkit.engines.no_telemetry import silence
from resnetkit.errors import MachineError
from resnetkit.images.prepare import Pixels

if TYPE_CHECKING:
    import torch

    from resnetkit.engines.export import Served
    from resnetkit.network.layers import Network

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_ENGINES = 128  # in one process; torch takes each for another form of one function, and stops at 8


def make(network: Network, artefact: Path, precision: str, pixels: Pixels | None) -> None:
    """Nothing: what the compiler made is kept in the user's cache, as code from a model folder is never run."""


class Compiled:
    """The network as its compiler left it."""

    def __init__(self, choice: Choice, function: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> None:
        self.choice = choice
        self._function = function
        self._device = device

    def __call__(self, pixels: Pixels) -> Logits:
        import torch

        if torch.get_num_threads() != self.choice.threads:  # it would be compiled again, for another number
            torch.set_num_threads(self.choice.threads)
        given = eager.as_tensor(padded(pixels, self.choice.batch)).to(self._device)
        with torch.no_grad():  # in which it was compiled
            answer: Logits = self._function(given).cpu().numpy()
        return answer[: len(pixels)]


def open(folder: Path, artefact: Path, choice: Choice) -> Engine:  # noqa: A001  the word of `engine.Backend`
    """Raises `MachineError` where there is no C++ compiler, and for what `eager` does."""
    import torch

    os.environ.setdefault(_CACHE, str(files.cache_folder() / "inductor"))
    network, device = eager.served(folder, choice)
    engine = Compiled(choice, torch.compile(network, dynamic=False, fullgraph=True), device)
    _first(engine, network, choice)
    return engine


def _first(engine: Engine, network: Served, choice: Choice) -> None:
    """The first call, which compiles. Weights are frozen into the code, so no gradient can be asked for."""
    from torch._dynamo import config as limits
    from torch._inductor import config, exc

    from resnetkit.engines.export import example

    black = example(network.network.card, choice.batch).numpy()
    try:
        with silence(), config.patch(freezing=True), limits.patch(recompile_limit=_ENGINES):
            engine(black)
    except exc.InductorError as error:
        if not isinstance(error.inner_exception, exc.InvalidCxxCompiler):
            raise
        fix = "install g++ or clang (CXX names it), or take another engine"
        raise MachineError("torch compiles with a C++ compiler, and finds none here", fix=fix) from None
