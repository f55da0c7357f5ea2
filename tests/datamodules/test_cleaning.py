from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.cleaning import CleanSeries, clean
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError

FORMAT = "%Y-%m-%d %H:%M:%S"


def table(times: Any, values: Any = None, **columns: Any) -> pd.DataFrame:
    times = pd.DatetimeIndex(times)
    x = np.arange(float(len(times))) if values is None else values
    return pd.DataFrame({"time": times.strftime(FORMAT), "x": x, **columns})


def cleaned(frame: pd.DataFrame, columns: tuple[str, ...] = ("x",), **rules: Any) -> CleanSeries:
    return clean(frame, time_column="time", time_format=FORMAT, columns=columns, **{"min_share": 0.5, **rules})


def as_pandas(series: CleanSeries) -> pd.DataFrame:
    return pd.DataFrame(series.values, pd.DatetimeIndex(series.times), [*series.names])


def minutes(count: int, start: str = "2020-01-01") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=count, freq="min")


# --- means over bins ---


@pytest.mark.parametrize(("share", "offset", "step"), [(0.5, None, "1h"), (0.9, "10min", "1h"), (0.2, "6h", "24h")])
def test_means_are_those_of_pandas_where_enough_readings_are_there(share: float, offset: str | None, step: str) -> None:
    draw = np.random.default_rng(0)
    times = minutes(3 * 1440, "2020-01-01 09:17")[draw.random(3 * 1440) < np.repeat(draw.random(72), 60)]
    frame = table(times, draw.normal(size=len(times)), y=draw.normal(size=len(times)))
    frame.loc[draw.random(len(times)) < 0.3, "y"] = -9999
    options = {"missing_values": [-9999], "resample": "mean", "step": step, "bin_offset": offset}
    series = cleaned(frame, ("x", "y"), **options, min_share=share)
    cells = frame.set_index(times)[["x", "y"]].replace(-9999, np.nan)
    bins = cells.resample(pd.Timedelta(step), offset=offset)
    enough = bins.count() >= share * pd.Timedelta(step) / pd.Timedelta("1min")
    expected = bins.mean().where(enough).dropna(how="all")
    expected.index = expected.index.astype("datetime64[us]")
    assert 0 < len(expected) < len(enough)
    assert expected.isna().any().any() or share < 0.5
    pd.testing.assert_frame_equal(as_pandas(series), expected, check_freq=False)
    occurring = bins.size() > 0
    assert series.report["thin_bins"] == (~enough[occurring]).any(axis=1).sum()


def test_a_bin_cut_off_by_the_files_beginning_or_end_is_missing() -> None:
    series = cleaned(table(minutes(2 * 1440, "2020-01-01 20:00")[: 1440 + 250]), step="1d", resample="mean")
    assert [*series.times.astype(str)] == ["2020-01-02T00:00:00.000000"]
    assert series.column("x").tolist() == [np.arange(240, 1680).mean()]
    assert series.report["thin_bins"] == 2


def test_a_bin_with_one_reading_of_a_day_is_a_gap() -> None:
    times = minutes(5 * 1440).delete(range(2 * 1440 + 1, 3 * 1440))
    series = cleaned(table(times), step="1d", resample="mean")
    assert series.report["gaps"] == [{"after": "2020-01-02T00:00:00.000000", "minutes": 2880.0}]
    assert (series.report["thin_bins"], series.report["rows"]) == (1, 4)


def test_bins_do_not_depend_on_where_a_file_begins() -> None:
    frame = table(minutes(3000, "2020-01-01 00:10"))
    whole = as_pandas(cleaned(frame, step="7h", resample="mean"))
    for begin in (1, 37, 400):
        part = as_pandas(cleaned(frame.iloc[begin:], step="7h", resample="mean"))
        pd.testing.assert_frame_equal(part.iloc[1:], whole.loc[part.index[1] :])


def test_weeks_begin_on_mondays() -> None:
    series = cleaned(table(pd.date_range("2020-01-01", periods=60)), step="1w", resample="mean")
    assert set(pd.DatetimeIndex(series.times).day_name()) == {"Monday"}
    assert series.times[0] == np.datetime64("2019-12-30")  # five of its days are there


def test_months_need_their_share_of_readings_too() -> None:
    times = pd.date_range("2020-01-20", "2020-05-10").delete(range(45, 65))
    frame = table(times)
    series = cleaned(frame, step="1mo", resample="mean")
    months = frame.set_index(times)["x"].resample("MS")
    expected = months.mean()[months.count() >= 0.5 * months.mean().index.days_in_month]
    assert [*series.times.astype("datetime64[D]").astype(str)] == ["2020-02-01", "2020-04-01"]
    assert series.column("x").tolist() == expected.tolist()
    assert series.report["thin_bins"] == 3


def test_business_days_need_half_the_readings_of_the_others() -> None:
    days = pd.bdate_range("2020-01-01", periods=10)
    times = pd.DatetimeIndex([day + pd.Timedelta(minutes=540 + 5 * slot) for day in days for slot in range(90)])
    series = cleaned(table(times.delete(range(200, 260))), step="1bd", resample="mean")
    assert [*pd.DatetimeIndex(series.times)] == [*days.delete(2)]


@pytest.mark.parametrize("extra", ["doubled", "faster"])
def test_readings_that_come_twice_or_faster_fill_no_bin(extra: str) -> None:
    times = pd.date_range("2020-01-01", periods=6 * 48, freq="10min").delete(range(62, 66))  # 2 of 6 are left
    frame = table(times)
    if extra == "doubled":
        frame = pd.concat([frame, frame.iloc[60:62], frame.iloc[60:62]])
    else:
        quick = table(pd.date_range("2020-01-01 10:00:10", periods=40, freq="10s"))
        frame = pd.concat([frame, quick])
    series = cleaned(frame, step="1h", resample="mean")
    assert series.report["thin_bins"] == 1
    assert np.datetime64("2020-01-01T10:00") not in series.times


def test_a_wobbling_clock_leaves_bins_full() -> None:
    wobble = pd.to_timedelta(np.random.default_rng(0).integers(-2, 3, 1440), unit="s")
    times = minutes(1440)[1:] + wobble[1:]
    series = cleaned(table(times), step="1h", resample="mean", min_share=0.9, duplicates="first")
    assert (len(series.times), series.report["thin_bins"]) == (24, 0)


def test_wind_needs_both_its_columns() -> None:
    frame = table(minutes(120), 2.0, direction=0.0)
    frame["x"] = frame["x"].astype(float)
    frame.loc[0:40, "direction"] = -9999
    wind = {"wind": {"speed": "x", "direction": "direction"}, "missing_values": [-9999]}
    series = cleaned(frame, ("x", "direction"), resample="mean", **wind)
    assert np.isnan(series.column("wind_x")).tolist() == [True, False]
    assert series.column("x").tolist() == [2.0, 2.0]


def test_without_a_share_one_reading_is_enough_and_bins_begin_with_the_file() -> None:
    frame = table(minutes(121, "2020-01-01 00:10"))
    series = cleaned(frame, resample="mean", min_share=None)
    assert [*series.times.astype("datetime64[m]").astype(str)] == [f"2020-01-01T0{hour}:10" for hour in range(3)]
    assert series.column("x")[-1] == 120


@pytest.mark.parametrize("rows", [1440, 1439, 1441, 1500])
def test_a_forecast_begins_after_the_last_bin_that_is_over(rows: int) -> None:
    frame = table(minutes(rows))
    ends, training = (cleaned(frame, resample="mean", from_last=at_end) for at_end in (True, False))
    assert ends.times[-1] == np.datetime64("2020-01-01T00:00") + (rows // 60 - 1) * np.timedelta64(1, "h")
    pd.testing.assert_frame_equal(as_pandas(ends), as_pandas(training).iloc[: len(ends.times)])
    assert ends.report["unfinished"] == rows % 60


@pytest.mark.parametrize("absent", [range(1390, 1440), range(1300, 1460)])
def test_the_last_bin_that_is_over_is_missing_if_too_little_was_read_in_it(absent: range) -> None:
    series = cleaned(table(minutes(1470).delete(absent)), resample="mean", from_last=True)
    assert series.times[-1] == np.datetime64("2020-01-01T23:00")
    assert np.isnan(series.values[-1]).all()


def test_a_bin_that_is_missing_in_training_is_no_target(tmp_path: Path) -> None:
    times = minutes(20 * 1440 + 10).delete(range(15 * 1440 + 1, 16 * 1440))
    path = tmp_path / "t.csv"
    table(times, np.arange(20 * 1440 + 10)[: len(times)] % 7.0).to_csv(path, index=False)
    options: dict[str, Any] = {
        **{"time_column": "time", "time_format": FORMAT, "target": "x", "features": ["x"], "calendar": False},
        **{"step": "1d", "lookback": "2d", "horizon": "1d", "split": "fraction", "resample": "mean"},
    }
    data = SeriesDataModule("t", path=str(path), **options, min_share=0.5)
    data.setup()
    tested = data.describe("test", np.arange(len(data.dataset("test"))))["first_target"]
    assert pd.Timestamp("2020-01-16") not in [*tested]
    assert (data.report["thin_bins"], len(data.report["gaps"])) == (2, 1)
    before = SeriesDataModule("t", path=str(path), **options)
    before.setup()
    assert (before.report["rows"], before.report["gaps"]) == (21, [])
    assert "min_share" not in before.facts["cleaning"]


# --- rows that are absent ---


def filling(folder: Path, frame: pd.DataFrame, **changes: Any) -> SeriesDataModule:
    path = folder / "t.csv"
    frame.to_csv(path, index=False)
    options: dict[str, Any] = {
        **{"time_column": "time", "time_format": FORMAT, "target": "x", "features": ["x", "y"], "lookback": "6h"},
        **{"season": "6h", "horizon": "2h", "split": "fraction", "missing": "ffill", "fill_limit": 2, "min_share": 0.5},
    }
    data = SeriesDataModule("t", path=str(path), **options | changes)
    data.setup()
    return data


@pytest.mark.parametrize("absent", [[50], [50, 51], [50, 52], range(50, 70), [30, 190, 230]], ids=str)
def test_an_absent_row_is_filled_as_empty_cells_are(absent: Any, tmp_path: Path) -> None:
    frame = table(pd.date_range("2020-03-28", periods=240, freq="h"), y=np.arange(240.0) % 7)
    empty = frame.copy()
    empty.loc[[*absent], ["x", "y"]] = np.nan
    rows, cells = filling(tmp_path, frame.drop(index=absent)), filling(tmp_path, empty)
    if len(absent) < 5:
        assert rows.report["absent_rows"] == len(absent)
        assert rows.report["gaps"] == []
        assert rows.report["splits"] == cells.report["splits"]
    for split in ("train", "val", "test"):
        found, expected = (data.describe(split, np.arange(len(data.dataset(split)))) for data in (rows, cells))
        if len(absent) < 5:
            assert found.equals(expected)
            batch, same = (data.dataset(split)[range(len(found))] for data in (rows, cells))
            assert all(np.array_equal(batch[name], same[name]) for name in batch if name != "index")
        hours = found["first_target"].to_numpy()[:, None] + np.arange(2) * np.timedelta64(1, "h")
        assert not np.isin(hours, pd.to_datetime(frame["time"])[[*absent]].to_numpy()).any()  # truth is never filled


def test_the_hour_that_clocks_skip_in_spring_is_filled(tmp_path: Path) -> None:
    times = pd.date_range("2020-03-26", periods=240, freq="h", tz="Europe/Berlin").tz_localize(None)
    data = filling(tmp_path, table(times, y=1.0))
    assert (data.report["absent_rows"], data.report["gaps"]) == (1, [])


def test_rows_of_a_shifted_recording_are_no_closer_than_a_step() -> None:
    times = pd.date_range("2020-01-01", periods=20, freq="h")
    times = times[:10].append(times[12:] + pd.Timedelta("10min"))
    series = cleaned(table(times), fill_rows=5)
    assert series.report["absent_rows"] == 2
    assert np.diff(series.times).min() == np.timedelta64(1, "h")


def test_a_run_without_a_share_fills_no_absent_row(tmp_path: Path) -> None:
    frame = table(pd.date_range("2020-03-28", periods=240, freq="h"), y=1.0).drop(index=50)
    assert len(filling(tmp_path, frame, min_share=None).report["gaps"]) == 1


# --- rows of the same time ---


def stations(order: str) -> pd.DataFrame:
    times = pd.date_range("2020-01-01", periods=48, freq="h")
    parts = [
        table(times, base + np.arange(48.0) % 24, station=name, code=base, humidity=np.arange(48) * (base + 1) / 7)
        for base, name in enumerate("ABC")
    ]
    frame = pd.concat(parts, ignore_index=True)
    frames = {"blocks": frame, "times": frame.sort_values("time", kind="stable"), "mixed": frame.sample(frac=1)}
    return frames[order].reset_index(drop=True)


@pytest.mark.parametrize("order", ["blocks", "times", "mixed"])
@pytest.mark.parametrize("resample", ["sample", "mean", "rows"])
def test_several_series_in_one_file_are_refused_and_their_names_found(order: str, resample: str) -> None:
    message = r"96 rows have the time of another row but other values, the first, 2020-01-01T00:00:00, in lines"
    with pytest.raises(DataError, match=message) as caught:
        cleaned(stations(order), resample=resample, step="2h")
    text = str(caught.value)
    assert "'station' (" in text
    assert text.index("'station'") < text.index("'code'")
    assert "humidity" not in text
    assert "data.duplicates" in text
    assert len(cleaned(stations(order), duplicates="first").times) == 48


def test_identical_rows_are_one_and_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    frame = table(pd.date_range("2020-01-01", periods=48, freq="h"), station="A")
    frame.loc[5, "x"] = -9999
    again = pd.concat([frame, frame.iloc[4:30].assign(station="B")])  # a column that is not read may differ
    series = cleaned(again, missing_values=[-9999], allow_loss=False)
    pd.testing.assert_frame_equal(as_pandas(series), as_pandas(cleaned(frame, missing_values=[-9999])))
    assert series.report["duplicates"] == 26
    assert not caplog.text


def test_a_missing_value_differs_from_a_reading() -> None:
    frame = table(pd.date_range("2020-01-01", periods=48, freq="h"))
    again = frame.iloc[[7]].assign(x=-9999)
    with pytest.raises(
        DataError, match=r"1 rows have the time of another .* lines 9 and 50\. Keep one row of each time"
    ):
        cleaned(pd.concat([frame, again]), missing_values=[-9999])


# --- rows that are lost ---


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.parametrize(("finer", "outcome"), [(0, ""), (9, ""), (30, "warning"), (200, "error")])
def test_rows_off_the_grid_are_a_warning_from_one_in_a_hundred_and_an_error_from_one_in_ten(
    finer: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    hourly = pd.date_range("2020-01-01", periods=1000, freq="h")
    times = hourly.append(hourly[:finer] + pd.Timedelta("20min")).sort_values()
    message = rf"{finer} of {1000 + finer} rows \(\d+%\) are lost: they are off the grid"
    if outcome == "error":
        with pytest.raises(DataError, match=rf"{message}.*data\.allow_loss=true"):
            cleaned(table(times), allow_loss=False)
    series = cleaned(table(times), allow_loss=outcome == "error")
    assert series.report["off_grid"] == finer
    warned = warnings_of(caplog)
    assert bool(warned) == bool(outcome)
    assert not outcome or pd.Series([warned]).str.contains(message).all()


def test_sampling_loses_nothing_but_the_steps_that_have_readings_at_other_times_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = pd.date_range("2020-01-01", periods=6000, freq="10min")
    cleaned(table(times), allow_loss=False)
    assert not warnings_of(caplog)
    later = pd.date_range(times[-1] + pd.Timedelta("40min"), periods=400, freq="h")  # from here on, at half past
    message = r"400 of 1400 steps \(2\d%\) are lost: they have readings, but none at the time that data.resample=sample"
    with pytest.raises(DataError, match=message):
        cleaned(table(times.append(later)), allow_loss=False)


def test_rows_in_thin_bins_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    times = pd.date_range("2020-01-01", periods=6000, freq="10min")
    later = pd.date_range(times[-1] + pd.Timedelta("10min"), periods=400, freq="h")
    with pytest.raises(DataError, match=r"400 of 1400 bins of 1h \(29%\) are lost: they have too few readings"):
        cleaned(table(times.append(later)), resample="mean", allow_loss=False)
    cleaned(table(times.append(later[:60])), resample="mean", allow_loss=False)
    assert "60 of 1060 bins of 1h (6%) are lost: they have too few readings for a mean" in warnings_of(caplog)


def test_thin_bins_of_rows_are_missing() -> None:
    frame = table(pd.date_range("2020-01-01", periods=122, freq="h"))
    frame["x"] = [*map(str, range(121)), "1000"]
    series = cleaned(frame, step="4rows", resample="mean", min_share=1.0)
    np.testing.assert_array_equal(series.column("x"), np.arange(120).reshape(30, 4).mean(axis=1))
    series = cleaned(frame, step="4rows", resample="mean", min_share=0.5)
    assert series.column("x")[-1] == 560


def test_rows_that_a_rule_for_repeated_times_drops_are_lost_if_they_differ() -> None:
    with pytest.raises(DataError, match=r"96 of 144 rows \(67%\) are lost: they repeat a time with other values"):
        cleaned(stations("blocks"), duplicates="last", allow_loss=False)
    cleaned(stations("blocks"), duplicates="mean", allow_loss=False)


def test_two_rows_of_a_short_file_may_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    hourly = pd.date_range("2020-01-01", periods=9, freq="h")
    cleaned(table(hourly.append(hourly[:2] + pd.Timedelta("20min")).sort_values()), allow_loss=False)
    assert not warnings_of(caplog)
