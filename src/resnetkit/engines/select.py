"""Select the engine that answers for a model, and open it.

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


DEFAULT_BATCH_SIZE = 32  # of the network itself


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Who is to be asked, as a person says it; what is not said is left to what was optimized, or else to torch."""

    engine: str = "auto"
    device: str = "auto"
    precision: str = ""

    @property
    def is_torch(self) -> bool:
        """Whether only the network itself can be meant; raises `UsageError` where an engine is meant as well."""
        has_torch_options = self.device != "auto" or bool(self.precision)
        if has_torch_options and self.engine not in ("auto", "torch"):
            raise UsageError(
                f"{self.engine} has a device and a precision of its own",
                where="--engine with --device or --precision",
                fix="leave them out, or --engine torch",
            )
        return has_torch_options or self.engine == "torch"

    def apply_weights_options(self, weights_options: Sequence[str]) -> EngineChoice:
        """The same where ``words`` say how the weights are to be read: what was optimized is the model as it stands."""
        if not weights_options or self.is_torch:
            return self
        if self.engine != "auto":
            raise UsageError(
                "an engine is of a model folder as it stands",
                where=[f"--engine {self.engine}", " ".join(weights_options)],
                fix=f"leave {' '.join(weights_options)} out, or --engine torch",
            )
        return replace(self, engine="torch")


@dataclass(frozen=True, slots=True)
class InferenceSession:
    """An engine and the card of its model. ``weights`` tells its weights from others.

    ``kept`` is what it was made of, if it is not torch; ``why`` is why it is not as it could be.
    """

    engine: Engine
    card: Card
    get_weights_digest: Callable[[], str]
    saved_engine: SavedEngine | None = None
    reason: str = ""

    def compute_model_digest(self) -> str:
        """A digest of everything that decides what is answered: weights, network, preparation, names."""
        labels = "\0".join(self.card.labels)
        return _hash_texts(self.get_weights_digest(), to_json(self.card.spec), to_json(self.card.preparation), labels)

    def compute_artifact_digest(self) -> str:
        """A digest of what tells an engine from others of its name; empty of torch, which needs the model alone.

        One that was made again has other ranges, or other batches.
        """
        return (
            _hash_texts(to_json(self.saved_engine.measurement.config), *itertools.chain(*self.saved_engine.files))
            if self.saved_engine
            else ""
        )


def _hash_texts(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True)
class EngineCandidates:
    """Who is asked: the first that opens of what was ``kept`` in a model folder, or else torch.

    ``why`` is said where that is not as it could be.
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
        """It, for as long as the body runs; ``load`` is called for the network where torch is asked."""
        with self.open_saved_engine() as (engine, saved, reason):
            if engine and self.folder:
                folder = self.folder
                yield InferenceSession(
                    engine, _check_card(read_card(folder)), lambda: compute_weights_digest(folder), saved, reason
                )
                return
        with _open_torch_session(load_network(), self, batch_size, dist) as session:
            yield replace(session, reason=reason)

    @contextlib.contextmanager
    def open_saved_engine(self) -> Iterator[tuple[Engine | None, SavedEngine | None, str]]:
        """What was kept, for as long as the body runs, and a sentence why it is not the best; no engine where the
        network itself is asked.

        Raises `MachineError` for one that was named and cannot be opened.
        """
        uses_torch = any(
            "torch" in ENGINE_SPECS[saved.measurement.config.engine].packages for saved in self.saved_engines
        )
        with restore_torch_settings() if uses_torch else contextlib.nullcontext():
            yield self._open_first()

    def _open_first(self) -> tuple[Engine | None, SavedEngine | None, str]:
        """Of what was kept, that which opens."""
        if self.folder is None:
            return None, None, self.reason
        errors: list[MachineError] = []
        for saved in self.saved_engines:
            try:
                return open_engine(self.folder, saved), saved, _describe_failure(errors) or self.reason
            except MachineError as error:
                errors.append(error)
        if errors and self.choice.engine != "auto":
            raise errors[0]
        return None, None, _describe_failure(errors) or self.reason


def _describe_failure(errors: Sequence[MachineError]) -> str:
    """Why the best of them is not asked, and what to do."""
    return f"{errors[0].what}; {errors[0].fix}" if errors else ""


def select_engine(
    model: object, n_images: int, choice: EngineChoice, dist: ProcessGroup = SINGLE_PROCESS
) -> EngineCandidates:
    """Who is asked for so many pictures. Raises `UsageError` or `MachineError` for an engine that is not there."""
    is_named = choice.engine not in ("auto", "torch")
    if is_named and dist.world_size > 1:
        what = f"{dist.world_size} processes ask torch, and no engine"
        raise UsageError(what, where=f"--engine {choice.engine}", fix="one process, or --engine torch")
    folder = find_model_folder(model)
    if choice.is_torch or dist.world_size > 1:
        return EngineCandidates(choice, folder)
    if folder is None:
        if is_named:
            fix = "name a model folder or a run folder, or --engine torch"
            raise UsageError("only a model folder has engines", where=f"--engine {choice.engine}", fix=fix)
        return EngineCandidates(choice)
    try:
        return EngineCandidates(choice, folder, *find_usable_engines(folder, n_images, choice.engine))
    except WeightsError as error:  # the list of engines is damaged, or newer than this
        if is_named:
            raise
        return EngineCandidates(choice, folder, reason=f"{error.what}; {error.fix}")


def _check_card(card: Card) -> Card:
    """A card of what names classes of pictures; raises `UsageError` for any other."""
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

    precision = parse_precision(candidates.choice.precision or "fp32")
    card = _check_card(network.card)
    if dist.world_size > 1:
        check_same_on_all_ranks(dist, model=compute_network_digest(network))
    with open_torch_engine(network, candidates.choice.device, precision, batch_size) as engine:
        yield InferenceSession(
            engine,
            card,
            lambda: compute_weights_digest(candidates.folder) if candidates.folder else compute_network_digest(network),
        )
