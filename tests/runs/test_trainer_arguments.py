"""What `trainer.extra` and `callbacks.extra` hand over to Lightning: it works, or is refused in words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, ProgressBar, Timer, TQDMProgressBar

from datamodules.sampling import BatchOrder, split_loader
from runs import schema
from runs.build import plain
from runs.checkpoints import Recorder
from runs.checks import validate
from runs.errors import explain
from runs.schema import ConfigError
from runs.train import UNSUITED, _build_trainer
from tests.runs.lab import SMALL, Lab

CALLBACKS = "pytorch_lightning.callbacks"


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    composed.cache_clear()


@functools.cache
def composed() -> DictConfig:
    return compose("config", overrides=["trainer=cpu", "logger=none"])


def trainer_for(folder: Path, *words: str) -> Any:
    """The trainer that a run with these options would have."""
    config = composed().copy()
    for override in OverridesParser.create().parse_overrides(list(words)):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    validate(config)
    return _build_trainer(plain(config), Recorder(folder, "val/loss", "min", 10), None, began=lambda: None)


def test_every_argument_of_the_trainer_is_an_option_a_further_one_or_unavailable() -> None:
    options = {item.name for item in fields(schema.TrainerConfig)} - {"threads", "extra"}
    further = {item.name for item in fields(schema.ExtraTrainerConfig)}
    takes = {*inspect.signature(pl.Trainer).parameters}
    assert takes == options | further | schema.UNAVAILABLE.keys()
    assert len(takes) == len(options) + len(further) + len(schema.UNAVAILABLE)


def test_a_further_arguments_default_is_the_trainers() -> None:
    parameters = inspect.signature(pl.Trainer).parameters
    for item in fields(schema.ExtraTrainerConfig):
        assert item.default == parameters[item.name].default, item.name


TAKEN = {
    "accumulate_grad_batches=3": lambda trainer: trainer.accumulate_grad_batches == 3,
    "gradient_clip_algorithm=value": lambda trainer: trainer.gradient_clip_algorithm == "value",
    "val_check_interval=7": lambda trainer: trainer.val_check_interval == 7,
    "val_check_interval=0.5": lambda trainer: trainer.val_check_interval == 0.5,
    "val_check_interval='00:00:01:00'": lambda trainer: trainer._val_check_time_interval == 60,
    "check_val_every_n_epoch=2": lambda trainer: trainer.check_val_every_n_epoch == 2,
    "check_val_every_n_epoch=null": lambda trainer: trainer.check_val_every_n_epoch is None,
    "max_time={minutes: 2}": lambda trainer: timer_of(trainer).time_remaining() == 120,
    "max_time='00:00:02:00'": lambda trainer: timer_of(trainer).time_remaining() == 120,
    "min_epochs=2": lambda trainer: trainer.min_epochs == 2,
    "min_steps=5": lambda trainer: trainer.min_steps == 5,
    "benchmark=false": lambda trainer: True,
    "inference_mode=false": lambda trainer: not trainer.test_loop.inference_mode,
    "detect_anomaly=true": lambda trainer: trainer._detect_anomaly,
    "sync_batchnorm=true": lambda trainer: True,  # nothing here has such a layer
    "reload_dataloaders_every_n_epochs=1": lambda trainer: trainer.reload_dataloaders_every_n_epochs == 1,
    "overfit_batches=2": lambda trainer: (trainer.limit_train_batches, trainer.limit_val_batches) == (2, 2),
    "profiler=simple": lambda trainer: trainer.profiler.filename == "profile",
    "profiler=advanced": lambda trainer: trainer.profiler.filename == "profile",
    "profiler=pytorch": lambda trainer: trainer.profiler.filename == "profile",
    "profiler={_target_: pytorch_lightning.profilers.SimpleProfiler, filename: mine}": lambda trainer: (
        trainer.profiler.filename == "mine"
    ),
}


def timer_of(trainer: Any) -> Timer:
    return next(each for each in trainer.callbacks if isinstance(each, Timer))


@pytest.mark.parametrize(("word", "arrived"), TAKEN.items(), ids=TAKEN)
def test_a_further_argument_arrives_at_the_trainer(word: str, arrived: Any, tmp_path: Path) -> None:
    assert arrived(trainer_for(tmp_path, f"+trainer.extra.{word}"))


REFUSED = {
    **{f"{name}=true": f"trainer.extra can't set {name}: {advice}" for name, advice in schema.UNAVAILABLE.items()},
    "max_epochs=3": "trainer.extra can't set max_epochs: give it as trainer.max_epochs=3",
    "nothing=1": "there is no option trainer.extra.nothing",
    "overfit_batch=1": "Did you mean trainer.extra.overfit_batches?",
    "accumulate_grad_batches=0": "trainer.extra.accumulate_grad_batches=0 is not allowed: it must be at least 1",
    "accumulate_grad_batches=many": "trainer.extra.accumulate_grad_batches=many is not allowed",
    "accumulate_grad_batches=null": "trainer.extra.accumulate_grad_batches=None is not allowed",
    "gradient_clip_algorithm=foo": "must be one of norm, value",
    "val_check_interval=0": "trainer.extra.val_check_interval=0 is not allowed: it must be above 0",
    "val_check_interval=foo": "trainer.extra.val_check_interval=foo is not allowed: a time is days:hours",
    "check_val_every_n_epoch=0": "it must be at least 1",
    "max_time=foo": "trainer.extra.max_time=foo is not allowed: a time is days:hours",
    "min_epochs=foo": "trainer.extra.min_epochs=foo is not allowed",
    "min_epochs=99": "trainer.max_epochs=15 ends the training before",
    "benchmark=foo": "trainer.extra.benchmark=foo is not allowed",
    "overfit_batches=-1": "trainer.extra.overfit_batches=-1 is not allowed: it must be at least 0",
    "overfit_batches=many": "trainer.extra.overfit_batches=many is not allowed: it must be a number",
    "overfit_batches=true": "trainer.extra.overfit_batches=True is not allowed: it must be a number",
    "overfit_batches=1.5": "overfit_batches, it has to be in [0.0, 1.0] or an int",
    "profiler=foo": "trainer.extra.profiler=foo is not allowed: it must be one of simple, advanced, pytorch",
    "reload_dataloaders_every_n_epochs=-1": "it must be at least 0",
}


@pytest.mark.parametrize(("word", "expected"), REFUSED.items(), ids=REFUSED)
def test_a_further_argument_that_can_not_be_is_refused_by_name(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_for(tmp_path, f"+trainer.extra.{word}")
    assert expected in str(caught.value)


PLACES = {
    "accelerator=tpu": "trainer.accelerator=tpu: Requirement 'torch_xla",
    "accelerator=foo": "trainer.accelerator=foo: You selected an invalid accelerator name",
    "strategy=bar": "trainer.strategy=bar: You selected an invalid strategy name",
    "strategy=fsdp": "The strategy `fsdp` requires a GPU",
    "precision=foo": "trainer.precision=foo: Precision 'foo' is invalid",
    "devices=0": "trainer.devices=0: `Trainer(devices=0)` value is not a valid input",
    "devices=banana": "trainer.devices=banana: `devices` selected",
    "devices=999": "trainer.devices=999: this computer has",
    "fast_dev_run=x": "trainer.fast_dev_run=x is not allowed: it must be a number",
}


@pytest.mark.parametrize(("word", "expected"), PLACES.items(), ids=PLACES)
def test_a_place_where_nothing_can_be_trained_is_refused_by_name(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_for(tmp_path, f"trainer.{word}")
    assert expected in str(caught.value)


@pytest.mark.parametrize("unsuited", UNSUITED, ids=lambda each: each.__name__)
def test_a_callback_that_a_run_can_not_use_is_refused_with_what_to_do_instead(unsuited: type, tmp_path: Path) -> None:
    arguments = {"ModelPruning": ", pruning_fn: l1_unstructured", "StochasticWeightAveraging": ", swa_lrs: 0.1"}
    arguments["OnExceptionCheckpoint"] = ", dirpath: mine"
    word = f"callbacks.extra=[{{_target_: {CALLBACKS}.{unsuited.__name__}{arguments.get(unsuited.__name__, '')}}}]"
    with pytest.raises(ConfigError) as caught:
        trainer_for(tmp_path, word)
    assert f"{unsuited.__name__} can't be used: {UNSUITED[unsuited]}" in str(caught.value)


def test_what_is_no_callback_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.extra: pytorch_lightning\.loggers\.CSVLogger is no callback"):
        trainer_for(tmp_path, "callbacks.extra=[{_target_: pytorch_lightning.loggers.CSVLogger, save_dir: x}]")


def test_another_progress_bar_takes_the_place_of_ours(tmp_path: Path) -> None:
    word = f"callbacks.extra=[{{_target_: {CALLBACKS}.TQDMProgressBar}}]"
    bars = [each for each in trainer_for(tmp_path, word).callbacks if isinstance(each, ProgressBar)]
    assert [type(bar) for bar in bars] == [TQDMProgressBar]
    with pytest.raises(ConfigError, match=r"TQDMProgressBar needs trainer\.enable_progress_bar=true"):
        trainer_for(tmp_path, word, "trainer.enable_progress_bar=false")


def test_what_lightning_says_of_a_callback_is_no_stack_trace() -> None:
    with pytest.raises(RuntimeError) as caught:
        EarlyStopping("val/nothing")._validate_condition_metric({})
    assert str(explain(caught.value, [])).startswith("trainer or callbacks.extra: Early stopping conditioned on metric")


def dataset(size: int) -> Any:
    return np.arange(size)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_overfitting_trainer_sees_the_batches_of_the_first_epoch_in_every_epoch(world_size: int) -> None:
    for rank in range(world_size):
        trainer = SimpleNamespace(overfit_batches=2, global_rank=rank, world_size=world_size)
        loader = split_loader(dataset(50), "train", trainer, batch_size=8, num_workers=0, seed=3)
        expected = BatchOrder(50, 8, shuffle=True, seed=3, rank=rank, world_size=world_size).batches(0)
        for epoch in range(3):
            loader.order.set_epoch(epoch)
            assert [batch.tolist() for batch in loader] == expected
        loader.load_state_dict({"epoch": 2, "consumed": 1})
        assert [batch.tolist() for batch in loader] == expected[1:]


@pytest.mark.slow
def test_a_run_overfits_a_few_batches_and_profiles_itself(lab: Lab, tmp_path: Path) -> None:
    words = ["+trainer.extra.overfit_batches=2", "+trainer.extra.profiler=simple", "hydra.run.dir=run"]
    outcome = lab.run(*SMALL["cls"], *words, "optimizer.lr=0.03", "trainer.max_epochs=5", folder=tmp_path)
    assert outcome.code == 0, outcome.output
    assert "Warning" not in outcome.output
    assert "You requested to overfit" not in outcome.output
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["step"].tolist() == [2, 4, 6, 8, 10]
    assert history["train/loss"].iloc[-1] < history["train/loss"].iloc[0]
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text(encoding="utf-8")
    assert "the profiler writes fit-profile" in outcome.output
