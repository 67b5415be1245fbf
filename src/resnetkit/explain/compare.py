"""Networks side by side: their totals, their blocks, and what differs between them in plain words.

    comparison = compare({"resnet50": plan(spec("resnet50")), "resnet50_v1": plan(spec("resnet50_v1"))})
    sentences(comparison)                  what differs, a sentence each
    totals_table(comparison)               headings and cells, for a table; so has rows_table
    record(comparison)                     the same as plain values, for JSON

The first network is the one that the others are held against. Places are aligned by their paths, so that networks of
any kind can stand beside each other: a place that one of them lacks is shown as lacking.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Node, Place, Plan
from resnetkit.errors import UsageError
from resnetkit.explain import describe as words
from resnetkit.explain.differences import Difference, differences


@dataclass(frozen=True, slots=True)
class Amount:
    """A count, and how many times that of the first network it is."""

    value: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Totals:
    """A whole network. ``activations`` and ``macs`` are for one image of ``input``."""

    name: str
    input: Shape
    params: Amount
    macs: Amount
    depth: Amount
    receptive_field: Amount
    activations: Amount


@dataclass(frozen=True, slots=True)
class Cell:
    """What one network has at a place. ``params`` and ``macs`` are those of all the places of the row together."""

    branch: str
    shortcut: str
    output: Shape
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class Row:
    """A place, or ``count`` equal ones in a row, in every network; ``None`` where a network lacks it.

    ``like`` holds, for each network, the number (from 0) of the first network that has exactly the same there.
    """

    path: str
    count: int
    cells: tuple[Cell | None, ...]
    like: tuple[int, ...]

    @property
    def differs(self) -> bool:
        """Whether any two networks do not have the same there."""
        return len(set(self.like)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Networks side by side, in plain values. ``differences`` hold each network against the first."""

    totals: tuple[Totals, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(total.name for total in self.totals)


def compare(plans: Mapping[str, Plan]) -> Comparison:
    """Hold networks, by their names, against the first of them. Fewer than two raise `UsageError`."""
    if len(plans) < 2:
        raise UsageError("one network cannot be compared", where="compare", fix="name two networks or more")
    (first, base), *others = plans.items()
    totals = tuple(_totals(name, plan, base) for name, plan in plans.items())
    found = tuple(one for name, plan in others for one in differences(name, plan, first, base))
    return Comparison(totals, tuple(_rows(tuple(plans.values()))), found)


def _totals(name: str, plan: Plan, base: Plan) -> Totals:
    amounts = {key: Amount(getattr(plan, key), getattr(plan, key) / getattr(base, key)) for key in _COUNTS}
    return Totals(name, plan.input, **amounts)


_COUNTS = ("params", "macs", "depth", "receptive_field", "activations")

# ------------------------------------------------------------------------------------------------------------- rows

_Parts = tuple[Place | Node | None, ...]


def _rows(plans: tuple[Plan, ...]) -> Iterator[Row]:
    """Equal neighbours are one row."""
    run: list[_Parts] = []
    places = [_places(plan) for plan in plans]
    for path in sorted(dict.fromkeys(path for found in places for path in found), key=_order):
        parts = tuple(found.get(path) for found in places)
        if run and not _follows(run[-1], parts):
            yield _row(run)
            run = []
        run.append(parts)
    if run:
        yield _row(run)


def _places(plan: Plan) -> dict[str, Place | Node]:
    """What is compared, by path: blocks, whatever else stands in a stage, and the other parts whole."""
    found: dict[str, Place | Node] = {}
    for child in plan.root.children:
        whole = isinstance(child, Node) or child.role != "stage"
        found |= {part.path: part for part in ([child] if whole else getattr(child, "children", ()))}
    return found


def _order(path: str) -> tuple[float, ...]:
    """The stem, the blocks of each stage, what follows them in the stage, the rest in the order of the networks."""
    stage = re.match(r"stage(\d+)", path)
    if stage is None:
        return (-1.0,) if path == "stem" else (float("inf"), float(path == "head"))
    block = re.search(r"\.block(\d+)", path)
    return float(stage[1]), float(block[1] if block else "inf")


def _follows(before: _Parts, parts: _Parts) -> bool:
    """Whether every network has the same at both: a block equals its neighbour, or both are lacking."""
    return all(
        (a is None and b is None)
        or (a is not None and b is not None and a.role == b.role == "block" and _same(a, b) and _stage(a) == _stage(b))
        for a, b in zip(before, parts, strict=True)
    )


def _same(a: Place | Node, b: Place | Node) -> bool:
    return words.signature(a) == words.signature(b)


def _stage(part: Place | Node) -> str:
    return part.path.partition(".")[0]


def _row(run: list[_Parts]) -> Row:
    parts = run[0]
    signatures = [part and words.signature(part) for part in parts]
    like = tuple(signatures.index(signature) for signature in signatures)
    paths = [next(part.path for part in there if part) for there in run]
    return Row(words.listed(paths), len(run), tuple(_cell(part, len(run)) for part in parts), like)


def _cell(part: Place | Node | None, count: int) -> Cell | None:
    if part is None:
        return None
    if isinstance(part, Node) or part.role != "block":
        return Cell(words.chain(part.nodes), "", part.output, part.params * count, part.macs * count)
    place = words.shortcut_of(part)
    shortcut = words.shortcut(place) if place else "none"
    return Cell(words.chain(words.ways(part)), shortcut, part.output, part.params * count, part.macs * count)


# ------------------------------------------------------------------------------------------------------------- words


def sentences(comparison: Comparison) -> list[str]:
    """What differs, each network held against the first; one that differs in nothing is called identical."""
    first = comparison.totals[0]
    return [sentence for total in comparison.totals[1:] for sentence in _about(comparison, total, first)]


def _about(comparison: Comparison, total: Totals, first: Totals) -> list[str]:
    found = [one for one in comparison.differences if one.name == total.name]
    if not found:
        return [f"{total.name} and {first.name} are identical"]
    told = [_sentence(one, alone=len(found) == 1) for one in found]
    return told + [line for line in [_in_all(total, first, costs=len(found) > 1)] if line]


def _sentence(one: Difference, *, alone: bool) -> str:
    if one.params is None or one.macs is None:
        return one.text
    where = "" if alone else f"in the {one.part} "
    return f"{one.text}: {where}{_more(one.params, one.macs)}"


def _more(params: int, macs: int) -> str:
    """``231,211,008 MACs fewer, the same params``."""
    counts = {"params": params, "MACs": macs}
    same = [name for name, count in counts.items() if count == 0]
    if len(same) == 2:
        return "the same params and MACs"
    told = [f"{abs(count):,} {name} {'more' if count > 0 else 'fewer'}" for name, count in counts.items() if count]
    if len(told) == 2 and (params > 0) == (macs > 0):
        told = [told[0].rpartition(" ")[0] + " and " + told[1]]
    return ", ".join(told + [f"the same {name}" for name in same])


def _in_all(total: Totals, first: Totals, *, costs: bool) -> str:
    """The totals that differ, and those of params and MACs where no sentence has told them."""
    told = []
    if costs:
        told += [
            f"{total.params.value:,} params ({_times(total.params)})",
            f"{total.macs.value:,} MACs ({_times(total.macs)})",
        ]
    if total.depth != first.depth:
        told.append(f"depth {total.depth.value:,} instead of {first.depth.value:,}")
    if total.receptive_field != first.receptive_field:
        field = f"a receptive field of {total.receptive_field.value:,} pixels instead of "
        told.append(f"{field}{first.receptive_field.value:,}")
    return f"In all {total.name} has " + ", ".join(told) if told else ""


def _times(amount: Amount) -> str:
    return "the same" if amount.ratio == 1 else f"{_ratio(amount)} times"


def _ratio(amount: Amount) -> str:
    """Three digits, and more where they would round to 1."""
    if amount.ratio >= 100:
        return f"{amount.ratio:,.0f}"
    return f"{amount.ratio:.3g}" if f"{amount.ratio:.3g}" != "1" else f"{amount.ratio:.6g}"


# ------------------------------------------------------------------------------------------------------------ tables

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
LEFT_OF_ROWS, LEFT_OF_TOTALS = 4, 1  # columns of words; the rest are numbers
_TOTALS = {"params": "params", "macs": "MACs", "depth": "depth", "receptive_field": "field",
           "activations": "activations"}  # fmt: skip


def totals_table(comparison: Comparison) -> Table:
    """A column for each network, a row for each total, with its ratio to the first network."""
    inputs = ("input", *(words.size(total.input) for total in comparison.totals))
    return ("total", *comparison.names), [inputs, *(_total_cells(comparison, key) for key in _TOTALS)]


def _total_cells(comparison: Comparison, key: str) -> tuple[str, ...]:
    first, *others = (getattr(total, key) for total in comparison.totals)
    ratios = [f" ({_ratio(amount)}x)" if amount.ratio != 1 else " (same)" for amount in others]
    return _TOTALS[key], f"{first.value:,}", *(f"{a.value:,}{r}" for a, r in zip(others, ratios, strict=True))


def rows_table(comparison: Comparison) -> Table:
    """A line for each place where all networks have the same, else one for each kind of what they have there."""
    headings = ("place", "network", "branch", "shortcut", "output", "params", "MACs")
    return headings, [line for row in comparison.rows for line in _lines(comparison, row)]


def _lines(comparison: Comparison, row: Row) -> Iterator[tuple[str, ...]]:
    for i, kind in enumerate(sorted(set(row.like))):
        names = [name for name, like in zip(comparison.names, row.like, strict=True) if like == kind]
        place = row.path if i == 0 else ""
        yield (place, ", ".join(names) if row.differs else _EVERY.get(len(names), "all"), *_cells(row.cells[kind]))


_EVERY = {2: "both"}


def _cells(cell: Cell | None) -> Sequence[str]:
    if cell is None:
        return ("-", "", "", "", "")
    params, macs = (f"{n:,}" if n else "" for n in (cell.params, cell.macs))
    return cell.branch, cell.shortcut, words.size(cell.output), params, macs


def record(comparison: Comparison) -> dict[str, Any]:
    """Everything as dictionaries, lists and numbers, with the sentences."""
    rows = [asdict(row) | {"differs": row.differs} for row in comparison.rows]
    return asdict(comparison) | {"rows": rows, "sentences": sentences(comparison)}
