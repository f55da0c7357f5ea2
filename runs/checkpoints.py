"""What a run must not lose: its history, its best weights, and a point to resume from."""

from __future__ import annotations

import glob
import io
import json
import math
import os
import pickle
import secrets
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.plugins import CheckpointIO

from runs.errors import CheckpointError
from runs.schema import ConfigError

LAST, BEST = "last.ckpt", "best.ckpt"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, either its old or its whole new content is there."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is written; if anything fails, `path` stays as it is.

    Raises:
        OSError: there is no room; or what is written can't take the place, and stays beside it, where the error says.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    _remove_leftovers(path)
    try:
        with open(beside, "xb") as file:  # a new file with a name that nobody can guess: no link that is there already
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk doesn't say what it had no room for
        raise
    try:
        os.replace(beside, path)
    except OSError as error:  # on Windows, a program has it open
        raise OSError(error.errno, f"{error.strerror}, its new content stays in {beside}", str(path)) from error


def _remove_leftovers(path: Path) -> None:
    """Delete what processes that were killed while writing `path` have left beside it."""
    if os.name != "posix":  # elsewhere, signal 0 is no mere question
        return
    for beside in path.parent.glob(f".{glob.escape(path.name)}.*"):
        process = beside.name.removeprefix(f".{path.name}.").partition(".")[0]
        if process.isdecimal():
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                beside.unlink(missing_ok=True)
            except (PermissionError, OverflowError):
                pass  # somebody else's process, and no process's number


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run folder holds.

    Raises:
        OSError: it can't be read.
        ConfigError: it is damaged.
    """
    try:
        content, cause = json.loads(path.read_text(encoding="utf-8")), None
    except ValueError as error:  # bytes that are no text, too
        content, cause = None, error
    if isinstance(content, dict):
        return content
    raise ConfigError(
        f"{path} is damaged (truncated, or bytes have changed): delete it, and have it written anew with "
        f"resume={path.parent}"
    ) from cause


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's content. Only tensors and plain values are read: no code in the file is ever executed.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch doesn't compare the archive's checksums
            damaged = archive.testzip() is not None
    except Exception:  # whatever a broken archive makes the reader stumble over
        damaged = True
    ruined = f"{path} is damaged (truncated, or bytes have changed)."
    if damaged:
        raise CheckpointError(ruined + _alternative(path))
    try:
        return torch.load(io.BytesIO(content), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors and plain values, which could run code when read"
        ) from error
    except Exception as error:
        raise CheckpointError(ruined + _alternative(path)) from error


def _alternative(damaged: Path) -> str:
    """The newest good checkpoint beside a damaged one, by training step."""
    steps = {}
    for path in damaged.parent.glob("*.ckpt"):
        if path != damaged:
            try:
                content = read_checkpoint(path)
            except CheckpointError:
                continue
            if "blueprint" in content:
                steps[path] = content["global_step"]
    if not steps:
        return " There is no other checkpoint beside it: start the run again"
    newest = max(steps, key=lambda path: steps[path])
    return f" {newest.name} is good (step {steps[newest]}): copy it to {damaged.name} to continue from there"


def progress(checkpoint: dict[str, Any]) -> dict[str, int]:
    """How many epochs and steps had been trained when a run's checkpoint was written, by the trainer's limits."""
    history = checkpoint["callbacks"][Recorder.__qualname__]["history"]
    return {"max_epochs": max((row["epoch"] for row in history), default=0), "max_steps": checkpoint["global_step"]}


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, written whole or not at all, and read without executing anything."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint."""
        return read_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Recorder(Checkpoint):
    """Writes `history.csv`, `checkpoints/best.ckpt` and `checkpoints/last.ckpt`, the point to resume from.

    A resume point is written before the first step, every so many steps, and behind every validation, when the early
    stopping has made up its mind; not behind an epoch's last step, where the validation's is about to follow. What
    lies between two resume points is repeated by a resumed run with the same batches and random numbers.

    Args:
        folder: the run folder.
        monitor: name of the validation score that picks the best epoch; NaN is never the best.
        mode: whether it is to be `min` or `max`.
        every_n_steps: steps between two resume points inside an epoch.
        trial: keep no checkpoints (`fast_dev_run`).
    """

    def __init__(self, folder: Path, monitor: str, mode: str, every_n_steps: int, trial: bool = False) -> None:
        self.folder, self.monitor, self.mode = folder, monitor, mode
        self.every_n_steps, self.trial = every_n_steps, trial
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self._seconds_before, self._started = 0.0, math.nan

    @property
    def seconds(self) -> float:
        """Time spent training so far, over all interruptions."""
        running = 0.0 if math.isnan(self._started) else time.perf_counter() - self._started
        return self._seconds_before + running

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.best = state_dict["history"], state_dict["best"]
        self._seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A schedule asks for the number of batches, for which Lightning makes the loader before it has read what the
        # checkpoint says of it, and then never tells it.
        loop: Any = trainer.fit_loop
        if loop._combined_loader_states_to_load:
            loop._load_combined_loader_states()
            iter(loop._data_fetcher)
        self._started = time.perf_counter()
        if trainer.global_step == 0:
            self._save(trainer, LAST)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.best:  # no validation had a score: the last weights are those that are tested
            self._save(trainer, BEST)
        self._seconds_before, self._started = self.seconds, math.nan

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = trainer.global_step % self.every_n_steps == 0 and (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if due and not trainer.is_last_batch:
            self._save(trainer, LAST)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        scores = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.history.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **scores})
        score = scores.get(self.monitor, math.nan)
        sign = 1 if self.mode == "max" else -1
        if self.trial:
            return
        unusable = math.isnan(sum(scores.values())) or not math.isfinite(score)  # NaN weights may well have an F1
        if not unusable and (not self.best or sign * score > sign * self.best["score"]):
            self.best = {"score": score, "epoch": trainer.current_epoch + 1, "step": trainer.global_step}
            self._save(trainer, BEST)
        self._save(trainer, LAST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        validated = bool(self.history) and self.history[-1]["epoch"] == trainer.current_epoch + 1
        if not validated:
            self.history.append({"epoch": trainer.current_epoch + 1, "step": trainer.global_step})
        training = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        self.history[-1].update(**training, seconds=self.seconds)
        if not validated:
            self._save(trainer, LAST)
        for callback in trainer.early_stopping_callbacks:  # it had decided to stop, and the run was killed just then
            if isinstance(callback, EarlyStopping) and callback.wait_count >= max(1, callback.patience):
                trainer.should_stop = True
        if trainer.is_global_zero:
            self._write_history()

    def record_baseline(self, trainer: pl.Trainer, seconds: float) -> None:
        """Keep a baseline that took so long to fit and has been scored on the validation split, as `best.ckpt`."""
        self._seconds_before = seconds
        if self.trial:
            return
        scores = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.best = {"score": scores.get(self.monitor, math.nan), "epoch": 0, "step": 0}
        self.history = [{"epoch": 0, "step": 0, **scores, "seconds": self.seconds}]
        self._save(trainer, BEST)
        self._write_history()

    def _write_history(self) -> None:
        write_atomically(self.folder / "history.csv", pd.DataFrame(self.history).to_csv(index=False).encode())

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if not self.trial:
            trainer.save_checkpoint(self.folder / "checkpoints" / name)  # on all processes: they meet in it
