"""A network as one page that works offline: a drawing to scale, and every block of it on a click.

Everything is decided here. The page holds the plan's geometry and its sentences as JSON, and a script that folds the
size formula over them for other sizes of image; without scripts it shows the drawing, the table and the sentences.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network
from resnetkit.architecture.summary import HEADINGS, format_summary_row, list_summary_rows
from resnetkit.explain.drawings.interactive import draw_interactive, render_legend_items, typeset_shape
from resnetkit.explain.page_facts import (
    build_page_data,
    encode_script_json,
    explain_part,
    plan_stride_variants,
    typeset_arrows,
)
from resnetkit.html import page as html

MIN_SIZE, MAX_SIZE = 32, 1024  # the ends of the slider; a number may be typed below it


def render_network_page(name: str, spec: Network) -> str:
    """An HTML document."""
    plans = plan_stride_variants(spec)
    original = plans[0]
    sections = [
        ("", _render_totals(original)),
        (
            "",
            _render_controls(plans)
            + html.render_scroll_box(draw_interactive(original, name))
            + _render_legend(original)
            + _NOSCRIPT,
        ),
        ("", _DETAILS),
        ("Stem, stages, head", _render_parts_table(original)),
        ("Why each part is there", _render_sentences(original)),
        ("", f'<script type="application/json" id="facts">{encode_script_json(build_page_data(name, plans))}</script>'),
    ]
    return html.render_html(
        name, _format_lead(original), sections, script=_read_asset("page.js"), style=_read_asset("page.css")
    )


def _read_asset(name: str) -> str:
    return files("resnetkit.explain").joinpath(name).read_text(encoding="utf-8")


def _format_lead(plan: Plan) -> str:
    n_blocks = sum(part.role == "block" for part in plan.parts.values())
    n_stages = len(plan.spec.stages)
    return (
        f"{n_blocks} block{'s' * (n_blocks != 1)} in {n_stages} stage{'s' * (n_stages != 1)}, for images of "
        f"{typeset_shape(plan.input)}. Height is the side of the map, width the number of channels, both by square roots; "
        "the bar beneath a box is its share of the MACs."
    )


def _render_totals(plan: Plan) -> str:
    memory = f"{plan.activations * 4 / 2**20:.1f} MiB in fp32"
    entries = [
        ("params", "params", f"{plan.params:,}", "numbers that training changes"),
        ("macs", "MACs", f"{plan.macs:,}", "multiply-adds for one image"),
        ("depth", "depth", str(plan.depth), "convolutions and the classifier"),
        ("field", "receptive field", str(plan.receptive_field), "pixels a side, behind the last stage"),
        ("activations", "activations", f"{plan.activations:,}", memory),
    ]
    return '<dl class="totals">' + "".join(_render_total(*entry) for entry in entries) + "</dl>"


def _render_total(key: str, name: str, value: str, note: str) -> str:
    markup = f'<span id="total-{key}">{escape(value)}</span><small id="note-{key}">{escape(note)}</small>'
    return f"<div><dt>{escape(name)}</dt><dd>{markup}</dd></div>"


def _render_controls(plans: Sequence[Plan]) -> str:
    height, width = plans[0].input[1:]
    max_size, initial_size = max(MAX_SIZE, height, width), max(height, width)
    size_control = (
        '<div class="control"><label for="slider">image size</label>'
        f'<input id="slider" type="range" min="{MIN_SIZE}" max="{max_size}" value="{initial_size}" autocomplete="off">'
        f'<input id="size" type="number" min="1" max="{max_size}" value="{initial_size}" autocomplete="off" '
        'aria-label="image size in pixels"><span class="unit">px</span>'
        '<button type="button" id="own">own size</button></div>'
    )
    return f'<div id="controls" hidden>{size_control}{_render_strides(plans)}</div><p id="vanished" role="alert" hidden></p>'


def _render_strides(plans: Sequence[Plan]) -> str:
    """One choice is none."""
    if len(plans) == 1:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="stride" value="{i}" autocomplete="off"{" checked" * (i == 0)}>'
        f"<span>{plan.root.stride}</span></label>"
        for i, plan in enumerate(plans)
    )
    return f'<fieldset class="control"><legend>output stride</legend><div class="choices">{choices}</div></fieldset>'


def _render_legend(plan: Plan) -> str:
    return f'<ul class="key">{render_legend_items(plan)}<li id="hint" hidden>Choose a box; the arrow keys go on from there.</li></ul>'


_NOSCRIPT = (
    '<noscript><p class="note">Scripts are off: this is the network for its own size of image. '
    "With scripts each box opens its operations, and other sizes can be asked for.</p></noscript>"
)

_DETAILS = (
    '<div id="details" hidden><header><button type="button" id="previous" aria-label="the box before">\u2190</button>'
    '<button type="button" id="next" aria-label="the box behind">\u2192</button>'
    '<div aria-live="polite" aria-atomic="true"><h2 id="chosen"></h2><p id="told"></p></div></header>'
    '<div id="more"></div></div>'
)


def _render_parts_table(plan: Plan) -> str:
    """The rows of `resnetkit explain`; the script writes the same cells anew for another image."""
    table_rows = [
        (row.path, typeset_arrows(row.description), typeset_shape(row.output), *format_summary_row(row)[3:])
        for row in list_summary_rows(plan)
    ]
    return f'<div id="parts">{html.render_html_table(HEADINGS, table_rows)}</div>'


def _render_sentences(plan: Plan) -> str:
    entries = [("the network", explain_part(plan, plan.root))]
    entries += [(part.path, explain_part(plan, part)) for part in plan.root.children]
    items = "".join(f"<div><dt>{escape(path)}</dt><dd>{escape(line)}</dd></div>" for path, line in entries)
    return f'<p class="note" id="said">Said for images of {escape(typeset_shape(plan.input))}.</p><dl id="whys">{items}</dl>'
