"""What a configuration file of somebody else can't do: everything here left the file `MARK` before it was refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import guard
from tests.runs.lab import SMALL, Lab

TOUCH = "{_target_: subprocess.run, args: [touch, MARK]}"
FILES = {
    "trust that a file claims": ("trust: [os]", "trust=[os]"),
    "trust that a sweep's parameters claim": (
        "hydra: {mode: MULTIRUN, sweeper: {params: {trust: '[os]'}}}", "hydra.sweeper.params has 'trust'"
    ),
    "a callback": (f"hydra: {{callbacks: {{x: {TOUCH}}}}}", "hydra.callbacks.x._target_"),
    "a callback within another": (
        f"hydra: {{callbacks: {{comparison: {{_target_: runs.sweep.CompareSweep, x: {TOUCH}}}}}}}",
        "hydra.callbacks.comparison.x._target_",
    ),
    "a callback by the way of a module of this project": (
        "hydra: {callbacks: {x: {_target_: runs.sweep.logging.os.system, command: touch MARK}}}", "hydra.callbacks.x"
    ),
    "a callback by reference": (
        "model: {name: os.system}\nhydra: {callbacks: {x: {_target_: '${model.name}'}}}", "hydra.callbacks.x._target_"
    ),
    "a launcher": ("hydra: {launcher: {_target_: os.system}}", "hydra.launcher._target_"),
    "a sweeper": ("hydra: {sweeper: {_target_: os.system}}", "hydra.sweeper._target_"),
    "a handler of the log": (
        "hydra: {job_logging: {handlers: {x: {(): subprocess.getoutput, cmd: touch MARK}}, root: {handlers: [x]}}}",
        "hydra.job_logging.handlers.x.()",
    ),
    "a handler by the way of another module": (
        "hydra: {job_logging: {handlers: {x: {(): logging.os.system, command: touch MARK}}, root: {handlers: [x]}}}",
        "hydra.job_logging.handlers.x.()",
    ),
    "a formatter of Hydra's own log": (
        "hydra: {hydra_logging: {formatters: {simple: {(): subprocess.getoutput, cmd: touch MARK}}}}",
        "hydra.hydra_logging.formatters.simple.()",
    ),
    "an object of a handler": (
        "hydra: {job_logging: {handlers: {x: {class: logging.StreamHandler, stream: 'ext://os.environ'}}}}",
        "ext://os.environ",
    ),
    "a compiler by the environment": ("hydra: {job: {env_set: {CXX: touch MARK}}}", "hydra.job.env_set"),
}  # fmt: skip


@pytest.mark.parametrize("sweeping", [False, True], ids=["run", "sweep"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused_before_anything_of_it_runs(name: str, sweeping: bool, lab: Lab, tmp_path: Path) -> None:
    text, key = FILES[name]
    mark = tmp_path / "mark"
    (tmp_path / "experiment").mkdir()
    content = "# @package _global_\n" + text.replace("MARK", str(mark)) + "\n"
    (tmp_path / "experiment" / "theirs.yaml").write_text(content, encoding="utf-8")
    words = ["-m"] * sweeping + ["--config-dir", str(tmp_path), "experiment=theirs", *SMALL["forecast"]]
    outcome = lab.run(*words, folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert key in outcome.output.splitlines()[-1], outcome.output
    assert "Traceback" not in outcome.output
    assert {path.name for path in tmp_path.iterdir()} == {"experiment"}


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["trust=[a,b.c]"], {"a", "b.c"}),
        (["+trust=[a]", "++trust=['b c']"], {"a", "b c"}),
        (["-m", "trust=[a],[b]"], {"a", "b"}),
        (["+model.trust=[a]", "trusted=[b]", "~trust"], set()),
    ],
)
def test_the_command_line_trusts_what_it_says(arguments: list[str], modules: set[str]) -> None:
    assert guard.typed_trust(arguments) == modules


def test_the_environment_of_the_command_line_and_trusted_callbacks_pass(lab: Lab, tmp_path: Path) -> None:
    callback = "+hydra.callbacks.x={_target_: hydra.experimental.callbacks.LogJobReturnCallback}"
    words = [*SMALL["forecast"], "+hydra.job.env_set.RNN_TEST=1", callback, "trust=[tests.runs.killer]"]
    outcome = lab.run(*words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
