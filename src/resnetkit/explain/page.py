"""Render a network as one page that works offline: a drawing to scale, and the details of every block on a click.

Python decides everything. The page carries the geometry and the sentences of the plan as JSON; its script applies the
size formula to them for other image sizes. Without scripts the page shows the drawing, the table and the sentences.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from resnetkit.architecture.plan import Plan
from resnetkit.architecture.spec import Network
from resnetkit.architecture.summary import HEADINGS, format_summary_row, list_summary_rows
from resnetkit.explain import describe
from resnetkit.explain import page_facts as facts
from resnetkit.explain.drawings.interactive import draw_interactive, render_legend_items, typeset_shape
from resnetkit.explain.topics import Topic, read_topics
from resnetkit.formatting import pluralize
from resnetkit.html import page as html

MIN_SIZE, MAX_SIZE = 32, 1024  # range of the slider in pixels; smaller sizes can be typed


def render_network_page(name: str, spec: Network) -> str:
    """Render the page of a network as an HTML document.

    Args:
        name: name of the network; text, never markup.
        spec: the network.
    """
    return render_plans_page(name, facts.plan_stride_variants(spec))


def render_plans_page(name: str, plans: Sequence[Plan]) -> str:
    """Render the page of a network with a choice of plans.

    Args:
        name: name of the network; text, never markup.
        plans: plans that differ only in dilation; the first one is the network as it is.
    """
    original = plans[0]
    drawing = html.render_scroll_box(draw_interactive(original, name))
    data = facts.encode_script_json(facts.build_page_data(name, plans))
    sections = [
        ("", _render_totals(original)),
        ("", _render_controls(plans) + drawing + _render_legend(original) + _NOSCRIPT),
        ("", _DETAILS),
        ("Stem, stages, head", _render_parts_table(original)),
        ("Why each part is there", _render_reasons(original)),
        ("Questions and answers", _render_questions(original)),
        ("", f'<script type="application/json" id="network-data">{data}</script>'),
    ]
    script, style = _read_asset("page.js"), _read_asset("page.css")
    return html.render_html(name, _format_lead(original), sections, script=script, style=style)


def _read_asset(name: str) -> str:
    return files("resnetkit.explain").joinpath(name).read_text(encoding="utf-8")


def _format_lead(plan: Plan) -> str:
    blocks = pluralize(len(describe.list_all_blocks(plan)), "block")
    return (
        f"{blocks} in {pluralize(len(plan.spec.stages), 'stage')} with {describe.format_shortcut_counts(plan)}, for "
        f"images of {typeset_shape(plan.input)}. The height of a box is the side of its map, its width the number of "
        "channels, both by square roots. The bar below a box is its share of the MACs."
    )


def _render_totals(plan: Plan) -> str:
    memory = f"{plan.activations * 4 / 2**20:.1f} MiB in fp32"
    return (
        '<dl class="totals">'
        + _render_total("params", "params", f"{plan.params:,}", "trainable numbers")
        + _render_total("macs", "MACs", f"{plan.macs:,}", "multiply-adds for one image")
        + _render_total("depth", "depth", str(plan.depth), "convolutions and the classifier")
        + _render_total("receptive-field", "receptive field", str(plan.receptive_field), "pixels, after the last stage")
        + _render_total("activations", "activations", f"{plan.activations:,}", memory)
        + "</dl>"
    )


def _render_total(key: str, name: str, value: str, note: str) -> str:
    markup = f'<span id="total-{key}">{escape(value)}</span><small id="note-{key}">{escape(note)}</small>'
    return f"<div><dt>{escape(name)}</dt><dd>{markup}</dd></div>"


def _render_controls(plans: Sequence[Plan]) -> str:
    initial_size = max(plans[0].input[1:])
    max_size = max(MAX_SIZE, initial_size)
    size_control = (
        '<div class="control"><label for="slider">image size</label>'
        f'<input id="slider" type="range" min="{MIN_SIZE}" max="{max_size}" value="{initial_size}" autocomplete="off">'
        f'<input id="size" type="number" min="1" max="{max_size}" value="{initial_size}" autocomplete="off" '
        'aria-label="image size in pixels"><span class="unit">px</span>'
        '<button type="button" id="reset-size">original size</button></div>'
    )
    controls = f'<div id="controls" hidden>{size_control}{_render_stride_choices(plans)}</div>'
    return f'{controls}<p id="size-error" role="alert" hidden></p>'


def _render_stride_choices(plans: Sequence[Plan]) -> str:
    if len(plans) == 1:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="stride" value="{i}" autocomplete="off"{"" if i else " checked"}>'
        f"<span>{plan.root.stride}</span></label>"
        for i, plan in enumerate(plans)
    )
    return f'<fieldset class="control"><legend>output stride</legend><div class="choices">{choices}</div></fieldset>'


def _render_legend(plan: Plan) -> str:
    hint = '<li id="hint" hidden>Select a box; the arrow keys move to the next one.</li>'
    return f'<ul class="legend">{render_legend_items(plan)}{hint}</ul>'


_NOSCRIPT = (
    '<noscript><p class="note">Scripts are off: this page shows the network for its original image size. '
    "With scripts, each box opens its operations, and other image sizes can be selected.</p></noscript>"
)

_DETAILS = (
    '<div id="details" hidden><header><button type="button" id="previous" aria-label="previous box">\u2190</button>'
    '<button type="button" id="next" aria-label="next box">\u2192</button><div aria-live="polite" aria-atomic="true">'
    '<h2 id="selected-path"></h2><p id="summary"></p></div></header><div id="details-body"></div></div>'
)


def _render_parts_table(plan: Plan) -> str:
    """Render the rows of `resnetkit explain`; the script updates the same cells for other image sizes."""
    table_rows = [
        (row.path, facts.typeset_arrows(row.description), typeset_shape(row.output), *format_summary_row(row)[3:])
        for row in list_summary_rows(plan)
    ]
    return f'<div id="parts">{html.render_html_table(HEADINGS, table_rows)}</div>'


def _render_reasons(plan: Plan) -> str:
    parts = (plan.root, *plan.root.children)
    reasons = [(part.path or "the network", facts.explain_part(plan, part)) for part in parts]
    note = f"The sizes are for images of {escape(typeset_shape(plan.input))}."
    return f'<p class="note" id="size-note">{note}</p><div id="reasons">{html.render_stats(reasons)}</div>'


def _render_questions(plan: Plan) -> str:
    """Render the answers of `resnetkit explain --why`; the script filters them."""
    search = (
        '<div id="search-box" class="control" hidden><label for="search">search</label>'
        '<input id="search" type="search" autocomplete="off" placeholder="bias, fan_out, why 4 ...">'
        '<span id="search-count" aria-live="polite"></span></div>'
    )
    items = "".join(_render_question(plan, topic) for topic in read_topics())
    note = html.render_note(f"The numbers are for images of {typeset_shape(plan.input)}, without dilation.")
    return f'{note}{search}<div id="questions">{items}</div>'


def _render_question(plan: Plan, topic: Topic) -> str:
    words = escape(f"{' '.join(topic.words)} {topic.keywords}")
    answer, source = _typeset(topic.answer(plan)), html.render_note(f"Source: {topic.source}")
    return (
        f'<details data-words="{words}"><summary>{_typeset(topic.question)}</summary><p>{answer}</p>{source}</details>'
    )


def _typeset(text: str) -> str:
    """Escape a text and mark the code in it, which stands between backticks."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape(facts.typeset_arrows(text)))
