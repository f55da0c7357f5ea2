"""Recordings: timestamped rows of numbers, parsed from a table that is in memory, or read from one larger than that."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from .formats import time_columns
from .sources import DataError
from .streaming import LINE, TableStream, warn, without_blank_end

EXACT = 2.0**53  # up to here float64 holds every whole number
LONGEST = 1e20  # no count or key of 64 bits is as long
CHUNK = 20_000  # rows parsed at once
EPOCHS = {"epoch_s": 1, "epoch_ms": 10**3, "epoch_us": 10**6, "epoch_ns": 10**9}  # units of a second
ISO = {"iso8601": "ISO8601"}  # our name of the format, and pandas'
INTERVAL = re.compile(r"(.+?)([^%]+?)\1", re.DOTALL)  # the format of two times: one, a separator, and the same again
OFFSET = r"(Z|[+-]\d\d(?::?\d\d){0,2})$"  # from UTC
ISO_OFFSET = r"[T ]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?\s*" + OFFSET
CLOCK = ("now", "today")  # which pandas reads as the time of its clock
TRIED = 1000  # times tried one by one before the format is taken for a wrong one
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_800_000_000  # microseconds from 1970 to the years 1 and 10000
NO_READING = ("nan", "na", "n/a", "#n/a", "null", "none", "missing", "缺测", "缺失", "无")
"""What stands in a cell without a reading, in lower case, or else signs alone; numbers that mean it are
`missing_values`."""
WIDE = str.maketrans("０１２３４５６７８９．＋－\N{MINUS SIGN}", "0123456789.+--")
"""Digits and signs that are no ASCII, and those that they stand for."""


@dataclass(frozen=True)
class Rows:
    """Recordings: microseconds (rows,), values (rows, columns) with NaN for empty cells, and the line of each.

    `utc_offset` is that of the clock that the times are on, in seconds east of UTC; None if they have none.
    """

    times: np.ndarray
    values: np.ndarray
    lines: np.ndarray
    utc_offset: int | None = None

    def take(self, which: Any) -> Rows:
        """The rows that `which` selects."""
        return Rows(self.times[which], self.values[which], self.lines[which], self.utc_offset)

    def on_clock(self, utc_offset: int | None) -> Rows:
        """The rows with their times on another clock; those of a clock without an offset stay as they are."""
        shift = 0 if self.utc_offset is None or utc_offset is None else 1_000_000 * (utc_offset - self.utc_offset)
        return Rows(self.times + shift, self.values, self.lines, utc_offset)


def read_recordings(
    table: TableStream,
    *,
    time_column: str | Sequence[str] | None,
    time_format: str,
    columns: Sequence[str],
    decimal: str = ".",
    missing_words: Collection[str] = (),
    span: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Rows, bool]:
    """The recordings of a file, in its order, or with a `span` the last in time; and whether these are all of them.

    Args:
        table: the open file.
        time_column: where the time is; None if there is none: the rows' times are then their numbers from 1.
        time_format: how it is written, see `parse_times`.
        columns: the numeric columns to keep.
        decimal: what stands before a number's fraction, a point or a comma.
        missing_words: further words for no reading, see `parse_numbers`.
        span: microseconds, or rows if there are no times; rows that are older than the newest by as much or more are
            forgotten on the way, so that memory stays flat.
        progress: called after every part.

    Raises:
        DataError: a row with more or fewer fields than the header, an unreadable time, or, in a row within `span` of
            the newest so far, an unreadable number; with its line. The newest row is a `span` or more after all others.
    """
    parts: list[Rows] = []
    latest = np.empty(0, dtype=np.int64)  # the two newest times
    offsets: set[int | None] = set()
    count = 0
    for frame in _frames(table, [*time_columns(time_column), *columns]):
        if time_column is None:
            times = np.arange(count, count + len(frame)) + 1
        else:
            times = parse_times(frame, time_column, time_format, str(table.path))
            offsets |= parse_offsets(frame, time_column, time_format, str(table.path), offsets)
        latest = np.unique(np.concatenate([latest, times]))[-2:]
        newest = int(latest[-1])
        count += len(times)
        fresh = np.ones(len(times), dtype=bool) if span is None else times > newest - span
        if fresh.any():
            part = frame[fresh]
            numbers = parse_numbers(part, columns, str(table.path), decimal, missing_words)
            parts.append(Rows(times[fresh], numbers, lines_of(part)))
        if span is not None:
            parts = [part.take(part.times > newest - span) for part in parts if part.times.max() > newest - span]
        progress()
    if not parts:
        raise DataError(f"{table.path} is empty: it needs rows after its header")
    times, values, lines = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "values", "lines")
    )
    rows = Rows(times, values, lines, utc_offset=0).on_clock(common_offset(offsets))
    if span is not None and len(latest) == 2 and latest[1] - latest[0] >= span:
        time, before = (pd.Timestamp(at, unit="us") for at in latest[::-1].tolist())
        raise DataError(
            f"{table.path}, line {rows.lines[0]}: {time} is {time - before} ahead of every other row, too far to "
            "forecast from: correct the row's time or remove it"
        )
    return rows, len(rows.times) == count


def _frames(table: TableStream, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The columns `names` of a file, and `LINE`, some rows at a time."""
    places: Mapping[str, int] = {name: table.header.index(name) for name in names}
    rows = without_blank_end(table.rows(), table.met, lambda row: row.fields)
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


def parse_times(frame: pd.DataFrame, column: str | Sequence[str], time_format: str, source: str) -> np.ndarray:
    """Microseconds (rows,).

    `24:00` is 00:00 of the next day. A format that holds the same format twice, such as `%H:%M - %H:%M`, is that of an
    interval, which stands for its beginning.

    Args:
        frame: of text.
        column: where the time is; the cells of several columns are joined by blanks.
        time_format: `strptime`'s, `iso8601` (with and without fractions of a second), or `epoch_s`,
            `epoch_ms`, `epoch_us`, `epoch_ns`: counts since 1970, floored to microseconds.
        source: named in errors.

    Raises:
        DataError: a time that isn't written as `time_format`, with its line; or the format has `%Z`.
    """
    cells, begins, begin_format = _begins(frame, column, time_format)
    read = _epoch_times if begin_format in EPOCHS else _written_times
    times, bad = read(begins, begin_format)
    if bad.any():
        row = int(bad.argmax())
        names = " + ".join(map(repr, time_columns(column)))
        is_units = row == 0 and bad.sum() == 1 < len(bad)
        units = "; data.skip_after_header=1 leaves out a row of units" if is_units else ""
        raise DataError(
            f"{source}, line {lines_of(frame)[row]}: {cells.iloc[row]!r} in column {names} is not a time "
            f"written as {time_format!r} ({int(bad.sum())} such rows); correct it or set data.time_format"
            + (_other_format(cells.iloc[row], time_format) or units)
        )
    return times


def parse_offsets(
    frame: pd.DataFrame,
    column: str | Sequence[str],
    time_format: str,
    source: str,
    known: Collection[int | None] = (),
) -> set[int | None]:
    """All offsets of times from UTC, seconds to the east; of times without one, None.

    Args:
        frame: see `parse_times`, as the next three.
        column: where the time is.
        time_format: how it is written.
        source: named in errors.
        known: those of rows before these.

    Raises:
        DataError: some times have an offset and others have none, with the line of the first that differs; or the
            format has `%Z`.
    """
    _, cells, time_format = _begins(frame, column, time_format)
    if time_format in EPOCHS:
        return {0}
    if time_format in ISO:
        texts = cells.str.extract(ISO_OFFSET)[0]
    elif "%z" not in time_format:
        return {None}
    elif time_format.endswith("%z"):
        texts = cells.str.extract(OFFSET)[0]
    else:  # within the time, which makes this slow
        texts = pd.Series([datetime.strptime(cell, time_format).strftime("%z") for cell in cells.to_list()])
    has_none = texts.isna().to_numpy(dtype=bool)
    first_has_none = None in known if known else has_none[0]
    if (differs := has_none != first_has_none).any():
        row = int(differs.argmax())
        raise DataError(
            f"{source}, line {lines_of(frame)[row]}: {cells.iloc[row]!r} has {'no' if has_none[row] else 'an'} offset "
            f"from UTC, unlike the rows before it ({int(differs.sum())} such rows): give all times one, or none"
        )
    return {None if pd.isna(text) else _seconds(text) for text in texts.unique()}


def common_offset(offsets: Collection[int | None]) -> int | None:
    """The common one: the only one there is, if in whole minutes (None: none); else 0, that of UTC."""
    (offset, *others) = offsets or {None}
    return 0 if others or (offset is not None and offset % 60) else offset


def _seconds(offset: str) -> int:
    digits = [*map(int, re.findall(r"\d\d", offset))]
    return (-1 if offset[0] == "-" else 1) * sum(
        part * 60**power for part, power in zip(digits, (2, 1, 0), strict=False)
    )


def _begins(frame: pd.DataFrame, column: str | Sequence[str], time_format: str) -> tuple[pd.Series, pd.Series, str]:
    """The cells of times, and what in them is a time or, of an interval, its beginning, with the format of that."""
    if "%Z" in re.findall("%.", time_format):
        raise DataError(
            f"data.time_format={time_format!r} has %Z, the name of a time zone, which several may share: write offsets "
            "such as +0100 in the file and %z here, or remove the name from both"
        )
    names = time_columns(column)
    cells = frame[names[0]].str.strip()
    for name in names[1:]:
        cells = cells + " " + frame[name].str.strip()
    if interval := INTERVAL.fullmatch(time_format):
        return cells, _interval_begins(cells, *interval.groups()), interval[1]
    return cells, cells, time_format


def _interval_begins(cells: pd.Series, begin: str, separator: str) -> pd.Series:
    """What stands before the separator of two times, which may occur within a time as well."""
    within = begin.count(separator)
    parts = cells.str.split(separator, regex=False)
    whole = parts.map(len) == 2 * within + 2
    return parts.str[: within + 1].str.join(separator).where(whole, "")


def _written_times(cells: pd.Series, time_format: str) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds, and which cells are no time, of times written for people."""
    try:
        parsed = pd.to_datetime(cells, format=ISO.get(time_format, time_format), utc=True, errors="coerce")
    except ValueError as error:
        raise DataError(f"data.time_format={time_format!r} is not a time format: {error}") from None
    bad = np.array(parsed.isna() | cells.isin(CLOCK))
    times = np.array(micro(parsed.dt.tz_localize(None).to_numpy()))
    bad |= times < EARLIEST  # a minus before the year
    for tried, row in enumerate(np.flatnonzero(bad).tolist()):
        if tried == TRIED and bad[:row].sum() == TRIED:
            break  # the format is another one
        if (time := _unusual_time(cells.iloc[row], time_format)) is not None:
            times[row], bad[row] = time, False
    return times, bad


def _unusual_time(cell: str, time_format: str) -> int | None:
    """The microseconds of a time that pandas can't read: 24:00, or, with pandas 2, after the year 2262."""
    days = 0
    if "(?P<hour>" in _end_of_day(time_format).pattern and (midnight := _end_of_day(time_format).fullmatch(cell)):
        cell = cell[: midnight.start("hour")] + "00" + cell[midnight.end("hour") :]
        days = 1
    try:
        if time_format in ISO:
            if not re.match("[0-9]{4}", cell):
                return None
            cycles, year = divmod(int(cell[:4]) - 1700, 400)  # the calendar repeats every 400 years
            parsed = pd.to_datetime(f"{1700 + year}{cell[4:]}", format=ISO[time_format], utc=True)
            time, days = parsed.to_pydatetime(warn=False), days + cycles * 146_097
        else:
            time = datetime.strptime(cell, time_format)
        if time.tzinfo is not None:
            time = time.astimezone(timezone.utc).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return (time - datetime(1970, 1, 1) + timedelta(days=days)) // timedelta(microseconds=1)


@lru_cache
def _end_of_day(time_format: str) -> re.Pattern[str]:
    """What matches a time of that format at 24:00."""
    if time_format in ISO:
        return re.compile(r"\d{4}-?\d\d-?\d\d[T ](?P<hour>24)(:?00(:?00([.,]0+)?)?)?(Z|[+-][\d:]+)?")
    digits = {"%H": "(?P<hour>24)", "%M": "00", "%S": "00", "%f": "0+", "%Y": r"\d{4}"}
    parts = re.split("(%.)", time_format)
    return re.compile("".join(digits.get(p, ".+?" if p.startswith("%") else re.escape(p)) for p in parts))


def _epoch_times(cells: pd.Series, time_format: str) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds, and which cells are no time, of counts since 1970."""
    per_second = EPOCHS[time_format]
    unit = Decimal(10**6) / per_second  # in microseconds
    whole = cells.str.fullmatch(r"[+-]?(\d{1,18}|[0-8]\d{18})").to_numpy(dtype=bool)  # of int64
    times, bad = np.zeros(len(cells), dtype=np.int64), np.zeros(len(cells), dtype=bool)
    counts = cells.to_numpy(dtype=object)[whole].astype(np.int64)
    beyond = np.abs(counts) > min(LATEST * per_second // 10**6, np.iinfo(np.int64).max)
    counts = np.where(beyond, 0, counts)
    times[whole] = counts * (10**6 // per_second) if unit >= 1 else counts // (per_second // 10**6)
    bad[whole] = beyond
    for row in np.flatnonzero(~whole).tolist():  # fractions, exactly
        number = cells.iloc[row]
        exact = Decimal(number) * unit if re.fullmatch(r"[+-]?\d+\.?\d*([eE][+-]?\d{1,2})?", number) else None
        bad[row] = exact is None or abs(exact) > LATEST
        times[row] = 0 if exact is None or bad[row] else math.floor(exact)
    return times, bad


def _other_format(cell: str, time_format: str) -> str:
    """The format to try for a time that isn't written as `time_format`."""
    if quarter := re.search(r"(\d{4})\W*[Qq]([1-4])|[Qq]([1-4])\W*(\d{4})", cell):
        year, number = quarter[1] or quarter[4], int(quarter[2] or quarter[3])
        return f" to %Y-%m-%d and write the first day of a quarter, such as {year}-{3 * number - 2:02}-01"
    if re.fullmatch(r"(19|20)\d{12}", cell):
        other = "%Y%m%d%H%M%S"
    elif re.fullmatch(r"\d{9,19}(\.\d+)?", cell):
        digits = len(cell.partition(".")[0])
        other = next(name for name, most in zip(EPOCHS, (11, 13, 16, 19), strict=True) if digits <= most)
    else:
        other = "iso8601" if re.match(r"\d{4}-\d\d-\d\d", cell) else time_format
        other = time_format if _written_times(pd.Series([cell]), "iso8601")[1].any() else other
    return "" if other == time_format else f", perhaps to {other}"


def parse_numbers(
    frame: pd.DataFrame,
    columns: Sequence[str],
    source: str,
    decimal: str = ".",
    missing_words: Collection[str] = (),
) -> np.ndarray:
    """float64 (rows, columns), NaN for cells that hold one of `NO_READING`, or no letter and no digit (`---`, `?`).

    Thousands are not to be set apart: with a decimal comma, a point is a mistake, and the other way round.

    Args:
        frame: of text.
        columns: the numeric ones.
        source: named in errors.
        decimal: what stands before a number's fraction, a point or a comma.
        missing_words: cells equal to one of these, in any case, are NaN as well.

    Raises:
        DataError: a cell that is no number, or one from 2^53 of which float64 would lose digits, with its line.
    """
    values = np.empty((len(frame), len(columns)))
    missing = {*NO_READING, *(word.strip().lower() for word in missing_words)}
    for position, name in enumerate(columns):
        cells = frame[name]
        if missing_words:
            cells = cells.mask(cells.str.strip().str.lower().isin(missing), "")
        if decimal != ".":
            points = cells.astype(str).str.contains(".", regex=False)
            cells = cells.astype(str).str.replace(decimal, ".").mask(points, "a point: thousands?")
        numbers = _numbers(cells)
        if (suspects := np.flatnonzero(np.isnan(numbers))).size:
            numbers[suspects] = _numbers(cells.iloc[suspects].str.translate(WIDE).str.strip())
        suspects = np.flatnonzero(~np.isfinite(numbers))
        texts = cells.iloc[suspects].astype(str).str.strip()
        empty = (texts.str.lower().isin(missing) | texts.str.fullmatch(r"\W*")).to_numpy(dtype=bool)
        if not empty.all():
            row = suspects[~empty][0]
            cell = frame[name].iloc[row]
            raise DataError(
                f"{source}, line {lines_of(frame)[row]}: {cell!r} in column {name!r} is not a number "
                f"({int((~empty).sum())} such cells); {_remedy(frame[name], decimal)}, or leave the cell empty "
                "if the value is missing"
            )
        large = np.flatnonzero(np.abs(numbers) >= EXACT)
        for row, text in zip(large, cells.iloc[large].astype(str).str.translate(WIDE).str.strip(), strict=True):
            if _would_be_rounded(text, numbers[row]):
                raise DataError(
                    f"{source}, line {lines_of(frame)[row]}: {text} in column {name!r} has too many digits to compute "
                    "with and would be rounded: subtract a constant from the column; or, if it only names something, "
                    "leave it out of data.features; or, if it means no reading, name it in data.missing_words"
                )
        values[:, position] = numbers
    return values


def _numbers(cells: pd.Series) -> np.ndarray:
    """The nearest float64, NaN for what is no number."""
    numbers = np.array(pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))
    # pandas tells what is a number; its version 2, and later ones of numbers with a plus, miss the last digit of some.
    read = np.flatnonzero(np.isfinite(numbers))
    numbers[read] = [_number(cell) for cell in cells.iloc[read]]
    return numbers


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except ValueError:  # `+1e 1`, a number to pandas alone
        return math.nan


def _would_be_rounded(text: str, number: float) -> bool:
    """Whether float64 loses digits of a number of 2^53 or more that was not written from a float64."""
    if not re.fullmatch(r"[-+]?\d+\.?\d*", text, re.ASCII):
        return False  # an exponent: measured or computed, not counted
    exact = Decimal(text)
    from_float = exact == Decimal(repr(float(number))) and ("." in text or abs(number) >= LONGEST)
    return exact != Decimal(float(number)) and not from_float


def _remedy(cells: pd.Series, decimal: str) -> str:
    """What to do about cells that are no numbers: their thousands may be set apart, or their comma be a decimal one."""
    texts = cells.astype(str).str.strip()
    separator, name = (",", "commas") if decimal == "." else (".", "points")
    unclear = texts.str.fullmatch(rf"[-+]?[1-9]\d{{0,2}}[{separator}]\d{{3}}")
    thousands = texts.str.fullmatch(rf"[-+]?[1-9]\d{{0,2}}([{separator}]\d{{3}})+([{decimal}]\d*)?") & ~unclear
    if thousands.any():
        return f"remove the {name} that set thousands apart"
    if texts.str.fullmatch(rf"[-+]?\d{{1,3}}([\s'’]\d{{3}})+([{decimal}]\d*)?").any():
        return "remove what sets thousands apart"
    if decimal == "." and not texts.str.contains(".", regex=False).any():
        if texts.str.fullmatch(r"[-+]?(\d+,(\d{1,2}|\d{4,})|0+,\d+)").any():
            return "set data.decimal=',' for such numbers"
        if unclear.any():
            return "remove the commas if they set thousands apart, or set data.decimal=',' if they are decimal commas"
    return "correct it"
