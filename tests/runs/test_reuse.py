"""A finished run of the same configuration is copied instead of trained again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runs.checkpoints import LAST
from tests.runs.lab import SMALL, Lab
from tests.runs.test_command_line import OWN_TEXTS, cls_words, write_texts
from tests.runs.test_resume import result_of

WORDS = (*SMALL["cls"], "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse") / "study" / "0"
    outcome = lab.run(*WORDS, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.output
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_a_twin_is_copied_and_says_from_where(lab: Lab, finished: Path, tmp_path: Path) -> None:
    words = (*WORDS, "debug=true", f"reuse={finished.parents[1]}", f"hydra.run.dir={tmp_path}/run")
    outcome = lab.run(*words)
    assert outcome.code == 0, outcome.output
    assert f"{finished} is a finished run of this configuration and data: copied" in outcome.output
    copy = tmp_path / "run"
    assert result_of(copy) == result_of(finished)
    assert files(copy) == files(finished)
    assert (copy / "metrics.json").read_bytes() == (finished / "metrics.json").read_bytes()  # to the second
    status = json.loads((copy / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["copied_from"]) == ("finished", str(finished))
    assert "debug=true" in status["overrides"]


@pytest.mark.parametrize("change", ["seed=1", "trainer.max_epochs=2", "task.dropout=0.1"])
def test_a_run_that_differs_in_anything_is_trained(change: str, lab: Lab, finished: Path, tmp_path: Path) -> None:
    outcome = lab.run(*WORDS, change, f"reuse={finished.parents[1]}", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 0, outcome.output
    assert "copied" not in outcome.output
    assert result_of(tmp_path / "run") != result_of(finished)


@pytest.mark.slow
def test_a_run_of_other_data_is_trained(lab: Lab, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.csv")
    words = (*cls_words(), *OWN_TEXTS, f"data.path={path}", "data.text_column=内容", "data.target=类别")
    assert lab.run(*words, f"hydra.run.dir={tmp_path}/runs/a").code == 0
    path.write_text(path.read_text(encoding="utf-8").replace("很好", "极好"), encoding="utf-8")
    outcome = lab.run(*words, f"reuse={tmp_path}/runs", f"hydra.run.dir={tmp_path}/b")
    assert outcome.code == 0, outcome.output
    assert "copied" not in outcome.output


def test_neither_an_unfinished_nor_a_damaged_run_is_copied(lab: Lab, finished: Path, tmp_path: Path) -> None:
    damage = {"config.yaml": "task: [", "metrics.json": '{"task": "cl'}
    for name, (file, text) in enumerate([("status.json", '{"state": "running"}'), *damage.items()]):
        shutil.copytree(finished, tmp_path / "others" / f"{name}")
        (tmp_path / "others" / f"{name}" / file).write_text(text, encoding="utf-8")
    for file in ("config.yaml", "data_report.json"):
        shutil.copytree(finished, tmp_path / "others" / f"without {file}")
        (tmp_path / "others" / f"without {file}" / file).unlink()
    outcome = lab.run(*WORDS, f"reuse={tmp_path}/others", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 0, outcome.output
    assert "copied" not in outcome.output
    assert result_of(tmp_path / "run") == result_of(finished)  # trained again, to the same end


@pytest.mark.slow
def test_a_copy_that_was_interrupted_is_made_again(lab: Lab, finished: Path, tmp_path: Path) -> None:
    sweep = ("-m", *WORDS, f"reuse={finished.parents[1]}", f"hydra.sweep.dir={tmp_path}/sweep")
    assert lab.run(*sweep).code == 0
    (copy,) = (path.parent for path in (tmp_path / "sweep").glob("*/status.json"))
    status = json.loads((copy / "status.json").read_text(encoding="utf-8"))
    (copy / "status.json").write_text(json.dumps({**status, "state": "copying"}), encoding="utf-8")
    for missing in ("metrics.json", f"checkpoints/{LAST}"):
        (copy / missing).unlink()
    outcome = lab.run(*sweep)
    assert outcome.code == 0, outcome.output
    assert result_of(copy) == result_of(finished)


def test_a_copy_that_failed_is_made_again(lab: Lab, finished: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"reuse={finished.parents[1]}", f"hydra.run.dir={tmp_path}/run")
    in_the_way = tmp_path / "run" / "metrics.json"
    in_the_way.mkdir(parents=True)
    outcome = lab.run(*words)
    assert outcome.code == 1, outcome.output
    assert json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))["state"] == "copying"
    in_the_way.rmdir()
    outcome = lab.run(*words)
    assert outcome.code == 0, outcome.output
    assert result_of(tmp_path / "run") == result_of(finished)


def test_a_place_that_does_not_exist_is_named(lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*WORDS, "reuse=nowhere", f"hydra.run.dir={tmp_path}/run")
    assert outcome.code == 1
    assert "reuse=nowhere: there is no such folder" in outcome.output
    assert "Traceback" not in outcome.output
