from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rnn_cells import GRU
from tasks import ClassificationTask, DivergedError, ForecastingTask, Identity, TokenEmbedding, cosine, onecycle


def classifier(**options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(
        {"classes": ["a", "b"], "vocab_size": 9, "padding_index": 0, "unknown_index": 1},
        inputs=partial(TokenEmbedding, embedding_dim=8, dropout=0.5),
        encoder=partial(GRU, hidden_size=3),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        **options,
    )


def texts(batches: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "inputs": torch.randint(1, 9, (4, 5), generator=generator),
            "lengths": torch.full((4,), 5),
            "targets": torch.randint(0, 2, (4,), generator=generator),
        }
        for _ in range(batches)
    ]


def fit(
    task: pl.LightningModule,
    batches: list[dict[str, Tensor]],
    *callbacks: pl.Callback,
    accumulate: int = 1,
    clip: float | None = None,
    algorithm: str | None = None,
) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm,
        callbacks=list(callbacks),
    )
    loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(task, loader, loader)


class Masks(pl.Callback):
    """Remembers which features of the token vectors were dropped at each step, and may spend random numbers."""

    def __init__(self, disturb: bool = False) -> None:
        self.disturb, self.seen = disturb, []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.model.inputs.dropout.register_forward_hook(lambda _, __, output: self.seen.append(output == 0))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.disturb:
            torch.rand(trainer.global_step + 3)


def test_a_steps_randomness_depends_on_seed_and_step_alone() -> None:
    calm, disturbed, other = Masks(), Masks(disturb=True), Masks()
    fit(classifier(seed=3), texts(4), calm)
    torch.manual_seed(99)
    fit(classifier(seed=3), texts(4), disturbed)
    fit(classifier(seed=4), texts(4), other)
    assert [mask.tolist() for mask in calm.seen] == [mask.tolist() for mask in disturbed.seen]
    for number, mask in enumerate(calm.seen):
        assert mask.float().mean().item() == pytest.approx(0.5, abs=0.2)
        assert not any(torch.equal(mask, later) for later in calm.seen[number + 1 :])
        assert not torch.equal(mask, other.seen[number])


def test_the_batches_that_make_one_step_draw_different_numbers() -> None:
    masks, alone = Masks(), Masks()
    fit(classifier(seed=3), texts(4), masks, accumulate=2)
    fit(classifier(seed=3), texts(4), alone)
    for number, mask in enumerate(masks.seen):
        assert not any(torch.equal(mask, later) for later in masks.seen[number + 1 :])
    assert torch.equal(masks.seen[2], alone.seen[1])  # the first batch of the second step


class Snapshots(pl.Callback):
    """The weights behind every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(poison: float) -> None:
    facts = {"num_features": 2, "lookback": 4, "horizon": 2, "season_length": 2, "step_hours": 12.0}
    task = ForecastingTask(
        {**facts, "target_mean": 0.0, "target_std": 1.0},
        inputs=Identity,
        encoder=partial(GRU, hidden_size=3),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    )
    batches = [
        {"inputs": torch.randn(3, 4, 2), "history": torch.randn(3, 4), "targets": torch.randn(3, 2)} for _ in range(5)
    ]
    batches[2]["targets"][1, 0] = poison
    snapshots = Snapshots()
    with pytest.raises(DivergedError, match=r"the training loss became (nan|inf) at step 2.*optimizer\.lr"):
        fit(task, batches, snapshots)
    assert len(snapshots.weights) == 2
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, snapshots.weights[-1][name]), name


class Spike(pl.Callback):
    """One entry of a gradient becomes infinite at step 2, under a loss that is finite."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 2:
            gradient = next(iter(pl_module.parameters())).grad
            assert gradient is not None
            gradient.view(-1)[0] = math.inf


@pytest.mark.parametrize(("clip", "algorithm"), [(1.0, None), (1.0, "norm"), (1.0, "value"), (None, None)])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    clip: float | None, algorithm: str | None
) -> None:
    task, snapshots = classifier(), Snapshots()
    with pytest.raises(DivergedError, match=r"the gradient's norm became inf at step 2.*optimizer\.lr"):
        fit(task, texts(5), snapshots, Spike(), clip=clip, algorithm=algorithm)
    assert len(snapshots.weights) == 2


@pytest.mark.parametrize(("clip", "algorithm"), [(None, None), (0.01, None), (1e9, "norm"), (1e-4, "value")])
def test_gradients_are_clipped_as_the_trainer_would(
    clip: float | None, algorithm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = classifier()
    fit(ours, texts(5), clip=clip, algorithm=algorithm)
    monkeypatch.delattr("tasks.task.Task.configure_gradient_clipping")
    theirs = classifier()
    fit(theirs, texts(5), clip=clip, algorithm=algorithm)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_answers_that_are_no_numbers_are_neither_scored_nor_left_out() -> None:
    task = classifier()
    with torch.no_grad():
        [*task.model.parameters()][-1].fill_(math.nan)  # of the head
    with pytest.raises(DivergedError, match="the model's answers are no numbers"):
        task.test_step(texts(1)[0], 0)
    task.calibrating = True
    with pytest.raises(DivergedError, match="the model's answers are no numbers"):
        task.validation_step(texts(1)[0], 0)


def test_what_is_kept_of_a_test_stays_exact_wherever_the_task_moves() -> None:
    task = classifier().to("cpu")
    for value in (torch.tensor([2**24 + 1, 3]), torch.tensor([math.nan, 0.1], dtype=torch.float64)):
        task.kept["index"].reset()
        task.kept["index"].update(value)
        assert task.kept["index"].compute().tolist() == pytest.approx(value.tolist(), nan_ok=True, rel=0, abs=0)


def test_the_epochs_training_loss_is_the_mean_over_examples_not_over_batches() -> None:
    batches = texts(3)
    batches[1] = {name: value[:1] for name, value in batches[1].items()}
    task = classifier()
    losses: list[tuple[float, int]] = []
    original = task.loss

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        value, outputs = original(batch)
        losses.append((value.item(), len(batch["targets"])))
        return value, outputs

    task.loss = loss  # type: ignore[method-assign]
    fit(task, batches)
    expected = sum(value * size for value, size in losses) / sum(size for _, size in losses)
    assert task.trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)


def rates(schedule: Callable[..., Any], total_steps: int, **options: Any) -> list[float]:
    """The learning rate of each step, and the one behind the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    scheduler = schedule(optimizer, total_steps, **options)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_cosine_rises_linearly_and_falls_as_half_a_cosine() -> None:
    found = rates(cosine, 110, warmup=1 / 11, final=0.1)
    assert found[:10] == pytest.approx([0.2 * (step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(0.2)
    assert found[35] == pytest.approx(0.2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert found[60] == pytest.approx(0.2 * (0.1 + 0.9 / 2))  # half-way down
    assert found[110] == pytest.approx(0.2 * 0.1)
    assert max(found) == pytest.approx(0.2)


def test_onecycle_rises_to_the_optimizers_rate_and_anneals_to_almost_nothing() -> None:
    found = rates(onecycle, 100, warmup=0.3)
    assert found[0] == pytest.approx(0.2 / 25)
    assert found[29] == pytest.approx(0.2)
    assert max(found) == found[29]
    assert found[99] == pytest.approx(0.2 / 25 / 1e4)


@pytest.mark.parametrize("schedule", [cosine, onecycle])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_schedules_of_any_length_end_without_an_error(schedule: Any, warmup: float, total_steps: int) -> None:
    assert all(0 < rate <= 0.2 + 1e-9 for rate in rates(schedule, total_steps, warmup=warmup))


def test_a_schedule_goes_over_the_whole_training_step_by_step() -> None:
    asked: list[int] = []

    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            self.found.append(trainer.optimizers[0].param_groups[0]["lr"])

    def scheduler(optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
        asked.append(total_steps)
        return cosine(optimizer, total_steps, warmup=0.5)

    callback = Rates()
    fit(classifier(scheduler=scheduler), texts(4), callback)
    assert asked == [4]
    assert callback.found == pytest.approx([0.05, 0.1, 0.1, 0.1 * (0.01 + 0.99 / 2)])


def test_one_validation_batch_without_a_finite_loss_leaves_none_to_the_epoch() -> None:
    task = classifier()
    for value in (1.0, math.nan, 2.0):
        task.val_loss.update(torch.tensor(value), weight=3)
    assert task.val_loss.compute().isnan()
