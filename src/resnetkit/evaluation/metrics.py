"""How often a network is right: integers, the same for every size of batch and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.card import Card
from resnetkit.data.bad_files import BadFiles, SkippedFiles
from resnetkit.data.dataset import Dataset, Indices, compute_fingerprint, join_names, split_dataset
from resnetkit.data.loader import ImageLoader, sync_unreadable
from resnetkit.data.open import open_dataset
from resnetkit.errors import DataError, suggest_fix
from resnetkit.evaluation.result import Evaluation, Predictions
from resnetkit.network.inference import LogitsFunction, compute_network_digest, count_network_classes
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, check_same_on_all_ranks
from resnetkit.runtime.progress import ProgressCallback

NON_FINITE_LOSS = 1e9  # stands for one that is no number


@dataclass(frozen=True)
class Counts:
    """What is counted: an entry for each picture in every column.

    ``which`` are their numbers, in order, ``among_five`` says whether the truth is, ``losses`` are cross entropies.
    """

    indices: tuple[int, ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    confidence: tuple[float, ...]
    in_top5: tuple[bool, ...]
    losses: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many pictures."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """How many of them were named rightly."""
        return sum(a == b for a, b in zip(self.labels, self.predicted, strict=True))

    @property
    def top5_correct(self) -> int:
        """Of how many the truth was among the first five."""
        return sum(self.in_top5)

    @property
    def loss(self) -> float:
        """The mean; the sum is exact, so that no order of the pictures tells."""
        mean = math.fsum(self.losses) / max(self.n, 1)
        return mean if mean < NON_FINITE_LOSS else NON_FINITE_LOSS

    def gather(self, dist: ProcessGroup) -> Counts:
        """With what the other processes have counted, in the order of the numbers."""
        local_columns = [getattr(self, column.name) for column in fields(self)]
        rows_by_rank = [list(zip(*columns, strict=True)) for columns in dist.all_gather(local_columns)]
        rows = sorted(row for rows in rows_by_rank for row in rows)
        return Counts(*map(tuple, zip(*rows, strict=True))) if rows else self


@dataclass(frozen=True)
class PreparedEvaluation:
    """Labelled pictures, each of a class that the network has: ``numbers`` of the data's classes are its own."""

    card: Card
    data: str
    split: str
    classes: tuple[str, ...]
    n_classes: int
    class_indices: Tensor
    loader: ImageLoader
    dist: ProcessGroup
    notes: tuple[str, ...]

    def run(self, logits_function: LogitsFunction, on_progress: ProgressCallback | None = None) -> Evaluation:
        """How often ``logits`` are right, which take pixels (N H W C, 8 bits) and give N classes, fp32.

        Of several processes each counts its part and gets the whole.
        """
        loader, class_indices = self.loader, self.class_indices
        batches = (
            (pixels, class_indices[loader.labels[indices]], indices)
            for pixels, indices in _iter_with_progress(loader, on_progress, self.dist)
        )
        counts = count_predictions(logits_function, batches, self.n_classes).gather(self.dist)
        sync_unreadable([loader], self.dist)
        evaluation = build_evaluation(self.card, self.data, self.split, counts, loader, classes=self.classes)
        return replace(evaluation, notes=self.notes)


def prepare_evaluation(
    network: NetworkModule,
    data: str | Path,
    split: str | None,
    bad_files: BadFiles,
    *,
    on_progress: ProgressCallback | None = None,
    dist: ProcessGroup = SINGLE_PROCESS,
) -> PreparedEvaluation:
    """What a network is asked: all that can be wrong with it is told here, before anything computes.

    ``part`` is as `resnetkit.evaluate` says, and ``tell`` hears of pictures listed (done, all).
    """
    dataset = open_dataset(data, on_progress)
    split_dataset, chosen_split = choose_split(dataset, network.card, split)
    n_classes = count_network_classes(network)
    class_indices = match_classes(split_dataset.classes, network.card.classes or n_classes)
    selected = replace(split_dataset, splits={chosen_split: split_dataset.get_split(chosen_split)})
    if dist.world_size > 1:
        check_same_on_all_ranks(dist, images=compute_fingerprint(selected), model=compute_network_digest(network))
    loader = ImageLoader(selected.train_split, network.card.preparation, SkippedFiles(selected, bad_files), cache=False)
    names, notes = network.card.classes or split_dataset.classes, _make_notes(dataset, network.card, split)
    return PreparedEvaluation(
        network.card, str(data), chosen_split, names, n_classes, class_indices, loader, dist, notes
    )


def build_evaluation(
    card: Card, data: str, split: str, counts: Counts, loader: ImageLoader, *, classes: tuple[str, ...]
) -> Evaluation:
    """An `Evaluation` of what `count` gives for a source that has been read to its end."""
    if not counts.n:
        raise DataError(f"no picture of {split} can be read", where=data, fix=f"resnetkit check {data} names every one")
    names = tuple(loader.images.names[i] for i in counts.indices)
    confidence = tuple(round(value, 5) for value in counts.confidence)
    predictions = Predictions(names, counts.labels, counts.predicted, confidence)
    skipped = tuple(loader.skipped.reasons.items())
    return Evaluation(card.name, data, split, classes, predictions, counts.top5_correct, counts.loss, skipped)


def count_predictions(
    logits_function: LogitsFunction, batches: Iterable[tuple[Tensor, Tensor, Indices]], n_classes: int
) -> Counts:
    """From (pixels, labels, numbers)."""
    columns: list[list[Any]] = [[] for _ in fields(Counts)]
    for pixels, labels, indices in batches:
        if not len(labels):
            continue
        outputs = logits_function(pixels)
        confidence, predicted = outputs.softmax(1).max(1)
        in_top5 = (outputs.topk(min(5, n_classes), 1).indices == labels[:, None]).any(1)
        losses = F.cross_entropy(outputs.double(), labels, reduction="none").nan_to_num(math.inf)
        batch_columns = (torch.from_numpy(indices), labels, predicted, confidence.nan_to_num(0.0), in_top5, losses)
        columns = [[*column, *values.tolist()] for column, values in zip(columns, batch_columns, strict=True)]
    return Counts(*map(tuple, columns))


def match_classes(names: tuple[str, ...], model_classes: tuple[str, ...] | int) -> Tensor:
    """For each class of the data its number in the model, by name; by order where the model's are only counted."""
    if isinstance(model_classes, int):
        if model_classes != len(names):
            fix = "evaluate data with as many folders, in the order of the model's classes"
            raise DataError(f"the model has {model_classes} classes without names, the data has {len(names)}", fix=fix)
        return torch.arange(len(names))
    index_by_name = {name: index for index, name in enumerate(model_classes)}
    unknown = [name for name in names if name not in index_by_name]
    if unknown:
        raise DataError(
            f"the data has {len(unknown)} of {len(names)} classes that the model has not: {join_names(unknown)}",
            where=f"the model's classes: {join_names(model_classes, 10)}",
            fix=suggest_fix(unknown[0], model_classes, "evaluate data whose folders are named as the model's classes"),
        )
    return torch.tensor([index_by_name[name] for name in names])


def choose_split(dataset: Dataset, card: Card, split: str | None) -> tuple[Dataset, str]:
    """The data with its parts, drawn as for training if the model was trained on it, and the part that is meant."""
    available = [name for name in ("test", "val", "all", "train") if name in dataset.splits]
    if not _is_training_data(dataset, card):
        return dataset, split or available[0]
    assert card.training is not None  # noqa: S101  for the type checker
    undivided = {"all": dataset.splits["all"]} if "all" in dataset.splits else {}
    splits = split_dataset(dataset, card.training.split_seed).splits
    return replace(dataset, splits=splits | undivided), split or ("test" if "test" in splits else "val")


def _is_training_data(dataset: Dataset, card: Card) -> bool:
    """Whether these are the very pictures, by their names."""
    return card.training is not None and card.training.fingerprint == compute_fingerprint(dataset)


def _make_notes(dataset: Dataset, card: Card, split: str | None) -> tuple[str, ...]:
    """What makes a measurement kinder than it looks. ``data`` is as it was opened, ``part`` as it was asked for."""
    if card.training is None:
        return ()
    if _is_training_data(dataset, card):
        return ("the model has learnt from these very pictures",) if split in ("train", "all") else ()
    if card.training.data == Path(dataset.name).name:
        message = f"these are not, or no longer, the pictures of {card.training.data} that the model was trained with"
        return (f"{message}: it may have learnt from some of them",)
    return ()


def _iter_with_progress(
    loader: ImageLoader, on_progress: ProgressCallback | None, dist: ProcessGroup
) -> Iterator[tuple[Tensor, Indices]]:
    n_done = 0
    for pixels, indices in loader.iter_batches(dist=dist):
        yield pixels, indices
        n_done += len(indices) * dist.world_size
        if on_progress:
            on_progress(min(n_done, len(loader)), len(loader))
