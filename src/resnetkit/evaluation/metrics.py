"""Count correct predictions, with the same result for any batch size and any number of processes."""

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
from resnetkit.data.class_names import check_spellings, normalize_class_name
from resnetkit.data.dataset import Dataset, Indices, compute_fingerprint, split_dataset
from resnetkit.data.loader import ImageLoader, sync_unreadable
from resnetkit.data.open import open_dataset
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.errors import DataError, suggest_fix
from resnetkit.evaluation.result import Evaluation, Predictions, count_equal
from resnetkit.formatting import join_names
from resnetkit.network.inference import LogitsFunction, compute_network_digest, count_network_classes
from resnetkit.network.layers import NetworkModule
from resnetkit.runtime.distributed import SINGLE_PROCESS, ProcessGroup, check_same_on_all_ranks
from resnetkit.runtime.progress import ProgressCallback

NON_FINITE_LOSS = 1e9  # stands for NaN and infinity, which JSON cannot represent


@dataclass(frozen=True)
class Counts:
    """One entry per image in every column.

    Attributes:
        indices: indices into the split, ascending after `gather`.
        labels: true classes, as indices.
        predicted: predicted classes, as indices.
        confidence: probability of the predicted class, 0 to 1.
        in_top5: whether the true class is among the five most probable ones.
        losses: cross entropies in nats.
    """

    indices: tuple[int, ...]
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    confidence: tuple[float, ...]
    in_top5: tuple[bool, ...]
    losses: tuple[float, ...]

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.labels)

    @property
    def correct(self) -> int:
        """The number of correct top-1 predictions."""
        return count_equal(self.labels, self.predicted)

    @property
    def top5_correct(self) -> int:
        """The number of images whose true class is among the five most probable ones."""
        return sum(self.in_top5)

    @property
    def loss(self) -> float:
        """The mean cross entropy; `math.fsum` makes it independent of the order of the images."""
        mean = math.fsum(self.losses) / max(self.n, 1)
        return mean if mean < NON_FINITE_LOSS else NON_FINITE_LOSS

    def gather(self, dist: ProcessGroup) -> Counts:
        """Return the counts of all ranks, sorted by image index."""
        columns_by_rank = dist.all_gather([getattr(self, column.name) for column in fields(self)])
        rows = sorted(row for columns in columns_by_rank for row in zip(*columns, strict=True))
        return Counts(*map(tuple, zip(*rows, strict=True))) if rows else self


@dataclass(frozen=True)
class PreparedEvaluation:
    """A split whose classes are matched with those of a network, ready to be evaluated."""

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
        """Evaluate a function; all ranks share the batches and return the whole result.

        Args:
            logits_function: maps pixels (N, H, W, C), 8 bits, to logits (N, classes), fp32.
            on_progress: called with (images done, images in all).
        """
        counts = count_predictions(logits_function, self._iter_batches(on_progress), self.n_classes).gather(self.dist)
        sync_unreadable([self.loader], self.dist)
        evaluation = build_evaluation(self.card, self.data, self.split, counts, self.loader, classes=self.classes)
        return replace(evaluation, notes=self.notes)

    def _iter_batches(self, on_progress: ProgressCallback | None) -> Iterator[tuple[Tensor, Tensor, Indices]]:
        """Yield (pixels, labels, indices) of the batches of this rank; labels are the model's class indices."""
        n_images, n_done = len(self.loader), 0
        for pixels, indices in self.loader.iter_batches(dist=self.dist):
            yield pixels, self.class_indices[self.loader.labels[indices]], indices
            n_done += len(indices) * self.dist.world_size
            if on_progress:
                on_progress(min(n_done, n_images), n_images)


def prepare_evaluation(
    network: NetworkModule,
    data: str | Path,
    split: str | None,
    bad_files: BadFiles,
    *,
    on_progress: ProgressCallback | None = None,
    dist: ProcessGroup = SINGLE_PROCESS,
    options: DataOptions = DEFAULT_DATA_OPTIONS,
) -> PreparedEvaluation:
    """Open a split and match its classes with those of a network, before anything is computed.

    Args:
        network: a network with a classifier.
        data: a dataset.
        split: as in `resnetkit.evaluate`.
        bad_files: what to do with unreadable images.
        on_progress: called with (images listed, images in all).
        dist: the process group.
        options: how the data is read.
    """
    card, dataset = network.card, open_dataset(data, on_progress, options)
    if not set(dataset.classes) <= set(card.classes):
        check_spellings(dataset.classes, dataset.name)
    split_dataset, chosen_split = choose_split(dataset, card, split)
    n_classes = count_network_classes(network)
    class_indices = match_classes(split_dataset.classes, card.classes or n_classes, options.merge_classes)
    selected = replace(split_dataset, splits={chosen_split: split_dataset.get_split(chosen_split)})
    if dist.world_size > 1:
        check_same_on_all_ranks(dist, images=compute_fingerprint(selected), model=compute_network_digest(network))
    loader = ImageLoader(selected.train_split, card.preparation, SkippedFiles(selected, bad_files), cache=False)
    names, notes = card.classes or split_dataset.classes, _make_notes(dataset, card, split)
    return PreparedEvaluation(card, str(data), chosen_split, names, n_classes, class_indices, loader, dist, notes)


def build_evaluation(
    card: Card, data: str, split: str, counts: Counts, loader: ImageLoader, *, classes: tuple[str, ...]
) -> Evaluation:
    """Build the result of an evaluation whose loader has read all images.

    Args:
        card: the card of the model.
        data: path or name of the dataset.
        split: the name of the split.
        counts: the gathered counts.
        loader: the loader of the split.
        classes: class names.

    Raises:
        DataError: every image was unreadable.
    """
    if not counts.n:
        what = f"the {split} split has no readable image"
        raise DataError(what, where=data, fix=f"run resnetkit check {data}, which lists every unreadable image")
    names = tuple(loader.images.names[i] for i in counts.indices)
    confidence = tuple(round(value, 5) for value in counts.confidence)
    predictions = Predictions(names, counts.labels, counts.predicted, confidence)
    skipped = tuple(loader.skipped.reasons.items())
    return Evaluation(card.name, data, split, classes, predictions, counts.top5_correct, counts.loss, skipped)


def count_predictions(
    logits_function: LogitsFunction, batches: Iterable[tuple[Tensor, Tensor, Indices]], n_classes: int
) -> Counts:
    """Run a function on batches and count its predictions.

    Args:
        logits_function: maps pixels (N, H, W, C), 8 bits, to logits (N, classes), fp32.
        batches: (pixels, labels, indices of the images).
        n_classes: the number of classes.
    """
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


def match_classes(
    names: tuple[str, ...], model_classes: tuple[str, ...] | int, ignore_spelling: bool = False
) -> Tensor:
    """Return the model's index of each class of a dataset, as a tensor of shape (classes,).

    Args:
        names: the classes of the dataset.
        model_classes: the classes of the model; if they have no names, their number, and the order decides.
        ignore_spelling: whether names are equal that differ only in how they are written.

    Raises:
        DataError: the model does not have a class of the dataset, or has another number of unnamed classes.
    """
    if isinstance(model_classes, int):
        if model_classes != len(names):
            what = f"the model has {model_classes} unnamed classes, but the dataset has {len(names)} classes"
            raise DataError(what, fix=f"use a dataset with {model_classes} classes in the order of the model's classes")
        return torch.arange(len(names))
    normalize = normalize_class_name if ignore_spelling else str
    index_by_name = {normalize(name): index for index, name in enumerate(model_classes)}
    if unknown := [name for name in names if normalize(name) not in index_by_name]:
        raise DataError(
            f"the model does not have {len(unknown)} of {len(names)} classes of the dataset: {join_names(unknown)}",
            where=f"the model's classes: {join_names(model_classes, 10)}",
            fix=suggest_fix(unknown[0], model_classes, "use a dataset whose class names are those of the model"),
        )
    return torch.tensor([index_by_name[normalize(name)] for name in names])


def choose_split(dataset: Dataset, card: Card, split: str | None) -> tuple[Dataset, str]:
    """Return the dataset with its splits, and the name of the split to evaluate.

    If the model was trained on this dataset, the splits are those of its training.

    Args:
        dataset: the dataset as it was opened.
        card: the card of the model.
        split: the requested split; None selects one as `resnetkit.evaluate` documents it.
    """
    available = [name for name in ("test", "val", "all", "train") if name in dataset.splits]
    if not _is_training_data(dataset, card):
        return dataset, split or available[0]
    assert card.training is not None  # noqa: S101  for the type checker
    undivided = {"all": dataset.splits["all"]} if "all" in dataset.splits else {}
    splits = split_dataset(dataset, card.training.split_seed).splits
    return replace(dataset, splits=splits | undivided), split or ("test" if "test" in splits else "val")


def _is_training_data(dataset: Dataset, card: Card) -> bool:
    """Check whether the model was trained on this dataset, by its fingerprint."""
    return card.training is not None and card.training.fingerprint == compute_fingerprint(dataset)


def _make_notes(dataset: Dataset, card: Card, split: str | None) -> tuple[str, ...]:
    """Return the reasons why the accuracy may be too high."""
    if card.training is None:
        return ()
    if _is_training_data(dataset, card):
        return ("the model was trained on these images",) if split in ("train", "all") else ()
    if card.training.data == Path(dataset.name).name:
        changed = f"the files of {card.training.data} are not those that the model was trained on"
        return (f"{changed}: it may have been trained on some of these images",)
    return ()
