"""Whose weights these are, and of which network: from names and shapes alone.

This module imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from resnetkit.architecture.catalog import ROWS
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Network, Pooled, class_count, with_classes
from resnetkit.architecture.tensors import STEM, Shapes, TensorShape, tensors_of
from resnetkit.errors import UsageError
from resnetkit.formatting import counted
from resnetkit.weights.dialects import NAMES, TABLES, Dialect, layout_of
from resnetkit.weights.fit import COUNT, misfits
from resnetkit.weights.infer import CONVENTIONS, USUAL, Convention, Unknown, deepest, infer
from resnetkit.weights.unwrap import without_prefixes

OWN = "resnetkit"
KNOWN = (OWN, *NAMES)
_AS_OURS = Dialect(OWN, ())


@dataclass(frozen=True)
class Reading:
    """A way to read the names of a file: whose they are, what stands before them, theirs -> ours."""

    table: Dialect
    prefix: str
    names: Mapping[str, str]

    @property
    def dialect(self) -> str:
        return self.table.name

    @property
    def convention(self) -> Convention:
        """What the dialect does where shapes say nothing."""
        return CONVENTIONS.get(self.dialect, USUAL)

    def shapes(self, given: Shapes) -> dict[str, TensorShape]:
        """By our names and as we have them; what is left out is left out here."""
        ours = {own: given[name] for name, own in self.names.items()}
        return {key: _squeezed(shape) if key in self.table.as_conv else shape for key, shape in ours.items()}


@dataclass(frozen=True)
class Recognised:
    """A file that was understood: how its names are read, and the network that has exactly these tensors."""

    reading: Reading
    spec: Network
    assumed: tuple[str, ...]
    plan: Plan | None = None


def readings(names: Collection[str], dialect: str | None = None, *, body: bool = False) -> Iterator[Reading]:
    """Every way in which all of these names have a meaning, the plainest first.

    Of a ``body`` alone: all that are not a head's; the others are left out.
    """
    for prefix, shown in without_prefixes(names, some=body):
        ours = all(_OURS.match(name) for name in shown.values())
        if dialect == OWN or (dialect is None and ours):
            yield Reading(_AS_OURS, prefix, {name: own for name, own in shown.items() if not (body and _of_head(own))})
        for table in TABLES:
            if dialect in (None, table.name):
                reading = _read(table, prefix, shown, body)
                if reading:
                    yield reading


_OURS = re.compile(r"stem\.|stage|head\.")


def _squeezed(shape: TensorShape) -> TensorShape:
    """Of a 1x1 convolution what a linear layer has."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _of_head(name: str) -> bool:
    """Whether a tensor is a classifier's; the norm that begins the head of a pre-activation network is its body's."""
    return name.startswith(("head.linear", "head.act"))


def _read(table: Dialect, prefix: str, shown: Mapping[str, str], body: bool) -> Reading | None:
    names, headed = {}, False
    for theirs, short in shown.items():
        try:
            ours = table.ours(short)
        except UsageError:
            if body and not table.of_body(short):
                continue
            return None
        headed = headed or _of_head(ours)
        if not (body and _of_head(ours)):
            names[theirs] = ours
    if CONVENTIONS.get(table.name, USUAL).padded and not headed:
        return None  # nothing but the name of its classifier tells this dialect, and with it option A, from others
    unique = len(set(names.values())) == len(names) > 0
    return Reading(table, prefix, names) if unique else None


def recognise(given: Shapes, dialect: str | None = None, *, body: bool = False) -> Recognised | str:
    """The network of these tensors, or of a ``body`` among them, or why none can be told, in a few words."""
    reasons = []
    for reading in readings(given, dialect, body=body):
        shapes = reading.shapes(given)
        try:
            found = infer(shapes, reading.convention, reading.table.layout.pooled)
        except Unknown as reason:
            reasons.append(f"{reading.dialect}: {reason}")
            continue
        made = plan(found.spec)
        wrong = misfits(complete(tensors_of(made), shapes), shapes, {})
        if not wrong:
            unsaid = ("shortcuts project with their stride, without a pool",) if _may_pool(reading, shapes) else ()
            return Recognised(reading, found.spec, (*found.assumed, *unsaid), made)
        reasons.append(f"{reading.dialect}: {wrong[0]}")
    nobody = f"its names are not those of {dialect}" if dialect else "its names are those of no dialect that is known"
    return reasons[0] if reasons else nobody


def _may_pool(reading: Reading, shapes: Shapes) -> bool:
    """Our own names are the same for a projection and for one behind a pool."""
    return reading.dialect == OWN and any(".shortcut.conv." in key for key in shapes)


def as_named(named: Network, given: Shapes, dialect: str | None = None, *, body: bool = False) -> Recognised | None:
    """The reading under which the tensors fit this network best; the classifier says how many classes there are.

    None where the names have no meaning in the ``dialect``; without one they are then compared as they are.
    """
    best, fewest = None, math.inf
    for reading in readings(given, dialect, body=body):
        if reading.dialect != OWN and reading.table.layout.pooled != layout_of(named).pooled:
            continue  # the names of its shortcuts say whether a pool stands in them
        shapes = reading.shapes(given)
        spec = replace(named, head=Pooled()) if body else _with_classes(named, shapes)
        wrong = len(misfits(complete(tensors_of(plan(spec)), shapes), shapes, {}))
        if wrong < fewest:
            best, fewest = Recognised(reading, spec, ()), wrong
    if best is None and not dialect:
        best = Recognised(as_they_are(given), named, ())
    return best


def as_they_are(names: Collection[str]) -> Reading:
    """No translation, so that an error shows a file's own names."""
    return Reading(_AS_OURS, "", {name: name for name in names})


def _with_classes(named: Network, shapes: Shapes) -> Network:
    last = shapes.get("head.linear.weight", ())
    told = len(last) == 2 and last[0] and class_count(named.head)
    return with_classes(named, last[0]) if told else named


def looks_like(given: Shapes) -> str:
    """The networks of the catalogue that have these tensors, the head aside: ``resnet50 or resnet50_v1``."""
    for reading in readings(given):
        body = _body(reading.shapes(given).items())
        channels = (*body.get(STEM, ()), 0, 0)[1]
        names = [name for name in _as_deep(body) if _body(tensors_of(plan(ROWS[name])).items(), channels) == body]
        if names:
            usual = ROWS[names[0]].input[0]
            inputs = f" with {counted(channels, 'input channel')}" * (channels != usual)
            return " or ".join(names) + inputs + f" in the dialect {reading.dialect}" * (reading.dialect != OWN)
    return ""


def _body(shapes: Iterable[tuple[str, TensorShape]], channels: int = 0) -> dict[str, TensorShape]:
    """All but the head and what old files lack; the stem for so many input channels, if any are named."""
    body = {key: shape for key, shape in shapes if not _of_head(key) and not key.endswith(COUNT)}
    if channels and STEM in body:
        body[STEM] = (body[STEM][0], channels, *body[STEM][2:])
    return body


def _as_deep(body: Shapes) -> list[str]:
    """The names with as many blocks in each stage, so that few plans are made."""
    blocks = list(deepest(body).values())
    return [name for name, row in ROWS.items() if [stage.blocks for stage in row.stages] == blocks]


def complete(wanted: Shapes, given: Shapes) -> dict[str, TensorShape]:
    """What a file has to hold: counts of batches may be missing, as torch did not always write them."""
    return {key: shape for key, shape in wanted.items() if key in given or not key.endswith(COUNT)}
