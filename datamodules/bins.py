"""Means over the rows of a bin: a step of a coarser grid, of which too few readings make no mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .recordings import Rows


def group_means(rows: Rows, begins: np.ndarray) -> Rows:
    """Means over the groups that begin where `begins`, of the values that are there."""
    starts = np.flatnonzero(begins)
    there = ~np.isnan(rows.values)
    counts = np.add.reduceat(there.astype(np.int64), starts, axis=0)
    sums = np.add.reduceat(np.where(there, rows.values, 0.0), starts, axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Rows(rows.times[starts], means, rows.lines[starts])


def bin_means(rows: Rows, bins: np.ndarray) -> Rows:
    """Means over rows of the same bin; the times of the result are the numbers of the bins."""
    means = group_means(rows, np.diff(bins, prepend=bins[0] - 1) > 0)
    return Rows(np.unique(bins), means.values, means.lines)


def full_bin_means(
    rows: Rows,
    bins: np.ndarray,
    begin: Callable[[np.ndarray], np.ndarray] | None,
    native: int,
    min_share: float,
    to_last: bool,
) -> tuple[Rows, int, tuple[int, int]]:
    """`bin_means` of bins, and of columns in them, that have at least `min_share` of their readings; others are NaN.

    A bin has as many readings as recorded steps fit into it; a business day, in which nothing may be recorded for
    hours, as many as the median one. Several readings within one recorded step count as one. A bin
    all of whose columns are NaN is left out.

    Args:
        rows: in time order, each time once.
        bins: int64 (rows,), the number of the bin that each row lies in, rising.
        begin: the time at which bins of these numbers begin, microseconds; None if nothing is recorded for a part of
            every bin.
        native: the recorded step, in microseconds.
        min_share: 0 to 1.
        to_last: end with the last bin that is over, even if all its columns are NaN, and without the one that isn't.

    Returns:
        The means, the number of bins with a NaN, and of the bins that have readings how many are left out, and how many
        there are.
    """
    places = (rows.times - rows.times[0] + native // 2) // native
    is_new = np.diff(bins, prepend=bins[0] - 1) > 0
    starts = np.flatnonzero(is_new | (np.diff(places, prepend=-1) > 0))
    there = np.logical_or.reduceat(~np.isnan(rows.values), starts, axis=0)
    first = np.flatnonzero(is_new[starts])
    counts = np.add.reduceat(there.astype(np.int64), first, axis=0)
    means = bin_means(rows, bins)
    numbers = means.times
    if begin is None:
        fit = np.median(counts.max(axis=1))
        is_over = counts[-1].max() >= fit
    else:
        fit = (begin(numbers + 1) - begin(numbers))[:, None] / native
        # The next reading would lie after the bin, give or take a wobble of the clock.
        is_over = rows.times[-1] + native + native // 10 >= begin(numbers[-1:] + 1)[0]
    thin = (counts == 0) | (counts < min_share * fit - 1e-9)
    last = numbers[-1] - (not is_over)
    chosen, filled = ~thin.all(axis=1), (counts > 0).any(axis=1)
    if to_last:
        filled &= numbers <= last  # what comes in a bin that isn't over is not lost
        chosen = (chosen & (numbers <= last)) | (numbers == last)
    lost = int((filled & ~chosen).sum())
    whole_bins = Rows(numbers, np.where(thin, np.nan, means.values), means.lines).take(chosen)
    if to_last and last not in numbers:  # nothing was recorded in it
        empty = np.full((1, rows.values.shape[1]), np.nan)
        values, lines = np.concatenate([whole_bins.values, empty]), np.append(whole_bins.lines, rows.lines[-1])
        whole_bins = Rows(np.append(whole_bins.times, last), values, lines)
    return whole_bins, int(thin.any(axis=1).sum()), (lost, int(filled.sum()))
