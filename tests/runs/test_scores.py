"""Every score of a run, a prediction and a comparison, computed again by other means from the tables and the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    mean_absolute_error,
    mean_pinball_loss,
    median_absolute_error,
    precision_recall_fscore_support,
    root_mean_squared_error,
)

from runs.comparison import write_comparison
from tests.runs.lab import SMALL, Lab

HOURS = pd.date_range("2015-11-01 00:30", periods=24 * 130, freq="h")  # the test begins in winter and ends in spring
WAVE = np.sin(2 * np.pi * np.arange(len(HOURS)) / 24)
NOISE = np.random.default_rng(0).normal(size=(2, len(HOURS)))
UNITS = {
    "temperature": np.round(9 + 5 * WAVE + NOISE[0].cumsum() / 5, 2),
    "meter": np.round(1e9 + 50 * WAVE + NOISE[0].cumsum(), 3),
    "coordinate": np.round(116.4 + 2e-6 * WAVE + 5e-7 * NOISE[0], 9),
}
LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
NETWORK = ("trainer.max_epochs=2", "model.encoder.hidden_size=4", "optimizer.lr=0.01")
MODELS = {
    "persistence": ("model=persistence",),
    "ridge": ("model=ridge",),
    "lstm": ("model=lstm", *NETWORK, f"task.quantiles={[*LEVELS]}".replace(" ", ""), "task.tracking=0.02"),
}
QUICK = (("coordinate", "persistence"), ("temperature", "ridge"), ("meter", "lstm"))
CASES = [
    pytest.param(unit, model, marks=[] if (unit, model) in QUICK else pytest.mark.slow)
    for unit in UNITS
    for model in MODELS
]
EXACT = 1e-11  # relative: other sums of the same float64 numbers


def series_of(unit: str) -> pd.Series:
    return pd.Series(UNITS[unit], HOURS)


@pytest.fixture(scope="module")
def trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run, beside the file `UNIT.csv` that it was trained on."""
    home = tmp_path_factory.mktemp("scores")

    def run_once(unit: str, model: str, seed: int = 0) -> Path:
        file, folder = home / f"{unit}.csv", home / f"{unit}_{model}_{seed}"
        if not folder.exists():
            table = pd.DataFrame({"time": HOURS.strftime("%Y-%m-%d %H:%M"), "x": UNITS[unit], "other": NOISE[1]})
            table.to_csv(file, index=False)
            outcome = lab.run(
                *("task=forecast", "trainer=cpu", "trainer.threads=1", "trainer.enable_progress_bar=false"),
                *("logger=none", f"data.path={file}", "data.time_column=time", "data.time_format=%Y-%m-%d %H:%M"),
                *("data.target=x", "data.features=[x,other]", "data.wind=null", "data.split=fraction"),
                *("data.val_fraction=0.2", "data.test_fraction=0.4", "data.lookback=30h", "data.horizon=30h"),
                *("data.stride=3", "data.batch_size=64", f"seed={seed}", *MODELS[model], f"hydra.run.dir={folder}"),
            )
            assert outcome.code == 0, outcome.output
            assert "Warning" not in outcome.output
            assert "overridden" not in outcome.output
        return folder

    return run_once


def error_scores(truth: Any, forecast: Any, naive: Any) -> dict[str, float]:
    return {
        "mae": mean_absolute_error(truth, forecast),
        "median_ae": median_absolute_error(truth, forecast),
        "rmse": root_mean_squared_error(truth, forecast),
        "bias": trim_mean(forecast - truth, 0),
        "skill": 1 - mean_absolute_error(truth, forecast) / mean_absolute_error(truth, naive),
    }


def quantile_scores(table: pd.DataFrame, truth: str = "target") -> dict[str, float]:
    edges = np.array([0, 0.075, 0.3, 0.7, 0.925, 1])  # half way between the levels
    losses = [mean_pinball_loss(table[truth], table[f"q{level}"], alpha=level) for level in LEVELS]
    found: dict[str, float] = {"crps": float(2 * np.diff(edges) @ losses)}
    for share, low, high in (("90", "q0.05", "q0.95"), ("80", "q0.1", "q0.9")):
        found[f"coverage_{share}"] = table[truth].between(table[low], table[high]).mean()
        found[f"width_{share}"] = (table[high] - table[low]).mean()
    return found


def naive_of(series: pd.Series, table: pd.DataFrame) -> np.ndarray:
    """What came at the same hour of the last day before the origin."""
    return series[table["origin"] + pd.to_timedelta((table["step"] - 1) % 24 - 23, unit="h")].to_numpy()


@pytest.mark.parametrize(("unit", "model"), CASES)
def test_every_score_of_a_forecaster_is_that_of_its_predictions(
    unit: str, model: str, trained: Callable[..., Path]
) -> None:
    folder, series = trained(unit, model), series_of(unit)
    table = pd.read_parquet(folder / "predictions.parquet")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    truth = series[table["origin"] + pd.to_timedelta(table["step"], unit="h")].to_numpy()
    assert (table["target"] == truth).all()
    assert (table["seasonal_naive"] == naive_of(series, table)).all()
    if model == "persistence":
        assert (table["prediction"] == series[table["origin"]].to_numpy()).all()

    def scores(rows: pd.DataFrame) -> dict[str, float]:
        return error_scores(rows["target"], rows["prediction"], rows["seasonal_naive"])

    day = (table["step"] - 1) // 24 + 1
    expected = scores(table)
    expected |= {f"mae_day{number}": scores(rows)["mae"] for number, rows in table.groupby(day)}
    expected |= quantile_scores(table) if model == "lstm" else {}
    assert metrics["test"] == pytest.approx(expected, rel=EXACT)
    steps = [scores(rows)["mae"] for _, rows in table.groupby("step")]
    assert metrics["mae_by_step"] == pytest.approx(steps, rel=EXACT)
    naive = [mean_absolute_error(rows["target"], rows["seasonal_naive"]) for _, rows in table.groupby("step")]
    assert metrics["seasonal_naive"]["mae_by_step"] == pytest.approx(naive, rel=EXACT)
    assert metrics["seasonal_naive"]["mae"] == pytest.approx(np.mean(naive), rel=EXACT)
    assert metrics["windows"] == len(table) / 30

    begin = table["first_target"].dt
    seasons = begin.month.map(lambda month: "Dec-Feb" if month in (12, 1, 2) else "Mar-May")
    for kind, part in (("season", seasons), ("year", begin.year.astype(str))):
        parts = {name: scores(rows) | {"examples": len(rows) / 30} for name, rows in table.groupby(part)}
        assert metrics["breakdown"][kind].keys() == parts.keys()
        for name, found in metrics["breakdown"][kind].items():
            assert found == pytest.approx({score: parts[name][score] for score in found}, rel=EXACT)
    assert len(metrics["breakdown"]["season"]) == 2
    if model == "lstm":
        shares = {f"{level:g}": (table["target"] <= table[f"q{level}"]).mean() for level in LEVELS}
        assert metrics["share_below_quantile"] == pytest.approx(shares, rel=EXACT)
        for number, rows in table.groupby(day):
            of_day = quantile_scores(rows)
            for share in ("80", "90"):
                expected = {name: of_day[f"{name}_{share}"] for name in ("coverage", "width")}
                assert metrics["intervals"][share][f"day{number}"] == pytest.approx(expected, rel=EXACT)
        assert 0.6 < metrics["test"]["coverage_80"] < 0.95  # as of a forecast in a unit of usual size


@pytest.mark.parametrize(("unit", "model"), [("meter", "lstm"), pytest.param(*QUICK[0], marks=pytest.mark.slow)])
def test_the_scores_that_a_prediction_writes_are_those_of_its_table(
    unit: str, model: str, trained: Callable[..., Path], lab: Lab, tmp_path: Path
) -> None:
    folder, series, output = trained(unit, model), series_of(unit), tmp_path / "out.parquet"
    words = [f"run={folder}", f"input={folder.parent / unit}.csv", f"output={output}", "every=6h"]
    outcome = lab.run("-cn", "predict", *words)
    assert outcome.code == 0, outcome.output
    table = pd.read_parquet(output)
    report = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    known = table["truth"].notna()
    assert (table["truth"][known] == series[table["time"][known]].to_numpy()).all()
    assert set(table["time"][~known]).isdisjoint(HOURS)
    whole = table[known.groupby(table["origin"]).transform("all")]
    expected = error_scores(whole["truth"], whole["forecast"], naive_of(series, whole))
    expected |= quantile_scores(whole, "truth") if model == "lstm" else {}
    assert report["scored"] == len(whole) / 30 > 100
    assert report["scores"] == pytest.approx(expected, rel=EXACT)
    errors = np.abs(naive_of(series, whole) - whole["truth"])
    assert report["seasonal_naive"] == pytest.approx({"mae": errors.mean(), "median_ae": errors.median()}, rel=EXACT)
    kept = pd.read_parquet(folder / "predictions.parquet").merge(table, on=["origin", "step"])
    assert len(kept) > 1000
    varied = UNITS[unit].std()
    np.testing.assert_allclose(kept["forecast"], kept["prediction"], rtol=0, atol=1e-4 * varied)


def averaged(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    names = ["prediction", *(f"q{level}" for level in LEVELS)]
    return runs[0].assign(**{name: np.mean([run[name] for run in runs], axis=0) for name in names})


@pytest.mark.parametrize("unit", [pytest.param("temperature", marks=pytest.mark.slow), "meter"])
def test_a_comparison_has_the_scores_of_its_runs_and_of_their_average(
    unit: str, trained: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [trained(unit, "lstm", seed) for seed in (0, 1)]
    write_comparison(tmp_path, folders)
    compared = pd.read_csv(tmp_path / "comparison.csv", dtype=str).set_index("label")  # pandas may be a digit off
    tables = [pd.read_parquet(folder / "predictions.parquet") for folder in folders]
    each = [error_scores(*(table[name] for name in NAMES)) | quantile_scores(table) for table in tables]
    mean = averaged(tables)
    expected = {
        "lstm": pd.DataFrame(each).mean().to_dict(),
        "lstm, 2 seeds averaged": error_scores(*(mean[name] for name in NAMES)) | quantile_scores(mean),
    }
    for label, values in expected.items():
        shown = [name for name in values if name in compared]
        assert {"mae", "median_ae", "rmse", "bias", "skill"} <= set(shown)
        found = compared.loc[label, shown].astype(float).to_dict()
        assert found == pytest.approx({name: values[name] for name in shown}, rel=EXACT)
    spread = pd.DataFrame(each).std()
    assert float(compared.loc["lstm", "mae_std"]) == pytest.approx(
        spread["mae"], rel=1e-6
    )  # a difference of almost equals


NAMES = ("target", "prediction", "seasonal_naive")


@pytest.mark.parametrize("model", ["gru", "tfidf_svm"])
def test_every_score_of_a_classifier_is_that_of_its_predictions(
    model: str, finished: Callable[[str], Path], lab: Lab, tmp_path: Path
) -> None:
    folder = finished("cls") if model == "gru" else tmp_path / "run"
    if model != "gru":
        words = [word for word in SMALL["cls"] if not word.startswith(("model=", "model."))]
        outcome = lab.run(*words, f"model={model}", f"hydra.run.dir={folder}")
        assert outcome.code == 0, outcome.output
    table = pd.read_parquet(folder / "predictions.parquet")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    labels = [row["class"] for row in metrics["per_class"]]
    options: Any = {"labels": labels, "zero_division": 0}
    found: Any
    truth, answer = table["target"], table["prediction"]
    expected = {"accuracy": accuracy_score(truth, answer)}
    for average in ("macro", "weighted"):
        found = precision_recall_fscore_support(truth, answer, average=average, **options)
        expected |= {f"{name}_{average}": found[at] for at, name in enumerate(("precision", "recall", "f1"))}
    right, confidence = truth == answer, table["probability"].astype(np.float64)
    bins = pd.cut(confidence, [*np.linspace(0, 1, 16), np.inf], right=False)
    of_bins = pd.DataFrame({"right": right, "confidence": confidence}).groupby(bins, observed=True)
    gaps = (of_bins["right"].mean() - of_bins["confidence"].mean()).abs()
    expected["ece"] = float((gaps * of_bins.size()).sum() / len(table))
    expected["accuracy_at_90"] = metrics["test"]["accuracy_at_90"]  # depends on the order of equals
    assert metrics["test"] == pytest.approx(expected, rel=EXACT)
    surest = right[confidence.argsort()[::-1].to_numpy()][: int(np.ceil(0.9 * len(table)))]
    assert metrics["test"]["accuracy_at_90"] == pytest.approx(surest.mean(), abs=2 / len(table))
    found = precision_recall_fscore_support(truth, answer, average=None, **options)
    for at, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in metrics["per_class"]] == pytest.approx(found[at].tolist(), rel=EXACT)
    assert metrics["confusion"] == confusion_matrix(truth, answer, labels=labels).tolist()
    probabilities = table[[f"p({name})" for name in labels]].to_numpy()
    assert (np.array(labels)[probabilities.argmax(axis=1)] == answer).all()
    assert (table["probability"] == probabilities.max(axis=1)).all()
