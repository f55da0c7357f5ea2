from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest

from runs.statistics import compare, mcnemar, week_block_bootstrap


@pytest.mark.parametrize(("better", "worse"), [(9, 2), (2, 9), (5, 5), (0, 3), (0, 0), (40, 20)])
def test_mcnemar_is_the_binomial_tests_two_sided_p(better: int, worse: int) -> None:
    right = np.array([True] * better + [False] * worse + [True] * 7 + [False] * 4)
    other = np.array([False] * better + [True] * worse + [True] * 7 + [False] * 4)
    total, fewer = better + worse, min(better, worse)
    tail = sum(comb(total, number) for number in range(fewer + 1)) / 2**total
    assert mcnemar(right, other) == (better, worse, pytest.approx(min(1, 2 * tail)))


def test_a_difference_in_every_week_is_significant_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    weeks = np.repeat(np.arange(52), 100)
    weather = np.repeat(generator.normal(size=52), 100)
    other = 3 + weather + generator.normal(size=5200)
    difference, low, high, p = week_block_bootstrap(other - 0.5 + 0.1 * generator.normal(size=5200), other, weeks)
    assert difference == pytest.approx(-0.5, abs=0.01)
    assert low < difference < high < 0
    assert p < 0.001
    noise = np.repeat(generator.normal(size=52), 100)  # a week is one draw, however many windows it holds
    assert week_block_bootstrap(other + noise - noise.mean(), other, weeks)[3] > 0.5


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(1), 0
    weeks = np.repeat(np.arange(40), 5)
    for trial in range(200):
        errors = np.repeat(generator.normal(0.3, 1, 40), 5) + generator.normal(size=200)
        _, low, high, _ = week_block_bootstrap(errors, np.zeros(200), weeks, draws=400, seed=trial)
        held += low <= 0.3 <= high
    assert 0.88 <= held / 200 <= 0.99


def answers(row: np.ndarray, target: np.ndarray, prediction: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"row": row, "target": target, "prediction": prediction})


def test_the_runs_of_two_classifiers_are_paired_by_row() -> None:
    rows, truth = np.arange(100), np.array(["a"] * 100, dtype=object)
    right = np.where(rows < 80, "a", "b").astype(object)
    ours = answers(rows, truth, right)
    shuffled = np.random.default_rng(0).permutation(100)
    theirs = np.where(rows < 60, "a", "b").astype(object)
    other = answers(rows[shuffled], truth, theirs[shuffled])
    found = compare("cls", [ours], [other])
    assert found is not None
    assert found.text == "20:0, p < 0.001"
    assert found.p == pytest.approx(2 / 2**20)
    elsewhere = answers(rows + 1, truth, right)
    assert compare("cls", [ours], [elsewhere]) is None


def test_of_several_seeds_the_median_counts_twice() -> None:
    rows, truth = np.arange(100), np.array(["a"] * 100, dtype=object)
    runs = [answers(rows, truth, np.where(rows < n, "a", "b").astype(object)) for n in (60, 68, 90)]
    other = answers(rows, truth, np.where(rows < 60, "a", "b").astype(object))
    found = compare("cls", runs, [other])
    assert found is not None
    assert found.text.startswith("8:0")
    assert found.p == pytest.approx(2 * 2 / 2**8)


def test_one_run_is_tested_against_every_seed_of_the_other() -> None:
    rows, truth = np.arange(100), np.array(["a"] * 100, dtype=object)
    several = [answers(rows, truth, np.where(rows < n, "a", "b").astype(object)) for n in (90, 60, 52)]
    found = compare("cls", [several[1]], several)
    assert found is not None
    assert found.text.startswith("8:0")
    assert found.p == pytest.approx(2 * 2 / 2**8)


def forecasts(hours: int, error: float, start: str = "2016-01-01") -> pd.DataFrame:
    origins = np.repeat(pd.date_range(start, periods=hours, freq="h").to_numpy(), 2)
    zeros = np.zeros(2 * hours)
    return pd.DataFrame(
        {"origin": origins, "step": np.tile([1, 2], hours), "target": zeros, "prediction": zeros + error}
    )


def test_the_runs_of_two_forecasters_are_paired_by_origin_and_averaged_over_seeds() -> None:
    found = compare("forecast", [forecasts(4000, 1), forecasts(4000, 2)], [forecasts(4000, -2)])
    assert found is not None
    assert found.text == "-0.500 [-0.500, -0.500], p < 0.001"


def test_the_windows_of_a_backtests_years_are_put_together() -> None:
    """Two seeds in 2015 and one in 2016: each window counts once."""
    ours = [forecasts(3000, 1, "2015-01-01"), forecasts(3000, 2, "2015-01-01"), forecasts(1000, 3)]
    others = [forecasts(1000, -2), forecasts(3000, -2, "2015-01-01")]
    found = compare("forecast", ours, others)
    assert found is not None
    assert float(found.text.split()[0]) == pytest.approx((3000 * -0.5 + 1000 * 1) / 4000, abs=1e-3)
    assert compare("forecast", ours[:2], others) is None
    contradicting = [ours[0], ours[1].assign(target=1.0), ours[2]]
    assert compare("forecast", contradicting, others) is None


@pytest.mark.parametrize(("level", "unit"), [(0.0, 1.0), (1e9, 1.0), (116.4, 1e-6)])
def test_neither_the_level_nor_the_unit_of_a_series_changes_the_test(level: float, unit: float) -> None:
    values = np.random.default_rng(0).normal(size=(3, 8000))
    tables = [forecasts(4000, 0).assign(target=values[0], prediction=values[at]) for at in (1, 2)]
    expected = compare("forecast", tables[:1], tables[1:])
    names = ["target", "prediction"]
    found = compare("forecast", *([table.assign(**(level + unit * table[names]))] for table in tables))
    assert found is not None
    assert expected is not None
    assert found.p == pytest.approx(expected.p)
    difference = float(found.text.split()[0]) / unit
    assert difference == pytest.approx(float(expected.text.split()[0]), abs=6e-4)
    assert difference != 0


def test_a_run_that_kept_float32_is_compared_with_one_that_keeps_float64() -> None:
    generator = np.random.default_rng(0)
    tables = [
        forecasts(4000, 0).assign(
            target=np.round(9 + np.sin(np.arange(8000)), 2), prediction=generator.normal(9, 2, 8000)
        )
        for _ in range(3)
    ]
    names = ["target", "prediction"]
    older = [table.astype(dict.fromkeys(names, np.float32)) for table in tables]
    expected = compare("forecast", tables[:2], tables[2:])
    assert expected is not None
    for runs, reference in ((older[:2], tables[2:]), (tables[:2], older[2:]), ([older[0], tables[1]], tables[2:])):
        found = compare("forecast", runs, reference)
        assert found is not None
        assert found.text == expected.text
        assert found.p == pytest.approx(expected.p)
    moved = tables[2].assign(target=tables[2]["target"] + 1e-3)
    assert compare("forecast", older[:2], [moved]) is None


def test_of_few_weeks_no_test_is_made() -> None:
    found = compare("forecast", [forecasts(400, 1)], [forecasts(400, 2)])
    assert found is not None
    assert found.text == "-1.000, too few weeks to test"
    assert np.isnan(found.p)


@pytest.mark.parametrize("task", ["cls", "forecast"])
def test_runs_with_other_truths_are_not_compared(task: str) -> None:
    ours = forecasts(4000, 1.0).assign(row=np.arange(8000))
    assert compare(task, [ours], [ours]) is not None
    other = ours.assign(target=ours["target"] + 1)
    assert compare(task, [ours], [other]) is None
