"""The benchmark times what it has seen to be right, and says what it can't time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runs.benchmark.layers import Case
from tests.runs.lab import Lab

SMALL = ["shapes=[[3,2,4,5],[2,1,3,4]]", "repeats=1", "trainings=[]"]


@pytest.mark.slow
def test_every_layer_and_shape_is_timed_in_training_and_use(lab: Lab, tmp_path: Path) -> None:
    words = [*SMALL, "cells=[lstm,lstm_ragged]", "modes=[train,infer]", f"hydra.run.dir={tmp_path}"]
    outcome = lab.run("-cn", "benchmark", *words, folder=tmp_path)
    assert outcome.code == 0, outcome.output
    rows = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    timed = {(row["cell"], row["mode"], row["T"]) for row in rows}
    assert len(timed) == len(rows) == 2 * 2 * 2
    assert all(row["ratio"] > 0 for row in rows)
    assert "lstm_ragged, infer" in outcome.output
    assert (tmp_path / "ratios.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shapes=[[64,128,128]]"], "shapes=[64, 128, 128] is not allowed: each has steps, batch"),
        (["backend=fpga"], "backend=fpga is not allowed: it must be one of auto, triton, cpu, reference"),
        (["device=abacus"], "device=abacus is not allowed: it must be one of cpu, cuda"),
        (["dtype=tf32"], "dtype=tf32 is for device=cuda"),
        pytest.param(
            ["device=cuda"],
            "device=cuda: ",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU that is asked for is there"),
        ),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_what_cannot_be_timed_is_one_message(words: list[str], expected: str, lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run("-cn", "benchmark", *SMALL, *words, f"hydra.run.dir={tmp_path}", folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert f"error: {expected}" in outcome.output
    assert "Traceback" not in outcome.output
    assert "Error executing job" not in outcome.output


def test_only_results_of_ours_that_are_not_finite_stop_a_benchmark(caplog: pytest.LogCaptureFixture) -> None:
    case = Case("rnn", train=False, shape=(3, 2, 4, 5))
    case.compare()
    case.layers["torch"].bias_ih_l0.data[2] = float("nan")  # one unit, and after a step all of them
    case.compare()
    assert "rnn (3, 2, 4, 5) in float32: not all of torch.nn's output is finite" in caplog.text
    case.layers["ours"].cells[0].bias_ih.data[0] += 1  # in the first step there is still what to compare it with
    with pytest.raises(RuntimeError, match=r"rnn \(3, 2, 4, 5\) in float32: output differs from torch.nn's by"):
        case.compare()
    case.layers["ours"].cells[0].bias_ih.data[2] = float("nan")
    with pytest.raises(RuntimeError, match=r"output differs from torch\.nn's by nan"):
        case.compare()
