"""Plain text for people: aligned tables, short numbers and lists, and names that are safe to print.

This module imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

Table = Sequence[Sequence[str]]
_COUNT_UNITS = " kMGTPE"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLUMN_GAP = "  "
_MIN_COLUMN_WIDTH = 8  # a text column keeps at least this many letters


def align_table(table: Table, n_text_columns: int) -> str:
    """Return the rows of ``table`` as aligned lines.

    Args:
        table: rows of cells, all of the same length.
        n_text_columns: the first columns hold text (aligned left); the rest hold numbers (aligned right).
    """
    widths = _measure_columns(table)
    lines = []
    for row in table:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (width - display_width(cell))
            cells.append(cell + pad if i < n_text_columns else pad + cell)
        lines.append(_COLUMN_GAP.join(cells).rstrip())
    return "\n".join(lines)


def fit_table(
    table: Table, width: int, drop_first: Sequence[str], drop_last: Sequence[str] = (), ellipsis: str = "…"
) -> Table:
    """Return ``table`` made to fit ``width``.

    Shorten counts first, then drop columns, then truncate the widest column.

    Args:
        table: rows of cells; the first row holds the headings.
        width: columns of the terminal.
        drop_first: headings to drop, in this order, while the table is too wide.
        drop_last: headings to drop only if truncating text is not enough.
        ellipsis: ends every truncated cell.
    """
    if _measure_table(table) > width:
        table = [[shorten_count(cell) for cell in row] for row in table]
    table = _drop_columns(table, drop_first, width)
    table = _drop_columns(table, drop_last, width + max(0, max(_measure_columns(table)) - _MIN_COLUMN_WIDTH))
    widths = _measure_columns(table)
    widest, excess = widths.index(max(widths)), max(0, _measure_table(table) - width)
    max_width = max(_MIN_COLUMN_WIDTH, max(widths) - excess)
    return [
        [truncate(cell, max_width, ellipsis) if i == widest else cell for i, cell in enumerate(row)] for row in table
    ]


def display_width(text: str) -> int:
    """Return the terminal columns of ``text``: East Asian letters take two, combining accents none."""
    if text.isascii():
        return len(text)
    return sum((1 + (east_asian_width(letter) in "WF")) * (not combining(letter)) for letter in text)


def truncate(text: str, max_width: int, ellipsis: str = "...") -> str:
    """Return ``text`` cut to ``max_width`` terminal columns.

    Args:
        text: one line.
        max_width: columns that the result may take, ``ellipsis`` included.
        ellipsis: ends the result if letters are missing.
    """
    if len(text) <= max_width and display_width(text) <= max_width:
        return text
    text = text[: max_width - len(ellipsis)]
    while display_width(text) > max_width - len(ellipsis):
        text = text[:-1]
    return text + ellipsis


def escape_control(text: str, keep: str = "") -> str:
    """Return ``text`` with its control characters written as escapes, for example an escape code.

    File names, class names and tensor names come from other people. Such characters could move the cursor, hide
    letters, reverse the direction of writing, or stop the printing altogether (lone surrogates).

    Args:
        text: any text.
        keep: control characters that stay as they are, for example a newline.
    """
    return _CONTROL_CHARACTERS.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def shorten_count(cell: str) -> str:
    """Return ``4.09G`` for ``4,089,184,256``; text that is not a count, or a small count, stays."""
    digits = cell.replace(",", "")
    if not digits.isdecimal() or int(digits) < 10_000:
        return cell
    rounded = int(float(f"{int(digits[:300]):.3g}"))
    power = (len(str(rounded)) - 1) // 3
    return f"{rounded / 1000**power:.3g}{_COUNT_UNITS[power]}" if power < len(_COUNT_UNITS) else cell


def format_bytes(n_bytes: float) -> str:
    """Return a size in decimal units: ``1.2 GB``, ``340 MB``, ``1.5 MB``."""
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:,.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.1f} MB"


def pluralize(n: int, noun: str) -> str:
    """Return the number and the noun: ``1 image``, ``2,000 images``, ``3 classes``, ``4 identities``.

    Args:
        n: the number of things.
        noun: the word for one of them.
    """
    if n != 1 and re.search("[^aeiou]y$", noun):
        return f"{n:,} {noun[:-1]}ies"
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('s') else 's'}"


def join_names(names: Sequence[str], limit: int = 5) -> str:
    """Return ``a, b, c``, or ``a, b, c and 7 more`` if there are more than ``limit``.

    Args:
        names: the names, in order.
        limit: list at most this many.
    """
    n_more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {n_more:,} more" if n_more > 0 else "")


def limit_lines(lines: Sequence[str], limit: int, total: int = 0) -> list[str]:
    """Return the first lines, followed by ``... and 7 more`` if there are more than ``limit``.

    Args:
        lines: the lines, in order.
        limit: keep at most this many.
        total: the number of lines that exist, if ``lines`` holds only the first of them.
    """
    n_more = max(total, len(lines)) - limit
    return [*lines[:limit], *([f"... and {n_more:,} more"] if n_more > 0 else [])]


def format_duration(seconds: float) -> str:
    """Format a duration as minutes and seconds: ``1:05`` for 65 seconds."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes}:{remainder:02d}"


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
    return sum(widths) + len(_COLUMN_GAP) * (len(widths) - 1)
