"""A callback that kills its own process, as a power cut would."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from tasks import Persistence


class Killer(pl.Callback):
    """Sends a signal, SIGKILL by default, to this process once the training has come to `step`.

    `where` is behind a training step (`train`), inside the validation, behind it (`validation_end`), behind the epoch
    with all that was written at its end (`epoch_end`), before or behind the whole training (`fit_start`, `fit_end`), or
    behind the test (`test_end`).
    """

    def __init__(self, step: int, where: str = "train", signal: str = "SIGKILL") -> None:
        self.step, self.where, self.signal = step, where, signal

    def on_fit_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "fit_start")

    def on_fit_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "fit_end")

    def on_test_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "test_end")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "train")

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "validation")

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "validation_end")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._kill(trainer, "epoch_end")

    def _kill(self, trainer: pl.Trainer, where: str) -> None:
        if where == self.where and trainer.global_step >= self.step:
            self.step = 10**9  # once
            os.kill(os.getpid(), getattr(signal, self.signal))


class Fatal(pl.Callback):
    """Ends the training of the run with this seed, in one of many ways, after so many steps of this process."""

    def __init__(self, how: str, seed: int, steps: int = 1) -> None:
        self.how, self.seed, self.steps = how, seed, steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.steps -= pl_module.seed == self.seed
        if pl_module.seed != self.seed or self.steps > 0:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how.startswith("_exit"):
            os._exit(int(self.how[-1]))
        if self.how == "recursion":
            self.on_train_batch_end(trainer, pl_module, *args)
        raise {"exit": SystemExit(0), "generator": GeneratorExit(), "memory": MemoryError()}[self.how]


class WorkerKiller(pl.Callback):
    """Kills the loader's processes once the training has come to `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)
            time.sleep(1)


class Rival(pl.Callback):
    """Once the training has come to `step`, another process is to resume it, too; `output` gets what that says."""

    def __init__(self, step: int, output: str) -> None:
        self.step, self.output = step, output

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            words = [f"resume={trainer.default_root_dir}", "trust=[tests.runs.killer]"]
            rival = subprocess.run([sys.executable, "run.py", *words], capture_output=True, text=True, timeout=100)
            Path(self.output).write_text(f"{rival.returncode}: {rival.stdout}{rival.stderr}")


class Terminated(Persistence):
    """A baseline that is told to stop while it is fitted."""

    def fit(self, batches: Sequence[Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class FullDisk(pl.Callback):
    """From the training's start on, no file can grow beyond `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def on_train_start(self, *args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
