"""One run: data, task, training, test, and what remains of it in the run folder."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LambdaCallback,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    ProgressBar,
    RichProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment  # pyright: ignore
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from datamodules import DataError
from runs import board
from runs.build import build_datamodule, build_optimizer, build_task, instantiate
from runs.checkpoints import BEST, LAST, AtomicCheckpointIO, Recorder, read_checkpoint, read_json
from runs.errors import CheckpointError, raised_within
from runs.report import write_json, write_results
from runs.schema import ConfigError, best_is
from tasks import Baseline, Task

log = logging.getLogger(__name__)

UNSUITED = {
    LearningRateFinder: "a run trains as its config.yaml says; compare some rates: -m optimizer.lr=1e-4,3e-4,1e-3",
    BatchSizeFinder: "a run trains as its config.yaml says; compare some sizes: -m data.batch_size=64,128,256",
    BackboneFinetuning: "it thaws a module named backbone, and no task has one",
    ModelPruning: "it prunes after the validation that picks the best weights; use optimizer.weight_decay or a smaller "
    "model.encoder.hidden_size",
    OnExceptionCheckpoint: "a run keeps checkpoints/last.ckpt to resume from: resume=FOLDER",
    StochasticWeightAveraging: "its average comes after the last validation; callbacks.averaging=0.999 is validated",
    BasePredictionWriter: "a run writes predictions.parquet, python run.py -cn predict those of other data",
}
"""Callbacks of Lightning that do nothing for a run, or what its folder wouldn't say, each with what to do instead."""


def train(
    config: dict[str, Any],
    folder: Path,
    resume: bool = False,
    began: Callable[[], None] = lambda: None,
    trained: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, test, and fill the run folder.

    Args:
        config: of the run, plain values.
        folder: gets `data_report.json`, `history.csv`, `checkpoints/`, `metrics.json`, `predictions.parquet`,
            `figures/` and the logger's files.
        resume: continue from the folder's last checkpoint.
        trained: what `metrics.json` holds of a training that is complete, of which only another split is scored.
        began: called when nothing is left that could keep the run from going on, and all processes that train together
            have met, before the folder is written to; but for `data_report.json`, which by then says of the same data
            what it said before.

    Returns:
        What `metrics.json` holds.
    """
    quieten()
    if threads := config["trainer"].get("threads"):
        torch.set_num_threads(threads)
    best = folder / "checkpoints" / BEST
    start = best if trained is not None and best.exists() else best.with_name(LAST)
    checkpoint = _resume_point(config, start) if resume or trained is not None else None
    recorder = Recorder(
        folder,
        monitor=config["task"]["monitor"],
        mode=best_is(config["task"]),
        every_n_steps=config["callbacks"]["resume_every_n_steps"],
        trial=bool(config["trainer"]["fast_dev_run"]),
    )
    logger = _build_logger(config, folder, checkpoint)
    trainer = _build_trainer(config, recorder, logger, began)  # before any data is read: a device may be missing
    _try_encoder(config, trainer)
    build_optimizer(config)  # for what it refuses: the task, which gets one, knows its data first
    datamodule = build_datamodule(config)
    datamodule.setup()
    if checkpoint is not None:
        _check_data(checkpoint, datamodule, folder)
    if rank_zero_only.rank == 0:
        write_json(folder / "data_report.json", datamodule.report)
    task = build_task(config, datamodule.facts)
    _announce(config, task, datamodule)
    if logger is not None and not (checkpoint and checkpoint["global_step"]) and not recorder.trial:
        _log_hyperparameters(logger, config, datamodule.name, folder)

    history = None
    if trained is not None and checkpoint is not None:
        task.load_state_dict(checkpoint["state_dict"])
        history = pd.read_csv(folder / "history.csv")
    elif isinstance(task.model, Baseline):
        if trainer.world_size > 1:
            raise ConfigError(f"model={config['model']['name']} is fitted by one process: add trainer=cpu")
        _fit_baseline(task, trainer, datamodule, recorder)
    else:
        trainer.fit(task, datamodule=datamodule, ckpt_path=folder / "checkpoints" / LAST if resume else None)
        if recorder.best:
            task.load_state_dict(read_checkpoint(best)["state_dict"])
    test_seconds = _score(task, trainer, datamodule, config["score_on"], None if recorder.trial else best)

    metrics = _metrics(config, task, datamodule, trainer, recorder) | {"test_seconds": test_seconds}
    if trained is not None:
        metrics |= {name: trained[name] for name in ("seconds", "epochs", "best_epoch", "best_score")}
    if trainer.is_global_zero:
        history = pd.DataFrame(recorder.history) if history is None else history
        write_results(folder, config, metrics, task, datamodule, history, logger)
    return metrics


def _score(task: Task, trainer: pl.Trainer, datamodule: Any, split: str, best: Path | None) -> float:
    """Score a split, calibrated first if it is the test split; the seconds that the scoring took."""
    # It would put the last average in the place of the best one at the next validation, which calibrates.
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, WeightAveraging)]  # pyright: ignore
    if task.calibrates and split == "test":  # scored on the split it was fitted to, a calibration looks perfect
        _calibrate(task, trainer, datamodule, best)
    started = time.perf_counter()
    examples = {"datamodule": datamodule} if split == "test" else {"dataloaders": datamodule.val_dataloader()}
    trainer.test(task, **examples, verbose=False)
    return round(time.perf_counter() - started, 2)


def _metrics(
    config: dict[str, Any], task: Task, datamodule: Any, trainer: pl.Trainer, recorder: Recorder
) -> dict[str, Any]:
    """What `metrics.json` says of a run that has been scored."""
    baseline = isinstance(task.model, Baseline)
    encoder: Any = None if baseline else task.model.encoder
    return {
        "task": config["task"]["name"],
        "model": config["model"]["name"],
        "data": datamodule.name,
        "sample": datamodule.is_sample,
        "seed": config["seed"],
        "backend": None if baseline else getattr(encoder, "chosen_backend", "none"),
        "parameters": task.num_parameters,
        "seconds": round(recorder.seconds, 2),
        "epochs": trainer.current_epoch,
        "best_epoch": recorder.best.get("epoch"),
        "best_score": recorder.best.get("score"),  # of the validation
        "fast_dev_run": recorder.trial,
        "split": config["score_on"],  # of the scores
        "test": task.scores,
        **task.details,
    }


def _fit_baseline(task: Any, trainer: pl.Trainer, datamodule: Any, recorder: Recorder) -> None:
    """Fit a baseline to the training split, and score it on the validation split."""
    started = time.perf_counter()
    batches = datamodule.train_dataloader()
    fitted = [next(iter(batches))] if recorder.trial else list(batches)
    try:
        task.model.fit(fitted)
    except ValueError as error:  # scikit-learn's, about examples that are too few or too much alike
        count = sum(len(batch["targets"]) for batch in fitted)
        name = task.blueprint["config"]["model"]["name"]
        raise DataError(f"model={name} can't be fitted to {count:,} training examples: {error}") from error
    seconds = time.perf_counter() - started
    trainer.validate(task, datamodule=datamodule, verbose=False)
    recorder.record_baseline(trainer, seconds)


def _calibrate(task: Task, trainer: pl.Trainer, datamodule: Any, best: Path | None) -> None:
    """Calibrate the best weights on the validation split, and keep that in their checkpoint."""
    task.calibrating = True
    trainer.validate(task, datamodule=datamodule, verbose=False)
    task.calibrating = False
    if best is not None and best.exists() and trainer.is_global_zero:
        content = read_checkpoint(best)
        content |= {"state_dict": task.state_dict(), "calibrated": task.is_calibrated}
        AtomicCheckpointIO().save_checkpoint(content, best)


class Progress(RichProgressBar):
    """Lightning's progress bar, which counts epochs from 0; this one from 1, as everything else here does."""

    def _get_train_description(self, current_epoch: int) -> str:
        most = self.trainer.max_epochs or -1
        shown = f"Epoch {current_epoch + 1}" + (f"/{most}" if most > 0 else "")
        return shown.ljust(len(self.validation_description))  # an uneven length would make the bar jump


def quieten() -> None:
    """Silence what libraries say that no user can act on."""
    # Lightning reports the absence of GPUs, TPUs and its tips at INFO; what a run is about we say ourselves.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Batches are a vectorised look-up in memory: worker processes would only slow them down.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Short epochs (sample data, fast_dev_run) are shorter than the logging interval; curves have epoch points, too.
    warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
    # It is the task's own business which batches a device can take.
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`.*")
    # Checkpoints of a resumed run lie in its own folder, on purpose.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    # A resumed run knows the sum of its losses so far, though this process has added none to it.
    warnings.filterwarnings("ignore", message=".*``compute`` method of metric MeanMetric.*before the ``update``.*")
    # What tasks log comes from metrics that have gathered all processes' share: it is the same on each of them.
    warnings.filterwarnings(
        "ignore", message=r"It is recommended to use `self\.log\('(train|val|test)/.*sync_dist=True.*"
    )
    # The graph of a model isn't logged; nothing is missing from the events.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)


def _resume_point(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The checkpoint to continue from, once it is clear that it belongs to this configuration."""
    checkpoint = read_checkpoint(path)
    if "blueprint" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of a task")
    saved, asked = checkpoint["blueprint"]["config"], config
    for part in ("task", "model"):
        if saved[part] != asked[part]:
            names = f"{saved[part]['name']} ({saved[part]}) into {asked[part]['name']} ({asked[part]})"
            raise CheckpointError(f"{path} is a checkpoint of another {part}: it doesn't fit {names}")
    for part in ("optimizer", "scheduler", "seed"):  # of an optimizer, options may have come with newer code
        first, second = (
            each[part] if part == "seed" else (each[part] or {}).get("_target_") for each in (saved, asked)
        )
        if first != second:
            raise CheckpointError(f"{path} is of {part}={first}, the run of {part}={second}")
    return checkpoint


def _check_data(checkpoint: dict[str, Any], datamodule: Any, folder: Path) -> None:
    """A run goes on with the data that it has begun with: an edited file may well have the same facts."""
    path = folder / "data_report.json"
    before = read_json(path) if path.exists() else datamodule.report
    same_file = before.get("sha256") == datamodule.report.get("sha256")
    if checkpoint["blueprint"]["facts"] != datamodule.facts or not same_file:
        raise CheckpointError(
            f"the data has changed since {folder} was interrupted: now it is {datamodule.name} "
            f"({datamodule.report['source']}); see data_report.json for what it was"
        )


def _build_trainer(
    config: dict[str, Any], recorder: Recorder, logger: Logger | None, began: Callable[[], None]
) -> pl.Trainer:
    options = {name: value for name, value in config["trainer"].items() if name not in ("threads", "extra")}
    callbacks = _extra_callbacks(config)
    once = cache(began)
    start = dict.fromkeys(("on_train_start", "on_validation_start", "on_test_start"), lambda *_: once())
    callbacks.append(LambdaCallback(**start, teardown=_heed_sigterm))
    if stopping := config["callbacks"]["early_stopping"]:
        # Behind the validation, not at the epoch's end: the resume point is written between the two.
        watch = {"monitor": config["task"]["monitor"], "mode": best_is(config["task"]), "check_finite": False}
        callbacks.append(EarlyStopping(**watch, **stopping, check_on_train_epoch_end=False))
    if decay := config["callbacks"]["averaging"]:
        callbacks.append(EMAWeightAveraging(decay=decay))
    if isinstance(logger, TensorBoardLogger):
        callbacks.append(board.ValidationFigure())
    if options["enable_progress_bar"] and not any(isinstance(each, ProgressBar) for each in callbacks):
        callbacks.append(Progress(leave=False))
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # which Lightning prefers to it
        # Requeued, the command would begin a new run, into which Lightning would load the checkpoint of this one.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    options |= {
        "logger": logger or False,
        "callbacks": [*callbacks, recorder],
        "plugins": plugins,
        "default_root_dir": recorder.folder,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data modules deal batches out themselves, without repeating any
        "enable_model_summary": False,
    }
    extra = instantiate(config["trainer"]["extra"], config["trust"])
    try:
        trainer: Any = pl.Trainer(**options, **extra)
    except Exception as error:  # whatever Lightning and what it asks for devices stumble over
        if not raised_within(error, "pytorch_lightning.trainer.connectors.accelerator_connector"):
            raise ConfigError(f"trainer: {error}") from error
        usual = ("auto", 1, "32-true")
        place = ("accelerator", "devices", "strategy", "num_nodes", "precision")
        asked = ", ".join(f"trainer.{name}={options[name]}" for name in place if options[name] not in usual)
        raise ConfigError(f"{asked or 'trainer'}: {error}; trainer=cpu alone runs everywhere") from error
    on_cpu, cores = trainer.strategy.root_device.type == "cpu", os.cpu_count() or 1
    if on_cpu and trainer.num_devices > max(2, cores):
        raise ConfigError(f"trainer.devices={trainer.num_devices}: this computer has {cores} CPU cores; ask for fewer")
    if extra.get("profiler"):
        profiler = trainer.profiler
        profiler.dirpath, profiler.filename = profiler.dirpath or recorder.folder, profiler.filename or "profile"
        log.info(f"the profiler writes fit-{profiler.filename}.txt and others into {profiler.dirpath}")
    return trainer


def _extra_callbacks(config: dict[str, Any]) -> list[Callback]:
    """The callbacks of `callbacks.extra`.

    Raises:
        ConfigError: one is no callback, or does what a run can't use.
    """
    callbacks = []
    for extra in config["callbacks"]["extra"]:
        callback = instantiate(extra, config["trust"])
        name = f"callbacks.extra: {extra['_target_']}"
        if not isinstance(callback, Callback):
            raise ConfigError(f"{name} is no callback of Lightning")
        for unsuited, reason in UNSUITED.items():
            if isinstance(callback, unsuited):
                raise ConfigError(f"{name} can't be used: {reason}")
        if isinstance(callback, ProgressBar) and not config["trainer"]["enable_progress_bar"]:
            raise ConfigError(f"{name} needs trainer.enable_progress_bar=true")
        callbacks.append(callback)
    return callbacks


def _heed_sigterm(trainer: pl.Trainer, *_: Any, stage: str) -> None:
    """Stop on a signal that came during the last batch or behind it, where Lightning's loops only take note of it."""
    if trainer.received_sigterm:
        raise SIGTERMException


def _try_encoder(config: dict[str, Any], trainer: pl.Trainer) -> None:
    """Let an encoder of this configuration take one step, where and as precisely as the training will take them.

    What can't run, or wants compiling first, is known before any data is read.
    """
    if not (config["model"].get("encoder") or {}).get("_target_", "").startswith("rnn_cells."):
        return  # what others want to read isn't known
    size = config["task"]["inputs"].get("embedding_dim", 1)
    try:
        encoder = instantiate(config["model"]["encoder"], config["trust"])(input_size=size)
    except ValueError as error:  # an argument that the schema couldn't judge
        raise ConfigError(f"model.encoder: {error}") from error
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    x = precision.convert_input(torch.zeros(1, 1, size, device=device))
    with torch.no_grad(), precision.forward_context():
        precision.convert_module(encoder.to(device))(x)


def _build_logger(config: dict[str, Any], folder: Path, checkpoint: dict[str, Any] | None) -> Logger | None:
    if config["logger"] is None:
        return None
    options: dict[str, Any] = {"save_dir": str(folder)}
    if config["logger"]["_target_"].endswith("TensorBoardLogger") and checkpoint is not None:
        options["purge_step"] = checkpoint["global_step"]  # what the killed run logged beyond its resume point
    logger = instantiate(config["logger"], config["trust"], **options)
    if isinstance(logger, TensorBoardLogger) and checkpoint is not None and rank_zero_only.rank == 0:
        board.write_each_scalar_once(logger, checkpoint["global_step"])
    return logger


def _log_hyperparameters(logger: Logger, config: dict[str, Any], data: str, folder: Path) -> None:
    values = board.hyperparameters(config, data, folder)
    if not isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(values)
    elif rank_zero_only.rank == 0:
        board.begin(logger, values, config["task"]["name"])


def _announce(config: dict[str, Any], task: Task, datamodule: Any) -> None:
    loaders = (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader())
    sizes = " / ".join(f"{len(loader.dataset):,}" for loader in loaders)
    size = "" if isinstance(task.model, Baseline) else f"{task.num_parameters:,} parameters, "
    log.info(
        f"{config['model']['name']} on {datamodule.name}: {size}{sizes} examples (train / val / test), "
        f"seed {config['seed']}"
    )
