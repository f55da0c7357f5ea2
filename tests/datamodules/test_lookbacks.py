from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules import recordings
from datamodules.cleaning import CleanSeries, arrange, clean
from datamodules.lookbacks import Lookbacks
from datamodules.recordings import Rows, read_recordings
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError
from datamodules.streaming import TableStream
from datamodules.synthetic import sample_climate

FORMAT = "%d.%m.%Y %H:%M:%S"
MINUTE = 60_000_000
COLUMNS = ["T (degC)", "p (mbar)"]


@pytest.fixture(scope="module")
def climate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("climate") / "climate.csv"
    sample_climate(3, 0).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module", params=["drop", "ffill"])
def module(request: pytest.FixtureRequest, climate: Path) -> SeriesDataModule:
    wind = {"speed": "wv (m/s)", "direction": "wd (deg)"}
    data = SeriesDataModule("climate", path=str(climate), wind=wind, missing=request.param, stride=7)
    data.setup()
    return data


def read(path: Path, span: int | None = None) -> Rows:
    needed = dict.fromkeys(["Date Time", *COLUMNS], "columns")
    with TableStream(path, needed) as table:
        rows, whole = read_recordings(table, time_column="Date Time", time_format=FORMAT, columns=COLUMNS, span=span)
    assert whole == (len(rows.times) == len(path.read_text(encoding="utf-8").splitlines()) - 1)
    return rows


def test_batches_are_those_of_the_data_module_at_the_same_origins(climate: Path, module: SeriesDataModule) -> None:
    facts = module.facts
    series = clean(pd.read_csv(climate, dtype=str, keep_default_na=False), **facts["cleaning"], from_last=True)
    lookbacks = Lookbacks(series, facts)
    windows = module.dataset("test")
    rows = windows.starts + windows.lookback - 1
    origins = np.searchsorted(series.times, windows.times[rows])
    assert np.isin(origins, lookbacks.origins).all()
    expected, found = windows[list(range(len(windows)))], lookbacks.batch(origins)
    for name in ("inputs", "history", "climatology"):
        assert torch.equal(found[name], expected[name]), name
    assert np.array_equal(lookbacks.truth(origins), expected["targets"].numpy())


def test_readings_unlike_any_of_the_training_are_warned_of(
    climate: Path, module: SeriesDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    table = pd.read_csv(climate, dtype=str, keep_default_na=False)
    Lookbacks(clean(table, **module.facts["cleaning"], from_last=True), module.facts)
    assert "standard deviations" not in caplog.text
    table.loc[table.index[-500:], "T (degC)"] = "1000000"
    Lookbacks(clean(table, **module.facts["cleaning"], from_last=True), module.facts)
    line = len(table) - 500 + 2
    assert re.search(rf"line {line}: 'T \(degC\)' is \d+ standard deviations .* \(500 such rows\)", caplog.text)


def test_truth_is_what_the_series_has_at_that_time(climate: Path, module: SeriesDataModule) -> None:
    series = clean(pd.read_csv(climate, dtype=str, keep_default_na=False), **module.facts["cleaning"])
    lookbacks = Lookbacks(series, module.facts)
    known = dict(zip(series.times.tolist(), series.column("T (degC)").tolist(), strict=True))
    chosen = lookbacks.origins[[*range(0, len(lookbacks.origins), 997), -30, -1]]
    ahead = lookbacks.times_ahead(chosen)
    assert (ahead[:, 0] - series.times[chosen] == np.timedelta64(1, "h")).all()
    expected = [[known.get(time, np.nan) for time in row] for row in ahead.tolist()]
    np.testing.assert_array_equal(lookbacks.truth(chosen), expected)
    assert np.isnan(lookbacks.truth(lookbacks.origins[-1:])).all()


def test_origins_are_as_far_apart_as_asked_counted_from_the_last_row(climate: Path, module: SeriesDataModule) -> None:
    series = clean(pd.read_csv(climate, dtype=str, keep_default_na=False), **module.facts["cleaning"])
    lookbacks = Lookbacks(series, module.facts)
    times = series.times[lookbacks.spaced(24)]
    assert times[-1] == series.times[-1]
    assert len(times) > 3 * 365 - 40
    apart = np.diff(times).astype(np.int64) // MINUTE
    assert set(apart[-700:] % 1440) == {0}
    assert min(apart) >= 1440 - 60  # behind the shift of the recording by ten minutes
    assert np.array_equal(lookbacks.spaced(1), lookbacks.origins)
    first, last = series.times[[lookbacks.lookback - 1, -1]].tolist()
    assert lookbacks.possible(24) == len(pd.date_range(first, last, freq="D"))


def test_only_the_end_of_a_file_is_kept_in_whatever_order_it_is(
    climate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "CHUNK", 70)
    head, *lines = climate.read_text(encoding="utf-8").splitlines()[:1000]
    forwards, backwards = tmp_path / "forwards.csv", tmp_path / "backwards.csv"
    forwards.write_text("\n".join([head, *lines]), encoding="utf-8")
    backwards.write_text("\n".join([head, *reversed(lines)]), encoding="utf-8")
    every, span = read(forwards), 100 * 60 * MINUTE
    expected = every.take(every.times > every.times.max() - span)
    for path, step in ((forwards, 1), (backwards, -1)):
        kept = read(path, span)
        assert kept.times[::step].tolist() == expected.times.tolist()
        assert kept.values[::step].tolist() == expected.values.tolist()
    assert len(expected.times) == 100


@pytest.mark.parametrize("at", [3, 400, -1])
def test_a_row_from_the_future_is_named_and_does_not_stand_for_all(
    at: int, climate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings, "CHUNK", 70)
    lines = climate.read_text(encoding="utf-8").splitlines()[:1000]
    path, span = tmp_path / "t.csv", 100 * 60 * MINUTE
    time, _, rest = lines[at].partition(",")
    lines[at] = f"{time.replace(time[6:10], '2914')},{rest}"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"line {range(1000)[at] + 1}: 2914-.* is 3\d+ days .* ahead of every other"):
        read(path, span)
    assert len(read(path).times) == 999
    path.write_text("\n".join([lines[0], lines[500]]), encoding="utf-8")
    assert len(read(path, span).times) == 1


@pytest.mark.parametrize("resample", ["sample", "mean"])
@pytest.mark.parametrize("rows", [36, 37, 41])
def test_resampling_counts_back_from_the_last_reading(resample: str, rows: int) -> None:
    values = np.arange(rows, dtype=float)
    recorded = Rows(np.arange(rows) * 10 * MINUTE, values[:, None], np.arange(rows))
    series = arrange(recorded, columns=["x"], step="1h", resample=resample, from_last=True)
    stamps = series.times.astype(np.int64) // (10 * MINUTE)
    assert (np.diff(stamps) == 6).all()
    found = series.column("x")
    if resample == "sample":
        assert stamps[-1] == rows - 1
        assert found.tolist() == stamps.tolist()
    else:
        assert stamps[-1] == rows - 6  # the bin's first reading; its last is the last of the file
        assert found[-1] == values[-6:].mean()
        assert found[0] == values[: stamps[1]].mean()
        assert sum(found[1:] * 6) == pytest.approx(values[stamps[1] :].sum())


@pytest.mark.parametrize("resample", ["sample", "mean"])
def test_a_reading_missing_between_two_steps_leaves_the_steps_where_they_are(resample: str) -> None:
    rows = np.delete(np.arange(60), [20, 33, 34])  # the last is 59, and so none of 5, 11, 17 …
    recorded = Rows(rows * 10 * MINUTE, rows[:, None].astype(float), rows)
    series = arrange(recorded, columns=["x"], step="1h", resample=resample, from_last=True)
    first = 5 if resample == "sample" else 0
    assert (series.times.astype(np.int64) // (10 * MINUTE)).tolist() == list(range(first, 60, 6))


def test_readings_before_a_shift_of_the_clock_are_sampled_too() -> None:
    times = np.arange(60) * 10 * MINUTE + np.where(np.arange(60) < 30, 0, 3 * MINUTE)
    recorded = Rows(times, np.arange(60.0)[:, None], np.arange(60))
    series = arrange(recorded, columns=["x"], step="1h", from_last=True)
    assert series.column("x").tolist() == [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]


def lacking(change: Callable[[pd.DataFrame], pd.DataFrame]) -> tuple[str, CleanSeries]:
    hours = pd.date_range("2020-01-01", periods=60, freq="h")
    frame = pd.DataFrame({"time": hours.strftime(FORMAT), "T": np.arange(60.0), "p": 1.0})
    cleaning: dict[str, Any] = {"time_column": "time", "time_format": FORMAT, "columns": ["T", "p"]}
    series = clean(change(frame), **cleaning, missing_values=[-9999])
    facts = {"features": ["T", "p"], "target": "T", "calendar": False, "missing": "drop", "lookback": 24, "horizon": 2}
    numbers: dict[str, Any] = {"feature_mean": [0, 0], "feature_std": [1, 1], "target_mean": 0, "target_std": 1}
    numbers["climatology"] = {"coefficients": [[0.0]]}
    return Lookbacks(series, facts | numbers).lacking(), series


def test_what_a_lookback_lacks_is_said() -> None:
    assert lacking(lambda frame: frame)[0] == ""
    assert lacking(lambda frame: frame.iloc[24:])[0] == ""
    said, _ = lacking(lambda frame: frame.drop(index=[50, 52]))
    assert "24 steps of 1h up to 2020-01-03 11:00 is incomplete" in said
    assert "2 of 24 readings (2020-01-03 02:00, 2020-01-03 04:00)" in said
    said, _ = lacking(lambda frame: frame.assign(p=frame["p"].where(frame.index != 55, -9999)))
    assert "'p' in 1 of them (2020-01-03 07:00)" in said
    assert "'T'" not in said
    assert "13 of 24 readings" in lacking(lambda frame: frame.iloc[-11:])[0]


def test_a_torn_row_a_bad_time_and_a_bad_number_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for row, message in {
        "01.01.2020 03:00:00,1": "line 4: row has 2 fields, the header has 3",
        "2020-01-01,1,2": "line 4: '2020-01-01' in column 'Date Time' is not a time",
        "01.01.2020 03:00:00,warm,2": "line 4: 'warm' in column 'T .degC.' is not a number",
    }.items():
        lines = ["Date Time,T (degC),p (mbar)", "01.01.2020 01:00:00,1,2", "01.01.2020 02:00:00,,2", row]
        path.write_text("\n".join(lines), encoding="utf-8")
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_file_that_may_have_lost_readings_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    times = [f"01.01.2020 {hour:02}:00:00" for hour in range(5)]
    rows = [f"{time},1,{note}" for time, note in zip(times, ["x", '"x', "x", 'x"', "x"], strict=True)]
    path.write_text("\n".join(["Date Time,p,note", *rows]), encoding="utf-8")
    with TableStream(path, ["p"]) as table:
        found, _ = read_recordings(table, time_column="Date Time", time_format=FORMAT, columns=["p"])
    assert len(found.times) == 3
    assert re.search("line 3: .* its quotes may enclose other rows", caplog.text)
    assert "does not end with a line break" in caplog.text
