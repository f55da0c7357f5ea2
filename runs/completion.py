"""Shell completion that reads the files of `conf/` without composing them, which takes Hydra most of a second.

It answers what Hydra's would, and for an option with a fixed set of values, all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hydra.plugins.completion_plugin import CompletionPlugin

import conf
from runs import schema

CONF = Path(conf.__file__).parent
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
NAMING = ("-cn", "--config-name")
ROOTS = {"config": schema.Config, "describe": schema.DescribeConfig}
"""The primary configurations that choose from the groups, and their schemas."""
HERE = "/schema@_here_"  # in a defaults list, the schema that a file builds on


@dataclass(frozen=True)
class Leaf:
    """An option: its value as the files have it, and those that it may have, if they can be listed."""

    value: Any
    choices: tuple[Any, ...] = ()


def install() -> None:
    """Have Hydra's completion, for every shell, ask `complete` first."""
    hydras = CompletionPlugin._query

    def query(self: CompletionPlugin, config_name: str | None, line: str) -> list[str]:
        found = complete(line)
        return hydras(self, _program(line.split()), line) if found is None else found

    CompletionPlugin._query = query


def complete(line: str) -> list[str] | None:
    """What may stand in the place of the last word of `line`; None where only Hydra knows: its own options, a file."""
    *before, word = line.split(" ")
    if before and before[-1] in NAMING:
        return sorted(path.stem for path in CONF.glob(f"{word}*.yaml"))
    if (program := _program(before)) not in ROOTS:
        return None
    key, equals, start = word.partition("=")
    if word.startswith(("hydra", "+", "~", "-")) or (start and CompletionPlugin._get_filename(word)[1] is not None):
        return None
    tree = composed(before, program)
    if equals:
        node = select(tree, key)
        values = choices(key) if key in groups() else _values_of(node) if isinstance(node, Leaf) else []
        return sorted(f"{key}={value}" for value in values if value.lstrip("'").startswith(start.lstrip("'")))
    path, dot, _ = word.rpartition(".")
    node = select(tree, path) if dot else tree
    found = [f"{path}{dot}{name}{'.' if isinstance(value, dict) else '='}" for name, value in _items(node)]
    if not dot:
        found += [f"{group}=" for group in groups()] + ["hydra."]
    return sorted({each for each in found if each.startswith(word)})


def _program(words: Sequence[str]) -> str:
    """The primary configuration that the command line names."""
    return next((name for flag, name in pairwise(words) if flag in NAMING), "config")


def composed(words: Sequence[str], program: str = "config") -> dict[str, Any]:
    """The options of the configuration that `words` choose, nested, references not filled in."""
    root = yaml.load((CONF / "config.yaml").read_text(encoding="utf-8"), LOADER)
    listed = [entry for entry in root.pop("defaults") if isinstance(entry, dict)]
    chosen = {group: str(name) for entry in listed for group, name in entry.items() if group in groups()}
    chosen |= {key: name for key, _, name in (word.partition("=") for word in words) if key in chosen}
    tree = _merged(_declared(ROOTS[program]), {key: value for key, value in root.items() if key != "hydra"})
    for group, name in chosen.items():
        options = _file(group, name.replace("${task}", chosen["task"]))
        if group not in ("experiment", "ablation"):
            tree[group] = options if group not in options else Leaf(None)  # scheduler=none sets `scheduler` itself
    return tree


def groups() -> list[str]:
    """The groups that a command line chooses from."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "__pycache__"))


def choices(group: str) -> list[str]:
    """The names that group=name may have: the group's files, those in folders below it, too."""
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


def _file(group: str, name: str) -> dict[str, Any]:
    """A file of a group, on top of those that it builds on; empty if there is none of that name."""
    path = CONF / group / f"{name}.yaml"
    if not path.exists():
        return {}
    content = yaml.load(path.read_text(encoding="utf-8"), LOADER) or {}
    tree: dict[str, Any] = {}
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict) and HERE in entry:
            tree = _merged(tree, _declared(getattr(schema, entry[HERE])))
        elif isinstance(entry, str) and entry != "_self_":
            tree = _merged(tree, _file(group, entry))
    return _merged(tree, content)


def _declared(node: type) -> dict[str, Any]:
    """The options of a schema with their defaults."""
    return {item.name: _declared_option(item) for item in fields(node)}


def _declared_option(item: Field[Any]) -> Any:
    default = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
    if is_dataclass(default):
        return _declared(type(default))  # pyright: ignore[reportArgumentType]
    if isinstance(default, bool):
        return Leaf(default, (True, False))
    return (
        _merged({}, {"": default})[""] if isinstance(default, dict) else Leaf(default, item.metadata.get("choices", ()))
    )


def _merged(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`tree` with plain or declared `values` over it."""
    result = dict(tree)
    for name, value in values.items():
        old = result.get(name)
        if isinstance(value, dict):
            result[name] = _merged(old if isinstance(old, dict) else {}, value)
        elif isinstance(value, Leaf):
            result[name] = value
        else:
            result[name] = Leaf(value, old.choices if isinstance(old, Leaf) else ())
    return result


def select(tree: Any, path: str) -> Any:
    """What a tree of options has at `path`, or None."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _items(node: Any) -> list[tuple[str, Any]]:
    return list(node.items()) if isinstance(node, dict) else []


def _values_of(leaf: Leaf) -> list[str]:
    """What can be typed: all choices, or the value if it is one."""
    values = leaf.choices or (leaf.value,)
    plain = [value for value in values if isinstance(value, (bool, int, float, str)) and value not in ("", "???")]
    return [written(value) for value in plain if not str(value).startswith("$")]


def written(value: Any) -> str:
    """A value as Hydra's command line has it: 1.0 is no 1, and a text in quotes if it would be read otherwise."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(each)}' for key, each in value.items())}}}"
    if isinstance(value, (int, float)):
        return repr(value)
    if _is_read_as_text(value):
        return value
    ending = value[len(value.rstrip("\\")) :]  # in quotes, backslashes count double before a quote only
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + ending + "'"


def _is_read_as_text(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return bool(re.fullmatch(r"[\w./%+-]+", value, re.ASCII)) and value.lower() not in ("null", "true", "false")
    return False
