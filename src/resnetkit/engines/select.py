"""Select the engine for a model, and open it: a saved engine, or the network itself in PyTorch ("torch").

``auto`` takes the saved engine that is expected to finish soonest, and ``torch`` if no saved engine is usable.

This module imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.architecture.card import Card, get_labels, read_card
from resnetkit.engines.accuracy_check import Fp32Reference
from resnetkit.engines.base import ENGINE_SPECS, Engine, Logits
from resnetkit.engines.fallback import FallbackEngine, GuardedEngine, load_guarded_engine
from resnetkit.engines.saved import SavedEngine, compute_weights_digest, find_usable_engines, format_optimize_command
from resnetkit.errors import UsageError, VerificationError, WeightsError
from resnetkit.images.prepare import Pixels
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.memory_limit import limit_memory
from resnetkit.runtime.threads import WorkerPool
from resnetkit.runtime.torch_settings import restore_torch_settings
from resnetkit.serialization import to_json
from resnetkit.weights.model_source import find_model_folder

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule


DEFAULT_BATCH_SIZE = 32  # of the torch engine
FOREIGN_ENGINE_BYTES = 2**32  # of memory that a process may allocate with an engine from elsewhere


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that the user requests; an option at its default leaves the choice to `select_engine`."""

    engine: str = "auto"
    device: str = "auto"
    precision: str = ""

    @property
    def is_named(self) -> bool:
        """Whether the user names a saved engine."""
        return self.engine not in ("auto", "torch")

    @property
    def is_torch(self) -> bool:
        """Whether these options request torch.

        Raises:
            UsageError: a saved engine together with a device or a precision.
        """
        has_torch_options = self.device != "auto" or bool(self.precision)
        if has_torch_options and self.is_named:
            what, fix = f"the device and precision of {self.engine} are fixed", "omit them, or use --engine torch"
            raise UsageError(what, where="--engine with --device or --precision", fix=fix)
        return has_torch_options or self.engine == "torch"

    def apply_weights_options(self, weights_options: Sequence[str]) -> EngineChoice:
        """Return the choice if there are options about the weights: torch.

        A saved engine belongs to the unchanged model folder.

        Raises:
            UsageError: options about weights together with a saved engine.
        """
        if not weights_options or self.is_torch:
            return self
        if self.is_named:
            options = " ".join(weights_options)
            what, where = "a saved engine cannot be combined with options about the weights", f"--engine {self.engine}"
            raise UsageError(what, where=[where, options], fix=f"omit {options}, or use --engine torch")
        return replace(self, engine="torch")


@dataclass(frozen=True, slots=True)
class InferenceSession:
    """An open engine and the card of its model.

    ``get_weights_digest`` identifies the weights. ``saved_engine`` is None for torch. ``reason`` says why a faster
    engine is not used.
    """

    engine: Engine
    card: Card
    get_weights_digest: Callable[[], str]
    saved_engine: SavedEngine | None = None
    reason: str = ""

    def compute_model_digest(self) -> str:
        """Compute a digest of all that determines predictions: weights, network, preparation and labels."""
        labels = "\0".join(self.card.labels)
        return _hash_texts(self.get_weights_digest(), to_json(self.card.spec), to_json(self.card.preparation), labels)

    def compute_artifact_digest(self) -> str:
        """Compute a digest of the engine's batch size, streams and files; empty for torch.

        It tells apart engines of the same name, such as two int8 engines with different calibration.
        """
        if self.saved_engine is None:
            return ""
        return _hash_texts(to_json(self.saved_engine.config), *itertools.chain(*self.saved_engine.files))


def _hash_texts(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True)
class EngineCandidates:
    """The saved engines of a model folder that may be used, best first; torch follows them.

    ``reason`` says why a better engine is not among them. ``is_foreign``: they were not optimized here.
    """

    choice: EngineChoice
    folder: Path | None = None
    saved_engines: Sequence[SavedEngine] = ()
    reason: str = ""
    is_foreign: bool = False

    @contextlib.contextmanager
    def open_session(
        self,
        load_network: Callable[[], NetworkModule],
        batch_size: int = DEFAULT_BATCH_SIZE,
        dist: ProcessGroup = SINGLE_PROCESS,
    ) -> Iterator[InferenceSession]:
        """Open the candidates as one engine, or torch, for as long as the body runs.

        Args:
            load_network: returns the network; called only for torch.
            batch_size: the number of images per call of torch.
            dist: the process group.
        """
        if not self.saved_engines or not self.folder:
            with _open_torch_session(load_network(), self, batch_size, dist) as session:
                yield replace(session, reason=self.reason)
            return
        folder, card = self.folder, _check_card(read_card(self.folder))
        with self.open_saved_engines(lambda: _open_torch(load_network(), batch_size), card) as engine:
            yield InferenceSession(engine, card, lambda: compute_weights_digest(folder), engine.saved, engine.reason)

    @contextlib.contextmanager
    def open_saved_engines(
        self,
        open_torch: Callable[[], contextlib.AbstractContextManager[Engine]],
        card: Card,
        on_failure: Callable[[str], None] | None = None,
    ) -> Iterator[FallbackEngine]:
        """Open the candidates as one engine, for as long as the body runs.

        Args:
            open_torch: opens the network itself, which follows the candidates unless the user named one. If the
                candidates are foreign, their first logits are compared with it.
            card: the model's card.
            on_failure: called with a line about each engine that fails after it was loaded; by default a warning.

        Raises:
            EngineError: the engine that the user named cannot be loaded.
        """
        folder, n_classes = self.folder or Path(), len(card.labels)
        uses_torch = any("torch" in ENGINE_SPECS[saved.config.engine].packages for saved in self.saved_engines)
        with contextlib.ExitStack() as stack:
            if uses_torch:
                stack.enter_context(restore_torch_settings())
            if self.is_foreign:
                stack.enter_context(limit_memory(FOREIGN_ENGINE_BYTES))

            def load_torch() -> GuardedEngine:
                return GuardedEngine(stack.enter_context(open_torch()), WorkerPool(1))

            loaders = [
                (saved.config.name, partial(load_guarded_engine, folder, saved, n_classes, is_foreign=self.is_foreign))
                for saved in self.saved_engines
            ]
            engine = FallbackEngine(
                loaders if self.choice.is_named else [*loaders, ("torch", load_torch)],
                format_optimize_command(folder),
                reason=self.reason,
                on_failure=on_failure,
                check_first=_FirstLogitsCheck(folder, self.saved_engines[0], load_torch) if self.is_foreign else None,
            )
            with contextlib.closing(engine):
                yield engine


@dataclass(frozen=True, slots=True)
class _FirstLogitsCheck:
    """Compares the first logits of a foreign engine with those of torch."""

    folder: Path
    saved: SavedEngine
    load_torch: Callable[[], GuardedEngine]

    def __call__(self, pixels: Pixels, logits: Logits) -> None:
        with contextlib.closing(self.load_torch()) as torch_engine:
            expected = torch_engine(pixels)
        config, names = self.saved.config, [f"image {i + 1}" for i in range(len(pixels))]
        comparison = Fp32Reference(expected, names, has_predictions=False).compare(logits, config.precision)
        if comparison.reason:
            what = f"{config.name} does not match torch on the first images: {comparison.reason}"
            fix = f"{format_optimize_command(self.folder)}, or use --engine torch"
            raise VerificationError(what, where=str(self.folder), fix=fix)


def select_engine(
    model: object, n_images: int, choice: EngineChoice, dist: ProcessGroup = SINGLE_PROCESS
) -> EngineCandidates:
    """Select the engines that may be used, the one expected to finish ``n_images`` soonest first.

    Args:
        model: a path, or a network.
        n_images: the number of images to predict.
        choice: what the user requests.
        dist: the process group; several processes always use torch.

    Raises:
        UsageError: the requested engine was never saved, or several processes request one.
        MachineError: the requested engine is not usable on this machine.
        WeightsError: an engine is requested, and the list of engines is damaged.
    """
    where = f"--engine {choice.engine}"
    if choice.is_named and dist.world_size > 1:
        what = f"{dist.world_size} processes can only use torch"
        raise UsageError(what, where=where, fix="use one process, or --engine torch")
    folder = find_model_folder(model)
    if choice.is_torch or dist.world_size > 1:
        return EngineCandidates(choice, folder)
    if folder is None:
        if choice.is_named:
            fix = "use a model folder or a run folder, or --engine torch"
            raise UsageError("only a model folder has saved engines", where=where, fix=fix)
        return EngineCandidates(choice)
    try:
        return EngineCandidates(choice, folder, *find_usable_engines(folder, n_images, choice.engine))
    except WeightsError as error:  # the list of engines is damaged, or of a newer version
        if choice.is_named:
            raise
        return EngineCandidates(choice, folder, reason=f"{error.what}; {error.fix}")


def _check_card(card: Card) -> Card:
    """Check that the card is of a classifier of images."""
    get_labels(card)
    _ = card.preparation.color_mode
    return card


def _open_torch(network: NetworkModule, batch_size: int) -> contextlib.AbstractContextManager[Engine]:
    from resnetkit.engines.reference import open_torch_engine

    return open_torch_engine(network, "auto", "fp32", batch_size)


@contextlib.contextmanager
def _open_torch_session(
    network: NetworkModule, candidates: EngineCandidates, batch_size: int, dist: ProcessGroup
) -> Iterator[InferenceSession]:
    from resnetkit.engines.reference import open_torch_engine
    from resnetkit.network.inference import compute_network_digest
    from resnetkit.runtime.device import parse_precision
    from resnetkit.runtime.distributed import check_same_on_all_ranks

    card, precision = _check_card(network.card), parse_precision(candidates.choice.precision or "fp32")
    if dist.world_size > 1:
        check_same_on_all_ranks(dist, model=compute_network_digest(network))
    with open_torch_engine(network, candidates.choice.device, precision, batch_size) as engine:
        folder = candidates.folder
        yield InferenceSession(
            engine, card, lambda: compute_weights_digest(folder) if folder else compute_network_digest(network)
        )
