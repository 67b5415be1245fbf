"""How often a network is right: integers, the same for every size of batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnetkit.architecture.card import Card
from resnetkit.errors import DataError, suggestion
from resnetkit.learn.data import Data, divide, fingerprint, open_data
from resnetkit.learn.device import Logits, Precision, answering, classes_of, pick
from resnetkit.learn.pixels import PixelSource, Tell
from resnetkit.network.layers import Network
from resnetkit.weights.store import load


@dataclass(frozen=True)
class Evaluation:
    """Counts over ``n`` pictures; ``confusion[true][answer]``; ``top5`` counts the true class among the first five."""

    model: str
    data: str
    part: str
    classes: tuple[str, ...]
    n: int
    correct: int
    top5: int
    confusion: tuple[tuple[int, ...], ...]

    @property
    def top1(self) -> float:
        """The share that was right, 0 to 1."""
        return self.correct / self.n

    def per_class(self) -> list[tuple[str, int, int]]:
        """(class, pictures, correct) of every class that has pictures."""
        counted = enumerate(zip(self.classes, self.confusion, strict=True))
        return [(name, sum(row), row[i]) for i, (name, row) in counted if sum(row)]


def evaluate(
    model: str | Path | Network,
    data: str | Path,
    *,
    part: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    tell: Tell | None = None,
) -> Evaluation:
    """Count how often ``model`` is right about ``data``, or about one ``part`` of it.

    Without ``part``: if the model was trained on this very data, what was held out from it; else ``test`` where the
    data has it, or ``val``, or all of it. Classes are matched by name. Raises `DataError` where the data has a class
    that the model has not.
    """
    network = model if isinstance(model, Network) else load(model)
    opened, chosen = _choose(open_data(data), network.card, part)
    known = classes_of(network)
    numbers = class_numbers(opened.classes, network.card.classes or known)
    source = PixelSource(opened.part(chosen), network.card.preparation, keep=False)
    batches = ((pixels, numbers[labels]) for pixels, labels in _told(source, tell))
    with answering(network, pick(device), precision) as logits:
        counts = count(logits, batches, known)
    return found(network.card, str(data), chosen, network.card.classes or opened.classes, counts)


def found(card: Card, data: str, part: str, classes: tuple[str, ...], counts: tuple[Tensor, int]) -> Evaluation:
    """An `Evaluation` of what `count` gives."""
    confusion, top5 = counts
    table = tuple(map(tuple, confusion.tolist()))
    return Evaluation(card.name, data, part, classes, int(confusion.sum()), int(confusion.trace()), top5, table)


def count(logits: Logits, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, int]:
    """(confusion of shape true x answer, how often the true class is among the first five), from (pixels, labels)."""
    confusion, among_five = torch.zeros(classes * classes, dtype=torch.long), 0
    for pixels, labels in batches:
        answers = logits(pixels)
        confusion += torch.bincount(labels * classes + answers.argmax(1), minlength=classes * classes)
        first = answers.topk(min(5, classes), 1).indices
        among_five += int((first == labels[:, None]).sum())
    return confusion.reshape(classes, classes), among_five


def class_numbers(names: tuple[str, ...], known: tuple[str, ...] | int) -> Tensor:
    """For each class of the data its number in the model, by name; by order where the model's are only counted."""
    if isinstance(known, int):
        if known != len(names):
            fix = "evaluate data with as many folders, in the order of the model's classes"
            raise DataError(f"the model has {known} classes without names, the data has {len(names)}", fix=fix)
        return torch.arange(len(names))
    extra = [name for name in names if name not in known]
    if extra:
        raise DataError(
            f"the data has {len(extra)} of {len(names)} classes that the model has not: {', '.join(extra[:5])}"
            + ", ..." * (len(extra) > 5),
            where=f"the model's classes: {', '.join(known[:10])}" + ", ..." * (len(known) > 10),
            fix=suggestion(extra[0], known, "evaluate data whose folders are named as the model's classes"),
        )
    return torch.tensor([known.index(name) for name in names])


def _choose(data: Data, card: Card, part: str | None) -> tuple[Data, str]:
    """The data with its parts, drawn as for training if the model was trained on it, and the part that is meant."""
    standing = [name for name in ("test", "val", "all", "train") if name in data.parts]
    if card.training is None or card.training.fingerprint != fingerprint(data):
        return data, part or standing[0]
    whole = {"all": data.parts["all"]} if "all" in data.parts else {}
    parts = divide(data, card.training.split_seed).parts
    return Data(data.name, data.classes, parts | whole), part or ("test" if "test" in parts else "val")


def _told(source: PixelSource, tell: Tell | None) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for pixels, labels in source.batches():
        yield pixels, labels
        done += len(labels)
        if tell:
            tell(done, len(source))
