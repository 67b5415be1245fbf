"""What the page of a network carries as JSON: the geometry of every operation, and every sentence, each once.

The page's script folds the size formula over this geometry and decides nothing. Equal blocks share one tree, so that
600 blocks cost no more than their paths.

This module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resnetkit.architecture.operations import (
    AveragePooling,
    AverageTo,
    Blurring,
    Convolution,
    FullyConnected,
    GlobalAverage,
    MaxPooling,
    Op,
    ZeroPad,
)
from resnetkit.architecture.plan import Node, Place, Plan, plan
from resnetkit.architecture.spec import Network, PoolAfter
from resnetkit.architecture.summary import describe, describe_shortcut
from resnetkit.errors import ResnetkitError, SpecError
from resnetkit.explain.why import why

OUTPUT_STRIDES = (16, 8)


def geometry(op: Op) -> dict[str, Any]:
    """How a side follows from the one before; the script has one line for each rule.

    ``window`` is the size formula with ``padding``, ``over`` the same with windows that hang over the end, ``mirror``
    one that needs more pixels than padding, ``ceil`` the side divided by the stride, rounded up, ``vector`` no side at
    all, ``same`` the side itself. An operation that belongs to none of them gets a case here; one that moves a window
    may not fall through.
    """
    match op:
        case MaxPooling(edge="ceil"):
            return {"rule": "over", "padding": op.padding}
        case Blurring():
            return {"rule": "mirror", "padding": op.padding}
        case Convolution() | MaxPooling():
            return {"rule": "window", "padding": op.padding}
        case AveragePooling() | ZeroPad():
            return {"rule": "ceil"}
        case GlobalAverage() | AverageTo() | FullyConnected():
            return {"rule": "vector"}
    if op.window != (1, 1, 1):
        raise ResnetkitError(f"no size rule for {op}", where="explain/page_facts.py", fix="add a case to geometry()")
    return {"rule": "same"}


def variants(spec: Network) -> tuple[Plan, ...]:
    """The network as it is, then at each smaller output stride at which dilation can keep its map."""
    own = plan(spec)
    made = [_dilated(spec, target) for target in OUTPUT_STRIDES if own.root.stride > target]
    return own, *(variant for variant in made if variant)


def _dilated(spec: Network, target: int) -> Plan | None:
    """The last stages turned a trous until the output stride is ``target``; None where that cannot be met."""
    stages = list(spec.stages)
    for i in reversed(range(len(stages))):
        reduce = stages[i].reduce
        if isinstance(reduce, PoolAfter):
            return None  # without padding a dilated pool hands on a smaller map
        if reduce.stride == 1 or reduce.atrous:
            continue
        stages[i] = replace(stages[i], reduce=replace(reduce, atrous=True))
        made = _planned(replace(spec, stages=tuple(stages)))
        if made is None or made.root.stride <= target:
            return made if made and made.root.stride == target else None
    return None


def _planned(spec: Network) -> Plan | None:
    try:
        return plan(spec)
    except SpecError:
        return None


def facts(name: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """Plain data of plans that differ only in dilation; the first is the network as it is."""
    tables, own = _Tables(), plans[0]
    strides = [
        {"stride": p.root.stride, "parts": [_part(p, child, tables) for child in p.root.children]} for p in plans
    ]
    return {
        "name": name,
        "input": own.input,
        "strides": strides,
        "trees": [json.loads(tree) for tree in tables.trees],
        "operations": [_operation(*key) for key in tables.operations],
        "sentences": list(tables.sentences),
    }


def boxes(part: Place | Node) -> tuple[Place | Node, ...]:
    """What is drawn as one box each: what stands directly in a stage; stem and head whole."""
    return part.children if isinstance(part, Place) and part.role == "stage" else (part,)


def embedded(data: object) -> str:
    """JSON that may stand inside a script element: no character of it can end the element."""
    text = json.dumps(data, separators=(",", ":"))  # ASCII, so the separators U+2028 and U+2029 are escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------------------------------------------- parts of the data


@dataclass
class _Tables:
    """What is told once and named by its number; a dict keeps the order in which things came."""

    trees: dict[str, int] = field(default_factory=dict)
    operations: dict[tuple[Op, int], int] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)

    def tree(self, tree: dict[str, Any]) -> int:
        return self.trees.setdefault(json.dumps(tree), len(self.trees))

    def operation(self, op: Op, channels: int) -> int:
        return self.operations.setdefault((op, channels), len(self.operations))

    def sentence(self, text: str) -> int:
        return self.sentences.setdefault(text, len(self.sentences))


def _part(made: Plan, part: Place | Node, tables: _Tables) -> dict[str, Any]:
    drawn = [[box.path, tables.tree(_tree(made, box, box.path, tables))] for box in boxes(part)]
    answer = tables.sentence(sentence(made, part))
    what = typeset(describe(made, part))
    return {"path": part.path, "role": part.role, "what": what, "why": answer, "boxes": drawn}


def _tree(made: Plan, part: Place | Node, root: str, tables: _Tables) -> dict[str, Any]:
    """A part without the path of its box, so that equal blocks have equal trees."""
    told: dict[str, Any] = {
        "path": part.path.removeprefix(root),
        "role": part.role,
        "what": typeset(describe(made, part)),
    }
    told |= {"why": tables.sentence(sentence(made, part)), "reason": tables.sentence(typeset(part.reason))}
    if isinstance(part, Node):
        return told | {"operation": tables.operation(part.op, part.output[0])}
    if part.role == "shortcut":
        told |= {"forks": True, "kind": describe_shortcut(part)}  # it starts where its block starts
    return told | {"children": [_tree(made, child, root, tables) for child in part.children]}


def sentence(made: Plan, part: Place | Node) -> str:
    """The answer alone: the page works out sizes and costs itself, for any image."""
    return typeset(why(made, part.path).partition("\n")[0])


def typeset(text: str) -> str:
    """An arrow in one piece, which no line breaks."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def _operation(op: Op, channels: int) -> dict[str, Any]:
    """It hands on ``channels`` and takes ``pixel`` MACs for each pixel of them, and ``once`` whatever their number."""
    kernel, stride, dilation = op.window
    one, two = op.macs((channels, 1, 1)), op.macs((channels, 1, 2))
    counted = {"channels": channels, "params": op.params, "pixel": two - one, "once": 2 * one - two}
    return {"text": typeset(str(op)), "kernel": kernel, "stride": stride, "dilation": dilation} | counted | geometry(op)
