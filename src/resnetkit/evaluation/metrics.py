"""Count correct predictions, with the same result for any batch size and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.architecture.card import Card, TrainingInfo
from resnetkit.data.bad_files import BadFiles, SkippedFiles
from resnetkit.data.class_names import check_spellings, normalize_class_name
from resnetkit.data.dataset import Dataset, Images, Indices, split_dataset
from resnetkit.data.identity import DatasetIdentity, decode_ids, identify_dataset
from resnetkit.data.loader import ImageLoader, sync_unreadable
from resnetkit.data.open import open_dataset
from resnetkit.data.options import DEFAULT_DATA_OPTIONS, DataOptions
from resnetkit.errors import DataError, suggest_fix
from resnetkit.evaluation.result import NO_PREDICTION, Evaluation, Predictions, count_equal
from resnetkit.formatting import join_names, pluralize
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
        predicted: predicted classes, as indices; `NO_PREDICTION` if the logits are NaN or infinite.
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
        return replace(evaluation, notes=(*self.notes, *evaluation.notes))

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
    n_classes = count_network_classes(network)
    class_indices = match_classes(dataset.classes, card.classes or n_classes, options.merge_classes)
    divided, chosen_split, known_notes = choose_split(dataset, card, split, on_progress)
    images = divided.splits[chosen_split]
    selected = replace(dataset, splits={chosen_split: images})
    if dist.world_size > 1:
        digests = {"images": identify_dataset(selected).digest, "model": compute_network_digest(network)}
        check_same_on_all_ranks(dist, **digests)
    loader = ImageLoader(images, card.preparation, SkippedFiles(selected, bad_files), cache=False)
    names, notes = card.classes or dataset.classes, (*dataset.notes, *known_notes)
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
    evaluation = Evaluation(card.name, data, split, classes, predictions, counts.top5_correct, counts.loss, skipped)
    return replace(evaluation, notes=evaluation.describe_predictions())


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
        is_finite = outputs.isfinite().all(1)
        confidence, predicted = outputs.softmax(1).max(1)
        predicted, confidence = predicted.where(is_finite, NO_PREDICTION), confidence.where(is_finite, 0.0)
        in_top5 = (outputs.topk(min(5, n_classes), 1).indices == labels[:, None]).any(1) & is_finite
        losses = F.cross_entropy(outputs.double(), labels, reduction="none").nan_to_num(math.inf)
        batch_columns = (torch.from_numpy(indices), labels, predicted, confidence, in_top5, losses)
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


def choose_split(
    dataset: Dataset, card: Card, split: str | None, on_progress: ProgressCallback | None = None
) -> tuple[Dataset, str, tuple[str, ...]]:
    """Choose the split to evaluate, and count the images in it that the training of the model used.

    If the dataset is the one that the model was trained on, its splits are those of the training. Contents decide what
    is the same, so that renamed copies are recognized.

    Args:
        dataset: The dataset as it was opened.
        card: The card of the model.
        split: The requested split; None selects one as `resnetkit.evaluate` documents it.
        on_progress: Called with (images read, images in all).

    Returns:
        The dataset with its splits, the name of the split, and notes about images that the training used.
    """
    chosen = split or next(name for name in ("test", "val", "all", "train") if name in dataset.splits)
    if card.training is None:
        return _set_split(dataset, chosen, dataset.get_split(chosen)), chosen, ()
    is_drawn = chosen not in dataset.splits or (chosen in ("all", "train") and "val" not in dataset.splits)
    if is_drawn:  # by the training, if it is the same dataset
        identity = identify_dataset(dataset, on_progress)
        if identity.fingerprint == card.training.fingerprint:
            divided = _split_as_in_training(dataset, identity, card.training)
            chosen = split or ("test" if "test" in divided.splits else "val")
            images = (dataset if chosen == "all" else divided).get_split(chosen)
            notes = ("the model was trained on these images",) if chosen in ("train", "all") else ()
            return _set_split(divided, chosen, images), chosen, notes
    divided = _set_split(dataset, chosen, dataset.get_split(chosen))
    return divided, chosen, _describe_used_images(divided, chosen, card.training, on_progress)


def _set_split(dataset: Dataset, split: str, images: Images) -> Dataset:
    return replace(dataset, splits={**dataset.splits, split: images})


def _describe_used_images(
    dataset: Dataset, split: str, training: TrainingInfo, on_progress: ProgressCallback | None
) -> tuple[str, ...]:
    """Count the images of a split that the model learned from, or that chose its epoch."""
    identity = identify_dataset(replace(dataset, splits={split: dataset.splits[split]}), on_progress)
    used_ids = np.concatenate([decode_ids(training.train_images), decode_ids(training.val_images)])
    n_used, n_images = int(np.isin(identity.get_ids(split), used_ids).sum()), len(dataset.splits[split])
    share = f"{n_used:,} of {pluralize(n_images, 'image')}"
    return (f"the training of the model used {share}, so the accuracy is likely too high",) if n_used else ()


def _split_as_in_training(dataset: Dataset, identity: DatasetIdentity, training: TrainingInfo) -> Dataset:
    """Divide the dataset that a model was trained on; if its files were renamed, contents decide."""
    divided, source = split_dataset(dataset, training.split_seed), next(iter(dataset.splits))
    images, ids, train_ids = dataset.splits[source], identity.get_ids(source), decode_ids(training.train_images)
    id_of_name = dict(zip(images.names, ids.tolist(), strict=True))
    if np.isin([id_of_name[name] for name in divided.splits["train"].names], train_ids).all():
        return divided
    is_train = np.isin(ids, train_ids)
    is_val = np.isin(ids, decode_ids(training.val_images)) & ~is_train
    masks = {"train": is_train, "val": is_val, **({"test": ~(is_train | is_val)} if source == "all" else {})}
    parts = {split: images.take(np.flatnonzero(mask)) for split, mask in masks.items() if mask.any()}
    return replace(divided, splits={**divided.splits, **parts})
