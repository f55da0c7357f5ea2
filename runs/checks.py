"""Whether a configuration can be, and in what two of them differ; quick to import, as `runs.schema` is."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runs.completion import choices, composed, select
from runs.schema import (
    CLOCK,
    OWN,
    PROGRAMS,
    SCHEMAS,
    UNAVAILABLE,
    AdamConfig,
    BaselineModelConfig,
    CallbacksConfig,
    ClassificationConfig,
    Config,
    ConfigError,
    DescribeConfig,
    ExtraTrainerConfig,
    ForecastingConfig,
    SeriesConfig,
    TextConfig,
    TrainerConfig,
)


@cache
def defaults() -> dict[str, list[Any]]:
    """Every option's full name, as task.dropout, with the defaults that the schemas have for it."""
    found: dict[str, list[Any]] = {}

    def walk(node: Any, prefix: str) -> None:
        hints = get_type_hints(node)
        for item in fields(node):
            if item.name.startswith("_"):
                continue
            default = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
            found.setdefault(prefix + item.name, []).append(default)
            annotation = hints[item.name]
            for part in (annotation, *get_args(annotation)):  # Optional[…] too
                if is_dataclass(part):
                    walk(part, f"{prefix}{item.name}.")

    walk(Config, "")
    for group, schemas in SCHEMAS.items():
        for schema in schemas:
            walk(schema, f"{group}.")
    walk(ExtraTrainerConfig, "trainer.extra.")
    return found


INCONSEQUENTIAL = ("debug", "reuse", "escape_formulas", "data.cache_dir", "trainer.enable_progress_bar")
"""Options in which two runs may differ that are to come out the same."""


def differing(configs: Sequence[Mapping[str, Any]], prefix: str = "") -> list[str]:
    """The full names of what some saved configurations don't share.

    What one of them lacks has its default there: the code that saved it didn't know of it.
    """
    found = []
    for name in dict.fromkeys(name for config in configs for name in config):
        values = [config[name] for config in configs if name in config]
        key = f"{prefix}{name}"
        if all(isinstance(value, dict) and value for value in values):
            found += differing([config.get(name, {}) for config in configs], f"{key}.")
        elif any(value != values[0] for value in values) or (
            len(values) < len(configs) and values[0] not in defaults().get(key, [])
        ):
            found.append(key)
    return found


SPLIT_FILES = ("val_path", "test_path")  # of texts: a series is split by time
ONE_FILE = " Join the files of a series in one, and say where they met with data.val_from and data.test_from."


def validate(config: DictConfig, prefix: str = "") -> None:
    """Check that every key is an option, as Hydra does except behind a `+`, and every option against its range.

    What a `_target_` outside this project takes is its own to say.

    Raises:
        ConfigError: a key is no option, or its value is missing or out of range; the message names the key and what is
            allowed.
    """
    schema: Any = OmegaConf.get_type(config)
    if schema in (Config, DescribeConfig):
        for group in SCHEMAS:
            if OmegaConf.is_missing(config, group):
                raise ConfigError(f"{group} is missing: give it as {group}=…")
            if not isinstance(config[group], (DictConfig, type(None))):
                raise ConfigError(f"{group}={config[group]} is not allowed: choose {group}={choices(group)[0]}, say")
        _check_pairing(config)
    if schema is TrainerConfig and config.max_steps == 0:
        raise ConfigError(f"{prefix}max_steps=0 is not allowed: it must be at least 1, or -1 for no limit")
    hints = get_type_hints(schema) if is_dataclass(schema) else {}
    if prefix in ("task.", "model.", "data.") and not re.fullmatch(r"[\w.+-]+", str(config.get("name") or prefix)):
        raise ConfigError(
            f"{prefix}name={config.name} is not allowed: it names folders, so no spaces, slashes or signs"
        )
    declared = {each.name: each for each in fields(schema)} if is_dataclass(schema) else {}
    closed = declared and str(config.get("_target_") or OWN[0]).partition(".")[0] in OWN
    # This node's own values first: the others may refer to them, and the message should name the one that was given.
    for name in sorted(config, key=lambda name: OmegaConf.is_dict(config._get_node(name))):
        key = f"{prefix}{name}"
        if closed and name not in declared:
            raise ConfigError(f"there is no option {key}. {suggestion(key, schema)}")
        if OmegaConf.is_missing(config, name):
            raise ConfigError(f"{key} is missing: give it as {key}=…")
        value = config[name]
        _check_items(key, value, hints.get(str(name)))
        if schema is TrainerConfig and name == "extra":
            value = _typed_extra(config)
        if isinstance(value, DictConfig):
            validate(value, f"{key}.")
            continue
        for item in value if OmegaConf.is_list(value) else [value]:
            if name in declared and (problem := _problem(item, declared[name])):
                raise ConfigError(f"{key}={item} is not allowed: it must be {problem}")
    if schema is AdamConfig and len(config.betas) != 2:
        raise ConfigError(f"{prefix}betas={config.betas} is not allowed: it must be two numbers, as [0.9,0.999]")
    for extra in config.extra if schema is CallbacksConfig else ():
        if not isinstance(extra, DictConfig) or "_target_" not in extra:
            example = "{_target_: pytorch_lightning.callbacks.LearningRateMonitor}"
            raise ConfigError(f"{prefix}extra: {extra} is no callback; each is named by its class, as {example}")
    levels = [*config.quantiles] if schema is ForecastingConfig else []
    if levels and (levels != sorted({*levels}) or 0.5 not in levels):
        raise ConfigError(f"{prefix}quantiles={levels} is not allowed: they must rise, and hold 0.5, the forecast")


def _check_items(key: str, value: Any, hint: Any) -> None:
    """Raise a ConfigError if a reference stands for no list or mapping where one belongs, or if one holds others.

    OmegaConf lets both pass.
    """
    while type(None) in get_args(hint):
        hint = get_args(hint)[0]
    belongs = {list: ListConfig, dict: DictConfig}.get(get_origin(hint) or (dict if is_dataclass(hint) else hint))
    if belongs is not None and not isinstance(value, (belongs, type(None))):
        raise ConfigError(
            f"{key}={value} is not allowed: it must be a {'list' if belongs is ListConfig else 'mapping'}"
        )
    wanted = get_args(hint)[-1] if get_args(hint) else None
    if wanted in (str, int, float, bool):
        for item in value.values() if isinstance(value, DictConfig) else value or ():
            if isinstance(item, (DictConfig, ListConfig)):
                raise ConfigError(f"{key}={value} is not allowed: {item} in it is neither text nor number")


def _typed_extra(trainer: DictConfig) -> DictConfig:
    """What `trainer.extra` gives, as an `ExtraTrainerConfig`.

    Raises:
        ConfigError: it gives what the Trainer doesn't take, or what a run sets otherwise.
    """
    typed: Any = OmegaConf.structured(ExtraTrainerConfig)
    for name, value in trainer.extra.items():
        key = f"trainer.extra.{name}"
        if name in trainer:
            raise ConfigError(f"trainer.extra can't set {name}: give it as trainer.{name}={value}")
        if name in UNAVAILABLE:
            raise ConfigError(f"trainer.extra can't set {name}: {UNAVAILABLE[name]}")
        if name not in typed:
            raise ConfigError(f"there is no option {key}. {suggestion(key)}")
        try:
            typed[name] = value
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}={value} is not allowed: {str(error).splitlines()[0]}") from error
        if name in ("max_time", "val_check_interval") and isinstance(value, str):
            if not re.fullmatch(r"\d+:\d+:\d+:\d+", value):
                raise ConfigError(f"{key}={value} is not allowed: a time is {CLOCK}")
            typed[name] = None  # no number, whose range could be checked
    if 0 < trainer.max_epochs < (typed.min_epochs or 0):
        raise ConfigError(
            f"trainer.extra.min_epochs={typed.min_epochs} is not allowed: trainer.max_epochs={trainer.max_epochs} "
            "ends the training before"
        )
    return typed


def check_header(config: DictConfig) -> None:
    """See to it that a run's file has the columns it names: a second later, torch has been imported, or ten.

    Raises:
        DataError: it hasn't, or is no such file.
    """
    if OmegaConf.get_type(config) is not Config or config.resume is not None:
        return
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    if data["_target_"] not in ("datamodules.TextDataModule", "datamodules.SeriesDataModule"):
        return
    from datamodules.formats import CsvFormat, series_columns, text_columns
    from datamodules.sources import Source
    from datamodules.streaming import TableStream

    if "text_column" in data:
        columns = text_columns(data["text_column"], data["target"])
    else:
        columns = series_columns(*(data[name] for name in ("time_column", "target", "features", "wind")))
    place = {item.name: data[item.name] for item in fields(Source) if item.name in data}
    others = {split: path for split in ("val", "test") if (path := data.get(f"{split}_path")) is not None}
    source = Source(**place, others=others)
    if (file := source.find()) is None:
        return
    format = {item.name: data[item.name] for item in fields(CsvFormat)}
    for each in (file, *source.find_others().values()):
        with TableStream(each, columns, **format):
            pass


def suggestion(wrong: str, owner: type = Config) -> str:
    """The known key nearest to one that isn't: of the program whose schema `owner` is, or else of a run."""
    of = {each: name for name, (each, _) in PROGRAMS.items()}
    program = owner if owner in of else Config
    known = [item.name for item in fields(program)]
    if issubclass(program, Config):
        known = list(dict.fromkeys([*SCHEMAS, *defaults(), *known]))
    if wrong.startswith("trainer.extra.") and wrong in known:
        return f"Add it: +{wrong}=…"
    if wrong in known:
        group, _, name = wrong.partition(".")
        if group == "data" and name in {item.name for item in fields(SeriesConfig)}:
            return f"{wrong} is an option of a series (task=forecast), not of texts."
        if group == "data" and name in {item.name for item in fields(TextConfig)}:
            remedy = ONE_FILE if name in SPLIT_FILES else ""
            return f"{wrong} is an option of texts (task=cls), not of a series.{remedy}"
        return f"{wrong} belongs to {_owners(group, name) or f'another choice of {group}'}."
    known = [key for key in known if not wrong.startswith(f"{key}.")]
    # A key is misspelt in its last part (optimizer.lrr), or given without its group (lr).
    closeness = {key: difflib.SequenceMatcher(None, key, wrong).ratio() for key in known}
    last = wrong.rpartition(".")[2]
    for key in known:
        part = difflib.SequenceMatcher(None, key.rpartition(".")[2], last).ratio()
        closeness[key] = max(closeness[key], part - (0.1 if "." in wrong else 0))
    for group in set(SCHEMAS).intersection(known):  # modle is rather model than task.mode
        closeness[group] += 0.1
    best = max(closeness, key=lambda key: (closeness[key], -len(key)))
    chosen = f" -cn {of[program]}" if program in of else ""
    nearest = f"Did you mean {best}?" if closeness[best] > 0.7 else f"python run.py{chosen} --cfg job shows all keys."
    further = " Further arguments of Lightning's Trainer go to +trainer.extra." if wrong.startswith("trainer.") else ""
    return nearest + further


def _owners(group: str, option: str) -> str:
    """The choices of a group that have an option."""
    path, _, name = f"{group}.{option}".rpartition(".")
    parents = {choice: select(composed([f"{group}={choice}"]), path) for choice in choices(group)}
    return " or ".join(
        f"{group}={choice}" for choice, parent in parents.items() if isinstance(parent, dict) and name in parent
    )


def _check_pairing(config: DictConfig) -> None:
    """A task wants data of its own kind."""
    wanted = {ClassificationConfig: TextConfig, ForecastingConfig: SeriesConfig}.get(OmegaConf.get_type(config.task))  # type: ignore[arg-type]
    if wanted is not None and OmegaConf.get_type(config.data) in {TextConfig, SeriesConfig} - {wanted}:
        other = "forecast" if wanted is TextConfig else "cls"
        raise ConfigError(f"data={config.data.name} is not for task={config.task.name}: add task={other}")
    precision = OmegaConf.select(config, "trainer.precision")
    if wanted is SeriesConfig and precision in ("16-true", "bf16-true"):
        raise ConfigError(
            f"trainer.precision={precision} is not for task={config.task.name}: it would round the readings that "
            f"forecasts are scored by; take {precision.replace('true', 'mixed')}"
        )
    if OmegaConf.get_type(config.model) is BaselineModelConfig and config.model.for_task != config.task.name:
        wanted = config.model.for_task
        raise ConfigError(f"model={config.model.name} is not for task={config.task.name}: add task={wanted}")


def _problem(value: Any, option: Field[Any]) -> str | None:
    """What the value of an option should have been, if it isn't."""
    metadata = option.metadata
    least, above, most = (metadata.get(name) for name in ("least", "above", "most"))
    limited = (least, above, most) != (None, None, None)
    if value is None or isinstance(value, bool):  # right where the type says so; of any type, where the default does
        wrong = limited and option.type == "Any" and not isinstance(value, type(option.default))
        return "a number" if wrong else None
    if choices := metadata.get("choices"):
        return None if value in choices else "one of " + ", ".join(choices)
    if not isinstance(value, (int, float)):
        return "a number" if limited else None
    if isinstance(value, int) and abs(value) >= 2**63 and most is None:
        return "below 2^63 in size"
    fits = (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )
    limits = [f"at least {least}" if least is not None else "", f"above {above}" if above is not None else ""]
    limits.append(f"at most {most}" if most is not None else "")
    return None if fits else " and ".join(limit for limit in limits if limit) or "a finite number"
