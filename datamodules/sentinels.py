"""Sentinel values: numbers such as -200, 999.9 or 9999 that a file writes where there is no reading."""

from __future__ import annotations

import re

import numpy as np

# -1, -9, -99, 99.9, -888, -200 and the ends of whole numbers in C: what files write for "no reading".
_USUAL = re.compile(r"-1|-9(\.9+)?|-?(99+|88+|77+)(\.9+|\.0+)?|-200|-32768|32767|-?2147483647|-2147483648|65535")
_DISTINCT = 5  # other values that a column must have: one of fewer is a code, a switch or a constant
_REPEATS = 3
_FAR, _APART = 3, 8  # ranges of all other values, and times their spacing on that side


def sentinel_values(values: np.ndarray) -> dict[float, int]:
    """The values of one column that look as if they meant "no reading", and how often each occurs.

    Such a value is the column's least or greatest, and far from all others. With d its distance to the nearest other
    value, and r the range of the others:

    - one that files usually write (-99, 999.9, -200 …): d > 3 r; or it occurs three times, and d > r or d is eight
      times the widest spacing between neighbours among the half of the other values that is on its side (the median
      spacing, for the only negative value);
    - any other: d > 3 r, and it occurs three times, yet in less than half of the rows.

    A column of less than five other values has none: it is a code, a switch or a constant with spikes.

    Args:
        values: (rows,), NaN where missing.
    """
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    suspects: dict[float, int] = {}
    while len(distinct) > _DISTINCT:
        end = next((end for end in (0, -1) if _is_sentinel(distinct, counts, end)), None)
        if end is None:
            break
        suspects[float(distinct[end])] = int(counts[end])
        distinct, counts = (np.delete(array, end) for array in (distinct, counts))
    return suspects


def _is_sentinel(distinct: np.ndarray, counts: np.ndarray, end: int) -> bool:
    """Whether the first (`end` 0) or last (-1) of the rising `distinct` values is a sentinel; see above."""
    value, count = distinct[end], counts[end]
    others, weights = (np.delete(array, end) for array in (distinct, counts))
    distance, extent = abs(value - others[end]), others[-1] - others[0]
    if not is_usual(value):
        return distance > _FAR * extent and _REPEATS <= count < counts.sum() / 2
    if count < _REPEATS:
        return distance > _FAR * extent
    middle = np.searchsorted(np.cumsum(weights), weights.sum() / 2)
    near = others[: max(middle + 1, _DISTINCT)] if end == 0 else others[min(middle, len(others) - _DISTINCT) :]
    spacing = np.median(np.diff(near)) if value < 0 <= others[0] else np.diff(near).max()
    return distance > extent or distance > _APART * spacing


def is_usual(value: float) -> bool:
    """Whether files usually write `value` for "no reading"."""
    return abs(value) >= 1e20 or _USUAL.fullmatch(f"{value:.10g}") is not None
