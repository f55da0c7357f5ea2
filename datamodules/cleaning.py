"""Timestamped rows as recorded to rows in time order on one grid, with every trap on the way counted.

Timestamps are station time at a fixed offset: no clock change is ever assumed, so that one in the data shows as a
missing hour (a gap) or a repeated one (duplicates) and is counted as such.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .formats import WIND
from .recordings import Rows, lines_of, micro, parse_numbers, parse_times
from .sources import DataError

_MICROSECONDS = {"w": 604_800_000_000, "d": 86_400_000_000, "h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000}
_DISORDER = 0.001  # a file with more backward steps than this is not in recording order


def duration(key: str, value: Any) -> int:
    """The microseconds of a duration such as `5d`, `48h`, `10min` or `1d12h`; `key` names the setting in errors."""
    text = str(value).strip().lower()
    pieces = re.findall(r"(\d+(?:\.\d+)?)\s*(w|d|h|min|s)\s*", text)
    total = round(sum(float(number) * _MICROSECONDS[unit] for number, unit in pieces))
    if "".join(text.split()) != "".join(number + unit for number, unit in pieces) or total <= 0:
        raise DataError(f"data.{key}={value!r} is not a duration: write 5d, 48h, 10min or 1d12h")
    return total


def instant(
    key: str, value: Any, *, before: np.datetime64 | None = None, after: np.datetime64 | None = None
) -> np.datetime64:
    """A date or date and time, datetime64[us]; `key` names the setting in errors.

    With `before` or `after`, it may also be a duration before or behind that time, in `1y` a calendar year.
    """
    origin = before if after is None else after
    if origin is not None and re.fullmatch(r"\s*([\d.]+\s*[a-z]+\s*)+", str(value).lower()):
        years = re.fullmatch(r"\s*(\d+)\s*y\s*", str(value).lower())
        try:
            length = pd.DateOffset(years=int(years[1])) if years else pd.Timedelta(duration(key, value), unit="us")
            shifted = pd.Timestamp(origin) - length if after is None else pd.Timestamp(origin) + length
            if not 0 < shifted.year < 10000:
                raise OverflowError
        except DataError as error:
            raise DataError(f"{error}, or 1y for a calendar year") from error
        except (ValueError, OverflowError) as error:
            raise DataError(f"data.{key}={value!r} leads out of the calendar") from error
        return shifted.to_datetime64().astype("datetime64[us]")
    try:
        date = pd.Timestamp(str(value))
    except ValueError:
        date = pd.NaT
    if not isinstance(date, pd.Timestamp) or date.tz is not None:
        raise DataError(f"data.{key}={value!r} is not a date: write 2015-01-01, without a time zone")
    return date.to_datetime64().astype("datetime64[us]")


def spell(microseconds: int) -> str:
    """`3600000000` as `1h`: a duration in its largest whole unit."""
    for unit in ("d", "h", "min", "s"):
        if microseconds % _MICROSECONDS[unit] == 0:
            return f"{microseconds // _MICROSECONDS[unit]}{unit}"
    return f"{microseconds / _MICROSECONDS['s']:g}s"


@dataclass(frozen=True)
class CleanSeries:
    """Rows in time order, each timestamp once, none closer than `step` to the one before.

    Attributes:
        times: datetime64[us], (rows,).
        names: of the columns.
        values: float64 (rows, columns), NaN where missing.
        step: in microseconds.
        lines: of the file, where each row is; the first of those that a row is the mean of.
        report: every trap met on the way, counted.
    """

    times: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    step: int
    lines: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        """Values of one column, (rows,)."""
        return self.values[:, self.names.index(name)]

    def segments(self, breaks: Sequence[int] = ()) -> np.ndarray:
        """The number of the gap-free run that each row lies in; `breaks` are rows that start a new run as well."""
        new = np.diff(micro(self.times), prepend=np.iinfo(np.int64).min // 2) != self.step
        new[[row for row in breaks if row < len(new)]] = True
        return np.cumsum(new) - 1

    def summary(self) -> str:
        """The traps that were met, in one line."""
        traps = {
            "empty cells": sum(self.report["empty_cells"].values()),
            "values marked missing": sum(self.report["missing_values"].values()),
            f"rows resampled away ({self.report['native_step']} to {spell(self.step)})": self.report["resampled_away"],
            "backward jumps (sorted)": self.report["backward_jumps"],
            "repeated timestamps (rule: data.duplicates)": self.report["duplicates"],
            "rows off the grid (dropped)": self.report["off_grid"],
            f"gaps of {', '.join(format(gap['minutes'], 'g') for gap in self.report['gaps'][:10])} min (no window "
            "crosses one)": len(self.report["gaps"]),
        }
        met = "; ".join(f"{count} {trap}" for trap, count in traps.items() if count)
        return f"{self.report['rows_read']} rows read; {met or 'nothing to mend'}"


def clean(
    frame: pd.DataFrame,
    *,
    time_column: str | Sequence[str],
    time_format: str,
    columns: Sequence[str],
    decimal: str = ".",
    missing_words: Collection[str] = (),
    source: str = "the table",
    **rules: Any,
) -> CleanSeries:
    """Parse, mark missing values, resample, sort, resolve duplicates, drop rows off the grid; count all of it.

    Args:
        frame: one row per recording, in recording order, as `read_table` returns it.
        time_column: where the timestamp is.
        time_format: how it is written, see `parse_times`; a zone in it (`%z`) is converted to UTC.
        columns: the numeric columns to keep.
        decimal: what stands before a number's fraction, a point or a comma.
        missing_words: further words for no reading, see `parse_numbers`.
        source: named in errors.
        rules: of `arrange`.

    Raises:
        DataError: an unreadable time or number (with its line), and what `arrange` raises.
    """
    times = parse_times(frame, time_column, time_format, source)
    rows = Rows(times, parse_numbers(frame, columns, source, decimal, missing_words), lines_of(frame))
    return arrange(rows, columns=columns, source=source, **rules)


def arrange(
    rows: Rows,
    *,
    columns: Sequence[str],
    wind: Mapping[str, str] | None = None,
    missing_values: Sequence[float] = (),
    step: str = "1h",
    resample: str = "sample",
    duplicates: str = "first",
    source: str = "the table",
    from_last: bool = False,
) -> CleanSeries:
    """Parsed rows, in recording order, to rows in time order on one grid.

    Args:
        rows: as parsed.
        columns: names of their values.
        wind: columns of wind `speed` and `direction` (degrees): adds the components `wind_x`, `wind_y`.
        missing_values: numbers that mean "missing".
        step: of the result; a multiple of the recording's own (the median) step.
        resample: `sample` takes the rows that lie whole steps behind the first one, or nearest to that; `mean` averages
            bins of `step` from the first timestamp, each stamped with its beginning; `rows` takes every k-th row as
            recorded, whatever its time, as published scripts do.
        duplicates: `first`, `last`, `mean` or `error` for rows of the same timestamp.
        source: named in errors.
        from_last: go back in time from the last row instead: `sample` and `rows` take it and those that lie whole steps
            before it, and the last bin of `mean` ends with it, so that a forecast starts from the latest reading.

    Raises:
        DataError: a `step` that does not fit, forbidden duplicates, or a number that float32 can't hold.
    """
    step_us = duration("step", step)
    report: dict[str, Any] = {"rows_read": len(rows.times), "resampled_away": 0}
    values = _mark_missing(rows.values, columns, missing_values, report)
    require_float32(values, columns, rows.lines, source)
    names = tuple(columns)
    if wind is not None:
        speed, angle = values[:, names.index(wind["speed"])], np.deg2rad(values[:, names.index(wind["direction"])])
        values = np.column_stack([values, speed * np.cos(angle), speed * np.sin(angle)])
        names += WIND

    times = rows.times
    rows = Rows(times, values, rows.lines)
    backward = int((np.diff(times) < 0).sum())
    disordered = backward > _DISORDER * len(times)
    every = _every(np.sort(times) if disordered else times, step_us, source)
    report["native_step"] = spell(step_us // every)
    if every > 1 and (resample != "rows" or disordered or from_last):
        rows = _one_per_time(_in_order(rows, report), duplicates, source, report)
    if every > 1:
        before = len(rows.times)
        native = step_us // every
        if resample == "mean":
            rows = _bin_means(rows, step_us, native if from_last else None)
        elif from_last:
            rows = rows.take(_back_from_last(rows.times, step_us, native))
        elif resample == "sample":
            rows = rows.take((rows.times - rows.times[0] + native // 2) % step_us < native)
        else:
            rows = rows.take(slice(0, None, every))
        report["resampled_away"] = before - len(rows.times)
    rows = _one_per_time(_in_order(rows, report), duplicates, source, report)
    kept = _on_grid(-rows.times[::-1], step_us)[::-1] if from_last else _on_grid(rows.times, step_us)
    report["off_grid"] = int((~kept).sum())
    rows = rows.take(kept)

    gaps = np.flatnonzero(np.diff(rows.times) > step_us)
    series = CleanSeries(rows.times.astype("datetime64[us]"), names, rows.values, step_us, rows.lines, report)
    report["gaps"] = [
        {"after": str(series.times[row]), "minutes": (rows.times[row + 1] - rows.times[row]) / _MICROSECONDS["min"]}
        for row in gaps
    ]
    report["rows"] = len(rows.times)
    return series


def _mark_missing(
    values: np.ndarray, columns: Sequence[str], missing_values: Sequence[float], report: dict[str, Any]
) -> np.ndarray:
    """`values` with NaN for `missing_values`, too."""
    marked = np.isin(values, np.asarray(missing_values, dtype=np.float64))
    for key, found in (("empty_cells", np.isnan(values)), ("missing_values", marked)):
        counts = dict(zip(columns, found.sum(axis=0).tolist(), strict=True))
        report[key] = {name: count for name, count in counts.items() if count}
    return np.where(marked, np.nan, values)


def require_float32(
    values: np.ndarray, columns: Sequence[str], lines: np.ndarray, source: str, scale: Any = 1.0
) -> None:
    """Raise a DataError with the line of the first of `values` that, divided by `scale`, is infinite in float32."""
    large = np.abs(values / scale) > np.finfo(np.float32).max
    if large.any():
        row, column = np.argwhere(large)[0]
        raise DataError(
            f"{source}, line {lines[row]}: {values[row, column]:g} in column {columns[column]!r} is too large to "
            f"compute with ({int(large.sum())} such cells); correct it, leave the cell empty if the value is missing, "
            "or set data.missing_values to name it"
        )


def _every(times: np.ndarray, step: int, source: str) -> int:
    """How many recorded steps make one `step`."""
    steps = np.sort(np.diff(times))
    steps = steps[steps > 0]
    if not len(steps):
        return 1
    native = int(steps[len(steps) // 2])  # the median, but always a step that occurs
    if step % native:
        raise DataError(
            f"data.step={spell(step)} is not a multiple of the step of {spell(native)} between the rows of {source}; "
            f"set data.step to {spell(native)} or a multiple of it"
        )
    return step // native


def _in_order(rows: Rows, report: dict[str, Any]) -> Rows:
    jumps = np.diff(rows.times)
    report["backward_jumps"] = report.get("backward_jumps", 0) + int((jumps < 0).sum())
    return rows.take(np.argsort(rows.times, kind="stable")) if (jumps < 0).any() else rows


def _one_per_time(rows: Rows, rule: str, source: str, report: dict[str, Any]) -> Rows:
    """Resolve rows of the same time; `rows` are in order, and recorded order among equals."""
    repeats = np.diff(rows.times) == 0
    report["duplicates"] = report.get("duplicates", 0) + int(repeats.sum())
    if not repeats.any():
        return rows
    if rule == "error":
        first = int(np.flatnonzero(repeats)[0])
        lines = rows.lines[first : first + 2].tolist()
        time = np.datetime64(int(rows.times[first]), "us")
        raise DataError(
            f"{source}: {int(repeats.sum())} repeated timestamps, the first, {time}, in "
            f"lines {lines[0]} and {lines[1]}; remove them or set data.duplicates to first, last or mean"
        )
    if rule == "mean":
        return _group_means(rows, np.concatenate([[True], ~repeats]))
    return rows.take(np.concatenate([[True], ~repeats] if rule == "first" else [~repeats, [True]]))


def _back_from_last(times: np.ndarray, step: int, native: int) -> np.ndarray:
    """Which of the rising times lie whole steps before the last; where the recording is shifted, the latest before."""
    return (times[-1] - times) % step < native


def _bin_means(rows: Rows, step: int, native: int | None) -> Rows:
    """Means over bins of `step`, each stamped with its beginning.

    They begin with the first timestamp; or, given the `native` step, the last one ends with the last.
    """
    origin = rows.times[0] if native is None else rows.times[-1] + native - step
    bins = (rows.times - origin) // step
    means = _group_means(rows, np.diff(bins, prepend=bins[0] - 1) > 0)
    return Rows(origin + np.unique(bins) * step, means.values, means.lines)


def _group_means(rows: Rows, begins: np.ndarray) -> Rows:
    """Means over the groups that begin where `begins`, of the values that are there."""
    starts = np.flatnonzero(begins)
    there = ~np.isnan(rows.values)
    counts = np.add.reduceat(there.astype(np.int64), starts, axis=0)
    sums = np.add.reduceat(np.where(there, rows.values, 0.0), starts, axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Rows(rows.times[starts], means, rows.lines[starts])


def _on_grid(times: np.ndarray, step: int) -> np.ndarray:
    """Walk in time order and keep a row when at least one step has passed since the last one kept."""
    kept = np.ones(len(times), dtype=bool)
    if (np.diff(times) >= step).all():
        return kept
    last = None
    for row, time in enumerate(times.tolist()):
        if last is not None and time - last < step:
            kept[row] = False
        else:
            last = time
    return kept
