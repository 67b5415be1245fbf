"""The summary of a plan: rows of plain values, and the table that `print(plan)` shows.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from resnetkit.architecture import spec as specs
from resnetkit.architecture.operations import Shape
from resnetkit.architecture.plan import Node, Plan, Section, parse_stage_number
from resnetkit.architecture.spec import Branch, Stage
from resnetkit.errors import UsageError
from resnetkit.formatting import align_table, pluralize


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One row of the table; ``macs_share`` is the share of all MACs, 0 to 1."""

    path: str
    description: str
    output: Shape
    params: int
    macs: int
    macs_share: float
    receptive_field: int
    stride: int


N_TEXT_COLUMNS = 3  # the other columns hold numbers
HEADINGS = ("path", "description", "output", "params", "MACs", "share", "field", "stride")


def list_summary_rows(plan: Plan, depth: int = 1) -> list[SummaryRow]:
    """Return the rows of the table.

    Args:
        plan: the plan.
        depth: 1 lists stem, stages and head; 2 the blocks; 3 branches and shortcuts; 4 all operations.

    Raises:
        UsageError: another depth.
    """
    if depth not in (1, 2, 3, 4):
        fix = "1 stages, 2 blocks, 3 branches and shortcuts, 4 operations"
        raise UsageError(f"depth {depth} does not exist", where="depth", fix=fix)
    return [_make_row(plan, part) for child in plan.root.children for part in _collect_parts(child, depth)]


def format_summary_row(row: SummaryRow) -> tuple[str, ...]:
    """Return the cells of a row."""
    is_map = len(row.output) > 1
    return (
        row.path,
        row.description,
        "x".join(map(str, row.output)),
        f"{row.params:,}" if row.params else "",
        f"{row.macs:,}" if row.macs else "",
        f"{row.macs_share:.1%}" if row.macs else "",
        str(row.receptive_field) if is_map else "",
        str(row.stride) if is_map else "",
    )


def format_summary_total(plan: Plan) -> str:
    """Return the last line of the table: all counts for one image."""
    size = "x".join(map(str, plan.input))
    return (
        f"{plan.params:,} params, {plan.macs:,} MACs and {plan.activations * 4 / 2**20:.1f} MiB of activations "
        f"for one {size} image; depth {plan.depth}, receptive field {plan.receptive_field}{_format_feature_maps(plan)}"
    )


def _format_feature_maps(plan: Plan) -> str:
    """Return the outputs of a backbone."""
    stages = plan.spec.head.stages if isinstance(plan.spec.head, specs.Features) else ()
    return f"; outputs the maps of {', '.join(f'stage{i}' for i in stages)}" if stages else ""


def format_summary(plan: Plan, depth: int = 1) -> str:
    """Return the table as aligned text.

    Args:
        plan: the plan.
        depth: as in `list_summary_rows`.
    """
    table = [HEADINGS, *map(format_summary_row, list_summary_rows(plan, depth))]
    return f"{align_table(table, N_TEXT_COLUMNS)}\n{format_summary_total(plan)}"


def format_summary_html(plan: Plan, depth: int = 2) -> str:
    """Return the table as HTML, for a notebook.

    Args:
        plan: the plan.
        depth: as in `list_summary_rows`.
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = map(format_summary_row, list_summary_rows(plan, depth))
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    total = escape(format_summary_total(plan))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{total}</p>"


def _collect_parts(part: Section | Node, depth: int) -> list[Section | Node]:
    if depth == 1 or isinstance(part, Node) or not part.children:
        return [part]
    return [descendant for child in part.children for descendant in _collect_parts(child, depth - 1)]


def _make_row(plan: Plan, part: Section | Node) -> SummaryRow:
    share = part.macs / plan.macs if plan.macs else 0.0
    text = describe_part(plan, part)
    return SummaryRow(part.path, text, part.output, part.params, part.macs, share, part.receptive_field, part.stride)


def describe_part(plan: Plan, part: Section | Node) -> str:
    """Return a short description of a section or node.

    Args:
        plan: the plan of the network.
        part: a section or node of that plan.
    """
    if isinstance(part, Node):
        return str(part.op)
    if part.role == "stage":
        return _describe_stage(plan.spec.stages[parse_stage_number(part.path) - 1], plan)
    if part.role == "block":
        return next((describe_part(plan, child) for child in part.children if child.role == "shortcut"), "no shortcut")
    return describe_shortcut(part) if part.role == "shortcut" else _describe_operations(part)


def describe_shortcut(section: Section) -> str:
    """Return the name of the adapter of a shortcut."""
    roles = {child.role for child in section.children}
    if "projection" in roles:
        return "pooled projection" if "shortcut-pool" in roles else "projection"
    labels = {"shortcut-pad": "padded identity", "shortcut-pool": "pooled identity"}
    return next((labels[role] for role in labels if role in roles), "identity")


def _describe_operations(section: Section) -> str:
    """List the operations of a section except norms and activations."""
    return ", ".join(str(node.op).split(",")[0] for node in section.nodes if not node.role.endswith(("norm", "act")))


def _describe_stage(stage: Stage, plan: Plan) -> str:
    kind = type(stage.branch).__name__.lower()
    details = [pluralize(stage.blocks, f"{kind} block"), *_list_branch_details(stage.branch)]
    labels = {specs.SqueezeExcite: "squeeze and excite", specs.EfficientChannels: "channel attention"}
    details += [labels[type(layer)] for layer in stage.attention]
    if stage.reduce.stride > 1 and isinstance(stage.reduce, specs.BlurredFirstBlock):
        details.append("blurred")
    if stage.reduce.stride > 1 and stage.reduce.atrous:
        details.append(f"stride {stage.reduce.stride} kept as dilation")
    if isinstance(plan.spec.shortcuts, specs.NoShortcuts):
        details.append("no shortcuts")
    return ", ".join(details)


def _list_branch_details(branch: Branch) -> list[str]:
    if isinstance(branch, specs.Chain):
        return []
    details = [f"width {branch.width}"]
    if isinstance(branch, specs.Bottleneck) and branch.groups > 1:
        details.append(f"{branch.groups} groups")
    if isinstance(branch, specs.Bottleneck) and branch.stride_at == 1:
        details.append("v1")
    return details
