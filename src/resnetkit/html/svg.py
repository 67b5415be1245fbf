"""Build SVG as text; attributes and contents are escaped.

This module imports no torch.
"""

from __future__ import annotations

from html import escape
from typing import Any

FONT = "system-ui, 'DejaVu Sans', sans-serif"
_NAMESPACE = "http://www.w3.org/2000/svg"


def build_element(tag: str, /, *children: str, **attributes: Any) -> str:
    """Build an element.

    Args:
        tag: The name of the element.
        children: Markup, already escaped.
        attributes: The attributes; ``stroke_width=2`` becomes ``stroke-width="2"``.
    """
    values = {key.rstrip("_").replace("_", "-"): escape(_format_value(value)) for key, value in attributes.items()}
    opening = " ".join([f"<{tag}", *(f'{key}="{value}"' for key, value in values.items())])
    return f"{opening}>{''.join(children)}</{tag}>" if children else f"{opening}/>"


def build_text(text: str, x: float | str, y: float, **attributes: Any) -> str:
    """Build a line of text.

    Args:
        text: The text; it is escaped.
        x: The position in pixels, or in percent as a string.
        y: The baseline in pixels.
        attributes: Further attributes.
    """
    return build_element("text", escape(text), x=x, y=y, **attributes)


def build_title(text: str) -> str:
    """Build a title, which a pointer shows as a tooltip and a screen reader reads."""
    return build_element("title", escape(text))


def build_svg(width: float, height: float, label: str, *children: str) -> str:
    """Build an image of a fixed size; a page may shrink it to its frame.

    Args:
        width: The width in pixels.
        height: The height in pixels.
        label: The description for screen readers.
        children: Markup, already escaped.
    """
    view_box = f"0 0 {_format_value(width)} {_format_value(height)}"
    return _build_image(label, children, viewBox=view_box, width=width, height=height)


def build_wide_svg(height: float, label: str, *children: str) -> str:
    """Build an image as wide as its frame; text keeps its size, and x positions are percentages.

    The style of ``svg.plot`` must also set the height, because a rule for all images overrides the attribute.

    Args:
        height: The height in pixels.
        label: The description for screen readers.
        children: Markup, already escaped.
    """
    return _build_image(label, children, class_="plot", width="100%", height=height)


def _build_image(label: str, children: tuple[str, ...], **size: Any) -> str:
    style = {"role": "img", "aria_label": label, "font_family": FONT, "font_size": 13}
    return build_element("svg", build_title(label), *children, xmlns=_NAMESPACE, **size, **style)


def _format_value(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
