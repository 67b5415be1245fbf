"""Rows of cells as aligned text, made to fit where there is little room."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

Table = Sequence[Sequence[str]]


def align_table(table: Table, n_text_columns: int) -> str:
    """Rows of cells as aligned lines; the first ``left`` columns are words, the others numbers."""
    widths = _measure_columns(table)
    lines = []
    for row in table:
        pads = [" " * (width - display_width(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [
            cell + pad if i < n_text_columns else pad + cell
            for i, (cell, pad) in enumerate(zip(row, pads, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def fit_table(
    table: Table, width: int, drop_first: Sequence[str], drop_last: Sequence[str] = (), ellipsis: str = "…"
) -> Table:
    """The same table made to fit ``width``: counts get short, then columns go by their headings, then words are cut.

    ``last`` names the columns that go where cutting words is not enough; ``more`` stands where something was cut.
    """
    table = table if _measure_table(table) <= width else [[shorten_count(cell) for cell in row] for row in table]
    table = _drop_columns(table, drop_first, width)
    table = _drop_columns(table, drop_last, width + max(0, max(_measure_columns(table)) - _MIN_WIDTH))
    widths = _measure_columns(table)
    widest, max_width = widths.index(max(widths)), max(_MIN_WIDTH, max(widths) - max(0, _measure_table(table) - width))
    return [
        [cell if i != widest else _truncate_cell(cell, max_width, ellipsis) for i, cell in enumerate(row)]
        for row in table
    ]


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian letters are wide, accents that combine take none."""
    if text.isascii():
        return len(text)
    return sum((1 + (east_asian_width(letter) in "WF")) * (not combining(letter)) for letter in text)


def escape_control(text: str, keep: str = "") -> str:
    """What would move the cursor or turn the direction of writing, written out; the names of files may hold such."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def shorten_count(cell: str) -> str:
    """``4,089,184,256`` is ``4.09G``; what is no count, or a small one, stays."""
    digits = cell.replace(",", "")
    if not digits.isdecimal() or int(digits) < 10_000:
        return cell
    rounded = int(float(f"{int(digits[:300]):.3g}"))
    power = (len(str(rounded)) - 1) // 3
    return f"{rounded / 1000**power:.3g}{_UNITS[power]}" if power < len(_UNITS) else cell


def pluralize(n: int, noun: str) -> str:
    """``1 picture``, ``2,000 pictures``, ``3 classes``."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def format_duration(seconds: float) -> str:
    """Format a duration as minutes and seconds: ``1:05`` for 65 seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}:{remainder:02d}"


_UNITS = " kMGTPE"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_GAP = "  "
_MIN_WIDTH = 8  # letters of a word that are left


def _drop_columns(table: Table, headings: Sequence[str], width: int) -> Table:
    for heading in headings:
        if _measure_table(table) > width and heading in table[0]:
            index = list(table[0]).index(heading)
            table = [[*row[:index], *row[index + 1 :]] for row in table]
    return table


def _measure_columns(table: Table) -> list[int]:
    return [max(map(display_width, column)) for column in zip(*table, strict=True)]


def _measure_table(table: Table) -> int:
    widths = _measure_columns(table)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _truncate_cell(cell: str, max_width: int, ellipsis: str) -> str:
    if display_width(cell) <= max_width:
        return cell
    text = cell[: max_width - 1]
    while display_width(text) > max_width - 1:
        text = text[:-1]
    return text + ellipsis
