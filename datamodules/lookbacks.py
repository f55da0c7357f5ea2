"""A clean series as a trained model reads it: lookbacks to forecast from, and the truth behind them. L, H steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .cleaning import CleanSeries
from .steps import format_time
from .windows import HIGH, Climatology, features_of, forward_fill, gather, window_starts

logger = logging.getLogger(__name__)

SHOWN = 3  # times named in a message about many


class Lookbacks:
    """The complete lookbacks of a series, scaled and filled by the facts of the data that a model was trained on.

    Args:
        series: cleaned as in training; see `arrange`.
        facts: of `SeriesDataModule`.

    Attributes:
        origins: the last row of each complete lookback, rising.
    """

    def __init__(self, series: CleanSeries, facts: Mapping[str, Any]) -> None:
        self.series, self.facts = series, facts
        self.lookback, self.horizon = facts["lookback"], facts["horizon"]
        names = [name for name in facts["features"] if name in series.names]
        features = features_of(series, names, facts["calendar"])
        self._target = series.column(facts["target"])
        segments = series.segments()
        known = np.column_stack([features, self._target])
        if facts["missing"] == "ffill":
            known = forward_fill(known, segments, facts["fill_limit"])
        self._missing = np.isnan(known)
        nothing = np.zeros(len(known), dtype=bool)
        lost = np.asarray(self._missing.any(axis=1))
        starts, _ = window_starts(segments, lost, nothing, self.lookback, 0, 1)
        self.origins = starts + self.lookback - 1
        scaled = (known[:, :-1] - np.asarray(facts["feature_mean"])) / np.asarray(facts["feature_std"])
        self._inputs = np.ascontiguousarray(scaled, dtype=np.float32)
        self._history = known[:, -1] - facts.get("target_offset", 0.0)
        target = (self._history - facts["target_mean"]) / facts["target_std"]
        self._warn_of_strange_readings({**dict(zip(names, scaled.T, strict=False)), facts["target"]: target})
        self._climatology = Climatology.from_state(facts["climatology"], series.step)

    def _warn_of_strange_readings(self, columns: Mapping[str, np.ndarray]) -> None:
        """Warn of `columns`, in standard deviations, that lie where no training value did, as another meter's do."""
        for name, values in columns.items():
            if (far := np.flatnonzero(np.abs(values) > HIGH)).size:
                logger.warning(
                    "line %d: %r is %.0f standard deviations from the mean of the training data (%d such rows): the "
                    "model knows nothing like it, and its forecasts from there mean nothing",
                    *(self.series.lines[far[0]], name, abs(values[far[0]]), far.size),
                )

    def times_ahead(self, origins: np.ndarray) -> np.ndarray:
        """The times that are forecast from these rows, as `CleanSeries.times_of` has them (B, H)."""
        return self.series.times_of(self._numbers_ahead(origins))

    def _numbers_ahead(self, origins: np.ndarray) -> np.ndarray:
        return self.series.numbers[origins][:, None] + np.arange(1, self.horizon + 1) * self.series.step.count

    def batch(self, origins: np.ndarray) -> dict[str, torch.Tensor]:
        """Of a batch of `SeriesDataModule` what a forecast needs: `inputs`, `history`, `climatology`, `index`."""
        starts = np.asarray(origins, dtype=np.int64) - self.lookback + 1
        usual = self._climatology.predict(self.times_ahead(origins).reshape(-1)).reshape(-1, self.horizon)
        batch = {
            "inputs": gather(self._inputs, self.lookback, starts),
            "history": gather(self._history, self.lookback, starts),
            "climatology": usual,
            "index": np.asarray(origins, dtype=np.int64),
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def truth(self, origins: np.ndarray) -> np.ndarray:
        """What came, in the target's own unit, float64 (B, H); NaN where the series has no reading at that time."""
        wanted = self._numbers_ahead(origins)
        numbers = self.series.numbers
        rows = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        return np.where(numbers[rows] == wanted, self._target[rows], np.nan)

    def spaced(self, every: int) -> np.ndarray:
        """The complete ones whose origins lie `every` steps apart, counted back from the last row.

        Where a gap has shifted the recording, the latest row within a step before such a time.
        """
        count, numbers = self.series.step.count, self.series.numbers
        return self.origins[(numbers[-1] - numbers[self.origins]) % (every * count) < count]

    def possible(self, every: int) -> int:
        """How many there would be in `spaced(every)` if nothing were missing."""
        count, numbers = self.series.step.count, self.series.numbers
        return (int(numbers[-1] - numbers[0]) - (self.lookback - 1) * count) // (every * count) + 1

    @property
    def wanted(self) -> np.ndarray:
        """The numbers of the last lookback's rows (L,)."""
        return self.series.numbers[-1] - np.arange(self.lookback)[::-1] * self.series.step.count

    def lacking(self) -> str:
        """What the last lookback lacks; empty if it is complete."""
        last = len(self.series.times) - 1
        if len(self.origins) and self.origins[-1] == last:
            return ""
        wanted, offset = self.wanted, self.series.utc_offset
        absent = self.series.times_of(wanted[~np.isin(wanted, self.series.numbers)])
        parts = [f"{len(absent)} of {self.lookback} readings ({_times(absent, offset)})"] if len(absent) else []
        rows = np.flatnonzero(np.isin(self.series.numbers, wanted))
        columns = dict(zip([*self.facts["features"], self.facts["target"]], self._missing[rows].T, strict=True))
        for name, missing in columns.items():
            if missing.any():
                times = _times(self.series.times[rows[missing]], offset)
                parts.append(f"{name!r} in {missing.sum()} of them ({times})")
        end = format_time(self.series.times[-1], offset)
        return (
            f"the lookback of {self.lookback} steps of {self.series.step} up to {end} is incomplete: "
            f"missing {'; '.join(parts)}"
        )


def _times(times: np.ndarray, utc_offset: int | None) -> str:
    shown = ", ".join(format_time(time, utc_offset) for time in times[-SHOWN:])
    return f"… {shown}" if len(times) > SHOWN else shown
