"""Files to labels."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from resnetkit.deliver.inputs import Input, Read, decoded, expand
from resnetkit.deliver.rows import Answer
from resnetkit.errors import PictureError
from resnetkit.learn.device import Logits, Precision, answering, classes_of, pick
from resnetkit.learn.evaluate import digest, require_alike
from resnetkit.learn.pixels import Tell
from resnetkit.learn.ranks import ALONE, Ranks
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
    ranks: Ranks = ALONE,
) -> Iterator[Answer]:
    """What `predict` gives for inputs that are expanded already, each answer as soon as it is there.

    Of W processes process r looks at the batches r, r + W ..., and each gets all answers, in order.
    """
    classes_of(network)  # refuses a network that names none
    if ranks.world > 1:
        require_alike(ranks, model=digest(network))
    stride, names, done = batch_size * ranks.world, network.card.labels, 0
    starts = range(ranks.rank * batch_size, len(chosen), stride)
    mine = [one for start in starts for one in chosen[start : start + batch_size]]
    with answering(network, pick(device), precision) as logits:
        chunks = decoded(mine, network.card.preparation, batch_size)
        for _ in range(0, len(chosen), stride):
            found = [astuple(answer) for answer in _answers(next(chunks, []), logits, names, top)]
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
