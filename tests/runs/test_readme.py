"""What the READMEs tell a reader to type works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from datamodules.synthetic import sample_climate, sample_reviews
from tests.runs.lab import ROOT, Lab

PAGES = ("README.md", "README.zh.md")
TRAINING = (
    *("data.on_missing=sample", "trainer=cpu", "trainer.threads=1", "trainer.fast_dev_run=true"),
    *("trainer.enable_progress_bar=false", "logger=none"),
)
CLS, FORECAST = ("data.sample_size=400",), ("data.stride=100",)
LESS = {
    "benchmark": ["repeats=1", "shapes=[[3,2,4,5]]", "cells=[lstm]", "trainings=[]"],
    "results": ["train=false"],
    "describe": [],
    "predict": [],
    "report": [],
}
"""What makes a command small, by its program."""


def blocks(page: str, language: str = "") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [content for kind, content in found if kind == language]


def commands(page: str) -> list[str]:
    """All that is to be typed: lines of its blocks, without their comments, and what stands in the text."""
    lines = "\n".join(blocks(page)).replace("\\\n", " ").splitlines()
    text = (ROOT / page).read_text(encoding="utf-8")
    within = re.findall(r"`(?:RNN_LAB_DATA=… )?(python run\.py [^`]+)`", text.replace("\n", " "))
    stripped = (re.sub(r"\s+#.*", "", line).strip() for line in [*lines, *within])
    typed = [line for line in stripped if line.startswith(("python", "make", "pip", "tensorboard", ".venv"))]
    return list(dict.fromkeys(re.sub(r"\s+", " ", line) for line in typed))


RUNS = [line for line in commands("README.md") if line.startswith("python run.py")]


@pytest.fixture
def desk(tmp_path: Path, finished: Callable[[str], Path]) -> Path:
    """A folder with the files and runs that the page speaks of."""
    names = {"DAY/TIME_cls_bilstm": "cls", "DAY/TIME_forecast_lstm": "forecast", "sweeps/TIME/0_cls_gru_seed0": "cls"}
    for name, task in names.items():
        shutil.copytree(finished(task), tmp_path / "outputs" / name)
    reviews = sample_reviews(400, seed=3)
    reviews[["review"]].head(20).to_csv(tmp_path / "reviews.csv", index=False)
    reviews.rename(columns={"review": "text", "cat": "topic"}).to_csv(tmp_path / "my.csv", index=False)
    sample_climate(1, 3).to_csv(tmp_path / "readings.csv", index=False)
    return tmp_path


def write_series(path: Path) -> None:
    hours = pd.date_range("2020-01-01", periods=2000, freq="h")
    waves = np.sin(np.arange(len(hours)) / 4)
    frame = pd.DataFrame({"time": hours.strftime("%Y-%m-%d %H:%M"), "load": 50 + 9 * waves, "temp": 10 - waves})
    frame.to_csv(path, index=False)


def smaller(words: list[str]) -> list[str]:
    program = words[words.index("-cn") + 1] if "-cn" in words else ""
    if program or "--help" in words or any(word.startswith("resume=") for word in words):
        return [*words, *LESS.get(program, [])]
    if "--cfg" in words:
        return words
    if "experiment=backtest_forecast" in words:  # of years that the sample has
        words = [*words, "data.test_from=2016-06-01,2016-07-01", "data.test_until=20d"]
    if "-m" in words:  # two of each list are enough
        words = [word if "[" in word else ",".join(word.split(",")[:2]) for word in words]
    own = any(word.startswith("data.path=") for word in words)
    size = FORECAST if "forecast" in " ".join(words) else CLS
    return [*words, *TRAINING, *(["data.stride=20"] if own and size is FORECAST else [] if own else size)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", RUNS)
def test_every_command_of_the_page_runs(command: str, lab: Lab, desk: Path) -> None:
    words = shlex.split(command)[2:]
    if "data.time_column=time" in words:
        write_series(desk / "my.csv")
    if "device=cuda" in words and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    outcome = lab.run(*smaller(words), folder=desk)
    assert outcome.code == 0, outcome.output
    assert "Traceback" not in outcome.output


def test_both_pages_tell_the_same_commands_in_the_same_order() -> None:
    english, chinese = map(commands, PAGES)
    assert len(RUNS) > 20
    assert chinese == english


def numbers(page: str) -> list[list[str]]:
    """Of each row of a table of scores, the numbers."""
    rows = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-Z]", line)]
    return [re.findall(r"-?\d+(?:[.,:]\d+)*", row) for row in rows]


def test_both_pages_have_the_same_numbers_in_their_tables() -> None:
    english, chinese = map(numbers, PAGES)
    assert len(english) > 20
    assert chinese == english


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_file_and_extra_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    for extra in re.findall(r"-e [\"']?\.\[(\w+)\]", text):
        assert re.search(rf"^{extra} = \[", extras, flags=re.MULTILINE), extra


def test_the_pages_code_runs() -> None:
    (equations, layers) = blocks("README.md", "python")
    assert blocks("README.zh.md", "python")[0] == equations
    body = equations.partition("\n")[2]  # its head has annotations in the source
    source = (ROOT / "rnn_cells" / "cells.py").read_text(encoding="utf-8")
    assert body.replace("    ", "") in source.replace("    ", "")
    for page in PAGES:
        exec(blocks(page, "python")[1], {})
    assert "from_torch" in layers
