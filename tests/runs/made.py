"""Finished runs that nobody has trained: everything that a run leaves behind, from a seeded generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from runs.analysis import breakdown, scores

CLASSES = ("书籍", "酒店", "水果")


def cls_run(
    folder: Path,
    model: str = "gru",
    seed: int = 0,
    overrides: Sequence[str] = (),
    classes: Sequence[str] = CLASSES,
    texts: Sequence[str] = ("很好", "不好，再也不买了", "房间很大"),
    examples: int = 90,
) -> Path:
    """A classification: two answers out of three are right, on average."""
    generator = np.random.default_rng([seed, *model.encode()])
    names = np.array(classes)
    target = names[np.arange(examples) % len(names)]
    logits = generator.normal(size=(examples, len(names))) + 1.5 * (target[:, None] == names)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame({"row": np.arange(examples), "text": np.resize(np.array(texts, dtype=object), examples)})
    table = table.assign(target=target, prediction=names[chances.argmax(axis=1)], probability=chances.max(axis=1))
    table = table.assign(**{f"p({name})": chances[:, at] for at, name in enumerate(names)})
    confusion = np.array([[((target == a) & (table["prediction"] == b)).sum() for b in names] for a in names])
    per_class = [
        {
            "class": str(name),
            "f1": float(2 * confusion[at, at] / (confusion[at].sum() + confusion[:, at].sum())),
            "support": int(confusion[at].sum()),
        }
        for at, name in enumerate(names)
    ]
    details = {"per_class": per_class, "confusion": confusion.tolist(), "breakdown": breakdown("cls", table)}
    return _write(folder, "cls", model, seed, overrides, table, details, "val/f1")


def forecast_run(
    folder: Path,
    model: str = "gru",
    seed: int = 0,
    overrides: Sequence[str] = (),
    horizon: int = 24,
    quantiles: bool = False,
    days: int = 60,
) -> Path:
    """A forecast of an hourly wave with noise, every five hours; errors grow by step, and some days are worse."""
    generator = np.random.default_rng([seed, *model.encode()])
    hours = np.arange(24 * days)
    series = 10 * np.sin(hours / 24 * 2 * np.pi) + np.random.default_rng(7).normal(size=len(hours)).cumsum() / 5
    times = pd.date_range("2016-01-01 00:10", periods=len(hours), freq="h")
    origins = np.arange(24, len(hours) - horizon, 5)
    at = (origins[:, None] + np.arange(1, horizon + 1)).ravel()
    step = np.tile(np.arange(1, horizon + 1), len(origins))
    table = pd.DataFrame({"origin": times[np.repeat(origins, horizon)]})
    table["first_target"] = table["origin"] + pd.Timedelta("1h")
    noise = generator.normal(size=len(at)) * (0.5 + 0.1 * step) + 9 * np.sin(at / 200) ** 16
    table = table.assign(step=step, target=series[at], prediction=series[at] + noise, seasonal_naive=series[at - 24])
    if quantiles:
        for level, shift in ((0.1, -3.0), (0.25, -1.0), (0.5, 0.0), (0.75, 1.0), (0.9, 3.0)):
            table[f"q{level}"] = table["prediction"] + shift
    errors = {name: (table[name] - table["target"]).abs() for name in ("prediction", "seasonal_naive")}
    by_step = {name: error.groupby(table["step"]).mean().tolist() for name, error in errors.items()}
    details: dict[str, Any] = {
        "windows": len(origins),
        "mae_by_step": by_step["prediction"],
        "seasonal_naive": {"mae": float(errors["seasonal_naive"].mean()), "mae_by_step": by_step["seasonal_naive"]},
        "breakdown": breakdown("forecast", table),
    }
    if quantiles:
        levels = [str(name)[1:] for name in table if str(name).startswith("q0.")]
        details["share_below_quantile"] = {
            level: float((table["target"] <= table[f"q{level}"]).mean()) for level in levels
        }
        details["intervals"] = {"80": {"day1": {"coverage": scores("forecast", table)["coverage_80"], "width": 6.0}}}
    return _write(folder, "forecast", model, seed, overrides, table, details, "val/mae")


def failed_run(folder: Path, error: str) -> Path:
    """A run that stopped with an error."""
    folder.mkdir(parents=True)
    status = {"state": "failed", "overrides": ["model=cell"], "error": error, "time": ""}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    return folder


def rewrite(file: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def _write(
    folder: Path,
    task: str,
    model: str,
    seed: int,
    overrides: Sequence[str],
    table: pd.DataFrame,
    details: dict[str, Any],
    monitor: str,
) -> Path:
    folder.mkdir(parents=True)
    baseline = model in ("tfidf_svm", "ridge", "seasonal_naive")
    table.to_parquet(folder / "predictions.parquet", index=False)
    epochs = np.arange(1, 2 if baseline else 5)
    history = pd.DataFrame({"epoch": epochs, "step": 10 * epochs, "val/loss": 1 / epochs, monitor: 0.5 + epochs / 10})
    history = history.assign(epoch=0) if baseline else history.assign(**{"train/loss": (1 + seed) / epochs})
    history.to_csv(folder / "history.csv", index=False)
    metrics = {
        **{"task": task, "model": model, "data": "mine", "sample": False, "split": "test", "seed": seed},
        **{"backend": None if baseline else "cpu", "parameters": 0 if model == "seasonal_naive" else 1000 + len(model)},
        **{"seconds": 0.0 if model == "seasonal_naive" else 2.5 + seed, "epochs": 0 if baseline else 4},
        **{"best_epoch": 0 if baseline else 4, "fast_dev_run": False, "test": scores(task, table), **details},
    }
    words = [f"task={task}", f"model={model}", f"seed={seed}", *overrides]
    report = {
        **{
            "name": "mine",
            "rows_read": 12345,
            "empty_dropped": 0,
            "gaps": [{"after": "2016-01-01T00:10:00", "minutes": 80.0}],
        },
        "splits": {name: {"rows": 10, "classes": {"书籍": 3}} for name in ("train", "val", "test")},
    }
    for name, content in {
        "metrics": metrics,
        "status": {"state": "finished", "overrides": words, "error": None, "time": ""},
        "data_report": report,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    config = {
        "task": {"name": task, "monitor": monitor},
        "data": {"name": "mine", "step": "1h", "split": "date", "target": "T (degC)"},
        "model": {"name": model, "encoder": None if baseline else {"hidden_size": 8}},
        "trainer": {"max_epochs": 4},
        "seed": seed,
    }
    options = [word for word in overrides if "." in word.partition("=")[0]]  # the others choose groups
    OmegaConf.save(OmegaConf.merge(config, OmegaConf.from_dotlist(options)), folder / "config.yaml")
    return folder
