"""Compare networks: their totals, their blocks, and their differences in words.

    comparison = compare_plans({"resnet50": plan(spec("resnet50")), "resnet50_v1": plan(spec("resnet50_v1"))})
    describe_differences(comparison)       one sentence for each difference
    build_totals_table(comparison)         headings and cells; so does build_rows_table
    serialize_comparison(comparison)       everything as plain values, for JSON

The first network is the baseline of the others. Parts are aligned by their paths, so networks of any kind can be
compared; a part that a network lacks is shown as missing.

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
from resnetkit.explain import describe
from resnetkit.explain.differences import Difference, find_differences


@dataclass(frozen=True, slots=True)
class RelativeCount:
    """A count, and its ratio to that of the first network."""

    value: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Totals:
    """The totals of a network; ``activations`` and ``macs`` are for one image of shape ``input``."""

    name: str
    input: Shape
    params: RelativeCount
    macs: RelativeCount
    depth: RelativeCount
    receptive_field: RelativeCount
    activations: RelativeCount


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """The parts of one network in a row; ``params`` and ``macs`` are sums over them."""

    branch: str
    shortcut: str
    output: Shape
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One part, or ``count`` equal consecutive ones, in every network; a cell is None if a network lacks it.

    ``same_as`` holds, for each network, the index of the first network that is equal in this row.
    """

    path: str
    count: int
    cells: tuple[ComparisonCell | None, ...]
    same_as: tuple[int, ...]

    @property
    def is_different(self) -> bool:
        """Whether any two networks differ in this row."""
        return len(set(self.same_as)) > 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison in plain values; ``differences`` compares each network with the first."""

    totals: tuple[Totals, ...]
    rows: tuple[ComparisonRow, ...]
    differences: tuple[Difference, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(total.name for total in self.totals)


def compare_plans(plans: Mapping[str, Plan]) -> Comparison:
    """Compare networks, given by name, with the first of them.

    Raises:
        UsageError: there are fewer than two networks.
    """
    if len(plans) < 2:
        raise UsageError("a comparison needs at least two networks", where="compare", fix="name another network")
    (base_name, base), *compared = plans.items()
    totals = tuple(_build_totals(name, plan, base) for name, plan in plans.items())
    differences = [item for name, plan in compared for item in find_differences(name, plan, base_name, base)]
    return Comparison(totals, tuple(_group_rows(tuple(plans.values()))), tuple(differences))


def _build_totals(name: str, plan: Plan, base: Plan) -> Totals:
    counts = {key: (getattr(plan, key), getattr(base, key)) for key in _TOTAL_LABELS}
    return Totals(name, plan.input, **{key: RelativeCount(n, n / base_n) for key, (n, base_n) in counts.items()})


_TOTAL_LABELS = {"params": "params", "macs": "MACs", "depth": "depth", "receptive_field": "receptive field",
                 "activations": "activations"}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- rows

_AlignedParts = tuple[Section | Node | None, ...]


def _group_rows(plans: tuple[Plan, ...]) -> Iterator[ComparisonRow]:
    """Align the parts of all networks by path; equal consecutive blocks form one row."""
    run: list[_AlignedParts] = []
    networks = [_collect_parts(plan) for plan in plans]
    for path in sorted(dict.fromkeys(path for parts in networks for path in parts), key=_get_sort_key):
        aligned = tuple(parts.get(path) for parts in networks)
        if run and not all(_is_repeat(a, b) for a, b in zip(run[-1], aligned, strict=True)):
            yield _build_row(run)
            run = []
        run.append(aligned)
    if run:
        yield _build_row(run)


def _collect_parts(plan: Plan) -> dict[str, Section | Node]:
    """Return the children of stages and the other parts whole, by path."""
    return {part.path: part for child in plan.root.children for part in describe.split_into_boxes(child)}


def _get_sort_key(path: str) -> tuple[float, ...]:
    """Sort the stem first and the head last; in a stage, blocks come before other children."""
    stage = re.match(r"stage(\d+)", path)
    if stage is None:
        return (-1.0,) if path == "stem" else (float("inf"), float(path == "head"))
    block = re.search(r"\.block(\d+)", path)
    return float(stage[1]), float(block[1] if block else "inf")


def _is_repeat(previous: Section | Node | None, current: Section | Node | None) -> bool:
    """Return whether a block equals the one before it in the same stage, or both are missing."""
    if previous is None or current is None:
        return previous is current
    in_one_stage = previous.path.partition(".")[0] == current.path.partition(".")[0]
    are_equal = describe.compute_signature(previous) == describe.compute_signature(current)
    return previous.role == current.role == "block" and in_one_stage and are_equal


def _build_row(run: list[_AlignedParts]) -> ComparisonRow:
    signatures = [part and describe.compute_signature(part) for part in run[0]]
    same_as = tuple(signatures.index(signature) for signature in signatures)
    paths = [next(part.path for part in aligned if part) for aligned in run]
    cells = tuple(_build_cell(part, len(run)) if part else None for part in run[0])
    return ComparisonRow(describe.format_path_range(paths), len(run), cells, same_as)


def _build_cell(part: Section | Node, count: int) -> ComparisonCell:
    shortcut = ""
    if part.role == "block":
        section = describe.find_shortcut(part)
        shortcut = describe.format_shortcut(section) if section else "none"
    branch = describe.format_chain(describe.select_main_path(part))
    return ComparisonCell(branch, shortcut, part.output, part.params * count, part.macs * count)


# ------------------------------------------------------------------------------------------------------------- words


def describe_differences(comparison: Comparison) -> list[str]:
    """Describe how each network differs from the first; equal networks are called identical."""
    base = comparison.totals[0]
    return [sentence for total in comparison.totals[1:] for sentence in _describe_network(comparison, total, base)]


def _describe_network(comparison: Comparison, total: Totals, base: Totals) -> list[str]:
    differences = [difference for difference in comparison.differences if difference.name == total.name]
    if not differences:
        return [f"{total.name} and {base.name} are identical"]
    is_only = len(differences) == 1
    changes = _list_total_changes(total, base, with_costs=not is_only)
    summary = [f"In total, {total.name} has " + ", ".join(changes)] if changes else []
    return [_format_difference(difference, is_only=is_only) for difference in differences] + summary


def _format_difference(difference: Difference, *, is_only: bool) -> str:
    if difference.params is None or difference.macs is None:
        return difference.text
    location = "" if is_only else f"in the {difference.part} "
    return f"{difference.text}: {location}{_format_cost_change(difference.params, difference.macs)}"


def _format_cost_change(params: int, macs: int) -> str:
    """Return ``231,211,008 fewer MACs, the same params``."""
    counts = {"params": params, "MACs": macs}
    changed = [f"{abs(count):,} {'more' if count > 0 else 'fewer'} {name}" for name, count in counts.items() if count]
    same = " and ".join(name for name, count in counts.items() if count == 0)
    return ", ".join(filter(None, [" and ".join(changed), f"the same {same}" if same else ""]))


def _list_total_changes(total: Totals, base: Totals, *, with_costs: bool) -> list[str]:
    """List the totals that differ; params and MACs only if no other sentence contains them."""
    changes = []
    if with_costs:
        counts = {"params": total.params, "MACs": total.macs}
        changes += [f"{count.value:,} {name} ({_format_times(count)})" for name, count in counts.items()]
    if total.depth != base.depth:
        changes.append(f"depth {total.depth.value:,} instead of {base.depth.value:,}")
    if total.receptive_field != base.receptive_field:
        fields = f"{total.receptive_field.value:,} pixels instead of {base.receptive_field.value:,}"
        changes.append(f"a receptive field of {fields}")
    return changes


def _format_times(count: RelativeCount) -> str:
    return "the same" if count.ratio == 1 else f"{_format_ratio(count)} times"


def _format_ratio(count: RelativeCount) -> str:
    """Return the ratio with three digits, and with more if it would round to 1."""
    if count.ratio >= 100:
        return f"{count.ratio:,.0f}"
    return f"{count.ratio:.3g}" if f"{count.ratio:.3g}" != "1" else f"{count.ratio:.6g}"


# ------------------------------------------------------------------------------------------------------------ tables

TableData = tuple[tuple[str, ...], list[tuple[str, ...]]]
ROWS_TEXT_COLUMNS, TOTALS_TEXT_COLUMNS = 4, 1  # columns of text; the rest are numbers


def build_totals_table(comparison: Comparison) -> TableData:
    """Return headings and cells: a column for each network, a row for each total with its ratio."""
    inputs = ("input", *(describe.format_shape(total.input) for total in comparison.totals))
    return ("total", *comparison.names), [inputs, *(_format_total(comparison, key) for key in _TOTAL_LABELS)]


def _format_total(comparison: Comparison, key: str) -> tuple[str, ...]:
    base, *compared = (getattr(total, key) for total in comparison.totals)
    ratios = [f"{_format_ratio(count)}x" if count.ratio != 1 else "same" for count in compared]
    cells = [f"{count.value:,} ({ratio})" for count, ratio in zip(compared, ratios, strict=True)]
    return _TOTAL_LABELS[key], f"{base.value:,}", *cells


def build_rows_table(comparison: Comparison) -> TableData:
    """Return headings and cells: one line for each group of networks that are equal in a row."""
    headings = ("path", "network", "branch", "shortcut", "output", "params", "MACs")
    return headings, [line for row in comparison.rows for line in _format_row(comparison, row)]


def _format_row(comparison: Comparison, row: ComparisonRow) -> Iterator[tuple[str, ...]]:
    all_label = "both" if len(comparison.names) == 2 else "all"
    for i, first in enumerate(sorted(set(row.same_as))):
        names = [name for name, same_as in zip(comparison.names, row.same_as, strict=True) if same_as == first]
        label = ", ".join(names) if row.is_different else all_label
        yield "" if i else row.path, label, *_format_cell(row.cells[first])


def _format_cell(cell: ComparisonCell | None) -> Sequence[str]:
    if cell is None:
        return ("-", "", "", "", "")
    params, macs = (f"{n:,}" if n else "" for n in (cell.params, cell.macs))
    return cell.branch, cell.shortcut, describe.format_shape(cell.output), params, macs


def serialize_comparison(comparison: Comparison) -> dict[str, Any]:
    """Convert a comparison, with its sentences, into dictionaries, lists and numbers."""
    rows = [asdict(row) | {"differs": row.is_different} for row in comparison.rows]
    return asdict(comparison) | {"rows": rows, "sentences": describe_differences(comparison)}
