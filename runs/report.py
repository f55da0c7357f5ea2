"""What a finished run leaves behind: predictions, figures, events for TensorBoard, and `metrics.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from datamodules.steps import format_time
from runs import board, figures
from runs.analysis import breakdown, likely_label_errors, quantiles_of
from runs.checkpoints import replacing, write_atomically
from runs.formulas import escape_frame
from runs.memory import memory_of_run
from runs.schema import best_is
from tasks import Task


def write_results(
    folder: Path,
    config: dict[str, Any],
    metrics: dict[str, Any],
    task: Task,
    datamodule: Any,
    history: pd.DataFrame,
    logger: Logger | None,
) -> None:
    """Write `predictions.parquet`, `likely_label_errors.csv`, `figures/`, TensorBoard's test events and `metrics.json`.

    To the metrics come `breakdown`, scores of parts of the split, and of a recurrent network `memory`, its
    `memory_curve`.

    `metrics.json` comes last: its presence says that the run is complete.
    """
    predictions = task.predictions()
    index = predictions.pop("index").to_numpy()
    described = datamodule.describe(metrics["split"], index).reset_index(drop=True)
    predictions = pd.concat([described.drop(columns=predictions.columns, errors="ignore"), predictions], axis=1)
    if hasattr(datamodule, "target_times"):  # not every data module of one's own knows them
        times = datamodule.target_times(metrics["split"], index, predictions["step"].to_numpy())
        predictions.insert(0, "time", times)
    with replacing(folder / "predictions.parquet") as file:
        predictions.to_parquet(file, index=False)
    metrics["breakdown"] = breakdown(metrics["task"], predictions)
    loader = datamodule.test_dataloader() if metrics["split"] == "test" else datamodule.val_dataloader()
    drawn = {}
    if not metrics["fast_dev_run"] and (memory := memory_of_run(task, loader.dataset)) is not None:
        metrics["memory"] = memory
        drawn["memory"] = figures.memory({metrics["model"]: memory})
    if "train/loss" in history:
        drawn["loss"] = figures.loss_curves(history, config["task"]["monitor"], best_is(config["task"]))
    if metrics["task"] == "cls":
        suspects = likely_label_errors(predictions)
        if config["escape_formulas"]:
            suspects = escape_frame(suspects)
        table = suspects.to_csv(index=False).encode("utf-8-sig")  # the mark is for Excel
        write_atomically(folder / "likely_label_errors.csv", table)
        labels = figures.readable([row["class"] for row in metrics["per_class"]], datamodule.facts.get("english") or {})
        drawn["confusion"] = figures.confusion_matrix(metrics["confusion"], labels)
    else:
        drawn |= _forecast_figures(metrics, predictions.assign(index=index), datamodule.facts, loader.dataset)
    files = [folder / "figures" / f"{name}.png" for name in drawn]
    for file, figure in zip(files, drawn.values(), strict=True):
        figures.save(figure, file)
    if isinstance(logger, TensorBoardLogger) and not metrics["fast_dev_run"]:
        board.finish(logger, metrics, predictions, files, int(history["step"].iloc[-1]))
    write_json(folder / "metrics.json", metrics)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read, whole or not at all; what is not a finite number becomes null."""
    write_atomically(path, json.dumps(_finite(content), ensure_ascii=False, indent=2, allow_nan=False).encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _forecast_figures(
    metrics: dict[str, Any], predictions: pd.DataFrame, facts: dict[str, Any], dataset: Any
) -> dict[str, Figure]:
    """The error by lead time, and six windows spread over the split with what came before them."""
    hours, unit = facts["step_hours"], facts["unit"]
    errors = {metrics["model"]: metrics["mae_by_step"], "seasonal naive": metrics["seasonal_naive"]["mae_by_step"]}
    available = predictions["index"].unique()
    chosen = available[np.linspace(0, len(available) - 1, min(6, len(available))).astype(int)]
    histories = dataset[chosen.tolist()]["history"].numpy() + facts.get("target_offset", 0.0)
    levels = quantiles_of(predictions.columns)
    windows = []
    for position, history in zip(chosen, histories, strict=True):
        rows = predictions[predictions["index"] == position]
        windows.append(
            {
                "origin": format_time(rows["origin"].iloc[0]),
                "history": history,
                "truth": rows["target"].to_numpy(),
                "forecast": rows["prediction"].to_numpy(),
                "quantiles": {level: rows[name].to_numpy() for name, level in levels.items()},
                "hours": hours,
            }
        )
    return {
        "error_by_step": figures.error_by_step(errors, metrics["model"], hours, unit),
        "forecasts": figures.forecasts(windows, metrics["model"], facts["target"]),
    }
