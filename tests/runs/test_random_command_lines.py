"""Whatever a command line says, the answer is a run or one message, never a stack trace."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import resource
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import run
from runs import checks, job, schema, train
from runs.completion import choices
from tests.runs.test_config import FACTS

GROUPS = (*schema.SCHEMAS, "logger", "experiment", "ablation")
PATHS = ("output", "folder", "input", "dir", "path", "reuse", "resume", "run", "runs")  # where a value makes a folder
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "0.5", "1.5", "-0.0", "1e-3", "1e400", "nan", "inf", "-inf"),
    *("99999999999999999999", "-99999999999999999999", "4294967296", "007", "0x10", "1_000", "1e3", ".5", "5.", "abc"),
    *(
        "",
        "''",
        '""',
        " ",
        "'a b'",
        "a b",
        "内容",
        "'内容'",
        "é",
        "🙂",
        "a=b",
        "a:b",
        "a,b",
        "a/b",
        "../a",
        "~/a",
        "%5",
    ),
    *("[]", "[1]", "[0.9]", "[1,2]", "[a,b]", "[null]", "[[1]]", "[0.1,0.5,0.9]", "[{}]", "[{a: 1}]", "[", "]", "[1"),
    *("{}", "{a: 1}", "{a: {b: 1}}", "{内: 1}", "{a: [1]}", "{", "}", "{a", "{_target_: os.system}", "{1: 2}"),
    *(
        "${seed}",
        "${nothing}",
        "${task.name}",
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH}",
        "${nope:1}",
        "${",
        "$",
        "\\${seed}",
    ),
    *(
        "???",
        "'???'",
        "'",
        '"',
        "\\",
        "\\'",
        "(",
        ")",
        "!",
        "#",
        "*",
        "?",
        "range(1,3)",
        "choice(1,2)",
        "glob(*)",
        "int(1)",
    ),
    *(
        "cls",
        "forecast",
        "lstm",
        "adam",
        "cpu",
        "auto",
        "tpu",
        "gpu",
        "foo",
        "5d",
        "-5d",
        "1h",
        "0h",
        "bf16",
        "16-true",
    ),
)
KEYS = (
    "seed.a",
    "a",
    "a.b",
    "task.task",
    "model",
    "модель",
    "数据",
    "optimizer.lr.x",
    "trainer.extra",
    "data.wind.speed",
)
EXTRA = [f"trainer.extra.{item.name}" for item in fields(schema.ExtraTrainerConfig)] + ["trainer.extra.callbacks"]


def random_command_line(number: int) -> list[str]:
    """The command line of this number: some choices, some values, most of them wrong."""
    draw = random.Random(number)
    keys = [key for key in checks.defaults() if key.rpartition(".")[2] not in PATHS]
    keys.remove("debug")  # which shows stack traces
    words = []
    if draw.random() < 0.1:
        program = draw.choice(["describe", "predict", "benchmark", "report", "results", "docs", "nothing", "config"])
        words += ["-cn", program]
        if program in schema.PROGRAMS:
            keys += 40 * [item.name for item in fields(schema.PROGRAMS[program][0]) if item.name not in PATHS]
    if draw.random() < 0.05:
        words.append("-m")
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.random()
        if kind < 0.2:
            group = draw.choice(GROUPS)
            name = draw.choice([*choices(group), draw.choice(VALUES)])
            words.append(f"{draw.choice(['', '', '', '+', '~', '++'])}{group}={name}")
        elif kind < 0.3:
            words.append(f"~{draw.choice([*GROUPS, *keys, *KEYS])}")
        elif kind < 0.4:
            words.append(f"{draw.choice(['', '+'])}{draw.choice([*EXTRA, *KEYS])}={draw.choice(VALUES)}")
        elif kind < 0.45:
            words.append(
                draw.choice([*VALUES, *KEYS, "=", "==", "a=", "=1", "+", "~", "+=", "@", "task@a=b", "a@b:c=d"])
            )
        else:
            prefix = draw.choice(["", "", "", "", "+", "++", "~"])
            words.append(f"{prefix}{draw.choice(keys)}={draw.choice(VALUES)}")
    return words


@pytest.fixture
def _without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Runs that end where the training would begin, and programs that end where they would begin."""
    build = train.build_datamodule

    def build_without_data(config: dict[str, Any]) -> Any:
        build(config)
        report = {"source": "none", "sha256": None}
        return SimpleNamespace(setup=lambda: None, facts=FACTS[config["task"]["name"]], report=report)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "build_datamodule", build_without_data)
    monkeypatch.setattr(train, "_announce", end)
    begin = {"runs.job": job}
    monkeypatch.setattr(run, "import_module", lambda name: begin.get(name, SimpleNamespace(run=checks.validate)))
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)  # composes all once more
    monkeypatch.setattr(job, "failures", [])
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, hard))  # what asks for too much memory is told so
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    torch.set_num_threads(threads)
    logging.disable(level)


def answer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `python run.py *words` writes, until the data would be read."""
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            run.main()
        except SystemExit as error:
            output.write(str(error.code if isinstance(error.code, str) else ""))
    return output.getvalue()


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        text = answer(words, monkeypatch)
    except Exception as error:
        raise AssertionError(f"python run.py {shlex.join(words)}") from error
    assert "Traceback" not in text, f"python run.py {shlex.join(words)}\n{text}"


QUICK = 40
LINES = [pytest.param(range(QUICK), id="quick")]
LINES += [pytest.param(range(at, at + 100), id=str(at), marks=pytest.mark.exhaustive) for at in range(QUICK, 2000, 100)]


@pytest.mark.usefixtures("_without_data")
@pytest.mark.parametrize("numbers", LINES)
def test_a_random_command_line_is_answered_without_a_stack_trace(
    numbers: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in numbers:
        check(random_command_line(number), monkeypatch)
