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
from resnetkit.images.thumbnail import thumbnail

if TYPE_CHECKING:
    from resnetkit.explain.grad_cam import Answer, Inside, Map, Stage

_LARGE, _SMALL = 448, 224  # pixels of a picture on the page, twice what it takes there: sharp on a fine screen too
# From nothing to the most: lightness (in OKLab) rises evenly from 0.16 to 0.96, the hue turns from violet to yellow.
_SCALE = np.array(
    [(13, 1, 49), (68, 4, 91), (138, 9, 103), (200, 52, 86), (247, 108, 48), (253, 182, 92), (254, 244, 179)],
    np.float32,
)
_FAINT, _STRONG = 0.2, 0.75  # how much of the colour covers the picture, where there is nothing and where there is most


def page(found: Inside, name: str, file: str) -> str:
    """The whole page for the network ``name`` and the picture ``file``; both are text, never markup."""
    first = found.answers[0]
    lead = f"Its first answer is {first.label}, with a probability of {first.share:.1%}."
    sections = [
        ("Where the evidence lies", _evidence(found)),
        ("The strongest maps of each stage", html.note(_MAPS)),
        *((_heading(stage), html.gallery(_small(stage))) for stage in found.stages),
    ]
    return html.page(f"what {name} sees in {file}", lead, sections)


_MAPS = (
    "A channel of a stage answers to one pattern, wherever that stands in the picture. Shown are the channels with the "
    "highest mean over the map. Each map has the whole scale for itself, from 0 (or its lowest value below 0) up."
)


def _evidence(found: Inside) -> str:
    height, width, _ = found.pixels.shape
    image = _picture(found)
    pictures = [(thumbnail(image, _LARGE), "the picture", f"{width}x{height} pixels, as the network gets it")]
    pictures += [(_laid_over(image, answer), answer.label, _told(answer)) for answer in found.answers]
    return html.note(_what_is_seen(found)) + _key() + html.gallery(pictures, large=True)


def _what_is_seen(found: Inside) -> str:
    """What Grad-CAM shows of this picture, and what it does not."""
    (rows, columns), (height, width, _) = found.answers[0].evidence.shape, found.pixels.shape
    return (
        "Grad-CAM (arXiv 1610.02391) shows where the last map holds evidence for an answer; it does not show why that "
        f"is evidence, nor whether it is good evidence. It is coarse: the last map is {columns}x{rows}, so that one "
        f"pixel of it stands for about {width / columns:.0f}x{height / rows:.0f} of the picture. Each answer has the "
        "whole scale for itself, so that brightness compares places and never answers."
    )


def _told(answer: Answer) -> str:
    return f"{answer.share:.1%}" + ", and no place speaks for it" * (not answer.evidence.any())


def _key() -> str:
    """The scale of colours with its two ends."""
    width, height, count = 240.0, 12.0, 48
    step = width / count
    colours = _colours(np.linspace(0, 1, count)).round().astype(int)
    boxes = [
        svg.element(
            "rect",
            x=i * step,
            y=0,
            width=step + 0.5,
            height=height,
            fill="rgb({},{},{})".format(*colour),
            shape_rendering="crispEdges",
        )
        for i, colour in enumerate(colours.tolist())
    ]
    ends = [
        svg.words("nothing", 0, height + 16, fill="var(--soft, #5d6b7a)"),
        svg.words("most", width, height + 16, fill="var(--soft, #5d6b7a)", text_anchor="end"),
    ]
    return svg.document(width, height + 32, "The scale of colours, from nothing to the most", *boxes, *ends)


def _heading(stage: Stage) -> str:
    height, width = stage.strongest[0].values.shape
    return f"{stage.path}: {len(stage.strongest)} of {stage.channels} maps, {width}x{height}"


def _small(stage: Stage) -> list[tuple[str, str, str]]:
    return [
        (
            thumbnail(_image(_colours(_spread(one.values))), _SMALL),
            f"{stage.path}, channel {one.number}",
            f"mean {one.strength:.3g}",
        )
        for one in stage.strongest
    ]


# ---------------------------------------------------------------------------------------------------------- pictures


def _picture(found: Inside) -> Image.Image:
    return Image.fromarray(found.pixels[..., 0] if found.pixels.shape[2] == 1 else found.pixels)


def _laid_over(image: Image.Image, answer: Answer) -> str:
    """The evidence, stretched to the size of the picture, over it in grey: every colour is one of the scale."""
    times = max(1, _LARGE // max(image.size))
    size = (image.width * times, image.height * times)
    below = np.asarray(image.convert("L").resize(size, Image.Resampling.NEAREST), np.float32)[..., None]
    smooth = Image.fromarray(_spread(answer.evidence)).resize(size, Image.Resampling.BICUBIC)
    shares = np.asarray(smooth).clip(0, 1)
    cover = (_FAINT + (_STRONG - _FAINT) * shares)[..., None]
    return thumbnail(_image(below * (1 - cover) + _colours(shares) * cover), _LARGE)


def _spread(values: Map) -> Map:
    """From 0 to 1: 0, or what lies lowest below it, becomes 0, and the highest 1; what is no number counts as 0."""
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)  # fp64: no difference is too large for it
    low, high = min(finite.min(), 0), max(finite.max(), 0)
    spread: Map = ((finite - low) / (high - low or 1)).astype(np.float32)
    return spread


def _colours(shares: NDArray[np.floating[Any]]) -> Map:
    """From 0 to 1 to red, green and blue, 0 to 255, in a new last dimension."""
    steps = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(shares, steps, colour) for colour in _SCALE.T], -1).astype(np.float32)


def _image(colours: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(colours.round().astype(np.uint8))
