from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.cleaning import arrange, clean
from datamodules.lookbacks import Lookbacks
from datamodules.recordings import Rows
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError
from datamodules.steps import Step

FORMAT = "%Y-%m-%d %H:%M:%S"
COLUMNS = {"time_column": "time", "time_format": FORMAT, "columns": ["x"]}
RANDOM = np.random.default_rng(0)


def table(times: Any, values: Any = None) -> pd.DataFrame:
    times = pd.DatetimeIndex(times)
    return pd.DataFrame({"time": times.strftime(FORMAT), "x": np.arange(len(times)) if values is None else values})


def module(folder: Path, frame: pd.DataFrame, **options: Any) -> SeriesDataModule:
    frame.to_csv(folder / "t.csv", index=False)
    usual = {"time_column": "time", "time_format": FORMAT, "target": "x", "features": ["x"], "split": "fraction"}
    data = SeriesDataModule("series", path=str(folder / "t.csv"), **{**usual, **options})
    data.setup()
    return data


def seconds(numbers: Any) -> pd.DatetimeIndex:
    return pd.Timestamp("2020-01-01 09:00") + pd.to_timedelta(np.asarray(numbers), unit="s")


HOUR = 3600 * np.arange(600)
SPACINGS = {
    "months": (pd.date_range("1990-01-01", periods=297, freq="MS"), "data.step=1mo"),
    "month ends": (pd.date_range("1990-01-31", periods=297, freq="ME"), "data.step=1mo"),
    "quarters": (pd.date_range("1950-01-01", periods=200, freq="QS"), "data.step=3mo"),
    "years": (pd.date_range("1900-01-01", periods=120, freq="YS"), "data.step=1y"),
    "first business days of months": (pd.date_range("1990-01-01", periods=297, freq="BMS"), "data.step=rows"),
    "business days": (pd.bdate_range("2015-01-01", periods=600), "data.step=1bd"),
    "a clock that is slow": (seconds(3601 * np.arange(600)), "data.round_times=1h"),
    "a clock that loses an hour": (seconds(3599 * np.arange(4000)), "data.step=3599s"),
    "wobbling seconds": (seconds(HOUR + RANDOM.integers(-2, 3, 600)), "data.round_times=1h"),
    "wobbling seconds, late": (seconds(HOUR + (RANDOM.random(600) < 0.4)), "data.round_times=1h"),
    "wobbling minutes": (seconds(60 * np.arange(6000) + RANDOM.integers(-1, 2, 6000)), "data.round_times=1min"),
    "events": (seconds(np.cumsum(1 + RANDOM.exponential(3600, 600).astype(int))), "data.step=rows"),
    "weeks": (pd.date_range("2010-01-01", periods=300, freq="7D"), "data.step=7d"),
    "four weeks": (pd.date_range("2000-01-01", periods=300, freq="28D"), "data.step=28d"),
}


@pytest.mark.parametrize("step", ["1h", "31d"])
@pytest.mark.parametrize("kind", SPACINGS)
def test_a_step_that_does_not_fit_comes_with_options_that_lose_no_row(kind: str, step: str, tmp_path: Path) -> None:
    times, advice = SPACINGS[kind]
    if (kind, step) == ("business days", "31d"):
        pytest.skip("a month of rows a day apart")
    with pytest.raises(
        DataError, match=f"data.step={step} doesn't suit the rows of .*, which are .* apart; set .*{advice}"
    ) as caught:
        clean(table(times), **COLUMNS, step=step)
    options = dict(re.findall(r"data\.(\w+)=(\w+)", str(caught.value).split("; set ")[1]))
    options = {"step": step if step == "1h" or "rows" in advice else "1h", **options}
    if Step.parse("step", options["step"]).is_fixed:  # lengths that such a step can count
        whole = Step.parse("step", options["step"])
        options |= {name: whole.spell(count * whole.count) for name, count in LENGTHS.items()}
    data = module(tmp_path, table(times), **options)
    assert data.report["rows"] + data.report["resampled_away"] == len(times)
    assert (data.report["off_grid"], data.report["duplicates"]) == (0, 0)
    assert data.report["splits"]["test"]["windows"] > 0


LENGTHS = {"lookback": 4, "horizon": 2, "season": 2}


def test_rounded_times_are_the_nearest_whole_steps() -> None:
    times = seconds(HOUR + RANDOM.integers(-900, 900, 600))
    series = clean(table(times), **COLUMNS, round_times="1h")
    assert pd.DatetimeIndex(series.times).tolist() == times.round("h").tolist()


def test_a_forecast_from_rows_of_another_step_says_what_the_model_needs() -> None:
    hourly = pd.date_range("2020-01-01", periods=60, freq="h").to_numpy().astype("datetime64[us]").astype(np.int64)
    rows = Rows(hourly, np.zeros((60, 1)), np.arange(60))
    with pytest.raises(DataError, match=r"1h apart, which doesn't suit data.step=10min: give it rows that are 10min"):
        arrange(rows, columns=["x"], step="10min", from_last=True)


def test_months_are_no_fixed_step_for_means_either() -> None:
    with pytest.raises(DataError, match=r"set data.step=1mo"):
        clean(table(pd.date_range("1990-01-01", periods=297, freq="MS")), **COLUMNS, step="31d", resample="mean")


def test_rows_without_weekends_are_told_what_makes_windows_of_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no rows on weekends: set data.step=1bd") as caught:
        module(tmp_path, table(pd.bdate_range("2015-01-01", periods=300)), step="1d", lookback="5d", horizon="2d")
    options = dict(re.findall(r"data\.(\w+)=(\w+)", str(caught.value).split("on weekends: set ")[1]))
    assert module(tmp_path, table(pd.bdate_range("2015-01-01", periods=300)), **options).report["gaps"] == []


# --- months, business days and rows from file to forecast ---


def test_a_month_without_a_row_is_a_gap_that_no_window_crosses(tmp_path: Path) -> None:
    times = pd.date_range("2000-01-01", periods=120, freq="MS").delete(50)
    data = module(tmp_path, table(times), step="1mo", lookback="4mo", horizon="2mo", season="2mo")
    assert [gap["after"] for gap in data.report["gaps"]] == ["2004-02-01T00:00:00.000000"]
    train = data.describe("train", np.arange(len(data.dataset("train"))))
    hole = pd.Timestamp("2004-03-01")
    expected = [
        first
        for first in times[4:95]
        if not first - pd.DateOffset(months=4) <= hole <= first + pd.DateOffset(months=1)
        and first + pd.DateOffset(months=1) <= times[94]
    ]
    assert train["first_target"].tolist()[: len(expected)] == expected[: len(train)]


@pytest.mark.parametrize(("step", "frequency"), [("1mo", "MS"), ("3mo", "QS"), ("1y", "YS")])
def test_means_over_calendar_steps_are_those_of_pandas(step: str, frequency: str) -> None:
    times = pd.date_range("2000-02-01", "2011-12-31", freq="D")  # begins within a quarter
    values = pd.Series(RANDOM.normal(size=len(times)), times)
    series = clean(table(times, values), **COLUMNS, step=step, resample="mean")
    expected = values.resample(frequency).mean()
    assert pd.DatetimeIndex(series.times).tolist() == expected.index.tolist()
    np.testing.assert_allclose(series.values[:, 0], expected, rtol=1e-12)


def test_several_rows_in_a_month_need_a_rule() -> None:
    frame = table(pd.date_range("2000-01-01", periods=400))
    with pytest.raises(DataError, match=r"lines 2 and 3: several rows in one month .*data.resample=mean averages"):
        clean(frame, **COLUMNS, step="1mo")
    assert len(clean(frame, **COLUMNS, step="1mo", resample="mean").times) == 14


def test_the_climatology_of_months_is_their_usual_value(tmp_path: Path) -> None:
    times = pd.date_range("2000-01-31", periods=240, freq="ME")
    values = 10 + 3 * np.cos(2 * np.pi * times.month / 12) - np.sin(4 * np.pi * times.month / 12)
    data = module(tmp_path, table(times, values), step="1mo", lookback="1y", horizon="6mo", season="1y")
    assert data.facts["features"] == ["x", "sin_year", "cos_year"]
    assert (data.facts["step_hours"], data.facts["season_length"]) == (None, 12)
    batch = data.dataset("test")[[0, 5]]
    np.testing.assert_allclose(batch["climatology"], batch["targets"], atol=1e-5)


@pytest.mark.parametrize(("step", "length"), [("1y", "4y"), ("rows", "4rows")])
def test_years_and_rows_have_no_calendar_and_their_usual_value_is_the_mean(
    step: str, length: str, tmp_path: Path
) -> None:
    frame = table(pd.date_range("1900-01-01", periods=100, freq="YS"), RANDOM.normal(size=100))
    data = module(tmp_path, frame, step=step, lookback=length, horizon=length, season=length)
    assert data.facts["features"] == ["x"]
    usual = data.dataset("test")[[0]]["climatology"]
    np.testing.assert_allclose(usual, frame["x"][:70].mean(), atol=1e-6)


def test_a_split_by_date_and_by_months_cuts_where_pandas_does(tmp_path: Path) -> None:
    times = pd.date_range("1990-01-31", periods=240, freq="ME")
    spans = {"step": "1mo", "lookback": "1y", "horizon": "2mo", "season": "1y", "split": "date"}
    data = module(tmp_path, table(times), **spans, test_from="2005-01", val_from="2y", test_until="18mo")
    for split, part in {"val": slice("2003", "2004"), "test": slice("2005-01", "2006-06")}.items():
        ends = pd.Series(times, times)[part]
        found = data.report["splits"][split]
        assert [pd.Timestamp(found["from"]), pd.Timestamp(found["to"])] == [ends.iloc[0], ends.iloc[-1]]


def looked_back(folder: Path, frame: pd.DataFrame, **options: Any) -> Lookbacks:
    data = module(folder, frame, **options)
    series = clean(pd.read_csv(folder / "t.csv", dtype=str), **data.facts["cleaning"], from_last=True)
    return Lookbacks(series, data.facts)


@pytest.mark.parametrize(("step", "frequency", "unit"), [("1mo", "ME", "mo"), ("3mo", "QS", "mo"), ("1bd", "B", "bd")])
def test_forecasts_are_of_the_calendar_steps_ahead_and_meet_their_truth(
    step: str, frequency: str, unit: str, tmp_path: Path
) -> None:
    times = pd.date_range("2000-01-31", periods=200, freq=frequency)
    count = Step.parse("step", step).count
    lengths = {"lookback": f"{6 * count}{unit}", "horizon": f"{3 * count}{unit}", "season": f"{3 * count}{unit}"}
    lookbacks = looked_back(tmp_path, table(times[:-3]), step=step, **lengths)
    assert pd.DatetimeIndex(lookbacks.times_ahead(lookbacks.origins[-1:])[0]).tolist() == times[-3:].tolist()
    chosen = lookbacks.spaced(4)
    assert np.diff(chosen).tolist() == [4] * (lookbacks.possible(4) - 1)
    assert lookbacks.truth(chosen[:-1]).tolist() == [[row + 1, row + 2, row + 3] for row in chosen[:-1].tolist()]
    assert lookbacks.lacking() == ""


def test_a_missing_month_is_named() -> None:
    times = pd.date_range("2000-01-31", periods=40, freq="ME").delete(37)
    facts = {
        **{"lookback": 6, "horizon": 2, "features": ["x"], "target": "x", "calendar": False, "missing": "drop"},
        **{"feature_mean": [0.0], "feature_std": [1.0], "climatology": {"coefficients": [[0.0]]}},
        **{"target_mean": 0.0, "target_std": 1.0},
    }
    lookbacks = Lookbacks(clean(table(times), **COLUMNS, step="1mo", from_last=True), facts)
    assert "6 steps of 1mo up to 2003-04-30 00:00 is incomplete: missing 1 of 6 readings (2003-02-28 00:00)" in (
        lookbacks.lacking()
    )


def test_rows_with_times_know_those_of_rows_and_no_others(tmp_path: Path) -> None:
    holidays = pd.bdate_range("2015-01-01", periods=300).delete([7, 30, 31, 200])
    lookbacks = looked_back(tmp_path, table(holidays), step="rows", lookback="6rows", horizon="3rows", season="3rows")
    assert len(lookbacks.origins) == len(holidays) - 5
    ahead = lookbacks.times_ahead(lookbacks.origins[[-5, -2]])
    assert pd.DatetimeIndex(ahead[0]).tolist() == holidays[-4:-1].tolist()
    assert pd.DatetimeIndex(ahead[1]).tolist() == [holidays[-1], pd.NaT, pd.NaT]


def test_rows_without_times_are_numbered(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(200.0)})
    options: dict[str, Any] = {"time_column": None, "step": "rows", "lookback": "6rows", "horizon": "3rows"}
    lookbacks = looked_back(tmp_path, frame, **options, season="3rows")
    assert lookbacks.times_ahead(lookbacks.origins[-1:]).tolist() == [[201, 202, 203]]
    data = module(tmp_path, frame, **options, season="3rows")
    assert data.describe("test", np.array([0])).iloc[0].tolist() == [180, 181, 183]
    assert data.target_times("test", np.array([0, 0]), np.array([1, 3])).tolist() == [181, 183]
    assert data.dataset("test")[[0]]["targets"].tolist() == [[180.0, 181.0, 182.0]]


@pytest.mark.parametrize("options", [{"step": "1h"}, {"step": "rows", "split": "date"}])
def test_rows_without_times_need_such_a_step_and_split(options: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.time_column=null.*needs data.step=rows data.split=fraction"):
        module(tmp_path, pd.DataFrame({"x": np.arange(200.0)}), time_column=None, **options)


def test_lengths_that_a_step_cannot_count_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.lookback=5d, data.horizon=2d, data.season=1d can't be counted in steps"):
        module(tmp_path, table(pd.date_range("2000", periods=99, freq="MS")), step="1mo")
    with pytest.raises(
        DataError, match=r"data.lookback=5d, data.horizon=2d, data.season=1d is not a multiple of data.s"
    ):
        module(tmp_path, table(pd.date_range("2000", periods=99, freq="7D")), step="7d")
