"""What tells runs of one model apart, in words."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from runs.checks import INCONSEQUENTIAL, differing
from runs.schema import SCHEMAS

UNTOLD = ("seed", "logger", "trust", "resume", *INCONSEQUENTIAL)
"""Of a configuration: what makes no other model."""
_ABSENT = object()


def variants(
    metrics: dict[Path, dict[str, Any]], statuses: dict[Path, dict[str, Any]], configs: dict[Path, DictConfig]
) -> dict[Path, str]:
    """What tells each run from the others of its model beside the seed, in the words of its command line.

    Those are the overrides of keys whose value the runs don't share, with the value that a run has come to. Where runs
    of the same words differ in their configurations all the same, as after a change of a recipe, that is added as
    key=value.
    """
    given: dict[Path, dict[str, str]] = {}
    models: dict[str, list[Path]] = {}
    for run, of_run in metrics.items():
        models.setdefault(of_run["model"], []).append(run)
        own = ("model", "task", *_untold(configs[run]))
        words = {word.partition("=")[0]: word for word in statuses[run]["overrides"] or []}
        given[run] = {key: _true(word, configs[run]) for key, word in words.items() if key not in own}
    telling = set()
    for runs in models.values():
        words = [given[run].items() for run in runs]
        differ = {key for key, _ in set().union(*words) - set(words[0]).intersection(*words)}
        telling |= {key for key in differ if not _shared(key, [configs[run] for run in runs])}
    said = {run: {key: word for key, word in words.items() if key in telling} for run, words in given.items()}
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run, words in said.items():
        config = _without(OmegaConf.to_container(configs[run]), _untold(configs[run]))
        groups.setdefault((metrics[run]["model"], *words.values()), []).append(config)
    unsaid = dict.fromkeys(key for group in groups.values() for key in differing(group))
    return {
        run: " ".join([*words.values(), *_values(configs[run], [key for key in unsaid if key not in words])])
        for run, words in said.items()
    }


def _untold(config: DictConfig) -> tuple[str, ...]:
    """Keys in which runs of one label may differ.

    Where the test has an end, runs that differ in its beginning alone are the years of a backtest.
    """
    backtest = config.data.get("split") == "date" and config.data.get("test_until") is not None
    return (*UNTOLD, "data.test_from") if backtest else UNTOLD


def _without(config: Any, keys: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A configuration without some keys, and without what follows from the seed."""
    return {
        name: _without(value, keys, f"{prefix}{name}.") if isinstance(value, dict) and value else value
        for name, value in config.items()
        if name != "seed" and f"{prefix}{name}" not in keys
    }


def _true(word: str, config: DictConfig) -> str:
    """An override as it was given, unless the run has gone on with another value of its key."""
    key = word.partition("=")[0].lstrip("+")
    value = OmegaConf.select(config, key, default=_ABSENT)
    if value is _ABSENT or isinstance(value, DictConfig) or key in SCHEMAS:  # a group's choice is none of its values
        return word
    with contextlib.suppress(OverrideParseException):  # of a status that somebody has edited
        if OverridesParser.create().parse_override(word).value() != value:
            return _values(config, [key])[0]
    return word


def _shared(key: str, configs: Sequence[DictConfig]) -> bool:
    """Whether all have the key, and the same value of it."""
    values = [OmegaConf.select(config, key, default=_ABSENT) for config in configs]
    return values[0] is not _ABSENT and all(value == values[0] for value in values)


def _values(config: DictConfig, keys: Sequence[str]) -> list[str]:
    """`key=value` of the keys that a configuration has."""
    found = {key: OmegaConf.select(config, key, default=_ABSENT) for key in keys}
    plain = {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in found.items()}
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in plain.items()
        if value is not _ABSENT
    ]
