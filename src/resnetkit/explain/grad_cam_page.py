"""Render the Grad-CAM explanation of an image as a page.

This module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.html import page as html
from resnetkit.html import svg
from resnetkit.images.prepare import encode_thumbnail

if TYPE_CHECKING:
    from resnetkit.explain.grad_cam import FloatArray, ImageExplanation, PredictedClass, StageActivations

_LARGE, _SMALL = 448, 224  # pixels of an image; twice its size on the page, so that it is sharp on dense screens
# From low to high values, lightness (OKLab) rises evenly from 0.16 to 0.96, and the hue goes from violet to yellow.
_COLORMAP = np.array(
    [(13, 1, 49), (68, 4, 91), (138, 9, 103), (200, 52, 86), (247, 108, 48), (253, 182, 92), (254, 244, 179)],
    np.float32,
)
_MIN_ALPHA, _MAX_ALPHA = 0.2, 0.75  # opacity of the heatmap over the image, at its lowest and highest value


def render_grad_cam_page(explanation: ImageExplanation, name: str, file: str) -> str:
    """Render the explanation of an image as an HTML document.

    Args:
        explanation: predictions and maps of the image.
        name: name of the network; text, never markup.
        file: name of the image file; text, never markup.
    """
    best = explanation.predictions[0]
    lead = f"Top prediction: {best.label}, with probability {best.probability:.1%}."
    sections = [
        ("Grad-CAM of the top predictions", _render_heatmaps(explanation)),
        ("Strongest channels of each stage", html.render_note(_CHANNELS_NOTE)),
        *((_format_heading(stage), html.render_gallery(_list_thumbnails(stage))) for stage in explanation.stages),
    ]
    return html.render_html(f"{name}: Grad-CAM of {file}", lead, sections)


_CHANNELS_NOTE = (
    "A channel of a stage responds to one pattern, wherever it is in the image. These are the channels with the "
    "highest mean over the map. Each map has its own color scale, from 0 (or its lowest negative value) to its maximum."
)


def _render_heatmaps(explanation: ImageExplanation) -> str:
    height, width, _ = explanation.pixels.shape
    image = _make_input_image(explanation)
    images = [(encode_thumbnail(image, _LARGE), "input", f"{width}x{height} pixels, as the network receives it")]
    images += [
        (_overlay_heatmap(image, prediction), prediction.label, _format_prediction(prediction))
        for prediction in explanation.predictions
    ]
    note = html.render_note(_describe_grad_cam(explanation))
    return note + _draw_color_scale() + html.render_gallery(images, large=True)


def _describe_grad_cam(explanation: ImageExplanation) -> str:
    """Describe what Grad-CAM shows for this image, and what it does not show."""
    (rows, columns), (height, width, _) = explanation.predictions[0].heatmap.shape, explanation.pixels.shape
    size = f"{width / columns:.0f}x{height / rows:.0f}"
    return (
        "Grad-CAM (arXiv 1610.02391) shows which regions of the last map support a prediction. It does not explain "
        f"why. It is coarse: the last map is {columns}x{rows}, so one of its pixels covers about {size} pixels of the "
        "image. Each prediction has its own color scale: compare colors within a heatmap, not between predictions."
    )


def _format_prediction(prediction: PredictedClass) -> str:
    note = "" if prediction.heatmap.any() else ", no region supports it"
    return f"probability {prediction.probability:.1%}{note}"


def _draw_color_scale() -> str:
    width, height, count = 240.0, 12.0, 48
    step = width / count
    colors = [f"rgb({r},{g},{b})" for r, g, b in apply_colormap(np.linspace(0, 1, count)).round().astype(int)]
    size = {"y": 0, "width": step + 0.5, "height": height, "shape_rendering": "crispEdges"}
    boxes = [svg.build_element("rect", x=i * step, fill=color, **size) for i, color in enumerate(colors)]
    style = {"fill": "var(--soft, #5d6b7a)"}
    labels = [
        svg.build_text("none", 0, height + 16, **style),
        svg.build_text("maximum", width, height + 16, text_anchor="end", **style),
    ]
    return svg.build_svg(width, height + 32, "Color scale from none to the maximum", *boxes, *labels)


def _format_heading(stage: StageActivations) -> str:
    height, width = stage.strongest[0].values.shape
    return f"{stage.path}: {len(stage.strongest)} of {stage.channels} channels, {width}x{height}"


def _list_thumbnails(stage: StageActivations) -> list[tuple[str, str, str]]:
    return [
        (
            encode_thumbnail(_make_image(apply_colormap(_normalize_map(channel.values))), _SMALL),
            f"{stage.path}, channel {channel.index}",
            f"mean {channel.mean:.3g}",
        )
        for channel in stage.strongest
    ]


# ------------------------------------------------------------------------------------------------------------ images


def _make_input_image(explanation: ImageExplanation) -> Image.Image:
    return Image.fromarray(explanation.pixels[..., 0] if explanation.pixels.shape[2] == 1 else explanation.pixels)


def _overlay_heatmap(image: Image.Image, prediction: PredictedClass) -> str:
    """Blend the resized heatmap with the image in gray, so that every color is one of the scale."""
    factor = max(1, _LARGE // max(image.size))
    size = (image.width * factor, image.height * factor)
    background = np.asarray(image.convert("L").resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    resized = Image.fromarray(_normalize_map(prediction.heatmap)).resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(resized).clip(0, 1)
    alpha = (_MIN_ALPHA + (_MAX_ALPHA - _MIN_ALPHA) * values)[..., None]
    return encode_thumbnail(_make_image(background * (1 - alpha) + apply_colormap(values) * alpha), _LARGE)


def _normalize_map(values: FloatArray) -> FloatArray:
    """Scale a map to the range from 0 to 1; NaN and infinite values count as 0."""
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)  # fp64, so that differences do not overflow
    low, high = min(finite.min(), 0), max(finite.max(), 0)
    normalized: FloatArray = ((finite - low) / (high - low or 1)).astype(np.float32)
    return normalized


def apply_colormap(values: NDArray[np.floating[Any]]) -> FloatArray:
    """Map values from 0 to 1 to red, green and blue from 0 to 255, in a new last dimension."""
    steps = np.linspace(0, 1, len(_COLORMAP))
    return np.stack([np.interp(values, steps, channel) for channel in _COLORMAP.T], -1).astype(np.float32)


def _make_image(colors: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(colors.round().astype(np.uint8))
