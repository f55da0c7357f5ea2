from __future__ import annotations

import logging
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.lookbacks import Lookbacks
from datamodules.series import SeriesDataModule
from datamodules.sources import DataError
from runs.predict import _options_of_predict
from runs.predict.series import clean_file
from runs.schema import PredictConfig

FORMAT = "%Y-%m-%d %H:%M:%S"
DEFAULTS = {
    option.name: option.default if option.default is not MISSING else option.default_factory()  # type: ignore[misc]
    for option in fields(PredictConfig)
}


def table(times: Any, **columns: Any) -> pd.DataFrame:
    times = pd.DatetimeIndex(times)
    values = (10 + 8 * np.sin(np.arange(len(times)) / 7)).round(2)
    return pd.DataFrame({"time": times.strftime(FORMAT), "x": values, **columns})


def trained(folder: Path, frame: pd.DataFrame, **changes: Any) -> SeriesDataModule:
    """The data of a training on `frame`."""
    frame.to_csv(folder / "train.csv", index=False)
    options: dict[str, Any] = {
        **{"time_column": "time", "time_format": FORMAT, "target": "x", "features": ["x"], "lookback": "6h"},
        **{"season": "6h", "horizon": "2h", "split": "fraction", "min_share": 0.5},
    }
    data = SeriesDataModule("train", path=str(folder / "train.csv"), **options | changes)
    data.setup()
    return data


def lookbacks(data: SeriesDataModule, folder: Path, frame: pd.DataFrame, **options: Any) -> Lookbacks:
    """What `predict` reads of `frame`."""
    frame.to_csv(folder / "t.csv", index=False)
    with _options_of_predict():
        series, _ = clean_file(data.facts, DEFAULTS | {"input": str(folder / "t.csv")} | options, None)
    return Lookbacks(series, data.facts)


@pytest.mark.parametrize("rows", [1000, 1003, 1019])
def test_means_are_over_the_bins_of_training_up_to_the_last_that_is_over(rows: int, tmp_path: Path) -> None:
    frame = table(pd.date_range("2020-01-01 00:10", periods=2000, freq="10min"))
    data = trained(tmp_path, frame, resample="mean")
    found = lookbacks(data, tmp_path, frame.iloc[300:rows]).series
    windows = data.dataset("train")
    same = np.isin(windows.times, found.times)
    assert found.times[-1] == np.datetime64(pd.to_datetime(frame["time"]).iloc[rows].floor("h") - pd.Timedelta("1h"))
    assert np.isnan(found.values[:1]).sum() == 0
    np.testing.assert_array_equal(
        found.column("x").astype(np.float32)[1:], windows.history[same][1:].astype(np.float32)
    )


def test_a_last_step_without_readings_is_missing_and_not_passed_over(tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=2000, freq="10min")
    data = trained(tmp_path, table(times), resample="mean")
    found = lookbacks(data, tmp_path, table(times[:1998].delete(range(1988, 1997))))  # 2 of 6, and 1
    assert "1 of 6 readings (2020-01-14 19:00); 'x' in 1 of them (2020-01-14 20:00)" in found.lacking()


def test_an_absent_row_is_filled_as_an_empty_cell_is(tmp_path: Path) -> None:
    frame = table(pd.date_range("2020-01-01", periods=240, freq="h"))
    data = trained(tmp_path, frame, missing="ffill")
    empty = frame.assign(x=frame["x"].where(frame.index != 237))
    rows, cells = (lookbacks(data, tmp_path, other) for other in (frame.drop(index=237), empty))
    assert rows.lacking() == cells.lacking() == ""
    for name, values in rows.batch(rows.origins).items():
        assert np.array_equal(values, cells.batch(cells.origins)[name]), name
    assert np.isnan(rows.truth(rows.origins)).sum() == np.isnan(cells.truth(cells.origins)).sum() > 0
    without = trained(tmp_path, frame, missing="ffill", min_share=None)  # as a run from before there was a choice
    assert "1 of 6 readings" in lookbacks(without, tmp_path, frame.drop(index=237)).lacking()


def test_several_series_in_one_file_are_refused_and_their_names_found(tmp_path: Path) -> None:
    frame = table(pd.date_range("2020-01-01", periods=240, freq="h"))
    data = trained(tmp_path, frame)
    several = pd.concat([frame.assign(x=frame["x"] + shift, shop=name) for shift, name in enumerate(("a", "b"))])
    with pytest.raises(
        DataError, match=r"t\.csv: 240 rows have .* in lines 2 and 242\. 'shop' \(a, b\) looks"
    ) as caught:
        lookbacks(data, tmp_path, several)
    assert str(caught.value).endswith("so keep the rows of one")  # the rule is that of the run


def test_values_that_may_mean_no_reading_are_warned_of_until_they_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = table(pd.date_range("2020-01-01", periods=240, freq="h"))
    data = trained(tmp_path, frame)
    assert not caplog.text
    frame.loc[[200, 210, 238], "x"] = -200
    lookbacks(data, tmp_path, frame)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "-200 in 'x' (3 of them, the first on line 202, " in warning
    assert warning.endswith("add it to missing_values")
    caplog.clear()
    assert "'x' in 1 of them" in lookbacks(data, tmp_path, frame, missing_values=[-200]).lacking()
    assert not caplog.text


def test_rows_lost_to_the_grid_are_an_error_unless_that_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hourly = pd.date_range("2020-01-01", periods=240, freq="h")
    data = trained(tmp_path, table(hourly))
    odd = table(hourly.append(hourly[-60:] + pd.Timedelta("20min")).sort_values())
    with pytest.raises(DataError, match=r"60 of 300 rows \(20%\) are lost: .* accept the loss with allow_loss=true"):
        lookbacks(data, tmp_path, odd)
    lookbacks(data, tmp_path, odd, allow_loss=True)
    assert "60 of 300 rows (20%) are lost" in caplog.text
