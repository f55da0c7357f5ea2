"""The tables of a page: scores, settings that differ, and what was found in the data."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from runs.analysis import format_number
from runs.checkpoints import read_json
from runs.comparison import MAIN, TESTED, TESTS, TaskComparison
from runs.page.blocks import Cell, Table, number
from runs.page.charts import NAMES
from runs.schema import ConfigError

log = logging.getLogger(__name__)

LEAST = ("mae", "median_ae", "rmse", "crps")  # scores of which less is better
NEAREST = {"bias": 0.0, "coverage_80": 0.8}  # scores that are best at a value
LEVELS = {0.05: "*", 0.01: "**", 0.001: "***"}
ITEMS = 8  # of a list in a data report
NONE = "–"
TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):00(\.0+)?$")


def scores(found: TaskComparison) -> Table:
    """The rows of `comparison.csv`, the best of each score marked: among models, and among averages of several runs."""
    names, table = found.scores, found.table
    averaged = ~table["label"].isin(found.rows["label"])
    tested, several = len(table) > 1, table["data"].nunique() > 1
    best = {(name, kind): _best(name, table[averaged == kind][name]) for name in names for kind in (False, True)}
    rows: list[list[Cell | str]] = []
    for (_, of_label), is_average in zip(table.iterrows(), averaged, strict=True):
        cells: list[Cell | str] = [Cell(str(of_label["label"]), kind="quiet" if is_average else "")]
        cells += [str(of_label["data"])] if several else []
        cells.append(number(of_label["runs"], "{:.0f}"))
        for name in names:
            cell = number(of_label[name])
            spread = of_label[f"{name}_std"]
            kind = "best" if of_label[name] == best[name, is_average] else cell.kind
            marks = [LEVELS[p] for p in sorted(LEVELS) if of_label["p"] < p and name == TESTED[found.task]]
            shown = "" if pd.isna(spread) else format_number(spread, beside=[of_label[name]])
            cells.append(Cell(cell.text, cell.value, shown, marks[0] if marks else "", kind))
        if tested:
            cells.append(
                Cell(_against(of_label, found.reference), None if pd.isna(of_label["p"]) else float(of_label["p"]))
            )
        cells.append(number(of_label["parameters"], "{:,.0f}"))
        cells.append(number(of_label["seconds_per_epoch"], "{:,.1f}"))
        cells.append(number(of_label["best_epoch"] if of_label["best_epoch"] else np.nan, "{:.1f}"))
        rows.append(cells)
    against = [f"against {found.reference}"] if tested else []
    costs = ["parameters", "s/epoch", "epochs to best"]
    numbers = ["runs", *(NAMES[name] for name in names), *costs]
    head = ["model", *(["data"] if several else []), *numbers[:-3], *against, *costs]
    return Table("Scores", head, rows, frozenset(numbers), _notes(found, bool(averaged.any())))


def best(found: TaskComparison) -> str:
    """The best mean of the task's main score, and whose it is; nothing where no score is defined."""
    score = MAIN[found.task]
    table = found.table[found.table["label"].isin(found.rows["label"])]
    value = _best(score, table[score])
    whose = table["label"][table[score] == value]
    return "" if np.isnan(value) else f"{format_number(value)}, {whose.iloc[0]}"


def _best(name: str, values: pd.Series) -> float:
    badness = values if name in LEAST else (values - NEAREST[name]).abs() if name in NEAREST else -values
    return float(values.iloc[badness.argmin()]) if badness.notna().any() else np.nan


def _against(of_label: pd.Series, reference: str) -> str:
    """The difference, to be broken before its p only."""
    other, text = str(of_label["reference"]), str(of_label["difference"])
    if not text:
        return "" if other else "reference"
    text = text.replace("-", "−").replace(" ", "\u00a0").replace(",\u00a0p", ", p")
    return text if other == reference else f"{text} (against {other})"


def _notes(found: TaskComparison, averaged: bool) -> list[str]:
    kinds = ", among models and among averages of several runs' answers" if averaged else ""
    notes = [f"Mean ± standard deviation over a model's runs. Bold: the best of a column{kinds}."]
    if found.task == "cls":
        notes.append("Precision, recall and F1 are means over the classes, each counting alike.")
    if len(found.table) > 1:
        stars = ", ".join(f"{mark} p < {level}" for level, mark in LEVELS.items())
        tested = NAMES[TESTED[found.task]]
        notes.append(f"Against {found.reference}: {TESTS[found.task]}.")
        notes.append(f"At the {tested}: {stars}, not corrected for the number of models.")
    return notes


def settings(found: TaskComparison) -> Table | None:
    """The keys of the configuration whose values are not the same in all runs, a column per label."""
    flat: dict[Path, dict[str, str]] = {}
    for folder in found.rows["folder"]:
        content: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        flat[folder] = dict(_flattened(content))
    keys = list(dict.fromkeys(key for each in flat.values() for key in each))
    parts = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    rows: list[list[Cell | str]] = []
    for key in sorted(keys, key=lambda key: parts.index(key.partition(".")[0])):
        values = {folder: each.get(key, NONE) for folder, each in flat.items()}
        if key.endswith("_partial_") or len(set(values.values())) == 1:
            continue
        of_labels = [
            ", ".join(dict.fromkeys(values[folder] for folder in folders)) for folders in found.labels.values()
        ]
        rows.append([key, *(Cell(text, kind="quiet" if text == NONE else "") for text in of_labels)])
    return Table("Settings that differ", ["key", *found.labels], rows) if rows else None


def reports(found: TaskComparison) -> list[Table]:
    """What each data set was found to hold, once; and the splits that were made of it, side by side."""
    kept: dict[str, list[str]] = {}
    for label, folder in found.rows[["label", "folder"]].itertuples(index=False):
        file = Path(folder) / "data_report.json"
        try:
            if file.exists():
                kept.setdefault(json.dumps(read_json(file)), []).append(label)
        except ConfigError as error:  # the run's scores are good all the same
            log.warning(f"{error}")
    tables = []
    for text, labels in kept.items():
        report = json.loads(text)
        title = str(report.get("name", "data"))
        if len(kept) > 1:
            title += f", for {', '.join(dict.fromkeys(labels))}"
        splits = report.pop("splits", {})
        rows = [[_words(key), _counted(value)] for key, value in _flattened(report) if key != "name"]
        tables.append(Table(title, ["found", "value"], rows))
        each = {name: dict(_flattened(split)) for name, split in splits.items()}
        keys = dict.fromkeys(key for split in each.values() for key in split)
        rows = [[_words(key), *(_counted(split.get(key, NONE)) for split in each.values())] for key in keys]
        if rows:
            tables.append(Table(f"{title}: splits", ["of the split", *each], rows, frozenset(each)))
    return tables


def _flattened(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every value by its full key, as text."""
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            found += _flattened(value, f"{key}.")
        else:
            found.append((key, _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = [_text(item) for item in value[:ITEMS]] + (["…"] if len(value) > ITEMS else [])
        if any(isinstance(item, Mapping) for item in value):
            return f"{len(value)}: " + "; ".join(items)
        return f"[{', '.join(items)}]"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or NONE
    if value is None or value == "":
        return NONE
    return str(value).lower() if isinstance(value, bool) else TIME.sub(r"\1 \2", str(value)).removesuffix(".0")


def _words(key: str) -> str:
    return key.replace(".", " · ").replace("_", " ")


def _counted(text: str) -> Cell:
    """A value of a report; nothing found is said quietly."""
    shown = f"{int(text):,}" if text.isdecimal() else text
    return Cell(shown, kind="quiet" if text in ("0", NONE, "[]", "false") else "")
