from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from runs.build import build_datamodule, load_task
from runs.checkpoints import read_checkpoint
from tests.runs.lab import SMALL, Lab

BASELINES = {
    "cls": ("tfidf_svm", "tfidf_nb"),
    "forecast": ("persistence", "seasonal_naive", "climatology", "ridge", "lightgbm"),
}
QUICK = ("tfidf_svm", "seasonal_naive", "ridge")
PAIRS = [
    pytest.param(task, model, marks=[] if model in QUICK else pytest.mark.exhaustive)
    for task, models in BASELINES.items()
    for model in models
]


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
    batches = list(data.test_dataloader())
    answers = np.concatenate([rebuilt.predict_step(batch, 0).numpy() for batch in batches])
    answers = answers[np.concatenate([batch["index"].numpy() for batch in batches]).argsort()]
    kept = pd.read_parquet(folder / "predictions.parquet")
    if task == "cls":
        classes = [name for name in map(str, kept) if name.startswith("p(")]
        np.testing.assert_allclose(answers, kept[classes].to_numpy(), atol=1e-6)
    else:
        np.testing.assert_allclose(answers.flatten(), kept["prediction"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_a_baseline_passes_a_trial_run(task: str, model: str, lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*words(task, model), "trainer.fast_dev_run=true", f"hydra.run.dir={tmp_path / 'trial'}")
    assert outcome.code == 0, outcome.output
    assert not (tmp_path / "trial" / "checkpoints").exists()


def test_a_finished_baseline_is_not_fitted_again(lab: Lab, fitted: Callable[[str, str], Path]) -> None:
    folder = fitted("forecast", "ridge")
    before = (folder / "metrics.json").read_bytes()
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert "is finished already" in outcome.output
    assert (folder / "metrics.json").read_bytes() == before


@pytest.mark.exhaustive
def test_a_baseline_that_was_chosen_on_the_validation_split_is_tested_as_it_is(lab: Lab, tmp_path: Path) -> None:
    for name, more in (("chosen", ["score_on=val"]), ("tested", [])):
        assert lab.run(*words("forecast", "ridge"), *more, f"hydra.run.dir={tmp_path / name}").code == 0
    weights = (tmp_path / "chosen" / "checkpoints" / "best.ckpt").read_bytes()
    outcome = lab.run(f"resume={tmp_path / 'chosen'}", "score_on=test")
    assert outcome.code == 0, outcome.output
    found, expected = (
        json.loads((tmp_path / name / "metrics.json").read_text(encoding="utf-8")) for name in ("chosen", "tested")
    )
    assert (found["test"], found["split"]) == (expected["test"], "test")
    assert (tmp_path / "chosen" / "checkpoints" / "best.ckpt").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["status", "no status"])
def test_an_interrupted_baseline_is_fitted_anew(kept: bool, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert lab.run(*words("forecast", "ridge"), f"hydra.run.dir={folder}").code == 0
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}), encoding="utf-8")
    (folder / "metrics.json").unlink()
    if not kept:  # it was damaged, and has been deleted
        (folder / "status.json").unlink()
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"] == metrics["test"]


@pytest.mark.exhaustive
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


@pytest.mark.parametrize("model", [pytest.param("tfidf_svm", marks=pytest.mark.slow), "rnn"])
def test_without_a_validation_nothing_is_calibrated_and_the_test_is_scored(
    model: str, lab: Lab, tmp_path: Path
) -> None:
    settings = ["trainer.limit_val_batches=0", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}"]
    outcome = lab.run(*words("cls", model), *settings)
    assert outcome.code == 0, outcome.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["temperature"] == 1
    assert metrics["best_score"] is None


def test_scores_can_be_the_validations(lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*SMALL["cls"], "score_on=val", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.output
    assert "Validation scores of gru" in outcome.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert metrics["split"] == "val"
    assert metrics["test"]["accuracy"] == pytest.approx(history["val/accuracy"].iloc[-1])


@pytest.mark.parametrize(("averaging", "lr"), [pytest.param(None, 2, marks=pytest.mark.slow), (0.9, 0.3)])
@pytest.mark.slow
def test_a_run_with_quantiles_keeps_its_calibration_in_its_checkpoint(
    averaging: float | None, lr: float, lab: Lab, tmp_path: Path
) -> None:
    from omegaconf import OmegaConf

    folder = tmp_path / "run"
    words = [
        "task.quantiles=[0.1,0.5,0.9]",
        f"optimizer.lr={lr}",
        "trainer.max_epochs=6",
    ]  # so fast that the best epoch need not be the last
    words += [] if averaging is None else [f"callbacks.averaging={averaging}"]
    outcome = lab.run(*SMALL["forecast"], *words, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.output
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {"crps", "coverage_80", "width_80"} <= metrics["test"].keys()
    kept = pd.read_parquet(folder / "predictions.parquet")
    data = build_datamodule(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))  # type: ignore[arg-type]
    task = load_task(folder / "checkpoints" / "best.ckpt")
    with_shifts = np.concatenate([task.predict_step(batch, 0).numpy() for batch in data.test_dataloader()])
    assert np.abs(task.shifts.numpy()).max() > 0  # type: ignore[operator]
    np.testing.assert_allclose(with_shifts.reshape(-1, 3), kept[["q0.1", "q0.5", "q0.9"]].to_numpy(), atol=1e-4)
    with torch.no_grad():  # what is kept is what was validated: of a run that averages its weights, the average
        missed = [batch["targets"][..., None] - task(batch) for batch in data.val_dataloader()]
    low, median, high = torch.cat(missed).unbind(dim=-1)
    assert metrics["best_score"] == pytest.approx(median.abs().mean().item(), rel=1e-5)
    expected = [np.quantile(low, 0.1, axis=0), np.zeros(48), np.quantile(high, 0.9, axis=0)]
    np.testing.assert_allclose(task.shifts.numpy(), np.stack(expected, axis=1), atol=1e-4)  # type: ignore[operator]
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert ("averaging_state" in last) == (averaging is not None)
