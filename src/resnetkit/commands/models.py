"""``resnetkit models``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from resnetkit.architecture.catalog import ROWS, names
from resnetkit.architecture.plan import Plan, plan
from resnetkit.architecture.published import PUBLISHED
from resnetkit.commands.output import results, table, then
from resnetkit.errors import UsageError, suggestion


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
    chosen = {name: plan(ROWS[name]) for name in names(options.pattern)}
    if not chosen:
        fix = suggestion(options.pattern, list(ROWS), "`resnetkit models` lists every name")
        raise UsageError(f"no network's name matches {options.pattern!r}", fix=fix)
    order = sorted(chosen, key=lambda name: _rank(name, chosen[name], options.sort))
    if options.json:
        results("models", models=[_record(name, chosen[name]) for name in order])
        return 0
    headings = ("name", "published by", "input", "params", "MACs", "depth", "field", "top-1")
    table(headings, [_row(name, chosen[name]) for name in order], 2, drop=("field", "depth", "input", "published by"))
    then(f"resnetkit explain {order[0]}")
    return 0


def _rank(name: str, made: Plan, sort: str) -> tuple[int, str]:
    """A number first, then the name; sorting is stable, so ``none`` keeps the order."""
    return {"none": (0, ""), "name": (0, name), "params": (made.params, name), "macs": (made.macs, name)}[sort]


def _row(name: str, made: Plan) -> tuple[str, ...]:
    known = PUBLISHED.get(name)
    size = "x".join(map(str, made.input))
    counts = (f"{made.params:,}", f"{made.macs:,}", str(made.depth), str(made.receptive_field))
    return name, known.source if known else "", size, *counts, f"{known.top1:.2f}" if known else ""


def _record(name: str, made: Plan) -> dict[str, object]:
    known = PUBLISHED.get(name)
    return {
        "name": name,
        "input": made.input,
        "params": made.params,
        "macs": made.macs,
        "depth": made.depth,
        "receptive_field": made.receptive_field,
        "published": {"top1": known.top1, "source": known.source} if known else None,
    }
