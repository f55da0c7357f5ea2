"""What predictions tell beyond the scores: parts of a split, averages of several runs, labels that look wrong.

A table of predictions is what `predictions.parquet` holds. Of a classification, a row per text, with `target`,
`prediction` and `p(class)` for every class; of a forecast, a row per window and step, with `origin` (the time of the
window's last input), `first_target`, `step`, `time` (that of the target), `target`, `prediction`, `seasonal_naive` and,
if it has quantiles, `q0.05` and the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_datetime64_any_dtype

from tasks.forecasting import error_scores, quantile_crps

LENGTHS = (10, 30, 60, 130)  # characters at which a part begins
SEASONS = ("Dec-Feb", "Mar-May", "Jun-Aug", "Sep-Nov")


def scores(task: str, predictions: pd.DataFrame) -> dict[str, float]:
    """The scores that comparisons show, as the task defines them."""
    if task == "forecast":
        truth = predictions["target"].to_numpy(np.float64)
        naive = predictions.get("seasonal_naive", pd.Series(np.nan, predictions.index))  # older runs have kept none
        errors = (predictions["prediction"].to_numpy(np.float64) - truth, np.abs(naive.to_numpy(np.float64) - truth))
        found = error_scores(*map(torch.from_numpy, errors))
        if names := quantiles_of(predictions.columns):
            quantiles = torch.from_numpy(predictions[[*names]].to_numpy(np.float64, copy=True))
            found["crps"] = quantile_crps(quantiles, torch.tensor(truth), [*names.values()]).mean().item()
        if {"q0.1", "q0.9"} <= set(predictions):
            inside = (predictions["q0.1"] <= predictions["target"]) & (predictions["target"] <= predictions["q0.9"])
            found["coverage_80"] = float(inside.mean())
        return found
    classes = classes_of(predictions)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    places = (pd.Index(classes).get_indexer(pd.Index(predictions[name])) for name in ("target", "prediction"))
    np.add.at(counts, tuple(places), 1)
    return confusion_scores(counts)


def confusion_scores(counts: np.ndarray) -> dict[str, float]:
    """Accuracy, and macro averages over all classes, of counts of truth (rows) by answer (columns)."""
    each = class_scores(counts)
    macro = {f"{name}_macro": float(of_classes.mean()) for name, of_classes in each.items()}
    return {"accuracy": float(np.trace(counts) / max(1, counts.sum())), **macro}


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`precision`, `recall` and `f1` of each class, 0 where there is nothing to divide by."""
    right, held, found = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "precision": right / np.maximum(found, 1),
        "recall": right / np.maximum(held, 1),
        "f1": 2 * right / np.maximum(found + held, 1),
    }


def quantiles_of(columns: Iterable[str]) -> dict[str, float]:
    """The columns of a forecast's table that hold quantiles, and their levels, rising."""
    found = {name: float(name[1:]) for name in columns if re.fullmatch(r"q0\.\d+", name)}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """The classes that a classification's table has probabilities of."""
    return [name[2:-1] for name in map(str, predictions) if name.startswith("p(")]


def format_number(value: float, decimals: int = 4, beside: Sequence[float] = (), sign: str = "") -> str:
    """A number with so many decimals; with as many significant digits where it is too small for these.

    Args:
        value: any number.
        decimals: of usual numbers, such as 0.8731.
        beside: numbers that it is read with; the largest of all of them decides.
        sign: `+` for one before positive numbers, too.
    """
    largest = max(map(abs, (value, *beside)))
    return f"{value:{sign}.{decimals}{'f' if largest == 0 or largest >= 10 ** (1 - decimals) else 'g'}}"


def breakdown(task: str, predictions: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of parts of the split: of texts by their length, of windows by season and year of their first target.

    Returns:
        `{"length": {"10-29": {"accuracy": …, "examples": …}, …}}`, or `season` and `year`, each part with `mae`,
        `median_ae`, `skill` and the number of its windows. Parts without an example are left out; rows
        without times have no parts.
    """
    if task == "cls":
        right = predictions["target"] == predictions["prediction"]
        parts = right.groupby(_lengths(predictions["text"]), observed=True).agg(["mean", "size"]).itertuples()
        return {"length": {name: {"accuracy": float(mean), "examples": int(size)} for name, mean, size in parts}}
    if not is_datetime64_any_dtype(predictions["first_target"]):  # rows without times
        return {}
    begin = predictions["first_target"].dt
    predictions = predictions.drop(columns=[*quantiles_of(predictions.columns)])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, part in {"season": begin.month % 12 // 3, "year": begin.year}.items():
        found[kind] = {}
        for number, rows in predictions.groupby(part):
            name = SEASONS[number] if kind == "season" else str(number)  # pyright: ignore[reportCallIssue, reportArgumentType]
            of_part = scores(task, rows)
            shown = {score: of_part[score] for score in ("mae", "median_ae", "skill")}
            found[kind][name] = {**shown, "examples": rows["origin"].nunique()}
    return found


def _lengths(texts: pd.Series) -> pd.Series:
    between = [f"{low}-{high - 1}" for low, high in pairwise(LENGTHS)]
    names = [f"under {LENGTHS[0]}", *between, f"{LENGTHS[-1]} and more"]
    found = np.digitize(texts.str.len(), LENGTHS)
    return pd.Series(pd.Categorical.from_codes(found, dtype=pd.CategoricalDtype(names, ordered=True)), texts.index)


def average(task: str, runs: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """The predictions of an ensemble, the mean of several runs' probabilities or forecasts.

    None if the runs aren't of the same examples in the same order.
    """
    first = runs[0]
    same = ["target", *(["row"] if task == "cls" else ["origin", "step"])]
    shared = [run[same].astype({"target": shared_precision(runs)}) for run in runs]
    if any(not of_run.equals(shared[0]) for of_run in shared[1:]):
        return None
    if task == "cls":
        names = [f"p({name})" for name in classes_of(first)]
    else:  # quantiles are averaged level by level (Vincent 1912)
        names = ["prediction", *(name for name in quantiles_of(first.columns) if all(name in run for run in runs))]
    mean = first[[*same, *first.columns.intersection(["seasonal_naive"])]].copy()
    mean[names] = np.mean([run[names].to_numpy() for run in runs], axis=0)
    if task == "cls":
        mean["prediction"] = pd.Index(classes_of(first))[mean[names].to_numpy().argmax(axis=1)]
    return mean


def shared_precision(runs: Iterable[pd.DataFrame]) -> Any:
    """The type in which the runs' targets can be compared: older runs have kept those of series in float32."""
    return min((run["target"].to_numpy().dtype for run in runs), key=lambda kind: kind.itemsize)


def curve(histories: Sequence[pd.DataFrame], name: str) -> pd.DataFrame:
    """A score by epoch over several runs: its `mean`, and its range from `low` to `high`; empty if no run has it."""
    runs = [history.groupby("epoch")[name].last() for history in histories if name in history]
    table = pd.concat(runs, axis=1) if runs else pd.DataFrame()
    return pd.DataFrame({"mean": table.mean(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)}).dropna()


def reliability(probability: pd.Series, right: pd.Series, bins: int = 15) -> pd.DataFrame:
    """How true probabilities are: answers in bins of equal width (DeGroot and Fienberg 1983).

    Returns:
        A row per bin that has any: the mean `probability` of its answers, `accuracy`, the share of them that is right,
        and `examples`. The expected calibration error is the mean of |accuracy - probability| over the examples.
    """
    inside = np.ceil(probability.to_numpy() * bins).clip(1, bins)  # (0, 1/bins], …, as torchmetrics has them
    table = pd.DataFrame({"probability": probability.to_numpy(), "accuracy": right.to_numpy(dtype=float)})
    groups = table.groupby(inside)
    return groups.mean().assign(examples=groups.size()).reset_index(drop=True)


def likely_label_errors(predictions: pd.DataFrame) -> pd.DataFrame:
    """Texts whose label the model contradicts with confidence, the surest first (confident learning).

    A class counts as confident from t_j = mean of p(j) over the texts labelled j on (Northcutt et al. 2021). A text is
    suspected if, of the classes with p(j) >= t_j, the most probable one isn't its label. The model must not have been
    trained on the texts.

    Returns:
        Columns `row, text, label, suggested, p_label, p_suggested`; by p_label - p_suggested, rising.
    """
    classes = classes_of(predictions)
    probabilities = predictions[[f"p({name})" for name in classes]].to_numpy()
    labels = pd.Index(classes).get_indexer(pd.Index(predictions["target"]))
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = [
        own[labels == number].mean() if (labels == number).any() else np.inf for number in range(len(classes))
    ]
    confident = np.where(probabilities >= thresholds, probabilities, -np.inf)
    suggested = confident.argmax(axis=1)
    suspected = np.isfinite(confident.max(axis=1)) & (suggested != labels)
    table = pd.DataFrame(
        {
            "row": predictions["row"],
            "text": predictions["text"],
            "label": predictions["target"],
            "suggested": pd.Index(classes)[suggested],
            "p_label": own,
            "p_suggested": probabilities[np.arange(len(labels)), suggested],
        }
    )[suspected]
    return table.iloc[(table["p_label"] - table["p_suggested"]).argsort(kind="stable")].reset_index(drop=True)
