"""Choose among measured engines: the finalists of the first round, and the best engine for each purpose.

This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resnetkit.engines.saved import Measurement, Purpose, find_baseline

_FINALIST_SHARE = 0.75  # of the highest throughput: other programs may have slowed a measurement that much
_MAX_FINALISTS = 6
_SAME_SPEED_SHARE = 0.9  # of the highest throughput: medians of a few seconds are that uncertain


def select_fastest(rows: Sequence[Measurement]) -> Measurement:
    """Return the highest throughput; among near-equal ones the one with the most streams.

    Decoding shares the cores, and a call that uses all cores waits for the slowest of them.
    """
    near_fastest = _select_near_fastest(rows, _SAME_SPEED_SHARE)
    return max(near_fastest, key=lambda row: (row.config.streams, row.throughput))


def _select_near_fastest(rows: Sequence[Measurement], share: float) -> list[Measurement]:
    highest = max((row.throughput for row in rows), default=0.0)
    return [row for row in rows if row.throughput >= share * highest]


def sort_by_latency(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return those that compute one image with all cores, lowest latency first."""
    single_image_rows = [row for row in rows if row.config.batch_size == row.config.streams == 1]
    return sorted(single_image_rows, key=lambda row: row.latency_ms or np.inf)


def select_finalists(rows: Sequence[Measurement]) -> list[Measurement]:
    """Select the rows to measure again: fast ones, the lowest latencies and the baseline.

    The fastest of each engine is among them, because start-up times differ between engines.
    """
    usable = sorted((row for row in rows if not row.reason), key=lambda row: -row.throughput)
    baseline = find_baseline(usable)
    best_by_engine = {row.config.engine: row for row in reversed(usable)}
    picked = [
        *_select_near_fastest(usable, _FINALIST_SHARE)[:_MAX_FINALISTS],
        *sort_by_latency(usable)[:2],
        *best_by_engine.values(),
        *([baseline] if baseline else []),
    ]
    return list({row.config: row for row in picked}.values())


def select_best_by_purpose(rows: Sequence[Measurement]) -> dict[Purpose, Measurement]:
    """Return the best finalist for each purpose; none for latency if no finalist computes single images."""
    usable = [row for row in rows if not row.reason and row.is_finalist]
    if not usable:
        return {}
    fastest_start = min(usable, key=lambda row: row.startup_seconds or 0.0)
    best: dict[Purpose, Measurement] = {"throughput": select_fastest(usable), "startup": fastest_start}
    by_latency = sort_by_latency(usable)
    return {"latency": by_latency[0], **best} if by_latency else best
