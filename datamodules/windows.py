"""Clean rows to windows: features, climatology, and batches gathered in one go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .cleaning import CleanSeries
from .steps import Step

CALENDAR = ("sin_day", "cos_day", "sin_year", "cos_year")
HOUR = Step.parse("step", "1h")
YEAR = 365.2425  # days
HIGH = 1000  # standard deviations from 0: float32 would round a value so large to some 1/20,000 of a deviation


class WindowDataset(Dataset[dict[str, torch.Tensor]]):
    """Windows over shared tables of rows; `dataset[positions]` is a whole batch, gathered in one go.

    Args:
        inputs: float32 (rows, F), scaled.
        history, targets, climatology: float64 (rows,), less the target's offset.
        starts: first row of each window.
        lookback, horizon: rows of input and of target.
        times: of the rows, see `CleanSeries`.
        clock: int64 (rows,), steps since the first row.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        history: np.ndarray,
        targets: np.ndarray,
        climatology: np.ndarray,
        starts: np.ndarray,
        lookback: int,
        horizon: int,
        times: np.ndarray,
        clock: np.ndarray,
    ) -> None:
        self.inputs, self.history, self.targets, self.climatology = inputs, history, targets, climatology
        self.starts = starts
        self.lookback, self.horizon, self.times, self.clock = lookback, horizon, times, clock

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        index = np.asarray(positions, dtype=np.int64)
        past = self.starts[index]
        future = past + self.lookback
        batch = {
            "inputs": gather(self.inputs, self.lookback, past),
            "targets": gather(self.targets, self.horizon, future),
            "history": gather(self.history, self.lookback, past),
            "climatology": gather(self.climatology, self.horizon, future),
            "origin": self.clock[future - 1],
            "index": index,
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}


def calendar_of(step: Step) -> tuple[str, ...]:
    """The features of the calendar: none of the day where a step is a day or a month, none at all of rows and years."""
    if step.is_fixed:
        return CALENDAR
    return () if step.unit == "rows" or (step.unit == "mo" and step.count % 12 == 0) else CALENDAR[2:]


def features_of(series: CleanSeries, features: Sequence[str], calendar: bool) -> np.ndarray:
    """The columns `features`, then (with `calendar`) sine and cosine of the day and the year: float64 (rows, F)."""
    columns = series.values[:, [series.names.index(name) for name in features]]
    names = calendar_of(series.step) if calendar else ()
    if not names:
        return columns
    day, year = _phases(series.times, series.step)
    waves: dict[str, np.ndarray] = dict(
        zip(CALENDAR, (np.sin(day), np.cos(day), np.sin(year), np.cos(year)), strict=True)
    )
    return np.column_stack([columns, *(waves[name] for name in names)])


def offset_of(mean: float, std: float) -> float:
    """A round number near the mean of a series that varies little around a large value, 0 of any other.

    Subtracted in float64, it leaves float32 the digits in which the series varies.
    """
    return round(mean, -math.floor(math.log10(std))) if abs(mean) > HIGH * std else 0.0


def forward_fill(values: np.ndarray, segments: np.ndarray, limit: int) -> np.ndarray:
    """Missing values (rows, columns) as the last one seen of the same segment, at most `limit` rows old."""
    rows = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, rows), axis=0)
    usable = (last >= 0) & (rows - last <= limit) & (segments[np.maximum(last, 0)] == segments[:, None])
    return np.where(usable, np.take_along_axis(values, np.maximum(last, 0), axis=0), values)


def window_starts(
    segments: np.ndarray,
    inputs_missing: np.ndarray,
    target_missing: np.ndarray,
    lookback: int,
    horizon: int,
    stride: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """First rows of the windows of `lookback + horizon` rows that stay in one segment and have nothing missing.

    `inputs_missing` forbids a row as input, `target_missing` as target, each bool (rows,). With a `stride`, every
    stride-th window of a segment is a candidate. Returns the starts and the candidates lost, by cause; those that a
    missing target alone would have cost are counted as `dropped_target`, too.
    """
    positions = len(segments) - lookback - horizon + 1
    if positions <= 0:
        return np.empty(0, np.int64), {"dropped_across_gap": 0, "dropped_missing": 0, "dropped_target": 0}
    starts = np.arange(positions)
    whole = segments[:positions] == segments[lookback + horizon - 1 :]
    phase = starts - np.searchsorted(segments, segments[:positions])
    candidate = phase % stride == 0
    starts = starts[whole & candidate]
    bad_inputs, bad_targets = (np.concatenate([[0], np.cumsum(bad)]) for bad in (inputs_missing, target_missing))
    middle = starts + lookback
    known = bad_targets[middle + horizon] == bad_targets[middle]
    good = (bad_inputs[middle] == bad_inputs[starts]) & known
    lost = {"dropped_across_gap": ~whole & candidate, "dropped_missing": ~good, "dropped_target": ~known}
    return starts[good], {cause: int(windows.sum()) for cause, windows in lost.items()}


@dataclass(frozen=True)
class Climatology:
    """What is usual at this time of the year and of the day: a harmonic fit, products included.

    `value(t) = Σ_ij C_ij a_i(t) d_j(t)`, where `a` is `1, cos, sin, cos 2·, sin 2·` of the year's phase and `d` the
    same of the day's; `coefficients` is C, (annual terms, daily terms); `step`, that of the series.
    """

    coefficients: np.ndarray
    step: Step = HOUR

    @classmethod
    def fit(cls, times: np.ndarray, values: np.ndarray, step: Step = HOUR) -> Climatology:
        """Least squares on the rows whose value is not NaN.

        What the rows cannot tell apart from a trend is left out: the annual terms when they span less than a year,
        the daily terms when less than two days; and what their step doesn't know, as a day has no daily terms.
        """
        seen = ~np.isnan(values)
        times, values = times[seen], values[seen]
        names = calendar_of(step)
        days = (times.max() - times.min()) / np.timedelta64(1, "D") if len(times) and names else 0.0
        annual = 2 if days > 0.98 * YEAR and "sin_year" in names else 0
        daily = 2 if days >= 2 and "sin_day" in names else 0
        basis = _products(times, step, annual, daily).reshape(len(times), -1)
        solution = np.linalg.lstsq(basis, values, rcond=1e-8)[0]
        return cls(solution.reshape(2 * annual + 1, 2 * daily + 1), step)

    def predict(self, times: Any) -> np.ndarray:
        """The usual value at each of `times`, as a `CleanSeries` has them; float64, as it was fitted."""
        times = np.asarray(times)
        annual, daily = (size // 2 for size in self.coefficients.shape)
        return np.einsum("tad,ad->t", _products(times, self.step, annual, daily), self.coefficients)

    def state(self) -> dict[str, Any]:
        """Plain numbers from which `from_state` rebuilds this."""
        return {"coefficients": self.coefficients.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], step: Step = HOUR) -> Climatology:
        """The inverse of `state`."""
        return cls(np.asarray(state["coefficients"], dtype=np.float64), step)


def _phases(times: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Angles of the day and of the year, radians, each (rows,); those of months are a twelfth of a circle apart."""
    if not calendar_of(step):
        return np.zeros(len(times)), np.zeros(len(times))
    days = (times - np.datetime64(0, "D")) / np.timedelta64(1, "D")
    if step.unit == "mo":
        return np.zeros(len(times)), 2 * np.pi * (times.astype("datetime64[M]").astype(np.int64) % 12 / 12)
    return 2 * np.pi * (days % 1.0), 2 * np.pi * (days / YEAR % 1.0)


def _products(times: np.ndarray, step: Step, annual: int, daily: int) -> np.ndarray:
    """The basis of `Climatology`: (rows, 2 annual + 1, 2 daily + 1)."""
    day, year = _phases(times, step)
    return np.einsum("ta,td->tad", _harmonics(year, annual), _harmonics(day, daily))


def _harmonics(phase: np.ndarray, count: int) -> np.ndarray:
    terms = [wave(order * phase) for order in range(1, count + 1) for wave in (np.cos, np.sin)]
    return np.column_stack([np.ones_like(phase), *terms])


def gather(table: np.ndarray, length: int, starts: np.ndarray) -> np.ndarray:
    """`table[start : start + length]` for each of `starts`: (len(starts), length, …), copied."""
    table = np.ascontiguousarray(table)
    width = table[0].size
    # A view whose row i is that of rows i … i + length - 1 laid end to end, so that each run is one contiguous copy.
    view = np.lib.stride_tricks.sliding_window_view(table.reshape(-1), length * width)[::width]
    return view[starts].reshape(len(starts), length, *table.shape[1:])
