"""How often a model is right, as the network itself answers or an engine that `optimize` has kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from resnetkit.data.loader import Tell
from resnetkit.engines.reference import of_tensors
from resnetkit.evaluation.metrics import examination
from resnetkit.evaluation.result import Evaluation
from resnetkit.network.layers import Network
from resnetkit.prediction.api import By, Found, find
from resnetkit.runtime.device import Logits, Precision, answering, as_precision, pick
from resnetkit.runtime.distributed import ALONE, Ranks
from resnetkit.training.overrides import policy
from resnetkit.weights.load import load

_MANY = 10_000  # pictures: what counts is how many in a second, not how soon the first


def evaluate(
    model: str | os.PathLike[str] | Network,
    data: str | Path,
    *,
    part: str | None = None,
    engine: str = "torch",
    device: str = "auto",
    precision: Precision = "fp32",
    bad_files: str | None = None,
    max_bad: str | float | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Count how often ``model`` is right about ``data``, or about one ``part`` of it.

    Without ``part``: if the model was trained on this very data, what was held out from it; else ``test`` where the
    data has it, or ``val``, or all of it. Classes are matched by name. A picture that cannot be read is an error, or
    with ``bad_files="skip"`` it is left out and named, up to the share ``max_bad`` (0.01). ``engine`` is the network
    itself (``torch``, in ``precision`` on ``device``), the fastest of those that `optimize` has kept (``auto``), or one
    of them by its name (``openvino-int8``); ``notes`` of what comes back name it. ``tell`` hears of pictures read
    (done, all).

    Raises `DataError` where the data has a class that the model has not, and `UsageError` or `MachineError` for an
    engine that is not there.
    """
    bad, asked = policy(bad_files, max_bad), who(model, By(engine, device, as_precision(precision)))
    network = model if isinstance(model, Network) else load(model)
    exam = examination(network, data, part, bad, tell=tell)
    with answers_of(asked, network, device, precision) as (logits, said):
        found = exam.of(logits, tell)
    return replace(found, notes=(*found.notes, *[f"engine: {said}"] * bool(said)))


def who(model: object, by: By, words: Sequence[str] = (), ranks: Ranks = ALONE) -> Found:
    """Who is asked; ``words`` say how weights are to be read. fp32 is what is meant where nothing else is said."""
    said = replace(by, precision="" if by.precision == "fp32" else by.precision)
    return find(model, _MANY, said.about(words), ranks)


@contextlib.contextmanager
def answers_of(asked: Found, network: Network, device: str, precision: Precision) -> Iterator[tuple[Logits, str]]:
    """What answers for ``network``, as evaluation asks, and a sentence where there is something to say of it."""
    with asked.engine() as (engine, _, why):
        if engine:
            asking, told = of_tensors(engine), str(engine.choice)
        else:
            asking, told = answering(network, pick(device), precision), f"torch {precision}" * bool(why)
        with asking as logits:
            yield logits, f"{told}{f', as {why}' if why else ''}"
