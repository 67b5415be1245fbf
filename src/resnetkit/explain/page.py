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
from resnetkit.architecture.summary import HEADINGS, cells, rows
from resnetkit.explain.drawings.interactive import drawing, key, shape
from resnetkit.explain.page_facts import embedded, facts, sentence, typeset, variants
from resnetkit.html import page as html

SMALLEST, LARGEST = 32, 1024  # the ends of the slider; a number may be typed below it


def page(name: str, spec: Network) -> str:
    """An HTML document."""
    plans = variants(spec)
    own = plans[0]
    sections = [
        ("", _totals(own)),
        ("", _controls(plans) + html.scroll(drawing(own, name)) + _key(own) + _WITHOUT),
        ("", _DETAILS),
        ("Stem, stages, head", _table(own)),
        ("Why each part is there", _sentences(own)),
        ("", f'<script type="application/json" id="facts">{embedded(facts(name, plans))}</script>'),
    ]
    return html.page(name, _lead(own), sections, script=_asset("page.js"), style=_asset("page.css"))


def _asset(name: str) -> str:
    return files("resnetkit.explain").joinpath(name).read_text(encoding="utf-8")


def _lead(plan: Plan) -> str:
    blocks = sum(part.role == "block" for part in plan.parts.values())
    stages = len(plan.spec.stages)
    return (
        f"{blocks} block{'s' * (blocks != 1)} in {stages} stage{'s' * (stages != 1)}, for images of "
        f"{shape(plan.input)}. Height is the side of the map, width the number of channels, both by square roots; "
        "the bar beneath a box is its share of the MACs."
    )


def _totals(plan: Plan) -> str:
    kept = f"{plan.activations * 4 / 2**20:.1f} MiB in fp32"
    pairs = [
        ("params", "params", f"{plan.params:,}", "numbers that training changes"),
        ("macs", "MACs", f"{plan.macs:,}", "multiply-adds for one image"),
        ("depth", "depth", str(plan.depth), "convolutions and the classifier"),
        ("field", "receptive field", str(plan.receptive_field), "pixels a side, behind the last stage"),
        ("activations", "activations", f"{plan.activations:,}", kept),
    ]
    return '<dl class="totals">' + "".join(_total(*pair) for pair in pairs) + "</dl>"


def _total(key: str, name: str, value: str, note: str) -> str:
    shown = f'<span id="total-{key}">{escape(value)}</span><small id="note-{key}">{escape(note)}</small>'
    return f"<div><dt>{escape(name)}</dt><dd>{shown}</dd></div>"


def _controls(plans: Sequence[Plan]) -> str:
    height, width = plans[0].input[1:]
    most, start = max(LARGEST, height, width), max(height, width)
    size = (
        '<div class="control"><label for="slider">image size</label>'
        f'<input id="slider" type="range" min="{SMALLEST}" max="{most}" value="{start}" autocomplete="off">'
        f'<input id="size" type="number" min="1" max="{most}" value="{start}" autocomplete="off" '
        'aria-label="image size in pixels"><span class="unit">px</span>'
        '<button type="button" id="own">own size</button></div>'
    )
    return f'<div id="controls" hidden>{size}{_strides(plans)}</div><p id="vanished" role="alert" hidden></p>'


def _strides(plans: Sequence[Plan]) -> str:
    """One choice is none."""
    if len(plans) == 1:
        return ""
    choices = "".join(
        f'<label><input type="radio" name="stride" value="{i}" autocomplete="off"{" checked" * (i == 0)}>'
        f"<span>{plan.root.stride}</span></label>"
        for i, plan in enumerate(plans)
    )
    return f'<fieldset class="control"><legend>output stride</legend><div class="choices">{choices}</div></fieldset>'


def _key(plan: Plan) -> str:
    return f'<ul class="key">{key(plan)}<li id="hint" hidden>Choose a box; the arrow keys go on from there.</li></ul>'


_WITHOUT = (
    '<noscript><p class="note">Scripts are off: this is the network for its own size of image. '
    "With scripts each box opens its operations, and other sizes can be asked for.</p></noscript>"
)

_DETAILS = (
    '<div id="details" hidden><header><button type="button" id="previous" aria-label="the box before">\u2190</button>'
    '<button type="button" id="next" aria-label="the box behind">\u2192</button>'
    '<div aria-live="polite" aria-atomic="true"><h2 id="chosen"></h2><p id="told"></p></div></header>'
    '<div id="more"></div></div>'
)


def _table(plan: Plan) -> str:
    """The rows of `resnetkit explain`; the script writes the same cells anew for another image."""
    shown = [(row.path, typeset(row.what), shape(row.output), *cells(row)[3:]) for row in rows(plan)]
    return f'<div id="parts">{html.table(HEADINGS, shown)}</div>'


def _sentences(plan: Plan) -> str:
    told = [("the network", sentence(plan, plan.root))]
    told += [(part.path, sentence(plan, part)) for part in plan.root.children]
    lines = "".join(f"<div><dt>{escape(path)}</dt><dd>{escape(line)}</dd></div>" for path, line in told)
    return f'<p class="note" id="said">Said for images of {escape(shape(plan.input))}.</p><dl id="whys">{lines}</dl>'
