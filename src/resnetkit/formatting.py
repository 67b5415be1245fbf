"""Rows of cells as aligned text, made to fit where there is little room."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

Table = Sequence[Sequence[str]]


def aligned(table: Table, left: int) -> str:
    """Rows of cells as aligned lines; the first ``left`` columns are words, the others numbers."""
    widths = _widths(table)
    lines = []
    for row in table:
        pads = [" " * (width - room(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [cell + pad if i < left else pad + cell for i, (cell, pad) in enumerate(zip(row, pads, strict=True))]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def fitted(table: Table, width: int, drop: Sequence[str], last: Sequence[str] = (), more: str = "…") -> Table:
    """The same table made to fit ``width``: counts get short, then columns go by their headings, then words are cut.

    ``last`` names the columns that go where cutting words is not enough; ``more`` stands where something was cut.
    """
    table = table if _wide(table) <= width else [[short_count(cell) for cell in row] for row in table]
    table = _without(table, drop, width)
    table = _without(table, last, width + max(0, max(_widths(table)) - _LEAST))
    widths = _widths(table)
    longest, most = widths.index(max(widths)), max(_LEAST, max(widths) - max(0, _wide(table) - width))
    return [[cell if i != longest else _cut(cell, most, more) for i, cell in enumerate(row)] for row in table]


def room(text: str) -> int:
    """Columns that a text takes on a terminal: East Asian letters are wide, accents that combine take none."""
    if text.isascii():
        return len(text)
    return sum((1 + (east_asian_width(letter) in "WF")) * (not combining(letter)) for letter in text)


def printable(text: str, keep: str = "") -> str:
    """What would move the cursor or turn the direction of writing, written out; the names of files may hold such."""
    return _MOVING.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def short_count(cell: str) -> str:
    """``4,089,184,256`` is ``4.09G``; what is no count, or a small one, stays."""
    digits = cell.replace(",", "")
    if not digits.isdecimal() or int(digits) < 10_000:
        return cell
    rounded = int(float(f"{int(digits[:300]):.3g}"))
    power = (len(str(rounded)) - 1) // 3
    return f"{rounded / 1000**power:.3g}{_UNITS[power]}" if power < len(_UNITS) else cell


def counted(n: int, thing: str) -> str:
    """``1 picture``, ``2,000 pictures``, ``3 classes``."""
    return f"{n:,} {thing}{'' if n == 1 else 'es' if thing.endswith('s') else 's'}"


_UNITS = " kMGTPE"
_MOVING = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_GAP = "  "
_LEAST = 8  # letters of a word that are left


def _without(table: Table, headings: Sequence[str], width: int) -> Table:
    for heading in headings:
        if _wide(table) > width and heading in table[0]:
            at = list(table[0]).index(heading)
            table = [[*row[:at], *row[at + 1 :]] for row in table]
    return table


def _widths(table: Table) -> list[int]:
    return [max(map(room, column)) for column in zip(*table, strict=True)]


def _wide(table: Table) -> int:
    widths = _widths(table)
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cut(cell: str, most: int, more: str) -> str:
    if room(cell) <= most:
        return cell
    kept = cell[: most - 1]
    while room(kept) > most - 1:
        kept = kept[:-1]
    return kept + more
