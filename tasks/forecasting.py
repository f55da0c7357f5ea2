"""Forecasting: the next `horizon` values of a series, all at once, from the `lookback` steps before them.

Legend: B batch, L lookback, H horizon, S steps of a season (a day), F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import CatMetric, MeanAbsoluteError

from tasks.models import SequenceModel
from tasks.task import Batch, Task

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mae": functional.l1_loss,
    "mse": functional.mse_loss,
    "huber": functional.huber_loss,
}


def seasonal_naive(history: Tensor, horizon: int, season_length: int) -> Tensor:
    """Repeat the last season: history (B, L) to (B, H), with forecast[h] = history[L - S + h mod S]."""
    season = history[:, -season_length:]
    return season.repeat(1, -(-horizon // season_length))[:, :horizon]


class ForecastingTask(Task):
    """Direct multi-step forecasts of one target in its own unit; errors against truth and against seasonal naive.

    The network answers in standard deviations of the target around a base, `forecast = base + deviation * answer`.
    Error is prediction - truth. Scores are pooled over all windows and steps: `mae` mean absolute error, `median_ae`
    median absolute error, `rmse`, `bias` mean error, `mae_day1`, `mae_day2`, … by day of the horizon (a step
    belongs to the day in which it begins), and `skill = 1 - mae / mae_seasonal_naive` on the same windows.

    Args:
        facts: of the data: `num_features`, `horizon`, `season_length`, `step_hours`, `target_mean`, `target_std`.
        inputs: builds the input module from `num_features`.
        encoder: builds the recurrent encoder from `input_size`.
        pooling: how steps become one vector; see `Pooling`.
        dropout: on that vector.
        criterion: `mae`, `mse` or `huber`, of the errors in standard deviations.
        base: what the answer is added to: the training `mean`, the `last` value, or the `climatology` of each hour.
        task_options: of `Task`.

    Raises:
        ValueError: `criterion` or `base` is none of these, or the lookback is shorter than a season.
    """

    BASES = ("mean", "last", "climatology")

    def __init__(
        self,
        facts: dict[str, Any],
        inputs: Callable[..., nn.Module],
        encoder: Callable[..., nn.Module],
        pooling: str = "last",
        dropout: float = 0.0,
        criterion: str = "mae",
        base: str = "last",
        **task_options: Any,
    ) -> None:
        if criterion not in LOSSES or base not in self.BASES:
            raise ValueError(
                f"criterion must be one of {', '.join(LOSSES)} and base one of {', '.join(self.BASES)}; "
                f"got {criterion!r} and {base!r}"
            )
        if facts["lookback"] < facts["season_length"]:
            raise ValueError(f"the lookback of {facts['lookback']} steps is shorter than a season")
        features = inputs(num_features=facts["num_features"])
        network = SequenceModel(features, encoder(input_size=features.output_size), facts["horizon"], pooling, dropout)
        super().__init__(network, **task_options)
        self.facts, self.criterion, self.base = facts, criterion, base
        self.val_mae = MeanAbsoluteError()
        self.kept: Any = nn.ModuleDict({name: CatMetric() for name in ("index", "targets", "forecasts", "naive")})

    def forward(self, batch: Batch) -> Tensor:
        """Forecasts (B, H) in the target's unit."""
        answer = self.model(batch["inputs"])
        if self.base == "last":
            base = batch["history"][:, -1:]
        elif self.base == "climatology":
            base = batch["climatology"]
        else:
            base = self.facts["target_mean"]
        return base + self.facts["target_std"] * answer

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss in standard deviations of the target, and the forecasts (B, H) in its unit."""
        forecasts = self(batch)
        scale = self.facts["target_std"]
        return LOSSES[self.criterion](forecasts / scale, batch["targets"] / scale), forecasts

    def update_validation(self, outputs: Tensor, batch: Batch) -> None:
        self.val_mae.update(outputs.contiguous(), batch["targets"])

    def validation_scores(self) -> dict[str, Tensor]:
        mae = self.val_mae.compute()
        self.val_mae.reset()
        return {"mae": mae}

    def update_test(self, outputs: Tensor, batch: Batch) -> None:
        naive = seasonal_naive(batch["history"], self.facts["horizon"], self.facts["season_length"])
        values = {"index": batch["index"], "targets": batch["targets"], "forecasts": outputs, "naive": naive}
        for name, value in values.items():
            self.kept[name].update(value)

    def finish_test(self) -> None:
        kept = {name: metric.compute().cpu() for name, metric in self.kept.items()}
        for metric in self.kept.values():
            metric.reset()
        self._predicted = kept
        errors = kept["forecasts"].double() - kept["targets"].double()  # (N, H)
        naive = (kept["naive"].double() - kept["targets"].double()).abs()
        by_step = errors.abs().mean(dim=0)
        mae = errors.abs().mean().item()
        self.scores = {
            "mae": mae,
            "median_ae": float(np.median(errors.abs().numpy())),
            "rmse": errors.square().mean().sqrt().item(),
            "bias": errors.mean().item(),
            "skill": 1 - mae / naive.mean().item() if naive.any() else math.nan,  # nothing to improve on
        }
        # Rounded before it is divided: 144 steps of 10 minutes are a day, in floating point as well.
        days = (torch.arange(len(by_step)).double() * self.facts["step_hours"]).round(decimals=6).div(24).long()
        for day in days.unique().tolist():
            self.scores[f"mae_day{day + 1}"] = by_step[days == day].mean().item()
        self.details = {
            "windows": len(errors),
            "mae_by_step": by_step.tolist(),
            "seasonal_naive": {"mae": naive.mean().item(), "mae_by_step": naive.mean(dim=0).tolist()},
        }

    def predictions(self) -> pd.DataFrame:
        """A row per window and step: columns `index, step` (from 1), `target, prediction`, in the target's unit."""
        windows, horizon = self._predicted["targets"].shape
        return pd.DataFrame(
            {
                "index": self._predicted["index"].long().repeat_interleave(horizon).numpy(),
                "step": torch.arange(1, horizon + 1).repeat(windows).numpy(),
                "target": self._predicted["targets"].flatten().numpy(),
                "prediction": self._predicted["forecasts"].flatten().numpy(),
            }
        )

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forecasts (B, H) in the target's unit."""
        return self(batch)
