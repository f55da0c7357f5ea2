"""Two processes that train together, over gloo on the CPU; Lightning starts the second one by the first one's words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.runs.lab import ROOT, SMALL, Lab
from tests.runs.test_resume import result_of

WORDS = (*SMALL["cls"], "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
FIRST, SECOND = "0_cls_gru_seed0", "1_cls_gru_seed1"


def run(lab: Lab, *words: str, folder: Path, until: Callable[[], bool] = lambda: False) -> tuple[int, str]:
    """`python run.py *words` in `folder`, whose processes are all killed once `until` says so."""
    output = folder / "output.txt"
    command = [sys.executable, str(ROOT / "run.py"), *words, *WORDS]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=lab.environment, stdout=file, stderr=file, start_new_session=True
        )
    last = time.monotonic() + 180
    while process.poll() is None and not until() and time.monotonic() < last:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(), output.read_text(encoding="utf-8")


@pytest.mark.exhaustive
def test_a_sweep_of_several_processes_goes_on_as_if_it_had_not_been_killed(lab: Lab, tmp_path: Path) -> None:
    code, output = run(lab, "-m", "seed=0,1", folder=tmp_path)
    assert code == 0, output
    for word in ("sync_dist", "Warning", "Initializing distributed"):
        assert word not in output
    assert output.count("examples (train / val / test), seed 0") == 1, output
    (whole,) = (tmp_path / "outputs" / "sweeps").iterdir()  # one for both processes
    metrics = json.loads((whole / FIRST / "metrics.json").read_text(encoding="utf-8"))
    rows = pd.read_parquet(whole / FIRST / "predictions.parquet")
    assert len(rows) == rows["row"].nunique() == sum(row["support"] for row in metrics["per_class"])
    assert (rows["prediction"] == rows["target"]).mean() == pytest.approx(metrics["test"]["accuracy"])

    sweep = tmp_path / "killed"
    words = ("-m", "seed=0,1", f"hydra.sweep.dir={sweep}")
    code, output = run(lab, *words, folder=tmp_path, until=(sweep / SECOND / "checkpoints" / "best.ckpt").exists)
    assert (sweep / FIRST / "metrics.json").exists(), output
    assert not (sweep / SECOND / "metrics.json").exists(), output
    code, output = run(lab, *words, folder=tmp_path)
    assert code == 0, output
    for name in (FIRST, SECOND):
        found, expected = result_of(sweep / name), result_of(whole / name)
        for each in (found, expected):
            del each["history"]["train/loss"]  # a resume point knows this sum over an epoch of one process only
        assert found == expected


@pytest.mark.exhaustive
def test_several_processes_begin_half_a_copy_anew(lab: Lab, finished: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished("cls"), tmp_path / "copy"))
    (folder / "status.json").write_text(json.dumps({"state": "copying"}), encoding="utf-8")
    code, output = run(lab, f"hydra.run.dir={folder}", folder=tmp_path)
    assert code == 0, output
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished"


@pytest.mark.slow
def test_several_processes_test_what_was_chosen_on_the_validation_split(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "chosen"
    code, output = run(lab, "score_on=val", f"hydra.run.dir={folder}", folder=tmp_path)
    assert code == 0, output
    chosen = result_of(folder)
    code, output = run(lab, f"resume={folder}", "score_on=test", folder=tmp_path)
    assert code == 0, output
    tested = result_of(folder)
    assert tested["metrics"]["split"] == "test"
    rows = pd.read_parquet(folder / "predictions.parquet")
    assert len(rows) == rows["row"].nunique() == sum(row["support"] for row in tested["metrics"]["per_class"])
    assert tested["history"] == chosen["history"]
    assert tested["last"] == chosen["last"]
