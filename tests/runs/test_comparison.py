from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from runs.comparison import SCORES, compare_runs, summarise, write_comparison
from runs.sweep import CompareSweep
from tasks.forecasting import quantile_crps
from tests.runs import made
from tests.runs.lab import SMALL, Lab, Outcome


@pytest.fixture(autouse=True)
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take their time, and have tests of their own; a sweep of real runs writes one all the same."""
    monkeypatch.setattr("runs.page.write_page", lambda *_: None)


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
    warned, _, rest = outcome.output.partition("Launching 6 jobs")
    assert re.findall(r"job (\d) will fail: model\.encoder\.cell\._target_ is missing", warned) == ["4"]
    assert "will fail" not in rest
    assert "4 of 6 runs finished" in outcome.output


@pytest.mark.parametrize(
    "how",
    [
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("_exit 0",)),
        *(
            pytest.param(how, marks=pytest.mark.exhaustive)
            for how in ("generator", "kill", "_exit 3", "exit", "memory", "recursion")
        ),
    ],
)
def test_a_sweep_comes_to_its_end_whatever_one_of_its_jobs_does(how: str, lab: Lab, tmp_path: Path) -> None:
    """A job that ends the process is given up by the third start of the same command; any other at once."""
    folder = tmp_path / "sweep"
    extra = f"callbacks.extra=[{{_target_: tests.runs.killer.Fatal, how: '{how}', seed: 1}}]"
    words = [*SMALL["forecast"], "seed=0,1,2,3", "trainer.max_epochs=1", "logger=none", f"hydra.sweep.dir={folder}"]
    is_fatal = how.partition(" ")[0] in ("kill", "_exit")
    for start in range(3 if is_fatal else 1):
        outcome = lab.run("-m", *words, extra, "trust=[tests.runs.killer]")
        if is_fatal and start < 2:
            assert outcome.code == {"kill": -9, "_exit 0": 0, "_exit 3": 3}[how]
            assert len(metrics_in(folder)) == 1
    assert outcome.code == 1, outcome.output
    assert [run["seed"] for run in metrics_in(folder)] == [0, 2, 3]
    (status,) = (
        json.loads((run / "status.json").read_text(encoding="utf-8")) for run in folder.glob("1_*") if run.is_dir()
    )
    assert status["state"] == "failed"
    assert "3 of 4 runs finished" in outcome.output
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert ("has ended the process of the sweep 2 times" in text) == is_fatal
    assert "FAILED 1_" in text


@pytest.mark.exhaustive
def test_a_run_that_comes_further_between_kills_is_never_given_up(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = [*SMALL["forecast"], "seed=0,1", "trainer.max_epochs=2", "logger=none", f"hydra.sweep.dir={folder}"]
    extra = "callbacks.extra=[{_target_: tests.runs.killer.Fatal, how: kill, seed: 0, steps: 6}]"
    codes = []
    while not codes or codes[-1] == -9:
        codes.append(lab.run("-m", *words, extra, "trust=[tests.runs.killer]").code)
    assert codes == [-9, -9, -9, -9, 0]  # 20 steps, of which each start takes 6, and 2 again


def test_the_comparison_of_a_sweep_is_that_of_its_runs(swept: tuple[Path, Outcome]) -> None:
    folder, _ = swept
    table = pd.read_csv(folder / "comparison.csv").set_index("label")
    assert list(table.index) == ["rnn", "rnn, 2 seeds averaged", "gru", "gru, 2 seeds averaged"]
    for model in ("rnn", "gru"):
        runs = [run for run in metrics_in(folder) if run["model"] == model]
        assert table["runs"][model] == 2
        for score in SCORES["forecast"]:
            values = [run["test"][score] for run in runs]
            assert table[score][model] == pytest.approx(np.mean(values))
            assert table[f"{score}_std"][model] == pytest.approx(np.std(values, ddof=1))
        runs = [run for run in sorted(folder.glob(f"*_{model}_*")) if (run / "metrics.json").exists()]
        both = [pd.read_parquet(run / "predictions.parquet") for run in runs]
        errors = (both[0]["prediction"] + both[1]["prediction"]) / 2 - both[0]["target"]
        assert table["mae"][f"{model}, 2 seeds averaged"] == pytest.approx(errors.abs().mean())
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "mae by season" in text
    assert f"{table['mae']['gru']:.4f} ± {table['mae_std']['gru']:.4f}" in text
    assert "built-in sample data, not a real data set" in text
    for suffix in (".png", ".svg"):
        assert (folder / f"learning_curves{suffix}").stat().st_size > 1000
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "2 of 6 runs did not finish" in page
    assert "Built-in sample data" in page


@pytest.mark.exhaustive
def test_a_sweep_started_again_keeps_what_is_finished(lab: Lab, swept: tuple[Path, Outcome]) -> None:
    folder, _ = swept
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    table = pd.read_csv(folder / "comparison.csv")
    outcome = sweep(lab, folder)
    assert outcome.code == 1
    assert outcome.output.count("finished already") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")} == before
    pd.testing.assert_frame_equal(pd.read_csv(folder / "comparison.csv"), table)


@pytest.mark.exhaustive
def test_a_sweep_started_again_goes_on_behind_a_run_with_a_damaged_status(
    lab: Lab, swept: tuple[Path, Outcome], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(swept[0], tmp_path / "again"))
    first = folder / "0_forecast_rnn_seed0"
    (first / "status.json").write_text('{"state": "fin', encoding="utf-8")
    outcome = sweep(lab, folder)
    assert outcome.code == 1
    assert f"error in {first.name}: {first / 'status.json'} is damaged" in outcome.output
    assert "Traceback" not in outcome.output
    assert outcome.output.count("is finished already") == 3
    assert f"FAILED {first.name}: failed: damaged: status.json" in (folder / "comparison.md").read_text("utf-8")


def test_a_run_that_was_prolonged_and_then_stopped_is_not_compared(swept: tuple[Path, Outcome], tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(path.parent, tmp_path / path.parent.name)) for path in swept[0].glob("*/metrics.json")]
    status = json.loads((runs[0] / "status.json").read_text(encoding="utf-8"))
    (runs[0] / "status.json").write_text(json.dumps({**status, "state": "running"}), encoding="utf-8")
    write_comparison(tmp_path, runs)
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert table.loc[~table["label"].str.contains("averaged"), "runs"].sum() == len(runs) - 1
    assert f"FAILED {runs[0].name}: running" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", b""),
        ("config.yaml", b""),
        ("metrics.json", b"[1, 2]"),
        ("metrics.json", b'{"task": "forecast", "mo'),
        ("predictions.parquet", b"PAR1, and the rest is lost"),
    ],
)
def test_a_run_with_a_damaged_file_is_listed_and_the_others_are_compared(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runs.comparison._draw", lambda *_: None)
    runs = [forecast_run(tmp_path / f"{seed}_gru", "gru", seed, [], "2016-01-01", 1.0) for seed in (0, 1, 2)]
    (runs[1] / name).write_bytes(content)
    write_comparison(tmp_path, runs)
    assert pd.read_csv(tmp_path / "comparison.csv")["runs"].tolist() == [2, 2]
    assert f"FAILED 1_gru: failed: damaged: {name}" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_that_train_together_only_the_first_compares(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr("runs.job.failures", [])
    (tmp_path / "0_cls_gru").mkdir()
    status = {"state": "failed", "overrides": [], "error": "no room", "time": ""}
    (tmp_path / "0_cls_gru" / "status.json").write_text(json.dumps(status), encoding="utf-8")
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert (tmp_path / "comparison.md").exists() == (rank == 0)


def test_a_run_that_failed_in_another_process_fails_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.job.failures", failures := ["1_cls_gru"])
    for name in ("0_cls_gru", "1_cls_gru"):
        (tmp_path / name).mkdir()
        status = {"state": "failed", "overrides": [], "error": "no room", "time": ""}
        (tmp_path / name / "status.json").write_text(json.dumps(status), encoding="utf-8")
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert failures == ["1_cls_gru", "0_cls_gru"]


def test_a_comparison_that_can_not_be_made_fails_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runs.job.failures", failures := [])
    monkeypatch.setattr("runs.comparison.write_comparison", lambda *_: 1 / 0)
    (tmp_path / "0_cls_gru").mkdir()
    status = {"state": "failed", "overrides": [], "error": "no room", "time": ""}
    (tmp_path / "0_cls_gru" / "status.json").write_text(json.dumps(status), encoding="utf-8")
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert failures == ["comparison"]
    assert f"the comparison failed; the runs themselves are in {tmp_path}" in caplog.text


def test_a_sweep_without_a_job_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runs.job.failures", failures := [])
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert failures == ["no job"]
    assert "the sweep has no job" in caplog.text


def test_a_sweep_without_any_finished_run_is_still_reported(tmp_path: Path) -> None:
    run = tmp_path / "0_cls_gru_seed0"
    run.mkdir()
    status = {"state": "failed", "overrides": ["seed=0"], "error": "no room", "time": ""}
    (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
    write_comparison(tmp_path, [run])
    assert "FAILED 0_cls_gru_seed0: failed: no room" in (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert not (tmp_path / "comparison.csv").exists()


def forecast_run(
    folder: Path,
    model: str,
    seed: int,
    overrides: list[str],
    start: str,
    error: float,
    settings: dict[str, Any] | None = None,
) -> Path:
    """A finished run whose every forecast is wrong by `error`; its command line doesn't say its `settings`."""
    folder.mkdir()
    origins = pd.date_range(start, periods=24 * 7 * 30, freq="h")
    table = pd.DataFrame({"origin": origins, "step": 1, "target": 0.0, "prediction": error, "seasonal_naive": 4.0})
    table.to_parquet(folder / "predictions.parquet")
    metrics = {
        **{"task": "forecast", "model": model, "data": "d", "sample": False, "split": "test", "seed": seed},
        **{"backend": None if model == "ridge" else "cpu", "parameters": 5, "best_epoch": 1, "seconds": 1, "epochs": 1},
        "test": dict.fromkeys(SCORES["forecast"], abs(error)),
        "breakdown": {"year": {start[:4]: {"mae": abs(error), "examples": len(table)}}},
    }
    words = [f"model={model}", f"seed={seed}", *overrides]
    for name, content in {
        "metrics": metrics,
        "status": {"state": "finished", "overrides": words, "error": None, "time": ""},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"task": {"monitor": "val/mae"}, "data": {"split": "date", "test_until": "1y"}}
    changed = OmegaConf.merge(config, OmegaConf.from_dotlist(overrides), settings or {})
    OmegaConf.save(changed, folder / "config.yaml")
    return folder


def test_a_row_is_tested_against_the_baseline_with_the_same_other_settings(tmp_path: Path) -> None:
    runs = [
        forecast_run(tmp_path / f"{model}{step}{seed}", model, seed, [f"data.step={step}"], start, error * (1 + seed))
        for step, start in (("1h", "2015-01-01"), ("2h", "2016-01-01"))
        for model, error in (("gru", -1.0), ("ridge", 2.0))
        for seed in ((0, 1) if model == "gru" else (0,))
    ]
    write_comparison(tmp_path, runs)
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("label")
    for step in ("1h", "2h"):  # -1 and -2 against 2, of other hours for each step
        assert table["difference"][f"gru data.step={step}"].startswith("-0.500 [")
        assert table["mae"][f"gru data.step={step}, 2 seeds averaged"] == pytest.approx(1.5)
    assert pd.isna(table["difference"]["ridge data.step=1h"])
    assert table["difference"]["ridge data.step=2h"] == "other examples"
    assert "against ridge with the same settings" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_the_years_of_a_backtest_share_a_row_and_are_told_apart_below_it(tmp_path: Path) -> None:
    runs = [
        forecast_run(tmp_path / f"{model}{year}", model, 0, [f"data.test_from={year}-01-01"], f"{year}-01-01", error)
        for year, error in ((2015, 1.0), (2016, 2.0))
        for model in ("ridge", "gru")
    ]
    write_comparison(tmp_path, runs)
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert table["label"].tolist() == ["ridge", "gru"]  # one seed: nothing to average
    assert table["mae"].tolist() == [1.5, 1.5]
    assert table["runs"].tolist() == [2, 2]
    assert table["difference"][1].startswith("+0.000 [")
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    by_year = text[text.index("mae by year") :]
    assert [line.split()[1::2] for line in by_year.splitlines()[4:6]] == [
        ["2015", "1.0000", "1.0000"],
        ["2016", "2.0000", "2.0000"],
    ]


def test_forecasts_with_quantiles_have_their_scores_and_so_have_their_averages(tmp_path: Path) -> None:
    runs = [made.forecast_run(tmp_path / f"gru{seed}", "gru", seed, quantiles=True) for seed in (0, 1)]
    runs.append(made.forecast_run(tmp_path / "ridge", "ridge"))
    write_comparison(tmp_path, runs)
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("label")
    of_runs = [json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"] for run in runs[:2]]
    for name in ("crps", "coverage_80"):
        assert table[name]["gru"] == pytest.approx(np.mean([each[name] for each in of_runs]))
        assert np.isnan(table[name]["ridge"])
    first, second = (pd.read_parquet(run / "predictions.parquet") for run in runs[:2])
    levels = [0.1, 0.25, 0.5, 0.75, 0.9]
    names = [f"q{level}" for level in levels]
    mean = torch.tensor((first[names] + second[names]).to_numpy() / 2)
    crps = quantile_crps(mean[:, None], torch.tensor(first["target"].to_numpy())[:, None], levels).mean().item()
    assert table["crps"]["gru, 2 seeds averaged"] == pytest.approx(crps, rel=1e-5)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert " nan " not in text


def test_the_crps_of_other_levels_is_not_put_beside_it(tmp_path: Path) -> None:
    for seed, levels in enumerate(({"0.1": 0.1, "0.5": 0.5, "0.9": 0.9}, {"0.5": 0.5})):
        run = made.forecast_run(tmp_path / str(seed), "gru", seed, quantiles=True)
        made.rewrite(run / "metrics.json", share_below_quantile=levels)
    (found,) = compare_runs(sorted(tmp_path.iterdir())).tasks
    assert "crps" not in found.table
    assert "coverage_80" in found.table


def test_the_share_of_truths_in_the_interval_is_told_by_day(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = made.forecast_run(tmp_path / str(seed), "gru", seed, quantiles=True)
        days = {f"day{day}": {"coverage": 0.7 + day / 10 - seed / 100, "width": 6.0} for day in (1, 2)}
        made.rewrite(run / "metrics.json", intervals={"80": days, "50": days})
    (found,) = compare_runs(sorted(tmp_path.iterdir())).tasks
    table = found.parts["truths in the 80% interval by day"]
    assert table["gru"].to_dict() == pytest.approx({"day 1": 0.795, "day 2": 0.895})


def test_without_a_baseline_rows_are_tested_against_the_first_one(tmp_path: Path) -> None:
    bases = {"mean": 1.0, "last": 0.5, "climatology": 2.0}
    runs = [
        forecast_run(tmp_path / f"{number}_gru", "gru", 0, [f"task.base={base}"], "2016-01-01", error)
        for number, (base, error) in enumerate(bases.items())
    ]
    write_comparison(tmp_path, runs)
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("label")
    assert pd.isna(table["difference"]["gru task.base=mean"])
    assert table["difference"]["gru task.base=last"].startswith("-0.500 [")
    assert table["difference"]["gru task.base=climatology"].startswith("+1.000 [")
    assert "against gru task.base=mean" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_a_trial_is_called_one(tmp_path: Path) -> None:
    runs = [made.cls_run(tmp_path / name, name) for name in ("gru", "lstm")]
    made.rewrite(runs[1] / "metrics.json", fast_dev_run=True)
    write_comparison(tmp_path, runs)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "**lstm: a trial of single batches (fast_dev_run); its scores mean nothing.**" in text


def test_a_network_without_recurrence_is_a_baseline_too(tmp_path: Path) -> None:
    runs = [made.cls_run(tmp_path / model, model) for model in ("gru", "fasttext_like")]
    made.rewrite(runs[1] / "metrics.json", backend="none")
    (found,) = compare_runs(runs).tasks
    assert found.reference == "fasttext_like"


def test_seeds_of_other_examples_are_neither_averaged_nor_tested_but_compared(tmp_path: Path) -> None:
    for model in ("ridge", "gru"):
        for seed, start in enumerate(("2014-01-01", "2015-01-01")):
            if (model, seed) != ("ridge", 1):
                forecast_run(tmp_path / f"{model}{seed}", model, seed, ["data.step=1h"], start, 1.0)
    write_comparison(tmp_path, sorted(tmp_path.iterdir()))
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("label")
    assert list(table.index) == ["gru", "ridge"]
    assert table["difference"]["gru"] == "other examples"


def test_runs_that_older_code_has_finished_are_compared_all_the_same(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = forecast_run(tmp_path / f"{seed}_gru", "gru", seed, [], "2016-01-01", 1.0 + seed)
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        del metrics["breakdown"]
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        pd.read_parquet(run / "predictions.parquet").drop(columns="seasonal_naive").to_parquet(
            run / "predictions.parquet"
        )
    write_comparison(tmp_path, sorted(tmp_path.iterdir()))
    table = pd.read_csv(tmp_path / "comparison.csv").set_index("label")
    assert table["mae"].tolist() == pytest.approx([1.5, 1.5])
    assert pd.isna(table["skill"]["gru, 2 seeds averaged"])


def test_a_part_counts_with_its_examples(tmp_path: Path) -> None:
    for number, parts in enumerate([{"2015": (9.0, 1), "2016": (1.0, 99)}, {"2015": (3.0, 99)}]):
        run = forecast_run(tmp_path / f"{number}_gru", "gru", number, [], f"{2016 - number}-01-01", 1.0)
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        metrics["breakdown"] = {"year": {year: {"mae": mae, "examples": n} for year, (mae, n) in parts.items()}}
        (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_comparison(tmp_path, sorted(tmp_path.iterdir()))
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    lines = [line.split()[1::2] for line in text[text.index("mae by year") :].splitlines()[4:6]]
    assert lines == [["2015", "3.0600"], ["2016", "1.0000"]]


def labels_of(folder: Path, *runs: tuple[list[str], dict[str, Any]]) -> list[str]:
    """The labels of a model's runs by what their command lines say and what they don't, with a seed each."""
    made = [
        forecast_run(folder / str(seed), "gru", seed, words, "2016-01-01", 1.0, settings)
        for seed, (words, settings) in enumerate(runs)
    ]
    (found,) = compare_runs(made).tasks
    return found.rows["label"].tolist()


RECIPE = ["experiment=best"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (
            (RECIPE, {"optimizer": {"lr": 0.1}, "task": {"quantiles": [0.5]}}),
            (RECIPE, {"optimizer": {"lr": 0.2}, "task": {"quantiles": [0.5, 0.9]}}),
            [
                "gru task.quantiles=[0.5] optimizer.lr=0.1",
                "gru task.quantiles=[0.5, 0.9] optimizer.lr=0.2",
            ],
        ),
        (([], {"scheduler": None}), ([], {"scheduler": "cosine"}), ["gru scheduler=null", "gru scheduler=cosine"]),
        (([], {}), ([], {"task": {"tracking": 0.1}}), ["gru", "gru task.tracking=0.1"]),
        (([], {}), ([], {"trainer": {"extra": {"profiler": "simple"}}}), ["gru", "gru trainer.extra.profiler=simple"]),
        (([], {}), ([], {"task": {"tracking": 0.0}}), ["gru", "gru"]),  # an option that older code didn't have
        (([], {"optimizer": {"lr": 0.1}}), (["optimizer.lr=0.1"], {}), ["gru", "gru"]),
        (([], {"optimizer": {"lr": 0.1}}), (["optimizer.lr=0.2"], {}), ["gru", "gru optimizer.lr=0.2"]),
        (
            (
                [],
                {
                    "seed": 0,
                    "data": {"seed": 0, "cache_dir": "a"},
                    "logger": None,
                    "trainer": {"enable_progress_bar": True},
                },
            ),
            (
                [],
                {
                    "seed": 1,
                    "data": {"seed": 1, "cache_dir": "b"},
                    "logger": {"version": ""},
                    "trainer": {"enable_progress_bar": False},
                },
            ),
            ["gru", "gru"],
        ),
    ],
)
def test_only_runs_of_the_same_configuration_share_a_label(
    one: Any, other: Any, expected: list[str], tmp_path: Path
) -> None:
    assert labels_of(tmp_path, one, other) == expected


def test_runs_that_the_command_line_tells_apart_need_no_more_words_than_it_has(tmp_path: Path) -> None:
    recipes = [(["experiment=best"], {"optimizer": {"lr": 0.1}}), (["experiment=plain"], {"optimizer": {"lr": 0.2}})]
    assert labels_of(tmp_path, *recipes) == ["gru experiment=best", "gru experiment=plain"]


def test_a_label_says_what_a_run_has_come_to_not_what_it_began_with(tmp_path: Path) -> None:
    longer = {"trainer": {"max_epochs": 10}}
    write_comparison(
        tmp_path,
        [
            forecast_run(tmp_path / "a", "gru", 0, ["trainer.max_epochs=5"], "2016-01-01", 1.0, longer),
            forecast_run(tmp_path / "b", "gru", 0, ["trainer.max_epochs=20"], "2016-01-01", 2.0),
        ],
    )
    labels = pd.read_csv(tmp_path / "comparison.csv")["label"].tolist()
    assert labels == ["gru trainer.max_epochs=10", "gru trainer.max_epochs=20"]


def test_the_choice_of_a_group_stays_as_it_was_said(tmp_path: Path) -> None:
    runs = [
        forecast_run(tmp_path / name, "gru", 0, [f"scheduler={name}"], "2016-01-01", 1.0, {"scheduler": schedule})
        for name, schedule in (("none", None), ("cosine", {"warmup": 0.05}))
    ]
    write_comparison(tmp_path, runs)
    labels = pd.read_csv(tmp_path / "comparison.csv")["label"].tolist()
    assert labels == ["gru scheduler=none", "gru scheduler=cosine"]


@pytest.mark.slow
def test_a_job_that_was_refused_is_known_by_the_command_that_it_ran_with_at_last(lab: Lab, tmp_path: Path) -> None:
    status = tmp_path / "0_cls_gru_seed0" / "status.json"
    words = ("-m", *SMALL["cls"], "logger=none", f"hydra.sweep.dir={tmp_path}")
    for rate in ("10000", "20000"):
        assert lab.run(*words, f"optimizer.lr={rate}").code == 1
        refused = json.loads(status.read_text(encoding="utf-8"))
        assert f"optimizer.lr={rate}" in refused["overrides"]
        assert f"optimizer.lr={rate}.0 is not allowed" in refused["error"]
    outcome = lab.run(*words, "optimizer.lr=1e-2", "trainer.fast_dev_run=true")
    assert outcome.code == 0, outcome.output
    finished = json.loads(status.read_text(encoding="utf-8"))
    assert finished["state"] == "finished"
    assert {word for word in finished["overrides"] if "optimizer.lr" in word} == {"optimizer.lr=0.01"}


def test_lists_in_labels_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("data.features=[a,b]", "data.features=[/c]")
    runs = [forecast_run(tmp_path / str(at), "gru", 0, [word], "2016-01-01", 1.0) for at, word in enumerate(words)]
    write_comparison(tmp_path, runs)
    printed = capsys.readouterr().out
    assert "[a,b]" in printed
    assert "[/c]" in printed


def test_a_copy_of_a_run_counts_once_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [forecast_run(tmp_path / f"{seed}_gru", "gru", seed, [], "2016-01-01", 1.0 + seed) for seed in (0, 1)]
    runs.append(Path(shutil.copytree(runs[0], tmp_path / "copy")))
    (found,) = compare_runs(runs).tasks
    assert list(found.metrics) == runs[:2]
    assert found.table["mae"].tolist() == pytest.approx([1.5, 1.5])
    assert f"{tmp_path / 'copy'}: left out" in caplog.text


def test_the_runs_of_a_sweep_are_in_the_order_of_their_jobs(tmp_path: Path) -> None:
    for number in range(11):
        forecast_run(tmp_path / f"{number}_gru", "gru", 0, [f"task.dropout=0.{number}"], "2016-01-01", 1.0)
    CompareSweep().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert table["label"].tolist() == [f"gru task.dropout=0.{number}" for number in range(11)]
