"""Months, rows and clocks from a file to its forecasts and their page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.runs.lab import Lab

RUN = ("task=forecast", "model=seasonal_naive", "trainer=cpu", "trainer.threads=1", "logger=none", "data.wind=null")
OPTIONS = ("data.split=fraction", "data.target=x", "data.features=[x]", "data.path=t.csv")
KINDS: dict[str, tuple[Any, ...]] = {
    "months": (
        "data.step=1mo",
        "data.lookback=24mo",
        "data.horizon=6mo",
        "data.season=1y",
        "data.time_format=%Y-%m-%d",
    ),
    "rows": ("data.step=rows", "data.lookback=24rows", "data.horizon=6rows", "data.season=12rows"),
    "offset": ("data.lookback=24h", "data.horizon=6h", "data.season=12h", "data.time_format=%Y-%m-%d %H:%M%z"),
}


def frame(kind: str) -> tuple[pd.DataFrame, list[Any]]:
    """A file whose values repeat after 12 steps, and the times of the six after it, as they are to be written."""
    values = np.arange(240) % 12
    if kind == "rows":
        return pd.DataFrame({"x": values}), list(range(241, 247))
    if kind == "months":
        times = pd.date_range("2000-01-31", periods=246, freq="ME")
        texts = times.strftime("%Y-%m-%d")
    else:
        times = pd.date_range("2020-06-01", periods=246, freq="h", tz="Europe/Madrid")
        texts = times.strftime("%Y-%m-%d %H:%M%z")
    return pd.DataFrame({"time": texts[:240], "x": values}), times[240:].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_forecasts_have_the_times_after_the_file_as_it_writes_them(kind: str, lab: Lab, tmp_path: Path) -> None:
    table, ahead = frame(kind)
    table.to_csv(tmp_path / "t.csv", index=False)
    column = f"data.time_column={'null' if kind == 'rows' else 'time'}"
    trained = lab.run(*RUN, *OPTIONS, *KINDS[kind], column, "hydra.run.dir=r", folder=tmp_path)
    assert trained.code == 0, trained.output
    kept = pd.read_parquet(tmp_path / "r" / "predictions.parquet")
    assert (kept["prediction"] == kept["target"]).all()
    first, last = kept.iloc[0], kept.iloc[5]
    assert [first["time"], last["time"]] == [first["first_target"], first["last_target"]]
    scores = json.loads((tmp_path / "r" / "metrics.json").read_text())["test"]
    assert ("mae_day1" in scores) == (kind == "offset")

    for output in ["f.csv"] + ["g.parquet"] * (kind == "offset"):
        predicted = lab.run("-cn", "predict", "run=r", "input=t.csv", f"output={output}", folder=tmp_path)
        assert predicted.code == 0, predicted.output
    written = pd.read_csv(tmp_path / "f.csv", encoding="utf-8-sig")
    assert written["forecast"].tolist() == [0, 1, 2, 3, 4, 5]
    times = written["time"] if kind == "rows" else pd.to_datetime(written["time"])
    assert times.tolist() == ahead
    if kind == "offset":
        assert pd.read_parquet(tmp_path / "g.parquet")["time"].tolist() == ahead
    shown = {"months": "2020-01-31 00:00", "rows": "row 241", "offset": "2020-06-11 00:00+02:00"}[kind]
    assert shown in predicted.output

    page = lab.run("-cn", "report", "runs=r", "output=page.html", folder=tmp_path)
    assert page.code == 0, page.output
    assert ("lead time (h)" if kind == "offset" else "lead time (steps)") in (tmp_path / "page.html").read_text()
