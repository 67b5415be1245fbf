"""What a network sees in a picture, as a page.

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

_LARGE, _SMALL = 448, 224  # pixels of a picture on the page, twice what it takes there: sharp on a fine screen too
# From nothing to the most: lightness (in OKLab) rises evenly from 0.16 to 0.96, the hue turns from violet to yellow.
_COLORMAP = np.array(
    [(13, 1, 49), (68, 4, 91), (138, 9, 103), (200, 52, 86), (247, 108, 48), (253, 182, 92), (254, 244, 179)],
    np.float32,
)
_MIN_ALPHA, _MAX_ALPHA = (
    0.2,
    0.75,
)  # how much of the colour covers the picture, where there is nothing and where there is most


def render_grad_cam_page(explanation: ImageExplanation, name: str, file: str) -> str:
    """The whole page for the network ``name`` and the picture ``file``; both are text, never markup."""
    best = explanation.predictions[0]
    lead = f"Its first answer is {best.label}, with a probability of {best.probability:.1%}."
    sections = [
        ("Where the evidence lies", _render_heatmaps(explanation)),
        ("The strongest maps of each stage", html.render_note(_CHANNELS_NOTE)),
        *((_format_heading(stage), html.render_gallery(_list_thumbnails(stage))) for stage in explanation.stages),
    ]
    return html.render_html(f"what {name} sees in {file}", lead, sections)


_CHANNELS_NOTE = (
    "A channel of a stage answers to one pattern, wherever that stands in the picture. Shown are the channels with the "
    "highest mean over the map. Each map has the whole scale for itself, from 0 (or its lowest value below 0) up."
)


def _render_heatmaps(explanation: ImageExplanation) -> str:
    height, width, _ = explanation.pixels.shape
    image = _make_input_image(explanation)
    images = [(encode_thumbnail(image, _LARGE), "the picture", f"{width}x{height} pixels, as the network gets it")]
    images += [
        (_overlay_heatmap(image, prediction), prediction.label, _format_prediction(prediction))
        for prediction in explanation.predictions
    ]
    return (
        html.render_note(_describe_grad_cam(explanation))
        + _draw_color_scale()
        + html.render_gallery(images, large=True)
    )


def _describe_grad_cam(explanation: ImageExplanation) -> str:
    """What Grad-CAM shows of this picture, and what it does not."""
    (rows, columns), (height, width, _) = explanation.predictions[0].heatmap.shape, explanation.pixels.shape
    return (
        "Grad-CAM (arXiv 1610.02391) shows where the last map holds evidence for an answer; it does not show why that "
        f"is evidence, nor whether it is good evidence. It is coarse: the last map is {columns}x{rows}, so that one "
        f"pixel of it stands for about {width / columns:.0f}x{height / rows:.0f} of the picture. Each answer has the "
        "whole scale for itself, so that brightness compares places and never answers."
    )


def _format_prediction(prediction: PredictedClass) -> str:
    return f"{prediction.probability:.1%}" + ", and no place speaks for it" * (not prediction.heatmap.any())


def _draw_color_scale() -> str:
    """The scale of colours with its two ends."""
    width, height, count = 240.0, 12.0, 48
    step = width / count
    colors = _apply_colormap(np.linspace(0, 1, count)).round().astype(int)
    boxes = [
        svg.build_element(
            "rect",
            x=i * step,
            y=0,
            width=step + 0.5,
            height=height,
            fill="rgb({},{},{})".format(*color),
            shape_rendering="crispEdges",
        )
        for i, color in enumerate(colors.tolist())
    ]
    labels = [
        svg.build_text("nothing", 0, height + 16, fill="var(--soft, #5d6b7a)"),
        svg.build_text("most", width, height + 16, fill="var(--soft, #5d6b7a)", text_anchor="end"),
    ]
    return svg.build_svg(width, height + 32, "The scale of colours, from nothing to the most", *boxes, *labels)


def _format_heading(stage: StageActivations) -> str:
    height, width = stage.strongest[0].values.shape
    return f"{stage.path}: {len(stage.strongest)} of {stage.channels} maps, {width}x{height}"


def _list_thumbnails(stage: StageActivations) -> list[tuple[str, str, str]]:
    return [
        (
            encode_thumbnail(_make_image(_apply_colormap(_normalize_map(channel.values))), _SMALL),
            f"{stage.path}, channel {channel.index}",
            f"mean {channel.mean:.3g}",
        )
        for channel in stage.strongest
    ]


# ---------------------------------------------------------------------------------------------------------- pictures


def _make_input_image(explanation: ImageExplanation) -> Image.Image:
    return Image.fromarray(explanation.pixels[..., 0] if explanation.pixels.shape[2] == 1 else explanation.pixels)


def _overlay_heatmap(image: Image.Image, prediction: PredictedClass) -> str:
    """The evidence, stretched to the size of the picture, over it in grey: every colour is one of the scale."""
    factor = max(1, _LARGE // max(image.size))
    size = (image.width * factor, image.height * factor)
    background = np.asarray(image.convert("L").resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    resized = Image.fromarray(_normalize_map(prediction.heatmap)).resize(size, Image.Resampling.BICUBIC)
    values = np.asarray(resized).clip(0, 1)
    alpha = (_MIN_ALPHA + (_MAX_ALPHA - _MIN_ALPHA) * values)[..., None]
    return encode_thumbnail(_make_image(background * (1 - alpha) + _apply_colormap(values) * alpha), _LARGE)


def _normalize_map(values: FloatArray) -> FloatArray:
    """From 0 to 1: 0, or what lies lowest below it, becomes 0, and the highest 1; what is no number counts as 0."""
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)  # fp64: no difference is too large for it
    low, high = min(finite.min(), 0), max(finite.max(), 0)
    normalized: FloatArray = ((finite - low) / (high - low or 1)).astype(np.float32)
    return normalized


def _apply_colormap(values: NDArray[np.floating[Any]]) -> FloatArray:
    """From 0 to 1 to red, green and blue, 0 to 255, in a new last dimension."""
    steps = np.linspace(0, 1, len(_COLORMAP))
    return np.stack([np.interp(values, steps, channel) for channel in _COLORMAP.T], -1).astype(np.float32)


def _make_image(colors: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(colors.round().astype(np.uint8))
