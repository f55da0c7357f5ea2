from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC
from torch import Tensor

from tasks import (
    Baseline,
    BoostedForecaster,
    ClassificationTask,
    ForecastingTask,
    Mean,
    Persistence,
    RidgeForecaster,
    SeasonalNaive,
    TfidfClassifier,
    UsualValue,
)
from tasks.models import Pooling

Batch = dict[str, Tensor]
WORDS = ["<padding>", "<unknown>", "good", "bad", "fruit", "book", "phone"]
CLASSES = ["fruit", "books", "phones"]
SERIES: dict[str, Any] = {
    **{"num_features": 2, "lookback": 30, "horizon": 12, "season_length": 6, "step_hours": 4.0},
    **{"target_mean": 3.0, "target_std": 2.0},
}


def texts(count: int = 90, seed: int = 0, classes: int = 3) -> Batch:
    """Short texts whose class is one of their words; the characters are those of the words."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, count)
    rows = [[*generator.integers(1, 4, generator.integers(0, 5)), 4 + target] for target in targets]
    lengths = torch.tensor([len(row) for row in rows])
    inputs = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
    spelt = [" ".join(WORDS[word] for word in row) for row in rows]
    characters = torch.zeros(count, max(map(len, spelt)), dtype=torch.int64)
    for number, (row, text) in enumerate(zip(rows, spelt, strict=True)):
        inputs[number, : len(row)] = torch.tensor(row)
        characters[number, : len(text)] = torch.tensor([*map(ord, text)])
    return {"inputs": inputs, "lengths": lengths, "characters": characters, "targets": torch.from_numpy(targets)}


def spelt(batch: Batch) -> list[str]:
    return ["".join(chr(point) for point in row if point) for row in batch["characters"].tolist()]


def windows(count: int = 400, seed: int = 0) -> Batch:
    """Windows of a noisy wave around its climatology."""
    generator = np.random.default_rng(seed)
    time = np.arange(count + 42)
    usual = 3 + 2 * np.sin(2 * np.pi * time / 6)
    weather = np.convolve(generator.normal(size=count + 61), np.ones(20) / 4, mode="valid")
    table = np.column_stack([usual + weather, weather**2])
    rows = time[:count, None] + np.arange(42)
    target = torch.from_numpy(table[rows, 0]).float()
    return {
        "inputs": ((torch.from_numpy(table[rows[:, :30]]) - 3) / 2).float(),
        "history": target[:, :30],
        "targets": target[:, 30:],
        "climatology": torch.from_numpy(usual[rows[:, 30:]]).float(),
    }


def split(batch: Batch, size: int) -> list[Batch]:
    parts = {name: values.split(size) for name, values in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def fitted(make: Callable[..., Baseline], batch: Batch, **facts: Any) -> Baseline:
    model = make(facts=facts)
    model.fit(split(batch, 32))
    return model


BASELINES: dict[str, tuple[Callable[..., Baseline], Batch, dict[str, Any]]] = {
    **{
        name: (partial(TfidfClassifier, **options), texts(), {"classes": CLASSES, "vocabulary": WORDS})
        for name, options in {
            "svm": {"classifier": "svm"},
            "nb": {"classifier": "nb", "characters": 0, "words": 1},
            "characters": {"words": 0, "characters": 3},
        }.items()
    },
    **{make.__name__: (make, windows(), SERIES) for make in (Persistence, SeasonalNaive, UsualValue, RidgeForecaster)},
    "BoostedForecaster": (partial(BoostedForecaster, rounds=5), windows(), SERIES),
}


@pytest.mark.parametrize("classifier", ["svm", "nb"])
def test_tfidf_answers_what_sklearn_answers(classifier: str) -> None:
    train, test = texts(), texts(seed=1)
    model = fitted(
        partial(TfidfClassifier, classifier=classifier, characters=2, words=2, strength=0.5),
        train,
        classes=CLASSES,
        vocabulary=WORDS,
    )
    options: dict[str, Any] = {"sublinear_tf": True, "min_df": 2, "ngram_range": (1, 2)}
    words: dict[str, Any] = {"tokenizer": str.split, "token_pattern": None, "lowercase": False}
    union = make_union(
        TfidfVectorizer(analyzer="char", **options),
        TfidfVectorizer(**options, **words),
    )
    machine: Any = LinearSVC(C=0.5, random_state=0) if classifier == "svm" else MultinomialNB(alpha=0.5)
    pipeline = make_pipeline(union, machine).fit(spelt(train), train["targets"].numpy())
    answers = model(test).numpy()
    if classifier == "svm":
        np.testing.assert_allclose(answers, pipeline.decision_function(spelt(test)), atol=1e-4)
    else:
        exponents = np.exp(answers - answers.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, pipeline.predict_proba(spelt(test)), atol=1e-4)
    np.testing.assert_array_equal(answers.argmax(axis=1), pipeline.predict(spelt(test)))


@pytest.mark.parametrize("classifier", ["svm", "nb"])
@pytest.mark.parametrize("present", [(0, 1), (0, 2), (0, 1, 2)])
def test_tfidf_never_chooses_a_class_that_it_has_not_seen(classifier: str, present: tuple[int, ...]) -> None:
    batch = texts(classes=3)
    rows = torch.isin(batch["targets"], torch.tensor(present))
    batch = {name: values[rows] for name, values in batch.items()}
    model = fitted(partial(TfidfClassifier, classifier=classifier), batch, classes=CLASSES, vocabulary=WORDS)
    chosen = model(batch).argmax(dim=1)
    assert set(chosen.tolist()) <= set(present)
    assert (chosen == batch["targets"]).float().mean() > 0.95


def test_tfidf_answers_a_text_without_a_known_ngram() -> None:
    model = fitted(TfidfClassifier, texts(), classes=CLASSES, vocabulary=WORDS)
    empty = {name: torch.zeros(1, 1, dtype=torch.int64) for name in ("inputs", "characters")}
    assert model({**empty, "lengths": torch.tensor([0])}).isfinite().all()


@pytest.mark.parametrize("options", [{"classifier": "tree"}, {"characters": 0, "words": 0}, {"words": -1}])
def test_tfidf_refuses_what_it_cannot_do(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.baseline"):
        TfidfClassifier({"classes": CLASSES, "vocabulary": WORDS}, **options)


def test_simple_forecasts_are_the_last_value_the_last_season_and_the_climatology() -> None:
    batch = windows(5)
    last = Persistence(SERIES)(batch)
    season = SeasonalNaive(SERIES)(batch)
    for step in range(12):
        torch.testing.assert_close(last[:, step], batch["history"][:, -1])
        torch.testing.assert_close(season[:, step], batch["history"][:, 24 + step % 6])
    assert UsualValue(SERIES)(batch) is batch["climatology"]


def test_the_simple_forecasts_are_exactly_what_was_read() -> None:
    batch = {name: values.double() + 1e-9 for name, values in windows(5).items()}
    assert Persistence(SERIES)(batch)[:, 3].tolist() == batch["history"][:, -1].tolist()
    assert SeasonalNaive(SERIES)(batch)[:, 3].tolist() == batch["history"][:, 27].tolist()


def test_ridge_answers_what_sklearn_answers() -> None:
    train, test = windows(), windows(50, seed=1)

    def features(batch: Batch) -> np.ndarray:
        past = batch["inputs"].numpy().reshape(len(batch["inputs"]), -1)
        own = np.column_stack([batch["history"][:, -1:], batch["climatology"]])
        return np.column_stack([past, (own - 3) / 2]).astype(np.float64)

    machine = Ridge(alpha=7.0).fit(features(train), (train["targets"] - train["climatology"]).double().numpy() / 2)
    expected = test["climatology"].numpy() + 2 * machine.predict(features(test))
    model = fitted(partial(RidgeForecaster, penalty=7.0), train, **SERIES)
    np.testing.assert_allclose(model(test).numpy(), expected, atol=2e-3)
    assert model.num_parameters == 12 * (30 * 2 + 13) + 12


def test_boosted_trees_learn_what_the_climatology_does_not_know() -> None:
    model = fitted(partial(BoostedForecaster, rounds=60), windows(2000), **SERIES)
    test = windows(300, seed=1)
    error = (model(test) - test["targets"]).abs().mean(dim=0)
    usual = (test["climatology"] - test["targets"]).abs().mean(dim=0)
    assert error[0] < 0.5 * usual[0]
    assert error.mean() < usual.mean()


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_read_from_its_state_answers_the_same(name: str, tmp_path: Any) -> None:
    make, batch, facts = BASELINES[name]
    model = fitted(make, batch, **facts)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = make(facts=facts)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(other(batch), model(batch), rtol=0, atol=0)
    assert other.num_parameters == model.num_parameters


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_fitted_twice_is_the_same(name: str) -> None:
    make, batch, facts = BASELINES[name]
    torch.testing.assert_close(fitted(make, batch, **facts)(batch), fitted(make, batch, **facts)(batch), rtol=0, atol=0)


def test_tasks_score_a_baseline_like_a_network() -> None:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    facts = {"classes": CLASSES, "vocabulary": WORDS}
    sorting = ClassificationTask(facts, baseline=TfidfClassifier, optimizer=optimizer)
    model: Any = sorting.model
    model.fit([texts()])
    test = texts(seed=1)
    torch.testing.assert_close(sorting.predict_step(test, 0), model(test).softmax(dim=1))
    forecasting = ForecastingTask(SERIES, baseline=Persistence, optimizer=optimizer)
    loss, forecasts = forecasting.loss(windows())
    torch.testing.assert_close(forecasts, Persistence(SERIES)(windows()))
    torch.testing.assert_close(loss, (forecasts - windows()["targets"]).abs().mean() / 2)


@pytest.mark.parametrize("task", [ClassificationTask, ForecastingTask])
def test_a_task_without_a_model_says_what_is_missing(task: Any) -> None:
    facts = {"classes": CLASSES, "vocab_size": 7, "padding_index": 0, "unknown_index": 1, **SERIES}
    with pytest.raises(ValueError, match="needs inputs and an encoder, or a baseline"):
        task(facts, optimizer=partial(torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize("pooling", Pooling.KINDS)
def test_the_mean_is_what_every_pooling_finds(pooling: str) -> None:
    x, lengths = torch.randn(4, 5, 3), torch.tensor([5, 2, 1, 0])
    outputs, final = Mean(3)(x, lengths=lengths)
    found = Pooling(pooling, 3)(outputs, final, lengths)
    if pooling == "max_mean":
        assert torch.equal(found[:, :3], found[:, 3:])
        found = found[:, :3]
    expected = torch.stack(
        [row[:length].mean(dim=0) if length else row[0] * 0 for row, length in zip(x, lengths, strict=True)]
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(Mean(3)(x)[1][0], x.mean(dim=1))
