from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from runs import job, schema
from runs.build import build_datamodule, build_task, instantiate, load_task, plain
from runs.checkpoints import AtomicCheckpointIO
from runs.checks import differing, validate
from runs.errors import explain
from runs.schema import SCHEMAS, Config, ConfigError
from tasks import Baseline
from tests.runs.lab import ROOT, SMALL, Lab

CONF = ROOT / "conf"
OWN_CELL = "model.encoder.cell._target_=rnn_cells.GRUCell"
# How to choose each schema.
CHOICES: dict[type, tuple[str, list[str]]] = {
    schema.ClassificationConfig: ("task", ["task=cls"]),
    schema.ForecastingConfig: ("task", ["task=forecast"]),
    schema.TextConfig: ("data", ["data=sample_reviews"]),
    schema.SeriesConfig: ("data", ["task=forecast"]),
    schema.RNNModelConfig: ("model", ["model=lstm"]),
    schema.GRUModelConfig: ("model", ["model=gru"]),
    schema.CellModelConfig: ("model", ["model=cell", OWN_CELL]),
    schema.EncoderlessModelConfig: ("model", ["model=fasttext_like"]),
    schema.BaselineModelConfig: ("model", ["task=forecast", "model=persistence"]),
    schema.AdamConfig: ("optimizer", ["optimizer=adam"]),
    schema.SGDConfig: ("optimizer", ["optimizer=sgd"]),
    schema.SchedulerConfig: ("scheduler", ["scheduler=onecycle"]),
    schema.CosineConfig: ("scheduler", ["scheduler=cosine"]),
    schema.TrainerConfig: ("trainer", ["trainer=cpu"]),
    schema.CallbacksConfig: ("callbacks", ["callbacks=default"]),
    Config: ("", []),
}
FACTS: dict[str, dict[str, Any]] = {
    "cls": {
        "classes": ["a", "b"],
        "vocab_size": 9,
        "padding_index": 0,
        "unknown_index": 1,
        "vocabulary": list("_?abcdefg"),
    },
    "forecast": {
        **{"num_features": 3, "lookback": 12, "horizon": 6, "season_length": 4, "step_hours": 6.0},
        **{"target_mean": 1.0, "target_std": 2.0},
    },
}


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        yield
    composed.cache_clear()


@functools.cache
def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=list(overrides))


def options_of(*groups: str) -> list[str]:
    """`group=name` for every file of the groups."""
    files = {group: sorted((CONF / group).rglob("*.yaml")) for group in groups}
    return [
        f"{group}={path.relative_to(CONF / group).with_suffix('').as_posix()}"
        for group, paths in files.items()
        for path in paths
    ]


def batch_for(task: str) -> dict[str, torch.Tensor]:
    if task == "cls":
        inputs, characters = torch.randint(1, 9, (4, 5)), torch.randint(97, 104, (4, 9))
        answers = {"lengths": torch.tensor([5, 0, 2, 1]), "targets": torch.tensor([0, 1, 1, 0])}
        return {"inputs": inputs, "characters": characters, **answers}
    shapes = {"inputs": (12, 3), "history": (12,), "targets": (6,), "climatology": (6,)}
    return {name: torch.randn(4, *shape) for name, shape in shapes.items()}


def check(config: DictConfig, tmp_path: Path) -> None:
    """Everything that the configuration names can be built and used."""
    validate(config)
    settings = plain(config)
    name = settings["task"]["name"]
    data = build_datamodule(settings)
    assert isinstance(data, pl.LightningDataModule)
    task = build_task(settings, FACTS[name])
    if isinstance(task.model, Baseline):
        task.model.fit([batch_for(name), batch_for(name)])
        assert task.loss(batch_for(name))[1].isfinite().all()
        return
    loss, outputs = task.loss(batch_for(name))
    loss.backward()
    assert outputs.isfinite().all()
    optimizer = task.make_optimizer(task.parameters())
    assert optimizer.param_groups[0]["lr"] == settings["optimizer"]["lr"]
    if settings["scheduler"]:
        assert task.make_scheduler is not None
        task.make_scheduler(optimizer, 10)
    if settings["logger"]:
        instantiate(settings["logger"], save_dir=str(tmp_path))


def test_the_groups_are_those_of_the_folder() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert groups == {*SCHEMAS, "ablation", "experiment", "experiment_model", "hydra", "logger"}


@pytest.mark.parametrize("option", options_of(*SCHEMAS, "logger"))
def test_every_choice_of_a_group_composes_validates_and_builds(option: str, tmp_path: Path) -> None:
    own_cell = [OWN_CELL] if option == "model=cell" else []
    config = composed(option, *own_cell)
    tasks = ["cls", "forecast"]
    if option.startswith("data="):
        tasks = ["forecast" if OmegaConf.get_type(config.data) is schema.SeriesConfig else "cls"]
    elif "for_task" in config.model:
        tasks = [config.model.for_task]
    for task in tasks:
        words = [option] if option.startswith("task=") else [f"task={task}", option]
        check(composed(*words, *own_cell), tmp_path)


@pytest.mark.parametrize("experiment", options_of("experiment"))
@pytest.mark.parametrize("model", ["rnn", "gru", "lstm", "bilstm"])
def test_every_experiment_builds_with_every_model(experiment: str, model: str, tmp_path: Path) -> None:
    check(composed(experiment, f"model={model}"), tmp_path)


def sweeps_of(words: list[str]) -> list[list[str]]:
    """What an experiment's or an ablation's own sweep goes through, one list of values per option."""
    params = compose("config", words, return_hydra_config=True).hydra.sweeper.params
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in (params or {}).items()])
    return [[f"{each.key_or_group}={value}" for value in each.sweep_string_iterator()] for each in parsed]


STUDIES = yaml.safe_load((CONF / "results.yaml").read_text(encoding="utf-8"))["studies"].values()
ABLATIONS = [study["command"].split() for study in STUDIES if " ablation=" in study["command"]]


def test_every_ablation_is_a_study_of_three_seeds() -> None:
    assert {words[-1] for words in ABLATIONS} == {"seed=0,1,2"}
    assert {word for words in ABLATIONS for word in words if word.startswith("ablation=")} == {*options_of("ablation")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [["experiment=backtest_forecast"], *(words[:2] for words in ABLATIONS)], ids=" ".join)
def test_every_value_that_is_swept_through_builds(words: list[str], tmp_path: Path) -> None:
    choices = sweeps_of(words)
    assert choices
    assert min(map(len, choices)) > 0
    for values in choices:
        for value in values:
            check(composed(*words, value, "model=gru"), tmp_path)


@pytest.mark.parametrize("words", [words[:2] for words in ABLATIONS], ids=" ".join)
@pytest.mark.parametrize("model", ["gru", "bilstm"])
def test_an_ablation_is_of_the_recipe_but_for_what_it_says(words: list[str], model: str) -> None:
    recipe, ablation = (plain(composed(*chosen, f"model={model}")) for chosen in (words[:1], words))
    assert {*differing([recipe, ablation])} <= {"score_on", "task.members", "task.quantiles"}
    assert ablation["score_on"] == "val"


@pytest.mark.parametrize(
    ("model", "size"), [("bilstm", 64), ("gru", 128), ("fasttext_like", None), ("tfidf_svm", None)]
)
def test_the_recipe_for_reviews_has_128_features_in_all(model: str, size: int | None, tmp_path: Path) -> None:
    config = composed("experiment=best_cls", f"model={model}")
    assert OmegaConf.select(config, "model.encoder.hidden_size") == size
    check(config, tmp_path)
    assert composed("experiment=best_cls", "model.encoder.hidden_size=7").model.encoder.hidden_size == 7


def test_what_is_best_of_a_known_score_is_known_whatever_the_mode_says() -> None:
    for monitor, best in {"val/loss": "min", "val/mae": "min", "val/f1": "max", "val/accuracy": "max"}.items():
        assert {schema.best_is({"monitor": monitor, "mode": mode}) for mode in ("min", "max")} == {best}
    assert schema.best_is({"monitor": "val/own", "mode": "max"}) == "max"


@pytest.mark.parametrize("name", ["report_cls", "report_forecast"])
@pytest.mark.parametrize(("model", "epochs"), [("rnn", 20), ("gru", 20), ("lstm", 10), ("bilstm", 10)])
def test_the_reports_settings_train_each_model_as_long_as_the_report(name: str, model: str, epochs: int) -> None:
    config = composed(f"experiment={name}", f"model={model}")
    assert config.trainer.max_epochs == epochs
    assert config.callbacks.early_stopping is None
    assert config.data.on_missing == "error"
    assert (config.optimizer._target_, config.optimizer.lr) == ("torch.optim.Adam", 1e-3)


def test_the_trainer_takes_every_option_declared_for_it() -> None:
    declared = {item.name for item in fields(schema.TrainerConfig)} - {"threads", "extra"}
    assert declared <= set(inspect.signature(pl.Trainer).parameters)


def declared_limits() -> list[Any]:
    """(schema, key inside its group, metadata, default) of every option with limits, nested ones by dotted key."""
    found: list[Any] = []

    def walk(owner: type, node: type, prefix: str) -> None:
        for item in fields(node):
            default = item.default_factory() if callable(item.default_factory) else item.default
            nested = type(default) if is_dataclass(default) else None
            if item.name == "early_stopping":  # None by default
                nested = schema.EarlyStoppingConfig
            if nested is not None:
                walk(owner, nested, f"{prefix}{item.name}.")
            elif set(item.metadata) & {"least", "above", "most", "choices"}:
                found.append(
                    pytest.param(owner, prefix + item.name, item.metadata, default, id=_id(owner, prefix, item))
                )

    for owner in CHOICES:
        walk(owner, owner, "")
    return found


def _id(owner: type, prefix: str, item: Any) -> str:
    return f"{owner.__name__.removesuffix('Config')} {prefix}{item.name}"


def outside(metadata: Any, whole: bool) -> list[Any]:
    """Values just outside the limits, and no numbers at all."""
    if "choices" in metadata:
        return ["nonsense"]
    step = 1 if whole else 1e-3
    values: list[Any] = [] if whole else [math.nan, math.inf]
    values += [metadata["least"] - step] if "least" in metadata else []
    values += [metadata["above"], metadata["above"] - step] if "above" in metadata else []
    values += [metadata["most"] + step] if "most" in metadata else []
    return values


def inside(metadata: Any, default: Any) -> list[Any]:
    if "choices" in metadata:
        return list(metadata["choices"])
    return [default, *(metadata[name] for name in ("least", "most") if name in metadata)]


def listed(key: str, default: list[Any], value: Any) -> list[Any]:
    """A list that is allowed if `value` is: quantiles hold the median."""
    return [0.5, value] if key == "quantiles" else [*default[:1], value]


def changed(owner: type, key: str, value: Any) -> tuple[DictConfig, str]:
    group, overrides = CHOICES[owner]
    config = composed(*overrides).copy()
    full = f"{group}.{key}" if group else key
    OmegaConf.update(config, full, value)
    return config, full


def test_there_is_a_choice_for_every_schema() -> None:
    assert set(CHOICES) == {Config, *(each for schemas in SCHEMAS.values() for each in schemas)}
    for owner, (group, overrides) in CHOICES.items():
        if group:
            assert OmegaConf.get_type(composed(*overrides)[group]) is owner


@pytest.mark.parametrize(("owner", "key", "metadata", "default"), declared_limits())
def test_a_value_outside_its_limits_is_refused_by_name_and_one_inside_accepted(
    owner: type, key: str, metadata: Any, default: Any
) -> None:
    several = isinstance(default, list)
    for value in outside(metadata, whole=isinstance(default, int) or default is None):
        try:
            config, full = changed(owner, key, listed(key, default, value) if several else value)
        except ValidationError:
            continue  # no number of the option's type (nan for a whole number)
        with pytest.raises(ConfigError) as caught:
            validate(config)
        # A whole number is shown as one, or as its option's type has it.
        named = tuple(f"{full}={shown} is not" for shown in (value, float(value) if type(value) is int else value))
        assert str(caught.value).startswith(named), value
    for value in inside(metadata, default):
        config, _ = changed(owner, key, listed(key, default, value) if several and value != default else value)
        validate(config)


@pytest.mark.parametrize(
    ("owner", "key", "metadata", "default"),
    [option for option in declared_limits() if "choices" not in option.values[2]],
)
def test_a_word_where_a_number_belongs_is_refused_by_name(owner: type, key: str, metadata: Any, default: Any) -> None:
    with pytest.raises((ValidationError, ConfigError), match=key.rpartition(".")[2]):
        validate(changed(owner, key, ["many"] if isinstance(default, list) else "many")[0])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.encoder\.cell\._target_ is missing: give it as model\.encoder\.cell"
    ):
        validate(composed("model=cell"))


MISTAKES = [
    (["optimizer.lrr=1"], "Did you mean optimizer.lr?"),
    (["lr=1"], "Did you mean optimizer.lr?"),
    (["model.encoder.hidden_sise=3"], "Did you mean model.encoder.hidden_size?"),
    (["hidden_size=3"], "Did you mean model.encoder.hidden_size?"),
    (["task.poling=max"], "Did you mean task.pooling?"),
    (["data.bach_size=2"], "Did you mean data.batch_size?"),
    (["trainer.max_epoch=2"], "Did you mean trainer.max_epochs?"),
    (["callbacks.early_stopping.patiense=2"], "Did you mean callbacks.early_stopping.patience?"),
    (["sed=1"], "Did you mean seed?"),
    (["optimizer.momentum=0.5"], "optimizer.momentum belongs to optimizer=sgd"),
    (["data.lookback=5d"], "data.lookback is an option of a series (task=forecast), not of texts."),
    (["task=forecast", "data.text_column=a"], "data.text_column is an option of texts (task=cls), not of a series."),
    (["task=forecast", "data.test_path=a"], "not of a series. Join the files of a series in one, and say where they"),
    (["task.quantiles=[0.5]"], "task.quantiles belongs to task=forecast."),
    (["task=forecast", "task.ngrams.words=1"], "task.ngrams.words belongs to task=cls."),
    (["model=lstm", "model.encoder.reset_after=true"], "model.encoder.reset_after belongs to model=gru."),
    (["scheduler=onecycle", "scheduler.final=0.1"], "scheduler.final belongs to scheduler=cosine."),
    (["trainer.extra.profiler=simple"], "Add it: +trainer.extra.profiler=…"),
    (["logger=null"], "logger=null: a choice of logger is a name: none, tensorboard"),
    (["scheduler=null"], "scheduler=null: a choice of scheduler is a name: cosine, none, onecycle"),
    (["model=3"], "model=3: a choice of model is a name: bilstm, cell"),
    (["+task=[1]"], "+task=[1]: a choice of task is a name: cls, forecast"),
    (["~data=0"], "~data=0: a choice of data is a name: cls"),
    (["completely_different=1"], "--cfg job shows all keys"),
    (["model=nope"], "bilstm"),
    (["optimizer.lr=fast"], "optimizer.lr"),
    (["model.encoder.hidden_size=2.5"], "model.encoder.hidden_size"),
    (["trainer.max_epochs=many"], "trainer.max_epochs"),
    (["task.dropout=null"], "task.dropout"),
    (["scheduler.warmup=3"], "scheduler is null, it has no options; choose scheduler=cosine or scheduler=onecycle"),
    (["callbacks=none", "callbacks.early_stopping.patience=3"], "other choices may have them: callbacks=default"),
    (["callbacks=none", "callbacks.early_stopping={patience: 3}"], "callbacks.early_stopping is null"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words[-1] for words, _ in MISTAKES])
def test_a_mistake_is_explained_with_its_key_and_the_nearest_one(words: Sequence[str], expected: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of Hydra or OmegaConf, whatever it is
        composed(*words)
    message = explain(caught.value, list(words))
    assert message is not None
    assert expected in message
    for noise in ("full_key", "object_type", "HYDRA_FULL_ERROR", "Config search path"):
        assert noise not in message
    assert len(message.splitlines()) <= 8


ADDED = {
    "+callbacks.early_stoping.patience=10": "no option callbacks.early_stoping. Did you mean callbacks.early_stopping?",
    "+callbacks.patience=10": "no option callbacks.patience. Did you mean callbacks.early_stopping.patience?",
    "+callbacks.early_stopping.patiense=1": "Did you mean callbacks.early_stopping.patience?",
    "+model.hidden_size=256": "no option model.hidden_size. Did you mean model.encoder.hidden_size?",
    "+model.encoder.hiden_size=256": "Did you mean model.encoder.hidden_size?",
    "+task.ngrams.word=1": "Did you mean task.ngrams.words?",
    "+sed=1": "no option sed. Did you mean seed?",
    "+data.lookback=5d": "data.lookback is an option of a series",
    "+trainer.profiler=simple": "arguments of Lightning's Trainer go to +trainer.extra",
    "+foo.bar=1": "no option foo. python run.py --cfg job shows all keys",
}


@pytest.mark.parametrize(("word", "expected"), ADDED.items(), ids=ADDED)
def test_a_key_that_is_no_option_is_refused_behind_a_plus_too(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(composed(word))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["model=cell", OWN_CELL, "+model.encoder.cell.leak=0.5"],
        ["model.encoder._target_=my_cells.Reader", "+model.encoder.width=3"],
        ["data._target_=my_data.Readings", "+data.station=7"],
        ["optimizer._target_=torch.optim.NAdam", "+optimizer.momentum_decay=0.1"],
        ["+trainer.extra.profiler=simple"],
        ["+logger.sub_dir=curves"],
        ["callbacks.extra=[{_target_: my_callbacks.Watch, often: true}]"],
    ],
    ids=lambda words: words[-1],
)
def test_what_the_schema_leaves_open_may_hold_any_key(words: list[str]) -> None:
    validate(composed(*words))


def test_a_study_of_ones_own_is_added_to_those_of_the_project_and_a_misspelt_option_is_not() -> None:
    validate(compose("results", ['+studies.mine={title: "My cells", command: "task=cls model=gru,lstm"}']))
    with pytest.raises(ConfigError, match=r"no option studie\. Did you mean studies\?"):
        validate(compose("results", ["+studie.mine=1"]))
    with pytest.raises(ConfigError, match=r"no option completely_different\. python run\.py -cn docs --cfg job"):
        validate(compose("docs", ["+completely_different=1"]))


def test_the_command_line_refuses_a_misspelt_key_behind_a_plus(lab: Lab, tmp_path: Path) -> None:
    outcome = lab.run(*SMALL["cls"], "+callbacks.patience=10", "hydra.run.dir=folder", folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert outcome.output.strip() == f"error: there is {ADDED['+callbacks.patience=10']}"


REFUSED = {
    "optimizer.betas=${seed}": "optimizer.betas=0 is not allowed: it must be a list",
    "callbacks.extra=${seed}": "callbacks.extra=0 is not allowed: it must be a list",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9] is not allowed: it must be two numbers",
    "callbacks.extra=[{}]": "callbacks.extra: {} is no callback; each is named by its class, as {_target_: ",
    "callbacks.extra=[3]": "callbacks.extra: 3 is no callback",
    "trainer.limit_train_batches=true": "trainer.limit_train_batches=True is not allowed: it must be a number",
    "trainer.limit_val_batches=null": "trainer.limit_val_batches=None is not allowed: it must be a number",
    "trainer.fast_dev_run=null": "trainer.fast_dev_run=None is not allowed",
    "trust=[{a: 1}]": "trust=[{'a': 1}] is not allowed: {'a': 1} in it is neither text nor number",
    "++trainer.extra=\\${seed}": "it must be a mapping",
    "data.english=${seed}": "data.english=0 is not allowed: it must be a mapping",
    "trust=${seed}": "trust=0 is not allowed: it must be a list",
    "model.encoder.hidden_size=99999999999999999999": "it must be below 2^63 in size",
    "~trainer": "trainer is missing: give it as trainer=…",
    "model.name=a/b": "model.name=a/b is not allowed: it names folders",
    "model.name=../x": "model.name=../x is not allowed",
    "task.name=a/b": "task.name=a/b is not allowed",
}


@pytest.mark.parametrize(("word", "expected"), REFUSED.items(), ids=REFUSED)
def test_a_value_that_composes_and_can_not_be_is_refused_before_anything_is_built(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(composed(word))
    assert expected in str(caught.value)


@pytest.mark.parametrize(("task", "model", "right"), [("cls", "ridge", "forecast"), ("forecast", "tfidf_svm", "cls")])
def test_a_baseline_of_the_other_task_is_refused(task: str, model: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"model={model} is not for task={task}: add task={right}"):
        validate(composed(f"task={task}", f"model={model}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=cls", "data=jena_climate"], "data=jena_climate is not for task=cls: add task=forecast"),
        (["task=forecast", "data=sample_reviews"], "data=sample_reviews is not for task=forecast: add task=cls"),
        (["task=forecast", "trainer.precision=bf16-true"], "precision=bf16-true is not for task=forecast.* bf16-mixed"),
    ],
)
def test_data_and_precisions_of_the_other_task_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(composed(*words))


PROGRAMS = {
    "benchmark": "repeats",
    "describe": "sequences",
    "docs": "output",
    "predict": "checkpoint",
    "report": "title",
    "results": "studies",
}


def test_a_misspelt_option_of_every_program_is_explained_with_its_own() -> None:
    assert PROGRAMS.keys() == schema.PROGRAMS.keys()
    for program, option in PROGRAMS.items():
        for wrong, expected in {
            f"{option}s": f"Did you mean {option}?",
            "completely_different": f"python run.py -cn {program} --cfg job shows all keys",
        }.items():
            with pytest.raises(ConfigCompositionException) as caught:
                compose(program, overrides=[f"{wrong}=1"])
            assert expected in str(explain(caught.value, []))


@pytest.mark.parametrize(
    ("words", "differ"),
    [
        ([], ""),
        (["debug=true", "trainer.enable_progress_bar=false"], ""),
        (["task.ngrams.words=2"], "task.ngrams.words"),
        (["seed=1", "debug=true"], "data.seed, seed"),
    ],
)
def test_a_sweep_goes_on_though_the_schema_has_new_options_or_the_progress_is_shown(
    words: list[str], differ: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = plain(composed("task=cls"))
    del saved["task"]["ngrams"], saved["optimizer"]["fused"], saved["score_on"]  # as if older code had saved it
    OmegaConf.save(saved, tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(job, "_resume", lambda config, folder, overrides: {"resumed with": overrides})
    if not differ:
        assert job._run(composed("task=cls", *words), tmp_path, words, sweeping=True) == {"resumed with": words}
    else:
        with pytest.raises(ConfigError, match=rf"holds a run with another {differ}: .*hydra\.sweep\.dir"):
            job._run(composed("task=cls", *words), tmp_path, words, sweeping=True)
    with pytest.raises(ConfigError, match=r"holds a run already: .*hydra\.run\.dir"):
        job._run(composed("task=cls", *words), tmp_path, words, sweeping=False)


@pytest.mark.parametrize("allocate", [np.empty, torch.empty], ids=["numpy", "torch"])
def test_what_runs_out_of_memory_says_what_takes_less(allocate: Any) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate(2**55)
    assert re.match(r"out of memory \(.*\): lower the batch size", str(explain(caught.value, [])))


def test_a_bug_is_not_explained_away() -> None:
    assert explain(ZeroDivisionError("division by zero"), []) is None
    assert explain(KeyError("targets"), []) is None


MARKED: list[Any] = [
    {"_target_": "os.system", "command": "touch {marker}"},
    {"_target_": "posix.system", "_args_": ["touch {marker}"]},
    {"_target_": "subprocess.run", "args": ["touch", "{marker}"]},
    {"_target_": "builtins.exec", "_args_": ["open('{marker}', 'w')"]},
    {"_target_": "builtins.open", "file": "{marker}", "mode": "w"},
    {"_target_": "logging.FileHandler", "filename": "{marker}"},
    {"_target_": "runs.job.logging.FileHandler", "filename": "{marker}"},
    {"_target_": "runs.checkpoints.os.system", "_args_": ["touch {marker}"]},
    {"_target_": "pytorch_lightning.callbacks.callback.os.system", "_args_": ["touch {marker}"]},
    {"_target_": "tasks.task.torch.load", "f": "{marker}"},
    {"_target_": "torch.optim.torch.save", "obj": 1, "f": "{marker}"},
    {"_target_": "hydra.utils.call", "config": {"_target_": "os.system", "command": "touch {marker}"}},
    {"_target_": "runs.build.hydra.utils.instantiate", "config": {"_target_": "os.mknod", "path": "{marker}"}},
    {"_target_": "runs.build.instantiate", "config": {"_target_": "os.mknod", "path": "{marker}"}, "trust": ["os"]},
    {"_target_": "runs.build.load_task", "path": "{marker}"},
    {"_target_": "runs.checkpoints.write_atomically", "path": "{marker}", "content": "x"},
    {"_target_": "runs.sweep.CompareSweep"},
    {"_target_": "rnn_cells.backends.cpu._build"},
    {"_target_": "rnn_cells.backends.cpu._library"},
    {"_target_": "tasks.task.cosine.__globals__"},
    {"_target_": "datamodules.sources.file_sha256", "path": "{marker}"},
    {"_target_": "torch.optim.swa_utils.update_bn", "loader": [], "model": 1},
    {"_target_": "tasksx.Cell", "path": "{marker}"},
    {"_target_": "tasks.nothing_of_the_kind", "path": "{marker}"},
    {"_target_": 3, "path": "{marker}"},
]
REFERENCE = "${{oc.create:{{_target_: tests.runs.lab.touch, path: '{marker}'}}}}"


def filled(value: Any, marker: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(each, marker) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, marker) for each in value]
    return value.format(marker=marker) if isinstance(value, str) else value


def wrappings(malicious: Any) -> list[Any]:
    harmless = {"_target_": "tasks.Identity", "num_features": 3}
    return [
        malicious,
        {**malicious, "_partial_": True},
        {**harmless, "num_features": malicious},
        {**harmless, "num_features": [[{"deep": malicious}]]},
        [harmless, malicious],
        {"no_target": {"list": [malicious]}},
    ]


@pytest.mark.parametrize("malicious", MARKED, ids=lambda value: str(value["_target_"]))
def test_a_target_outside_the_project_is_refused_and_nothing_runs(malicious: Any, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for config in wrappings(filled(malicious, marker)):
        with pytest.raises(ConfigError, match=r"_target_: .*(is not allowed|can't be found)"):
            instantiate(config)
        assert not marker.exists()


@pytest.mark.parametrize("escaped", [False, True])
def test_a_reference_can_not_smuggle_a_target_in(escaped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    reference = filled(REFERENCE, marker)
    config: Any = {"_target_": "pytorch_lightning.callbacks.LambdaCallback", "setup": reference}
    if escaped:  # in a configuration file: what is left once its references are filled in is a reference again
        config = plain(OmegaConf.create({**config, "setup": f"\\{reference}"}))
        assert config["setup"] == reference
    with pytest.raises(ConfigError):
        instantiate(config)
    assert not marker.exists()


def test_a_checkpoint_can_not_smuggle_a_target_in(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "foreign.ckpt"
    settings = plain(composed("task=cls", "model=gru"))
    for name, value in {
        "encoder": {"_target_": "tests.runs.lab.touch", "path": str(marker)},
        "reference": {**settings["model"]["encoder"], "init": filled(REFERENCE, marker)},
    }.items():
        kept = {key: settings[key] for key in ("task", "optimizer", "scheduler", "seed")}
        config = {**kept, "model": {"name": name, "encoder": value}, "trust": ["tests"]}
        content = {"blueprint": {"config": config, "facts": FACTS["cls"]}, "state_dict": {}, "global_step": 0}
        AtomicCheckpointIO().save_checkpoint(content, path)
        with pytest.raises(ConfigError):
            load_task(path)
        assert not marker.exists()


def test_a_module_of_the_users_own_passes_once_trusted() -> None:
    config = {"_target_": "tests.runs.killer.Killer", "step": 7}
    with pytest.raises(ConfigError, match=r"add a module of your own with trust=\[module\]"):
        instantiate(config)
    with pytest.raises(ConfigError):
        instantiate(config, trust=["tests.runs.kill"])
    assert instantiate(config, trust=["tests.runs.killer"]).step == 7
    assert instantiate([config], trust=["tests.runs"])[0].step == 7


@pytest.mark.parametrize("name", ["tasks.cosine", "tasks.task.onecycle"])
def test_of_functions_only_the_schedules_may_be_named(name: str) -> None:
    schedule = instantiate({"_target_": name, "_partial_": True, "warmup": 0.5})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert schedule(optimizer, 10).get_last_lr()[0] < 0.1


PRECISIONS = {"32": True, "64": True, "32-true": True, "64-true": True, "16-true": True, "bf16-true": True}
PRECISIONS |= {"16": False, "bf16": False, "16-mixed": False, "bf16-mixed": False}


@pytest.mark.parametrize(("precision", "fused"), PRECISIONS.items())
def test_the_optimizer_is_fused_where_gradients_can_be_clipped(precision: str, fused: bool) -> None:
    settings = plain(composed("task=cls", "model=gru", f"trainer.precision={precision}"))
    task = build_task(settings, FACTS["cls"])
    assert task.make_optimizer(task.parameters()).defaults["fused"] is fused


def test_an_optimizer_of_torch_that_knows_no_fused_form_does_without() -> None:
    settings = plain(composed("task=cls", "model=gru", "optimizer._target_=torch.optim.NAdam"))
    task = build_task(settings, FACTS["cls"])
    assert isinstance(task.make_optimizer(task.parameters()), torch.optim.NAdam)


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks.extra=[{_target_: logging.FileHandler, filename: executed}]"],
        ["logger._target_=logging.FileHandler", "+logger.filename=executed"],
        ["data._target_=logging.FileHandler"],
        ["optimizer._target_=logging.FileHandler"],
        ["model.encoder._target_=logging.FileHandler"],
    ],
    ids=lambda words: words[0].split("=")[0],
)
def test_the_command_line_refuses_foreign_targets_wherever_they_stand(
    words: list[str], lab: Lab, tmp_path: Path
) -> None:
    outcome = lab.run(*SMALL["forecast"], *words, "hydra.run.dir=folder", folder=tmp_path)
    assert outcome.code == 1, outcome.output
    assert "logging.FileHandler is not allowed" in outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "executed").exists()
