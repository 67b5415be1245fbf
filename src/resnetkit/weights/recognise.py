"""Whose weights these are, and of which network: from names and shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from resnetkit.architecture.catalog import ROWS
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.spec import Linear, Network
from resnetkit.architecture.tensors import TensorShape, tensors_of
from resnetkit.errors import UsageError
from resnetkit.weights.dialects import NAMES, TABLES, Dialect
from resnetkit.weights.envelope import without_prefixes
from resnetkit.weights.fit import COUNT, misfits
from resnetkit.weights.infer import CONVENTIONS, USUAL, Convention, Unknown, infer

Shapes = Mapping[str, TensorShape]
OWN = "resnetkit"
KNOWN = (OWN, *NAMES)


@dataclass(frozen=True)
class Reading:
    """A way to read the names of a file: whose they are, what stands before them, theirs -> ours."""

    dialect: str
    prefix: str
    names: Mapping[str, str]
    pooled: bool = False

    @property
    def convention(self) -> Convention:
        """What the dialect does where shapes say nothing."""
        return CONVENTIONS.get(self.dialect, USUAL)

    def shapes(self, given: Shapes) -> dict[str, TensorShape]:
        """By our names."""
        return {self.names[name]: shape for name, shape in given.items()}


@dataclass(frozen=True)
class Recognised:
    """A file that was understood: how its names are read, and the network that has exactly these tensors."""

    reading: Reading
    spec: Network
    assumed: tuple[str, ...]
    plan: Plan | None = None


def readings(names: Collection[str], dialect: str | None = None) -> Iterator[Reading]:
    """Every way in which all of these names have a meaning, the plainest first."""
    for prefix, shown in without_prefixes(names):
        ours = all(name.startswith(("stem.", "stage", "head.")) for name in shown.values())
        if dialect == OWN or (dialect is None and ours):
            yield Reading(OWN, prefix, shown)
        for table in TABLES:
            if dialect in (None, table.name):
                reading = _read(table, prefix, shown)
                if reading:
                    yield reading


def _read(table: Dialect, prefix: str, shown: Mapping[str, str]) -> Reading | None:
    try:
        names = {theirs: table.ours(short) for theirs, short in shown.items()}
    except UsageError:
        return None
    return Reading(table.name, prefix, names, table.pooled) if len(set(names.values())) == len(names) else None


def recognise(given: Shapes, dialect: str | None = None) -> Recognised | str:
    """The network of these tensors, or why none can be told, in a few words."""
    reasons = []
    for reading in readings(given, dialect):
        shapes = reading.shapes(given)
        try:
            found = infer(shapes, reading.convention, reading.pooled)
        except Unknown as reason:
            reasons.append(f"{reading.dialect}: {reason}")
            continue
        made = plan(found.spec)
        wrong = misfits(complete(tensors_of(made), shapes), shapes, {})
        if not wrong:
            return Recognised(reading, found.spec, found.assumed, made)
        reasons.append(f"{reading.dialect}: {wrong[0]}")
    return reasons[0] if reasons else "its names are those of no dialect that is known"


def complete(wanted: Shapes, given: Shapes) -> dict[str, TensorShape]:
    """What a file has to hold: counts of batches may be missing, as torch did not always write them."""
    return {key: shape for key, shape in wanted.items() if key in given or not key.endswith(COUNT)}


def row_of(spec: Network) -> str:
    """The name of the catalogue's network that differs in nothing but classes and size of image; else ``custom``."""
    head = spec.head if isinstance(spec.head, Linear) else None
    for name, row in ROWS.items():
        same_head = replace(row, head=spec.head, input=spec.input)
        if same_head == spec and (head is None or isinstance(row.head, Linear)):
            return name
    return "custom"
