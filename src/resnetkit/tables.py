"""Rows of cells as aligned text, made to fit where there is little room."""

from __future__ import annotations

from collections.abc import Sequence

Table = Sequence[Sequence[str]]


def aligned(table: Table, left: int) -> str:
    """Rows of cells as aligned lines; the first ``left`` columns are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def fitted(table: Table, width: int, drop: Sequence[str]) -> Table:
    """The same table made to fit ``width``: counts get short, then columns go by their headings, then words are cut."""
    table = table if _wide(table) <= width else [[short_count(cell) for cell in row] for row in table]
    for heading in drop:
        if _wide(table) > width and heading in table[0]:
            at = list(table[0]).index(heading)
            table = [[*row[:at], *row[at + 1 :]] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    longest, most = widths.index(max(widths)), max(8, max(widths) - max(0, _wide(table) - width))
    return [[cell if i != longest else _cut(cell, most) for i, cell in enumerate(row)] for row in table]


def short_count(cell: str) -> str:
    """``4,089,184,256`` is ``4.09G``; what is no count, or a small one, stays."""
    digits = cell.replace(",", "")
    if not digits.isdecimal() or int(digits) < 10_000:
        return cell
    rounded = int(float(f"{int(digits[:300]):.3g}"))
    power = (len(str(rounded)) - 1) // 3
    return f"{rounded / 1000**power:.3g}{_UNITS[power]}" if power < len(_UNITS) else cell


_UNITS = " kMGTPE"
_GAP = "  "


def _wide(table: Table) -> int:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cut(cell: str, most: int) -> str:
    return cell if len(cell) <= most else cell[: most - 1] + "…"
