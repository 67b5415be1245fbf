"""SVG as text: elements whose attributes and contents are escaped.

This module imports no torch.
"""

from __future__ import annotations

from html import escape
from typing import Any

FONT = "system-ui, 'DejaVu Sans', sans-serif"


def build_element(tag: str, /, *children: str, **attributes: Any) -> str:
    """An element; ``children`` are markup already, ``stroke_width=2`` becomes ``stroke-width="2"``."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_format_value(value))}"' for key, value in attributes.items()
    )
    return f"<{tag}{pairs}>{''.join(children)}</{tag}>" if children else f"<{tag}{pairs}/>"


def build_text(text: str, x: float | str, y: float, **attributes: Any) -> str:
    """A line of text."""
    return build_element("text", escape(text), x=x, y=y, **attributes)


def build_title(text: str) -> str:
    """What a pointer resting on the element shows, and a screen reader says."""
    return build_element("title", escape(text))


def build_svg(width: float, height: float, label: str, *children: str) -> str:
    """A whole picture; a page may shrink it to its frame. ``label`` says what it shows."""
    return build_element(
        "svg",
        build_title(label),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_format_value(width)} {_format_value(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        font_family=FONT,
        font_size=13,
    )


def build_wide_svg(height: float, label: str, *children: str) -> str:
    """A picture as wide as its frame, whose letters stay as they are: what is in it has places in percent.

    The page's style gives ``svg.plot`` its height, too, since a rule for all pictures is stronger than an attribute.
    """
    attributes = {"role": "img", "aria_label": label, "font_family": FONT, "font_size": 13}
    return build_element(
        "svg",
        build_title(label),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_="plot",
        width="100%",
        height=height,
        **attributes,
    )


def _format_value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
