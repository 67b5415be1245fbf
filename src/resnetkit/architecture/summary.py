"""A plan as rows of plain values, and as aligned text: what `print(plan)` shows.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Node, Place, Plan, stage_number
from resnetkit.architecture.spec import (
    Basic,
    BlurredFirstBlock,
    Bottleneck,
    Branch,
    EfficientChannels,
    Features,
    NoShortcuts,
    SqueezeExcite,
    Stage,
)
from resnetkit.errors import UsageError
from resnetkit.formatting import aligned


@dataclass(frozen=True, slots=True)
class Row:
    """A part of the network, as a table shows it. ``share`` is its part of all MACs, 0 to 1."""

    path: str
    what: str
    output: Shape
    params: int
    macs: int
    share: float
    receptive_field: int
    stride: int


LEFT = 3  # columns of words; the rest are numbers
HEADINGS = ("path", "what", "output", "params", "MACs", "share", "field", "stride")


def rows(plan: Plan, depth: int = 1) -> list[Row]:
    """``depth`` 1 shows stem, stages and head; 2 the blocks; 3 branch and shortcut; 4 every operation."""
    if depth not in (1, 2, 3, 4):
        fix = "1 stages, 2 blocks, 3 branches and shortcuts, 4 operations"
        raise UsageError(f"there is no depth {depth}", where="depth", fix=fix)
    return [_row(plan, part) for child in plan.root.children for part in _down_to(child, depth)]


def cells(row: Row) -> tuple[str, ...]:
    """A row as the texts of a table."""
    shape = "x".join(map(str, row.output))
    share = f"{row.share:.1%}" if row.macs else ""
    return (
        row.path,
        row.what,
        shape,
        f"{row.params:,}" if row.params else "",
        f"{row.macs:,}" if row.macs else "",
        share,
        *((str(row.receptive_field), str(row.stride)) if len(row.output) > 1 else ("", "")),
    )


def total(plan: Plan) -> str:
    """The last line of a table."""
    size = "x".join(map(str, plan.input))
    return (
        f"{plan.params:,} params, {plan.macs:,} MACs and {plan.activations * 4 / 2**20:.1f} MiB of activations "
        f"for one {size} image; depth {plan.depth}, receptive field {plan.receptive_field}{_maps(plan)}"
    )


def _maps(plan: Plan) -> str:
    """What a backbone hands on."""
    head = plan.spec.head
    return f"; hands on the maps of {', '.join(f'stage{i}' for i in head.stages)}" if isinstance(head, Features) else ""


def text(plan: Plan, depth: int = 1) -> str:
    """The table in aligned plain text."""
    return aligned([HEADINGS, *(cells(row) for row in rows(plan, depth))], left=LEFT) + "\n" + total(plan)


def markup(plan: Plan, depth: int = 2) -> str:
    """The table for a notebook."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) for row in rows(plan, depth))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(total(plan))}</p>"


def _down_to(part: Place | Node, depth: int) -> list[Place | Node]:
    if depth == 1 or isinstance(part, Node) or not part.children:
        return [part]
    return [below for child in part.children for below in _down_to(child, depth - 1)]


def _row(plan: Plan, part: Place | Node) -> Row:
    share = part.macs / plan.macs if plan.macs else 0.0
    what = describe(plan, part)
    return Row(part.path, what, part.output, part.params, part.macs, share, part.receptive_field, part.stride)


def describe(plan: Plan, part: Place | Node) -> str:
    """What a part is, in a few words."""
    if isinstance(part, Node):
        return str(part.op)
    if part.role == "stage":
        return _stage(plan.spec.stages[stage_number(part.path) - 1], plan)
    if part.role == "block":
        return next((describe(plan, child) for child in part.children if child.role == "shortcut"), "no shortcut")
    return describe_shortcut(part) if part.role == "shortcut" else _chain(part)


def describe_shortcut(place: Place) -> str:
    """Which adapter a shortcut is."""
    roles = {child.role for child in place.children}
    if "projection" in roles:
        return "pooled projection" if "shortcut-pool" in roles else "projection"
    words = {"shortcut-pad": "padded identity", "shortcut-pool": "pooled identity"}
    return next((words[role] for role in words if role in roles), "identity")


def _chain(place: Place) -> str:
    """The operations that have a window or weights, norms aside."""
    return ", ".join(str(node.op).split(",")[0] for node in place.nodes if not node.role.endswith(("norm", "act")))


def _stage(stage: Stage, plan: Plan) -> str:
    blocks = f"{stage.blocks} {_branch(stage.branch)} block" + "s" * (stage.blocks != 1)
    plain = ", no shortcuts" if isinstance(plan.spec.shortcuts, NoShortcuts) else ""
    kinds = {SqueezeExcite: ", squeeze and excite", EfficientChannels: ", channel attention"}
    attention = "".join(kinds[type(each)] for each in stage.attention)
    dilated = f", stride {stage.reduce.stride} kept as dilation" * (stage.reduce.atrous and stage.reduce.stride > 1)
    blurred = ", blurred" * (isinstance(stage.reduce, BlurredFirstBlock) and stage.reduce.stride > 1)
    return blocks + _branch_details(stage.branch) + attention + blurred + dilated + plain


def _branch(branch: Branch) -> str:
    return type(branch).__name__.lower()


def _branch_details(branch: Branch) -> str:
    match branch:
        case Basic(width):
            return f", width {width}"
        case Bottleneck(width, groups, stride_at):
            return f", width {width}" + f", {groups} groups" * (groups > 1) + ", v1" * (stride_at == 1)
    return ""
