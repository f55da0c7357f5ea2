"""From plain configuration to objects: data modules, tasks, callbacks. The only place that instantiates."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import hydra.utils
import torch
import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.sources import DataError
from runs.checkpoints import read_checkpoint
from runs.errors import CheckpointError
from runs.guard import is_within, strings
from runs.schema import OWN, CallbacksConfig, Config, ConfigError, TrainerConfig
from tasks import Task

FUNCTIONS = ("tasks.task.cosine", "tasks.task.onecycle")
"""The functions of this project that a configuration may call; of everything else, it may build classes only."""
LIBRARIES = (
    *OWN,
    "torch.optim",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
)
UNMIXED = ("16-true", "bf16-true", "32", "32-true", "64", "64-true")
"""The trainer's names of a single precision."""


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as a dict with every reference filled in."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def instantiate(config: Any, trust: Sequence[str] = (), **arguments: Any) -> Any:
    """Build what `config` names, if it names nothing but classes and functions that a run may use.

    A configuration file can come from anybody, and `_target_` can name any function of any module. So each one, however
    deeply nested, must be a class defined in `LIBRARIES`, one of `FUNCTIONS`, or of a module that the user trusts by
    name. What starts with an underscore is nobody's to name.

    Raises:
        ConfigError: a `_target_` is something else.
    """
    check_targets(config, trust)
    return hydra.utils.instantiate(config, _convert_="all", **arguments)


def check_targets(config: Any, trust: Sequence[str] = ()) -> None:
    """Raise a ConfigError unless everything that `config` names may be used; see `instantiate`."""
    if trust and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where a user keeps modules of their own
    for target in _targets(config):
        _check_target(target, trust)


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        for value in config.values():
            yield from _targets(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _targets(value)
    elif isinstance(config, str) and "${" in config:  # instantiate would fill it in, and call what it names
        raise ConfigError(f"{config!r}: a reference can't stand here, behind the composed configuration")


def _check_target(target: str, trust: Sequence[str]) -> None:
    target = str(target)
    refused = ConfigError(
        f"_target_: {target} is not allowed: it must be a class of {', '.join((*LIBRARIES, *trust))}, or one of "
        "tasks.cosine, tasks.onecycle; add a module of your own with trust=[module]"
    )
    if not is_within(target, trust) and (not is_within(target, LIBRARIES) or "._" in target):
        raise refused
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigError(f"_target_: {target} can't be found: {error}") from error
    # Where it was defined, not by which name it was reached: `tasks.task.torch.load` is no function of this project.
    if inspect.isclass(found):
        allowed = is_within(found.__module__, (*LIBRARIES, *trust))
    else:
        allowed = inspect.isfunction(found) and (
            f"{found.__module__}.{found.__qualname__}" in FUNCTIONS or is_within(found.__module__, trust)
        )
    if not allowed:
        raise refused


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run folder keeps; what it lacks, saved by code that didn't know of it, has its default.

    Raises:
        FileNotFoundError: the folder has none.
        ConfigError: the file is damaged, or not that of a run.
    """
    path = folder / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # a few lines could mean a billion
            raise ConfigError(f"{path} is not as a run writes it: it has aliases, which begin with *")
        saved: Any = OmegaConf.to_container(OmegaConf.create(text))
        for place, _, value in strings(saved, "config"):
            if "${" in value:
                raise ConfigError(
                    f"{path}, {place} has the reference {value}, which could read secrets of the environment: write "
                    "its value"
                )
        for node, values in ((Config, saved), (TrainerConfig, saved["trainer"]), (CallbacksConfig, saved["callbacks"])):
            usual: Any = OmegaConf.to_container(OmegaConf.structured(node))
            values |= {name: value for name, value in usual.items() if name not in values and value != MISSING}
        if isinstance(saved["task"]["name"], str) and isinstance(saved["data"], dict) and "name" in saved["model"]:
            return saved
        cause = None
    except (FileNotFoundError, ConfigError):
        raise
    except (KeyError, TypeError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        cause = error
    raise ConfigError(f"{path} is damaged or not that of a run") from cause


def refuse_download(config: dict[str, Any], folder: Path) -> None:
    """See that a saved configuration, which may be anybody's, downloads nothing but the data of this project.

    Raises:
        DataError: its data is not on this machine, and would come from somewhere else.
    """
    source = getattr(build_datamodule(config), "source", None)
    if source is None or source.find() is not None or set(source.urls) <= _known_addresses():
        return
    raise DataError(
        f"{folder} names {', '.join(source.urls)} to download its data from, which may be anybody's: say "
        f"data.urls={json.dumps([*source.urls])} on the command line, or get the file yourself and put it into "
        "RNN_LAB_DATA"
    )


def _known_addresses() -> set[str]:
    """Those of the data sets of this project."""
    files = (resources.files("conf") / "data").iterdir()
    return {address for file in files for address in yaml.safe_load(file.read_text("utf-8")).get("urls") or ()}


def build_datamodule(config: dict[str, Any]) -> Any:
    """The data module of a run's configuration: a `LightningDataModule` whose batches are what its task reads.

    It has a `name`; `is_sample`, whether it is not a real data set; `describe(split, index)`, a table of the examples
    with these positions; and, set up, `facts`, what the task is built from, and `report`, plain values among which are
    `source`, and `sha256` of its file or None. The data sets of its loaders give a batch for a list of positions. One
    that has a `source` can say which file it would read; one of readings, by `sizes`, what a network for it is like.
    """
    return instantiate(config["data"], config["trust"])


def build_task(config: dict[str, Any], facts: dict[str, Any]) -> Task:
    """The task of a run's configuration, for data with these facts.

    The task carries both as plain values in `blueprint`, and so do its checkpoints: `load_task` needs nothing else.
    """
    torch.manual_seed(config["seed"])
    kept = {name: config[name] for name in ("task", "model", "optimizer", "scheduler", "seed", "trust")}
    task_config = {key: value for key, value in config["task"].items() if key not in ("name", "monitor", "mode")}
    build = {"optimizer": build_optimizer(config)}
    if config["scheduler"]:
        build["scheduler"] = instantiate(config["scheduler"], config["trust"])
    inputs, model = task_config.pop("inputs"), config["model"]
    if "baseline" in model:
        parts = {"baseline": instantiate(model["baseline"], config["trust"])}
    else:
        parts = {
            "inputs": instantiate(inputs, config["trust"]),
            "encoder": instantiate(model["encoder"], config["trust"]),
        }
    # A partial, called here: instantiate would turn a vocabulary of 30,000 words into nodes of a configuration.
    make_task = instantiate({**task_config, "_partial_": True}, config["trust"])
    try:
        task = make_task(facts=facts, seed=config["seed"], **parts, **build)
    except ValueError as error:  # an argument that the schema couldn't judge
        raise ConfigError(str(error)) from error
    task.blueprint = {"config": kept, "facts": facts}
    return task


def build_optimizer(config: dict[str, Any]) -> Any:
    """The factory of the optimizer of a run's configuration, tried once.

    Raises:
        ConfigError: an option that it doesn't take; torch itself knows best which values go together.
    """
    optimizer = dict(config["optimizer"])
    if optimizer.get("fused") is None:  # Lightning can't clip gradients of a fused optimizer in mixed precision
        optimizer["fused"] = str(config.get("trainer", {}).get("precision", "32-true")) in UNMIXED
        if "fused" not in inspect.signature(hydra.utils.get_object(optimizer["_target_"])).parameters:
            del optimizer["fused"]  # not every optimizer of torch has such a form
    factory = instantiate(optimizer, config["trust"])
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {error}") from error
    return factory


def load_task(path: str | Path, trust: Sequence[str] = ()) -> Task:
    """The trained task in a checkpoint, without its data.

    Args:
        path: a checkpoint file.
        trust: modules of your own that it may name.

    Raises:
        CheckpointError: the file is damaged, or no checkpoint of a task.
        ConfigError: it names a class that is not allowed.
    """
    checkpoint = read_checkpoint(path)
    if "blueprint" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of a task")
    config = {**checkpoint["blueprint"]["config"], "trust": list(trust)}
    task = build_task(config, checkpoint["blueprint"]["facts"])
    task.load_state_dict(checkpoint["state_dict"])
    task.is_calibrated = checkpoint.get("calibrated")
    return task.eval()
