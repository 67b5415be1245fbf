"""A plan as rows of plain values, and as aligned text: what `print(plan)` shows.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Node, Plan, Section, parse_stage_number
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
from resnetkit.formatting import align_table


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A part of the network, as a table shows it. ``share`` is its part of all MACs, 0 to 1."""

    path: str
    description: str
    output: Shape
    params: int
    macs: int
    macs_share: float
    receptive_field: int
    stride: int


N_TEXT_COLUMNS = 3  # columns of words; the rest are numbers
HEADINGS = ("path", "what", "output", "params", "MACs", "share", "field", "stride")


def list_summary_rows(plan: Plan, depth: int = 1) -> list[SummaryRow]:
    """``depth`` 1 shows stem, stages and head; 2 the blocks; 3 branch and shortcut; 4 every operation."""
    if depth not in (1, 2, 3, 4):
        fix = "1 stages, 2 blocks, 3 branches and shortcuts, 4 operations"
        raise UsageError(f"there is no depth {depth}", where="depth", fix=fix)
    return [_make_row(plan, part) for child in plan.root.children for part in _collect_parts(child, depth)]


def format_summary_row(row: SummaryRow) -> tuple[str, ...]:
    """A row as the texts of a table."""
    shape = "x".join(map(str, row.output))
    share = f"{row.macs_share:.1%}" if row.macs else ""
    return (
        row.path,
        row.description,
        shape,
        f"{row.params:,}" if row.params else "",
        f"{row.macs:,}" if row.macs else "",
        share,
        *((str(row.receptive_field), str(row.stride)) if len(row.output) > 1 else ("", "")),
    )


def format_summary_total(plan: Plan) -> str:
    """The last line of a table."""
    size = "x".join(map(str, plan.input))
    return (
        f"{plan.params:,} params, {plan.macs:,} MACs and {plan.activations * 4 / 2**20:.1f} MiB of activations "
        f"for one {size} image; depth {plan.depth}, receptive field {plan.receptive_field}{_format_feature_maps(plan)}"
    )


def _format_feature_maps(plan: Plan) -> str:
    """What a backbone hands on."""
    head = plan.spec.head
    return f"; hands on the maps of {', '.join(f'stage{i}' for i in head.stages)}" if isinstance(head, Features) else ""


def format_summary(plan: Plan, depth: int = 1) -> str:
    """The table in aligned plain text."""
    return (
        align_table(
            [HEADINGS, *(format_summary_row(row) for row in list_summary_rows(plan, depth))],
            n_text_columns=N_TEXT_COLUMNS,
        )
        + "\n"
        + format_summary_total(plan)
    )


def format_summary_html(plan: Plan, depth: int = 2) -> str:
    """The table for a notebook."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    lines = (
        "".join(f"<td>{escape(cell)}</td>" for cell in format_summary_row(row))
        for row in list_summary_rows(plan, depth)
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{escape(format_summary_total(plan))}</p>"
    )


def _collect_parts(part: Section | Node, depth: int) -> list[Section | Node]:
    if depth == 1 or isinstance(part, Node) or not part.children:
        return [part]
    return [descendant for child in part.children for descendant in _collect_parts(child, depth - 1)]


def _make_row(plan: Plan, part: Section | Node) -> SummaryRow:
    macs_share = part.macs / plan.macs if plan.macs else 0.0
    description = describe_part(plan, part)
    return SummaryRow(
        part.path, description, part.output, part.params, part.macs, macs_share, part.receptive_field, part.stride
    )


def describe_part(plan: Plan, part: Section | Node) -> str:
    """What a part is, in a few words."""
    if isinstance(part, Node):
        return str(part.op)
    if part.role == "stage":
        return _describe_stage(plan.spec.stages[parse_stage_number(part.path) - 1], plan)
    if part.role == "block":
        return next((describe_part(plan, child) for child in part.children if child.role == "shortcut"), "no shortcut")
    return describe_shortcut(part) if part.role == "shortcut" else _describe_operations(part)


def describe_shortcut(section: Section) -> str:
    """Which adapter a shortcut is."""
    roles = {child.role for child in section.children}
    if "projection" in roles:
        return "pooled projection" if "shortcut-pool" in roles else "projection"
    labels = {"shortcut-pad": "padded identity", "shortcut-pool": "pooled identity"}
    return next((labels[role] for role in labels if role in roles), "identity")


def _describe_operations(section: Section) -> str:
    """The operations that have a window or weights, norms aside."""
    return ", ".join(str(node.op).split(",")[0] for node in section.nodes if not node.role.endswith(("norm", "act")))


def _describe_stage(stage: Stage, plan: Plan) -> str:
    blocks = f"{stage.blocks} {_format_branch(stage.branch)} block" + "s" * (stage.blocks != 1)
    no_shortcuts = ", no shortcuts" if isinstance(plan.spec.shortcuts, NoShortcuts) else ""
    labels = {SqueezeExcite: ", squeeze and excite", EfficientChannels: ", channel attention"}
    attention = "".join(labels[type(layer)] for layer in stage.attention)
    dilated = f", stride {stage.reduce.stride} kept as dilation" * (stage.reduce.atrous and stage.reduce.stride > 1)
    blurred = ", blurred" * (isinstance(stage.reduce, BlurredFirstBlock) and stage.reduce.stride > 1)
    return blocks + _format_branch_details(stage.branch) + attention + blurred + dilated + no_shortcuts


def _format_branch(branch: Branch) -> str:
    return type(branch).__name__.lower()


def _format_branch_details(branch: Branch) -> str:
    match branch:
        case Basic(width):
            return f", width {width}"
        case Bottleneck(width, groups, stride_at):
            return f", width {width}" + f", {groups} groups" * (groups > 1) + ", v1" * (stride_at == 1)
    return ""
