"""Whether two models differ by more than chance: paired tests on the same examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FEWEST_WEEKS = 20  # of fewer blocks a bootstrap is too sure
EXAMPLE = ["origin", "step", "target"]


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


def compare(task: str, runs: list[Path], reference: list[Path]) -> Difference | None:
    """The runs of one model, one per seed, against those of another; None unless all are of the same examples.

    Classification: McNemar's test for each seed; counts are those of the seed with the median p, and of several seeds p
    is twice the median (Rüschendorf 1982). Forecasting: the mean error of each window over the seeds, and the weeks
    drawn; of fewer than `FEWEST_WEEKS` weeks no test is made, and p is NaN.
    """
    pairs = [(run, reference[min(number, len(reference) - 1)]) for number, run in enumerate(runs)]
    if task == "cls":
        tests = []
        for run, other in pairs:
            ours, theirs = (_predictions(path, ["row"]) for path in (run, other))
            if not ours[["row", "target"]].equals(theirs[["row", "target"]]):
                return None
            tests.append(mcnemar(*((each["target"] == each["prediction"]).to_numpy() for each in (ours, theirs))))
        better, worse, p = sorted(tests, key=lambda test: test[2])[len(tests) // 2]
        p = p if len(tests) == 1 else min(1.0, 2 * p)
        return Difference(f"{better}:{worse}, p {_shown(p)}", p)
    errors: list[pd.Series] = []
    known: list[Any] = []
    for of_model in (runs, reference):
        tables = [_predictions(run, ["origin", "step"]) for run in of_model]
        known = known or tables[:1]
        if any(not table[EXAMPLE].equals(known[0][EXAMPLE]) for table in tables):
            return None
        each = [(table["prediction"] - table["target"]).abs().groupby(table["origin"]).mean() for table in tables]
        errors.append(pd.concat(each, axis=1).mean(axis=1))
    ours, theirs = errors
    weeks = pd.DatetimeIndex(ours.index).to_period("W").astype(str).to_numpy()
    if len(np.unique(weeks)) < FEWEST_WEEKS:
        return Difference(f"{(ours - theirs).mean():+.3f}, too few weeks to test", float("nan"))
    difference, low, high, p = week_block_bootstrap(ours.to_numpy(), theirs.to_numpy(), weeks)
    return Difference(f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], p {_shown(p)}", p)


def _predictions(run: Path, key: list[str]) -> pd.DataFrame:
    table = pd.read_parquet(run / "predictions.parquet", columns=[*key, "target", "prediction"])
    return table.sort_values(key, ignore_index=True)


def _shown(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
