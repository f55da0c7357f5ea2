"""What a configuration file, which may come from anybody, can't say: it is checked before Hydra builds anything of it.

Hydra itself builds what stands below `hydra:`, and sets the environment by it, as soon as it is composed. So each
composed configuration is looked at first. Modules are trusted by the command line alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from runs.schema import ConfigError

BUILT_BY_HYDRA = ("hydra._internal.core_plugins", "hydra.experimental.callbacks", "hydra_plugins", "runs.sweep")
"""Packages whose classes may stand below `hydra:` as `_target_`."""
HANDLERS = ("StreamHandler", "FileHandler", "NullHandler", "handlers.RotatingFileHandler", "Formatter")
LOGGING = (*(f"logging.{name}" for name in HANDLERS), "rich.logging.RichHandler", "colorlog.ColoredFormatter")
"""What may stand there as `class` or `()` of Python's logging."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def watch(arguments: Sequence[str]) -> None:
    """From now on, Hydra refuses to compose what `check` refuses for this command line."""
    compose = ConfigLoaderImpl.load_configuration
    while hasattr(compose, "__wrapped__"):  # of an earlier command line of this process
        compose = compose.__wrapped__

    @functools.wraps(compose)
    def compose_and_check(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        config = compose(self, *args, **kwargs)
        check(config, arguments)
        return config

    ConfigLoaderImpl.load_configuration = compose_and_check  # type: ignore[method-assign]


def check(config: DictConfig, arguments: Sequence[str]) -> None:
    """See that a composed configuration says nothing that only the command line may say.

    Args:
        config: with its part `hydra`.
        arguments: of the command line.

    Raises:
        ConfigError: it does.
    """
    trusted = typed_trust(arguments)
    for module in OmegaConf.select(config, "trust", default=None) or []:
        if module not in trusted:
            raise ConfigError(
                f"trust: [{module}] stands in a configuration file, which may be anybody's: if you know that module, "
                f"say it on the command line, trust=[{module}]"
            )
    hydra = config.get("hydra")
    if hydra is None:
        return
    keys = {_key(argument) for argument in arguments}
    if hydra.job.env_set and not any(key.startswith("hydra.job.env_set") for key in keys):
        raise ConfigError("hydra.job.env_set stands in a configuration file: set the environment on the command line")
    for key in hydra.sweeper.get("params") or {}:
        if (name := _key(key)).startswith(("trust", "hydra.")) and name not in keys:
            raise ConfigError(f"hydra.sweeper.params has {key!r}, which only the command line may say")
    for place, key, value in strings(OmegaConf.to_container(hydra, resolve=False), "hydra"):
        if key == "_target_":
            packages, is_allowed = BUILT_BY_HYDRA, _is_defined_in(value, BUILT_BY_HYDRA)
        elif key in ("class", "()"):
            packages, is_allowed = LOGGING, value in LOGGING
        else:
            packages, is_allowed = (), not value.startswith("ext://") or value in STREAMS
        if not is_allowed and not _is_defined_in(value, trusted):
            remedy = f": it must be of {', '.join(packages)}, or of a module of your own with trust=[module]"
            raise ConfigError(f"{place}: {value} is not allowed{remedy if packages else ''}")


def typed_trust(arguments: Sequence[str]) -> set[str]:
    """The modules that a command line trusts."""
    modules: set[str] = set()
    for argument in arguments:
        if _key(argument) != "trust" or argument.startswith("~"):
            continue
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:  # Hydra says so itself
            continue
        values = [*override.sweep_iterator()] if override.is_sweep_override() else [override.value()]
        for value in values:
            modules |= {str(item).strip("'\"") for item in (value if isinstance(value, list) else [value])}
    return modules


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0].partition("@")[0]


def strings(node: Any, place: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Where each string stands, its key, and the string; references are as they are written, and so within nothing."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from strings(value, f"{place}.{name}", str(name))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from strings(value, f"{place}[{number}]", key)
    elif isinstance(node, str):
        yield place, key, node


def _is_defined_in(name: str, packages: Collection[str]) -> bool:
    """Whether that is a class or a function of these packages: not one that they have merely imported."""
    if not is_within(name, packages):
        return False
    try:
        target = get_object(name)
    except Exception:
        return False
    return (inspect.isclass(target) or inspect.isfunction(target)) and is_within(target.__module__, packages)


def is_within(name: str, packages: Collection[str]) -> bool:
    """Whether a dotted name is one of `packages`, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
