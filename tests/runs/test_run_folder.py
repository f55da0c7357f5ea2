from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from rich.console import Console
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import schema
from runs.build import build_datamodule, load_task, plain
from runs.console import print_scores
from tests.runs.lab import SECRET, SMALL, STEPS_PER_EPOCH

TASKS = ("cls", "forecast")
FIGURES = {"cls": {"loss", "confusion", "memory"}, "forecast": {"loss", "error_by_step", "forecasts", "memory"}}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(task: str, finished: Callable[[str], Path]) -> Path:
    return finished(task)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_everything_a_run_leaves_behind_is_there_and_readable(task: str, folder: Path) -> None:
    for name in FIGURES[task]:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES[task]
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    assert report["name"] == {"cls": "sample_reviews", "forecast": "sample_climate"}[task]
    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["step"].tolist() == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH]
    assert history.notna().all(axis=None)
    assert {"val/loss", "train/loss", "train/lr", "seconds"} < set(history)
    assert (folder / "run.log").stat().st_size > 0
    unfinished = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
    assert not unfinished


def test_metrics_say_what_was_run_and_how_well_it_did(task: str, folder: Path) -> None:
    metrics = metrics_of(folder)
    keys = {"task", "model", "data", "seed", "backend", "parameters", "seconds", "epochs", "best_epoch", "test"}
    assert keys < set(metrics)
    assert (metrics["task"], metrics["seed"], metrics["epochs"]) == (task, 0, 3)
    remembered = metrics["memory"]["norm"]["forwards"]
    assert metrics["memory"]["lags"] == list(range(len(remembered)))
    assert remembered[0] == 1
    assert metrics["model"] == {"cls": "gru", "forecast": "lstm"}[task]
    assert metrics["data"].startswith("sample_")
    history = pd.read_csv(folder / "history.csv")
    best = history["val/f1"].argmax() if task == "cls" else history["val/mae"].argmin()
    assert metrics["best_epoch"] == best + 1
    weights = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    trained = [value for name, value in weights.items() if name.startswith("model.")]
    assert metrics["parameters"] == sum(value.numel() for value in trained)


def test_scores_can_be_computed_again_from_the_predictions(task: str, folder: Path) -> None:
    metrics, table = metrics_of(folder), pd.read_parquet(folder / "predictions.parquet")
    if task == "cls":
        labels = [row["class"] for row in metrics["per_class"]]
        options: Any = {"labels": labels, "average": "macro", "zero_division": 0}
        score = f1_score(table["target"], table["prediction"], **options)
        assert metrics["test"]["f1_macro"] == pytest.approx(score, abs=1e-6)
        assert metrics["test"]["accuracy"] == pytest.approx((table["target"] == table["prediction"]).mean(), abs=1e-6)
        assert (table["target"] == table["label"]).all()
        assert all(isinstance(text, str) for text in table["text"])
        parts = metrics["breakdown"]["length"].values()
        right = sum(part["accuracy"] * part["examples"] for part in parts)
        assert right == pytest.approx((table["target"] == table["prediction"]).sum())
        suspects = pd.read_csv(folder / "likely_label_errors.csv", encoding="utf-8-sig")
        assert list(suspects) == ["row", "text", "label", "suggested", "p_label", "p_suggested"]
        assert suspects["text"].tolist() == table.set_index("row")["text"][suspects["row"]].tolist()
        return
    errors = (table["prediction"] - table["target"]).astype(float)
    assert metrics["test"]["mae"] == pytest.approx(errors.abs().mean(), rel=1e-5)
    assert metrics["test"]["median_ae"] == pytest.approx(errors.abs().median(), rel=1e-5)
    assert metrics["test"]["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    assert metrics["test"]["mae_day2"] == pytest.approx(errors[table["step"] > 24].abs().mean(), rel=1e-5)
    assert metrics["windows"] * 48 == len(table)
    naive = (table["seasonal_naive"] - table["target"]).abs().mean()
    assert metrics["test"]["skill"] == pytest.approx(1 - errors.abs().mean() / naive, rel=1e-4)
    seasons = metrics["breakdown"]["season"].values()
    assert sum(part["mae"] * part["examples"] for part in seasons) == pytest.approx(
        metrics["test"]["mae"] * metrics["windows"], rel=1e-5
    )
    assert (table["first_target"] - table["origin"] == pd.Timedelta("1h")).all()


def test_tensorboard_reads_the_curves_the_scores_and_the_figures(task: str, folder: Path) -> None:
    scalars: dict[str, dict[int, float]] = {}
    images: set[str] = set()
    for path in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        images |= set(events.Tags()["images"])
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    history = pd.read_csv(folder / "history.csv")
    for name in ("train/loss", "val/loss"):
        assert [value for _, value in sorted(scalars[name].items())] == pytest.approx(history[name].tolist(), rel=1e-5)
    for name, value in metrics_of(folder)["test"].items():
        assert scalars[f"test/{name}"] == {3 * STEPS_PER_EPOCH: pytest.approx(value, rel=1e-5)}
    assert {f"test/{name}" for name in FIGURES[task]} <= images


def test_the_configuration_is_written_out_with_every_reference_filled_in(task: str, folder: Path) -> None:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "${" not in text
    assert "???" not in text
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("config", overrides=list(SMALL[task]))
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == plain(config)


def test_secrets_of_the_environment_are_in_no_file_and_in_no_output(folder: Path) -> None:
    files = [path for path in [*folder.rglob("*"), folder.parent / "output.txt"] if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def test_the_output_names_sample_data_for_what_it_is_and_warns_of_nothing(folder: Path) -> None:
    output = (folder.parent / "output.txt").read_text(encoding="utf-8")
    assert "SAMPLE" in output
    assert "Warning" not in output
    assert "Traceback" not in output
    assert str(folder) in output.replace("\n", "")


def test_a_checkpoint_predicts_without_its_data_what_the_run_predicted(task: str, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copy(folder / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    loaded = load_task(copied)
    assert not loaded.training
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    data = build_datamodule(config)  # pyright: ignore[reportArgumentType]
    answers = {
        int(number): answer.double().numpy()
        for batch in data.test_dataloader()
        for number, answer in zip(batch["index"], loaded.predict_step(batch, 0), strict=True)
    }
    table = pd.read_parquet(folder / "predictions.parquet")
    found = np.stack([answers[number] for number in sorted(answers)])
    if task == "cls":
        written = table[[name for name in table if str(name).startswith("p(")]].to_numpy()
    else:
        written = table["prediction"].to_numpy().reshape(len(found), -1)
    np.testing.assert_allclose(found, written, rtol=1e-4, atol=1e-5)


def test_names_in_brackets_are_shown_as_they_are_at_the_end_of_a_run() -> None:
    metrics = {
        **{"model": "[red]", "data": "[/sun]", "sample": False, "split": "test", "test": {"accuracy": 1.0}},
        **{"per_class": [{"class": "T [degC]", "f1": 1.0, "support": 3}], "fast_dev_run": False, "backend": "cpu"},
        **{"seconds": 1.0, "epochs": 1, "best_epoch": 1, "parameters": 5},
    }
    stream = io.StringIO()
    print_scores(metrics, Path("runs") / "[bold]", Console(file=stream, width=200))
    for name in ("[red]", "[/sun]", "T [degC]", str(Path("runs") / "[bold]")):
        assert name in stream.getvalue()
