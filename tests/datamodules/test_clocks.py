"""Times with an offset from UTC: on which clock they are, and that whatever is written says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.recordings import common_offset, parse_offsets, read_recordings
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError
from datamodules.streaming import TableStream

FORMAT = "%Y-%m-%d %H:%M:%S"


def module(folder: Path, times: pd.DatetimeIndex, form: str, **options: Any) -> SeriesDataModule:
    local = times.tz_convert("Europe/Madrid")
    frame = pd.DataFrame({"time": local.strftime(form), "x": local.hour})
    frame.to_csv(folder / "t.csv", index=False)
    spans = {"lookback": "1d", "horizon": "1d", "test_from": "2020-05-20", "val_from": "10d", **options}
    usual: dict[str, Any] = {"time_column": "time", "time_format": form, "target": "x", "features": ["x"]}
    data = SeriesDataModule("series", path=str(folder / "t.csv"), **{**usual, **spans})
    data.setup()
    return data


@pytest.mark.parametrize("form", [f"{FORMAT}%z", "%z %d.%m.%Y %H:%M:%S"])
def test_times_of_one_offset_stay_on_their_clock(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = pd.date_range("2020-04-01", periods=1440, freq="h", tz="UTC")
    with caplog.at_level(logging.INFO):
        data = module(tmp_path, times, form)
    assert "dates in options, are on the clock UTC+02:00" in caplog.text
    assert data.report["splits"]["test"]["from"] == "2020-05-20T00:00:00.000000+02:00"
    batch = data.dataset("test")[[0]]
    assert batch["targets"].tolist() == [[float(hour) for hour in range(24)]]
    first = data.describe("test", np.array([0])).iloc[0]
    assert first["first_target"] == pd.Timestamp("2020-05-20", tz="Europe/Madrid")
    assert first["first_target"].utcoffset() == pd.Timedelta("2h")
    targets = data.target_times("test", np.array([0, 0]), np.array([1, 24]))
    assert targets.tolist() == [pd.Timestamp(f"2020-05-20T{hour}:00+02:00") for hour in ("00", "23")]


def test_times_whose_offset_changes_are_put_on_the_clock_of_utc_and_say_so(tmp_path: Path) -> None:
    times = pd.date_range("2020-03-01", periods=2400, freq="h", tz="UTC")
    data = module(tmp_path, times, f"{FORMAT}%z")
    assert (data.report["clock"], data.report["gaps"], data.report["duplicates"]) == ("UTC+00:00", [], 0)
    assert data.report["splits"]["test"]["from"] == "2020-05-20T00:00:00.000000+00:00"
    assert data.describe("test", np.array([0]))["first_target"].tolist() == [pd.Timestamp("2020-05-20", tz="UTC")]


def test_times_without_an_offset_are_as_written(tmp_path: Path) -> None:
    data = module(tmp_path, pd.date_range("2020-04-01", periods=1440, freq="h", tz="UTC"), FORMAT)
    assert (data.report["clock"], data.facts["utc_offset"]) == ("as written", None)
    assert data.describe("test", np.array([0]))["first_target"].tolist() == [pd.Timestamp("2020-05-20")]


@pytest.mark.parametrize(
    ("cells", "form", "offsets", "common"),
    [
        (["2020-01-01T00:00:00Z", "2020-01-01T01:00Z"], "iso8601", {0}, 0),
        (["2020-01-01 00:00+05:30", "2020-01-01 01:00+0530"], "iso8601", {19_800}, 19_800),
        (["2020-01-01 00:00-03", "2020-01-01 01:00-02"], "iso8601", {-10_800, -7200}, 0),
        (["2020-01-01", "2020-01-02T03:04:05.678"], "iso8601", {None}, None),
        (["2020-01", "2020-02"], "iso8601", {None}, None),
        (["1577836800", "1577840400"], "epoch_s", {0}, 0),
        (["00:00 -0330 01.01.2020", "01:00 -0330 01.01.2020"], "%H:%M %z %d.%m.%Y", {-12_600}, -12_600),
        (["01.01.2020 00:00:00+000130"], "%d.%m.%Y %H:%M:%S%z", {90}, 0),
        (["01.01.2020 00:00"], "%d.%m.%Y %H:%M", {None}, None),
    ],
)
def test_offsets_are_those_that_are_written(cells: list[str], form: str, offsets: set[Any], common: int | None) -> None:
    assert parse_offsets(pd.DataFrame({"time": cells}), "time", form, "t.csv") == offsets
    assert common_offset(offsets) == common


@pytest.mark.parametrize("chunk", [2, 20_000])
def test_rows_with_and_without_an_offset_are_refused_with_the_line(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = ["2020-01-01T00:00Z", "2020-01-01T01:00+01:00", "2020-01-01T02:00", "2020-01-01T03:00Z"]
    frame = pd.DataFrame({"time": cells, "x": 1})
    message = r"line 4: '2020-01-01T02:00' has no offset from UTC, unlike the rows before it \(1 such rows\)"
    with pytest.raises(DataError, match=message):
        parse_offsets(frame, "time", "iso8601", "t.csv")
    monkeypatch.setattr("datamodules.recordings.CHUNK", chunk)
    frame.to_csv(tmp_path / "t.csv", index=False)
    stream = TableStream(str(tmp_path / "t.csv"), {"time": "time_column", "x": "columns"})
    with stream as opened, pytest.raises(DataError, match=message):
        read_recordings(opened, time_column="time", time_format="iso8601", columns=["x"])
