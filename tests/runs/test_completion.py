from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import run
from runs import schema
from runs.completion import CONF, complete


@pytest.fixture(scope="module")
def hydras() -> Iterator[BashCompletion]:
    """Hydra's own completion, which composes the configuration."""
    schema.register()
    OmegaConf.register_new_resolver("run_folder", run.run_folder, replace=True)
    OmegaConf.register_new_resolver("file_name", run.file_name, replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        yield BashCompletion(GlobalHydra.instance().config_loader())


def names(words: list[str]) -> set[str]:
    """Without what follows a name; Hydra also offers the schemas, which nobody chooses, and `hydra`, a folder."""
    return {word.rstrip("=.") for word in words} - {"schema", "hydra", "logger"}


LINES = [
    *("", "mod", "s", "task.", "task.inputs.", "data.", "data.wi", "model.encoder.", "optimizer.", "optimizer.l"),
    *("trainer.", "callbacks.", "callbacks.early_stopping.", "task=forecast data.", "task=forecast task.", "nothing"),
    *("model=gru model.encoder.", "data=sample_reviews data.", "task=forecast data=sample_climate data.wind."),
    *("optimizer=sgd optimizer.", "scheduler=cosine scheduler.", "callbacks=none callbacks.", "-m task=cls model."),
    *("task=forecast model=ridge model.", "task=forecast model=ridge model.baseline.", "model=nope mod"),
]


@pytest.mark.parametrize("line", LINES)
def test_names_of_options_are_those_that_hydra_composes(line: str, hydras: BashCompletion) -> None:
    found = complete(line)
    assert found is not None
    if "nope" not in line:  # nothing composes with it, and the file behind it may well be under way
        assert names(found) == names(hydras._query("config", line))


@pytest.mark.parametrize("group", [*schema.SCHEMAS, "experiment", "ablation", "logger"])
def test_the_choices_of_a_group_are_its_files(group: str, hydras: BashCompletion) -> None:
    found = complete(f"{group}=")
    assert found is not None
    files = (path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))
    assert found == sorted(f"{group}={file}" for file in files)
    hydra_offers = [choice for choice in hydras._query("config", f"{group}=") if not choice.endswith("/")]
    assert [choice for choice in found if "/" not in choice] == hydra_offers  # Hydra shows no folder's files


def test_the_value_of_an_option_is_offered_or_all_that_it_may_have() -> None:
    assert complete("optimizer=sgd optimizer.lr=") == ["optimizer.lr=0.1"]
    assert complete("task.pooling=m") == ["task.pooling=max", "task.pooling=max_mean", "task.pooling=mean"]
    assert complete("debug=") == ["debug=false", "debug=true"]
    assert complete("resume=") == []


def test_programs_are_completed_and_a_description_has_the_options_of_a_run_and_its_own() -> None:
    assert complete("-cn des") == ["describe"]
    assert complete("-cn describe optimizer=sgd optimizer.l") == ["optimizer.lr="]
    assert complete("-cn describe seq") == ["sequences="]
    assert complete("seq") == []
    assert complete("-cn benchmark th") is None  # Hydra knows


@pytest.mark.parametrize("line", ["hydra.sweeper.", "+new", "~logger", "data.path=./c", "--mult"])
def test_hydras_own_options_and_files_are_left_to_hydra(line: str) -> None:
    assert complete(line) is None


def test_a_file_is_completed_by_its_path(
    hydras: BashCompletion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert hydras._query("config", "data.path=./m") == ["data.path=./my.csv"]
