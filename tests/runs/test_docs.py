from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runs import schema
from runs.completion import choices, written
from runs.docs import _declared, _shown, page
from runs.schema import SCHEMAS
from tests.runs.lab import ROOT

PAGE = ROOT / "docs" / "options.md"


def rows() -> dict[str, list[str]]:
    """The cells of all tables, by the first of a row."""
    lines = (line.strip("| ").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line)
    return {first.strip("`"): rest for first, *rest in lines}


def test_the_page_of_options_is_what_make_docs_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "conf/ or runs/schema.py has changed: run `make docs`"


def test_every_choice_and_every_option_with_a_meaning_is_on_it() -> None:
    shown, text = rows(), PAGE.read_text(encoding="utf-8")
    for group in (*SCHEMAS, "logger", "experiment"):
        for name in choices(group):
            assert shown[f"{group}={name}"][0].strip(), f"conf/{group}/{name}.yaml says nothing of itself in a comment"
        for owner in SCHEMAS.get(group, []):
            for item in fields(owner):
                if "help" in item.metadata:
                    assert re.search(rf"`{group}\.{item.name}` .*{re.escape(item.metadata['help'])} \|", text)
    for owner in (schema.Config, schema.DescribeConfig, schema.BenchmarkConfig, schema.ResultsConfig):
        assert {item.name for item in fields(owner) if "help" in item.metadata} <= shown.keys()


def test_types_defaults_limits_and_what_a_choice_sets_are_those_of_the_files() -> None:
    shown = rows()
    assert shown["optimizer.lr"][:3] == ["number", "`0.1`", "> 0, ≤ 10"]  # of sgd, the last with such an option
    assert shown["task.inputs.dropout"][:3] == ["number", "`0.3`", "≥ 0, ≤ 1"]
    assert shown["model.encoder.init"][:3] == ["text", "`torch`", "`torch`, `orthogonal`"]
    assert shown["task.ngrams.bits"][:3] == ["whole number", "`18`", "≥ 8, ≤ 26"]
    assert shown["trainer.limit_train_batches"][1] == "`1.0`"  # 1 is a single batch
    assert shown["data.target"][1] == "`'T (degC)'`"
    assert shown["task.quantiles"][:2] == ["list: number", "`[]`"]
    assert shown["callbacks.early_stopping.patience"][:3] == ["whole number", "`3`", "≥ 0"]
    assert shown["data.limit"][0] == "whole number, or null"
    assert shown["optimizer=sgd"] == [
        "Stochastic gradient descent with momentum.",
        "`_target_=torch.optim.SGD`, `lr=0.1`",
    ]
    assert "`baseline.penalty=1000.0`" in shown["model=ridge"][1]
    assert "`sample_years=3`" not in shown["data=sample_climate"][1]  # the schema has it already
    assert "`callbacks.averaging=0.995`" in shown["experiment=backtest_forecast"][1]  # of the recipe that it builds on
    assert "`task.pooling=last,mean,max,attention,max_mean`" in shown["ablation=pooling"][1]


VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        1.0,
        0.0,
        1e-8,
        1e16,
        -9999.0,
        0.001,
        "",
        "a",
        "5d",
        "1",
        "1.0",
        "1e3",
        "true",
        "NULL",
    ),
    *(
        "T (degC)",
        "%d.%m.%Y %H:%M:%S",
        ",",
        "it's",
        'a "b"',
        "back\\slash",
        "\\'",
        "内容",
        "2015-01-01",
        "index%5",
        "nan",
    ),
    *("val/loss", "utf-8", "${not}", "a=b", " a", "[1]", [], [1, 1.0, "1"], ["p (mbar)"], {}, {"speed": "wv (m/s)"}),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_written_so_that_hydra_reads_the_same_value_of_the_same_type(value: Any) -> None:
    read = OverridesParser.create().parse_override(f"key={written(value)}").value()
    assert (repr(read), type(read)) == (repr(value), type(value))


def test_every_default_on_the_page_is_read_as_the_value_that_it_stands_for() -> None:
    schemas = [*(each for several in SCHEMAS.values() for each in several), schema.Config, schema.ExtraTrainerConfig]
    schemas += [each for each, _ in schema.PROGRAMS.values()]
    defaults = {key: value for owner in schemas for key, _, value, _ in _declared(owner, "") if value != schema.MISSING}
    assert len(defaults) > 100
    for key, value in defaults.items():
        read = OverridesParser.create().parse_override(f"key={_shown(value)}").value()
        assert (repr(read), type(read)) == (repr(value), type(value)), key
