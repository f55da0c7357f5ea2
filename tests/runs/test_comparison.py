from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from runs.comparison import SCORES, CompareSweep, summarise, write_comparison
from tests.runs.lab import SMALL, Lab, Outcome


def test_a_label_has_mean_and_standard_deviation_over_its_seeds() -> None:
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "label": ["gru", "lstm", "gru", "gru", "rnn"],
            "data": "sample_reviews",
            "seed": [0, 0, 1, 2, 0],
            **{name: generator.random(5) for name in SCORES["cls"]},
            "parameters": [10, 20, 10, 10, 30],
            "seconds_per_epoch": generator.random(5),
            "best_epoch": [1, 2, 2, 4, 5],
        }
    )
    table = summarise(rows, SCORES["cls"])
    assert table["label"].tolist() == ["gru", "lstm", "rnn"]
    assert table["runs"].tolist() == [3, 1, 1]
    for score in SCORES["cls"]:
        values = rows[score].to_numpy()
        assert table[score].tolist() == pytest.approx([values[[0, 2, 3]].mean(), values[1], values[4]])
        deviation = np.sqrt(((values[[0, 2, 3]] - values[[0, 2, 3]].mean()) ** 2).sum() / 2)
        assert table[f"{score}_std"][0] == pytest.approx(deviation)
        assert table[f"{score}_std"][1:].isna().all()
    assert table["best_epoch"].tolist() == pytest.approx([7 / 3, 2, 5])
    assert table["parameters"].tolist() == [10, 20, 30]


def sweep(lab: Lab, folder: Path) -> Outcome:
    words = [word for word in SMALL["forecast"] if not word.startswith("model=")]
    words += ["model=rnn,gru,cell", "seed=0,1", "trainer.max_epochs=1", "logger=none", f"hydra.sweep.dir={folder}"]
    return lab.run("-m", *words)


@pytest.fixture(scope="module")
def swept(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Two models and, without a cell, a model that can not be built, each from two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, sweep(lab, folder)


def metrics_in(folder: Path) -> list[dict]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/metrics.json"))]


def test_a_sweep_finishes_its_other_runs_when_some_fail_and_says_which(swept: tuple[Path, Outcome]) -> None:
    folder, outcome = swept
    assert outcome.code == 1, outcome.output
    assert "Traceback" not in outcome.output
    assert sorted((run["model"], run["seed"]) for run in metrics_in(folder)) == [
        ("gru", 0),
        ("gru", 1),
        ("rnn", 0),
        ("rnn", 1),
    ]
    states = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*/status.json")}
    failed = {name for name, status in states.items() if status["state"] == "failed"}
    assert len(states) == 6
    assert {name.partition("_")[2] for name in failed} == {"forecast_cell_seed0", "forecast_cell_seed1"}
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    for name in failed:
        assert f"FAILED {name}" in text
        assert name in outcome.output
    assert "model.encoder.cell._target_ is missing" in text
    assert "4 of 6 runs finished" in outcome.output


def test_the_comparison_of_a_sweep_is_that_of_its_runs(swept: tuple[Path, Outcome]) -> None:
    folder, _ = swept
    table = pd.read_csv(folder / "comparison.csv").set_index("label")
    assert sorted(table.index) == ["gru", "rnn"]
    for model in table.index:
        runs = [run for run in metrics_in(folder) if run["model"] == model]
        assert table["runs"][model] == 2
        for score in SCORES["forecast"]:
            values = [run["test"][score] for run in runs]
            assert table[score][model] == pytest.approx(np.mean(values))
            assert table[f"{score}_std"][model] == pytest.approx(np.std(values, ddof=1))
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert f"{table['mae']['gru']:.4f} ± {table['mae_std']['gru']:.4f}" in text
    assert "built-in sample data, not a real data set" in text
    for suffix in (".png", ".svg"):
        assert (folder / f"learning_curves{suffix}").stat().st_size > 1000


def test_a_sweep_started_again_keeps_what_is_finished(lab: Lab, swept: tuple[Path, Outcome]) -> None:
    folder, _ = swept
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    table = pd.read_csv(folder / "comparison.csv")
    outcome = sweep(lab, folder)
    assert outcome.code == 1
    assert outcome.output.count("finished already") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")} == before
    pd.testing.assert_frame_equal(pd.read_csv(folder / "comparison.csv"), table)


def test_a_run_that_was_prolonged_and_then_stopped_is_not_compared(swept: tuple[Path, Outcome], tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(path.parent, tmp_path / path.parent.name)) for path in swept[0].glob("*/metrics.json")]
    status = json.loads((runs[0] / "status.json").read_text(encoding="utf-8"))
    (runs[0] / "status.json").write_text(json.dumps({**status, "state": "running"}), encoding="utf-8")
    write_comparison(tmp_path, runs)
    assert pd.read_csv(tmp_path / "comparison.csv")["runs"].sum() == len(runs) - 1
    assert f"FAILED {runs[0].name}: running" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_train_together_only_the_first_compares(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert (tmp_path / "comparison.md").exists() == (rank == 0)


def test_a_sweep_without_any_finished_run_is_still_reported(tmp_path: Path) -> None:
    run = tmp_path / "0_cls_gru_seed0"
    run.mkdir()
    status = {"state": "failed", "overrides": ["seed=0"], "error": "no room", "time": ""}
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    write_comparison(tmp_path, [run])
    assert "FAILED 0_cls_gru_seed0: failed: no room" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert not (tmp_path / "comparison.csv").exists()
