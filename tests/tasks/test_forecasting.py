from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.regression import ContinuousRankedProbabilityScore

from rnn_cells import GRU
from tasks import ForecastingTask, Identity
from tasks.forecasting import quantile_crps, seasonal_naive, track

FACTS = {
    "num_features": 3,
    "lookback": 12,
    "horizon": 6,
    "season_length": 4,
    "step_hours": 8.0,
    "target_mean": 10.0,
    "target_std": 2.5,
}


NUMBERS = ("history", "targets", "climatology")


def build(facts: dict[str, Any] = FACTS, **options: Any) -> ForecastingTask:
    torch.manual_seed(0)
    options.setdefault("optimizer", partial(torch.optim.SGD, lr=0.1))
    return ForecastingTask(facts, inputs=Identity, encoder=partial(GRU, hidden_size=4), **options)


def make_batch(windows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"inputs": (12, 3), "history": (12,), "targets": (6,), "climatology": (6,)}
    batch = {name: torch.randn(windows, *shape, generator=generator) for name, shape in shapes.items()}
    for name in NUMBERS:
        batch[name] = 10 + 2.5 * batch[name]
    return {**batch, "index": torch.arange(windows) + 10 * seed, "origin": torch.arange(windows) + 1000 * seed}


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
        (24.0, [1, 2, 3]),
        (48.0, []),  # longer than a day: no scores by day
        (None, []),  # as months are
    ],
)
def test_a_step_counts_towards_the_day_in_which_it_begins(step_hours: float | None, days: list[int]) -> None:
    horizon = len(days) or 3
    facts = {**FACTS, "horizon": horizon, "step_hours": step_hours}
    errors = torch.arange(1.0, horizon + 1)[None]
    batch = {
        "targets": torch.zeros(1, horizon),
        "history": torch.ones(1, 12),
        "index": torch.zeros(1),
        "origin": torch.zeros(1),
    }
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
    torch.testing.assert_close(task.predict_step(batch, 0), (expected + 2 * 2.5).double())


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
    assert list(frame) == ["index", "step", "target", "prediction", "seasonal_naive"]
    values = (batch["targets"], forecasts, batch["history"][:, [-4, -3, -2, -1, -4, -3]])  # a season has four steps
    rows = [
        [20 + window, step + 1, *(value[window, step].item() for value in values)]
        for window in range(3)
        for step in range(6)
    ]
    assert frame.to_numpy().tolist() == rows


@pytest.mark.parametrize(("offset", "unit"), [(116.4, 2.0**-20), (2.0**30, 1.0), (-1.5e6, 1e-3)])
@pytest.mark.parametrize("quantiles", [(), (0.1, 0.5, 0.9)])
def test_an_offset_is_in_every_prediction_and_in_no_error(
    offset: float, unit: float, quantiles: tuple[float, ...]
) -> None:
    plain, batch = build(quantiles=quantiles), make_batch(40)
    facts = {**FACTS, "target_mean": 10.0 * unit, "target_std": 2.5 * unit}
    small = {name: unit * values.double() if name in NUMBERS else values for name, values in batch.items()}
    task = build({**facts, "target_offset": offset}, quantiles=quantiles)
    task.load_state_dict(plain.state_dict())
    for each, given in ((plain, batch), (task, small)):
        each.calibrate(each(given).detach(), given["targets"])
        after_test(each, (each(given).detach(), given))
    dimensionless = ("skill", "coverage_80")
    expected = {name: value * (1 if name in dimensionless else unit) for name, value in plain.scores.items()}
    assert task.scores == pytest.approx(expected, rel=1e-3)
    moved, table = (each.predictions().set_index(["index", "step"]) for each in (task, plain))
    assert (moved.dtypes == np.float64).all()
    np.testing.assert_allclose((moved - offset) / unit, table, rtol=0, atol=1e-3)
    assert moved["target"].tolist() == (offset + small["targets"]).flatten().tolist()
    answers = task.predict_step(small, 0)
    np.testing.assert_allclose((answers - offset) / unit, plain.predict_step(batch, 0), rtol=0, atol=1e-3)


def test_scores_are_of_numbers_that_float32_would_round() -> None:
    batch = make_batch(1)
    batch["targets"] = torch.full((1, 6), 16_777_217.1, dtype=torch.float64)
    task = after_test(build(), (batch["targets"] + 0.1, batch))
    assert task.scores["mae"] == pytest.approx(0.1, rel=1e-7)
    assert task.predictions()["target"].tolist() == [16_777_217.1] * 6


def test_a_device_without_float64_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = build(), make_batch()
    batch["history"] = batch["history"].double()
    assert task.on_before_batch_transfer(batch, 0)["history"].dtype == torch.float64
    monkeypatch.setattr(ForecastingTask, "device", torch.device("mps"))
    moved = task.on_before_batch_transfer(batch, 0)
    assert torch.equal(moved["history"], batch["history"].float())
    assert moved["index"].dtype == torch.int64


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="criterion must be one of mae, mse, huber"):
        build(criterion="mape")
    with pytest.raises(ValueError, match="base one of mean, last, climatology"):
        build(base="tomorrow")
    with pytest.raises(ValueError, match="lookback of 3 steps is shorter than a season"):
        build({**FACTS, "lookback": 3})


LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)


def quantile_task(**options: Any) -> ForecastingTask:
    return build(quantiles=LEVELS, **options)


def test_the_loss_of_quantiles_is_twice_the_mean_pinball_loss_in_standard_deviations() -> None:
    task, batch = quantile_task(), make_batch()
    loss, forecasts = task.loss(batch)
    assert forecasts.shape == (5, 6, 5)
    total = 0.0
    for window in range(5):
        for step in range(6):
            for number, level in enumerate(LEVELS):
                missed = (batch["targets"][window, step] - forecasts[window, step, number]).item()
                total += level * missed if missed > 0 else (level - 1) * missed
    assert loss.item() == pytest.approx(2 * total / (5 * 6 * 5) / 2.5, rel=1e-5)


@pytest.mark.parametrize("quantiles", [[], LEVELS])
def test_members_forecast_their_mean_and_learn_each_from_its_own_error(quantiles: list[float]) -> None:
    options: Any = {"quantiles": quantiles, "base": "climatology"}
    several, batch = build(members=3, **options), make_batch()
    several.loss(batch)[0].backward()
    alone, gradients = [], []
    for member in several.members:
        task = build(**options)
        task.model.load_state_dict(member.state_dict())
        task.loss(batch)[0].backward()
        alone.append(task(batch).detach())
        gradients.append([parameter.grad for parameter in task.parameters()])
    assert not torch.equal(alone[0], alone[1])
    torch.testing.assert_close(several(batch).detach(), torch.stack(alone).mean(dim=0))
    for member, expected in zip(several.members, gradients, strict=True):
        for parameter, gradient in zip(member.parameters(), expected, strict=True):
            torch.testing.assert_close(3 * parameter.grad, gradient)  # pyright: ignore[reportOperatorIssue]
    several.eval()
    mean = torch.stack(alone).mean(dim=0)
    expected_loss = build(**options).eval()
    expected_loss.forward = lambda batch: mean  # type: ignore[method-assign]
    torch.testing.assert_close(several.loss(batch)[0], expected_loss.loss(batch)[0])


def test_a_single_median_has_the_loss_and_scores_of_the_absolute_error() -> None:
    only, plain, batch = build(quantiles=[0.5]), build(), make_batch()
    only.model.load_state_dict(plain.model.state_dict())
    torch.testing.assert_close(only.loss(batch)[0], plain.loss(batch)[0])
    for task in (only, plain):
        after_test(task, (task(batch).detach(), batch))
    assert {name: only.scores[name] for name in plain.scores} == pytest.approx(plain.scores)
    assert only.scores["crps"] == pytest.approx(plain.scores["mae"], rel=1e-5)


def test_a_network_trained_on_quantiles_answers_the_quantiles_of_the_data() -> None:
    torch.manual_seed(0)
    task = build(quantiles=LEVELS, base="mean")
    batch = make_batch(4000)
    batch["inputs"] = torch.zeros_like(batch["inputs"])  # nothing to tell the windows apart
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        task.loss(batch)[0].backward()
        optimizer.step()
    answers = task.predict_step(batch, 0)[0].float()
    for number, level in enumerate(LEVELS):
        expected = batch["targets"].quantile(level, dim=0)
        torch.testing.assert_close(answers[:, number], expected, atol=0.5, rtol=0)


def test_calibration_puts_each_levels_share_of_the_validation_below_it_and_leaves_the_median() -> None:
    task = quantile_task()
    batches = [make_batch(300, seed=seed) for seed in range(4)]
    before = task.predict_step(batches[0], 0)
    truth = torch.cat([batch["targets"] for batch in batches])
    task.calibrate(torch.cat([task(batch).detach() for batch in batches]), truth)
    shifted = torch.cat([task(batch).detach() + task.shifts for batch in batches])
    shares = (truth.unsqueeze(-1) <= shifted).float().mean(dim=0)
    for number in (0, 1, 3, 4):
        torch.testing.assert_close(shares[:, number], torch.full((6,), LEVELS[number]), atol=0.01, rtol=0)
    after = task.predict_step(batches[0], 0)
    assert not torch.equal(after, before)
    assert (after.diff(dim=-1) >= 0).all()
    assert torch.equal(after[..., 2], task(batches[0])[..., 2].double())


def test_quantiles_that_cross_the_median_become_it_and_the_others_of_a_side_are_sorted() -> None:
    task = quantile_task()
    task.shifts[:] = torch.tensor([0.0, 0.0, 9.0, 0.0, -3.0])
    found = task.calibrated(torch.tensor([8.0, 2.0, 5.0, 4.0, 9.0]).expand(1, 6, 5))
    assert torch.equal(found, torch.tensor([2.0, 5.0, 5.0, 5.0, 6.0]).expand(1, 6, 5))


def test_scores_of_quantiles_match_their_formulas() -> None:
    task, batch = quantile_task(), make_batch(40)
    generator = torch.Generator().manual_seed(3)
    forecasts = (10 + 3 * torch.randn(40, 6, 5, generator=generator)).sort(dim=-1).values
    after_test(task, (forecasts, batch))
    truth, answers = batch["targets"].numpy().astype(np.float64), forecasts.numpy().astype(np.float64)
    assert task.scores["mae"] == pytest.approx(np.abs(answers[..., 2] - truth).mean(), rel=1e-6)
    missed = truth[..., None] - answers
    losses = np.maximum(np.array(LEVELS) * missed, (np.array(LEVELS) - 1) * missed)
    widths = np.array([0.075, 0.225, 0.4, 0.225, 0.075])  # of what lies nearest to 0.05, 0.1, 0.5, 0.9, 0.95
    assert task.scores["crps"] == pytest.approx(2 * (losses * widths).sum(axis=-1).mean(), rel=1e-6)
    for share, low, high in (("90", 0, 4), ("80", 1, 3)):
        inside = (answers[..., low] <= truth) & (truth <= answers[..., high])
        assert task.scores[f"coverage_{share}"] == pytest.approx(inside.mean())
        assert task.scores[f"width_{share}"] == pytest.approx((answers[..., high] - answers[..., low]).mean())
        for day, steps in (("day1", slice(0, 3)), ("day2", slice(3, 6))):
            assert task.details["intervals"][share][day]["coverage"] == pytest.approx(inside[:, steps].mean())
    frame = task.predictions()
    assert [name for name in map(str, frame) if name.startswith("q")] == ["q0.05", "q0.1", "q0.5", "q0.9", "q0.95"]
    np.testing.assert_array_equal(frame["q0.9"], forecasts[..., 3].flatten())
    np.testing.assert_array_equal(frame["prediction"], forecasts[..., 2].flatten())


def test_the_crps_of_evenly_spaced_quantiles_is_that_of_an_ensemble_of_them() -> None:
    generator = torch.Generator().manual_seed(5)
    levels = [(number + 0.5) / 15 for number in range(15)]
    members = torch.randn(200, 15, generator=generator).sort(dim=-1).values
    truth = torch.randn(200, generator=generator)
    oracle = ContinuousRankedProbabilityScore()(members, truth)
    torch.testing.assert_close(quantile_crps(members[:, None], truth[:, None], levels).mean(), oracle)


@pytest.mark.parametrize(
    ("levels", "closeness"),
    [([number / 20 for number in range(1, 20)], 0.02), ([(number + 0.5) / 25 for number in range(25)], 0.005)],
)
def test_the_crps_of_a_normal_distributions_quantiles_is_its_closed_form(levels: list[float], closeness: float) -> None:
    truth = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    normal = torch.distributions.Normal(truth.new_tensor(0.0), truth.new_tensor(1.0))
    z = truth[:, 0]
    density, below = normal.log_prob(z).exp(), normal.cdf(z)
    expected = (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)).mean().item()
    quantiles = normal.icdf(truth.new_tensor(levels)).expand(len(truth), 1, -1)
    assert quantile_crps(quantiles, truth, levels).mean().item() == pytest.approx(expected, rel=closeness)


def tracked_by_hand(
    quantiles: np.ndarray, targets: np.ndarray, origins: np.ndarray, start: np.ndarray, rate: float
) -> np.ndarray:
    """Each window's shifts anew from the beginning, by everything that was known then."""
    shifts = np.empty_like(quantiles)
    for window, step in np.ndindex(*targets.shape):
        now = start[step].copy()
        for earlier in range(window):
            if origins[earlier] + step + 1 < origins[window]:
                for number, level in enumerate(LEVELS):
                    below = targets[earlier, step] <= quantiles[earlier, step, number] + now[number]
                    now[number] += rate * (level - below)
        shifts[window, step] = now
    return shifts


def quantiles_and_truths(windows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    quantiles = np.sort(generator.normal(size=(windows, 6, len(LEVELS))), axis=-1)
    origins = np.cumsum(generator.choice([1, 1, 1, 9], size=windows))  # with gaps
    return quantiles, generator.normal(size=(windows, 6)), origins


def test_tracking_learns_from_what_was_known_and_from_nothing_else() -> None:
    quantiles, targets, origins = quantiles_and_truths(60)
    start = np.random.default_rng(1).normal(size=(6, len(LEVELS)))
    shifts = track(quantiles, targets, origins, start, LEVELS, 0.3)
    np.testing.assert_allclose(shifts, tracked_by_hand(quantiles, targets, origins, start, 0.3), atol=1e-12)
    np.testing.assert_array_equal(shifts[0], start)
    later = targets.copy()
    later[30:] += 100
    changed = track(quantiles, later, origins, start, LEVELS, 0.3)
    np.testing.assert_array_equal(changed[:31], shifts[:31])
    assert not np.array_equal(changed[31:], shifts[31:])


def test_tracking_keeps_each_levels_share_below_it_in_weather_unlike_the_validations() -> None:
    quantiles, _, _ = quantiles_and_truths(1)
    quantiles = np.repeat(quantiles, 4000, axis=0)
    targets = 1 + 3 * np.random.default_rng(2).normal(size=(4000, 6))
    shifts = track(quantiles, targets, np.arange(4000), np.zeros((6, len(LEVELS))), LEVELS, 0.05)
    below = (targets[..., None] <= quantiles + shifts)[1000:]
    np.testing.assert_allclose(below.mean(axis=(0, 1)), LEVELS, atol=0.01)


def test_a_test_that_tracks_shifts_its_windows_in_their_time_order_and_leaves_the_median() -> None:
    task, batch = quantile_task(tracking=0.1), make_batch(40)
    forecasts = (10 + 3 * torch.randn(40, 6, 5, generator=torch.Generator().manual_seed(3))).sort(dim=-1).values
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    after_test(task, (forecasts[shuffled], {name: values[shuffled] for name, values in batch.items()}))
    shifts = track(forecasts.numpy(), batch["targets"].numpy(), np.arange(40), np.zeros((6, 5)), LEVELS, 0.25)
    shifted = (forecasts.numpy() + shifts)[shuffled.numpy()]
    median = forecasts[shuffled][..., 2].numpy()
    assert (shifted[..., 3] < median).any()
    frame = task.predictions()
    expected = np.maximum(np.minimum(shifted[..., 3], shifted[..., 4]), median)
    np.testing.assert_allclose(frame["q0.9"], expected.flatten(), rtol=1e-6)
    assert not np.allclose(frame["q0.9"], forecasts[shuffled][..., 3].flatten())
    assert np.array_equal(frame["prediction"], median.flatten())
    assert np.array_equal(frame["q0.5"], median.flatten())


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.5, 0.1), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_levels_that_are_none_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="quantiles must rise"):
        build(quantiles=levels)
