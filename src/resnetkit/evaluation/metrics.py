"""How often a network is right: integers, the same for every size of batch and any number of processes."""

from __future__ import annotations

import hashlib
import math
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.card import Card
from resnetkit.data.dataset import Data, Indices, divide, fingerprint, listed
from resnetkit.data.loader import PixelSource, Skipped, Tell, tell_unreadable
from resnetkit.data.open import open_data
from resnetkit.errors import DataError, suggestion
from resnetkit.evaluation.result import Answers, Evaluation
from resnetkit.network.layers import Network
from resnetkit.runtime.device import Logits, classes_of
from resnetkit.runtime.distributed import ALONE, Ranks
from resnetkit.training.recipe import BadFiles

WORST_LOSS = 1e9  # stands for one that is no number


@dataclass(frozen=True)
class Tally:
    """What is counted: an entry for each picture in every column.

    ``which`` are their numbers, in order, ``among_five`` says whether the truth is, ``losses`` are cross entropies.
    """

    which: tuple[int, ...]
    truth: tuple[int, ...]
    answers: tuple[int, ...]
    confidence: tuple[float, ...]
    among_five: tuple[bool, ...]
    losses: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many pictures."""
        return len(self.truth)

    @property
    def correct(self) -> int:
        """How many of them were named rightly."""
        return sum(a == b for a, b in zip(self.truth, self.answers, strict=True))

    @property
    def top5(self) -> int:
        """Of how many the truth was among the first five."""
        return sum(self.among_five)

    @property
    def loss(self) -> float:
        """The mean; the sum is exact, so that no order of the pictures tells."""
        mean = math.fsum(self.losses) / max(self.n, 1)
        return mean if mean < WORST_LOSS else WORST_LOSS

    def joined(self, ranks: Ranks) -> Tally:
        """With what the other processes have counted, in the order of the numbers."""
        mine = [getattr(self, column.name) for column in fields(self)]
        every = [list(zip(*columns, strict=True)) for columns in ranks.each(mine)]
        rows = sorted(row for rows in every for row in rows)
        return Tally(*map(tuple, zip(*rows, strict=True))) if rows else self


@dataclass(frozen=True)
class Examination:
    """Labelled pictures, each of a class that the network has: ``numbers`` of the data's classes are its own."""

    card: Card
    data: str
    part: str
    classes: tuple[str, ...]
    known: int
    numbers: Tensor
    source: PixelSource
    ranks: Ranks
    notes: tuple[str, ...]

    def of(self, logits: Logits, tell: Tell | None = None) -> Evaluation:
        """How often ``logits`` are right, which take pixels (N H W C, 8 bits) and give N classes, fp32.

        Of several processes each counts its part and gets the whole.
        """
        source, numbers = self.source, self.numbers
        labelled = ((pixels, numbers[source.labels[which]], which) for pixels, which in _told(source, tell, self.ranks))
        tally = count(logits, labelled, self.known).joined(self.ranks)
        tell_unreadable([source], self.ranks)
        made = found(self.card, self.data, self.part, tally, source, classes=self.classes)
        return replace(made, notes=self.notes)


def examination(
    network: Network,
    data: str | Path,
    part: str | None,
    bad: BadFiles,
    *,
    tell: Tell | None = None,
    ranks: Ranks = ALONE,
) -> Examination:
    """What a network is asked: all that can be wrong with it is told here, before anything computes.

    ``part`` is as `resnetkit.evaluate` says, and ``tell`` hears of pictures listed (done, all).
    """
    standing = open_data(data, tell)
    opened, chosen = chosen_part(standing, network.card, part)
    known = classes_of(network)
    numbers = class_numbers(opened.classes, network.card.classes or known)
    alone = replace(opened, parts={chosen: opened.part(chosen)})
    if ranks.world > 1:
        require_alike(ranks, pictures=fingerprint(alone), model=digest(network))
    source = PixelSource(alone.first, network.card.preparation, Skipped(alone, bad), keep=False)
    names, notes = network.card.classes or opened.classes, _notes(standing, network.card, part)
    return Examination(network.card, str(data), chosen, names, known, numbers, source, ranks, notes)


def found(
    card: Card, data: str, part: str, tally: Tally, source: PixelSource, *, classes: tuple[str, ...]
) -> Evaluation:
    """An `Evaluation` of what `count` gives for a source that has been read to its end."""
    if not tally.n:
        raise DataError(f"no picture of {part} can be read", where=data, fix=f"resnetkit check {data} names every one")
    names = tuple(source.pictures.names[i] for i in tally.which)
    confidence = tuple(round(share, 5) for share in tally.confidence)
    answers = Answers(names, tally.truth, tally.answers, confidence)
    skipped = tuple(source.skipped.reasons.items())
    return Evaluation(card.name, data, part, classes, answers, tally.top5, tally.loss, skipped)


def count(logits: Logits, batches: Iterable[tuple[Tensor, Tensor, Indices]], classes: int) -> Tally:
    """From (pixels, labels, numbers)."""
    columns: list[list[Any]] = [[] for _ in fields(Tally)]
    for pixels, labels, which in batches:
        if not len(labels):
            continue
        given = logits(pixels)
        shares, best = given.softmax(1).max(1)
        among_five = (given.topk(min(5, classes), 1).indices == labels[:, None]).any(1)
        losses = F.cross_entropy(given.double(), labels, reduction="none").nan_to_num(math.inf)
        found = (torch.from_numpy(which), labels, best, shares.nan_to_num(0.0), among_five, losses)
        columns = [[*column, *values.tolist()] for column, values in zip(columns, found, strict=True)]
    return Tally(*map(tuple, columns))


def require_alike(ranks: Ranks, **what: str) -> None:
    """Raise `DataError` where what these words stand for is not the same in all processes."""
    every = ranks.each([socket.gethostname(), what])
    for host, there in every:
        others = [name for name, value in every[0][1].items() if there[name] != value]
        if others:
            raise DataError(
                f"not all processes have the same {' and '.join(others)}",
                where=f"{host} differs from {every[0][0]}",
                fix="copy what one machine has to all of them, or put it on a disk that they share",
            )


def digest(network: Network) -> str:
    """Of the weights."""
    found = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def class_numbers(names: tuple[str, ...], known: tuple[str, ...] | int) -> Tensor:
    """For each class of the data its number in the model, by name; by order where the model's are only counted."""
    if isinstance(known, int):
        if known != len(names):
            fix = "evaluate data with as many folders, in the order of the model's classes"
            raise DataError(f"the model has {known} classes without names, the data has {len(names)}", fix=fix)
        return torch.arange(len(names))
    numbers = {name: number for number, name in enumerate(known)}
    extra = [name for name in names if name not in numbers]
    if extra:
        raise DataError(
            f"the data has {len(extra)} of {len(names)} classes that the model has not: {listed(extra)}",
            where=f"the model's classes: {listed(known, 10)}",
            fix=suggestion(extra[0], known, "evaluate data whose folders are named as the model's classes"),
        )
    return torch.tensor([numbers[name] for name in names])


def chosen_part(data: Data, card: Card, part: str | None) -> tuple[Data, str]:
    """The data with its parts, drawn as for training if the model was trained on it, and the part that is meant."""
    standing = [name for name in ("test", "val", "all", "train") if name in data.parts]
    if not _trained_on(data, card):
        return data, part or standing[0]
    assert card.training is not None  # noqa: S101  for the type checker
    whole = {"all": data.parts["all"]} if "all" in data.parts else {}
    parts = divide(data, card.training.split_seed).parts
    return replace(data, parts=parts | whole), part or ("test" if "test" in parts else "val")


def _trained_on(data: Data, card: Card) -> bool:
    """Whether these are the very pictures, by their names."""
    return card.training is not None and card.training.fingerprint == fingerprint(data)


def _notes(data: Data, card: Card, part: str | None) -> tuple[str, ...]:
    """What makes a measurement kinder than it looks. ``data`` is as it was opened, ``part`` as it was asked for."""
    if card.training is None:
        return ()
    if _trained_on(data, card):
        return ("the model has learnt from these very pictures",) if part in ("train", "all") else ()
    if card.training.data == Path(data.name).name:
        what = f"these are not, or no longer, the pictures of {card.training.data} that the model was trained with"
        return (f"{what}: it may have learnt from some of them",)
    return ()


def _told(source: PixelSource, tell: Tell | None, ranks: Ranks) -> Iterator[tuple[Tensor, Indices]]:
    done = 0
    for pixels, which in source.batches(ranks=ranks):
        yield pixels, which
        done += len(which) * ranks.world
        if tell:
            tell(min(done, len(source)), len(source))
