from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from datamodules.cleaning import clean
from datamodules.panels import series_columns
from datamodules.recordings import micro

TIMES = pd.date_range("2020-01-01", periods=180, freq="20min")


def names(values: list[str], times: pd.DatetimeIndex = TIMES) -> list[str]:
    frame = pd.DataFrame({"name": np.resize(np.asarray(values, dtype=object), len(times))})
    return series_columns(frame, micro(times.to_numpy()), np.ones((len(times), 1)))


def test_stations_that_report_in_turn_are_several_series(caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"time": TIMES.strftime("%Y-%m-%d %H:%M"), "x": "1", "station": [*"ABC"] * 60})
    rules = {"time_column": "time", "time_format": "%Y-%m-%d %H:%M", "columns": ["x"], "step": "20min"}
    with caplog.at_level(logging.WARNING):
        clean(frame, **rules)
    assert "the values of 'station' (A, B, C) alternate" in caplog.text
    caplog.clear()
    clean(frame[frame["station"] == "A"], **rules | {"step": "1h"})
    assert "alternate" not in caplog.text


@pytest.mark.parametrize("column", ["station", "sensor_id", "Site No.", "meterId", "站点"])
def test_stations_one_after_the_other_are_several_series(column: str, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"time": TIMES.strftime("%Y-%m-%d %H:%M"), "x": "1", column: sorted([*"AB"] * 90)})
    rules = {"time_column": "time", "time_format": "%Y-%m-%d %H:%M", "columns": ["x"], "step": "20min"}
    with caplog.at_level(logging.WARNING):
        clean(frame.iloc[::-1], **rules)
    assert f"the values of '{column}' (A, B) alternate from row to row, or each fills one block" in caplog.text
    caplog.clear()
    clean(frame.assign(**{column: "A"}), **rules)
    clean(frame.rename(columns={column: "season"}), **rules)
    assert "one block" not in caplog.text


def test_numbered_stations_in_any_row_order_are_several_series() -> None:
    frame = pd.DataFrame({"id": np.resize(["7", "9"], len(TIMES))}).sample(frac=1, random_state=0)
    assert series_columns(frame, micro(TIMES.to_numpy())[frame.index], np.ones((len(frame), 1))) == ["'id' (7, 9)"]


def test_stations_of_other_levels_are_several_series_in_any_turn() -> None:
    draw = np.random.default_rng(0)
    station = draw.integers(3, size=900)
    times = micro(pd.date_range("2020-01-01", periods=900, freq="20min").to_numpy())
    frame = pd.DataFrame({"station": np.array([*"ABC"], dtype=object)[station]})
    assert series_columns(frame, times, (100.0 * station + draw.normal(size=900))[:, None]) == ["'station' (C, B, A)"]
    rows = draw.random(900) > 0.1  # in turn, but for rows that are missing
    frame = pd.DataFrame({"station": np.resize(np.array([*"ABC"], dtype=object), 900)})[rows]
    values = (100.0 * np.resize(np.arange(3), 900) + draw.normal(size=900))[rows, None]
    assert series_columns(frame, times[rows], values) == ["'station' (B, C, A)"]


def test_what_changes_often_at_one_level_is_no_series() -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"direction": np.array([*"NESW"], dtype=object)[draw.integers(4, size=900)]})
    times = micro(pd.date_range("2020-01-01", periods=900, freq="h").to_numpy())
    assert series_columns(frame, times, np.sin(np.arange(900) / 4)[:, None]) == []


@pytest.mark.parametrize(
    ("values", "freq"),
    [
        ([*"MTWTFSS"], "D"),  # two letters stand for two days each
        (["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"], "D"),
        ([f"{month} Q" for month in range(12)], "MS"),
        ([str(hour) for hour in range(24)], "h"),
        (["0", "20", "40"], "20min"),
        (["ok"] * 9 + ["bad"], "20min"),
        (["night"] * 8 + ["day"] * 16, "h"),
        (["1.5", "2.5"], "h"),
        ([str(number) for number in range(180)], "h"),
    ],
)
def test_what_names_a_time_or_a_state_is_no_series(values: list[str], freq: str) -> None:
    times = pd.date_range("2020-01-06", periods=180, freq=freq)
    assert names(values, times) == []
