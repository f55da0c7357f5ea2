"""The page of all options, written from the schema and from the files of `conf/`, so that it can't contradict them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig

from runs import schema
from runs.checkpoints import write_atomically
from runs.checks import validate
from runs.completion import CONF, HERE, LOADER, choices, written
from runs.schema import SCHEMAS

log = logging.getLogger(__name__)

LONG = 60
"""Characters of a value beyond which the page leaves it to the file."""
TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
GROUPS = (*SCHEMAS, "logger", "experiment", "experiment_model", "ablation")
INTRODUCTION = """# Options

Written by `make docs` (`python run.py -cn docs`) from `runs/schema.py` and `conf/`: change those.

A run is composed of groups: `group=name` chooses, `name=value` changes, on the command line or in a file of your own
under the folder that `--config-dir` names. `python run.py … --cfg job` shows what comes of it. A default holds unless
the choice sets another value.
"""


def run(config: DictConfig) -> None:
    """Write the page."""
    validate(config)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page().encode())
    log.info(f"wrote {output}")


def page() -> str:
    """All options and choices, in Markdown."""
    programs = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "config")
    links = [f"[{group}](#{group})" for group in GROUPS]
    links += [f"[{name}](#python-runpy--cn-{name})" for name in programs]
    parts = [INTRODUCTION, " · ".join(["[run](#run)", *links]), "## run", "What belongs to no group."]
    parts.append(_options(schema.Config, "", nested=False))
    for group in GROUPS:
        parts += _group(group)
    for name in programs:
        parts += _program(name)
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


# ---- groups ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A file of a group: its comment, its schema if it has one, and the values that it and what it builds on set."""

    comment: str
    schema: str | None
    values: dict[str, Any]


class Swept(str):
    """The values of a sweep, written as on the command line."""


def _group(group: str) -> Iterator[str]:
    found = {name: _choice(group, name) for name in choices(group)}
    yield f"## {group}"
    rows = [
        (f"`{group}={name}`", choice.comment, ", ".join(f"`{key}={value}`" for key, value in _set(choice)))
        for name, choice in found.items()
    ]
    yield _table("choice", "what it is", "sets", rows=rows)
    for owner in SCHEMAS.get(group, []):
        names = [name for name, choice in found.items() if choice.schema == owner.__name__]
        first, *others = [found[name].values for name in names] or [{}]
        agreed = {key: value for key, value in first.items() if all(other.get(key, ...) == value for other in others)}
        table = _options(owner, f"{group}.", agreed)
        if names and table:
            yield f"### Options of {group}={', '.join(names)}"
            yield str(owner.__doc__)
            yield table
    if group == "trainer":
        yield str(schema.ExtraTrainerConfig.__doc__)
        yield _options(schema.ExtraTrainerConfig, "+trainer.extra.")


def _choice(group: str, name: str) -> Choice:
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.load(text, LOADER) or {}
    owner, values = None, {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict) and HERE in entry:
            owner = entry[HERE]
        elif isinstance(entry, dict):  # of an experiment: override /task: cls
            values |= {key.rpartition("/")[2]: value for key, value in entry.items()}
        elif entry != "_self_":
            of, _, parent = entry.rpartition("/")
            below = _choice(of.strip("/") or group, parent)
            owner, values = below.schema or owner, values | below.values
    sweep = content.pop("hydra", {}).get("sweeper", {}).get("params", {})
    swept = {key: Swept(value) for key, value in sweep.items()}
    return Choice(_comment(text), owner, values | dict(_flat(content)) | swept)


def _comment(text: str) -> str:
    """The comment at the head of a file, in one line."""
    lines = re.match(r"(?:#.*\n)*", text)
    return " ".join(line.strip("# ") for line in lines[0].splitlines() if "@package" not in line) if lines else ""


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and value and not any(" " in str(key) or "." in str(key) for key in value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _set(choice: Choice) -> Iterator[tuple[str, str]]:
    """What a choice sets to other values than the schema's."""
    owner: Any = getattr(schema, choice.schema) if choice.schema else None
    usual = {key: default for key, _, default, _ in _declared(owner, "")} if owner else {}
    for key, value in choice.values.items():
        name = key.rpartition(".")[2]
        differs = key not in usual or _shown(usual[key]) != _shown(value)
        if differs and not name.startswith("_partial") and name not in ("name", "for_task") and value != "???":
            text = _shown(value)
            yield key, text if len(text) <= LONG else "…"


# ---- schemas ---------------------------------------------------------------------------------------------------------


def _options(
    owner: type,
    prefix: str,
    agreed: Mapping[str, Any] | None = None,
    nested: bool = True,
    without: tuple[str, ...] = (),
) -> str:
    """A table of a schema's options, whose defaults are what all files of it have `agreed` on; empty if it has none."""
    rows = []
    for key, kind, default, item in _declared(owner, prefix, nested):
        usual = (agreed or {}).get(key.removeprefix(prefix), default)
        shown = "" if usual == schema.MISSING else f"`{_shown(usual)}`"
        rows += [(f"`{key}`", kind, shown, _allowed(item), item["help"])] if key not in without else []
    return _table("option", "type", "default", "allowed", "meaning", rows=rows) if rows else ""


def _table(*names: str, rows: list[tuple[str, ...]]) -> str:
    """In Markdown, without padding: one option more is one line more."""
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _declared(owner: type, prefix: str, nested: bool = True) -> Iterator[tuple[str, str, Any, Any]]:
    """Of each option with a meaning: name, type, default, metadata; those of schemas inside a schema, too."""
    hints = get_type_hints(owner)
    for item in fields(owner):
        inner = [part for part in (hints[item.name], *get_args(hints[item.name])) if is_dataclass(part)]
        if inner and nested:
            yield from _declared(inner[0], f"{prefix}{item.name}.")  # pyright: ignore[reportArgumentType]
        elif "help" in item.metadata:
            yield f"{prefix}{item.name}", _type(hints[item.name]), _default(item), item.metadata


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is NO_DEFAULT else item.default_factory()


def _type(hint: Any) -> str:
    if hint in TYPES:
        return TYPES[hint]
    arguments = get_args(hint)
    if type(None) in arguments:
        return f"{_type(arguments[0])}, or null"
    if getattr(hint, "__origin__", None) is list:
        return f"list: {_type(arguments[0])}"
    return "mapping" if getattr(hint, "__origin__", None) is dict else "any"


def _allowed(metadata: Any) -> str:
    if "choices" in metadata:
        return ", ".join(f"`{choice}`" for choice in metadata["choices"])
    signs = {"least": "≥", "above": ">", "most": "≤"}
    return ", ".join(f"{sign} {metadata[name]}" for name, sign in signs.items() if name in metadata)


def _shown(value: Any) -> str:
    """As it is written on the command line."""
    if isinstance(value, Swept) or (isinstance(value, str) and value.startswith("${")):
        return str(value)
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?e-?\d+", value):  # YAML takes 1e-3 for a text
        value = float(value)
    return written(value)


# ---- programs --------------------------------------------------------------------------------------------------------


def _program(name: str) -> Iterator[str]:
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    yield f"## python run.py -cn {name}"
    yield _comment(text)
    for entry in yaml.load(text, LOADER)["defaults"]:
        names = [*entry.values()] if isinstance(entry, dict) else [entry]
        owner = getattr(schema, str(names[0]), None)
        if isinstance(owner, type) and owner is not schema.Config:
            shared = tuple(item.name for item in fields(schema.Config)) if issubclass(owner, schema.Config) else ()
            yield "The options of a run, and:" if shared else ""
            yield _options(owner, "", nested=False, without=shared)
