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
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.architecture.card import Card, get_labels, read_card
from resnetkit.engines.base import ENGINE_SPECS, Engine
from resnetkit.engines.saved import SavedEngine, compute_weights_digest, find_usable_engines, open_engine
from resnetkit.errors import MachineError, UsageError, WeightsError
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup
from resnetkit.runtime.torch_settings import restore_torch_settings
from resnetkit.serialization import to_json
from resnetkit.weights.model_source import find_model_folder

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule


DEFAULT_BATCH_SIZE = 32  # of the torch engine


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

    ``reason`` says why a better engine is not among them.
    """

    choice: EngineChoice
    folder: Path | None = None
    saved_engines: Sequence[SavedEngine] = ()
    reason: str = ""

    @contextlib.contextmanager
    def open_session(
        self,
        load_network: Callable[[], NetworkModule],
        batch_size: int = DEFAULT_BATCH_SIZE,
        dist: ProcessGroup = SINGLE_PROCESS,
    ) -> Iterator[InferenceSession]:
        """Open the first candidate that loads, or torch, for as long as the body runs.

        Args:
            load_network: returns the network; called only for torch.
            batch_size: the number of images per call of torch.
            dist: the process group.
        """
        with self.open_saved_engine() as (engine, saved, reason):
            if engine and self.folder:
                folder, card = self.folder, _check_card(read_card(self.folder))
                yield InferenceSession(engine, card, lambda: compute_weights_digest(folder), saved, reason)
                return
        with _open_torch_session(load_network(), self, batch_size, dist) as session:
            yield replace(session, reason=reason)

    @contextlib.contextmanager
    def open_saved_engine(self) -> Iterator[tuple[Engine | None, SavedEngine | None, str]]:
        """Open the first candidate that loads, for as long as the body runs; None for torch.

        Returns:
            The engine, its record, and why a better engine is not used.

        Raises:
            MachineError: the engine that the user named cannot be loaded.
        """
        uses_torch = any("torch" in ENGINE_SPECS[saved.config.engine].packages for saved in self.saved_engines)
        with restore_torch_settings() if uses_torch else contextlib.nullcontext():
            yield self._load_first()

    def _load_first(self) -> tuple[Engine | None, SavedEngine | None, str]:
        reason, first_error = self.reason, None
        for saved in self.saved_engines:
            try:
                return open_engine(self.folder or Path(), saved), saved, reason
            except MachineError as error:
                first_error = first_error or error
                reason = f"{first_error.what}; {first_error.fix}"
        if first_error and self.choice.is_named:
            raise first_error
        return None, None, reason


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
