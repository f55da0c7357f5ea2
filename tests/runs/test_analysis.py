from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from runs.analysis import average, breakdown, format_number, likely_label_errors, scores

CLASSES = ["书籍", "平板", "水果"]


def answers(size: int, seed: int, classes: list[str] = CLASSES) -> pd.DataFrame:
    """Predictions of `size` texts, some right."""
    generator = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(0, len(classes), size)
    logits = generator.normal(size=(size, len(classes)))
    logits[np.arange(size), truth] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = np.array(classes, dtype=object)
    return pd.DataFrame(
        {
            "row": np.arange(size),
            "text": ["好" * (1 + 7 * (number % 30)) for number in range(size)],
            "target": names[truth],
            "prediction": names[probabilities.argmax(axis=1)],
            "probability": probabilities.max(axis=1),
            **{f"p({name})": probabilities[:, number] for number, name in enumerate(classes)},
        }
    )


def forecasts(origins: pd.DatetimeIndex, seed: int, horizon: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    size = len(origins) * horizon
    target = np.random.default_rng(98).normal(size=size)
    return pd.DataFrame(
        {
            "origin": origins.repeat(horizon),
            "first_target": origins.repeat(horizon) + pd.Timedelta("1h"),
            "step": np.tile(np.arange(1, horizon + 1), len(origins)),
            "target": target,
            "prediction": target + generator.normal(size=size),
            "seasonal_naive": target + 2 * np.random.default_rng(97).normal(size=size),
        }
    )


def test_classification_scores_are_sklearns_also_for_a_class_that_never_occurs() -> None:
    table = answers(300, 0, [*CLASSES, "never"])
    table = table[(table["target"] != "never") & (table["prediction"] != "never")]
    found = scores("cls", table)
    macro = precision_recall_fscore_support(
        table["target"],
        table["prediction"],
        labels=[*CLASSES, "never"],
        average="macro",
        zero_division=0,  # pyright: ignore
    )[:3]
    assert found["accuracy"] == pytest.approx(accuracy_score(table["target"], table["prediction"]))
    assert [found[f"{name}_macro"] for name in ("precision", "recall", "f1")] == pytest.approx(list(macro))


def test_forecast_scores_are_those_of_their_definitions() -> None:
    table = forecasts(pd.date_range("2016-01-01", periods=50, freq="h"), 0)
    errors = (table["prediction"] - table["target"]).to_numpy()
    naive = (table["seasonal_naive"] - table["target"]).abs().mean()
    assert scores("forecast", table) == pytest.approx(
        {
            "mae": np.abs(errors).mean(),
            "median_ae": np.median(np.abs(errors)),
            "rmse": np.sqrt((errors**2).mean()),
            "bias": errors.mean(),
            "skill": 1 - np.abs(errors).mean() / naive,
        }
    )


def test_texts_are_parted_by_their_characters() -> None:
    table = answers(300, 0)
    table["text"] = np.where(np.arange(300) < 50, "好" * 9, np.where(np.arange(300) < 120, "好" * 10, "好" * 500))
    right = (table["target"] == table["prediction"]).to_numpy()
    assert breakdown("cls", table) == {
        "length": {
            "under 10": {"accuracy": pytest.approx(right[:50].mean()), "examples": 50},
            "10-29": {"accuracy": pytest.approx(right[50:120].mean()), "examples": 70},
            "130 and more": {"accuracy": pytest.approx(right[120:].mean()), "examples": 180},
        }
    }


def test_windows_are_parted_by_the_season_and_year_in_which_they_begin() -> None:
    origins = pd.DatetimeIndex(["2015-12-31 22:00", "2015-12-31 23:00", "2016-03-01", "2016-11-30 22:00"])
    table = forecasts(origins, 0)
    found = breakdown("forecast", table)
    assert {name: part["examples"] for name, part in found["season"].items()} == {
        "Dec-Feb": 2,
        "Mar-May": 1,
        "Sep-Nov": 1,
    }
    assert {name: part["examples"] for name, part in found["year"].items()} == {"2015": 1, "2016": 3}
    winter = table[table["origin"] < "2016-03-01"]
    assert found["season"]["Dec-Feb"]["mae"] == pytest.approx((winter["prediction"] - winter["target"]).abs().mean())
    assert found["season"]["Dec-Feb"]["skill"] == pytest.approx(scores("forecast", winter)["skill"])


def test_an_ensemble_answers_with_its_members_mean() -> None:
    members = [answers(200, seed) for seed in range(3)]
    mean = average("cls", members)
    assert mean is not None
    names = [f"p({name})" for name in CLASSES]
    expected = np.mean([member[names].to_numpy() for member in members], axis=0)
    np.testing.assert_allclose(mean[names].to_numpy(), expected)
    assert mean["prediction"].tolist() == [CLASSES[best] for best in expected.argmax(axis=1)]
    assert scores("cls", mean)["accuracy"] > max(scores("cls", member)["accuracy"] for member in members)
    origins = pd.date_range("2016-01-01", periods=20, freq="h")
    several = [forecasts(origins, seed) for seed in range(2)]
    mean = average("forecast", several)
    assert mean is not None
    np.testing.assert_allclose(mean["prediction"], (several[0]["prediction"] + several[1]["prediction"]) / 2)
    assert mean["target"].equals(several[0]["target"])


def test_a_run_that_kept_float32_is_averaged_with_one_that_keeps_float64() -> None:
    origins = pd.date_range("2016-01-01", periods=20, freq="h")
    several = [forecasts(origins, seed) for seed in range(2)]
    older = several[0].astype({"target": np.float32, "prediction": np.float32})
    for runs in ([older, several[1]], [several[1], older]):
        mean = average("forecast", runs)
        assert mean is not None
        expected = (several[0]["prediction"] + several[1]["prediction"]) / 2
        np.testing.assert_allclose(mean["prediction"], expected, rtol=1e-6)


def test_an_average_of_large_values_keeps_how_they_vary() -> None:
    origins = pd.date_range("2016-01-01", periods=20, freq="h")
    several = [forecasts(origins, seed) for seed in range(2)]
    names = ["target", "prediction", "seasonal_naive"]
    large = [table.assign(**(1e9 + table[names])) for table in several]
    found, expected = (average("forecast", runs) for runs in (large, several))
    assert found is not None
    assert expected is not None
    assert scores("forecast", found) == pytest.approx(scores("forecast", expected), abs=1e-6)


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (0.87314, {}, "0.8731"),
        (0.0, {}, "0.0000"),
        (-0.0123, {}, "-0.0123"),
        (1.70441e-6, {}, "1.704e-06"),
        (3e-4, {"beside": [0.9]}, "0.0003"),
        (3.21e-8, {"beside": [1.70441e-6]}, "3.21e-08"),
        (0.5, {"decimals": 3, "sign": "+"}, "+0.500"),
        (1_234_567.8912, {"decimals": 2}, "1234567.89"),
        (float("nan"), {}, "nan"),
    ],
)
def test_a_number_too_small_for_its_decimals_is_shown_with_as_many_digits(
    value: float, options: dict[str, Any], text: str
) -> None:
    assert format_number(value, **options) == text


def test_predictions_of_other_examples_are_not_averaged() -> None:
    assert average("cls", [answers(20, 0), answers(20, 1).assign(row=range(1, 21))]) is None
    assert average("forecast", [forecasts(pd.date_range(f"{y}-01-01", periods=3), 0) for y in (2015, 2016)]) is None


def test_swapped_labels_are_found_and_ranked_by_how_sure_the_model_is() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 600)
    sure = generator.uniform(0.8, 0.99, 600)
    probabilities = np.repeat((1 - sure)[:, None] / 2, 3, axis=1)
    probabilities[np.arange(600), truth] = sure
    labels = truth.copy()
    swapped = np.array([5, 77, 300, 599])
    labels[swapped] = (truth[swapped] + 1) % 3
    probabilities[swapped] = 0.005
    probabilities[swapped, truth[swapped]] = 0.99
    names = np.array(CLASSES, dtype=object)
    table = pd.DataFrame({"row": np.arange(600), "text": "t", "target": names[labels]})
    table[[f"p({name})" for name in CLASSES]] = probabilities
    found = likely_label_errors(table)
    assert sorted(found["row"]) == swapped.tolist()
    assert found["label"].tolist() == names[labels[found["row"]]].tolist()
    assert found["suggested"].tolist() == names[truth[found["row"]]].tolist()
    gap = found["p_label"] - found["p_suggested"]
    assert gap.is_monotonic_increasing


def test_a_text_is_suspected_exactly_by_the_rule_of_confident_learning() -> None:
    table = answers(400, 0)
    thresholds = {name: table.loc[table["target"] == name, f"p({name})"].mean() for name in CLASSES}
    expected = {}
    for line in table.to_dict("records"):
        confident = [name for name in CLASSES if line[f"p({name})"] >= thresholds[name]]
        if confident and (best := max(confident, key=lambda name: line[f"p({name})"])) != line["target"]:
            expected[line["row"]] = best
    found = likely_label_errors(table)
    assert dict(zip(found["row"], found["suggested"], strict=True)) == expected
    assert 0 < len(expected) < (table["target"] != table["prediction"]).sum()


def test_without_a_contradiction_no_label_is_suspected() -> None:
    table = answers(50, 0)
    table["target"] = table["prediction"]
    assert likely_label_errors(table).empty
