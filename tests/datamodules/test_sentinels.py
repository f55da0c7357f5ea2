from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodules.sentinels import sentinel_values

DRAWN = np.random.default_rng(0)
HOURS = np.arange(2000)
TEMPERATURE = (10 + 8 * np.sin(2 * np.pi * HOURS / 24) + DRAWN.normal(0, 3, 2000)).round(2)
GAS = DRAWN.gamma(2, 100, 2000).round() + 2  # from 2 to about 1500, as in the UCI air quality data
RAIN = np.where(DRAWN.random(2000) < 0.1, DRAWN.gamma(0.5, 3, 2000), 0).round(1)
HUMIDITY = np.minimum(DRAWN.normal(85, 12, 2000), 100).round(1)
WIND = DRAWN.weibull(2, 2000).round(2)
DIRECTION = DRAWN.uniform(0, 360, 2000).round(1)
PRESSURE = DRAWN.normal(990, 8, 2000).round(1)
COUNTS = DRAWN.poisson(3, 2000)
SUNSHINE = np.maximum(0, 800 * np.sin(2 * np.pi * HOURS / 24) + DRAWN.normal(0, 5, 2000)).round()
SALES = np.where(HOURS % 7 == 6, 0, DRAWN.normal(1000, 60, 2000).round())  # closed on Sundays


def marked(values: np.ndarray, *marks: float, times: int = 30) -> np.ndarray:
    """`values` with each mark in so many rows."""
    changed = np.asarray(values, dtype=np.float64).copy()
    for number, mark in enumerate(marks):
        changed[100 + 200 * number :][:times] = mark
    return changed


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        *[(TEMPERATURE, [mark]) for mark in (-200, -99, -99.9, -999, 99.9, 999.9, 9999, -9999, -32768, 1e20)],
        *[(GAS, [mark]) for mark in (-200, -99, 9999)],
        *[(RAIN, [mark]) for mark in (-1, -9.9, -99, 999.9)],
        *[(PRESSURE, [mark]) for mark in (0, -1, 9999.9, 99.99)],
        *[(DIRECTION, [mark]) for mark in (-9, 999)],
        *[(HUMIDITY, [mark]) for mark in (-99, 999)],
        (COUNTS, [-1e30]),
        (COUNTS, [999]),
        (TEMPERATURE, [500]),  # no usual one, but so far away, and again and again
        (TEMPERATURE, [-999, -99, 9999]),
        (TEMPERATURE, [-9999, 9999]),
    ],
    ids=str,
)
def test_a_far_value_that_comes_again_and_again_is_named_with_its_count(values: Any, marks: list[float]) -> None:
    assert sentinel_values(marked(values, *marks)) == dict.fromkeys(marks, 30)


@pytest.mark.parametrize(("mark", "times"), [(-200, 3), (-200, 1), (-9999, 1), (9999, 2)])
def test_of_a_usual_one_a_few_are_enough(mark: float, times: int) -> None:
    assert sentinel_values(marked(TEMPERATURE, mark, times=times)) == {mark: times}


def test_most_of_a_column_may_be_one() -> None:
    values = np.full(2000, -200.0)
    values[:200] = GAS[:200]
    assert sentinel_values(values) == {-200: 1800}


@pytest.mark.parametrize(
    "values",
    [
        *(TEMPERATURE, GAS, RAIN, HUMIDITY, WIND, DIRECTION, PRESSURE, COUNTS, SUNSHINE, SALES),
        marked(TEMPERATURE, 60, times=2),  # far, not usual, and too seldom
        marked(TEMPERATURE, 99, times=1),  # usual, but a spike might reach it
        TEMPERATURE.clip(2, 15),  # a sensor at its limits
        TEMPERATURE.round(),
        HUMIDITY.round() - 101,  # up to -1, without a gap
        marked(np.full(2000, 20.0), 99, times=5),  # a constant with spikes
        COUNTS % 2 * 999.0,  # a switch
        np.where(HOURS % 3 == 0, 0, DRAWN.uniform(1500, 2500, 2000)),  # a heater's power, and off
        np.arange(2000) * 3600e6 + 1.6e15,  # a counter
        RAIN[:200].cumsum(),
        np.full(2000, np.nan),
        np.full(2000, -9999.0),
        np.array([]),
    ],
)
def test_what_a_sensor_may_well_read_is_no_sentinel(values: np.ndarray) -> None:
    assert sentinel_values(values.astype(np.float64)) == {}


def test_the_order_of_the_rows_and_missing_ones_do_not_matter() -> None:
    values = np.where(HOURS % 10 == 0, np.nan, marked(GAS, -200))
    assert sentinel_values(values) == sentinel_values(DRAWN.permutation(values)) == {-200: 27}
