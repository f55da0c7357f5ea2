from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.series import SeriesDataModule
from datamodules.synthetic import sample_climate


@pytest.fixture(scope="module")
def sample() -> SeriesDataModule:
    data = SeriesDataModule("sample_climate", wind={"speed": "wv (m/s)", "direction": "wd (deg)"})
    data.setup()
    return data


def test_the_same_seed_gives_the_same_weather() -> None:
    pd.testing.assert_frame_equal(sample_climate(1, 5), sample_climate(1, 5))
    assert not sample_climate(1, 5)["T (degC)"].equals(sample_climate(1, 6)["T (degC)"])


def test_the_sample_has_the_columns_of_the_real_record() -> None:
    assert list(sample_climate(1, 0)) == [
        "Date Time", "p (mbar)", "T (degC)", "Tpot (K)", "Tdew (degC)", "rh (%)", "VPmax (mbar)", "VPact (mbar)",
        "VPdef (mbar)", "sh (g/kg)", "H2OC (mmol/mol)", "rho (g/m**3)", "wv (m/s)", "max. wv (m/s)", "wd (deg)",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_weather_is_physically_possible(seed: int) -> None:
    table = sample_climate(3, seed)
    assert table["T (degC)"].between(-30, 42).all()
    assert 6 < table["T (degC)"].mean() < 13
    assert table["rh (%)"].between(0, 100).all()
    assert (table["Tdew (degC)"] <= table["T (degC)"]).all()
    assert table["p (mbar)"].between(930, 1050).all()
    assert table["wd (deg)"].between(0, 360).all()
    calm = table[table["wv (m/s)"] > -9999]
    assert calm["wv (m/s)"].between(0, 30).all()
    difference = table["VPmax (mbar)"] - table["VPact (mbar)"] - table["VPdef (mbar)"]
    assert difference.abs().max() < 0.02
    # An ideal gas: the density of moist air follows from its pressure, temperature and water.
    pascal, vapour, kelvin = 100 * table["p (mbar)"], 100 * table["VPact (mbar)"], table["T (degC)"] + 273.15
    density = 1000 * ((pascal - vapour) / (287.05 * kelvin) + vapour / (461.5 * kelvin))
    np.testing.assert_allclose(table["rho (g/m**3)"], density, rtol=2e-3)


def test_summers_are_warmer_than_winters_and_afternoons_than_nights() -> None:
    table = sample_climate(3, 0)
    times = pd.to_datetime(table["Date Time"], format="%d.%m.%Y %H:%M:%S")
    temperature = table["T (degC)"]
    assert temperature[times.dt.month == 7].mean() > temperature[times.dt.month == 1].mean() + 12
    summer = times.dt.month == 7
    range_of = {
        month: temperature[(times.dt.month == month) & (times.dt.hour == 15)].mean()
        - temperature[(times.dt.month == month) & (times.dt.hour == 3)].mean()
        for month in (1, 7)
    }
    assert summer.any()
    assert range_of[7] > range_of[1] + 1 > 2


def test_the_sample_has_the_faults_of_the_real_record(sample: SeriesDataModule) -> None:
    report = sample.report
    assert (report["duplicates"], report["backward_jumps"], report["off_grid"]) == (24, 1, 0)
    assert [gap["minutes"] for gap in report["gaps"]] == [70, 420]
    assert report["missing_values"] == {"wv (m/s)": 3}
    assert (sample_climate(3, 0)["max. wv (m/s)"] == -9999).sum() == 4


def test_the_default_split_of_the_sample_is_a_year_each(sample: SeriesDataModule) -> None:
    splits = sample.report["splits"]
    assert [splits[name]["from"][:4] + splits[name]["to"][:4] for name in ("train", "val", "test")] == [
        "20142014", "20152015", "20162016",
    ]  # fmt: skip
    assert min(split["windows"] for split in splits.values()) > 7000


def test_there_is_something_to_learn_and_the_other_columns_help(sample: SeriesDataModule) -> None:
    train, test = (sample.dataset(name)[list(range(0, len(sample.dataset(name)), 4))] for name in ("train", "test"))
    errors = {"naive": (test["history"][:, -24:].repeat(1, 2) - test["targets"]).abs().mean().item()}
    for name, columns in (("alone", slice(0, 1)), ("all", slice(None))):
        # Ridge regression from every third hour of the last two days, on the change since the last hour.
        design, unseen = (
            torch.cat([b["inputs"][:, -46::3, columns].flatten(1), torch.ones(len(b["index"]), 1)], dim=1).double()
            for b in (train, test)
        )
        change = (train["targets"] - train["history"][:, -1:]).double()
        weights = torch.linalg.solve(design.T @ design + 30 * torch.eye(design.shape[1]).double(), design.T @ change)
        errors[name] = (unseen @ weights + test["history"][:, -1:] - test["targets"]).abs().mean().item()
    assert errors["all"] < 0.98 * errors["alone"] < 0.98 * errors["naive"]
