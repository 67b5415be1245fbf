"""Build web pages: one file per page, which works offline, loads nothing, and runs at most one script of resnetkit.

The content security policy allows only the page's own style and script, both by their hashes. Every text is escaped.

This module imports no torch.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #ffffff; --soft: #5d6b7a; --line: #d5dce4; --fill: #f3f6f9;
  --one: #2563eb; --two: #d9480f; --three: #2b8a3e; --four: #9c36b5; --five: #0b7285; --six: #846a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --paper: #14191f; --soft: #9aa7b4; --line: #35404b;
  --fill: #1d242c; --one: #74a9ff; --two: #ff9f6b; --three: #69db7c; --four: #e599f7; --five: #66d9e8;
  --six: #ffd43b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h1, h2, p { overflow-wrap: anywhere; }
p.lead { color: var(--soft); margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
dl div { background: var(--fill); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
dd.more { color: var(--soft); font-size: .8rem; font-weight: 400; }
svg { display: block; max-width: 100%; height: auto; } .scroll svg { max-width: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem 1.5rem; }
.charts h3 { font-size: .95rem; margin: .25rem 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .75rem; }
.gallery.large { grid-template-columns: repeat(auto-fill, minmax(min(13rem, 45%), 1fr)); }
figure { margin: 0; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; border-radius: .25rem; margin-bottom: .25rem; }
hr { border: 0; border-top: 1px solid var(--line); margin: 1rem 0; }
figcaption { text-wrap: balance; } figcaption span { color: var(--soft); display: block; }
td, dd, li, figcaption, figcaption span { unicode-bidi: isolate; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; } p.note { color: var(--soft); max-width: 46rem; }
pre { overflow-x: auto; font-size: .85rem; }
"""
_GENERATOR_TAG = '<meta name="generator" content="resnetkit">'


def is_resnetkit_page(path: Path) -> bool:
    """Return whether resnetkit wrote this file as a page."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _GENERATOR_TAG.encode() in file.read(2000)


def render_html(
    title: str, lead: str, sections: Iterable[tuple[str, str]], *, script: str = "", style: str = ""
) -> str:
    """Render a whole document.

    Args:
        title: The title.
        lead: The sentence below it.
        sections: (heading, markup) of each section; the markup must be escaped.
        script: A script of this package, never text of a user, because it is not escaped.
        style: CSS of this package to add to the common style; not escaped, too.
    """
    css = STYLE + style
    titled = ((f"<h2>{escape(heading)}</h2>" if heading else "", markup) for heading, markup in sections)
    body = "".join(f"<section>{heading}{markup}</section>" for heading, markup in titled)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_format_content_policy(css, script)}">'
        f'{_GENERATOR_TAG}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>"
        f'<body><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}'
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


def _format_content_policy(style: str, script: str) -> str:
    """Format a policy that allows this style, this script, embedded images, and nothing else."""
    script_rule = f"script-src {_format_digest(script)}; " if script else ""
    allowed = f"style-src {_format_digest(style)}; {script_rule}img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _format_digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render_html_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Render a table whose first column is left-aligned.

    Args:
        headings: The heading of each column.
        rows: The cells of each row.
    """
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return render_scroll_box(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def render_stats(stats: Iterable[Sequence[str]]) -> str:
    """Render large numbers with their names: (name, number), or (name, number, detail in small letters)."""
    blocks = []
    for name, number, *details in stats:
        more = "".join(f'<dd class="more">{escape(detail)}</dd>' for detail in details)
        blocks.append(f"<div><dt>{escape(name)}</dt><dd>{escape(number)}</dd>{more}</div>")
    return f"<dl>{''.join(blocks)}</dl>"


def render_charts(charts: Iterable[tuple[str, str]]) -> str:
    """Render charts side by side if the page is wide enough: (heading, SVG)."""
    return '<div class="charts">' + "".join(f"<div><h3>{escape(k)}</h3>{svg}</div>" for k, svg in charts) + "</div>"


def render_gallery(images: Iterable[tuple[str, str, str]], *, large: bool = False) -> str:
    """Render thumbnails with captions.

    Args:
        images: (JPEG in base64, caption, second line) of each image.
        large: Whether to show large images, two per row on a phone.
    """
    blocks = [
        f'<figure><img alt="{escape(caption)}" src="data:image/jpeg;base64,{escape(jpeg)}">'
        f"<figcaption>{escape(caption)}<span>{escape(detail)}</span></figcaption></figure>"
        for jpeg, caption, detail in images
    ]
    return f'<div class="gallery{" large" if large else ""}">{"".join(blocks)}</div>'


def render_html_list(lines: Iterable[str]) -> str:
    """Render a list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def render_note(text: str) -> str:
    """Render a paragraph that explains a table or a chart."""
    return f'<p class="note">{escape(text)}</p>'


def render_scroll_box(markup: str) -> str:
    """Wrap markup that may be wider than the page."""
    return f'<div class="scroll">{markup}</div>'
