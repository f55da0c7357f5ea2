from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rnn_cells import GRU
from tasks import ForecastingTask, Identity
from tasks.forecasting import seasonal_naive

FACTS = {
    "num_features": 3,
    "lookback": 12,
    "horizon": 6,
    "season_length": 4,
    "step_hours": 8.0,
    "target_mean": 10.0,
    "target_std": 2.5,
}


def build(facts: dict[str, Any] = FACTS, **options: Any) -> ForecastingTask:
    torch.manual_seed(0)
    options.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
    return ForecastingTask(facts, inputs=Identity, encoder=partial(GRU, hidden_size=4), **options)


def make_batch(windows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"inputs": (12, 3), "history": (12,), "targets": (6,), "climatology": (6,)}
    batch = {name: torch.randn(windows, *shape, generator=generator) for name, shape in shapes.items()}
    for name in ("history", "targets", "climatology"):
        batch[name] = 10 + 2.5 * batch[name]
    return {**batch, "index": torch.arange(windows) + 10 * seed}


def after_test(task: ForecastingTask, *pairs: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> ForecastingTask:
    for forecasts, batch in pairs:
        task.update_test(forecasts, batch)
    task.finish_test()
    return task


def check_scores(task: ForecastingTask, *pairs: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
    forecasts = np.concatenate([forecast.numpy() for forecast, _ in pairs]).astype(np.float64)
    truth = np.concatenate([batch["targets"].numpy() for _, batch in pairs]).astype(np.float64)
    history = np.concatenate([batch["history"].numpy() for _, batch in pairs]).astype(np.float64)
    errors = forecasts - truth
    naive = np.array([[row[12 - 4 + step % 4] for step in range(6)] for row in history]) - truth
    expected = {
        "mae": np.abs(errors).mean(),
        "median_ae": np.median(np.abs(errors)),
        "rmse": np.sqrt((errors**2).mean()),
        "bias": errors.mean(),
        "skill": 1 - np.abs(errors).mean() / np.abs(naive).mean(),
        "mae_day1": np.abs(errors[:, :3]).mean(),
        "mae_day2": np.abs(errors[:, 3:]).mean(),
    }
    assert task.scores == pytest.approx(expected, rel=1e-6)
    assert task.details["windows"] == len(truth)
    assert task.details["mae_by_step"] == pytest.approx(np.abs(errors).mean(axis=0).tolist(), rel=1e-6)
    assert task.details["seasonal_naive"]["mae"] == pytest.approx(np.abs(naive).mean(), rel=1e-6)
    by_step = np.abs(naive).mean(axis=0).tolist()
    assert task.details["seasonal_naive"]["mae_by_step"] == pytest.approx(by_step, rel=1e-6)


def forecasts_for(batch: dict[str, torch.Tensor], seed: int = 7) -> torch.Tensor:
    return batch["targets"] + 1 + torch.randn(batch["targets"].shape, generator=torch.Generator().manual_seed(seed))


def test_scores_match_their_formulas_pooled_over_unequal_batches() -> None:
    first, second = make_batch(5), make_batch(2, seed=1)
    pairs = ((forecasts_for(first), first), (forecasts_for(second, 8), second))
    check_scores(after_test(build(), *pairs), *pairs)


@pytest.mark.parametrize(
    ("step_hours", "days"),
    [
        (10 / 60, [1] * 144 + [2] * 144),
        (1.0, [1] * 24 + [2] * 24),
        (5.0, [1] * 5 + [2] * 5 + [3] * 5),
        (7.0, [1] * 4 + [2] * 3 + [3] * 4 + [4] * 3),
        (48.0, [1, 3, 5]),
    ],
)
def test_a_step_counts_towards_the_day_in_which_it_begins(step_hours: float, days: list[int]) -> None:
    horizon = len(days)
    facts = {**FACTS, "horizon": horizon, "step_hours": step_hours}
    errors = torch.arange(1.0, horizon + 1)[None]
    batch = {"targets": torch.zeros(1, horizon), "history": torch.ones(1, 12), "index": torch.zeros(1)}
    scores = after_test(build(facts), (errors, batch)).scores
    expected = {f"mae_day{day}": errors[0][torch.tensor(days) == day].mean().item() for day in set(days)}
    assert {name: value for name, value in scores.items() if name.startswith("mae_day")} == pytest.approx(expected)


def test_the_median_of_an_even_number_of_errors_lies_between_the_middle_two() -> None:
    batch = make_batch(1)
    errors = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0, -6.0]])
    task = after_test(build(), (batch["targets"] + errors, batch))
    assert task.scores["median_ae"] == pytest.approx(3.5, abs=1e-5)
    assert task.scores["bias"] == pytest.approx(-0.5, abs=1e-5)


def test_two_rounds_of_testing_do_not_mix() -> None:
    first, second = make_batch(5), make_batch(3, seed=1)
    task = after_test(build(), (forecasts_for(first), first))
    pair = (forecasts_for(second), second)
    check_scores(after_test(task, pair), pair)
    assert len(task.predictions()) == 3 * 6


def test_seasonal_naive_itself_has_no_skill_and_truth_all_of_it() -> None:
    batch = make_batch()
    naive = seasonal_naive(batch["history"], 6, 4)
    assert after_test(build(), (naive, batch)).scores["skill"] == pytest.approx(0)
    assert after_test(build(), (batch["targets"], batch)).scores["skill"] == pytest.approx(1)


@pytest.mark.parametrize(("lookback", "horizon", "season"), [(12, 6, 4), (4, 4, 4), (5, 1, 4), (9, 20, 3), (7, 5, 1)])
def test_seasonal_naive_matches_a_loop(lookback: int, horizon: int, season: int) -> None:
    history = torch.arange(3 * lookback, dtype=torch.float).view(3, lookback)
    expected = [[row[lookback - season + step % season].item() for step in range(horizon)] for row in history]
    assert seasonal_naive(history, horizon, season).tolist() == expected


@pytest.mark.parametrize("base", ForecastingTask.BASES)
def test_a_network_that_answers_zero_forecasts_its_base(base: str) -> None:
    task, batch = build(base=base), make_batch()
    head: Any = task.model.head
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    expected = {
        "mean": torch.full((5, 6), 10.0),
        "last": batch["history"][:, [-1] * 6],
        "climatology": batch["climatology"],
    }[base]
    torch.testing.assert_close(task(batch), expected)
    head.bias.data.fill_(2.0)  # standard deviations
    torch.testing.assert_close(task(batch), expected + 2 * 2.5)
    torch.testing.assert_close(task.predict_step(batch, 0), expected + 2 * 2.5)


@pytest.mark.parametrize("criterion", ["mae", "mse", "huber"])
def test_the_loss_is_in_standard_deviations_and_the_forecast_in_the_targets_unit(criterion: str) -> None:
    task, batch = build(criterion=criterion), make_batch()
    loss, forecasts = task.loss(batch)
    torch.testing.assert_close(forecasts, task(batch))
    errors = ((forecasts - batch["targets"]) / 2.5).abs().detach().double().numpy()
    expected = {
        "mae": errors.mean(),
        "mse": (errors**2).mean(),
        "huber": np.where(errors < 1, errors**2 / 2, errors - 0.5).mean(),
    }[criterion]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_validation_score_is_in_the_targets_unit_and_starts_anew() -> None:
    task = build()
    for seed in (0, 1):
        batches = [make_batch(5, seed), make_batch(2, seed + 2)]
        errors = []
        for batch in batches:
            forecasts = forecasts_for(batch)
            task.update_validation(forecasts, batch)
            errors.append((forecasts - batch["targets"]).abs().flatten())
        assert task.validation_scores()["mae"].item() == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)


def test_predictions_are_a_row_per_window_and_step() -> None:
    batch = make_batch(3, seed=2)
    forecasts = forecasts_for(batch)
    frame = after_test(build(), (forecasts, batch)).predictions()
    assert list(frame) == ["index", "step", "target", "prediction"]
    rows = [
        [20 + window, step + 1, batch["targets"][window, step].item(), forecasts[window, step].item()]
        for window in range(3)
        for step in range(6)
    ]
    assert frame.to_numpy().tolist() == rows


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="criterion must be one of mae, mse, huber"):
        build(criterion="mape")
    with pytest.raises(ValueError, match="base one of mean, last, climatology"):
        build(base="tomorrow")
    with pytest.raises(ValueError, match="lookback of 3 steps is shorter than a season"):
        build({**FACTS, "lookback": 3})
