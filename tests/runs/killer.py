"""A callback that kills its own process, as a power cut would."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytorch_lightning as pl


class Killer(pl.Callback):
    """Sends SIGKILL to this process behind the training step, or in the validation, that comes at `step`."""

    def __init__(self, step: int, where: str = "train") -> None:
        self.step, self.where = step, where

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.where == "train" and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.where == "validation" and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.where == "validation_end" and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
