from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from runs import schema
from runs.checks import validate
from runs.results import ARCHITECTURES, _analysis, _section, _sweep, run
from runs.schema import ConfigError, ResultsConfig
from tests.runs.lab import ROOT, SMALL, Lab, Outcome

STUDIES = yaml.safe_load((ROOT / "conf" / "results.yaml").read_text(encoding="utf-8"))["studies"]


def write_results(lab: Lab, folder: Path, *words: str) -> Outcome:
    """Two small studies of one's own, one of them broken; the project's are not run."""
    common = " ".join(word for word in SMALL["cls"] if not word.startswith("model="))
    studies = {
        "small": f"{common} model=rnn,gru,lstm,bilstm seed=0,1 trainer.max_epochs=1 logger=none",
        "broken": f"{common} model=cell",
    }
    # As conf/results.yaml says it.
    own = [f'+studies.{name}={{title: "Own {name}", command: "{command}"}}' for name, command in studies.items()]
    return lab.run("-cn", "results", *own, f"folder={folder}/studies", f"output={folder}/RESULTS.md", *words)


@pytest.fixture(scope="module")
def written(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("results")
    return folder, write_results(lab, folder, "only=[broken,small]")


@pytest.mark.exhaustive
def test_a_study_that_fails_leaves_the_others_and_the_page_and_an_exit_code(written: tuple[Path, Outcome]) -> None:
    folder, outcome = written
    assert outcome.code == 1, outcome.output
    assert "failed: broken" in outcome.output
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "## Own small" in page
    assert "## Own broken" not in page


@pytest.mark.exhaustive
def test_the_page_holds_commands_tables_figures_and_what_the_numbers_say(written: tuple[Path, Outcome]) -> None:
    folder, _ = written
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    (small,) = (folder / "studies").glob("small-*")
    rows = pd.read_csv(small / "comparison.csv").set_index("label")
    assert "python run.py -m task=cls data=sample_reviews" in page
    assert (small / "comparison.md").read_text(encoding="utf-8").strip() in page
    assert (folder / "docs" / "results" / "small.svg").exists()
    assert "](docs/results/small.svg)" in page
    gain = rows["f1_macro"]["gru"] - rows["f1_macro"]["rnn"]
    assert f"f1_macro changes by {gain:+.4f} (standard error" in page
    assert "Fewest epochs to the best validation score: RNN, GRU, LSTM, BiLSTM." in page  # each was trained for one
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in small.glob("*_gru_*/metrics.json")]
    recalls = pd.DataFrame([{each["class"]: each["recall"] for each in run["per_class"]} for run in runs]).mean()
    assert f"{recalls.min():.3f}, " in page
    metrics = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(small.glob("*/metrics.json"))]
    rows.loc["fasttext_like"] = rows.loc["rnn"]
    assert re.search(rf"\*\*Recurrence\.\*\* .*{gain:+.4f} \(.*\) with the GRU", _analysis(rows, metrics, "cls"))
    assert "Recurrence" not in page


@pytest.mark.exhaustive
def test_what_has_finished_is_not_run_again(lab: Lab, written: tuple[Path, Outcome]) -> None:
    folder, _ = written
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    assert len(before) == 8
    outcome = write_results(lab, folder, "only=[small]")
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("finished already") == 8
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")} == before


@pytest.mark.exhaustive
def test_a_study_whose_runs_are_elsewhere_keeps_its_section_while_its_command_is_the_same(
    lab: Lab, written: tuple[Path, Outcome]
) -> None:
    folder, _ = written
    page = folder / "RESULTS.md"
    before = page.read_text(encoding="utf-8")
    section = before[before.index("## Own small") :]
    elsewhere = f"folder={folder}/elsewhere"
    outcome = write_results(lab, folder, "train=false", elsewhere)
    assert outcome.code == 0, outcome.output
    assert page.read_text(encoding="utf-8") == before
    page.write_text(before.replace("seed=0,1 ", "seed=0,1,2 "), encoding="utf-8")
    write_results(lab, folder, "train=false", elsewhere)
    assert section[:12] not in page.read_text(encoding="utf-8")
    elsewhere_too = before.rstrip() + "\n\n## Of another configuration\n\n```\npython run.py -m a\n```\n\nkept\n"
    page.write_text(elsewhere_too, encoding="utf-8")
    write_results(lab, folder, "train=false", elsewhere)
    assert page.read_text(encoding="utf-8") == elsewhere_too
    page.write_text(before, encoding="utf-8")


def test_models_that_tie_are_all_named_and_gains_have_their_standard_error() -> None:
    columns = ["parameters", "best_epoch", "seconds_per_epoch", "f1_macro", "f1_macro_std", "runs"]
    figures = {"rnn": [1, 3, 2.0, 0.5, 0.03, 9], "gru": [2, 2, 3.0, 0.75, 0.04, 4], "lstm": [3, 2, 5.0, 0.5, 0.0, 1]}
    rows = pd.DataFrame({**figures, "bilstm": [4, 6, 1.0, 0.25, 0.0, 1]}, index=columns).T
    classes = [{"class": "tea", "recall": 0.5, "support": 2}, {"class": "tin", "recall": 1.0, "support": 1}]
    lengths = {"length": {"under 10": {"accuracy": 0.25}}}
    run = {"per_class": classes, "confusion": [[1, 1], [0, 1]], "breakdown": lengths}
    text = _analysis(rows, [{"model": name, **run} for name in ARCHITECTURES], "cls")
    assert (
        "Fewest epochs to the best validation score: GRU, LSTM. Least time, as these runs went: RNN, GRU, BiLSTM."
        in text
    )
    assert (
        "f1_macro changes by +0.2500 (standard error 0.0224) with the GRU's gates" in text
    )  # (0.03^2/9 + 0.04^2/4)^1/2
    assert text.count("tea taken for tin, 1 times") == 4
    assert text.count("0.500, tea") == 4


def test_a_study_of_two_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comparison_cls.csv").touch()
    with pytest.raises(ConfigError, match=r"a study is of one task: make two of 'task=cls,forecast'"):
        _section({"title": "Both", "command": "task=cls,forecast"}, tmp_path, tmp_path / "RESULTS.md")


def test_an_unknown_study_is_named(lab: Lab, tmp_path: Path) -> None:
    outcome = write_results(lab, tmp_path, "only=[smal]")
    assert outcome.code == 1
    assert "only=['smal'] is unknown; studies are report_cls, best_cls" in outcome.output
    assert "Traceback" not in outcome.output


def test_a_study_whose_command_a_comma_has_cut_off_is_refused() -> None:
    study = OmegaConf.to_container(OmegaConf.create("{title: A, command: model=gru seed=0,1}"))
    with pytest.raises(ConfigError, match=r"studies\.a has 1: it may have title, command"):
        run(OmegaConf.structured(ResultsConfig(studies={"a": study}, only=["a"])))


@pytest.mark.parametrize("code", [0, 1])
def test_a_study_that_failed_has_no_section_for_its_table_may_be_another_recipes(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runs.results._sweep", lambda _: code)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("runs.results._section", lambda study, folder, page: "of whatever the folder holds")
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\n## A\n\n```\npython run.py -m model=gru\n```\n\nas it was\n", encoding="utf-8")
    study = {"title": "A", "command": "model=gru"}
    options = ResultsConfig(studies={"a": study}, folder=str(tmp_path / "studies"), output=str(page))
    with nullcontext() if code == 0 else pytest.raises(SystemExit):
        run(OmegaConf.structured(options))
    text = page.read_text(encoding="utf-8")
    assert "as it was" not in text
    assert ("of whatever the folder holds" in text) == (code == 0)
    remedy = rf"a failed.* delete {re.escape(str(tmp_path / 'studies'))}.a-\w+ or choose another folder="
    assert bool(re.search(remedy, caplog.text)) == (code == 1)


@pytest.mark.parametrize("code", [130, 143])
def test_studies_told_to_stop_stop_and_leave_the_page_as_it_is(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr("runs.results._sweep", lambda words: begun.append(words) or code)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    studies = {name: {"title": name, "command": f"model={name}"} for name in ("gru", "lstm")}
    page = tmp_path / "RESULTS.md"
    with pytest.raises(SystemExit) as caught:
        run(OmegaConf.structured(ResultsConfig(studies=studies, folder=str(tmp_path / "studies"), output=str(page))))
    assert caught.value.code == code
    assert [words[1] for words in begun] == ["model=gru"]
    assert not page.exists()


SWEEP = """
import pathlib, signal, sys, time
def stop(number, frame):
    time.sleep(0.1)
    pathlib.Path(sys.argv[1], "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "began").touch()
time.sleep(20)
"""


def test_a_study_that_is_told_to_stop_has_its_time_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep.py").write_text(SWEEP, encoding="utf-8")
    monkeypatch.setattr("runs.results.PROGRAM", tmp_path / "sweep.py")

    def tell() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        threading.Thread(target=tell).start()
        with pytest.raises(SystemExit) as caught:
            _sweep([str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
    assert (tmp_path / "stopped").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_of_the_project_is_of_configurations_that_can_be(name: str) -> None:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        validate(compose("config", [word.split(",")[0] for word in STUDIES[name]["command"].split()]))
    source = STUDIES[name].get("source", {})
    assert not source or set(source) == {"score", "values"}
