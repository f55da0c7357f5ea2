"""Recordings: timestamped rows of numbers, parsed from a table that is in memory, or read from one larger than that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from .sources import DataError
from .streaming import LINE, TableStream, warn

CHUNK = 20_000  # rows parsed at once
NO_READING = ("nan", "na", "n/a", "#n/a", "null", "none", "missing", "缺测", "缺失", "无")
"""What stands in a cell without a reading, in lower case, or else signs alone; numbers that mean it are
`missing_values`."""


@dataclass(frozen=True)
class Rows:
    """Recordings: microseconds (rows,), values (rows, columns) with NaN for empty cells, and the line of each."""

    times: np.ndarray
    values: np.ndarray
    lines: np.ndarray

    def take(self, which: Any) -> Rows:
        """The rows that `which` selects."""
        return Rows(self.times[which], self.values[which], self.lines[which])


def read_recordings(
    table: TableStream,
    *,
    time_column: str | None,
    time_format: str,
    columns: Sequence[str],
    decimal: str = ".",
    span: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Rows, bool]:
    """The recordings of a file, in its order, or with a `span` the last in time; and whether these are all of them.

    Args:
        table: the open file.
        time_column: where the time is; None if there is none: the rows' times are then their numbers from 1.
        time_format: how it is written (`strptime`).
        columns: the numeric columns to keep.
        decimal: what stands before a number's fraction, a point or a comma.
        span: microseconds, or rows if there are no times; rows that are older than the newest by as much or more are
            forgotten on the way, so that memory stays flat.
        progress: called after every part.

    Raises:
        DataError: a row with more or fewer fields than the header, an unreadable time, or, among the rows that are
            kept, an unreadable number; with its line. The newest row is ahead of all others by a `span`, as one with
            a wrong date is.
    """
    parts: list[Rows] = []
    latest = np.empty(0, dtype=np.int64)  # the two newest times
    count = 0
    for frame in _frames(table, [*([] if time_column is None else [time_column]), *columns]):
        if time_column is None:
            times = np.arange(count, count + len(frame)) + 1
        else:
            times = parse_times(frame, time_column, time_format, str(table.path))
        latest = np.unique(np.concatenate([latest, times]))[-2:]
        newest = int(latest[-1])
        count += len(times)
        fresh = np.ones(len(times), dtype=bool) if span is None else times > newest - span
        if fresh.any():
            part = frame[fresh]
            parts.append(Rows(times[fresh], parse_numbers(part, columns, str(table.path), decimal), lines_of(part)))
        if span is not None:
            parts = [part.take(part.times > newest - span) for part in parts if part.times.max() > newest - span]
        progress()
    if not parts:
        raise DataError(f"{table.path} is empty: it needs rows behind its header")
    found = Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "values", "lines")))
    if span is not None and len(latest) == 2 and latest[1] - latest[0] >= span:
        time, before = (pd.Timestamp(at, unit="us") for at in latest[::-1].tolist())
        raise DataError(
            f"{table.path}, line {found.lines[0]}: {time} is {time - before} ahead of every other row, too far to "
            "forecast from: correct the row's time or remove it"
        )
    return found, len(found.times) == count


def _frames(table: TableStream, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The columns `names` of a file, and `LINE`, some rows at a time."""
    places: Mapping[str, int] = {name: table.header.index(name) for name in names}
    rows = table.rows()
    while chunk := list(islice(rows, CHUNK)):
        if torn := next((row for row in chunk if not row.whole), None):
            raise DataError(f"{table.path}, line {torn.line}: {torn.note}; correct the row or remove it")
        cells = {name: pd.Series([row.fields[at] for row in chunk], dtype=object) for name, at in places.items()}
        yield pd.DataFrame({**cells, LINE: [row.line for row in chunk]})
    warn(table.path, table.met)


def lines_of(frame: pd.DataFrame) -> np.ndarray:
    """The line of each row; a table made in memory reads like a file of one header line."""
    return frame[LINE].to_numpy() if LINE in frame else np.arange(len(frame)) + 2


def micro(times: np.ndarray) -> np.ndarray:
    """Datetimes as microseconds."""
    return times.astype("datetime64[us]").astype(np.int64)


def parse_times(frame: pd.DataFrame, column: str, time_format: str, source: str) -> np.ndarray:
    """Microseconds (rows,).

    Raises:
        DataError: a time that isn't written as `time_format`, with its line.
    """
    try:
        parsed = pd.to_datetime(frame[column], format=time_format, utc=True, errors="coerce")
    except ValueError as error:
        raise DataError(f"data.time_format={time_format!r} is not a time format: {error}") from None
    bad = np.flatnonzero(parsed.isna())
    if len(bad):
        raise DataError(
            f"{source}, line {lines_of(frame)[bad[0]]}: {frame[column].iloc[bad[0]]!r} in column {column!r} is not a "
            f"time written as {time_format!r} ({len(bad)} such rows); correct it or set data.time_format"
        )
    return micro(parsed.dt.tz_localize(None).to_numpy())


def parse_numbers(frame: pd.DataFrame, columns: Sequence[str], source: str, decimal: str = ".") -> np.ndarray:
    """float64 (rows, columns), NaN for cells that hold one of `NO_READING`, or no letter and no digit (`---`, `?`).

    Thousands are not to be set apart: with a decimal comma, a point is a mistake, and the other way round.

    Raises:
        DataError: a cell that is no number, with its line.
    """
    values = np.empty((len(frame), len(columns)))
    for position, name in enumerate(columns):
        cells = frame[name]
        if decimal != ".":
            words = cells.astype(str)
            cells = words.str.replace(decimal, ".").mask(words.str.contains(".", regex=False), "a point: thousands?")
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        suspects = np.flatnonzero(~np.isfinite(numbers))
        texts = cells.iloc[suspects].astype(str).str.strip()
        empty = (texts.str.lower().isin(NO_READING) | texts.str.fullmatch(r"\W*")).to_numpy(dtype=bool)
        if not empty.all():
            row = suspects[~empty][0]
            cell = frame[name].iloc[row]
            remedy = (
                "set data.decimal=',' for such numbers"
                if decimal == "." and _with_commas(frame[name])
                else "correct it"
            )
            raise DataError(
                f"{source}, line {lines_of(frame)[row]}: {cell!r} in column {name!r} is not a number "
                f"({int((~empty).sum())} such cells); {remedy}, or leave the cell empty if the value is missing"
            )
        values[:, position] = numbers
    return values


def _with_commas(cells: pd.Series) -> bool:
    """Whether a column's numbers have decimal commas: commas that don't set thousands apart, and no points."""
    words = cells.astype(str)
    comma = words.str.fullmatch(r"\s*[-+]?\d+,(\d{1,2}|\d{4,})\s*")
    return bool(comma.any()) and not words.str.contains(".", regex=False).any()
