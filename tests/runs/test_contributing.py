"""What CONTRIBUTING.md says, done as it stands there, in a folder that has nothing of the project."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.runs.lab import ROOT, Lab

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUICK = ("trainer=cpu", "trainer.threads=1", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
SMALL = {
    "Add a cell": ("data=sample_reviews", "data.sample_size=400", "data.tokenizer=char"),
    "Add a data set": ("data.tokenizer=char", "data.batch_size=16"),
    "Add a baseline": ("data=sample_climate", "data.stride=50"),
}


def section(title: str) -> str:
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def write_files(title: str, folder: Path) -> None:
    """The files of a section: code under the imports that its step names, or the YAML in the step's text."""
    for step in re.split(r"\n(?=\d\. )", section(title)):
        if name := re.search(r"`(my_\S+\.(?:py|yaml))`", step):
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                imports = re.findall(r"`((?:import|from) [^`]+)`", step)
                (code,) = re.findall(r"```python\n(.*?)```", step, flags=re.DOTALL)
                path.write_text("\n".join([*imports, textwrap.dedent(code)]), encoding="utf-8")
            else:
                (content,) = re.findall(r"`(\{.*\})`", step)
                path.write_text(content, encoding="utf-8")


def commands(title: str) -> list[list[str]]:
    return [shlex.split(command)[3:] for command in re.findall(r"`(python -m run [^`]+)`", section(title))]


def run_section(title: str, lab: Lab, folder: Path) -> tuple[list[str], pd.DataFrame]:
    """Do all steps; what the commands say, and the comparison that the last one ends with."""
    write_files(title, folder)
    outputs = []
    for words in commands(title):
        outcome = lab.run(*words, *([] if "-cn" in words else [*SMALL[title], *QUICK]), folder=folder)
        assert outcome.code == 0, outcome.output
        outputs.append(outcome.output)
    (comparison,) = folder.glob("outputs/sweeps/*/comparison.csv")
    return outputs, pd.read_csv(comparison).set_index("label")


def test_it_is_short_and_its_steps_are_four_each() -> None:
    assert len(TEXT.splitlines()) < 64
    for title in SMALL:
        assert re.findall(r"^\d\. ", section(title), flags=re.MULTILINE) == ["1. ", "2. ", "3. ", "4. "]
        assert len(commands(title)) >= 2


@pytest.mark.slow
def test_a_cell_of_ones_own_is_described_trained_and_compared(lab: Lab, tmp_path: Path) -> None:
    outputs, table = run_section("Add a cell", lab, tmp_path)
    assert "h = (1 - z) * h + z * n" in outputs[0]
    assert "not on cpu: it knows RNNCell, GRUCell and LSTMCell, not MinGRU" in outputs[0]
    assert list(table.index) == ["gru", "mingru"]
    (run,) = tmp_path.glob("outputs/sweeps/*/1_cls_mingru_seed0")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["model"], metrics["backend"]) == ("mingru", "reference")
    assert metrics["memory"]["norm"]["forwards"][0] == 1
    assert metrics["test"]["accuracy"] == pytest.approx(table.loc["mingru", "accuracy"])


@pytest.mark.slow
def test_texts_of_ones_own_are_named_tried_and_compared_on(lab: Lab, tmp_path: Path) -> None:
    with (tmp_path / "tweets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "topic"])
        writer.writerows((f"{word} number {row}", word) for row in range(60) for word in ("rain", "sun"))
    _, table = run_section("Add a data set", lab, tmp_path)
    assert list(table.index) == ["tfidf_svm", "gru"]
    assert table.loc["tfidf_svm", "accuracy"] == 1
    (report,) = tmp_path.glob("outputs/*/*_cls_bilstm/data_report.json")  # of the trial
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["rows_read"] == 120
    assert found["source"].endswith("tweets.csv")
    assert set(found["splits"]["test"]["classes"]) == {"rain", "sun"}


@pytest.mark.slow
def test_a_baseline_of_ones_own_is_fitted_and_what_others_are_tested_against(lab: Lab, tmp_path: Path) -> None:
    outputs, table = run_section("Add a baseline", lab, tmp_path)
    assert "fitted in" in outputs[0]
    assert list(table.index) == ["mean", "lstm"]
    assert table.loc["lstm", "reference"] == "mean"
    (run,) = tmp_path.glob("outputs/*/*_forecast_mean")
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert (predictions.groupby("step")["prediction"].nunique() == 1).all()  # the same for every window


@pytest.mark.slow
def test_the_first_command_works_as_a_process_of_its_own(lab: Lab, tmp_path: Path) -> None:
    write_files("Add a cell", tmp_path)
    (words, _) = commands("Add a cell")
    command = [sys.executable, "-m", "run", *words]
    done = subprocess.run(command, cwd=tmp_path, env=lab.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The equations make no use of weight_hh" in done.stdout


def test_the_files_it_shows_are_what_a_user_would_write(tmp_path: Path) -> None:
    for title in SMALL:
        write_files(title, tmp_path)
    names = {str(path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*") if path.is_file()}
    models = {"my_conf/model/mingru.yaml", "my_conf/model/mean.yaml"}
    assert names == {"my_cells.py", "my_baselines.py", "my_conf/data/tweets.yaml", *models}
    assert yaml.safe_load((tmp_path / "my_conf/data/tweets.yaml").read_text(encoding="utf-8"))["target"] == "topic"
    compile((tmp_path / "my_cells.py").read_text(encoding="utf-8"), "my_cells.py", "exec")
