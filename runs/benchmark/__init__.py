"""Our layers against `torch.nn`'s, alone and inside whole trainings."""

from __future__ import annotations

import logging
import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from runs import figures
from runs.benchmark.layers import Case, check, defaults, measure
from runs.benchmark.trainings import measure_training
from runs.build import plain
from runs.checks import validate
from runs.report import write_json
from runs.train import quieten

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Compare every layer, shape and mode, then whole trainings; write `benchmark.json` and a figure, print tables.

    Raises:
        ConfigError: an option is out of range.
        RuntimeError: our results differ from those of `torch.nn`.
    """
    validate(config)
    settings = defaults(plain(config))
    check(settings)
    folder = Path(HydraConfig.get().runtime.output_dir)
    torch.set_num_threads(settings["threads"])
    common = {name: settings[name] for name in ("backend", "device", "dtype")}
    cases = [
        Case(cell, mode == "train", tuple(shape), **common)
        for cell, mode, shape in product(settings["cells"], settings["modes"], settings["shapes"])
    ]
    rows = [measure(case, settings["repeats"]) for case in track(cases, "layers")]
    write_json(folder / "settings.json", {**settings, "torch": torch.__version__})
    write_json(folder / "benchmark.json", rows)
    if rows:
        labels = [",".join(map(str, shape)) for shape in settings["shapes"]]
        ratios: dict[str, list[float]] = {}
        for row in rows:
            ratios.setdefault(f"{row['cell']}, {row['mode']}", []).append(row["ratio"])
        figures.save(figures.ratios(ratios, labels), folder / "ratios")
        _print_layers(rows, ratios, labels)
    quieten()
    trainings = [
        measure_training(task, settings["batches"], settings["device"])
        for task in track(settings["trainings"], "trainings")
    ]
    write_json(folder / "trainings.json", trainings)
    _print_trainings(trainings)
    log.info(f"benchmark.json, trainings.json and ratios.png are in {folder}")


def _print_layers(rows: list[dict[str, Any]], ratios: dict[str, list[float]], labels: list[str]) -> None:
    memory: dict[str, list[float]] = {}
    for row in rows:
        if row["mode"] == "train" and row["ours_peak_mb"] and row["torch_peak_mb"]:
            memory.setdefault(f"{row['cell']}, memory", []).append(row["ours_peak_mb"] / row["torch_peak_mb"])
    table = Table(title="Ours / torch.nn: time, and peak memory in training (below 1: ours is better)")
    table.title_justify = "left"
    table.add_column("layer, mode", no_wrap=True)
    for label in [*labels, "mean"]:
        table.add_column(label, justify="right", overflow="fold")
    for name, values in sorted((ratios | memory).items()):
        mean = math.exp(statistics.mean(map(math.log, values)))
        table.add_row(name, *(f"{value:.2f}" for value in [*values, mean]))
    Console().print(table)
    backends = ", ".join(sorted({row["backend"] for row in rows}))
    where = torch.cuda.get_device_name(rows[0]["device"]) if rows[0]["device"].startswith("cuda") else "CPU"
    log.info(f"columns: steps, batch, input_size, hidden_size; mean: geometric; backend: {backends}")
    log.info(f"{rows[0]['dtype']} on {where}")


def _print_trainings(trainings: list[dict[str, Any]]) -> None:
    if not trainings:
        return
    table = Table(title="Trainings: time of an epoch, extrapolated", title_justify="left")
    for name in ("task", "data", "model", "s/epoch ours", "torch.nn", "ratio", "speed", "loader and logging"):
        table.add_column(name, justify="left" if name in ("task", "data", "model") else "right", overflow="fold")
    for row in trainings:
        table.add_row(
            *(row["task"], row["data"], row["model"], f"{row['ours_s']:.1f}", f"{row['torch_s']:.1f}"),
            *(f"{row['ratio']:.2f}", f"{row['per_second']:,.0f} {row['unit']}/s", f"{row['around']:.1%}"),
        )
    Console().print(table)
