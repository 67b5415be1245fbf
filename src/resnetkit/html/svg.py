"""SVG as text: elements whose attributes and contents are escaped.

This module imports no torch.
"""

from __future__ import annotations

from html import escape
from typing import Any

FONT = "system-ui, 'DejaVu Sans', sans-serif"


def element(tag: str, /, *children: str, **attributes: Any) -> str:
    """An element; ``children`` are markup already, ``stroke_width=2`` becomes ``stroke-width="2"``."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    return f"<{tag}{pairs}>{''.join(children)}</{tag}>" if children else f"<{tag}{pairs}/>"


def words(text: str, x: float | str, y: float, **attributes: Any) -> str:
    """A line of text."""
    return element("text", escape(text), x=x, y=y, **attributes)


def title(text: str) -> str:
    """What a pointer resting on the element shows, and a screen reader says."""
    return element("title", escape(text))


def document(width: float, height: float, label: str, *children: str) -> str:
    """A whole picture; a page may shrink it to its frame. ``label`` says what it shows."""
    return element(
        "svg",
        title(label),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_text(width)} {_text(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        font_family=FONT,
        font_size=13,
    )


def plot(height: float, label: str, *children: str) -> str:
    """A picture as wide as its frame, whose letters stay as they are: what is in it has places in percent.

    The page's style gives ``svg.plot`` its height, too, since a rule for all pictures is stronger than an attribute.
    """
    named = {"role": "img", "aria_label": label, "font_family": FONT, "font_size": 13}
    return element(
        "svg",
        title(label),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_="plot",
        width="100%",
        height=height,
        **named,
    )


def _text(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
