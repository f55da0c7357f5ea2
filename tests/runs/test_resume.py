"""A run that is killed and resumed ends as if nothing had happened; what can't be resumed says why."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs import checkpoints, figures
from runs.checkpoints import AtomicCheckpointIO, Recorder, read_checkpoint, read_json, write_atomically
from runs.errors import CheckpointError, explain
from runs.job import merge_overrides
from runs.schema import ConfigError
from runs.train import _resume_point
from tests.runs.lab import SMALL, STEPS_PER_EPOCH, Lab
from tests.runs.test_command_line import OWN_TEXTS, cls_words, write_texts

Kill = tuple[int, str]
STEPS = 3 * STEPS_PER_EPOCH


def killer(step: int, where: str = "train", signal: str = "SIGKILL") -> list[str]:
    target = f"_target_: tests.runs.killer.Killer, step: {step}, where: {where}, signal: {signal}"
    return [f"callbacks.extra=[{{{target}}}]", "trust=[tests.runs.killer]"]


def set_options(folder: Path, **options: Any) -> None:
    """Change the configuration that a run folder keeps: `step`, `where` of its killer, or others by full name."""
    config: Any = OmegaConf.load(folder / "config.yaml")
    for name, value in options.items():
        OmegaConf.update(config, name.replace("__", "."), value)
    OmegaConf.save(config, folder / "config.yaml")


def set_kill(folder: Path, step: int, where: str = "train") -> None:
    set_options(folder, callbacks__extra=[{"_target_": "tests.runs.killer.Killer", "step": step, "where": where}])


def run_and_kill(lab: Lab, folder: Path, words: tuple[str, ...], *kills: Kill) -> None:
    """Start, be killed, resume, be killed, …, resume and finish."""
    outcome = lab.run(*words, *killer(*kills[0]), f"hydra.run.dir={folder}")
    assert outcome.code == -signal.SIGKILL, outcome.output
    for kill in kills[1:]:
        set_kill(folder, *kill)
        outcome = lab.run(f"resume={folder}", "trust=[tests.runs.killer]")  # never taken from the folder
        assert outcome.code == -signal.SIGKILL, outcome.output
    assert not (folder / "metrics.json").exists()
    set_options(folder, callbacks__extra=[])
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output


def weights(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, and where in the training it was taken."""
    checkpoint = read_checkpoint(path)
    digest = hashlib.sha256()
    for name, value in sorted(checkpoint["state_dict"].items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return f"{digest.hexdigest()} epoch {checkpoint['epoch']} step {checkpoint['global_step']}"


def result_of(folder: Path) -> dict[str, Any]:
    """Everything about a finished run that an interruption must not change."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds")
    return {
        "last": weights(folder / "checkpoints" / "last.ckpt"),
        "best": weights(folder / "checkpoints" / "best.ckpt"),
        "history": history.to_dict("list"),
        "metrics": {name: value for name, value in metrics.items() if "seconds" not in name},
        "predictions": pd.read_parquet(folder / "predictions.parquet").to_csv(),
    }


def some_steps(seed: int, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, STEPS), count))


Finished = Callable[[str], Path]


@pytest.mark.parametrize(
    ("task", "kill"),
    [
        pytest.param("cls", (13, "train"), id="cls in an epoch"),
        pytest.param(
            "forecast", (2 * STEPS_PER_EPOCH, "validation"), id="forecast in validation", marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_run_resumed_ends_with_the_same_weights(
    task: str, kill: Kill, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    run_and_kill(lab, tmp_path / "killed", SMALL[task], kill)
    assert result_of(tmp_path / "killed") == result_of(finished(task))


@pytest.mark.parametrize(
    ("words", "step"),
    [
        pytest.param(("optimizer=adamw", "scheduler=cosine"), 13, id="a schedule", marks=pytest.mark.exhaustive),
        pytest.param(
            ("callbacks.averaging=0.9", "task.quantiles=[0.1,0.5,0.9]"),
            13,
            id="averaged weights, quantiles",
            marks=pytest.mark.slow,
        ),
        # In the middle of the steps that are added up behind a resume point, and of no resume point's own.
        pytest.param(
            ("+trainer.extra.accumulate_grad_batches=2",), 5, id="accumulated gradients", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_a_killed_run_resumed_goes_on_with_what_else_it_keeps(
    words: tuple[str, ...], step: int, lab: Lab, tmp_path: Path
) -> None:
    words = (*SMALL["forecast"], *words)
    outcome = lab.run(*words, f"hydra.run.dir={tmp_path / 'whole'}")
    assert outcome.code == 0, outcome.output
    run_and_kill(lab, tmp_path / "killed", words, (step, "train"))
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "task", [pytest.param("cls", marks=pytest.mark.exhaustive), pytest.param("forecast", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("step", some_steps(seed=int(os.environ.get("KILL_SEED", "0")), count=3))
def test_a_run_killed_at_a_random_step_ends_with_the_same_weights(
    task: str, step: int, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    run_and_kill(lab, tmp_path / "killed", SMALL[task], (step, "train"))
    assert result_of(tmp_path / "killed") == result_of(finished(task))


@pytest.mark.parametrize(
    ("task", "kills"),
    [
        pytest.param("cls", [(STEPS_PER_EPOCH, "train")], id="last batch of an epoch", marks=pytest.mark.slow),
        pytest.param("cls", [(STEPS_PER_EPOCH, "validation")], id="first validation", marks=pytest.mark.exhaustive),
        pytest.param(
            "forecast", [(2 * STEPS_PER_EPOCH, "validation_end")], id="behind a validation", marks=pytest.mark.slow
        ),
        pytest.param("cls", [(2 * STEPS_PER_EPOCH, "epoch_end")], id="behind an epoch", marks=pytest.mark.exhaustive),
        pytest.param("forecast", [(STEPS, "epoch_end")], id="behind the last epoch", marks=pytest.mark.exhaustive),
        pytest.param("forecast", [(13, "train"), (17, "train")], id="twice in an epoch", marks=pytest.mark.slow),
        pytest.param(
            "cls",
            [(14, "train"), (14, "train"), (2 * STEPS_PER_EPOCH, "validation")],
            id="thrice, twice at one step",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param("forecast", [(1, "train")], id="first step", marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_killed_anywhere_ends_with_the_same_weights(
    task: str, kills: list[Kill], lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    words = (*SMALL[task], "callbacks.resume_every_n_steps=5")  # divides an epoch: a last batch would be due, too
    run_and_kill(lab, tmp_path / "killed", words, *kills)
    assert result_of(tmp_path / "killed") == result_of(finished(task))


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(0, 2, marks=pytest.mark.slow), pytest.param(2, 0, marks=pytest.mark.exhaustive)]
)
def test_the_number_of_loader_workers_may_change_between_kill_and_resume(
    before: int, after: int, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    outcome = lab.run(*SMALL["cls"], *killer(13), f"data.num_workers={before}", f"hydra.run.dir={folder}")
    assert outcome.code == -signal.SIGKILL, outcome.output
    set_options(folder, callbacks__extra=[], data__num_workers=after)
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == result_of(finished("cls"))


def state_of(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"]


@pytest.mark.parametrize(
    ("step", "where", "told", "kept"),
    [
        (12, "train", "SIGTERM", 12),  # behind the batch, with its resume point
        (13, "train", "SIGINT", 12),  # at once
        pytest.param(STEPS, "fit_end", "SIGTERM", STEPS, marks=pytest.mark.exhaustive),
        pytest.param(STEPS, "test_end", "SIGTERM", STEPS, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_told_to_stop_says_how_to_continue_and_ends_with_the_same_weights(
    step: int, where: str, told: str, kept: int, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    outcome = lab.run(*SMALL["cls"], *killer(step, where, told), f"hydra.run.dir={folder}")
    code = 128 + getattr(signal, told)
    assert (outcome.code, state_of(folder)) == (code, "interrupted"), outcome.output
    assert f"interrupted; continue with: python run.py resume={folder}" in outcome.output
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == kept
    set_options(folder, callbacks__extra=[])
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == result_of(finished("cls"))


@pytest.mark.parametrize("told", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_sweep_told_to_stop_begins_no_further_run_and_says_how_to_go_on(told: str, lab: Lab, tmp_path: Path) -> None:
    sweep = ("-m", *SMALL["cls"], "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    outcome = lab.run(*sweep, *killer(12, "train", told))
    assert outcome.code == 128 + getattr(signal, told), outcome.output
    assert f"give its command again with hydra.sweep.dir={tmp_path}" in outcome.output
    assert {path.parent.name: state_of(path.parent) for path in tmp_path.glob("*/status.json")} == {
        "0_cls_gru_seed0": "interrupted"
    }


BASELINE = [word for word in SMALL["forecast"] if not word.startswith("model")] + ["model=persistence"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([*SMALL["cls"], *killer(0, "fit_start", "SIGTERM")], id="before the first batch"),
        pytest.param(
            [*BASELINE, "model.baseline._target_=tests.runs.killer.Terminated", "trust=[tests.runs.killer]"],
            id="while a baseline is fitted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_told_to_stop_before_there_is_a_checkpoint_says_to_start_it_again(
    words: list[str], lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    outcome = lab.run(*words, f"hydra.run.dir={folder}")
    assert (outcome.code, state_of(folder)) == (143, "interrupted"), outcome.output
    assert "interrupted; there is nothing to continue from yet: start it again" in outcome.output
    outcome = lab.run(*words[:-2], f"hydra.run.dir={folder}")
    assert (outcome.code, state_of(folder)) == (0, "finished"), outcome.output


SLURM = {
    **{"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"},
}


@pytest.mark.slow
def test_under_slurm_a_run_leaves_no_checkpoint_that_another_would_begin_with_and_begins_with_none(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    here, folder = tmp_path / "here", tmp_path / "run"
    here.mkdir()
    left = Path(shutil.copy(finished("cls") / "checkpoints" / "last.ckpt", here / "hpc_ckpt_1.ckpt"))
    words = (*SMALL["cls"], *killer(13, "train", "SIGUSR1"), f"hydra.run.dir={folder}")
    outcome = lab.run(*words, folder=here, env=SLURM)
    assert outcome.code == -signal.SIGUSR1, outcome.output
    assert [*here.iterdir()] == [left]
    assert not [*folder.rglob("hpc*")]
    set_options(folder, callbacks__extra=[])
    outcome = lab.run(f"resume={folder}", folder=here, env=SLURM)
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == result_of(finished("cls"))


@pytest.mark.slow
def test_the_epoch_in_which_a_run_was_killed_is_in_tensorboard_once(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    run_and_kill(
        lab, tmp_path / "killed", SMALL["cls"], (STEPS_PER_EPOCH, "validation_end"), (11, "train"), (27, "train")
    )
    events = EventAccumulator(str(tmp_path / "killed"))
    events.Reload()
    for name in ("train/loss", "val/loss"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        history = pd.read_csv(tmp_path / "killed" / "history.csv")
        assert len({step for step, _ in points}) == len(points) == 3, name
        assert [value for _, value in points] == pytest.approx(history[name].tolist(), rel=1e-5)
    drawn = [event.step for event in events.Images("val/confusion")]
    assert drawn == [event.step for event in events.Scalars("val/loss")]
    for name in events.Tags()["tensors"]:  # the layout, texts, precision over recall
        assert len(events.Tensors(name)) == 1, name


@pytest.mark.exhaustive
def test_a_run_that_had_decided_to_stop_early_when_it_was_killed_stops(lab: Lab, tmp_path: Path) -> None:
    # Nothing is an improvement behind the first epoch: the second one is the last.
    stopping = ("callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=100")
    words = (*SMALL["forecast"], *stopping, "trainer.max_epochs=4")
    outcome = lab.run(*words, f"hydra.run.dir={tmp_path / 'whole'}")
    assert outcome.code == 0, outcome.output
    expected = result_of(tmp_path / "whole")
    assert expected["metrics"]["epochs"] == 2
    for where in ("validation_end", "epoch_end"):
        run_and_kill(lab, tmp_path / where, words, (2 * STEPS_PER_EPOCH, where))
        assert result_of(tmp_path / where) == expected


def contents(folder: Path) -> dict[str, bytes]:
    logs = ("run.log", "status.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in logs}


def test_resuming_a_finished_run_says_so_and_changes_nothing(lab: Lab, finished: Finished, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished("cls"), tmp_path / "copy"))
    before = contents(folder)
    outcome = lab.run(f"resume={folder}", f"data.cache_dir={tmp_path}")
    assert outcome.code == 0
    assert "finished already" in outcome.output
    assert "f1_macro" in outcome.output
    assert contents(folder) == before


def test_a_second_run_into_the_same_folder_is_refused(lab: Lab, finished: Finished, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished("cls"), tmp_path / "copy"))
    before = contents(folder)
    outcome = lab.run(*SMALL["cls"], f"hydra.run.dir={folder}")
    assert outcome.code == 1
    assert f"resume={folder}" in outcome.output.replace("\n", "")
    assert contents(folder) == before


@pytest.mark.slow
def test_a_run_that_another_process_wants_to_resume_while_it_trains_is_undisturbed(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder, said = tmp_path / "run", tmp_path / "said.txt"
    rival = f"callbacks.extra=[{{_target_: tests.runs.killer.Rival, step: 13, output: '{said}'}}]"
    outcome = lab.run(*SMALL["cls"], rival, "trust=[tests.runs.killer]", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.output
    assert said.read_text().startswith("1: ")
    assert f"{folder} is in use" in said.read_text().replace("\n", "")
    assert state_of(folder) == "finished"
    assert result_of(folder) == result_of(finished("cls"))


def test_a_folder_in_use_is_left_as_it_is_and_free_again_at_the_end(lab: Lab, half_done: Path) -> None:
    before, status = contents(half_done), (half_done / "status.json").read_bytes()
    with FileLock(half_done / ".lock"):
        assert f"{half_done} is in use" in refused(lab, f"resume={half_done}").replace("\n", "")
        assert (half_done / "status.json").read_bytes() == status
        assert contents(half_done) == before | {".lock": b""}
    outcome = lab.run(f"resume={half_done}")
    assert outcome.code == 0, outcome.output
    assert not (half_done / ".lock").exists()


def test_a_sweep_that_finds_a_folder_in_use_ends(lab: Lab, tmp_path: Path) -> None:
    first = tmp_path / "0_cls_gru_seed0"
    first.mkdir()
    with FileLock(first / ".lock"):
        output = refused(lab, "-m", *SMALL["cls"], "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert f"{first} is in use" in output.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [first.name]


@pytest.mark.slow
def test_where_nothing_can_be_locked_a_run_says_so_and_goes_on(lab: Lab, half_done: Path) -> None:
    (half_done / ".lock").mkdir()
    outcome = lab.run(f"resume={half_done}")
    assert outcome.code == 0, outcome.output
    assert "wouldn't be noticed" in outcome.output
    assert state_of(half_done) == "finished"


def refused(lab: Lab, *words: str) -> str:
    """The one message of a run that was refused."""
    outcome = lab.run(*words)
    assert outcome.code == 1, outcome.output
    assert "Traceback" not in outcome.output
    assert outcome.output.count("error: ") == 1, outcome.output
    return outcome.output


def test_resuming_from_nothing_is_an_error_and_never_a_fresh_start(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    assert "nothing to resume from" in refused(lab, f"resume={tmp_path / 'nowhere'}")
    assert "config.yaml" in refused(lab, f"resume={tmp_path}")
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("config.yaml", "status.json"):
        shutil.copy(finished("cls") / name, stopped)
    message = refused(lab, f"resume={stopped}")
    assert "nothing to resume from" in message
    assert "last.ckpt" in message
    assert not (stopped / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_has_not_written_a_checkpoint_is_started_again_by_its_command(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)  # as where the disk was full
    shutil.copy(finished("cls") / "config.yaml", folder)
    outcome = lab.run(*SMALL["cls"], f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == result_of(finished("cls"))


@pytest.fixture
def half_done(finished: Finished, tmp_path: Path) -> Path:
    """A run folder as if the run had been killed before its end."""
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "half done"))
    (folder / "metrics.json").unlink()
    return folder


def test_a_resumed_run_keeps_its_model_and_its_options(lab: Lab, half_done: Path) -> None:
    status = (half_done / "status.json").read_bytes().replace(b"finished", b"interrupted")
    (half_done / "status.json").write_bytes(status)
    message = refused(lab, f"resume={half_done}", "model=gru")
    assert (half_done / "status.json").read_bytes() == status
    assert "lstm" in message
    assert "gru" in message
    assert "optimizer.lr=0.1" in refused(lab, f"resume={half_done}", "optimizer.lr=0.1")
    set_options(half_done, model__encoder__hidden_size=9)
    assert "checkpoint of another model" in refused(lab, f"resume={half_done}")


def test_a_run_folder_can_not_say_itself_what_is_trusted(lab: Lab, half_done: Path, tmp_path: Path) -> None:
    target, marker = "tests.runs.lab.touch", tmp_path / "called"
    call = {"_target_": target, "path": str(marker)}
    set_options(half_done, callbacks__extra=[call], trust=["tests.runs.lab"])
    assert f"{target} is not allowed" in refused(lab, f"resume={half_done}")
    set_options(half_done, callbacks__extra=[], data={**call, "name": "mine"})
    assert f"{target} is not allowed" in refused(lab, "-cn", "describe", f"run={half_done}")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            ["trainer.accelerator=gpu"],
            "trainer.accelerator=gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU that is asked for is there"),
        ),
        (["trainer.fast_dev_run=true"], "a trial keeps no resume points"),
        (["trainer.max_epochs=2"], "has trained 3 epochs already"),
        ([f"trainer.max_steps={STEPS}"], f"has trained {STEPS} steps already"),
        (["trainer.max_epochs=4", "trainer.precision=banana"], "precision"),
        (["experiment=report_forecast"], "experiment=report_forecast"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_resumption_that_can_not_be_leaves_a_finished_run_as_it_was(
    words: list[str], expected: str, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "copy"))
    before, status = contents(folder), (folder / "status.json").read_bytes()
    assert expected in refused(lab, f"resume={folder}", *words)
    assert contents(folder) == before
    assert (folder / "status.json").read_bytes() == status


@pytest.mark.slow
def test_a_finished_run_can_be_prolonged_and_is_unfinished_meanwhile(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "copy"))
    before = (folder / "metrics.json").read_bytes()
    longer = (f"resume={folder}", "trainer=cpu", "trainer.max_epochs=4", "trust=[tests.runs.killer]")
    set_kill(folder, STEPS + 5)
    assert lab.run(*longer).code == -signal.SIGKILL
    assert (folder / "metrics.json").read_bytes() == before
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "running"
    set_options(folder, callbacks__extra=[])
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder)["metrics"]["epochs"] == 4
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished"


@pytest.mark.parametrize(
    "task", [pytest.param("cls", marks=pytest.mark.slow), pytest.param("forecast", marks=pytest.mark.exhaustive)]
)
def test_what_was_chosen_on_the_validation_split_is_tested_without_being_trained_again(
    task: str, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder, expected = tmp_path / "run", result_of(finished(task))
    assert lab.run(*SMALL[task], "score_on=val", f"hydra.run.dir={folder}").code == 0
    assert result_of(folder)["metrics"]["split"] == "val"
    outcome = lab.run(f"resume={folder}", "score_on=test")
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == expected
    assert "is finished already" in lab.run(f"resume={folder}", "score_on=test").output
    assert "can't be scored on the validation split any more" in refused(lab, f"resume={folder}", "score_on=val")


@pytest.mark.slow
def test_a_run_of_older_code_goes_on_with_the_defaults_of_what_is_new_and_without_what_is_gone(
    lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    outcome = lab.run(*SMALL["forecast"], *killer(STEPS - 5), f"hydra.run.dir={folder}")
    assert outcome.code == -signal.SIGKILL, outcome.output
    set_options(folder, callbacks__extra=[])
    config: Any = OmegaConf.load(folder / "config.yaml")
    del config.score_on, config.optimizer.fused, config.callbacks.averaging, config.trainer.threads
    config.gone, config.callbacks.gone = {"since": 1}, 2
    OmegaConf.save(config, folder / "config.yaml")
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder)["history"] == result_of(finished("forecast"))["history"]


@pytest.mark.exhaustive
def test_epochs_are_counted_as_such_though_they_are_validated_twice(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("+trainer.extra.val_check_interval=0.5", "trainer.max_epochs=2", "callbacks=none")
    assert lab.run(*SMALL["forecast"], *words, f"hydra.run.dir={folder}").code == 0
    outcome = lab.run(f"resume={folder}", "trainer.max_epochs=3")
    assert outcome.code == 0, outcome.output
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["epochs"] == 3


def test_a_run_is_resumed_in_its_own_folder_and_alone(lab: Lab, half_done: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(half_done, tmp_path / "other"))
    before, status = contents(other), (other / "status.json").read_bytes()
    message = refused(lab, f"resume='{half_done}'", f"hydra.run.dir='{other}'")
    assert f"leave out hydra.run.dir={other}" in message
    assert contents(other) == before
    assert (other / "status.json").read_bytes() == status
    message = refused(lab, "-m", f"resume='{half_done}'", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert f"hydra.sweep.dir={half_done.parent}" in message


TRAINER = {"accelerator": "auto", "devices": 1, "strategy": "auto", "max_epochs": 3, "fast_dev_run": False}


def as_config(scheduler: Any = None, **trainer: Any) -> DictConfig:
    values = {"model": {"name": "gru"}, "seed": 0, "scheduler": scheduler, "trainer": {**TRAINER, **trainer}}
    return OmegaConf.create(values)


def test_of_a_trainer_group_a_resumed_run_takes_only_where_to_train() -> None:
    asked = as_config(accelerator="cpu", devices=2, strategy="ddp", max_epochs=15)
    merged = merge_overrides(as_config(), asked, ["trainer=ddp", "trainer.devices=2"])
    assert merged == as_config(accelerator="cpu", devices=2, strategy="ddp")
    assert merge_overrides(as_config(), asked, ["resume=F"]) == as_config()
    assert merge_overrides(as_config(scheduler={}), asked, ["trainer=ddp"]).trainer.max_epochs == 3
    added = merge_overrides(as_config(), as_config(extra={"profiler": "simple"}), ["+trainer.extra.profiler=simple"])
    assert added == as_config(extra={"profiler": "simple"})
    assert merge_overrides(added, as_config(), ["~trainer.extra.profiler"]).trainer.extra.profiler is None
    moved: Any = OmegaConf.merge(as_config(), {"data": {"cache_dir": "new"}})
    assert merge_overrides(as_config(), moved, ["data.cache_dir=new"]) == moved


def test_an_override_that_would_be_ignored_or_change_the_run_is_refused() -> None:
    asked = as_config(max_epochs=5)
    asked.seed = 1
    for override in ("experiment=report_cls", "seed=1"):
        with pytest.raises(ConfigError, match=override):
            merge_overrides(as_config(), asked, [override])
    with pytest.raises(ConfigError, match="schedule"):
        merge_overrides(as_config(scheduler={"warmup": 0.1}), asked, ["trainer.max_epochs=5"])


def test_an_edited_data_file_is_noticed(lab: Lab, tmp_path: Path) -> None:
    path, folder = write_texts(tmp_path / "texts.csv"), tmp_path / "run"
    own = (f"data.path={path}", "data.text_column=内容", "data.target=类别", f"hydra.run.dir={folder}")
    outcome = lab.run(*cls_words(), *OWN_TEXTS, *own)
    assert outcome.code == 0, outcome.output
    (folder / "metrics.json").unlink()
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1], lines[3] = lines[3], lines[1]  # the same classes, as many words
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert "the data has changed" in refused(lab, f"resume={folder}")


def cut(file: Path) -> bytes:
    """Cut a file in half; what is left of it."""
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(half)
    return half


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("metrics.json", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("status.json", "data_report.json")),
    ],
)
def test_a_damaged_file_is_named_and_left_and_without_it_the_run_goes_on(
    name: str, lab: Lab, finished: Finished, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished("forecast"), tmp_path / "run"))
    if name == "data_report.json":
        (folder / "metrics.json").unlink()  # a finished run has no more use for the report
    half = cut(folder / name)
    assert f"{folder / name} is damaged" in refused(lab, f"resume={folder}")
    assert (folder / name).read_bytes() == half
    (folder / name).unlink()
    outcome = lab.run(f"resume={folder}")
    assert outcome.code == 0, outcome.output
    assert result_of(folder) == result_of(finished("forecast"))


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b'{"state": "fin'])
def test_what_is_no_json_of_a_run_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"status\.json is damaged .*: delete it, .* resume="):
        read_json(tmp_path / "status.json")


@pytest.mark.parametrize("fault", ["truncated", "flipped"])
def test_a_damaged_resume_point_is_noticed_and_the_good_one_is_named(lab: Lab, half_done: Path, fault: str) -> None:
    last, best = half_done / "checkpoints" / "last.ckpt", half_done / "checkpoints" / "best.ckpt"
    content = bytearray(last.read_bytes())
    if fault == "truncated":
        del content[len(content) // 2 :]
    else:
        weights = read_checkpoint(last)["state_dict"]["model.head.weight"]
        content[content.index(weights.numpy().tobytes()) + 5] ^= 4
    last.write_bytes(content)
    message = refused(lab, f"resume={half_done}")
    assert "is damaged" in message
    assert f"best.ckpt is good (step {read_checkpoint(best)['global_step']})" in message


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "small.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 3, "state_dict": {"w": torch.arange(40.0)}}, path)
    return path


def test_a_checkpoint_cut_anywhere_is_refused(small_checkpoint: Path) -> None:
    content = small_checkpoint.read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        small_checkpoint.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="is damaged"):
            read_checkpoint(small_checkpoint)


def test_a_flipped_bit_is_refused_or_changes_nothing(small_checkpoint: Path) -> None:
    content, refusals = small_checkpoint.read_bytes(), 0
    generator = random.Random(0)
    for _ in range(300):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        small_checkpoint.write_bytes(flipped)
        try:
            read = read_checkpoint(small_checkpoint)
        except CheckpointError:
            refusals += 1
            continue
        assert read["global_step"] == 3
        assert torch.equal(read["state_dict"]["w"], torch.arange(40.0))
    assert refusals > 50


def test_of_several_good_checkpoints_the_one_of_the_latest_step_is_named_not_the_latest_file(
    small_checkpoint: Path,
) -> None:
    for step, written in {5: 2.0, 20: 1.0, 10: 3.0}.items():
        path = small_checkpoint.with_name(f"at {step}.ckpt")
        AtomicCheckpointIO().save_checkpoint({"global_step": step, "blueprint": {}}, path)
        os.utime(path, (written, written))
    small_checkpoint.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"at 20\.ckpt is good \(step 20\)"):
        read_checkpoint(small_checkpoint)


def test_without_another_checkpoint_the_message_says_to_start_again(small_checkpoint: Path) -> None:
    small_checkpoint.write_bytes(small_checkpoint.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="no other checkpoint beside it: start the run again"):
        read_checkpoint(small_checkpoint)


class Explosive:
    """Pickles as a call that leaves a file behind when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(lab: Lab, half_done: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = half_done / "checkpoints" / "last.ckpt"
    torch.save({**read_checkpoint(path), "epoch": Explosive(marker)}, path)
    with pytest.raises(CheckpointError, match="is refused"):
        read_checkpoint(path)
    assert "is refused" in refused(lab, f"resume={half_done}")
    assert not marker.exists()


def test_a_checkpoint_of_another_run_is_refused_and_both_are_named(tmp_path: Path) -> None:
    ours = {"task": {"name": "cls"}, "model": {"name": "gru"}, "optimizer": {"_target_": "A"}, "seed": 0}
    ours["scheduler"] = None
    path = tmp_path / "last.ckpt"
    torch.save({"blueprint": {"config": ours}}, path)
    assert _resume_point(ours, path)["blueprint"]["config"] == ours
    assert _resume_point({**ours, "optimizer": {"_target_": "A", "fused": None}}, path)
    for part, other in {"model": {"name": "lstm"}, "task": {"name": "forecast"}}.items():
        with pytest.raises(CheckpointError, match=rf"of another {part}: it doesn't fit .* into .*{other['name']}"):
            _resume_point({**ours, part: other}, path)
    for part, other in {"optimizer": {"_target_": "B"}, "scheduler": {"_target_": "B"}, "seed": 1}.items():
        with pytest.raises(CheckpointError, match=rf"is of {part}=\w+, the run of {part}=[B1]"):
            _resume_point({**ours, part: other}, path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.ckpt: No such file"):
        read_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_epoch_with_a_score_that_is_no_number_is_never_the_best(mode: str, tmp_path: Path) -> None:
    recorder, saved = Recorder(tmp_path, "val/f1", mode, every_n_steps=100), []
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False)
    trainer.save_checkpoint = lambda path: saved.append((trainer.current_epoch, path.name))
    good, better = (0.5, 0.4) if mode == "min" else (0.4, 0.5)
    scores = [(nan, nan), (nan, 0.45), (1.0, inf), (1.0, -inf), (1.0, good), (1.0, nan), (nan, better), (1.0, better)]
    for epoch, (loss, score) in enumerate(scores):
        trainer.current_epoch = trainer.global_step = epoch
        trainer.callback_metrics = {"val/loss": torch.tensor(loss), "val/f1": torch.tensor(score)}
        recorder.on_validation_end(trainer, pl.LightningModule())
    assert [epoch for epoch, name in saved if name == "best.ckpt"] == [4, 7]
    assert recorder.best == {"score": pytest.approx(better), "epoch": 8, "step": 7}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"global_step": 4}, small_checkpoint)
    monkeypatch.undo()
    assert read_checkpoint(small_checkpoint)["global_step"] == 3
    assert [path.name for path in small_checkpoint.parent.iterdir()] == [small_checkpoint.name]


def test_what_cannot_take_its_place_stays_beside_it_and_the_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*arguments: object) -> None:
        raise PermissionError(13, "Access is denied")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(checkpoints.os, "replace", locked)
    with pytest.raises(PermissionError) as caught:
        write_atomically(path, b"new")
    (beside,) = set(tmp_path.iterdir()) - {path}
    assert path.read_bytes() == b"old"
    assert beside.read_bytes() == b"new"
    assert explain(caught.value, []) == f"Access is denied, its new content stays in {beside}: {path}"


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"a longer content", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content


def test_a_write_removes_what_killed_processes_left_beside_the_file(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = [f".file.{os.getppid()}.0123", ".file.txt", f".other.{ended.pid}.0123"]
    for name in (f".file.{ended.pid}", f".file.{ended.pid}.0123", *kept):
        (tmp_path / name).touch()
    write_atomically(tmp_path / "file", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "file"])


def test_a_write_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear")
    for name in (f".file.{os.getpid()}", "file", "figure.png", "figure.svg"):
        (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "file", b"content")
    figures.save(Figure(), tmp_path / "figure")
    assert victim.read_bytes() == b"dear"
    assert not any((tmp_path / name).is_symlink() for name in ("file", "figure.png", "figure.svg"))


@pytest.mark.slow
def test_a_killed_loader_worker_is_one_message_with_advice(lab: Lab, tmp_path: Path) -> None:
    words = [*SMALL["forecast"], "callbacks.extra=[{_target_: tests.runs.killer.WorkerKiller, step: 6}]"]
    words += ["data.num_workers=1", "trust=[tests.runs.killer]", f"hydra.run.dir={tmp_path / 'run'}"]
    message = refused(lab, *words)
    assert "DataLoader worker (pid" in message
    assert "lower data.num_workers" in message
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_full_disk_is_one_message_that_names_the_file(lab: Lab, tmp_path: Path) -> None:
    full = "_target_: tests.runs.killer.FullDisk, size: 4000"
    words = [*SMALL["cls"], f"callbacks.extra=[{{{full}}}]", "trust=[tests.runs.killer]"]
    message = refused(lab, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert "File too large" in message
    assert "last.ckpt" in message


STRANGERS = {
    "a reference": ("title: ${oc.env:HOME}\n", "has the reference ${oc.env:HOME}"),
    "a reference within a list": ("title: [a, '${oc.env:HOME}']\n", "has the reference ${oc.env:HOME}"),
    "aliases": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "it has aliases"),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("words", ["resume=run", "-cn describe run=run", "-cn predict run=run text=x"])
def test_a_run_folder_of_a_stranger_reads_no_secret_and_takes_no_memory(
    name: str, words: str, lab: Lab, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    line, message = STRANGERS[name]
    path = Path(shutil.copytree(finished("cls"), tmp_path / "run")) / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
    outcome = lab.run(*words.split(), folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert message in outcome.output
    assert str(Path.home()) not in outcome.output


def test_a_run_folder_of_a_stranger_downloads_nothing(
    lab: Lab, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing listens at the address: had it been asked, the message would say so."""
    folder = Path(shutil.copytree(finished("cls"), tmp_path / "run"))
    config: Any = OmegaConf.load(folder / "config.yaml")
    config.data.update({"urls": ["http://127.0.0.1:9/evil.csv"], "files": ["evil.csv"], "on_missing": "error"})
    OmegaConf.save(config, folder / "config.yaml")
    resumed = lab.run("resume=run", folder=tmp_path)
    assert resumed.code == 1
    assert "names http://127.0.0.1:9/evil.csv to download its data from" in resumed.output
    described = lab.run("-cn", "describe", "run=run", folder=tmp_path)
    assert described.code == 0
    assert "names http://127.0.0.1:9/evil.csv to download its data from" in described.output
    wanted = lab.run("resume=run", 'data.urls=["http://127.0.0.1:9/evil.csv"]', folder=tmp_path)
    assert "could not be downloaded" in wanted.output or "is finished already" in wanted.output
