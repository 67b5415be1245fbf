"""Find near duplicates: copies that were compressed again, resized, slightly cropped or mirrored.

Each image has a gray thumbnail of 32x32 pixels. A coarse description (8x8, without mean and contrast) of a few windows
of each thumbnail selects candidates by matrix products. The memory for it grows linearly with the images. A candidate
is then aligned (Lucas and Kanade, 1981: scale and shift of each axis). It is accepted if both its large structures and
its details agree; details of different images are not correlated. The caller also compares the mean colors.

This module imports no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.runtime.progress import ProgressCallback

THUMBNAIL_SIDE = 32
MIN_SIDE = 32  # different handwritten digits of 28 pixels look alike
_COARSE_SIDE, _BLOCK, _CHUNK = 8, 256, 4096
_MIN_CONTRAST = 4.0  # standard deviation in levels; flat images have nothing to compare
_MIN_COARSE, _MIN_STRUCTURE, _MIN_DETAIL = 0.9, 0.85, 0.8  # correlations; ships before a sky agree in 0.7 of details
_MAX_CANDIDATES = 16  # per image and block, the most similar ones
_CROP = 0.08
_WINDOWS = (  # top, bottom, left, right of the part of an image that its copy may show
    (0.0, 1.0, 0.0, 1.0),
    (_CROP / 2, 1 - _CROP / 2, _CROP / 2, 1 - _CROP / 2),
    (_CROP, 1 - _CROP, _CROP, 1 - _CROP),
    *((top, top + 1 - _CROP, left, left + 1 - _CROP) for top in (0.0, _CROP) for left in (0.0, _CROP)),
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class NearDuplicate:
    """The indices of two images, of which one shows the other, perhaps mirrored."""

    first: int
    second: int
    is_mirrored: bool


def make_thumbnail(image: Image.Image) -> bytes:
    """Return the gray thumbnail of an image, or nothing if it is too small to be compared."""
    if min(image.size) < MIN_SIDE:
        return b""
    return image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR).tobytes()


def measure_mean_color(image: Image.Image) -> tuple[int, ...]:
    """Return the mean chroma (Cb, Cr), which a crop changes less than the brightness."""
    pixel = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).convert("YCbCr").getpixel((0, 0))
    return pixel[1:] if isinstance(pixel, tuple) else ()


def find_near_duplicates(
    thumbnails: NDArray[np.uint8], on_progress: ProgressCallback | None = None
) -> list[NearDuplicate]:
    """Find pairs of images that show the same.

    Args:
        thumbnails: The gray thumbnails (N, 32, 32).
        on_progress: Called with (images compared, all images).
    """
    targets = _describe_window(thumbnails, _WINDOWS[0])
    pairs: dict[tuple[int, int], NearDuplicate] = {}
    for start in range(0, len(thumbnails), _BLOCK):
        block = thumbnails[start : start + _BLOCK]
        candidates = _find_candidates(block, start, targets)
        for first, second, hypothesis in _verify(thumbnails, candidates):
            key = (min(first, second), max(first, second))
            pairs.setdefault(key, NearDuplicate(*key, bool(hypothesis % 2)))
        if on_progress:
            on_progress(min(start + _BLOCK, len(thumbnails)), len(thumbnails))
    return [pairs[key] for key in sorted(pairs)]


# ----------------------------------------------------------------------------------------------------------- candidates


def _describe_window(thumbnails: NDArray[np.uint8], window: tuple[float, float, float, float]) -> Floats:
    """Return unit vectors (N, 64) of windows; zero for an image without contrast."""
    top, bottom, left, right = window
    pixels = _make_pooling(top, bottom) @ thumbnails.astype(np.float32) @ _make_pooling(left, right).T
    vectors = pixels.reshape(len(thumbnails), _COARSE_SIDE**2)
    vectors = vectors - vectors.mean(1, keepdims=True)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norms > _MIN_CONTRAST * _COARSE_SIDE, vectors / np.maximum(norms, 1e-6), 0).astype(np.float32)


def _make_pooling(start: float, end: float) -> Floats:
    """Return the matrix (8, 32) that averages the pixels of 8 equal parts of a window."""
    edges = np.linspace(start, end, _COARSE_SIDE + 1) * THUMBNAIL_SIDE
    pixels = np.arange(THUMBNAIL_SIDE)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _find_candidates(block: NDArray[np.uint8], start: int, targets: Floats) -> NDArray[np.int64]:
    """Return rows (first index, second index, hypothesis); odd hypotheses are mirrored."""
    images = (block, block[:, :, ::-1])
    queries = np.stack([_describe_window(image, window) for window in _WINDOWS for image in images], 1)
    n_hypotheses, flat_queries = queries.shape[1], queries.reshape(-1, queries.shape[2])
    rows, values = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.float32)]
    for chunk in range(0, len(targets), _CHUNK):
        similarity = flat_queries @ targets[chunk : chunk + _CHUNK].T
        hits, columns = np.nonzero(similarity > _MIN_COARSE)
        first, second = hits // n_hypotheses + start, columns + chunk
        is_pair = first != second
        found_rows = np.stack([first, second, hits % n_hypotheses], 1)[is_pair]
        kept = _keep_best(found_rows, similarity[hits, columns][is_pair])
        rows.append(found_rows[kept])
        values.append(similarity[hits, columns][is_pair][kept])
    all_rows, all_values = np.concatenate(rows), np.concatenate(values)
    return all_rows[_keep_best(all_rows, all_values)]


def _keep_best(rows: NDArray[np.int64], values: Floats) -> NDArray[np.int64]:
    """Return the positions of the best hypothesis of each pair, for the most similar pairs of an image."""
    order = np.lexsort((-values, rows[:, 1], rows[:, 0]))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(rows[order, :2], axis=0) != 0).any(1)
    order = order[is_new]
    order = order[np.lexsort((-values[order], rows[order, 0]))]
    firsts = rows[order, 0]
    rank = np.arange(len(order)) - np.searchsorted(firsts, firsts)
    return np.asarray(order[rank < _MAX_CANDIDATES])


# --------------------------------------------------------------------------------------------------------- verification


def _verify(thumbnails: NDArray[np.uint8], candidates: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yield the candidates that show the same after alignment."""
    for start in range(0, len(candidates), 1024):
        rows = candidates[start : start + 1024]
        sources = thumbnails[rows[:, 0]].astype(np.float32)
        is_mirrored = rows[:, 2] % 2 == 1
        sources[is_mirrored] = sources[is_mirrored][:, :, ::-1]
        copies = thumbnails[rows[:, 1]].astype(np.float32)
        windows = np.array(_WINDOWS)[rows[:, 2] // 2]
        aligned = _align(sources, copies, windows)
        inner = slice(2, -2)
        structure = _measure_agreement(aligned[:, inner, inner], copies[:, inner, inner])
        detail = _correlate(_sharpen(aligned)[:, inner, inner], _sharpen(copies)[:, inner, inner])
        accepted = (structure > _MIN_STRUCTURE) & (detail > _MIN_DETAIL)
        yield from ((int(first), int(second), int(hypothesis)) for first, second, hypothesis in rows[accepted])


def _align(sources: Floats, copies: Floats, windows: NDArray[np.float64], steps: int = 5) -> Floats:
    """Return the part of each source (M, 32, 32) that agrees best with its copy, by least squares."""
    centers = (np.arange(THUMBNAIL_SIDE) + 0.5) / THUMBNAIL_SIDE
    offsets = (centers - 0.5).astype(np.float32)
    row_scale, row_shift = windows[:, 1] - windows[:, 0], windows[:, 0].copy()
    column_scale, column_shift = windows[:, 3] - windows[:, 2], windows[:, 2].copy()
    for _ in range(steps):
        aligned = _sample(sources, (row_shift, row_scale), (column_shift, column_scale))
        by_row, by_column = np.gradient(_blur(aligned), axis=(1, 2))
        columns = [
            by_row,
            by_row * offsets[:, None],
            by_column,
            by_column * offsets,
            _blur(aligned),
            np.ones_like(aligned),
        ]
        design = np.stack([column.reshape(len(sources), -1) for column in columns], 2)
        gram = design.transpose(0, 2, 1) @ design + 1e-2 * np.eye(6, dtype=np.float32)
        solution = np.linalg.solve(gram, design.transpose(0, 2, 1) @ _blur(copies).reshape(len(sources), -1, 1))[..., 0]
        gain = np.where(np.abs(solution[:, 4]) > 0.2, solution[:, 4], 1)[:, None]
        moves = np.clip(solution[:, :4] / gain / THUMBNAIL_SIDE, -0.05, 0.05)
        row_shift += row_scale * (moves[:, 0] - 0.5 * moves[:, 1])
        column_shift += column_scale * (moves[:, 2] - 0.5 * moves[:, 3])
        row_scale, column_scale = row_scale * (1 + moves[:, 1]), column_scale * (1 + moves[:, 3])
    return _sample(sources, (row_shift, row_scale), (column_shift, column_scale))


Range = tuple[NDArray[np.float64], NDArray[np.float64]]  # shift and scale of each image, as fractions of its side


def _sample(sources: Floats, rows: Range, columns: Range) -> Floats:
    """Resample a window of each image (M, 32, 32) to its size, bilinearly."""
    row_weights, column_weights = _make_sampling(*rows), _make_sampling(*columns)
    return np.asarray(row_weights @ sources @ column_weights.transpose(0, 2, 1), np.float32)


def _make_sampling(shift: NDArray[np.float64], scale: NDArray[np.float64]) -> Floats:
    """Return matrices (M, 32, 32) that interpolate at the centers of the pixels of each window."""
    centers = (np.arange(THUMBNAIL_SIDE) + 0.5) / THUMBNAIL_SIDE
    positions = (shift[:, None] + scale[:, None] * centers) * THUMBNAIL_SIDE - 0.5
    positions = positions.clip(0, THUMBNAIL_SIDE - 1)[..., None]
    return np.asarray(np.clip(1 - np.abs(positions - np.arange(THUMBNAIL_SIDE)), 0, None), np.float32)


def _blur(images: Floats) -> Floats:
    """Blur images (M, H, W) with weights 1, 2, 1 along each axis."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    return np.asarray((rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4, np.float32)


def _sharpen(images: Floats) -> Floats:
    """Return the details of images: what a strong blur removes."""
    blurred = images
    for _ in itertools.repeat(None, 4):
        blurred = _blur(blurred)
    return images - blurred


def _measure_agreement(aligned: Floats, copies: Floats) -> NDArray[np.float64]:
    """Return 1 - squared difference / variance of each pair of images; brightness and contrast count."""
    difference = ((aligned - copies) ** 2).mean((1, 2), dtype=np.float64)
    return np.asarray(1 - difference / np.maximum(copies.var((1, 2), dtype=np.float64), 1e-6))


def _correlate(first: Floats, second: Floats) -> NDArray[np.float64]:
    """Return the correlation of each pair of images (M, H, W)."""
    a, b = (images.reshape(len(images), -1).astype(np.float64) for images in (first, second))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlation: NDArray[np.float64] = (a * b).sum(1) / np.maximum(norms, 1e-6)
    return correlation
