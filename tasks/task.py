"""What all tasks share: the steps, the optimizer, and randomness that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torchmetrics import CatMetric, MeanMetric

Batch = dict[str, Tensor]
"""What a data module yields: `inputs`, `targets`, `index`; of texts also `lengths` and `characters`, of a series
`history`, `climatology` and `origin`."""


class DivergedError(RuntimeError):
    """The training loss, its gradient or a model's answers are not finite numbers any more."""


class Task(pl.LightningModule):
    """A model with its loss, optimizer and scores.

    `blueprint`, set by whoever builds the task, is kept in its checkpoints: plain values to build it again from.
    A validation while `calibrating` scores and logs nothing: its outputs are kept, and given to `calibrate`. Whether
    that was done, `is_calibrated`, is kept in checkpoints, too; None of a task from one that doesn't say.

    After a test, `scores` holds the flat test scores, `details` whatever else belongs into `metrics.json`, and
    `predictions()` one or more rows per test example. After a validation, `validation_details` holds plain values that
    are no scores.

    Args:
        model: the network, or the first of several whose answers are averaged.
        others: further ones of its kind, which learn side by side with it, each from its own errors (an ensemble:
            Hansen and Salamon 1990). The loss is the mean of theirs, so that each has 1/M of its gradient: the same to
            Adam and AdamW, a smaller step to SGD.
        optimizer: builds the optimizer from the parameters.
        scheduler: builds a per-step learning rate schedule from `(optimizer, total_steps)`.
        seed: of everything random in a training step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
        seed: int = 0,
        others: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.model, self.others = model, nn.ModuleList(others)
        self.make_optimizer, self.make_scheduler, self.seed = optimizer, scheduler, seed
        # A NaN counts, where torchmetrics would leave it out: such a mean is never the best.
        self.train_loss, self.val_loss = (MeanMetric(nan_strategy=math.nan) for _ in range(2))
        self.train_loss.persistent(True)  # in checkpoints: an epoch resumed in its middle reports its whole mean
        self.calibrating = False
        self.is_calibrated: bool | None = False
        self.for_calibration: Any = nn.ModuleDict({name: Kept() for name in ("outputs", "targets")})
        self.blueprint: dict[str, Any] = {}
        self.scores: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.validation_details: dict[str, Any] = {}

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The batch's mean loss, a scalar, and the outputs it was computed from."""

    @abstractmethod
    def update_validation(self, outputs: Tensor, batch: Batch) -> None:
        """Take note of one validation batch."""

    @abstractmethod
    def validation_scores(self) -> dict[str, Tensor]:
        """Scores of the validation batches since the last call; may set `validation_details`."""

    @abstractmethod
    def update_test(self, outputs: Tensor, batch: Batch) -> None:
        """Take note of one test batch."""

    @abstractmethod
    def finish_test(self) -> None:
        """Set `scores` and `details` from the test batches, on every process."""

    @abstractmethod
    def predictions(self) -> pd.DataFrame:
        """The test's predictions beside the truth; the column `index` is the position in the test split."""

    @property
    def members(self) -> list[nn.Module]:
        """The network, or all of them."""
        return [self.model, *self.others]

    def of_members(self, *inputs: Tensor) -> Tensor:
        """What each of the M members answers, (M, B, O)."""
        return torch.stack([member(*inputs) for member in self.members])

    @property
    def calibrates(self) -> bool:
        """Whether there is something to calibrate."""
        return False

    def calibrate(self, outputs: Tensor, targets: Tensor) -> None:
        """Set buffers by all outputs of the validation split (N, …) and their truths, the same on every process."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"blueprint": self.blueprint, "calibrated": self.is_calibrated}

    @property
    def num_parameters(self) -> int:
        """Trained parameters, or a baseline's coefficients."""
        return getattr(self.model, "num_parameters", 0) + sum(
            parameter.numel() for parameter in self.parameters() if parameter.requires_grad
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed by the step, so that step n draws the same numbers whether or not the run was interrupted before it."""
        text = f"{self.seed} {self.global_rank} {self.global_step}"
        if within := batch_idx % self.trainer.accumulate_grad_batches:  # of the batches that make one step
            text += f" {within}"
        # torch keeps 32 bits of a seed: mix all into them
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self.loss(batch)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the training loss became {loss.item()} at step {self.global_step}; nothing was updated with it. "
                "Lower optimizer.lr, or set a lower trainer.gradient_clip_val"
            )
        self.train_loss.update(loss.detach(), weight=len(batch["targets"]))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer would, but never step with a gradient that isn't finite."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:  # it skips such steps by itself
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [*self.trainer.precision_plugin.main_params(optimizer)]
        by_norm = gradient_clip_algorithm in (None, "norm")
        if gradient_clip_val and by_norm:
            norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            norm = nn.utils.get_total_norm(each.grad for each in parameters if each.grad is not None)
        if not torch.isfinite(norm):
            raise DivergedError(
                f"the gradient's norm became {norm.item()} at step {self.global_step}; nothing was updated with it. "
                "Lower optimizer.lr"
            )
        if not by_norm:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.train_loss.compute())
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.train_loss.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss, outputs = self.loss(batch)
        if self.calibrating:
            _check_answers(outputs)
            self.for_calibration["outputs"].update(outputs)
            self.for_calibration["targets"].update(batch["targets"])
            return
        self.val_loss.update(loss, weight=len(batch["targets"]))
        self.update_validation(outputs, batch)

    def on_validation_epoch_end(self) -> None:
        if self.calibrating:
            kept = {name: metric.compute().cpu() for name, metric in self.for_calibration.items()}
            self.calibrate(kept["outputs"], kept["targets"])
            self.is_calibrated = True
            for metric in self.for_calibration.values():
                metric.reset()
            return
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        for name, value in self.validation_scores().items():
            self.log(f"val/{name}", value, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        _, outputs = self.loss(batch)
        _check_answers(outputs)
        self.update_test(outputs, batch)

    def on_test_epoch_end(self) -> None:
        self.finish_test()
        self.log_dict({f"test/{name}": value for name, value in self.scores.items()})

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Kept(CatMetric):
    """Keeps what it is given, on every process: integers exact, and also what is no number."""

    def update(self, value: Tensor) -> None:
        """Add values; those of half precision become float32, which NumPy knows."""
        kept: Any = self.value
        kept.append(value.detach().float() if value.dtype in (torch.float16, torch.bfloat16) else value.detach())


def _check_answers(outputs: Tensor) -> None:
    if outputs.isnan().any():
        raise DivergedError("the model's answers are no numbers (NaN): its weights, or what it reads, aren't finite")


def cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.01) -> LRScheduler:
    """Linear warm-up, then half a cosine down to a fraction of the rate (Loshchilov and Hutter 2017).

    Args:
        optimizer: whose rate is scheduled.
        total_steps: of the whole training.
        warmup: fraction of the steps in which the rate rises.
        final: fraction of the rate that is left at the end.
    """
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - rising))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def onecycle(optimizer: Optimizer, total_steps: int, warmup: float = 0.3) -> LRScheduler:
    """The rate rises to the optimizer's `lr` and anneals to almost nothing, momentum the other way (Smith 2018).

    Args:
        optimizer: whose rate is scheduled.
        total_steps: of the whole training.
        warmup: fraction of the steps in which the rate rises.
    """
    total_steps = max(1, total_steps)
    # torch divides by the length of each phase: neither may be empty
    rising = min(max(warmup, 1e-9), 1 - 1 / (2 * total_steps)) + 1e-9
    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=total_steps, pct_start=rising)
