"""Whether two models differ by more than chance: paired tests on the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from runs.analysis import format_number, shared_precision

FEWEST_WEEKS = 20  # of fewer blocks a bootstrap is too sure


@dataclass(frozen=True)
class Difference:
    """One model against another on the same examples.

    Attributes:
        text: as people read it.
        p: of the null hypothesis that they are alike, two-sided.
    """

    text: str
    p: float


def mcnemar(right: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """McNemar's exact test of two classifiers on the same examples (McNemar 1947).

    Args:
        right: bool (N,), where the first is right.
        other: the same of the second.

    Returns:
        How many examples only the first has right, how many only the second, and the two-sided p of the binomial
        test that both happen equally often.
    """
    from scipy.stats import binomtest

    better, worse = int((right & ~other).sum()), int((other & ~right).sum())
    return better, worse, float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def week_block_bootstrap(
    errors: np.ndarray, other: np.ndarray, weeks: np.ndarray, draws: int = 5000, seed: int = 0
) -> tuple[float, float, float, float]:
    """The difference of two mean errors, from weeks drawn with replacement: windows of one week share their weather.

    Args:
        errors: (N,), the first model's mean absolute error of each window.
        other: (N,), the second's.
        weeks: (N,), to which block each window belongs (Künsch 1989).
        draws: resamples.
        seed: of them.

    Returns:
        errors - other on average, its 95% interval, and the two-sided p of a difference of 0.
    """
    blocks = pd.DataFrame({"difference": errors - other, "week": weeks}).groupby("week")["difference"]
    sums, sizes = blocks.sum().to_numpy(), blocks.size().to_numpy()
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = 2 * min((1 + (means <= 0).sum()) / (1 + draws), (1 + (means >= 0).sum()) / (1 + draws))
    return float((errors - other).mean()), float(low), float(high), min(1.0, float(p))


def compare(task: str, runs: Sequence[pd.DataFrame], reference: Sequence[pd.DataFrame]) -> Difference | None:
    """The predictions of one model's runs against those of another; None unless both are of the same examples.

    Classification: one run per seed, and McNemar's test for each pair, a single run's with all of the others; counts
    are those of the pair with the median p, and of several pairs p is twice the median (Rüschendorf 1982). Forecasting:
    runs may differ in their seed and in the windows they forecast; the mean error of each window over the runs that
    have it, and the weeks drawn. Of fewer than `FEWEST_WEEKS` weeks no test is made, and p is NaN.
    """
    if task == "cls":
        tests = []
        for number in range(len(runs) if len(runs) > 1 else len(reference)):
            pair = (each[min(number, len(each) - 1)] for each in (runs, reference))
            ours, theirs = (table.sort_values("row", ignore_index=True) for table in pair)
            if not ours[["row", "target"]].equals(theirs[["row", "target"]]):
                return None
            tests.append(mcnemar(*((each["target"] == each["prediction"]).to_numpy() for each in (ours, theirs))))
        better, worse, p = sorted(tests, key=lambda test: test[2])[len(tests) // 2]
        p = p if len(tests) == 1 else min(1.0, 2 * p)
        return Difference(f"{better}:{worse}, p {_shown(p)}", p)
    precision = shared_precision([*runs, *reference])
    ours, theirs = (_by_window(each, precision) for each in (runs, reference))
    if ours is None or theirs is None or not ours[["origin", "target"]].equals(theirs[["origin", "target"]]):
        return None
    weeks = ours["origin"].dt.to_period("W").astype(str).to_numpy()
    if len(np.unique(weeks)) < FEWEST_WEEKS:
        difference = format_number((ours["error"] - theirs["error"]).mean(), 3, sign="+")
        return Difference(f"{difference}, too few weeks to test", float("nan"))
    *numbers, p = week_block_bootstrap(ours["error"].to_numpy(), theirs["error"].to_numpy(), weeks)
    difference, low, high = (format_number(number, 3, numbers, "+") for number in numbers)
    return Difference(f"{difference} [{low}, {high}], p {_shown(p)}", p)


def _by_window(runs: Sequence[pd.DataFrame], precision: Any) -> pd.DataFrame | None:
    """Each window's `origin`, mean `target` and mean absolute `error` over the runs that forecast it, in time order.

    None if the runs don't agree about the targets, in this precision.
    """
    each = []
    for run in runs:
        error = (run["prediction"].astype(np.float64) - run["target"].astype(np.float64)).abs()
        errors = pd.DataFrame({"target": run["target"].astype(precision), "error": error})
        each.append(errors.groupby(run["origin"]).mean())
    windows = pd.concat(each).groupby(level="origin")
    targets = windows["target"].agg(["min", "max"])
    if not targets["min"].equals(targets["max"]):
        return None
    return pd.DataFrame({"target": targets["min"], "error": windows["error"].mean()}).reset_index()


def _shown(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
