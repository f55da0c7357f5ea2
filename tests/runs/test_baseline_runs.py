from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runs.build import build_datamodule, load_task
from tests.runs.lab import SMALL, Lab

BASELINES = {
    "cls": ("tfidf_svm", "tfidf_nb"),
    "forecast": ("persistence", "seasonal_naive", "climatology", "ridge", "lightgbm"),
}
PAIRS = [(task, model) for task, models in BASELINES.items() for model in models]


def words(task: str, model: str) -> list[str]:
    settings = [word for word in SMALL[task] if not word.startswith(("model=", "model."))]
    return [*settings, f"model={model}", *(["model.baseline.rounds=3"] if model == "lightgbm" else [])]


@pytest.fixture(scope="module")
def fitted(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folders: dict[str, Path] = {}

    def run_once(task: str, model: str) -> Path:
        if model not in folders:
            folder = tmp_path_factory.mktemp("baseline") / model
            outcome = lab.run(*words(task, model), f"hydra.run.dir={folder}")
            assert outcome.code == 0, outcome.output
            assert "fitted in" in outcome.output
            assert "Warning" not in outcome.output
            folders[model] = folder
        return folders[model]

    return run_once


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_a_baseline_leaves_the_folder_of_a_run(task: str, model: str, fitted: Callable[[str, str], Path]) -> None:
    folder = fitted(task, model)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["task"], metrics["model"], metrics["epochs"], metrics["backend"]) == (task, model, 0, None)
    assert {"accuracy", "f1_macro"} <= metrics["test"].keys() or {"mae", "skill"} <= metrics["test"].keys()
    for name in ("config.yaml", "data_report.json", "history.csv", "predictions.parquet", "checkpoints/best.ckpt"):
        assert (folder / name).exists(), name
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
    if model == "seasonal_naive":
        assert metrics["test"]["skill"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_a_baseline_built_from_its_checkpoint_predicts_the_same(
    task: str, model: str, fitted: Callable[[str, str], Path]
) -> None:
    from omegaconf import OmegaConf

    folder = fitted(task, model)
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    data = build_datamodule(config)  # type: ignore[arg-type]
    rebuilt = load_task(folder / "checkpoints" / "best.ckpt")
    answers = np.concatenate([rebuilt.predict_step(batch, 0).numpy() for batch in data.test_dataloader()])
    kept = pd.read_parquet(folder / "predictions.parquet")
    if task == "cls":
        classes = [name for name in map(str, kept) if name.startswith("p(")]
        np.testing.assert_allclose(answers, kept[classes].to_numpy(), atol=1e-6)
    else:
        np.testing.assert_allclose(answers.flatten(), kept["prediction"], atol=1e-4)


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_a_baseline_passes_a_trial_run(task: str, model: str, lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*words(task, model), "trainer.fast_dev_run=true", f"hydra.run.dir={tmp_path / 'trial'}")
    assert outcome.code == 0, outcome.output
    assert not (tmp_path / "trial" / "checkpoints").exists()


def test_a_finished_baseline_is_not_fitted_again(lab: Lab, fitted: Callable[[str, str], Path]) -> None:
    folder = fitted("forecast", "ridge")
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert "is finished already" in outcome.output


def test_a_sweep_compares_baselines_with_networks_and_goes_on_when_started_again(lab: Lab, tmp_path: Path) -> None:
    settings = [word for word in SMALL["cls"] if not word.startswith(("model=", "model."))]
    sweep = ["-m", *settings, "model=tfidf_nb,fasttext_like,rnn", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}"]
    outcome = lab.run(*sweep)
    assert outcome.code == 0, outcome.output
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert table["label"].tolist() == ["tfidf_nb", "fasttext_like", "rnn"]
    first = tmp_path / "0_cls_tfidf_nb_seed0"
    status = json.loads((first / "status.json").read_text(encoding="utf-8"))
    (first / "status.json").write_text(json.dumps({**status, "state": "running"}), encoding="utf-8")
    (first / "metrics.json").unlink()  # as if it had been killed between its checkpoint and its scores
    again = lab.run(*sweep)
    assert again.code == 0, again.output
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "comparison.csv").drop(columns="seconds_per_epoch"),
        table.drop(columns="seconds_per_epoch"),
    )
