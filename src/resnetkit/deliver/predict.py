"""Files to labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from resnetkit.deliver.inputs import Input, Read, decoded, expand
from resnetkit.deliver.rows import Answer
from resnetkit.errors import PictureError
from resnetkit.learn.device import Logits, Precision, answering, classes_of, pick
from resnetkit.learn.pixels import Tell
from resnetkit.network.layers import Network
from resnetkit.weights.store import load

Named = str | Path | Input
BATCH = 32


def predict(
    files: Named | Sequence[Named],
    model: str | os.PathLike[str] | Network,
    *,
    top: int = 5,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = BATCH,
    tell: Tell | None = None,
) -> list[Answer]:
    """An `Answer` for each file, in order; a folder or a pattern stands for the pictures in it, by name.

    A file that cannot be read is a row with its reason, never an end of the others. ``tell`` hears (done, all).
    """
    network = model if isinstance(model, Network) else load(model)
    chosen = expand([files] if isinstance(files, Named) else files)
    found = answers(chosen, network, top, device=device, precision=precision, batch_size=batch_size, tell=tell)
    return list(found)


def answers(
    chosen: Sequence[Input],
    network: Network,
    top: int,
    *,
    device: str,
    precision: Precision,
    batch_size: int,
    tell: Tell | None,
) -> Iterator[Answer]:
    """What `predict` gives for inputs that are expanded already, each answer as soon as it is there."""
    classes_of(network)  # refuses a network that names none
    names, done = network.card.labels, 0
    with answering(network, pick(device), precision) as logits:
        for chunk in decoded(chosen, network.card.preparation, batch_size):
            yield from _answers(chunk, logits, names, top)
            done += len(chunk)
            if tell:
                tell(done, len(chosen))


def _answers(chunk: list[Read], logits: Logits, names: Sequence[str], top: int) -> Iterator[Answer]:
    good = [pixels for _, pixels in chunk if not isinstance(pixels, PictureError)]
    shares = iter(logits(torch.from_numpy(np.stack(good))).softmax(1)) if good else iter(())
    for one, pixels in chunk:
        if isinstance(pixels, PictureError):
            yield Answer(one.name, error=pixels.what)
        else:
            best = next(shares).topk(min(top, len(names)))
            told = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            yield Answer(one.name, tuple((names[i], share) for share, i in told))
