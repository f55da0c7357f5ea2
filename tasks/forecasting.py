"""Forecasting: the next `horizon` values of a series, all at once, from the `lookback` steps before them.

Legend: B batch, L lookback, H horizon, S steps of a season (a day), F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError

from tasks.baselines import Baseline, seasonal_naive
from tasks.models import build_model
from tasks.task import Batch, Kept, Task

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mae": functional.l1_loss,
    "mse": functional.mse_loss,
    "huber": functional.huber_loss,
}


class ForecastingTask(Task):
    """Direct multi-step forecasts of one target in its own unit; errors against truth and against seasonal naive.

    The network answers in standard deviations of the target around a base, `forecast = base + deviation * answer`.
    Error is prediction - truth. Scores are pooled over all windows and steps: `mae` mean absolute error, `median_ae`
    median absolute error, `rmse`, `bias` mean error, `mae_day1`, `mae_day2`, … by day of the horizon (a step
    belongs to the day in which it begins; none where a step is longer than a day), and
    `skill = 1 - mae / mae_seasonal_naive` on the same windows.

    With `quantiles`, the network answers with all of them for each step, trained by the pinball loss (Koenker and
    Bassett 1978), twice its mean over the levels, which is the absolute error where 0.5 is the only one. The forecast
    is then the median. Every other quantile is shifted, per step, so that its share of the validation split's truths
    lies below it (split conformal prediction: Romano et al. 2019). With `tracking`, the shifts go on learning while the
    test's windows are forecast, each from the truths that were known by then; see `track`. Further scores: `crps`, the
    continuous ranked probability score in the target's unit (see `quantile_crps`); and for the widest interval between
    two levels, say 5% and 95%, `coverage_90` and `width_90`, also by day.

    Batches hold the target less `target_offset`, in float64. The network computes with that in float32; scores and
    predictions are of forecasts plus the offset, in float64.

    Args:
        facts: of the data: `num_features`, `horizon`, `season_length`, `step_hours`, `target_mean`, `target_std`, and
            `target_offset` if it isn't 0.
        inputs: builds the input module from `num_features`.
        encoder: builds the encoder from `input_size`.
        baseline: builds a `Baseline` from `facts`, in the place of both; the options of the network are then not used.
        pooling: how steps become one vector; see `Pooling`.
        dropout: on that vector.
        criterion: `mae`, `mse` or `huber`, of the errors in standard deviations.
        quantiles: levels in (0, 1), rising, 0.5 among them; `criterion` is then not used. Empty: one forecast, as a
            baseline always gives.
        tracking: how far a truth moves the shifts in the test, in standard deviations of the target; 0 for not at all.
        members: M, networks whose forecasts, or quantiles level by level, are averaged.
        base: what the answer is added to: the training `mean`, the `last` value, or the `climatology` of each hour.
        task_options: of `Task`.

    Raises:
        ValueError: `criterion` or `base` is none of these, the levels aren't as they should be, or the lookback is
            shorter than a season.
    """

    BASES = ("mean", "last", "climatology")

    def __init__(
        self,
        facts: dict[str, Any],
        inputs: Callable[..., nn.Module] | None = None,
        encoder: Callable[..., nn.Module] | None = None,
        baseline: Callable[..., Baseline] | None = None,
        pooling: str = "last",
        dropout: float = 0.0,
        criterion: str = "mae",
        base: str = "last",
        quantiles: Sequence[float] = (),
        tracking: float = 0.0,
        members: int = 1,
        **task_options: Any,
    ) -> None:
        if criterion not in LOSSES or base not in self.BASES:
            raise ValueError(
                f"criterion must be one of {', '.join(LOSSES)} and base one of {', '.join(self.BASES)}; "
                f"got {criterion!r} and {base!r}"
            )
        if [0, *quantiles, 1] != sorted({0, *quantiles, 1}) or (quantiles and 0.5 not in quantiles):
            raise ValueError(f"quantiles must rise from above 0 to below 1 and hold 0.5; got {[*quantiles]}")
        if facts["lookback"] < facts["season_length"]:
            raise ValueError(f"the lookback of {facts['lookback']} steps is shorter than a season")
        levels = [] if baseline is not None else [*quantiles]
        if baseline is not None:
            models: list[nn.Module] = [baseline(facts=facts)]
        else:
            outputs, features = facts["horizon"] * max(1, len(levels)), facts["num_features"]
            models = [
                build_model(inputs, encoder, outputs, pooling, dropout, num_features=features) for _ in range(members)
            ]
        super().__init__(models[0], others=models[1:], **task_options)
        self.facts, self.criterion, self.base, self.tracking = facts, criterion, base, tracking
        self.val_mae = MeanAbsoluteError()
        names = ("index", "origin", "targets", "forecasts", "naive")
        self.kept: Any = nn.ModuleDict({name: Kept() for name in names})
        self.levels = [round(float(level), 6) for level in levels]
        self.shifts: Tensor
        self.register_buffer("shifts", torch.zeros(facts["horizon"], len(levels)))

    def forward(self, batch: Batch) -> Tensor:
        """Forecasts in the target's unit, less its offset: (B, H), or (B, H, Q) with the network's own Q quantiles."""
        return self.forecasts_of_members(batch).mean(dim=0)

    def forecasts_of_members(self, batch: Batch) -> Tensor:
        """What `forward` returns the mean of: (M, B, H) or (M, B, H, Q)."""
        if isinstance(self.model, Baseline):
            return self.model(batch)[None]
        answer = self.of_members(batch["inputs"])
        if self.base == "last":
            base = batch["history"][:, -1:].float()
        elif self.base == "climatology":
            base = batch["climatology"].float()
        else:
            base = torch.full_like(batch["inputs"][:, :1, 0], self.facts["target_mean"])
        if self.levels:
            base, answer = base.unsqueeze(-1), answer.unflatten(2, (self.facts["horizon"], len(self.levels)))
        return base + self.facts["target_std"] * answer

    def median(self, forecasts: Tensor) -> Tensor:
        """Of what `forward` returns, the forecast of each step (B, H)."""
        return forecasts[..., self.levels.index(0.5)] if self.levels else forecasts

    def in_own_unit(self, values: Tensor) -> Tensor:
        """What `forward` or a batch has less the target's offset, with it: float64, on the CPU."""
        return values.cpu().double() + self.facts.get("target_offset", 0.0)

    def calibrated(self, forecasts: Tensor, shifts: Tensor | None = None) -> Tensor:
        """What `forward` returns with its quantiles (B, H, Q) shifted, and in order; the median stays as it is.

        Args:
            forecasts: what `forward` returns.
            shifts: of all quantiles (H, Q), or of each forecast's (B, H, Q); by default those of the calibration.
        """
        if not self.levels:
            return forecasts
        middle = self.levels.index(0.5)
        median = forecasts[..., middle : middle + 1]
        shifted = forecasts + (self.shifts if shifts is None else shifts)
        below = shifted[..., :middle].minimum(median).sort(dim=-1).values
        above = shifted[..., middle + 1 :].maximum(median).sort(dim=-1).values
        return torch.cat([below, median, above], dim=-1)

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean loss in standard deviations of the target, in training of each member, and what `forward` returns."""
        each = self.forecasts_of_members(batch) if self.training else self(batch)[None]
        forecasts = each.flatten(0, 1)
        targets = batch["targets"].to(forecasts.dtype).repeat(len(each), 1)
        scale = self.facts["target_std"]
        if self.levels:
            return 2 * pinball(forecasts, targets, self.levels).mean() / scale, each.mean(dim=0)
        return LOSSES[self.criterion](forecasts / scale, targets / scale), each.mean(dim=0)

    def update_validation(self, outputs: Tensor, batch: Batch) -> None:
        forecasts = self.median(outputs).contiguous()
        self.val_mae.update(forecasts, batch["targets"].to(forecasts.dtype))

    def validation_scores(self) -> dict[str, Tensor]:
        mae = self.val_mae.compute()
        self.val_mae.reset()
        return {"mae": mae}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.device.type != "mps":
            return batch
        # Apple's GPUs know no float64.
        return {name: value.float() if value.dtype == torch.float64 else value for name, value in batch.items()}

    @property
    def calibrates(self) -> bool:
        return bool(self.levels)

    def calibrate(self, outputs: Tensor, targets: Tensor) -> None:
        for number, level in enumerate(self.levels):
            if level != 0.5:
                missed = (targets.to(outputs.dtype) - outputs[..., number]).numpy()
                self.shifts[:, number] = torch.from_numpy(np.quantile(missed, level, axis=0))

    def update_test(self, outputs: Tensor, batch: Batch) -> None:
        naive = seasonal_naive(batch["history"], self.facts["horizon"], self.facts["season_length"])
        values = {
            "index": batch["index"],
            "origin": batch["origin"],
            "targets": batch["targets"],
            "forecasts": outputs,
            "naive": naive,
        }
        for name, value in values.items():
            self.kept[name].update(value)

    def finish_test(self) -> None:
        kept = {name: metric.compute().cpu() for name, metric in self.kept.items()}
        for metric in self.kept.values():
            metric.reset()
        kept["forecasts"] = self._calibrated_test(kept)
        kept |= {name: self.in_own_unit(kept[name]) for name in ("targets", "forecasts", "naive")}
        self._predicted = kept
        errors = self.median(kept["forecasts"]) - kept["targets"]  # (N, H)
        naive = (kept["naive"] - kept["targets"]).abs()
        by_step = errors.abs().mean(dim=0)
        self.scores = error_scores(errors, naive)
        days = self._days(len(by_step))
        for day in days.unique().tolist():
            self.scores[f"mae_day{day + 1}"] = by_step[days == day].mean().item()
        self.details = {}
        if self.levels:
            self._score_quantiles(kept["forecasts"], kept["targets"], days)
        self.details |= {
            "windows": len(errors),
            "mae_by_step": by_step.tolist(),
            "seasonal_naive": {"mae": naive.mean().item(), "mae_by_step": naive.mean(dim=0).tolist()},
        }

    def _days(self, horizon: int) -> Tensor:
        """The day in which each step begins, from 0; empty where a step is longer than a day or has no fixed length."""
        hours = self.facts["step_hours"]
        if hours is None or hours > 24:
            return torch.empty(0, dtype=torch.long)
        # Rounded before it is divided: 144 steps of 10 minutes are a day, in floating point as well.
        return (torch.arange(horizon).double() * hours).round(decimals=6).div(24).long()

    def _calibrated_test(self, kept: dict[str, Tensor]) -> Tensor:
        """The test's forecasts, their quantiles shifted and in order."""
        if not self.levels or not self.tracking:
            return self.calibrated(kept["forecasts"])
        order = kept["origin"].argsort(stable=True)
        forecasts, targets, origins = (kept[name][order].numpy() for name in ("forecasts", "targets", "origin"))
        rate = self.tracking * self.facts["target_std"]
        known = track(forecasts, targets, origins, self.shifts.cpu().numpy(), self.levels, rate)
        shifts = torch.empty_like(kept["forecasts"])
        shifts[order] = torch.from_numpy(known)
        return self.calibrated(kept["forecasts"], shifts)

    def _score_quantiles(self, forecasts: Tensor, targets: Tensor, days: Tensor) -> None:
        """Scores of calibrated quantiles (N, H, Q) against the truth (N, H)."""
        self.scores |= {
            name: each.mean().item() for name, each in quantile_scores(forecasts, targets, self.levels).items()
        }
        below = (targets.unsqueeze(-1) <= forecasts).double()
        self.details["share_below_quantile"] = {
            f"{level:g}": below[..., number].mean().item() for number, level in enumerate(self.levels)
        }
        for name, (lower, upper) in central_intervals(self.levels).items():
            inside, width = in_interval(forecasts, targets, lower, upper)
            self.details.setdefault("intervals", {})[name] = {
                f"day{day + 1}": {
                    "coverage": inside[:, days == day].mean().item(),
                    "width": width[:, days == day].mean().item(),
                }
                for day in days.unique().tolist()
            }

    def predictions(self) -> pd.DataFrame:
        """A row per window and step: `index, step` (from 1), `target, prediction, seasonal_naive`, in the data's unit.

        With quantiles, a column `q0.05` and the like for each. All but the first two are float64.
        """
        windows, horizon = self._predicted["targets"].shape
        forecasts = self._predicted["forecasts"]
        frame = pd.DataFrame(
            {
                "index": self._predicted["index"].long().repeat_interleave(horizon).numpy(),
                "step": torch.arange(1, horizon + 1).repeat(windows).numpy(),
                "target": self._predicted["targets"].flatten().numpy(),
                "prediction": self.median(forecasts).flatten().numpy(),
                "seasonal_naive": self._predicted["naive"].flatten().numpy(),
            }
        )
        for number, level in enumerate(self.levels):
            frame[f"q{level:g}"] = forecasts[..., number].flatten().numpy()
        return frame

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forecasts in the target's own unit, float64: (B, H), or with Q quantiles (B, H, Q), calibrated."""
        return self.in_own_unit(self.calibrated(self(batch)))


def error_scores(errors: Tensor, naive: Tensor) -> dict[str, float]:
    """The scores of forecasts whose errors these are, float64 of any shape, beside the absolute ones of the naive."""
    mae = errors.abs().mean().item()
    return {
        "mae": mae,
        "median_ae": float(np.median(errors.abs().numpy())),
        "rmse": errors.square().mean().sqrt().item(),
        "bias": errors.mean().item(),
        "skill": 1 - mae / naive.mean().item() if naive.any() else math.nan,  # nothing to improve on
    }


def track(
    quantiles: np.ndarray,
    targets: np.ndarray,
    origins: np.ndarray,
    start: np.ndarray,
    levels: Sequence[float],
    rate: float,
) -> np.ndarray:
    """The shifts (N, H, Q) under which each window's quantiles were known, learned from the truths before its origin.

    With every truth y of step h that becomes known, shift_hq += rate (q - [y <= f_hq + shift_hq]), a step down the
    pinball loss's gradient, which leads to a share of q below the quantile whatever the weather does (the quantile
    tracker of Angelopoulos et al. 2023).

    Args:
        quantiles: f, (N, H, Q), of windows in time order.
        targets: y, (N, H).
        origins: (N,), in steps, rising. Step h of a window is known to those that begin more than h steps later: one
            more than needed, for rows aren't always a whole number of steps apart.
        start: shifts (H, Q) before the first truth.
        levels: q, (Q,).
        rate: how far a truth moves a shift, in the target's unit.
    """
    windows, horizon, _ = quantiles.shape
    shifts, now = np.empty_like(quantiles), start.astype(np.float64)
    share, ahead = np.asarray(levels), np.arange(1, horizon + 1)
    following = np.zeros(horizon, dtype=np.int64)  # of each step, the first window whose truth isn't counted yet
    for window, origin in enumerate(origins):
        while len(known := np.flatnonzero(origins[np.minimum(following, windows - 1)] + ahead < origin)):
            counted = following[known]
            below = targets[counted, known, None] <= quantiles[counted, known] + now[known]
            now[known] += rate * (share - below)
            following[known] += 1
        shifts[window] = now
    return shifts


def pinball(quantiles: Tensor, targets: Tensor, levels: Sequence[float]) -> Tensor:
    """Pinball loss max(q (y - f), (q - 1)(y - f)) of quantiles f (B, H, Q) at Q levels q for truths y (B, H)."""
    missed = targets.unsqueeze(-1) - quantiles
    shares = missed.new_tensor(levels)
    return torch.maximum(shares * missed, (shares - 1) * missed)


def central_intervals(levels: Sequence[float]) -> dict[str, tuple[int, int]]:
    """Of each interval between levels q and 1 - q, the widest first: its share in percent, and where both stand."""
    places = {level: number for number, level in enumerate(levels)}
    pairs = {f"{100 * round(1 - 2 * low, 6):g}": (low, round(1 - low, 6)) for low in levels if low < 0.5}
    return {share: (places[low], places[high]) for share, (low, high) in pairs.items() if high in places}


def in_interval(quantiles: Tensor, targets: Tensor, lower: int, upper: int) -> tuple[Tensor, Tensor]:
    """Whether each truth (B, H) lies between two of the quantiles (B, H, Q), as 0 or 1, and how far these are apart."""
    low, high = quantiles[..., lower], quantiles[..., upper]
    return ((low <= targets) & (targets <= high)).double(), (high - low).double()


def quantile_scores(quantiles: Tensor, targets: Tensor, levels: Sequence[float]) -> dict[str, Tensor]:
    """Of quantiles (B, H, Q) for truths (B, H): `crps`, and of the 80% and of the widest interval what is inside.

    Returns:
        float64 (B, H) each: `crps`, `coverage_80` (0 or 1), `width_80`, and the same of the widest.
    """
    found = {"crps": quantile_crps(quantiles, targets, levels).double()}
    intervals = central_intervals(levels)
    for share in [*intervals][:1] + ["80"] * ("80" in [*intervals][1:]):
        found[f"coverage_{share}"], found[f"width_{share}"] = in_interval(quantiles, targets, *intervals[share])
    return found


def quantile_crps(quantiles: Tensor, targets: Tensor, levels: Sequence[float]) -> Tensor:
    """The continuous ranked probability score of quantiles (B, H, Q) at Q levels for truths (B, H), each (B, H).

    CRPS = 2 * integral over q in (0, 1) of the pinball loss at q (Gneiting and Ranjan 2011), where each level stands
    for all that are nearest to it. A plain mean over the levels 0.05, 0.10, ..., 0.95 leaves out the tails, whose
    losses are small, and is 5% too high where forecasts are normal and right; this is 1.4% too high. Few levels are
    blind to errors between them: 0.05, 0.5 and 0.95 find 16% too little. Compare what has the same levels.
    """
    edges = [0.0, *((low + high) / 2 for low, high in pairwise(levels)), 1.0]
    widths = targets.new_tensor([high - low for low, high in pairwise(edges)])
    return 2 * (widths * pinball(quantiles, targets, levels)).sum(dim=-1)
