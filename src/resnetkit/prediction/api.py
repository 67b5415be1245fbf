"""Files to labels. Torch is imported where the network itself is asked, and nowhere else.

This module imports no torch.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnetkit.architecture.card import Card, labels_of, model_folder, read_card
from resnetkit.engines.base import KINDS, Engine, Logits
from resnetkit.engines.saved import Kept, opened, serving, weights_digest
from resnetkit.errors import MachineError, PictureError, UsageError, WeightsError
from resnetkit.prediction.formats import Answer
from resnetkit.prediction.inputs import Input, expand
from resnetkit.prediction.pipeline import Row, checked, streamed
from resnetkit.runtime.distributed import ALONE, Ranks
from resnetkit.runtime.torch_settings import put_back
from resnetkit.serialization import to_json

if TYPE_CHECKING:
    from resnetkit.data.loader import Tell
    from resnetkit.network.layers import Network

Named = str | Path | Input
BATCH = 32  # of the network itself


def predict(
    files: Named | Sequence[Named],
    model: str | os.PathLike[str] | Network,
    *,
    top: int = 5,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "",
    batch_size: int = BATCH,
    tell: Tell | None = None,
) -> list[Answer]:
    """An `Answer` for each file, in order; a folder or a pattern stands for the pictures in it, by name.

    A file that cannot be read is a row with its reason, never an end of the others. ``engine`` is what `optimize` has
    kept in the model folder and is soonest done (``auto``), one of them by its name (``openvino-int8``), or ``torch``.
    To name a ``device`` or a ``precision`` (fp32, bf16, auto) is to ask torch, ``batch_size`` pictures at once.
    ``tell`` hears (done, all).
    """
    chosen = expand([files] if isinstance(files, Named) else files)
    found = find(model, len(chosen), By(engine, device, precision))
    with found.opened(lambda: _network(model), batch_size) as server:
        return list(answers(chosen, server, top, tell=tell))


def _network(model: str | os.PathLike[str] | Network) -> Network:
    from resnetkit.weights.load import load

    return load(model)


# -------------------------------------------------------------------------------------------------------- who is asked


@dataclass(frozen=True, slots=True)
class By:
    """Who is to be asked, as a person says it; what is not said is left to what was optimized, or else to torch."""

    engine: str = "auto"
    device: str = "auto"
    precision: str = ""

    @property
    def torch(self) -> bool:
        """Whether only the network itself can be meant; raises `UsageError` where an engine is meant as well."""
        told = self.device != "auto" or bool(self.precision)
        if told and self.engine not in ("auto", "torch"):
            raise UsageError(
                f"{self.engine} has a device and a precision of its own",
                where="--engine with --device or --precision",
                fix="leave them out, or --engine torch",
            )
        return told or self.engine == "torch"

    def about(self, words: Sequence[str]) -> By:
        """The same where ``words`` say how the weights are to be read: what was optimized is the model as it stands."""
        if not words or self.torch:
            return self
        if self.engine != "auto":
            raise UsageError(
                "an engine is of a model folder as it stands",
                where=[f"--engine {self.engine}", " ".join(words)],
                fix=f"leave {' '.join(words)} out, or --engine torch",
            )
        return replace(self, engine="torch")


@dataclass(frozen=True, slots=True)
class Server:
    """An engine and the card of its model. ``weights`` tells its weights from others.

    ``kept`` is what it was made of, if it is not torch; ``why`` is why it is not as it could be.
    """

    engine: Engine
    card: Card
    weights: Callable[[], str]
    kept: Kept | None = None
    why: str = ""

    def model(self) -> str:
        """A digest of everything that decides what is answered: weights, network, preparation, names."""
        labels = "\0".join(self.card.labels)
        return _digest(self.weights(), to_json(self.card.spec), to_json(self.card.preparation), labels)

    def artefact(self) -> str:
        """A digest of what tells an engine from others of its name; empty of torch, which needs the model alone.

        One that was made again has other ranges, or other batches.
        """
        return _digest(to_json(self.kept.row.choice), *itertools.chain(*self.kept.files)) if self.kept else ""


def _digest(*told: str) -> str:
    return hashlib.sha256("\0".join(told).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """Who is asked: the first that opens of what was ``kept`` in a model folder, or else torch.

    ``why`` is said where that is not as it could be.
    """

    by: By
    folder: Path | None = None
    kept: Sequence[Kept] = ()
    why: str = ""

    @contextlib.contextmanager
    def opened(self, load: Callable[[], Network], batch: int = BATCH, ranks: Ranks = ALONE) -> Iterator[Server]:
        """It, for as long as the body runs; ``load`` is called for the network where torch is asked."""
        with self.engine() as (engine, kept, why):
            if engine and self.folder:
                folder = self.folder
                yield Server(engine, _able(read_card(folder)), lambda: weights_digest(folder), kept, why)
                return
        with _by_torch(load(), self, batch, ranks) as server:
            yield replace(server, why=why)

    @contextlib.contextmanager
    def engine(self) -> Iterator[tuple[Engine | None, Kept | None, str]]:
        """What was kept, for as long as the body runs, and a sentence why it is not the best; no engine where the
        network itself is asked.

        Raises `MachineError` for one that was named and cannot be opened.
        """
        by_torch = any("torch" in KINDS[kept.row.choice.engine].packages for kept in self.kept)
        with put_back() if by_torch else contextlib.nullcontext():
            yield self._first()

    def _first(self) -> tuple[Engine | None, Kept | None, str]:
        """Of what was kept, that which opens."""
        if self.folder is None:
            return None, None, self.why
        failed: list[MachineError] = []
        for kept in self.kept:
            try:
                return opened(self.folder, kept), kept, _why(failed) or self.why
            except MachineError as error:
                failed.append(error)
        if failed and self.by.engine != "auto":
            raise failed[0]
        return None, None, _why(failed) or self.why


def _why(failed: Sequence[MachineError]) -> str:
    """Why the best of them is not asked, and what to do."""
    return f"{failed[0].what}; {failed[0].fix}" if failed else ""


def find(model: object, pictures: int, by: By, ranks: Ranks = ALONE) -> Found:
    """Who is asked for so many pictures. Raises `UsageError` or `MachineError` for an engine that is not there."""
    named = by.engine not in ("auto", "torch")
    if named and ranks.world > 1:
        what = f"{ranks.world} processes ask torch, and no engine"
        raise UsageError(what, where=f"--engine {by.engine}", fix="one process, or --engine torch")
    folder = model_folder(os.fspath(model)) if isinstance(model, str | os.PathLike) else None
    if by.torch or ranks.world > 1:
        return Found(by, folder)
    if folder is None:
        if named:
            fix = "name a model folder or a run folder, or --engine torch"
            raise UsageError("only a model folder has engines", where=f"--engine {by.engine}", fix=fix)
        return Found(by)
    try:
        return Found(by, folder, *serving(folder, pictures, by.engine))
    except WeightsError as error:  # the list of engines is damaged, or newer than this
        if named:
            raise
        return Found(by, folder, why=f"{error.what}; {error.fix}")


def _able(card: Card) -> Card:
    """A card of what names classes of pictures; raises `UsageError` for any other."""
    labels_of(card)
    _ = card.preparation.colour
    return card


@contextlib.contextmanager
def _by_torch(network: Network, found: Found, batch: int, ranks: Ranks) -> Iterator[Server]:
    from resnetkit.engines.reference import reference
    from resnetkit.evaluation.metrics import digest, require_alike
    from resnetkit.runtime.device import as_precision

    precision = as_precision(found.by.precision or "fp32")
    card = _able(network.card)
    if ranks.world > 1:
        require_alike(ranks, model=digest(network))
    with reference(network, found.by.device, precision, batch) as engine:
        yield Server(engine, card, lambda: weights_digest(found.folder) if found.folder else digest(network))


# ----------------------------------------------------------------------------------------------------- what is answered


def answers(
    chosen: Sequence[Input], server: Server, top: int, *, tell: Tell | None = None, ranks: Ranks = ALONE
) -> Generator[Answer, None, None]:
    """What `predict` gives for inputs that are expanded already, each answer as soon as it is there.

    Of W processes process r looks at the batches r, r + W ..., and each gets all answers, in order.
    """
    engine, card, batch = server.engine, server.card, server.engine.choice.batch
    stride, done = batch * ranks.world, 0
    starts = range(ranks.rank * batch, len(chosen), stride)
    mine = chosen if ranks.world == 1 else [one for i in starts for one in chosen[i : i + batch]]
    chunks = streamed(mine, card.preparation, checked(engine, len(card.labels)), batch, engine.choice.streams)
    with contextlib.closing(chunks):
        for _ in range(0, len(chosen), stride):
            found = [(made.file, made.top, made.error) for made in _answers(next(chunks, []), card.labels, top)]
            every = [
                Answer(file, tuple(map(tuple, best)), why) for part in ranks.each(found) for file, best, why in part
            ]
            yield from every
            done += len(every)
            if tell:
                tell(done, len(chosen))


def shared(files: Sequence[Named], ranks: Ranks) -> list[Input]:
    """The inputs that the files stand for, as the first process finds them."""
    if ranks.world == 1:
        return expand(files)
    told = ranks.first(lambda: [(one.name, _text(one.content)) for one in expand(files)])
    return [Input(name, None if content is None else base64.b64decode(content)) for name, content in told]


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _answers(chunk: list[Row], names: Sequence[str], top: int) -> Iterator[Answer]:
    for one, said in chunk:
        if isinstance(said, PictureError):
            yield Answer(one.name, error=said.what)
        elif not np.isfinite(said).all():
            yield Answer(one.name, error="its logits are not finite")
        else:
            yield Answer(one.name, tuple((names[i], share) for i, share in most_probable(said, top)))


def most_probable(logits: Logits, top: int) -> list[tuple[int, float]]:
    """(class, probability) of the first ``top`` classes of one picture; of equal ones the lower comes first."""
    exact = logits.astype(np.float64)
    shares = np.exp(exact - exact.max())
    shares /= shares.sum()
    below = -exact
    last = np.partition(below, min(top, len(below)) - 1)[min(top, len(below)) - 1]
    able = np.flatnonzero(below <= last)  # by class, and at least ``top`` of them
    best = able[np.argsort(below[able], kind="stable")][:top]
    return [(int(i), float(shares[i])) for i in best]
