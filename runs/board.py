"""What TensorBoard shows of a run beside the curves that Lightning logs: `tensorboard --logdir outputs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
from matplotlib.image import imread
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from runs import figures
from runs.analysis import classes_of
from runs.checkpoints import read_json
from runs.comparison import SCORES

WORDS = {"task": "task.name", "model": "model.name"}
NUMBERS = {"seed": "seed"}
"""Hyper-parameters that every run shows, and where they stand in the configuration."""
TRAINED_WORDS = {"optimizer": "optimizer._target_", "scheduler": "scheduler._target_", "pooling": "task.pooling"}
TRAINED_NUMBERS = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "hidden_size": "model.encoder.hidden_size",
    "num_layers": "model.encoder.num_layers",
    "dropout": "task.dropout",
    "batch_size": "data.batch_size",
    "max_epochs": "trainer.max_epochs",
}
"""Those that a baseline has no use for."""
PARTS = ("task", "data", "model", "optimizer", "scheduler", "callbacks")
"""Of the configuration: what the command line sets in them is a hyper-parameter, too."""
CURVES = {"cls": ["val/accuracy", "val/f1"], "forecast": ["val/mae"]}
SAMPLES = 10
"""Texts that are shown of those read rightly, and of those misread."""


def begin(logger: TensorBoardLogger, values: Mapping[str, Any], task: str) -> None:
    """Lay out the curves, losses together, and show the hyper-parameters before there are any scores.

    TensorBoard takes the columns of its table from one run that it comes upon first. So each run names them all: the
    hyper-parameters of a network and the scores of both tasks, whichever it has itself.
    """
    board: Any = logger.experiment
    charts = {"loss": ["train/loss", "val/loss"], "scores": CURVES[task], "learning rate": ["train/lr"]}
    board.add_custom_scalars({task: {title: ["Multiline", tags] for title, tags in charts.items()}})
    columns = dict.fromkeys([*WORDS, "data", *TRAINED_WORDS], "") | dict.fromkeys([*NUMBERS, *TRAINED_NUMBERS], 0.0)
    scores = {f"test/{name}": 0.0 for names in SCORES.values() for name in names}
    experiment, _, _ = hparams({**columns, **values}, scores)
    _, start, _ = hparams(dict(values), {})
    board.file_writer.add_summary(experiment)
    board.file_writer.add_summary(start)
    logger.hparams.update(values)  # for hparams.yaml


def hyperparameters(config: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """What tells a run from others, flat, by names that people read; of options set on the command line, their own.

    Args:
        config: of the run.
        data: name of the data.
        folder: of the run, whose `status.json` has the command line.
    """
    trained = TRAINED_WORDS | TRAINED_NUMBERS
    fixed = WORDS | NUMBERS | ({} if "baseline" in config["model"] else trained)
    whole = OmegaConf.create(config)
    found = {"data": data} | {name: OmegaConf.select(whole, key) for name, key in fixed.items()}
    status = folder / "status.json"
    overrides = read_json(status)["overrides"] if status.exists() else []
    for key, _, text in (word.lstrip("+").partition("=") for word in overrides or []):
        if key == "experiment":
            found[key] = text
        elif key.partition(".")[0] in PARTS and "." in key and key not in (fixed | trained).values():
            found[key] = OmegaConf.select(whole, key)
    for name in TRAINED_WORDS.keys() & found.keys():  # of a class's full name, its own
        found[name] = str(found[name] or "none").rpartition(".")[2]
    return {
        name: value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
        for name, value in found.items()
        if value is not None
    }


def write_each_scalar_once(logger: TensorBoardLogger, step: int) -> None:
    """Keep a resumed run from writing what is there of the steps before its first, `step`.

    A resume point is written with each validation, and so before the training loss of the epoch: a run that is killed
    soon after it comes to the end of that epoch once more.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    points = ((name, event.step) for name in events.Tags()["scalars"] for event in events.Scalars(name))
    written = {(name, at) for name, at in points if at < step}
    log_metrics = logger.log_metrics

    def log_new_metrics(metrics: dict[str, Any], step: int | None = None) -> None:
        log_metrics({name: value for name, value in metrics.items() if (name, step) not in written}, step)

    logger.log_metrics = log_new_metrics  # type: ignore[method-assign]


class ValidationFigure(Callback):
    """The confusion matrix of each epoch's validation, small: drawing it takes a fraction of a second."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        english = getattr(pl_module, "blueprint", {}).get("facts", {}).get("english") or {}
        self.labels = figures.readable(getattr(pl_module, "classes", []), english)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts = getattr(pl_module, "validation_details", {}).get("confusion")
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or counts is None or trainer.state.fn != "fit":
            return
        if trainer.is_global_zero:
            figure = figures.confusion_matrix(counts, self.labels, small=True)
            step = max(0, trainer.global_step - 1)  # where Lightning logs the scores of this validation
            logger.experiment.add_figure("val/confusion", figure, step, close=False)


def finish(
    logger: TensorBoardLogger,
    metrics: dict[str, Any],
    predictions: pd.DataFrame,
    drawn: Sequence[Path],
    step: int,
) -> None:
    """The test's figures, `drawn` as files; of texts, precision over recall by class, and some right and wrong ones."""
    board: Any = logger.experiment
    for path in drawn:
        board.add_image(f"test/{path.stem}", imread(path), step, dataformats="HWC")
    if metrics["task"] == "cls":
        for name in classes_of(predictions):
            truth = (predictions["target"] == name).to_numpy()
            board.add_pr_curve(f"precision over recall/{name}", truth, predictions[f"p({name})"].to_numpy(), step)
        right = predictions["target"] == predictions["prediction"]
        for name, rows in (("right", predictions[right]), ("wrong", predictions[~right])):
            surest = rows.sort_values("probability", ascending=False, kind="stable").head(SAMPLES)
            board.add_text(f"test/{name}", _table(surest), step)
    _, _, end = hparams({}, {})
    board.file_writer.add_summary(end)
    board.flush()


def _table(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "none"
    texts = rows["text"].str.slice(0, 200).str.replace(r"[|\s]+", " ", regex=True)  # in one cell of a Markdown table
    shown = rows[["text", "target", "prediction", "probability"]].assign(text=texts)
    return shown.to_markdown(index=False, floatfmt=".3f", disable_numparse=[0, 1, 2])
