from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from rnn_cells import GRUCell
from runs.build import build_task
from runs.checkpoints import read_checkpoint
from runs.describe import print_description, stand_ins
from tests.runs.lab import SMALL, Lab

Finished = Callable[[str], Path]


class Neighbour(GRUCell):
    """My own equation.

    h = tanh(x W + b)

    Args:
        nothing: to be shown.
    """

    def recur(self, gates: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (torch.tanh(gates.chunk(3, dim=-1)[0] + 0 * state[0]),)


@pytest.fixture
def config(finished: Finished) -> Callable[..., dict[str, Any]]:
    """The configuration of a finished run, changed."""

    def change(task: str, **options: Any) -> dict[str, Any]:
        saved = OmegaConf.load(finished(task) / "config.yaml")
        for name, value in options.items():
            OmegaConf.update(saved, name.replace("__", "."), value, force_add=True)
        return OmegaConf.to_container(saved)  # type: ignore[return-value]

    return change


def described(config: dict[str, Any], note: str = "") -> str:
    stream = io.StringIO()
    print_description(build_task(config, stand_ins(config)), config, note, Console(file=stream, width=200))
    return stream.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the tables' rows, by the first."""
    split = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    return {first: rest for first, *rest in split}


@pytest.mark.parametrize("task", ["cls", "forecast"])
def test_stand_ins_are_what_the_data_would_have_said(task: str, config: Callable, finished: Finished) -> None:
    facts = read_checkpoint(finished(task) / "checkpoints" / "best.ckpt")["blueprint"]["facts"]
    found = stand_ins(config(task))
    assert found.keys() <= facts.keys()
    names = {"cls": ["max_length", "padding_index", "unknown_index"], "forecast": [*found]}[task]
    known = [name for name in names if name not in ("target_mean", "target_std")]
    assert {name: found[name] for name in known} == {name: facts[name] for name in known}


def test_components_of_the_wind_that_are_named_count_once(config: Callable) -> None:
    named = config("forecast", data__features=["T (degC)", "wind_x", "wind_y"])
    assert stand_ins(named)["num_features"] == 3 + 4  # and the calendar's


def test_layers_have_the_shapes_and_parameters_of_the_network(config: Callable) -> None:
    text = described(config("forecast", data__batch_size=5, model__encoder__bidirectional=True))
    table = rows(text)
    # Of an LSTM with two layers of 8 in both directions: 11 features, then 16; four gates; two biases.
    below, above = 4 * 8 * (11 + 8) + 2 * 4 * 8, 4 * 8 * (16 + 8) + 2 * 4 * 8
    assert table["encoder"][1:] == ["5 × 120 × 16", f"{2 * below + 2 * above:,}"]
    assert table["head"][0] == ""  # of the second table, which has the cost
    assert re.search(r"head +│ Linear.* │ 5 × 48 +│ +816 │", text)
    assert f"{2 * below + 2 * above + 48 * 17:,} parameters" in text
    # What the matrices cost, by hand.
    first, second = 4 * 8 * 11, 4 * 8 * 16
    assert table["cell 0"] == [f"{first:,}", "256", f"{120 * (first + 256):,}", "64"]
    assert table["cell 3"] == [f"{second:,}", "256", f"{120 * (second + 256):,}", "64"]
    assert table["in all"][2:] == [f"{120 * 2 * (first + second + 512) + 48 * 16:,}", "256"]


def test_each_of_several_networks_has_rows_and_all_are_counted(config: Callable) -> None:
    ngrams = {"task__ngrams__characters": 1, "task__ngrams__words": 1}
    one, two = (rows(described(config("cls", **ngrams, task__members=members))) for members in (1, 2))
    assert two["model 2"] == two["model"] == one["model"]
    assert two["votes 2"][0] == "NgramVotes"
    assert {"model 2", "votes 2"}.isdisjoint(one)
    assert two["head"] == one["head"]
    doubled = [f"{2 * int(number.replace(',', '')):,}" for number in one["in all"][2:]]
    assert two["in all, of 2 networks"] == ["", "", *doubled]


def test_the_equations_are_those_of_the_cells_docstring(config: Callable) -> None:
    text = described(config("cls"))
    assert "n = tanh(x W_n + (r * h) U_n + b_n)          candidate" in text
    assert "Args" not in text
    assert "│ h: 32 × 8 a step" in text


def test_a_cell_of_ones_own_shows_its_own_docstring_and_what_it_leaves_unused(config: Callable) -> None:
    cell = {"_target_": f"{__name__}.Neighbour", "_partial_": True}
    encoder = {"_target_": "rnn_cells.Recurrent", "_partial_": True, "hidden_size": 8, "cell": cell}
    text = described({**config("cls"), "model": {"name": "own", "encoder": encoder}, "trust": [__name__]})
    assert "My own equation.\n\nh = tanh(x W + b)\n" in text
    assert "nothing: to be shown" not in text
    assert "The equations make no use of weight_hh (192), bias_hh (24)." in text
    assert "runs it on reference" in text
    assert "not on cpu: it knows RNNCell, GRUCell and LSTMCell, not Neighbour" in text


def test_names_in_brackets_are_shown_as_they_are(config: Callable) -> None:
    assert "[/sun] for task=cls. Of runs/[bold]." in described(config("cls", model__name="[/sun]"), "Of runs/[bold].")


@pytest.mark.parametrize("model", ["fasttext_like", "persistence"])
def test_models_without_recurrence_are_described_too(model: str, config: Callable) -> None:
    if model == "persistence":
        own = {"name": model, "baseline": {"_target_": "tasks.Persistence", "_partial_": True}, "encoder": None}
        assert "every step of the forecast is the last value" in described({**config("forecast"), "model": own})
        return
    own = {"name": model, "encoder": {"_target_": "tasks.Mean", "_partial_": True}}
    assert "No recurrence" in described({**config("cls"), "model": own})


def test_a_description_needs_no_data_and_writes_nothing(lab: Lab, tmp_path: Path) -> None:
    words = ["-cn", "describe", "task=forecast", "model=lstm", "data.on_missing=error", "data.path=missing.csv"]
    outcome = lab.run(*words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "h = o * tanh(c)" in outcome.output
    assert "78,384 parameters" in outcome.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_memory_of_several_runs_is_what_they_keep_of_it(lab: Lab, finished: Finished, tmp_path: Path) -> None:
    folders = {"gru": finished("cls"), "lstm": finished("forecast")}
    words = ["-cn", "describe", f"run=[{folders['gru']},{folders['lstm']}]", f"output={tmp_path / 'both'}"]
    outcome = lab.run(*words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert {path.name for path in tmp_path.iterdir()} == {"both.png", "both.svg", "both.json"}
    written = json.loads((tmp_path / "both.json").read_text(encoding="utf-8"))
    for model, folder in folders.items():
        kept = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["memory"]
        assert written[model]["inputs"] == "of the test split"
        assert {name: written[model][name] for name in kept} == kept
        assert kept["norm"]["forwards"][0] == 1
        assert len(kept["lags"]) == len(kept["norm"]["forwards"])


@pytest.mark.slow
def test_without_its_data_a_run_is_measured_on_random_inputs_and_that_is_said(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "run"))
    report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
    (folder / "data_report.json").write_text(json.dumps({**report, "sha256": "another file's"}), encoding="utf-8")
    outcome = lab.run("-cn", "describe", "run=run", "sequences=2", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "its data has changed, so that the memory is measured on random inputs" in outcome.output
    assert "2 drawn at random" in outcome.output
    assert json.loads((folder / "figures" / "memory.json").read_text(encoding="utf-8"))["lstm"]["sequences"] == 2


@pytest.mark.slow
def test_a_run_that_fell_back_on_the_sample_is_measured_on_the_sample(lab: Lab, tmp_path: Path) -> None:
    words = [word for word in SMALL["forecast"] if not word.startswith("data=")]
    outcome = lab.run(*words, "data.urls=[]", "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    outcome = lab.run("-cn", "describe", "run=run", "sequences=2", "checkpoint=last", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "random inputs" not in outcome.output
    measured = json.loads((tmp_path / "run" / "figures" / "memory.json").read_text(encoding="utf-8"))["lstm"]
    assert (measured["inputs"], measured["sequences"]) == ("of the test split", 2)


@pytest.mark.parametrize("content", ["", "task: [", "[1, 2]"])
def test_a_damaged_configuration_is_named(content: str, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    outcome = lab.run("-cn", "describe", "run=.", folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert "config.yaml is damaged or not that of a run" in outcome.output
    assert "Traceback" not in outcome.output


@pytest.mark.slow
def test_an_unfinished_run_without_a_report_of_its_data_is_described_and_that_is_said(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "run"))
    (folder / "data_report.json").unlink()
    (folder / "status.json").write_text('{"state": "running"}', encoding="utf-8")
    outcome = lab.run("-cn", "describe", "run=run", "sequences=2", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "run has not finished: these are the weights so far" in outcome.output
    assert "data_report.json is damaged, so that the memory is measured on random inputs" in outcome.output
    assert "2 drawn at random" in outcome.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run=nothing"], "run=nothing is not a run folder: it has no config.yaml"),
        (["run=nothing", "model=lstm"], "leave out model=lstm"),
        (["sequences=0"], "sequences=0 is not allowed: it must be at least 1"),
        (["model=ridge"], "model=ridge is not for task=cls"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_mistake_in_a_description_is_one_message(words: list[str], expected: str, lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run("-cn", "describe", *words, folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert expected in outcome.output
    assert "Traceback" not in outcome.output
