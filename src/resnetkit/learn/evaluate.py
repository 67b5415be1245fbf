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
from resnetkit.learn.device import Logits, Precision, pick, runner
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

    Without ``part``: ``test`` where the data has it, or else ``val``; where it has no parts, all of it, or what was
    held out if the model was trained on this very data. Classes are matched by name. Raises
    `DataError` where the data has a class that the model has not.
    """
    network = model if isinstance(model, Network) else load(model)
    opened, chosen = _choose(open_data(data), network.card, part)
    numbers = class_numbers(opened.classes, network.card)
    source = PixelSource(opened.part(chosen), network.card.preparation, keep=False)
    batches = ((pixels, numbers[labels]) for pixels, labels in _told(source, tell))
    classes = network.card.classes or opened.classes
    confusion, top5 = count(runner(network, pick(device), precision), batches, len(classes))
    return Evaluation(
        network.card.name,
        str(data),
        chosen,
        classes,
        int(confusion.sum()),
        int(confusion.trace()),
        top5,
        tuple(map(tuple, confusion.tolist())),
    )


def count(logits: Logits, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> tuple[Tensor, int]:
    """(confusion of shape true x answer, how often the true class is among the first five), from (pixels, labels)."""
    confusion, among_five = torch.zeros(classes * classes, dtype=torch.long), 0
    for pixels, labels in batches:
        answers = logits(pixels)
        confusion += torch.bincount(labels * classes + answers.argmax(1), minlength=classes * classes)
        first = answers.topk(min(5, classes), 1).indices
        among_five += int((first == labels[:, None]).sum())
    return confusion.reshape(classes, classes), among_five


def class_numbers(names: tuple[str, ...], card: Card) -> Tensor:
    """For each class of the data its number in the model, by name; by order where the model's have no names."""
    if not card.classes:
        known = card.spec.head.classes if hasattr(card.spec.head, "classes") else 0
        if known != len(names):
            raise DataError(f"the model has {known} classes without names, the data has {len(names)}")
        return torch.arange(len(names))
    extra = [name for name in names if name not in card.classes]
    if extra:
        raise DataError(
            f"the data has {len(extra)} of {len(names)} classes that the model has not: {', '.join(extra[:5])}",
            where=f"classes of {card.name}: {', '.join(card.classes[:10])}" + ", ..." * (len(card.classes) > 10),
            fix=suggestion(extra[0], card.classes, "evaluate data whose folders are named as the model's classes"),
        )
    return torch.tensor([card.classes.index(name) for name in names])


def _choose(data: Data, card: Card, part: str | None) -> tuple[Data, str]:
    """The data with the part that is asked for, drawn if it has to be, and the name of that part."""
    known = card.training is not None and card.training.fingerprint == fingerprint(data)
    seed = card.training.split_seed if card.training else 0
    if part is None:
        standing = [name for name in ("test", "val", "all") if name in data.parts]
        part = "test" if known and standing == ["all"] else standing[0] if standing else "train"
    if part in data.parts and not (known and part == "train"):
        return data, part
    return divide(data, seed), part


def _told(source: PixelSource, tell: Tell | None) -> Iterator[tuple[Tensor, Tensor]]:
    done = 0
    for pixels, labels in source.batches():
        yield pixels, labels
        done += len(labels)
        if tell:
            tell(done, len(source))
