from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sources import DataError
from datamodules.steps import Step, format_time, instant

LINES = np.arange(100_000)
ORIGIN = np.datetime64("2020-02-29T00:00:00.000000")


def micro(times: Any) -> np.ndarray:
    return pd.DatetimeIndex(times).to_numpy().astype("datetime64[us]").astype(np.int64)


def following(step: str, times: pd.DatetimeIndex, count: int) -> list[pd.Timestamp]:
    """The times of `count` steps after the last of these rows."""
    located = Step.parse("step", step).located(micro(times), LINES, "t.csv")
    numbers = located.numbers(micro(times))
    ahead = numbers[-1] + np.arange(1, count + 1) * located.count
    return [pd.Timestamp(time, unit="us") for time in located.times(ahead).tolist()]


# --- calendars against pandas and dateutil ---


@pytest.mark.parametrize(
    ("step", "frequency"),
    [
        ("1mo", "MS"),
        ("1mo", "ME"),
        ("3mo", "QS"),
        ("3mo", "QE"),
        ("6mo", "6ME"),
        ("1y", "YS"),
        ("1y", "YE"),
        ("1bd", "B"),
    ],
)
@pytest.mark.parametrize("begin", ["1959-11-05", "1999-01-31 06:30", "2023-12-31"])
def test_rows_follow_each_other_and_forecasts_go_on_as_pandas_counts(step: str, frequency: str, begin: str) -> None:
    times = pd.date_range(begin, periods=90, freq=frequency)
    located = Step.parse("step", step).located(micro(times), LINES, "t.csv")
    numbers = located.numbers(micro(times))
    assert set(np.diff(numbers)) == {located.count}
    assert np.array_equal(located.times(numbers), micro(times))
    assert following(step, times[:60], 30) == times[60:].tolist()


@pytest.mark.parametrize("day", [1, 15, 28, 29, 30, 31])
def test_a_row_on_a_day_that_a_month_lacks_is_its_last_day(day: int) -> None:
    begin = pd.Timestamp(2019, 1, day, 8)
    times = pd.DatetimeIndex([begin + relativedelta(months=month) for month in range(40)])
    assert following("1mo", times[:25], 15) == times[25:].tolist()


@given(day=st.dates(min_value=pd.Timestamp("1900-01-01").date(), max_value=pd.Timestamp("2199-12-31").date()))
def test_a_business_day_follows_as_in_pandas(day: Any) -> None:
    today = pd.Timestamp(day)
    if today.weekday() < 5:
        assert following("1bd", pd.DatetimeIndex([today]), 7) == [today + pd.offsets.BDay(n) for n in range(1, 8)]


def test_two_rows_are_enough_to_tell_the_thirtieth_from_a_months_end() -> None:
    ahead = [pd.Timestamp("2021-04-30"), pd.Timestamp("2021-05-30")]
    assert following("1mo", pd.DatetimeIndex(["2021-02-28", "2021-03-30"]), 2) == ahead


def test_an_outlier_among_months_is_named_with_its_line() -> None:
    times = pd.date_range("2020-01-31", periods=12, freq="ME").tolist()
    times[6] = pd.Timestamp("2020-07-14")
    with pytest.raises(DataError, match=r"t.csv, line 6: 2020-07-14 00:00:00 lies elsewhere in its month .*\(1 such"):
        Step.parse("step", "1mo").located(micro(times), LINES, "t.csv")


def test_a_weekend_is_no_business_day() -> None:
    times = pd.date_range("2020-01-01", periods=6)
    with pytest.raises(
        DataError, match=r"line 3: 2020-01-04 00:00:00 is on a weekend.*data.step=1d, or data.step=rows"
    ):
        Step.parse("step", "1bd").located(micro(times), LINES, "t.csv")


# --- durations ---


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("1.5h", Step(5_400_000_000, "us")),
        ("1d12h", Step(129_600_000_000, "us")),
        ("5 d", Step(432_000_000_000, "us")),
        ("48H", Step(172_800_000_000, "us")),
        ("0.000001s", Step(1, "us")),
        ("3mo", Step(3, "mo")),
        ("2y", Step(24, "mo")),
        ("1y6mo", Step(18, "mo")),
        ("20bd", Step(20, "bd")),
        ("rows", Step(1, "rows")),
        ("48rows", Step(48, "rows")),
    ],
)
def test_durations_are_read_exactly_and_written_as_they_are_read(text: str, step: Step) -> None:
    assert Step.parse("lookback", text) == step
    assert Step.parse("lookback", str(step)) == step


@pytest.mark.parametrize(
    "text",
    ["1e3s", "-1d", "0d", "0x10", "5", "", "1.5mo", "1mo5d", "1bd12h", "1d1d", "1.0000001s", "d", "٥d", "1 day", "5d,"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.lookback={text!r} is not a duration: write 5d, 48h")):
        Step.parse("lookback", text)


@pytest.mark.parametrize("text", ["5m", "1M", "1h5m"])
def test_m_may_be_minutes_or_months_and_is_not_guessed(text: str) -> None:
    with pytest.raises(DataError, match=r"may mean minutes or months: write min or mo"):
        Step.parse("lookback", text)


@pytest.mark.parametrize(
    ("step", "length", "count"),
    [("1mo", "2y", 24), ("3mo", "2y", 8), ("1h", "5d", 120), ("1bd", "20bd", 20), ("rows", "48rows", 48)],
)
def test_lengths_are_counted_in_steps_of_their_kind(step: str, length: str, count: int) -> None:
    assert Step.parse("step", step).steps("lookback", length) == count


@pytest.mark.parametrize(
    ("step", "length", "message"),
    [
        ("1mo", "30d", "data.lookback=30d can't be counted in steps of data.step=1mo: write it as 24mo or 2y"),
        ("1h", "1mo", "data.lookback=1mo can't be counted in steps of data.step=1h: write it as 5d, 48h or 10min"),
        ("1bd", "1w", "write it as 20bd"),
        ("rows", "5d", "write it as 48rows"),
        ("3mo", "4mo", "data.lookback=4mo is not a multiple of data.step=3mo"),
    ],
)
def test_lengths_of_another_kind_are_refused_with_the_form_to_use(step: str, length: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Step.parse("step", step).steps("lookback", length)


# --- dates ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2015-06-01", "2015-06-01"),
        ("2015-6-1", "2015-06-01"),
        ("2015/06/01", "2015-06-01"),
        ("20150601", "2015-06-01"),
        ("2015-06", "2015-06-01"),
        ("2015-06-01 06:00", "2015-06-01T06:00"),
        ("2015-06-01T6:05:30.25", "2015-06-01T06:05:30.250000"),
        (20150601, "2015-06-01"),
    ],
)
def test_dates_that_cannot_be_mistaken_are_read(text: Any, expected: str) -> None:
    assert instant("test_from", text) == np.datetime64(expected, "us")
    assert instant("val_from", text, before=ORIGIN) == np.datetime64(expected, "us")


@pytest.mark.parametrize(
    "text",
    [
        *("01.06.2020", "13.09.2020", "06/01/2020", "1-6-2020", "June 2020", "1 Jun 2020", "today", "now", "12:00"),
        *("2015", 2015, "201506", "2015-13-01", "2019-02-29", "2015-06-01T06", "2015-06-01T25:00", "2015/06-01"),
        *("2015-06-01T06:00Z", "2015-06-01T06:00+02:00", "2015-W23", "2015-152", "0", "", "soon", "NaT", "0000-00-00"),
    ],
)
@pytest.mark.parametrize("before", [None, ORIGIN])
def test_dates_that_may_be_mistaken_are_refused_with_the_form_to_use(text: Any, before: Any) -> None:
    with pytest.raises(DataError, match=r"is not a date: write the year first, as in 2015-06-01"):
        instant("val_from", text, before=before)


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("1y", relativedelta(years=1)),
        ("5mo", relativedelta(months=5)),
        ("90d", relativedelta(days=90)),
        ("1d12h", relativedelta(days=1, hours=12)),
    ],
)
def test_a_duration_leads_from_a_date_as_dateutil_counts(text: str, offset: relativedelta) -> None:
    origin = pd.Timestamp(ORIGIN)
    assert pd.Timestamp(instant("val_from", text, before=ORIGIN)) == origin - offset
    assert pd.Timestamp(instant("test_until", text, after=ORIGIN)) == origin + offset


@pytest.mark.parametrize("text", ["20bd", "48rows"])
def test_what_has_no_fixed_place_in_time_leads_to_no_date(text: str) -> None:
    with pytest.raises(DataError, match="write a date, or how long, as in 90d or 6mo"):
        instant("val_from", text, before=ORIGIN)


def test_a_time_is_shown_to_the_minute_with_the_offset_of_its_clock() -> None:
    time = np.datetime64("2020-05-30T23:00:00.000000")
    assert format_time(time) == "2020-05-30 23:00"
    assert format_time(time + np.timedelta64(5, "s"), 7200) == "2020-05-30 23:00:05+02:00"
    assert format_time(time, -12_600) == "2020-05-30 23:00-03:30"
    assert format_time(np.int64(7)) == "row 7"
