"""From timestamped rows as recorded to rows in time order on one grid; counts every fault of the data.

Timestamps are station time at a fixed offset: no clock change is ever assumed, so that one in the data shows as a
missing hour (a gap) or a repeated one (duplicates) and is counted as such.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from .bins import bin_means, full_bin_means, group_means
from .formats import WIND, time_columns
from .losses import Loss, check_losses
from .panels import series_columns, series_names
from .recordings import Rows, common_offset, lines_of, parse_numbers, parse_offsets, parse_times
from .sentinels import sentinel_values
from .sources import DataError
from .spacing import require_step
from .steps import DAY, FIXED, Step, format_offset, spell
from .streaming import LINE

logger = logging.getLogger(__name__)

_DISORDER = 0.001  # a file with more backward steps than this is not in recording order
_ORIGIN = {"us": 4 * DAY, "mo": 0, "bd": 2}  # numbers from which bins are counted: January, or Monday, 1970-01-05
_COMPARED = 1000  # pairs of rows searched for names of series


@dataclass(frozen=True)
class CleanSeries:
    """Rows in time order, each timestamp once, none closer than `step` to the one before.

    Attributes:
        times: datetime64[us], (rows,); of rows without times, int64, their numbers from 1.
        numbers: int64 (rows,), rising: where each row lies on the grid of `step`, in its units.
        names: of the columns.
        values: float64 (rows, columns), NaN where missing.
        step: from a row to the next.
        lines: of the file, where each row is; the first of those that a row is the mean of.
        report: counts of every fault of the data.
        utc_offset: of the clock that the times are on, seconds east of UTC; None if they were written without one.
    """

    times: np.ndarray
    numbers: np.ndarray
    names: tuple[str, ...]
    values: np.ndarray
    step: Step
    lines: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)
    utc_offset: int | None = None

    def column(self, name: str) -> np.ndarray:
        """Values of one column, (rows,)."""
        return self.values[:, self.names.index(name)]

    def text_of(self, row: int) -> str:
        """The time of a row, ISO 8601."""
        text = str(self.times[row])
        return text if self.utc_offset is None else text + format_offset(self.utc_offset)

    def segments(self, breaks: Sequence[int] = ()) -> np.ndarray:
        """The number of the gap-free run that each row lies in; `breaks` are rows that start a new run as well."""
        new = np.diff(self.numbers, prepend=np.iinfo(np.int64).min // 2) != self.step.count
        new[[row for row in breaks if row < len(new)]] = True
        return np.cumsum(new) - 1

    def times_of(self, numbers: np.ndarray) -> np.ndarray:
        """The times with these numbers, of absent rows too: NaT if the step is `rows`, and rows have times."""
        if self.step.unit != "rows":
            return self.step.times(numbers).astype("datetime64[us]")
        if self.times.dtype == np.int64:
            return numbers
        rows = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[rows] == numbers, self.times[rows], np.datetime64("NaT", "us"))

    def _gap_lengths(self) -> str:
        """Those of the first gaps."""
        steps = np.diff(self.numbers)
        lengths = steps[steps > self.step.count][:10].tolist()
        if self.step.is_fixed:
            return ", ".join(f"{length / FIXED['min']:g}" for length in lengths) + " min"
        return ", ".join(map(self.step.spell, lengths))

    def summary(self) -> str:
        """The faults that were counted, in one line."""
        counts = {
            "empty cells": sum(self.report["empty_cells"].values()),
            "values marked missing": sum(self.report["missing_values"].values()),
            f"rows resampled away ({self.report['native_step']} to {self.step})": self.report["resampled_away"],
            "backward jumps (sorted)": self.report["backward_jumps"],
            "repeated timestamps (rule: data.duplicates)": self.report["duplicates"],
            "rows off the grid (dropped)": self.report["off_grid"],
            "absent rows to be filled (data.missing=ffill)": self.report.get("absent_rows", 0),
            "bins with too few readings (data.min_share)": self.report.get("thin_bins", 0),
            "rows of a last step that is not over (left out)": self.report.get("unfinished", 0),
            'values that may mean "no reading" (kept)': sum(value["count"] for value in self.report["sentinels"]),
            f"gaps of {self._gap_lengths()} (no window crosses one)": len(self.report["gaps"]),
        }
        text = "; ".join(f"{count} {fault}" for fault, count in counts.items() if count)
        return f"{self.report['rows_read']} rows read; {text or 'nothing to mend'}"


def clean(
    frame: pd.DataFrame,
    *,
    time_column: str | Sequence[str] | None,
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
        time_column: where the timestamp is; None if there is none, and rows are in order.
        time_format: how it is written, see `parse_times`; times of one offset from UTC (`%z`)
            stay on that clock, those of several are put on UTC's.
        columns: the numeric columns to keep.
        decimal: what stands before a number's fraction, a point or a comma.
        missing_words: further words for no reading, see `parse_numbers`.
        source: named in errors.
        rules: of `arrange`.

    Raises:
        DataError: an unreadable time or number (with its line), and what `arrange` raises.
    """
    times, offset = np.arange(len(frame)) + 1, None
    if time_column is not None:
        times = parse_times(frame, time_column, time_format, source)
        offset = common_offset(parse_offsets(frame, time_column, time_format, source))
    rows = Rows(times, parse_numbers(frame, columns, source, decimal, missing_words), lines_of(frame), utc_offset=0)
    rows = rows.on_clock(offset)

    others = frame[frame.columns.difference([*time_columns(time_column), *columns, LINE], sort=False)]

    def rows_at(lines: np.ndarray) -> pd.DataFrame:
        return others.set_axis(rows.lines).loc[lines]

    if names := series_columns(others, rows.times if time_column is not None else None, rows.values):
        logger.warning(
            "%s: the values of %s alternate from row to row, or each fills one block of time: if they name several "
            "series, these are read as one, so keep the rows of one series",
            *(source, " and of ".join(names)),
        )

    return arrange(rows, columns=columns, source=source, timed=time_column is not None, rows_at=rows_at, **rules)


def arrange(
    rows: Rows,
    *,
    columns: Sequence[str],
    wind: Mapping[str, str] | None = None,
    missing_values: Sequence[float] = (),
    step: str = "1h",
    resample: str = "sample",
    duplicates: str = "identical",
    round_times: str | None = None,
    min_share: float | None = None,
    bin_offset: str | None = None,
    fill_rows: int = 0,
    allow_loss: bool = True,
    source: str = "the table",
    from_last: bool = False,
    timed: bool = True,
    rows_at: Callable[[np.ndarray], pd.DataFrame] | None = None,
) -> CleanSeries:
    """Parsed rows, in recording order, to rows in time order on one grid.

    Args:
        rows: as parsed.
        columns: names of their values.
        wind: columns of wind `speed` and `direction` (degrees): adds the components `wind_x`, `wind_y`.
        missing_values: numbers that mean "missing".
        step: of the result; a multiple of the recording's own (the median) step. See `Step`.
        resample: `sample` takes the rows that lie whole steps after the first one, or nearest to that; `mean` averages
            bins of `step`, each stamped with its beginning; `rows` takes every k-th row as recorded, whatever its time,
            as published scripts do.
        duplicates: for rows of the same time: `identical` drops those that repeat another and refuses those that
            differ; `first`, `last`, `mean`, or `error`.
        round_times: a duration to whose multiples times are rounded, where clocks are inexact.
        min_share: share of a bin's readings, as many as fit into it at the recorded step, below which its mean is
            missing, column by column; a bin without any mean is a gap. Bins of a fixed length are
            counted from Monday, 1970-01-05, 00:00. None, as in runs of older versions: one reading is enough, and
            those bins begin with the first row, or end with the last if `from_last`.
        bin_offset: a duration added to that Monday's midnight.
        fill_rows: so many rows without a reading are added where a gap begins, for `data.missing=ffill` to fill.
        allow_loss: more than 10% of the rows lost by a rule are a warning, not an error.
        source: named in errors.
        from_last: go back in time from the last row instead: `sample` and `rows` take it and those that lie whole steps
            before it, so that a forecast starts from the latest reading. The bins of `mean` are those of training; the
            last is the last that is over, even if it is missing.
        timed: whether the rows have times; false: `step` is `rows`.
        rows_at: the other columns of the table, of the rows at these lines; for a message.

    Raises:
        DataError: a `step` that does not fit, forbidden duplicates, too many rows lost, or a number that float32 can't
            hold.
    """
    grid = Step.parse("step", step)
    report: dict[str, Any] = {"rows_read": len(rows.times), "resampled_away": 0}
    values = _mark_missing(rows.values, columns, missing_values, report)
    require_float32(values, columns, rows.lines, source)
    report["sentinels"] = _sentinels(values, columns, rows.lines)
    names = tuple(columns)
    if wind is not None:
        speed, angle = values[:, names.index(wind["speed"])], np.deg2rad(values[:, names.index(wind["direction"])])
        values = np.column_stack([values, speed * np.cos(angle), speed * np.sin(angle)])
        names += WIND

    utc_offset = rows.utc_offset
    times = rows.times if round_times is None else _rounded(rows.times, round_times)
    if duplicates == "identical" and (merged := len(np.unique(rows.times)) - len(np.unique(times))):
        raise DataError(
            f"{source}: data.round_times={round_times} gives {merged} rows the time of another one: round to a shorter "
            f"length, or set data.step={round_times} data.resample=mean instead"
        )
    rows = Rows(times, values, rows.lines)
    recorded = rows.times
    losses = [_differing(rows, duplicates, source, rows_at)]
    if not grid.is_fixed:
        rows = _one_per_time(_in_order(rows, report), duplicates, source, report)
        recorded = rows.times
        if timed:
            grid, rows = _number(rows, grid, resample, min_share or 0, from_last, source, report, losses)
    backward = int((np.diff(rows.times) < 0).sum())
    disordered = backward > _DISORDER * len(rows.times)
    if grid.is_fixed:
        every = require_step(rows.times, grid, resample, source, from_last)
    else:
        averaged = "native_step" in report
        every = 1 if averaged else _every(rows.times, grid, source, from_last)
    native = grid.count // every
    report.setdefault("native_step", grid.spell(native))
    if every > 1 and (resample != "rows" or disordered or from_last):
        rows = _one_per_time(_in_order(rows, report), duplicates, source, report)
    if every > 1:
        before = len(rows.times)
        if resample == "mean":
            offset = 0 if bin_offset is None else Step.parse("bin_offset", bin_offset).count
            rows = _means(rows, grid, native, min_share, offset, from_last, report, losses)
        elif from_last:
            rows = _sample(rows, rows.times[-1] - rows.times, grid.count, native, losses)
        elif resample == "sample":
            rows = _sample(rows, rows.times - rows.times[0] + native // 2, grid.count, native, losses)
        else:
            rows = rows.take(slice(0, None, every))
        report["resampled_away"] += before - len(rows.times)
    rows = _one_per_time(_in_order(rows, report), duplicates, source, report)
    kept = _on_grid(-rows.times[::-1], grid.count)[::-1] if from_last else _on_grid(rows.times, grid.count)
    report["off_grid"] = int((~kept).sum())
    fault = f"are off the grid: they come less than data.step={grid} after the one before"
    losses.append((report["off_grid"], len(rows.times), "rows", fault))
    check_losses(losses, allow_loss, source)
    rows = rows.take(kept)
    before = len(rows.times)
    rows = _with_absent(rows, grid.count, fill_rows)
    report["absent_rows"] = len(rows.times) - before

    numbers = rows.times
    if grid.unit == "rows":
        times = recorded[numbers.clip(0)].astype("datetime64[us]") if timed else numbers
    else:
        times = grid.times(numbers).astype("datetime64[us]")
    series = CleanSeries(times, numbers, names, rows.values, grid, rows.lines, report, utc_offset)
    gaps = np.flatnonzero(np.diff(numbers) > grid.count)
    report["gaps"] = [
        {
            "after": series.text_of(int(row)),
            "minutes": (times[row + 1] - times[row]).astype(np.int64) / FIXED["min"],
        }
        for row in gaps
    ]
    report["rows"] = len(rows.times)
    return series


def _rounded(times: np.ndarray, to: str) -> np.ndarray:
    """The times, microseconds, as the nearest multiples of a duration since a midnight, the later one of two."""
    whole = Step.parse("round_times", to).count
    return (times + whole // 2) // whole * whole


def _number(
    rows: Rows,
    step: Step,
    resample: str,
    min_share: float,
    from_last: bool,
    source: str,
    report: dict[str, Any],
    losses: list[Loss],
) -> tuple[Step, Rows]:
    """The rows, in time order, with their numbers on the grid of a calendar step, or of rows, as their times.

    If several lie in one month or business day, they become means over each step with `resample="mean"`.
    """
    if step.unit == "rows":
        return step, Rows(np.arange(len(rows.times)), rows.values, rows.lines)
    whole = step.without_phase(rows.times, rows.lines, source)
    numbers = whole.numbers(rows.times)
    again = np.flatnonzero(np.diff(numbers) == 0)
    if not len(again):
        try:
            whole = step.located(rows.times, rows.lines, source)
        except DataError:
            if resample != "mean":  # means are stamped with the beginning of their month or day
                raise
        return whole, Rows(numbers, rows.values, rows.lines)
    if resample != "mean":
        lines = rows.lines[again[0] : again[0] + 2]
        raise DataError(
            f"{source}, lines {lines[0]} and {lines[1]}: several rows in one {whole.unit_name} ({len(again)} such "
            f"rows), too many for data.step={step}: data.resample=mean averages over each {whole.unit_name}"
        )
    native = int(np.sort(np.diff(rows.times))[(len(numbers) - 1) // 2])
    report["native_step"] = spell(native)
    origin = _ORIGIN[step.unit]

    def begin(bins: np.ndarray) -> np.ndarray:
        return whole.times(origin + bins * step.count)

    of_all = begin if step.unit == "mo" else None  # nothing is recorded on weekends and after hours
    bins = (numbers - origin) // step.count
    bin_rows = full_bin_means(rows, bins, of_all, native, min_share, from_last)
    means = _record(bin_rows, step, bins, from_last, report, losses)
    report["resampled_away"] = len(numbers) - len(means.times)
    return whole, Rows(origin + means.times * step.count, means.values, means.lines)


def _means(
    rows: Rows,
    step: Step,
    native: int,
    min_share: float | None,
    offset: int,
    from_last: bool,
    report: dict[str, Any],
    losses: list[Loss],
) -> Rows:
    """Means over bins of `step`, each stamped with its beginning."""
    edge = rows.times[-1] + native - step.count if from_last else rows.times[0]
    if min_share is None:
        means = bin_means(rows, (rows.times - edge) // step.count)
        return Rows(edge + means.times * step.count, means.values, means.lines)
    origin = edge if step.unit == "rows" else _ORIGIN[step.unit] + offset

    def begin(bins: np.ndarray) -> np.ndarray:
        return origin + bins * step.count

    bins = (rows.times - origin) // step.count
    means = _record(
        full_bin_means(rows, bins, begin, native, min_share, from_last), step, bins, from_last, report, losses
    )
    return Rows(begin(means.times), means.values, means.lines)


def _record(
    found: tuple[Rows, int, tuple[int, int]],
    step: Step,
    bins: np.ndarray,
    from_last: bool,
    report: dict[str, Any],
    losses: list[Loss],
) -> Rows:
    """The means of `full_bin_means` of rows in `bins`, after what they leave out is noted."""
    means, report["thin_bins"], (lost, total) = found
    report["unfinished"] = int((bins > means.times[-1]).sum()) if from_last else 0
    losses.append((lost, total, f"bins of {step}", "have too few readings for a mean (data.min_share)"))
    return means


def _mark_missing(
    values: np.ndarray, columns: Sequence[str], missing_values: Sequence[float], report: dict[str, Any]
) -> np.ndarray:
    """`values` with NaN for `missing_values`, too."""
    marked = np.isin(values, np.asarray(missing_values, dtype=np.float64))
    for key, mask in (("empty_cells", np.isnan(values)), ("missing_values", marked)):
        counts = dict(zip(columns, mask.sum(axis=0).tolist(), strict=True))
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


def _every(numbers: np.ndarray, step: Step, source: str, from_last: bool) -> int:
    """How many recorded steps make one `step`, of rows with rising numbers on its grid."""
    native = max(1, int(np.gcd.reduce(np.diff(numbers)))) if len(numbers) > 1 else 1
    if step.count % native and not from_last:  # a few last rows may lie far apart by chance
        raise DataError(
            f"data.step={step} is not a multiple of the step of {step.spell(native)} between the rows of {source}; "
            f"set data.step to {step.spell(native)} or a multiple of it"
        )
    return max(1, step.count // native)


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
        return group_means(rows, np.concatenate([[True], ~repeats]))
    return rows.take(np.concatenate([~repeats, [True]] if rule == "last" else [[True], ~repeats]))


def _differing(
    rows: Rows,
    rule: str,
    source: str,
    rows_at: Callable[[np.ndarray], pd.DataFrame] | None,
) -> Loss:
    """The rows that repeat a time with other values, of which `first` and `last` drop all but one.

    Raises:
        DataError: there is one, and `rule` is `identical`; it names the columns that may tell several series apart.
    """
    rows = rows.take(np.argsort(rows.times, kind="stable"))
    later = np.flatnonzero(np.diff(rows.times) == 0) + 1
    one, other = rows.values[later - 1], rows.values[later]
    later = later[~((one == other) | (np.isnan(one) & np.isnan(other))).all(axis=1)]
    if rule == "identical" and len(later):
        pairs = rows.lines[[later - 1, later]].T
        time = np.datetime64(int(rows.times[later[0]]), "us").astype("datetime64[s]")
        names = series_names(rows_at(np.unique(pairs[:_COMPARED])), pairs[:_COMPARED]) if rows_at else []
        raise DataError(
            f"{source}: {len(later)} rows have the time of another row but other values, the first, {time}, in lines "
            f"{pairs[0, 0]} and {pairs[0, 1]}. "
            + (
                f"{' or '.join(names)} looks like the name of a series: several in one file can't be read yet, so keep "
                "the rows of one"
                if names
                else "Keep one row of each time in the file (clocks set back repeat an hour)"
            )
            + ", or set data.duplicates to first, last or mean"
        )
    loss = len(later) if rule in ("first", "last") else 0
    return loss, len(rows.times), "rows", f"repeat a time with other values (data.duplicates={rule})"


def _sample(rows: Rows, ages: np.ndarray, step: int, native: int, losses: list[Loss]) -> Rows:
    """The rows that lie whole steps from the one that is taken in any case, or nearest to that.

    `ages` are their microseconds from that one, shifted so that the rows to take have `ages % step < native`.
    """
    taken = ages % step < native
    steps = len(np.unique(ages // step))
    fault = "have readings, but none at the time that data.resample=sample takes: data.resample=mean averages them"
    losses.append((steps - len(np.unique(ages[taken] // step)), steps, "steps", fault))
    return rows.take(taken)


def _sentinels(values: np.ndarray, columns: Sequence[str], lines: np.ndarray) -> list[dict[str, Any]]:
    """The values that may mean "no reading": of which column, how many, where first, and how far from the others."""
    suspects = []
    for name, cells in zip(columns, values.T, strict=True):
        counts = sentinel_values(cells)
        others = cells[~(np.isnan(cells) | np.isin(cells, [*counts]))]
        for value, count in counts.items():
            low, median, high = np.quantile(others, [0.25, 0.5, 0.75])
            far = round(abs(value - median) / (high - low)) if high > low else None
            line = int(lines[(cells == value).argmax()])
            suspects.append({"column": name, "value": value, "count": count, "line": line, "interquartile_ranges": far})
    return suspects


def warn_of_sentinels(report: Mapping[str, Any], source: str, option: str) -> None:
    """Warn of the numbers that look as if they meant "no reading"; `option` is the one that says so."""
    if sentinels := report["sentinels"]:
        texts = []
        for each in sentinels:
            far = each["interquartile_ranges"]
            distance = "" if far is None else f", {far} interquartile ranges from the median"
            texts.append(
                f"{each['value']:.10g} in {each['column']!r} ({each['count']} of them, the first on line "
                f"{each['line']}{distance})"
            )
        logger.warning(
            "%s: far from all other values: %s. If such a number means that there is no reading, add it to %s",
            *(source, "; ".join(texts), option),
        )


def _on_grid(times: np.ndarray, step: int) -> np.ndarray:
    """Walk in time order and keep a row when at least one step has passed since the last one kept."""
    fits = np.ones(len(times), dtype=bool)
    if (np.diff(times) >= step).all():
        return fits
    last = None
    for row, time in enumerate(times.tolist()):
        if last is not None and time - last < step:
            fits[row] = False
        else:
            last = time
    return fits


def _with_absent(rows: Rows, step: int, limit: int) -> Rows:
    """The rows with up to `limit` more, all NaN, where rows are absent that would lie whole steps after the last."""
    absent = np.append(np.clip(np.diff(rows.times) // step - 1, 0, limit), 0)
    if not absent.any():
        return rows
    place = np.repeat(np.arange(len(absent)), absent + 1)
    later = np.arange(len(place)) - np.searchsorted(place, place)  # rows after the last that is there
    values = np.where((later > 0)[:, None], np.nan, rows.values[place])
    return Rows(rows.times[place] + later * step, values, rows.lines[place])
