"""``resnetkit models``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resnetkit.architecture.catalog import CATALOG, list_models
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.published import PUBLISHED
from resnetkit.commands.arguments import Argument
from resnetkit.commands.output import print_json, print_table, suggest_next
from resnetkit.commands.records import build_plan_record
from resnetkit.errors import UsageError, suggest_fix


@dataclass(frozen=True)
class Options:
    """List the networks of the catalog with their size and published accuracy.

    Examples: resnetkit models; resnetkit models "resnet50*" --sort macs; resnetkit models cifar --json
    """

    pattern: Annotated[str, Argument("[PATTERN]", is_positional=True)] = "*"
    """A part of a name, or a pattern with * and ?."""
    sort: Literal["none", "name", "params", "macs"] = "none"
    """The order; none keeps that of the catalog."""
    json: bool = False
    """Print one JSON document instead of a table."""


def run(options: Options) -> int:
    """Run the command and return its exit code.

    Raises:
        UsageError: No name matches the pattern.
    """
    plans = {name: plan(CATALOG[name]) for name in list_models(options.pattern)}
    if not plans:
        fix = suggest_fix(options.pattern, list(CATALOG), "`resnetkit models` lists every name")
        raise UsageError(f"no network's name matches {options.pattern!r}", fix=fix)
    order = sorted(plans, key=lambda name: _build_sort_key(name, plans[name], options.sort))
    if options.json:
        print_json("models", models=[_build_record(name, plans[name]) for name in order])
        return 0
    headings = ("name", "published by", "input", "params", "MACs", "depth", "field", "top-1")
    rows = [_format_row(name, plans[name]) for name in order]
    print_table(headings, rows, 2, drop=("field", "depth", "input", "published by"))
    suggest_next(f"resnetkit explain {order[0]}")
    return 0


def _build_sort_key(name: str, network_plan: Plan, sort: str) -> tuple[int, str]:
    """Return the number to sort by and the name; sorting is stable, so ``none`` keeps the order."""
    numbers = {"none": 0, "name": 0, "params": network_plan.params, "macs": network_plan.macs}
    return numbers[sort], "" if sort == "none" else name


def _format_row(name: str, network_plan: Plan) -> tuple[str, ...]:
    published = PUBLISHED.get(name)
    size = "x".join(map(str, network_plan.input))
    counts = (f"{network_plan.params:,}", f"{network_plan.macs:,}", str(network_plan.depth))
    source, top1 = (published.source, f"{published.top1:.2f}") if published else ("", "")
    return name, source, size, *counts, str(network_plan.receptive_field), top1


def _build_record(name: str, network_plan: Plan) -> dict[str, object]:
    published = PUBLISHED.get(name)
    published_record = {"top1": published.top1, "source": published.source} if published else None
    return {"name": name, **build_plan_record(network_plan), "published": published_record}
