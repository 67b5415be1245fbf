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
from resnetkit.architecture.plan import Node, Plan, Section
from resnetkit.errors import UsageError
from resnetkit.explain import describe as words
from resnetkit.explain.differences import Difference, find_differences


@dataclass(frozen=True, slots=True)
class RelativeCount:
    """A count, and how many times that of the first network it is."""

    value: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Totals:
    """A whole network. ``activations`` and ``macs`` are for one image of ``input``."""

    name: str
    input: Shape
    params: RelativeCount
    macs: RelativeCount
    depth: RelativeCount
    receptive_field: RelativeCount
    activations: RelativeCount


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """What one network has at a place. ``params`` and ``macs`` are those of all the places of the row together."""

    branch: str
    shortcut: str
    output: Shape
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """A place, or ``count`` equal ones in a row, in every network; ``None`` where a network lacks it.

    ``like`` holds, for each network, the number (from 0) of the first network that has exactly the same there.
    """

    path: str
    count: int
    cells: tuple[ComparisonCell | None, ...]
    same_as: tuple[int, ...]

    @property
    def is_different(self) -> bool:
        """Whether any two networks do not have the same there."""
        return len(set(self.same_as)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Networks side by side, in plain values. ``differences`` hold each network against the first."""

    totals: tuple[Totals, ...]
    rows: tuple[ComparisonRow, ...]
    differences: tuple[Difference, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(total.name for total in self.totals)


def compare_plans(plans: Mapping[str, Plan]) -> Comparison:
    """Hold networks, by their names, against the first of them. Fewer than two raise `UsageError`."""
    if len(plans) < 2:
        raise UsageError("one network cannot be compared", where="compare", fix="name two networks or more")
    (base_name, base), *compared = plans.items()
    totals = tuple(_build_totals(name, plan, base) for name, plan in plans.items())
    network_differences = tuple(
        difference for name, plan in compared for difference in find_differences(name, plan, base_name, base)
    )
    return Comparison(totals, tuple(_group_rows(tuple(plans.values()))), network_differences)


def _build_totals(name: str, plan: Plan, base: Plan) -> Totals:
    amounts = {key: RelativeCount(getattr(plan, key), getattr(plan, key) / getattr(base, key)) for key in _COUNTS}
    return Totals(name, plan.input, **amounts)


_COUNTS = ("params", "macs", "depth", "receptive_field", "activations")

# ------------------------------------------------------------------------------------------------------------- rows

_AlignedParts = tuple[Section | Node | None, ...]


def _group_rows(plans: tuple[Plan, ...]) -> Iterator[ComparisonRow]:
    """Equal neighbours are one row."""
    run: list[_AlignedParts] = []
    parts_by_network = [_collect_parts(plan) for plan in plans]
    for path in sorted(
        dict.fromkeys(path for network_parts in parts_by_network for path in network_parts), key=_get_sort_key
    ):
        aligned = tuple(network_parts.get(path) for network_parts in parts_by_network)
        if run and not _is_repeat(run[-1], aligned):
            yield _build_row(run)
            run = []
        run.append(aligned)
    if run:
        yield _build_row(run)


def _collect_parts(plan: Plan) -> dict[str, Section | Node]:
    """What is compared, by path: blocks, whatever else stands in a stage, and the other parts whole."""
    parts: dict[str, Section | Node] = {}
    for child in plan.root.children:
        is_single = isinstance(child, Node) or child.role != "stage"
        parts |= {part.path: part for part in ([child] if is_single else getattr(child, "children", ()))}
    return parts


def _get_sort_key(path: str) -> tuple[float, ...]:
    """The stem, the blocks of each stage, what follows them in the stage, the rest in the order of the networks."""
    stage = re.match(r"stage(\d+)", path)
    if stage is None:
        return (-1.0,) if path == "stem" else (float("inf"), float(path == "head"))
    block = re.search(r"\.block(\d+)", path)
    return float(stage[1]), float(block[1] if block else "inf")


def _is_repeat(previous: _AlignedParts, current: _AlignedParts) -> bool:
    """Whether every network has the same at both: a block equals its neighbour, or both are lacking."""
    return all(
        (a is None and b is None)
        or (
            a is not None
            and b is not None
            and a.role == b.role == "block"
            and _is_equal(a, b)
            and _get_stage_name(a) == _get_stage_name(b)
        )
        for a, b in zip(previous, current, strict=True)
    )


def _is_equal(a: Section | Node, b: Section | Node) -> bool:
    return words.compute_signature(a) == words.compute_signature(b)


def _get_stage_name(part: Section | Node) -> str:
    return part.path.partition(".")[0]


def _build_row(run: list[_AlignedParts]) -> ComparisonRow:
    parts = run[0]
    signatures = [part and words.compute_signature(part) for part in parts]
    same_as = tuple(signatures.index(signature) for signature in signatures)
    paths = [next(part.path for part in aligned if part) for aligned in run]
    return ComparisonRow(
        words.format_path_range(paths), len(run), tuple(_build_cell(part, len(run)) for part in parts), same_as
    )


def _build_cell(part: Section | Node | None, count: int) -> ComparisonCell | None:
    if part is None:
        return None
    if isinstance(part, Node) or part.role != "block":
        return ComparisonCell(words.format_chain(part.nodes), "", part.output, part.params * count, part.macs * count)
    shortcut_part = words.find_shortcut(part)
    shortcut = words.format_shortcut(shortcut_part) if shortcut_part else "none"
    return ComparisonCell(
        words.format_chain(words.select_main_path(part)), shortcut, part.output, part.params * count, part.macs * count
    )


# ------------------------------------------------------------------------------------------------------------- words


def describe_differences(comparison: Comparison) -> list[str]:
    """What differs, each network held against the first; one that differs in nothing is called identical."""
    base = comparison.totals[0]
    return [sentence for total in comparison.totals[1:] for sentence in _describe_network(comparison, total, base)]


def _describe_network(comparison: Comparison, total: Totals, base: Totals) -> list[str]:
    network_differences = [difference for difference in comparison.differences if difference.name == total.name]
    if not network_differences:
        return [f"{total.name} and {base.name} are identical"]
    lines = [
        _format_difference(difference, is_only=len(network_differences) == 1) for difference in network_differences
    ]
    return lines + [
        line for line in [_format_total_changes(total, base, with_costs=len(network_differences) > 1)] if line
    ]


def _format_difference(difference: Difference, *, is_only: bool) -> str:
    if difference.params is None or difference.macs is None:
        return difference.text
    location = "" if is_only else f"in the {difference.part} "
    return f"{difference.text}: {location}{_format_cost_change(difference.params, difference.macs)}"


def _format_cost_change(params: int, macs: int) -> str:
    """``231,211,008 MACs fewer, the same params``."""
    counts = {"params": params, "MACs": macs}
    same = [name for name, count in counts.items() if count == 0]
    if len(same) == 2:
        return "the same params and MACs"
    changes = [f"{abs(count):,} {name} {'more' if count > 0 else 'fewer'}" for name, count in counts.items() if count]
    if len(changes) == 2 and (params > 0) == (macs > 0):
        changes = [changes[0].rpartition(" ")[0] + " and " + changes[1]]
    return ", ".join(changes + [f"the same {name}" for name in same])


def _format_total_changes(total: Totals, base: Totals, *, with_costs: bool) -> str:
    """The totals that differ, and those of params and MACs where no sentence has told them."""
    changes = []
    if with_costs:
        changes += [
            f"{total.params.value:,} params ({_format_times(total.params)})",
            f"{total.macs.value:,} MACs ({_format_times(total.macs)})",
        ]
    if total.depth != base.depth:
        changes.append(f"depth {total.depth.value:,} instead of {base.depth.value:,}")
    if total.receptive_field != base.receptive_field:
        prefix = f"a receptive field of {total.receptive_field.value:,} pixels instead of "
        changes.append(f"{prefix}{base.receptive_field.value:,}")
    return f"In all {total.name} has " + ", ".join(changes) if changes else ""


def _format_times(amount: RelativeCount) -> str:
    return "the same" if amount.ratio == 1 else f"{_format_ratio(amount)} times"


def _format_ratio(amount: RelativeCount) -> str:
    """Three digits, and more where they would round to 1."""
    if amount.ratio >= 100:
        return f"{amount.ratio:,.0f}"
    return f"{amount.ratio:.3g}" if f"{amount.ratio:.3g}" != "1" else f"{amount.ratio:.6g}"


# ------------------------------------------------------------------------------------------------------------ tables

TableData = tuple[tuple[str, ...], list[tuple[str, ...]]]
ROWS_TEXT_COLUMNS, TOTALS_TEXT_COLUMNS = 4, 1  # columns of words; the rest are numbers
_TOTAL_LABELS = {"params": "params", "macs": "MACs", "depth": "depth", "receptive_field": "field",
           "activations": "activations"}  # fmt: skip


def build_totals_table(comparison: Comparison) -> TableData:
    """A column for each network, a row for each total, with its ratio to the first network."""
    inputs = ("input", *(words.format_shape(total.input) for total in comparison.totals))
    return ("total", *comparison.names), [inputs, *(_format_total(comparison, key) for key in _TOTAL_LABELS)]


def _format_total(comparison: Comparison, key: str) -> tuple[str, ...]:
    base, *compared = (getattr(total, key) for total in comparison.totals)
    ratios = [f" ({_format_ratio(amount)}x)" if amount.ratio != 1 else " (same)" for amount in compared]
    return _TOTAL_LABELS[key], f"{base.value:,}", *(f"{a.value:,}{r}" for a, r in zip(compared, ratios, strict=True))


def build_rows_table(comparison: Comparison) -> TableData:
    """A line for each place where all networks have the same, else one for each kind of what they have there."""
    headings = ("place", "network", "branch", "shortcut", "output", "params", "MACs")
    return headings, [line for row in comparison.rows for line in _format_row(comparison, row)]


def _format_row(comparison: Comparison, row: ComparisonRow) -> Iterator[tuple[str, ...]]:
    for i, group in enumerate(sorted(set(row.same_as))):
        names = [name for name, same_as in zip(comparison.names, row.same_as, strict=True) if same_as == group]
        path = row.path if i == 0 else ""
        yield (
            path,
            ", ".join(names) if row.is_different else _ALL_LABELS.get(len(names), "all"),
            *_format_cell(row.cells[group]),
        )


_ALL_LABELS = {2: "both"}


def _format_cell(cell: ComparisonCell | None) -> Sequence[str]:
    if cell is None:
        return ("-", "", "", "", "")
    params, macs = (f"{n:,}" if n else "" for n in (cell.params, cell.macs))
    return cell.branch, cell.shortcut, words.format_shape(cell.output), params, macs


def serialize_comparison(comparison: Comparison) -> dict[str, Any]:
    """Everything as dictionaries, lists and numbers, with the sentences."""
    rows = [asdict(row) | {"differs": row.is_different} for row in comparison.rows]
    return asdict(comparison) | {"rows": rows, "sentences": describe_differences(comparison)}
