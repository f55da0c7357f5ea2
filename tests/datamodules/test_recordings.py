from __future__ import annotations

import locale
import re
from datetime import datetime, timedelta
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.recordings import WIDE, parse_numbers, parse_offsets, parse_times
from datamodules.sources import DataError


def table(*rows: str | tuple[str, ...]) -> pd.DataFrame:
    cells = [(row,) if isinstance(row, str) else row for row in rows]
    return pd.DataFrame(cells, columns=list("abcdef"[: len(cells[0])]), dtype=object)


def times(time_format: str, *rows: str | tuple[str, ...]) -> list[datetime]:
    """Read, and turned into datetimes by the standard library alone."""
    frame = table(*rows)
    column = "a" if len(frame.columns) == 1 else [*map(str, frame)]
    counts = parse_times(frame, column, time_format, "t.csv").tolist()
    return [datetime(1970, 1, 1) + timedelta(microseconds=count) for count in counts]


FORMATS = ["%Y-%m-%d %H:%M:%S", "%d.%m.%Y %H:%M:%S", "%d %b %Y %H:%M:%S.%f", "%Y%m%d%H%M%S", "%m/%d/%Y %I:%M:%S %p"]
MOMENTS = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30)).map(lambda time: time.replace(microsecond=0))


@settings(max_examples=100, deadline=None)
@given(moments=st.lists(MOMENTS, min_size=1, max_size=5), time_format=st.sampled_from(FORMATS))
def test_times_of_any_year_are_read_as_strftime_has_written_them(moments: list[datetime], time_format: str) -> None:
    assert times(time_format, *(moment.strftime(time_format) for moment in moments)) == moments


@pytest.mark.parametrize(
    ("time_format", "cell", "day"),
    [
        ("%Y-%m-%d %H:%M", "2020-12-31 24:00", datetime(2021, 1, 1)),
        ("%d.%m.%Y %H:%M:%S", "28.02.2020 24:00:00", datetime(2020, 2, 29)),
        ("%Y%m%d%H", "2020010124", datetime(2020, 1, 2)),
        ("iso8601", "2020-01-01T24:00:00.000", datetime(2020, 1, 2)),
        ("iso8601", "2020-01-01 24:00", datetime(2020, 1, 2)),
        ("%Y %m %d %H", ("2020", "1", "31", "24"), datetime(2020, 2, 1)),
    ],
)
def test_the_hour_24_is_the_begin_of_the_next_day(time_format: str, cell: str, day: datetime) -> None:
    assert times(time_format, cell) == [day]


@pytest.mark.parametrize("cell", ["2020-01-01 24:01", "2020-01-01 25:00", "2020-02-30 24:00", "now", "today", ""])
@pytest.mark.parametrize("time_format", ["%Y-%m-%d %H:%M", "iso8601"])
def test_what_is_no_time_is_refused_with_its_line(time_format: str, cell: str) -> None:
    with pytest.raises(
        DataError, match=rf"t\.csv, line 3: '{cell}' in column 'a' is not a time written as.*\(1 such rows\)"
    ):
        times(time_format, "2020-01-01 00:00", cell)


@pytest.mark.parametrize("time_format", ["%Y-%m-%d %H:%M %Z", "%H:%M %Z - %H:%M %Z"])
def test_names_of_time_zones_are_refused_because_they_are_ambiguous(time_format: str) -> None:
    cell = datetime(2020, 1, 1).strftime(time_format.replace("%Z", "UTC"))
    for parse in (parse_times, parse_offsets):
        with pytest.raises(DataError, match=r"has %Z, the name of a time zone.*such as \+0100 in the file and %z here"):
            parse(table(cell), "a", time_format, "t.csv")
    assert times("%Y-%m-%d %%Z", "2020-01-01 %Z") == [datetime(2020, 1, 1)]


def test_many_wrong_times_are_counted() -> None:
    with pytest.raises(DataError, match=r"line 2: .*\(3000 such rows\)"):
        times("%d.%m.%Y", *["2020-01-01"] * 3000)


def test_times_in_several_columns_are_joined_by_blanks() -> None:
    assert times("%Y %m %d %H", ("2020", "1", "2", " 3")) == [datetime(2020, 1, 2, 3)]
    assert times("%d.%m.%Y %H:%M", ("02.01.2020", "03:04")) == [datetime(2020, 1, 2, 3, 4)]
    with pytest.raises(DataError, match=r"'2020 13' in column 'a' \+ 'b' is not a time"):
        times("%Y %m", ("2020", "13"))


PER_SECOND = {"epoch_s": 1, "epoch_ms": 10**3, "epoch_us": 10**6, "epoch_ns": 10**9}


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(-(10**20), 10**20) | st.integers(-(10**12), 10**12),
    unit=st.sampled_from(list(PER_SECOND)),
    digits=st.integers(0, 4),
)
def test_epochs_are_read_exactly(count: int, unit: str, digits: int) -> None:
    sign, number = "-" * (count < 0), str(abs(count)).zfill(digits + 1)
    cell = f"{sign}{number[: len(number) - digits]}" + (f".{number[len(number) - digits :]}" if digits else "")
    exact = Fraction(count, 10**digits) * 10**6 / PER_SECOND[unit]
    if -62_000_000_000_000_000 < exact < 253_000_000_000_000_000:
        assert parse_times(table(cell), "a", unit, "t.csv").tolist() == [exact.numerator // exact.denominator]
    elif exact > 254_000_000_000_000_000:
        with pytest.raises(DataError, match="is not a time"):
            times(unit, cell)


def test_the_format_to_try_is_named() -> None:
    for cell, other in {
        "1577836800": "epoch_s",
        "1577836800123": "epoch_ms",
        "1577836800123456": "epoch_us",
        "1577836800123456789": "epoch_ns",
        "15778368001234": "epoch_us",
        "20200101000000": "%Y%m%d%H%M%S",
        "2020-01-01T00:00:00.5": "iso8601",
    }.items():
        with pytest.raises(DataError, match=f"set data.time_format, perhaps to {other}$"):
            times("%d.%m.%Y", cell)
        times(other, cell)


@pytest.mark.parametrize("cell", ["1950Q2", "1950-Q2", "1950 q2", "Q2/1950"])
@pytest.mark.parametrize("time_format", ["%Y", "iso8601"])
def test_a_quarter_is_to_be_written_as_its_first_day(cell: str, time_format: str) -> None:
    with pytest.raises(DataError, match=r"write the first day of a quarter, such as 1950-04-01$"):
        times(time_format, cell)


@pytest.mark.parametrize("cell", ["1_000", "0x10", "1e400", "inf", "nan", "12:00", ""])
def test_what_is_no_count_is_no_epoch(cell: str) -> None:
    with pytest.raises(DataError, match=f"line 2: {re.escape(repr(cell))} in column 'a' is not a time"):
        times("epoch_s", cell)


def test_iso_times_may_have_fractions_or_none() -> None:
    cells = ["2020-01-02T03:04:05", "2020-01-02 03:04:05.25", "2020-01-02", "3000-01-02T03:04"]
    assert times("iso8601", *cells) == [
        datetime.fromisoformat(cell) for cell in [*cells[:1], cells[1] + "0000", *cells[2:]]
    ]


@pytest.mark.parametrize(
    ("cell", "time"),
    [
        ("2914-01-02T03:04:05Z", datetime(2914, 1, 2, 3, 4, 5)),
        ("2914-01-02T03:04:05.5", datetime(2914, 1, 2, 3, 4, 5, 500_000)),
        ("29140102T03+0100", datetime(2914, 1, 2, 2)),
        ("2999-12-31T24:00Z", datetime(3000, 1, 1)),
        ("20160228T240000", datetime(2016, 2, 29)),
        ("2400-02-29", datetime(2400, 2, 29)),
        ("1600-02-29T24:00", datetime(1600, 3, 1)),
        ("9999-12-31T23:59:59.999999", datetime(9999, 12, 31, 23, 59, 59, 999_999)),
    ],
)
def test_iso_times_of_any_century_and_24_00_are_read(cell: str, time: datetime) -> None:
    assert times("iso8601", cell, "2020-01-01") == [time, datetime(2020, 1, 1)]


@pytest.mark.parametrize("cell", ["2900-02-29", "1_00-01-01", "2914-13-01", "2914-01-01T25:00"])
def test_what_is_no_iso_time_is_refused(cell: str) -> None:
    with pytest.raises(DataError, match="is not a time"):
        times("iso8601", cell)


@pytest.mark.parametrize(
    ("time_format", "cell"),
    [
        ("%Y-%m-%d %H:%M - %Y-%m-%d %H:%M", "2020-01-01 23:00 - 2020-01-02 00:00"),
        ("%d.%m.%Y %H:%M - %d.%m.%Y %H:%M", "01.01.2020 23:00 - 01.01.2020 24:00"),
        ("%Y-%m-%d %H:%M-%Y-%m-%d %H:%M", "2020-01-01 23:00-2020-01-02 00:00"),
        ("iso8601/iso8601", "2020-01-01T23:00/2020-01-02T00:00"),
    ],
)
def test_an_interval_stands_for_its_beginning(time_format: str, cell: str) -> None:
    assert times(time_format, cell) == [datetime(2020, 1, 1, 23)]
    with pytest.raises(DataError, match="is not a time"):
        times(time_format, cell[: len(cell) // 2 - 1])


def test_months_are_named_in_english_whatever_the_locale() -> None:
    import runs.train  # noqa: F401  # everything that a run imports

    assert locale.setlocale(locale.LC_TIME) == "C"  # month names of strptime are those of this setting


# --- numbers ---


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("+5", 5), (" 5 ", 5), ("５．５", 5.5), ("\N{MINUS SIGN}5", -5), ("\u00a05\u3000", 5), ("1e3", 1000), ("5.", 5),
        ("", np.nan), ("---", np.nan), ("缺测", np.nan), ("m", np.nan), (" M ", np.nan), ("T", np.nan), ("999", np.nan),
    ],
)  # fmt: skip
def test_a_cell_is_the_number_it_shows_or_missing(cell: str, value: float) -> None:
    found = parse_numbers(table(cell, "1"), ["a"], "t.csv", missing_words=["M", "t", "999"])
    np.testing.assert_array_equal(found[:, 0], [value, 1])


WRONG = [
    "1_000",
    "0x10",
    "1e400",
    "nan(ind)",
    "inf",
    "-Infinity",
    "1,234",
    "1 234",
    "5%",
    "5²",
    "½",
    "True",
    "5-",
    "+1e 1",
    "T",
    "M",
]


@pytest.mark.parametrize("cell", WRONG)
def test_what_is_no_number_is_refused_with_its_line(cell: str) -> None:
    with pytest.raises(DataError, match=rf"t\.csv, line 3: {re.escape(repr(cell))} in column 'a' is not a number"):
        parse_numbers(table("1", cell), ["a"], "t.csv")


@pytest.mark.parametrize(
    ("cells", "decimal", "remedy"),
    [
        (["1,5"], ".", "set data.decimal=',' for such numbers"),
        (["0,123", "-0,455"], ".", "set data.decimal=',' for such numbers"),
        (["6,088"], ".", "remove the commas if they set thousands apart, or set data.decimal=',' if they are decimal"),
        (["1,5", "6,088"], ".", "set data.decimal=',' for such numbers"),
        (["1,234.5"], ".", "remove the commas that set thousands apart"),
        (["1,234,567"], ".", "remove the commas that set thousands apart"),
        (["1.234,5"], ",", "remove the points that set thousands apart"),
        (["1.234"], ",", "correct it, or leave the cell empty"),
        (["1.5"], ",", "correct it, or leave the cell empty"),
        (["1 234"], ".", "remove what sets thousands apart"),
        (["1\u202f234,5"], ",", "remove what sets thousands apart"),
        (["1'234.5"], ".", "remove what sets thousands apart"),
        (["1.5", "1,5"], ".", "correct it, or leave the cell empty"),
    ],
)
def test_a_remedy_is_named_that_fits_the_column(cells: list[str], decimal: str, remedy: str) -> None:
    with pytest.raises(DataError, match=re.escape(remedy)):
        parse_numbers(table(*cells), ["a"], "t.csv", decimal=decimal)


LONG = [
    "9007199254740993",
    "-1577836800000000001",
    "+1577836800000000257",
    "９００７１９９２５４７４０９９３",
    "9007199254740992.5",
    "9223372036854775807",
    "12345678901234567890",
    "1234567890123456800",  # as a float64 of another number is written
    "123456789012345678901234567890",
]


@pytest.mark.parametrize("cell", LONG)
def test_a_number_of_which_float64_would_lose_digits_is_refused_with_its_line(cell: str) -> None:
    frame = pd.DataFrame({"x": ["1", cell]})
    digits = re.escape(cell.translate(WIDE))
    with pytest.raises(DataError, match=rf"line 3: {digits} in column 'x' has too many digits"):
        parse_numbers(frame, ["x"], "t.csv")
    assert np.isnan(parse_numbers(frame, ["x"], "t.csv", missing_words=[cell])[1, 0])


@pytest.mark.parametrize(
    "cell",
    [
        *("9007199254740992", "1577836800000000000", "1e300", "0.12345678901234567890", "+5e39", "3e66"),
        *("1" + 23 * "0", "1234567890123456800.0", "123456789012345600000000", "9223372036854775808", 20 * "9" + "e0"),
    ],
)
def test_numbers_of_many_digits_that_are_exact_or_measured_are_read(cell: str) -> None:
    assert parse_numbers(pd.DataFrame({"x": [cell]}), ["x"], "t.csv").tolist() == [[float(cell)]]


@pytest.mark.parametrize("cell", ["-2020-01-01 06:00", "+2020-01-01 06:00"])
def test_a_sign_before_the_year_is_refused(cell: str) -> None:
    with pytest.raises(DataError, match=r"line 3: .* is not a time written as"):
        times("%Y-%m-%d %H:%M", "2020-01-01 05:00", cell)


def test_a_row_of_units_is_refused_with_the_option_that_leaves_it_out() -> None:
    with pytest.raises(DataError, match=r"data\.skip_after_header=1"):
        times("%Y-%m-%d", "date", "2020-01-01")
