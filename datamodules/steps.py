"""Steps of time: of a fixed length, of calendar months, of business days, or from row to row.

A time is a datetime64[us] or, in microseconds, an int64. On the grid of a step it has an int64 *number*, which counts
the step's unit: two rows follow each other if their numbers differ by the step's `count`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta, timezone
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from .sources import DataError

DAY = 86_400_000_000  # microseconds
FIXED = {"w": 7 * DAY, "d": DAY, "h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000}
UNITS = {
    **{name: ("us", length) for name, length in FIXED.items()},
    "y": ("mo", 12),
    "mo": ("mo", 1),
    "bd": ("bd", 1),
    "rows": ("rows", 1),
}
"""What a length may be written in: the unit that is counted, and how many of them it is."""
NAMES = {"us": "5d, 48h or 10min", "mo": "24mo or 2y", "bd": "20bd", "rows": "48rows"}
"""Examples of lengths, by the unit that is counted."""
LONGEST = {"us": 1, "mo": 31 * DAY, "bd": 3 * DAY, "rows": 1}
"""Microseconds that a unit takes at most; of rows, rows."""
EPOCH = np.datetime64(0, "D")
MONDAY_TO_FRIDAY = "1111100"


@dataclass(frozen=True)
class Step:
    """The step from one row of a series to the next: `count` times a unit.

    Attributes:
        count: how many units.
        unit: `us` microseconds, `mo` calendar months, `bd` business days (Monday to Friday), or `rows`, where the rows
            are equally spaced whatever their times.
        phase: microseconds from the beginning of its month or business day to each row; in months, of the 31st for
            the last day of each.
    """

    count: int
    unit: str
    phase: int = 0

    @classmethod
    def parse(cls, key: str, value: Any) -> Step:
        """A step as it is written: `1h`, `1d12h`, `1mo`, `1y`, `1bd`, `rows`; `key` names the setting in errors.

        Raises:
            DataError: it is none, or may be read in two ways.
        """
        text = "".join(str(value).lower().split())
        pieces = re.findall(r"([0-9]+(?:\.[0-9]+)?)([a-z]+)", "1rows" if text == "rows" else text)
        known = [UNITS.get(unit, ("", 1)) for _, unit in pieces]
        total = sum(Fraction(number) * length for (number, _), (_, length) in zip(pieces, known, strict=True))
        written = text == "rows" or text == "".join(number + unit for number, unit in pieces)
        units = {unit for unit, _ in known}
        if written and any(unit == "m" for _, unit in pieces):
            raise DataError(f"data.{key}={value!r} may mean minutes or months: write min or mo, as in 5min or 5mo")
        alike = len({name for _, name in pieces}) == len(pieces) and len(units) == 1 and "" not in units
        if not written or not alike or total.denominator != 1 or not 0 < total < 2**63:
            raise DataError(
                f"data.{key}={value!r} is not a duration: write 5d, 48h, 10min or 1d12h; or 3mo, 1y, 20bd (business "
                "days) or 48rows, where data.step is of that kind"
            )
        return cls(int(total), units.pop())

    def __str__(self) -> str:
        return "rows" if (self.count, self.unit) == (1, "rows") else self.spell(self.count)

    def spell(self, numbers: int) -> str:
        """So many units in the largest whole one: `1h`, `18mo`, `1y`, `20bd`, `48rows`."""
        if self.unit == "us":
            return spell(numbers)
        whole = self.unit == "mo" and numbers % 12 == 0
        return f"{numbers // 12}y" if whole else f"{numbers}{self.unit}"

    @property
    def is_fixed(self) -> bool:
        """Whether it is as long everywhere, in time."""
        return self.unit == "us"

    @property
    def unit_name(self) -> str:
        """What is counted, in words."""
        return {"us": "microsecond", "mo": "month", "bd": "business day", "rows": "row"}[self.unit]

    @property
    def hours(self) -> float | None:
        """Its length; None if it has no fixed one."""
        return self.count / FIXED["h"] if self.is_fixed else None

    def steps(self, key: str, value: Any) -> int:
        """How many steps a duration is.

        Raises:
            DataError: it is none, of another kind than this step, or no multiple of it.
        """
        length = Step.parse(key, value)
        if length.unit != self.unit:
            raise DataError(
                f"data.{key}={value} can't be counted in steps of data.step={self}: write it as {NAMES[self.unit]}"
            )
        if length.count % self.count:
            raise DataError(f"data.{key}={value} is not a multiple of data.step={self}")
        return length.count // self.count

    def located(self, times: np.ndarray, lines: np.ndarray, source: str) -> Step:
        """This step with the phase of these times, in microseconds; what most of them share.

        Raises:
            DataError: a time lies elsewhere in its month or day than the others, or on a weekend; with its line.
        """
        if self.unit not in ("mo", "bd"):
            return self
        step = self.without_phase(times, lines, source)
        days, rest = np.divmod(times, DAY)
        phase = _most_common(rest)
        if self.unit == "mo":
            _, day, length = _months(days)
            inner = day[day < length - 1]
            choices = [*([_most_common(inner)] if len(inner) else []), 30]
            day_of_most = min(choices, key=lambda choice: int((day != np.minimum(choice, length - 1)).sum()))
            phase += day_of_most * DAY
        step = replace(self, phase=phase)
        wrong = np.flatnonzero(step.times(step.numbers(times)) != times)
        if len(wrong):
            raise DataError(
                f"{source}, line {lines[wrong[0]]}: {_text(times[wrong[0]])} lies elsewhere in its {self.unit_name} "
                f"than most rows ({len(wrong)} such rows): correct it, or set data.resample=mean, which moves each to "
                f"the beginning of its {self.unit_name}, or data.step=rows, which takes the rows as equally spaced, "
                "whatever their times"
            )
        return step

    def without_phase(self, times: np.ndarray, lines: np.ndarray, source: str) -> Step:
        """This step, whose rows are then stamped with the beginnings of its units.

        Raises:
            DataError: a time lies on a weekend, in steps of business days; with its line.
        """
        if self.unit == "bd":
            weekend = np.flatnonzero((times // DAY + 3) % 7 >= 5)
            if len(weekend):
                raise DataError(
                    f"{source}, line {lines[weekend[0]]}: {_text(times[weekend[0]])} is on a weekend, where "
                    f"data.step={self} has no row ({len(weekend)} such rows): set data.step=1d, or data.step=rows, "
                    "which takes the rows as equally spaced, whatever their times"
                )
        return replace(self, phase=0)

    def numbers(self, times: np.ndarray) -> np.ndarray:
        """The number of the unit in which each time lies; both int64."""
        if self.unit == "mo":
            return _months(times // DAY)[0]
        if self.unit == "bd":
            return np.busday_count(EPOCH, (times // DAY).astype("datetime64[D]"), MONDAY_TO_FRIDAY)
        return times

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """The times with these numbers, microseconds: of a month of too few days, its last day. Not for `rows`."""
        if self.unit == "mo":
            first, following = ((numbers + more).astype("datetime64[M]").astype("datetime64[D]") for more in (0, 1))
            day, rest = divmod(self.phase, DAY)
            days = np.minimum(first.astype(np.int64) + day, following.astype(np.int64) - 1)
            return days * DAY + rest
        if self.unit == "bd":
            days = np.busday_offset(EPOCH, numbers, weekmask=MONDAY_TO_FRIDAY)
            return days.astype(np.int64) * DAY + self.phase
        return numbers


def spell(microseconds: int) -> str:
    """`3600000000` as `1h`: a duration in its largest whole unit."""
    for unit in ("d", "h", "min", "s"):
        if microseconds % FIXED[unit] == 0:
            return f"{microseconds // FIXED[unit]}{unit}"
    return f"{microseconds / FIXED['s']:.6f}".rstrip("0") + "s"


def format_offset(utc_offset: int) -> str:
    """`7200` as `+02:00`."""
    minutes = abs(utc_offset) // 60
    return f"{'-' if utc_offset < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"


def with_offset(times: np.ndarray, utc_offset: int | None) -> pd.Series:
    """Times as they are written: with the offset of their clock, in seconds east of UTC, if it has one."""
    stamps = pd.Series(times)
    return stamps if utc_offset is None else stamps.dt.tz_localize(timezone(timedelta(seconds=utc_offset)))


def format_time(time: Any, utc_offset: int | None = None) -> str:
    """A time as people write it, to the minute or, if need be, to the second; of rows without times, their number."""
    if isinstance(time, (int, np.integer)):
        return f"row {time}"
    stamp = pd.Timestamp(time).floor("s")
    text = stamp.isoformat(sep=" ", timespec="seconds" if stamp.second else "minutes")
    return text if utc_offset is None else text + format_offset(utc_offset)


def instant(
    key: str, value: Any, *, before: np.datetime64 | None = None, after: np.datetime64 | None = None
) -> np.datetime64:
    """A date or date and time, datetime64[us]; `key` names the setting in errors.

    The year comes first, so that nothing is guessed: `2015-06-01`, `2015-06`, `20150601`, `2015-06-01 06:00`. With
    `before` or `after`, it may also be a duration before or after that time, in `1y` and `3mo` by the calendar.

    Raises:
        DataError: it is none, may be read in two ways, or leads out of the calendar.
    """
    text, origin = str(value).strip(), before if after is None else after
    if origin is not None and re.fullmatch(r"([0-9.]+\s*[A-Za-z]+\s*)+", text):
        return _shifted(key, value, origin, -1 if after is None else 1)
    clock = r"(?:[ T]([0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?))?"
    dashed = re.fullmatch(r"([0-9]{4})([-/])([0-9]{1,2})(?:\2([0-9]{1,2})" + clock + ")?", text)
    solid = re.fullmatch(r"([0-9]{4})()([0-9]{2})([0-9]{2})" + clock, text)
    if parts := dashed or solid:
        year, _, month, day, time = parts.groups()
        try:
            date = pd.Timestamp(f"{year}-{month:>02}-{day or 1:>02} {time or '00:00'}")
            return date.to_datetime64().astype("datetime64[us]")
        except ValueError:  # no such day or time
            pass
    raise DataError(
        f"data.{key}={value!r} is not a date: write the year first, as in 2015-06-01, 2015-06 or 2015-06-01T06:00, "
        "without a time zone" + ("" if origin is None else "; or how long, as in 90d, 6mo or 1y")
    )


def _shifted(key: str, value: Any, origin: np.datetime64, sign: int) -> np.datetime64:
    length = Step.parse(key, value)
    if length.unit not in ("us", "mo"):
        raise DataError(f"data.{key}={value!r} has no fixed place in time: write a date, or how long, as in 90d or 6mo")
    try:
        months, microseconds = (sign * length.count * (length.unit == unit) for unit in ("mo", "us"))
        shifted = pd.Timestamp(origin) + pd.DateOffset(months=months) + np.timedelta64(microseconds, "us")
        if not 0 < shifted.year < 10000:
            raise OverflowError
    except (ValueError, OverflowError) as error:
        raise DataError(f"data.{key}={value!r} leads out of the calendar") from error
    return shifted.to_datetime64().astype("datetime64[us]")


def _months(days: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of days since 1970: the month, the day of it from 0, and how many it has."""
    month = days.astype("datetime64[D]").astype("datetime64[M]")
    first, following = (
        part.astype("datetime64[D]").astype(np.int64) for part in (month, month + np.timedelta64(1, "M"))
    )
    return month.astype(np.int64), days - first, following - first


def _most_common(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _text(time: Any) -> str:
    return str(pd.Timestamp(int(time), unit="us"))
