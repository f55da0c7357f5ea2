from __future__ import annotations

import json
import logging
import os
import re
import time
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.cleaning import clean
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError, file_sha256
from datamodules.steps import Step, instant
from datamodules.windows import Climatology, WindowDataset, offset_of, window_starts

START = pd.Timestamp("2020-01-01")
FORMAT = "%Y-%m-%d %H:%M:%S"
SMALL = {
    "time_column": "time",
    "time_format": FORMAT,
    "target": "T (degC)",
    "features": ["T (degC)", "p"],
    "calendar": False,
    "lookback": "4h",
    "horizon": "2h",
    "season": "2h",
    "reach_back": False,
    "val_from": "2020-01-03",
    "test_from": "2020-01-04",
}
real = pytest.mark.skipif(not os.environ.get("RNN_LAB_DATA"), reason="needs RNN_LAB_DATA")


def hourly(hours: Any, temperature: Any = None, pressure: Any = None) -> pd.DataFrame:
    """A table of rows at `hours` after the start."""
    hours = np.asarray(hours, dtype=float)
    return pd.DataFrame(
        {
            "time": [(START + pd.Timedelta(minutes=round(60 * hour, 6))).strftime(FORMAT) for hour in hours],
            "T (degC)": np.sin(hours) * 5 if temperature is None else temperature,
            "p": 990 + hours if pressure is None else pressure,
        }
    )


def module(folder: Path, frame: pd.DataFrame | str, **changes: Any) -> SeriesDataModule:
    path = folder / "series.csv"
    path.write_text(frame if isinstance(frame, str) else frame.to_csv(index=False), encoding="utf-8")
    return SeriesDataModule("series", path=str(path), **{**SMALL, **changes})


def ready(folder: Path, frame: pd.DataFrame | str, **changes: Any) -> SeriesDataModule:
    data = module(folder, frame, **changes)
    data.setup()
    return data


def cleaned(frame: pd.DataFrame, **changes: Any) -> Any:
    options = {"time_column": "time", "time_format": FORMAT, "columns": ["T (degC)", "p"]}
    return clean(frame, **{**options, **changes})


def whole(data: SeriesDataModule, split: str) -> dict[str, torch.Tensor]:
    windows = data.dataset(split)
    return windows[list(range(len(windows)))]


# --- windows against brute force ---


@st.composite
def _recordings(draw: st.DrawFn) -> list[tuple[int, float | None]]:
    """(hour, temperature) rows of 80 hours with holes, repeats, missing values and disorder."""
    lost = draw(st.sets(st.integers(0, 79), max_size=8))
    hours = [hour for hour in range(80) if hour not in lost]
    for repeat in draw(st.lists(st.sampled_from(hours), max_size=5)):
        hours.insert(draw(st.integers(0, len(hours))), repeat)
    hours = draw(st.sampled_from([hours, hours[::-1], hours[40:] + hours[:40]]))
    missing = draw(st.sets(st.integers(0, len(hours) - 1), max_size=5))
    return [(hour, None if row in missing else float(row)) for row, hour in enumerate(hours)]


def _brute_force(
    rows: list[tuple[int, float | None]], first: bool, fill: int, reach_back: bool, lookback: int, horizon: int
) -> dict[str, list[tuple[int, list[float], list[float]]]]:
    """Every window by definition: (hour of the first target, inputs, targets)."""
    value: dict[int, float | None] = {}
    for hour, temperature in rows:
        if not first or hour not in value:
            value[hour] = temperature
    found: dict[str, list[tuple[int, list[float], list[float]]]] = {}
    for split, (begin, end) in {"train": (0, 48), "val": (48, 60), "test": (60, 80)}.items():
        earliest = 0 if reach_back else begin
        found[split] = []
        for origin in range(begin, end):
            inputs = []
            for hour in range(origin - lookback, origin):
                seen = hour
                while hour - seen < fill and seen - 1 >= earliest and seen in value and value[seen] is None:
                    seen -= 1
                if hour >= earliest and hour in value and value.get(seen) is not None:
                    inputs.append(value[seen])
            ahead = [value.get(hour) for hour in range(origin, min(end, origin + horizon))]
            targets = [temperature for temperature in ahead if temperature is not None]
            if len(inputs) == lookback and len(targets) == horizon:
                found[split].append((origin, inputs, targets))
    return found


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_recordings(), first=st.booleans(), fill=st.sampled_from([0, 1, 2]), reach_back=st.booleans())
def test_windows_match_brute_force(
    tmp_path: Path, rows: list[tuple[int, float | None]], first: bool, fill: int, reach_back: bool
) -> None:
    expected = _brute_force(rows, first, fill, reach_back, lookback=4, horizon=2)
    frame = hourly([hour for hour, _ in rows], [-9999 if t is None else t for _, t in rows])
    data = module(
        tmp_path,
        frame,
        features=["T (degC)"],
        duplicates="first" if first else "last",
        missing="ffill" if fill else "drop",
        fill_limit=max(1, fill),
        reach_back=reach_back,
        val_from="2020-01-03T00:00",
        test_from="2020-01-03T12:00",
    )
    if not all(expected.values()):
        with pytest.raises(DataError, match="holds no window"):
            data.setup()
        return
    data.setup()
    for split, windows in expected.items():
        batch = whole(data, split)
        described = data.describe(split, batch["index"].numpy())
        assert list(described["first_target"]) == [START + pd.Timedelta(hours=origin) for origin, _, _ in windows]
        assert batch["history"].tolist() == [inputs for _, inputs, _ in windows]
        assert batch["targets"].tolist() == [targets for _, _, targets in windows]


@given(
    runs=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    bad=st.sets(st.integers(0, 40), max_size=4),
    stride=st.integers(1, 5),
)
def test_stride_takes_every_kth_window_of_each_run(runs: list[int], bad: set[int], stride: int) -> None:
    segments = np.repeat(np.arange(len(runs)), runs)
    missing = np.isin(np.arange(len(segments)), list(bad))
    starts, _ = window_starts(segments, missing, missing, 3, 2, stride)
    first = np.concatenate([[0], np.cumsum(runs)])
    expected = [
        first[run] + offset
        for run, length in enumerate(runs)
        for offset in range(0, length - 4, stride)
        if not missing[first[run] + offset : first[run] + offset + 5].any()
    ]
    assert starts.tolist() == expected


@pytest.mark.parametrize(("rows", "windows"), [(5, None), (6, 1), (7, 2)])
def test_a_split_shorter_than_a_window_is_an_error_that_names_both_lengths(
    tmp_path: Path, rows: int, windows: int | None
) -> None:
    data = module(tmp_path, hourly(range(72 + rows)))
    if windows is None:
        with pytest.raises(DataError, match=r"test split holds no window .*test 5 rows.* needs 6 rows .*longest .* 5,"):
            data.setup()
    else:
        data.setup()
        assert len(data.dataset("test")) == windows


def test_a_series_shorter_than_a_window_is_an_error_that_names_both_lengths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 5 rows of 1h after cleaning, a window needs 6"):
        ready(tmp_path, hourly(range(5)))


def test_an_empty_split_is_an_error_that_names_sizes_and_the_range_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val split holds no window .*val 0 rows.*2020-01-01T00.* to 2020-01-02T23"):
        ready(tmp_path, hourly(range(48)))


def test_fractions_split_by_time(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(100)), split="fraction", val_fraction=0.2, test_fraction=0.1)
    assert [data.report["splits"][split]["rows"] for split in ("train", "val", "test")] == [70, 20, 10]
    ends = [data.describe(s, np.array([0, -1])) for s in ("train", "val", "test")]
    assert ends[0]["last_target"].max() < ends[1]["origin"].min() - pd.Timedelta(hours=3)
    assert ends[1]["last_target"].max() < ends[2]["origin"].min() - pd.Timedelta(hours=3)


def test_fractions_need_no_dates_and_dates_are_asked_for_by_name(tmp_path: Path) -> None:
    unset: dict[str, Any] = {"val_from": None, "test_from": None}
    data = ready(tmp_path, hourly(range(100)), split="fraction", **unset)
    assert data.report["splits"]["train"]["rows"] == 70
    with pytest.raises(DataError, match=r"data\.test_from=None is not a date"):
        module(tmp_path, hourly(range(100)), split="date", **unset)


@pytest.mark.parametrize(("reach_back", "windows"), [(False, 18), (True, 24 - 1)])
def test_a_filled_value_comes_from_before_the_split_only_if_inputs_may(
    tmp_path: Path, reach_back: bool, windows: int
) -> None:
    frame = hourly(range(96))
    frame.loc[48, "p"] = -9999  # the first row of validation
    data = ready(tmp_path, frame, missing="ffill", reach_back=reach_back)
    assert len(data.dataset("val")) == windows


def test_validation_and_test_may_be_given_by_how_long_they_are(tmp_path: Path) -> None:
    frame = hourly(range(200))
    dates = ready(tmp_path, frame, val_from="2020-01-03T00:00", test_from="2020-01-05", test_until="2020-01-06T12:00")
    durations = ready(tmp_path, frame, val_from="2d", test_from="2020-01-05", test_until="1d12h")
    for split in ("train", "val", "test"):
        assert durations.report["splits"][split] == dates.report["splits"][split]
    years = instant("test_until", "1y", after=np.datetime64("2016-01-01", "us"))
    assert (years, instant("val_from", "2Y", before=years)) == (
        np.datetime64("2017-01-01"),
        np.datetime64("2015-01-01"),
    )


def test_rows_from_test_until_on_are_not_used(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(100)), test_until="2020-01-05")
    assert data.report["rows_after_test_until"] == 4
    assert data.describe("test", np.array([-1]))["last_target"][0] == pd.Timestamp("2020-01-04T23:00")


# --- cleaning ---


def test_sampling_takes_every_kth_row_as_recorded() -> None:
    minutes = np.concatenate([np.arange(3000), np.arange(2950, 4000)])  # one repeated stretch
    frame = hourly(minutes / 6)
    series = cleaned(frame, step="1h", resample="rows")
    recorded = pd.to_datetime(frame["time"][::6])
    assert series.report["native_step"] == "10min"
    assert series.report["backward_jumps"] == 1
    expected = [recorded.sort_values().iloc[0]]
    for stamp in recorded.sort_values():
        if stamp - expected[-1] >= pd.Timedelta(hours=1):
            expected.append(stamp)
    assert list(pd.DatetimeIndex(series.times)) == expected


@pytest.mark.parametrize("resample", ["sample", "mean"])
def test_what_is_missing_doubled_or_late_moves_no_other_reading(resample: str) -> None:
    whole = hourly(np.arange(0, 96, 0.25))
    times = pd.to_datetime(whole["time"])
    expected = pd.DatetimeIndex(cleaned(whole, step="1h", resample=resample).times)
    assert list(expected) == list(times[::4])
    faults = {
        "missing": whole.drop(index=[41]),
        "doubled": whole.loc[[*range(90), 89, *range(90, 384)]],
        "swapped": whole.loc[[*range(50), 51, 50, *range(52, 384)]],
    }
    for name, frame in faults.items():
        series = cleaned(frame.reset_index(drop=True), step="1h", resample=resample)
        assert list(pd.DatetimeIndex(series.times)) == list(expected), name
        assert (series.report["off_grid"], series.report["gaps"]) == (0, []), name
        assert series.report["duplicates"] == (name == "doubled")
        assert series.report["backward_jumps"] == (name == "swapped")
    with pytest.raises(DataError, match="1 repeated timestamps"):
        cleaned(faults["doubled"].reset_index(drop=True), step="1h", resample=resample, duplicates="error")
    if resample == "sample":  # the one row that would have been taken: its hour is missing, no other
        series = cleaned(whole.drop(index=[40]).reset_index(drop=True), step="1h")
        assert list(pd.DatetimeIndex(series.times)) == list(expected.delete(10))


def test_gaps_that_sampling_makes_of_single_missing_rows_come_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = hourly(np.arange(576) / 6)
    holed = frame.drop(index=range(24, 560, 30))
    with pytest.raises(DataError, match=r"holds no window.* recorded step of 10min .*data\.resample=mean"):
        ready(tmp_path, holed)
    assert "data.resample=mean" in caplog.text
    data = ready(tmp_path, holed, resample="mean")
    assert (data.report["rows"], data.report["gaps"]) == (96, [])
    caplog.clear()
    ready(tmp_path, frame.drop(index=[96]))
    assert "data.resample" not in caplog.text


@pytest.mark.parametrize("resample", ["sample", "mean", "rows"])
def test_a_shuffled_file_gives_the_same_rows(resample: str) -> None:
    frame = hourly(np.arange(900) / 6)
    straight, shuffled = (
        cleaned(table, step="1h", resample=resample) for table in (frame, frame.sample(frac=1, random_state=3))
    )
    assert shuffled.report["backward_jumps"] > 100
    np.testing.assert_array_equal(shuffled.times, straight.times)
    np.testing.assert_allclose(shuffled.values, straight.values)


def test_means_are_over_bins_and_of_the_values_that_are_there() -> None:
    temperature = np.arange(18.0)
    temperature[[1, 6, 7, 8, 9, 10, 11]] = -9999
    series = cleaned(hourly(np.arange(18) / 6, temperature), step="1h", resample="mean", missing_values=[-9999])
    np.testing.assert_allclose(series.column("T (degC)"), np.array([14 / 5, np.nan, 87 / 6]))


def test_a_stretch_recorded_twice_counts_once_in_a_mean() -> None:
    minutes = np.concatenate([np.arange(3000), np.arange(2950, 4000)])
    frame = hourly(minutes / 6, pressure=np.arange(len(minutes)))
    first = frame.drop_duplicates("time")
    series, expected = (cleaned(table, step="1h", resample="mean", duplicates="first") for table in (frame, first))
    assert series.report["duplicates"] == 50
    np.testing.assert_allclose(series.values, expected.values)


def test_wind_is_averaged_as_a_vector_not_as_an_angle() -> None:
    frame = hourly(np.arange(4) / 2, temperature=[2.0] * 4, pressure=[350.0, 10.0, 90.0, 90.0])
    series = cleaned(frame, wind={"speed": "T (degC)", "direction": "p"}, resample="mean")
    np.testing.assert_allclose(series.column("wind_x"), [2 * np.cos(np.deg2rad(10)), 0], atol=1e-12)
    np.testing.assert_allclose(series.column("wind_y"), [0, 2], atol=1e-12)


def test_a_missing_wind_speed_makes_the_components_missing() -> None:
    frame = hourly(range(3), temperature=[-9999, 1, 1], pressure=[0.0, -9999, 0.0])
    series = cleaned(frame, wind={"speed": "T (degC)", "direction": "p"}, missing_values=[-9999])
    assert np.isnan(series.column("wind_x")).tolist() == [True, True, False]


@pytest.mark.parametrize("rule", ["resample", "duplicates"])
def test_a_raw_wind_direction_cannot_be_averaged(rule: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"an angle, whose mean \(data\.{rule}=mean\)"):
        module(tmp_path, "", wind={"speed": "T (degC)", "direction": "p"}, **{rule: "mean"})


def test_a_lookback_shorter_than_a_season_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.lookback=12h is shorter than data\.season=1d"):
        module(tmp_path, "", lookback="12h", season="1d")


@pytest.mark.parametrize(
    ("rule", "value"), [("first", 10.0), ("last", 20.0), ("mean", 15.0)], ids=["first", "last", "mean"]
)
def test_duplicates_follow_the_rule_and_are_counted(rule: str, value: float) -> None:
    series = cleaned(hourly([0, 1, 1, 2], [0.0, 10.0, 20.0, 30.0]), duplicates=rule)
    assert series.column("T (degC)").tolist() == [0.0, value, 30.0]
    assert series.report["duplicates"] == 1


def test_duplicates_can_be_an_error_that_names_the_lines() -> None:
    with pytest.raises(DataError, match=r"2020-01-01T01:00.*lines 3 and 5"):
        cleaned(hourly([0, 1, 2, 1, 3]), duplicates="error")


def test_rows_off_the_grid_are_dropped_and_counted() -> None:
    series = cleaned(hourly([0, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]))
    assert series.report["off_grid"] == 3
    assert len(series.times) == 10
    assert len(np.unique(series.segments())) == 1


def test_times_are_station_time_and_a_clock_change_is_a_gap_or_a_duplicate(tmp_path: Path) -> None:
    # March: 02:00 never happens. October: it happens twice. Both in one table.
    spring = pd.date_range("2020-03-28", "2020-03-30", freq="h", inclusive="left").delete(26)
    autumn = pd.date_range("2020-10-24", "2020-10-28", freq="h", inclusive="left").insert(26, "2020-10-25 02:00")
    times = spring.append(autumn)
    frame = pd.DataFrame({"time": times.strftime(FORMAT), "T (degC)": np.arange(float(len(times))), "p": 1.0})
    with pytest.raises(DataError, match=r"1 rows have the time of another row but other values, .*2020-10-25T02:00"):
        ready(tmp_path, frame, val_from="2020-10-26", test_from="2020-10-27")
    data = ready(tmp_path, frame, val_from="2020-10-26", test_from="2020-10-27", duplicates="first")
    assert data.report["duplicates"] == 1
    assert data.report["gaps"][0] == {"after": "2020-03-29T01:00:00.000000", "minutes": 120.0}
    train = data.describe("train", np.arange(len(data.dataset("train"))))
    hole = pd.Timestamp("2020-03-29T02:00")
    assert not ((train["origin"] - pd.Timedelta(hours=3) < hole) & (train["last_target"] > hole)).any()
    assert (train["last_target"] - train["origin"] == pd.Timedelta(hours=2)).all()


def test_times_with_a_zone_are_in_utc_though_summer_time_ends(tmp_path: Path) -> None:
    times = pd.date_range("2020-10-20", periods=240, freq="h", tz="UTC")
    values = {"T (degC)": np.arange(240.0), "p": 1.0}
    plain = pd.DataFrame({"time": times.strftime(FORMAT), **values})
    zoned = pd.DataFrame({"time": times.tz_convert("Europe/Berlin").strftime(f"{FORMAT} %z"), **values})
    expected, found = (
        ready(tmp_path, frame, time_format=form, val_from="2020-10-26", test_from="2020-10-28")
        for frame, form in ((plain, FORMAT), (zoned, f"{FORMAT} %z"))
    )
    assert (found.report["duplicates"], found.report["gaps"]) == (0, [])
    first = np.array([0])
    in_utc = expected.describe("test", first).apply(lambda times: times.dt.tz_localize("UTC"))
    pd.testing.assert_frame_equal(found.describe("test", first), in_utc, check_dtype=False)
    assert (found.report["clock"], expected.report["clock"]) == ("UTC+00:00", "as written")


def test_missing_values_are_never_trained_on_nor_scored_and_are_counted(tmp_path: Path) -> None:
    frame = hourly(range(96))
    frame.loc[[10, 60], "T (degC)"] = -9999
    frame.loc[80, "p"] = -9999
    text = frame.astype(str)
    text.loc[20, "T (degC)"] = ""
    data = ready(tmp_path, text, missing="ffill", fill_limit=2)
    assert data.report["missing_values"] == {"T (degC)": 2, "p": 1}
    assert data.report["empty_cells"] == {"T (degC)": 1}
    bad = {START + pd.Timedelta(hours=hour) for hour in (10, 20, 60)}
    for split in ("train", "val", "test"):
        batch = whole(data, split)
        assert all(torch.isfinite(table).all() for table in batch.values())
        assert batch["targets"].min() > -10
        for _, first, last in data.describe(split, batch["index"].numpy()).itertuples(index=False):
            assert not bad & set(pd.date_range(first, last, freq="h"))
    assert [data.report["splits"][s]["cells_filled"] for s in ("train", "val", "test")] == [2, 1, 1]


MARK = 9.96921e36  # netCDF's for a missing float


def test_values_far_from_all_others_are_warned_of_once_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = hourly(range(96))
    frame.loc[[60, 70], "T (degC)"] = 12345
    frame.loc[10, "p"] = -1e7
    data = ready(tmp_path, frame)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of 'T (degC)', the first 12345 at 2020-01-03T12:00:00.000000 (line 62)" in warning
    assert "1 of 'p', the first -1e+07 at 2020-01-01T10:00:00.000000 (line 12)" in warning
    assert "set data.missing_values, now [-9999], to name them as well" in warning
    assert data.report["far_off"] == {"T (degC)": 2, "p": 1}
    assert whole(data, "val")["targets"].max() == 12345


def test_what_is_named_a_missing_value_is_no_more_far_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = hourly(range(96))
    frame.loc[60, "T (degC)"] = MARK
    data = ready(tmp_path, frame, missing_values=[-9999, MARK])
    assert not caplog.text
    assert data.report["far_off"] == {}
    assert data.report["missing_values"] == {"T (degC)": 1}


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_is_far_off_beyond_a_thousand_interquartile_ranges_of_the_training_split(
    sign: int, tmp_path: Path
) -> None:
    frame = hourly(range(96))
    low, median, high = frame["p"][:48].quantile([0.25, 0.5, 0.75])
    for ranges, expected in ((999, {}), (1001, {"p": 1})):
        frame.loc[90, "p"] = median + sign * ranges * (high - low)  # of the test split
        assert ready(tmp_path, frame).report["far_off"] == expected


def test_where_most_training_values_are_the_same_none_is_far_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rain = np.where(np.arange(96) % 10 == 0, 5.0, 0.0)
    assert ready(tmp_path, hourly(range(96), pressure=rain)).report["far_off"] == {}
    assert not caplog.text


@pytest.mark.parametrize(("value", "small"), [(1e39, False), (-1e300, False), (MARK, True)])
def test_a_number_that_is_infinite_in_float32_is_refused_with_its_line(
    value: float, small: bool, tmp_path: Path
) -> None:
    frame = hourly(range(96))
    if small:
        frame["p"] = 1e-3 * (frame["p"] - 990) / 96  # the scaled value is beyond float32
    frame.loc[60, "p"] = value
    with pytest.raises(DataError, match=r"series\.csv, line 62: .* in column 'p' is too large .* \(1 such cells\)"):
        ready(tmp_path, frame)
    assert ready(tmp_path, frame, missing_values=[value]).report["missing_values"] == {"p": 1}


def test_usual_words_for_no_reading_are_missing_values(tmp_path: Path) -> None:
    words = ["NA", "n/a", "#N/A", "NaN", "null", "None", "-", "--", " ", "---", "***", "///", "?", "缺测", "无"]
    frame = hourly(range(96)).astype(str)
    frame.loc[range(15), "p"] = words
    blank = frame.assign(p=frame["p"].where(~frame["p"].isin(words), ""))
    found, expected = (ready(tmp_path, table, missing="ffill") for table in (frame, blank))
    assert found.report["empty_cells"] == {"p": 15}
    for name, values in whole(expected, "train").items():
        torch.testing.assert_close(whole(found, "train")[name], values)


def test_decimal_commas_are_read_where_they_are_said_to_be(tmp_path: Path) -> None:
    frame = hourly(range(96))
    expected = ready(tmp_path, frame)
    commas = frame.astype(str).replace(r"\.", ",", regex=True)
    text = commas.to_csv(index=False, sep=";")
    found = ready(tmp_path, text, separator=";", decimal=",")
    for name, values in whole(expected, "test").items():
        torch.testing.assert_close(whole(found, "test")[name], values)
    with pytest.raises(DataError, match=r"line 2: '0,0' in column 'T .degC.' .*set data\.decimal=','"):
        ready(tmp_path, text, separator=";")
    with pytest.raises(DataError, match=r"line 2: '990\.0' in column 'p' is not a number"):
        ready(tmp_path, frame.to_csv(index=False, sep=";"), separator=";", decimal=",", features=["p"], target="p")


@pytest.mark.parametrize("cells", [["1,234", "2,345"], ["1,5", "987.5"]])
def test_commas_that_may_set_thousands_apart_are_not_taken_for_decimal_ones(tmp_path: Path, cells: list[str]) -> None:
    frame = hourly(range(96)).astype(str)
    frame.loc[[0, 1], "p"] = cells
    with pytest.raises(DataError, match=r"in column 'p' is not a number .*; correct it, or leave"):
        ready(tmp_path, frame)


def test_a_split_that_loses_most_of_its_windows_to_missing_values_says_so_and_what_helps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pressure = np.where(np.arange(96) % 7 == 3, -9999, 990.0)
    with pytest.raises(DataError, match=r"holds no window.* data\.missing=ffill carries the last value on"):
        ready(tmp_path, hourly(range(96), pressure=np.where(np.arange(96) % 4 == 3, -9999, 990.0)))
    ready(tmp_path, hourly(range(96), pressure=pressure))
    assert "windows of the train split are left out" in caplog.text
    assert "data.missing=ffill" in caplog.text
    caplog.clear()
    ready(tmp_path, hourly(range(96), pressure=pressure), missing="ffill")
    assert "left out" not in caplog.text
    warm = np.where(np.arange(96) % 7 == 3, -9999, 9.0)
    ready(tmp_path, hourly(range(96), temperature=warm), missing="ffill", horizon="4h", season="4h")
    assert "shorten data.horizon, for a target is never filled in" in caplog.text
    assert "fill_limit" not in caplog.text


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (5, "2020-01-01 03:00:00,warm,1", r"series\.csv, line 5: 'warm' in column 'T \(degC\)' is not a number"),
        (5, "2020-01-01 03:00:00,inf,1", r"line 5: 'inf' in column 'T \(degC\)' is not a number"),
        (9, "07.01.2020 03:00,1,1", r"series\.csv, line 9: '07.01.2020 03:00' in column 'time' is not a time"),
        (7, "2020-01-01 03:00:00,1", r"series\.csv.*line 7 has 2"),
        (7, "2020-01-01 03:00:00,1,1,1", r"series\.csv.*line 7 has 4"),
    ],
)
def test_a_bad_row_is_an_error_that_names_its_line(tmp_path: Path, line: int, text: str, message: str) -> None:
    lines = hourly(range(96)).to_csv(index=False).splitlines()
    lines[line - 1] = text
    with pytest.raises(DataError, match=message):
        ready(tmp_path, "\n".join(lines) + "\n")


def test_missing_and_repeated_columns_are_listed(tmp_path: Path) -> None:
    text = hourly(range(96)).to_csv(index=False)
    with pytest.raises(DataError, match=r"\['T \(degC\)'\] are missing.*found \['time', 'U', 'p'\]"):
        ready(tmp_path, text.replace("T (degC)", "U", 1))
    with pytest.raises(DataError, match=r"\['p'\] occur more than once"):
        ready(tmp_path, text.replace("T (degC)", "p", 1))


def test_a_cut_off_file_never_passes_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = hourly(range(96)).to_csv(index=False)
    known = file_sha256(module(tmp_path, text).source._explicit(tmp_path / "series.csv"))
    for cut in np.linspace(1, len(text) - 1, 20).astype(int):
        caplog.clear()
        try:
            data = ready(tmp_path, text[:cut])
        except DataError as error:
            assert "series" in str(error)  # noqa: PT017 - not every cut is an error
        else:
            assert text[cut - 1] == "\n" or "cut off" in caplog.text
            assert data.report["rows_read"] == text[:cut].rstrip("\n").count("\n")
        with pytest.raises(DataError, match=f"expected {known}"):
            ready(tmp_path, text[:cut], sha256={"series.csv": known})


def test_readings_between_two_stray_quotes_are_counted_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes = {0: "note", 10: '"x', 12: 'x"'}
    lines = hourly(range(96)).to_csv(index=False).splitlines()
    data = ready(tmp_path, "".join(f"{line},{notes.get(at, 'x')}\n" for at, line in enumerate(lines)))
    assert (data.report["rows_read"], data.report["enclosing_rows"]) == (94, 1)
    assert re.search("line 11: .* its quotes may enclose other rows", caplog.text)


def test_a_step_that_is_no_multiple_of_the_recording_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.step=15min doesn't suit the rows of .*, which are 10min apart"):
        ready(tmp_path, hourly(np.arange(600) / 6), step="15min")


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duplicates": "frist"}, "data.duplicates='frist' must be one of identical, first, last, mean, error"),
        ({"missing": "fill"}, "data.missing"),
        ({"resample": "max"}, "data.resample"),
        ({"split": "random"}, "data.split"),
        ({"lookback": "90min"}, "data.lookback=90min is not a multiple of data.step=1h"),
        ({"horizon": "two days"}, "data.horizon='two days' is not a duration"),
        ({"lookback": 5}, "data.lookback=5 is not a duration"),
        ({"stride": 0}, "data.stride=0 must be at least 1"),
        ({"val_from": "soon"}, "data.val_from='soon' is not a date"),
        ({"val_from": "6m"}, "data.val_from='6m' may mean minutes or months: write min or mo, as in 5min or 5mo"),
        ({"test_from": "01.09.2020"}, "data.test_from='01.09.2020' is not a date: write the year first"),
        ({"horizon": "5m"}, "data.horizon='5m' may mean minutes or months"),
        ({"round_times": "1mo"}, "data.round_times=1mo must be a duration such as 1h or 10min"),
        ({"val_from": "10000y"}, "data.val_from='10000y' leads out of the calendar"),
        ({"test_until": "99999999d"}, "data.test_until='99999999d' leads out of the calendar"),
        ({"test_from": "2019-01-01"}, "data.val_from < data.test_from"),
        ({"split": "fraction", "val_fraction": 0.6, "test_fraction": 0.5}, "data.val_fraction"),
        ({"features": [], "calendar": False}, "data.features"),
        ({"features": ["p", "p"]}, "only once"),
        ({"wind": {"speed": "p"}}, "data.wind"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SeriesDataModule("series", path="/nowhere", **{**SMALL, **changes})


@pytest.mark.parametrize(("text", "hours"), [("5d", 120), ("48h", 48), ("1d12h", 36), ("90min", 1.5), ("1w", 168)])
def test_durations_read_as_written(text: str, hours: float) -> None:
    length = Step.parse("lookback", text)
    assert length == Step(round(hours * 3_600_000_000), "us")
    assert Step.parse("lookback", str(length)) == length


# --- what is learned, and from what ---


def test_rows_after_the_training_split_leave_no_trace_in_training(tmp_path: Path) -> None:
    frame = hourly(range(96))
    changed = frame.copy()
    changed.loc[48:, ["T (degC)", "p"]] *= -7.5
    learned = []
    for table in (frame, changed):
        data = ready(tmp_path, table, calendar=True)
        keys = ("feature_mean", "feature_std", "target_mean", "target_std", "climatology")
        batch = {name: values.numpy().tobytes() for name, values in whole(data, "train").items()}
        learned.append((json.dumps({key: data.facts[key] for key in keys}), batch))
    assert learned[0] == learned[1]


def test_scaler_is_mean_and_deviation_of_the_training_rows(tmp_path: Path) -> None:
    frame = hourly(range(96))
    data = ready(tmp_path, frame, calendar=True)
    train = frame.iloc[:48]
    np.testing.assert_allclose(data.facts["feature_mean"][:2], train[["T (degC)", "p"]].mean(), rtol=1e-12)
    np.testing.assert_allclose(data.facts["feature_std"][:2], train[["T (degC)", "p"]].std(ddof=0), rtol=1e-12)
    assert data.facts["feature_mean"][2:] + data.facts["feature_std"][2:] == [0.0] * 4 + [1.0] * 4
    batch = whole(data, "val")
    back = batch["inputs"] * torch.tensor(data.facts["feature_std"]) + torch.tensor(data.facts["feature_mean"])
    torch.testing.assert_close(back[..., 0].double(), batch["history"], atol=1e-5, rtol=0)
    torch.testing.assert_close(back[:, 0, 1].float(), 990 + 48 + torch.arange(len(back)).float())


def test_a_constant_feature_stays_finite(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96), pressure=[0.1] * 96))
    assert data.facts["feature_std"][1] == 1.0
    assert whole(data, "test")["inputs"][..., 1].abs().max() < 1e-6


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1e-3, 1e6])
def test_the_unit_of_a_column_does_not_change_the_inputs(unit: float, tmp_path: Path) -> None:
    expected = whole(ready(tmp_path, hourly(range(96))), "test")["inputs"]
    frame = hourly(range(96), np.sin(np.arange(96)) * 5 * unit)
    torch.testing.assert_close(whole(ready(tmp_path, frame), "test")["inputs"], expected)


@pytest.mark.parametrize(("level", "spread"), [(116.4, 1e-8), (1e9, 1e-2), (-5e-7, 1e-13)])
def test_what_varies_little_around_a_large_value_is_scaled_as_well(level: float, spread: float, tmp_path: Path) -> None:
    batch = whole(ready(tmp_path, hourly(range(96), level + spread * np.sin(np.arange(96)))), "train")
    wave = np.sin(np.arange(48))
    expected = (wave - wave.mean()) / wave.std()
    np.testing.assert_allclose(batch["inputs"][:, 0, 0], expected[: len(batch["inputs"])], atol=2e-4)


@pytest.mark.parametrize(
    ("mean", "std", "offset"),
    [
        (9.1, 8.4, 0.0),  # °C
        (989.2, 8.4, 0.0),  # mbar
        (-3000.0, 3.0, 0.0),
        (116.40000013, 1.4e-6, 116.4),  # degrees of longitude
        (-73.9857, 2.3e-3, -73.986),
        (1_234_567_890.4, 730.0, 1_234_567_900.0),
        (1e9 + 0.25, 0.5, 1e9 + 0.2),
    ],
)
def test_the_offset_is_a_round_number_near_a_mean_that_float32_would_blur(
    mean: float, std: float, offset: float
) -> None:
    assert offset_of(mean, std) == offset
    assert offset == 0 or abs(mean - offset) <= std


NUMBERS = {
    "temperature": np.round(np.random.default_rng(0).normal(9, 8, 96), 2),
    "coordinate": np.round(116.4 + np.random.default_rng(0).normal(0, 1e-6, 96), 8),
    "meter": np.round(1e9 + np.random.default_rng(0).normal(0, 50, 96).cumsum(), 2),
    "epoch": 1_577_836_800 + 3600 * np.arange(96) + np.random.default_rng(0).integers(0, 3, 96),
    "counter": np.round(1e6 + np.arange(96) * 1000.01, 2),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_history_and_targets_are_the_files_own_numbers(name: str, tmp_path: Path) -> None:
    values = NUMBERS[name].astype(float)
    data = ready(tmp_path, hourly(range(96), values))
    offset = data.facts.get("target_offset", 0.0)
    batch = whole(data, "test")
    assert (batch["history"].numpy() + offset).tolist() == [[*values[first : first + 4]] for first in range(72, 91)]
    assert (batch["targets"].numpy() + offset).tolist() == [[*values[first : first + 2]] for first in range(76, 95)]
    assert data.facts["target_mean"] + offset == pytest.approx(values[:48].mean(), rel=1e-14)


@pytest.mark.parametrize("name", ["coordinate", "meter"])
def test_the_climatology_of_large_values_is_fitted_to_how_they_vary(name: str, tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96), NUMBERS[name]), val_from="2020-01-03T06:00")
    offset = Decimal(data.facts["target_offset"])
    phase = 2 * np.pi * np.arange(54) / 24
    basis = np.column_stack([np.ones(54), np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase)])
    varying = np.array([float(Decimal(value) - offset) for value in NUMBERS[name][:54].tolist()])
    expected = basis @ np.linalg.lstsq(basis, varying, rcond=None)[0]
    usual = Climatology.from_state(data.facts["climatology"]).predict(data.dataset("test").times[:54])
    np.testing.assert_allclose(usual, expected, rtol=0, atol=1e-9 * varying.std())


def test_a_feature_without_any_training_value_is_an_error_that_names_it(tmp_path: Path) -> None:
    frame = hourly(range(96), pressure=[-9999] * 48 + [1] * 48)
    with pytest.raises(DataError, match=r"train split holds no window.*of column 'p', 48 are missing"):
        ready(tmp_path, frame)


def test_climatology_recovers_annual_and_daily_waves_and_their_product() -> None:
    times = np.datetime64("2011-01-01") + np.arange(3 * 8766).astype("timedelta64[h]")

    def truth(stamps: np.ndarray) -> np.ndarray:
        days = (stamps - np.datetime64("1970-01-01T00:00")) / np.timedelta64(1, "D")
        year, day = 2 * np.pi * days / 365.2425, 2 * np.pi * days
        return 9 - 10 * np.cos(year) + (3 + 2 * np.sin(year)) * np.cos(day - 4) + np.sin(2 * year) * np.cos(2 * day)

    values = truth(times)
    values[::7] = np.nan
    fitted = Climatology.fit(times, values)
    later = np.datetime64("2016-05-05T00:30") + np.arange(500).astype("timedelta64[h]")
    np.testing.assert_allclose(fitted.predict(later), truth(later), atol=1e-6)
    again = Climatology.from_state(json.loads(json.dumps(fitted.state())))
    np.testing.assert_array_equal(again.predict(pd.DatetimeIndex(later)), fitted.predict(later))


def test_climatology_of_less_than_a_year_does_not_run_away() -> None:
    times = np.datetime64("2020-01-01T00:00") + np.arange(24 * 60).astype("timedelta64[h]")
    values = np.sin(2 * np.pi * np.arange(24 * 60) / 24) + np.random.default_rng(0).normal(size=24 * 60)
    later = times + np.timedelta64(200, "D")
    assert np.abs(Climatology.fit(times, values).predict(later)).max() < 1.5


# --- batches ---


def test_batches_have_the_promised_shapes_types_and_content(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96)), calendar=True, batch_size=5)
    batch = next(iter(data.val_dataloader()))
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "inputs": ((5, 4, 6), torch.float32),
        "targets": ((5, 2), torch.float64),
        "history": ((5, 4), torch.float64),
        "climatology": ((5, 2), torch.float64),
        "origin": ((5,), torch.int64),
        "index": ((5,), torch.int64),
    }
    hours = 48 + np.arange(5)[:, None] + np.arange(6)
    np.testing.assert_allclose(batch["history"], np.sin(hours[:, :4]) * 5, atol=1e-5)
    np.testing.assert_allclose(batch["targets"], np.sin(hours[:, 4:]) * 5, atol=1e-5)
    np.testing.assert_array_equal(batch["origin"], hours[:, 3])
    usual = Climatology.from_state(data.facts["climatology"])
    stamps = np.datetime64("2020-01-01T00:00") + hours[:, 4:].astype("timedelta64[h]")
    np.testing.assert_allclose(batch["climatology"], usual.predict(stamps.ravel()).reshape(5, 2), atol=1e-5)
    np.testing.assert_allclose(batch["inputs"][..., 2], np.sin(2 * np.pi * hours[:, :4] / 24), atol=1e-5)


def test_the_clock_of_windows_counts_the_hours_that_a_gap_swallowed(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(np.r_[0:60, 70:130]))
    for split in ("train", "val", "test"):
        windows = data.dataset(split)
        origins = data.describe(split, np.arange(len(windows)))["origin"]
        hours = (origins - pd.Timestamp("2020-01-01")) / pd.Timedelta("1h")
        np.testing.assert_array_equal(windows[[*range(len(windows))]]["origin"], hours)


def test_facts_and_report_are_plain_json(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96)))
    facts, report = json.loads(json.dumps(data.facts)), json.loads(json.dumps(data.report))
    assert facts == data.facts
    assert report == data.report
    chosen = ("features", "num_features", "target_index", "unit", "lookback", "horizon", "season_length")
    assert [facts[key] for key in chosen] == [["T (degC)", "p"], 2, 0, "°C", 4, 2, 2]
    assert report["sha256"] == file_sha256(tmp_path / "series.csv")


@pytest.mark.parametrize(("every", "step", "hours"), [(1, "1h", 1), (1, "5h", 5), (6, "10min", 1 / 6)])
def test_the_facts_know_the_exact_step(tmp_path: Path, every: int, step: str, hours: float) -> None:
    frame = hourly(np.arange(2000) / every)
    spans = {"lookback": "10h", "horizon": "5h", "season": "5h", "split": "fraction"}
    assert ready(tmp_path, frame, step=step, **spans).facts["step_hours"] == hours


def test_the_facts_alone_clean_a_new_table_the_same_way(tmp_path: Path) -> None:
    frame = hourly(np.r_[0:50, 40:96])
    data = ready(tmp_path, frame, wind={"speed": "T (degC)", "direction": "p"}, features=["p"])
    series = clean(frame, **json.loads(json.dumps(data.facts))["cleaning"])
    assert data.facts["features"] == ["p", "wind_x", "wind_y"]
    assert data.facts["target_index"] is None
    assert len(series.times) == 96


def test_an_epoch_hands_out_every_window_once_and_only_training_is_shuffled(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96)), batch_size=7, seed=3)
    handed = {
        split: torch.cat([batch["index"] for batch in loader]).tolist()
        for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader()))
    }
    assert sorted(handed["train"]) == list(range(48 - 5)) != handed["train"]
    assert handed["test"] == list(range(24 - 5))
    again = [batch["index"] for batch in data.train_dataloader()]
    assert torch.cat(again).tolist() == handed["train"]


def test_processes_share_the_test_windows_without_repeating_one(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96)), batch_size=5)
    handed = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # pyright: ignore[reportAttributeAccessIssue]
        handed += [batch["index"] for batch in data.test_dataloader()]
    assert sorted(torch.cat(handed).tolist()) == list(range(24 - 5))


def test_set_up_twice_reads_once(tmp_path: Path) -> None:
    data = ready(tmp_path, hourly(range(96)))
    (tmp_path / "series.csv").unlink()
    data.setup("test")
    assert len(data.dataset("test")) == 19


def test_batches_come_faster_than_a_small_model_eats_them() -> None:
    table, column = np.zeros((20_000, 11), np.float32), np.zeros(20_000, np.float32)
    times = np.zeros(20_000, "datetime64[us]")
    windows = WindowDataset(table, column, column, column, np.arange(19_000), 120, 48, times, np.arange(20_000))
    positions = np.random.default_rng(0).permutation(19_000)[:256].tolist()
    best = np.inf
    for _ in range(30):
        begin = time.perf_counter()
        windows[positions]
        best = min(best, time.perf_counter() - begin)
    assert 256 / best > 50_000


# --- files ---


def test_without_the_file_the_sample_is_used_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path))
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    data = SeriesDataModule("jena_climate", files=["jena.csv"])
    assert (data.name, data.is_sample) == ("jena_climate", False)
    data.setup()
    assert (data.name, data.is_sample) == ("sample_climate", True)
    assert data.report["far_off"] == {}
    assert any(record.levelno == logging.WARNING and "jena.csv" in record.message for record in caplog.records)


def test_what_a_file_should_hold_is_compared_with_what_it_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {"series.csv": {"rows": 97, "first": "2020-01-01 00:00:00", "last": "2020-01-04 23:00:00"}}
    data = ready(tmp_path, hourly(range(96)), expected=expected)
    assert data.report["unexpected"] == {"rows": {"expected": 97, "found": 96}}
    assert "is not the known file" in caplog.text


def test_every_trap_is_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    frame = hourly(np.r_[0:30, 20:60, 61:96, 95.5])
    frame.loc[3, "p"] = -9999
    ready(tmp_path, frame)
    [line] = [record.message for record in caplog.records if "rows read" in record.message]
    for words in ("1 values marked missing", "1 backward", "10 repeated", "1 rows off the grid", "1 gaps of 120 min"):
        assert words in line


# --- the real record ---

FOLDER = Path(os.environ.get("RNN_LAB_DATA", "."))
HOURLY, TEN_MINUTES = "jena_climate_2009_2016_hourly.csv.zip", "jena_climate_2009_2010_10min.csv.zip"


@pytest.fixture(scope="module")
def jena() -> SeriesDataModule:
    text = (Path(__file__).parents[2] / "conf/data/jena_climate.yaml").read_text(encoding="utf-8")
    config = {**yaml.safe_load(text), "seed": 0, "path": str(FOLDER / HOURLY)}
    data = SeriesDataModule(**{key: value for key, value in config.items() if key not in ("_target_", "defaults")})
    data.setup()
    return data


@real
def test_the_traps_of_the_real_record_are_counted(jena: SeriesDataModule) -> None:
    report = jena.report
    assert report["far_off"] == {}
    assert (report["rows_read"], report["duplicates"], report["backward_jumps"]) == (70_092, 24, 2)
    assert report["missing_values"] == {"wv (m/s)": 3}
    # 90 minutes: where the rows of the block recorded twice, half an hour off, have been dropped.
    assert sorted(gap["minutes"] for gap in report["gaps"]) == [70, 70, 80, 90, 1010, 4510]
    assert report["splits"]["test"]["windows"] > 8000


@real
def test_naive_forecasts_score_on_the_real_record_as_measured_elsewhere(jena: SeriesDataModule) -> None:
    batches = list(jena.test_dataloader())
    targets, history = (torch.cat([batch[key] for batch in batches]) for key in ("targets", "history"))
    assert (history[:, -24:].repeat(1, 2) - targets).abs().mean().item() == pytest.approx(2.917, abs=0.01)
    assert (history[:, -1:] - targets).abs().mean().item() == pytest.approx(3.674, abs=0.01)


@real
def test_the_climatology_of_the_real_record_is_no_worse_than_measured_elsewhere(jena: SeriesDataModule) -> None:
    batch = whole(jena, "test")
    assert 3.1 < (batch["climatology"] - batch["targets"]).abs().mean().item() < 3.312 + 0.01


@real
def test_every_sixth_row_of_the_ten_minute_record_is_the_hourly_record() -> None:
    from datamodules.streaming import read_table

    columns = ["T (degC)", "p (mbar)", "wd (deg)"]
    options: Any = {"time_column": "Date Time", "time_format": "%d.%m.%Y %H:%M:%S", "columns": columns}
    raw = read_table(FOLDER / TEN_MINUTES, columns=columns)
    fine = clean(raw, **options, resample="rows")
    coarse = clean(read_table(FOLDER / HOURLY, columns=columns).iloc[: len(raw.iloc[::6])], **options)
    assert fine.report["native_step"] == "10min"
    assert (fine.report["duplicates"], fine.report["backward_jumps"]) == (24, 1)
    assert clean(raw, **options, step="10min").report["duplicates"] == 144
    np.testing.assert_array_equal(fine.times, coarse.times)
    np.testing.assert_array_equal(fine.values, coarse.values)
