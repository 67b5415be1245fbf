"""``resnetkit models``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetkit.architecture.catalog import CATALOG, list_models
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.published import PUBLISHED
from resnetkit.commands.output import print_json, print_table, suggest_next
from resnetkit.errors import UsageError, suggest_fix


@dataclass(frozen=True)
class Options:
    """Every network by name, with what its plan counts and what others published.

    Examples: resnetkit models; resnetkit models "resnet50*" --sort macs; resnetkit models cifar --json
    """

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"
    """A part of a name, or a pattern with * and ?."""
    sort: Literal["none", "name", "params", "macs"] = "none"
    """none keeps the order of the catalogue."""
    json: bool = False
    """One JSON document instead of a table."""


def run(options: Options) -> int:
    plans = {name: plan(CATALOG[name]) for name in list_models(options.pattern)}
    if not plans:
        fix = suggest_fix(options.pattern, list(CATALOG), "`resnetkit models` lists every name")
        raise UsageError(f"no network's name matches {options.pattern!r}", fix=fix)
    order = sorted(plans, key=lambda name: _build_sort_key(name, plans[name], options.sort))
    if options.json:
        print_json("models", models=[_build_record(name, plans[name]) for name in order])
        return 0
    headings = ("name", "published by", "input", "params", "MACs", "depth", "field", "top-1")
    print_table(
        headings,
        [_format_row(name, plans[name]) for name in order],
        2,
        drop=("field", "depth", "input", "published by"),
    )
    suggest_next(f"resnetkit explain {order[0]}")
    return 0


def _build_sort_key(name: str, network_plan: Plan, sort: str) -> tuple[int, str]:
    """A number first, then the name; sorting is stable, so ``none`` keeps the order."""
    return {
        "none": (0, ""),
        "name": (0, name),
        "params": (network_plan.params, name),
        "macs": (network_plan.macs, name),
    }[sort]


def _format_row(name: str, network_plan: Plan) -> tuple[str, ...]:
    published = PUBLISHED.get(name)
    size = "x".join(map(str, network_plan.input))
    counts = (
        f"{network_plan.params:,}",
        f"{network_plan.macs:,}",
        str(network_plan.depth),
        str(network_plan.receptive_field),
    )
    return name, published.source if published else "", size, *counts, f"{published.top1:.2f}" if published else ""


def _build_record(name: str, network_plan: Plan) -> dict[str, object]:
    published = PUBLISHED.get(name)
    return {
        "name": name,
        "input": network_plan.input,
        "params": network_plan.params,
        "macs": network_plan.macs,
        "depth": network_plan.depth,
        "receptive_field": network_plan.receptive_field,
        "published": {"top1": published.top1, "source": published.source} if published else None,
    }
