"""Forecasts from a file of readings: from its last one, or from many of its times, scored where the truth is there."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from rich.table import Table

from datamodules import DataError
from datamodules.cleaning import CleanSeries, arrange, warn_of_sentinels
from datamodules.formats import CsvFormat, time_columns
from datamodules.lookbacks import Lookbacks
from datamodules.recordings import Rows, read_recordings
from datamodules.steps import LONGEST, Step, format_offset, format_time, with_offset
from datamodules.streaming import TableStream
from runs import figures
from runs.analysis import format_number
from runs.predict.output import bar, console, table_writer
from runs.report import write_json
from runs.schema import ConfigError
from tasks.baselines import seasonal_naive
from tasks.forecasting import error_scores, quantile_scores

log = logging.getLogger(__name__)

DRAWN, PRINTED = 6, 8  # forecasts in the figure, steps on the console
COLUMNS = 2  # of the lowest quantiles, and as many of the highest, on the console


@dataclass(frozen=True)
class Forecasts:
    """N forecasts of H steps; `history` (N, L) and `quantiles` (N, H, Q) of those only whose positions are `drawn`.

    Of all of them, `spread` has the means over the steps of `tasks.forecasting.quantile_scores`, (N,) each.
    """

    PER_ORIGIN: ClassVar = ("origin", "forecast", "truth", "naive", "history", "quantiles")

    origin: np.ndarray
    forecast: np.ndarray
    truth: np.ndarray
    naive: np.ndarray
    history: np.ndarray
    quantiles: np.ndarray
    spread: dict[str, np.ndarray]
    drawn: np.ndarray


def forecast_file(task: Any, settings: dict[str, Any]) -> None:
    """Write `origin, time, step, forecast`, a column per quantile, with `every` also `truth`; and a figure beside it.

    The file is read and cleaned as in training; a finer recording is sampled back from its last row, or averaged over
    the bins of training up to the last that is over. Without `every`, there is one forecast, from the last row, and of
    the file only what it needs is kept in memory. With it, there is one from each origin so far apart whose lookback is
    complete, and those whose truth is complete are scored, as a run's test is, in a JSON file beside the output.

    Args:
        task: the trained task.
        settings: of the program.

    Raises:
        ConfigError: an option can't be used.
        DataError: the input can't be used, or no lookback that may be used is complete.
    """
    facts = task.blueprint["facts"]
    step = Step.parse("step", facts["step"])
    every, age = (_steps(step, name, settings[name]) for name in ("every", "max_age"))
    if every is not None and age is not None:
        raise ConfigError("max_age is for a single forecast: leave it out, every=… takes what is complete")
    timed = settings["time_column"] or facts["cleaning"]["time_column"]
    if every is not None or (step.unit == "rows" and timed):
        span = None
    else:
        span = (facts["lookback"] + (age or 0) + facts["fill_limit"] + 2) * step.count * LONGEST[step.unit]
    started = time.perf_counter()
    series, whole = clean_file(facts, settings, span)
    log.info(f"{settings['input']}: {series.summary()}" + (" (in the rows that are used)" if every is None else ""))
    lookbacks = Lookbacks(series, facts)
    if every is not None:
        origins = lookbacks.spaced(every)
        if not len(origins):
            raise DataError(f"{settings['input']} has no complete lookback to forecast from: {lookbacks.lacking()}")
    else:
        if whole:
            _check_length(lookbacks, settings)
        origins = latest(lookbacks, age or 0, settings)
    output = Path(settings["output"])
    found = write_forecasts(task, lookbacks, origins, settings, with_truth=every is not None)
    _draw(task, found, output)
    seconds = time.perf_counter() - started
    if every is None:
        _print_forecast(task, found, lookbacks.times_ahead(origins)[0], output, seconds)
        return
    report = {
        **{name: settings[name] for name in ("run", "checkpoint", "input", "every")},
        "forecasts": len(origins),
        "skipped": lookbacks.possible(every) - len(origins),
        **_scores(found),
        "data": series.report,
    }
    write_json(output.with_suffix(".json"), report)
    _print_scores(report, output, seconds)


def clean_file(facts: Mapping[str, Any], settings: dict[str, Any], span: int | None) -> tuple[CleanSeries, bool]:
    """The file as a series of the columns that the model was trained on, or the end of it, and whether that is all."""
    cleaning = facts["cleaning"]
    ours: list[str] = cleaning["columns"]
    names = _columns(settings["columns"], ours)
    theirs = [names.get(name, name) for name in ours]
    given = {**settings, "time_column": _time_column(settings["time_column"])}
    reading = {
        name: cleaning.get(name, default) if given[name] is None else given[name]
        for name, default in (("time_column", None), ("time_format", None), ("decimal", "."), ("missing_words", ()))
    }
    format = CsvFormat.merge(settings, facts["reading"]).state()
    needed = dict.fromkeys(theirs, "columns={ours: theirs}")
    needed |= dict.fromkeys(time_columns(reading["time_column"]), "time_column")
    timed = reading["time_column"] is not None
    with TableStream(settings["input"], needed, **format) as table, bar(bytes=True) as progress:
        shown = progress.add_task("reading", total=table.size)
        rows, whole = read_recordings(
            table,
            columns=theirs,
            span=span,
            progress=lambda: progress.update(shown, completed=table.position),
            **reading,
        )
    rows = _on_clock(rows, _utc_offset(facts), settings["input"])
    rules = {name: value for name, value in cleaning.items() if name not in reading}
    rules["missing_values"] = [*rules["missing_values"], *settings["missing_values"]]
    series = arrange(
        rows,
        **rules,
        allow_loss=settings["allow_loss"],
        source=settings["input"],
        from_last=True,
        timed=timed,
        rows_at=lambda lines: _rows_at(settings["input"], lines, format).drop(columns=[*needed]),
    )
    warn_of_sentinels(series.report, settings["input"], "missing_values")
    return series, whole


def _rows_at(path: str, lines: np.ndarray, format: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that begin at these lines of a file, as text."""
    wanted = set(lines.tolist())
    with TableStream(path, (), **format) as table:
        rows = list(islice((row for row in table.rows() if row.line in wanted), len(wanted)))
        return pd.DataFrame([row.fields for row in rows], [row.line for row in rows], table.header, dtype=str)


def _utc_offset(facts: Mapping[str, Any]) -> int | None:
    """That of the clock that a model's times were on; older ones put all times that had one on UTC's."""
    return facts.get("utc_offset", 0 if "%z" in str(facts["cleaning"]["time_format"]) else None)


def _on_clock(rows: Rows, clock: int | None, source: str) -> Rows:
    """The rows on the clock that the model's times were on.

    Raises:
        DataError: which clock the one or the other is on can't be known.
    """
    if rows.utc_offset is None and clock is not None:
        raise DataError(
            f"{source}: its times have no offset from UTC, but those that the model was trained on had one: add it to "
            "them, and set time_format to one with %z, or to iso8601"
        )
    if rows.utc_offset is not None and clock is None:
        raise DataError(
            f"{source}: its times have an offset from UTC, but those that the model was trained on had none: write "
            "them on the same clock as then, without an offset, and set time_format to one without %z"
        )
    return rows.on_clock(clock)


def _check_length(lookbacks: Lookbacks, settings: dict[str, Any]) -> None:
    """Raise a DataError if the file begins later than the model's lookback."""
    series = lookbacks.series
    if early := int((lookbacks.wanted < series.numbers[0]).sum()):
        raise DataError(
            f"{settings['input']} begins at {format_time(series.times[0], series.utc_offset)}, too late for a "
            f"forecast: the model reads {lookbacks.lookback} steps of {series.step}, and {early} of them would be older"
        )


def latest(lookbacks: Lookbacks, age: int, settings: dict[str, Any]) -> np.ndarray:
    """The origin of the one forecast: the last row, or the latest with a complete lookback that is young enough."""
    series = lookbacks.series
    if not (lacking := lookbacks.lacking()):
        return lookbacks.origins[-1:]
    late = series.numbers[-1] - series.numbers[lookbacks.origins]
    young = lookbacks.origins[late <= age * series.step.count]
    ago = series.step.spell(int(late[-1])) if len(late) else ""
    if not len(young):
        known = f"the latest complete one ends {ago} before: max_age={ago} takes it"
        longer = "a longer max_age" if age else f"max_age=…, say {series.step.spell(series.step.count)}"
        remedy = known if ago else f"let it end earlier with {longer}"
        raise DataError(f"{settings['input']}: {lacking}; {remedy}")
    origin = format_time(series.times[young][-1], series.utc_offset)
    log.warning(f"{lacking}; forecasting from {origin}, {ago} before the last reading")
    return young[-1:]


def write_forecasts(
    task: Any, lookbacks: Lookbacks, origins: np.ndarray, settings: dict[str, Any], with_truth: bool
) -> Forecasts:
    """Forecast from each of `origins`, and write a row per origin and step."""
    schema = _schema(task, lookbacks, with_truth)
    drawn = np.unique(np.linspace(0, len(origins) - 1, min(DRAWN, len(origins))).astype(int))
    parts: list[Forecasts] = []
    table = table_writer(Path(settings["output"]), schema, settings["escape_formulas"])
    with table as writer, bar(bytes=False) as progress:
        for start in progress.track(range(0, len(origins), settings["batch_size"]), description="forecasting"):
            some = origins[start : start + settings["batch_size"]]
            found = _forecast(task, lookbacks, some)
            writer.write(_table(schema, lookbacks, some, found))
            here = drawn[(drawn >= start) & (drawn < start + len(some))] - start
            parts.append(replace(found, history=found.history[here], quantiles=found.quantiles[here]))
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Forecasts.PER_ORIGIN}
    spread = {name: np.concatenate([part.spread[name] for part in parts]) for name in parts[0].spread}
    return Forecasts(**joined, spread=spread, drawn=drawn)


@torch.inference_mode()
def _forecast(task: Any, lookbacks: Lookbacks, origins: np.ndarray) -> Forecasts:
    batch = lookbacks.batch(origins)
    answers = task.predict_step(batch, 0)
    history = task.in_own_unit(batch["history"])
    naive = seasonal_naive(history, task.facts["horizon"], task.facts["season_length"])
    truth = lookbacks.truth(origins)
    scores = quantile_scores(answers, torch.from_numpy(truth), task.levels) if task.levels else {}
    return Forecasts(
        origin=lookbacks.series.times[origins],
        forecast=task.median(answers).numpy(),
        truth=truth,
        naive=naive.numpy(),
        history=history.numpy(),
        quantiles=answers.reshape(*answers.shape[:2], -1).numpy(),
        spread={name: of_steps.mean(dim=1).numpy() for name, of_steps in scores.items()},
        drawn=np.arange(len(origins)),
    )


def _schema(task: Any, lookbacks: Lookbacks, with_truth: bool) -> pa.Schema:
    times = lookbacks.series.times
    if times.dtype == np.int64:
        kind = pa.int64()  # the numbers of rows without times
    else:
        offset = lookbacks.series.utc_offset
        zone = None if offset is None else "UTC" if offset == 0 else format_offset(offset)
        kind = pa.timestamp("us" if (times.astype(np.int64) % 1_000_000).any() else "s", zone)
    moments = [(name, kind) for name in ("origin", "time")]
    numbers = ["forecast", *(f"q{level:g}" for level in task.levels), *(["truth"] if with_truth else [])]
    return pa.schema([*moments, ("step", pa.int32()), *((name, pa.float64()) for name in numbers)])


def _table(schema: pa.Schema, lookbacks: Lookbacks, origins: np.ndarray, found: Forecasts) -> pa.Table:
    horizon = lookbacks.horizon
    columns = {
        "origin": with_offset(found.origin.repeat(horizon), lookbacks.series.utc_offset),
        "time": with_offset(lookbacks.times_ahead(origins).reshape(-1), lookbacks.series.utc_offset),
        "step": np.tile(np.arange(1, horizon + 1), len(origins)),
        "forecast": found.forecast.reshape(-1),
        "truth": found.truth.reshape(-1),
    }
    levels = [name for name in schema.names if name not in columns]
    columns |= {name: found.quantiles[..., number].reshape(-1) for number, name in enumerate(levels)}
    arrays = [pa.array(columns[field.name], from_pandas=True).cast(field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _scores(found: Forecasts) -> dict[str, Any]:
    """Errors of the forecasts whose truth is complete, over all their steps."""
    complete = ~np.isnan(found.truth).any(axis=1)
    tables = (found.truth, found.forecast, found.naive)
    truth, forecast, naive = (torch.from_numpy(table[complete]) for table in tables)
    if not len(truth):
        return {"scored": 0, "scores": {}, "seasonal_naive": None}
    errors = (naive - truth).abs()
    spread = {name: float(of_windows[complete].mean()) for name, of_windows in found.spread.items()}
    return {
        "scored": len(truth),
        "scores": error_scores(forecast - truth, errors) | spread,
        "seasonal_naive": {"mae": errors.mean().item(), "median_ae": float(np.median(errors.numpy()))},
    }


def _draw(task: Any, found: Forecasts, output: Path) -> None:
    windows = [
        {
            "origin": format_time(found.origin[position], _utc_offset(task.facts)),
            "history": found.history[number],
            "truth": found.truth[position],
            "forecast": found.forecast[position],
            "quantiles": {level: found.quantiles[number, :, at] for at, level in enumerate(task.levels)},
            "hours": task.facts["step_hours"],
        }
        for number, position in enumerate(found.drawn)
    ]
    model = task.blueprint["config"]["model"]["name"]
    figures.save(figures.forecasts(windows, model, task.facts["target"]), output)


def _print_forecast(task: Any, found: Forecasts, times: np.ndarray, output: Path, seconds: float) -> None:
    few = [*dict.fromkeys([*range(len(task.levels))[:COLUMNS], *range(len(task.levels))[-COLUMNS:]])]
    known, offset = not pd.isna(times).any(), _utc_offset(task.facts)
    table = Table(
        "time" if known else "step", task.facts["target"], *(f"{100 * task.levels[at]:g}%" for at in few), box=None
    )
    horizon, varied = len(times), float(np.ptp(np.append(found.history[0], found.forecast[0])))
    decimals = max(2, 2 - math.floor(math.log10(varied))) if varied else 2
    for step in np.unique(np.linspace(0, horizon - 1, min(PRINTED, horizon)).astype(int)):
        numbers = [found.forecast[0, step], *found.quantiles[0, step, few]] if few else [found.forecast[0, step]]
        shown_time = format_time(times[step], offset) if known else str(step + 1)
        table.add_row(shown_time, *(f"{value:.{decimals}f}" for value in numbers))
    shown = console()
    shown.print(f"from {format_time(found.origin[0], offset)}", highlight=False)
    shown.print(table)
    if not known:
        shown.print("the times are not known: by data.step=rows, rows are equally spaced whatever their times")
    rows = f" ({table.row_count} of them above)" if table.row_count < horizon else ""
    written = f"{output}, {output.with_suffix('.png')}"
    shown.print(f"{horizon} steps{rows} in {seconds:.1f} s: {written}", soft_wrap=True)


def _print_scores(report: dict[str, Any], output: Path, seconds: float) -> None:
    shown = console()
    if report["scored"]:
        table = Table("score", "value", box=None)
        for name, value in report["scores"].items():
            table.add_row(name, format_number(value))
        shown.print(table)
    if report["skipped"]:
        shown.print(f"{report['skipped']:,} more origins have no complete lookback")
    unknown = report["forecasts"] - report["scored"]
    shown.print(
        f"{report['forecasts']:,} forecasts in {seconds:.1f} s: {output}, {output.with_suffix('.json')}, "
        f"{output.with_suffix('.png')}" + (f"; {unknown:,} without the whole truth, not scored" if unknown else ""),
        soft_wrap=True,
    )


def _steps(step: Step, name: str, value: str | None) -> int | None:
    """How many of the model's steps an option of this program is."""
    try:
        return None if value is None else step.steps(name, value)
    except DataError as error:
        message = str(error).removeprefix("data.").replace("where data.step is", "where the model's step is")
        raise ConfigError(message.replace(f"data.step={step}", f"the model's step, {step}")) from error


def _time_column(given: str | None) -> str | list[str] | None:
    """The column of `time_column=`, or several, which come as they were typed: `[date, time]`."""
    if given is None or not given.startswith("[") or not given.endswith("]"):
        return given
    return [name.strip().strip("'\"") for name in given[1:-1].split(",")]


def _columns(given: Any, ours: list[str]) -> dict[str, str]:
    """The mapping of `columns=`, which comes as it was typed."""
    try:
        mapping = yaml.safe_load(given) if isinstance(given, str) else given
    except yaml.YAMLError:
        mapping = None
    if not isinstance(mapping, dict):
        raise ConfigError(f"columns={given} is not of the form {{ours: theirs, ours: theirs}}")
    if unknown := [name for name in mapping if str(name) not in ours]:
        raise ConfigError(f"columns={given}: the model reads no {unknown[0]!r}; it reads {', '.join(ours)}")
    return {str(name): str(value) for name, value in mapping.items()}
