"""What only a comparison of forecasts shows: errors by time, the fan of quantiles, and the worst windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from pandas.api.types import is_datetime64_any_dtype

from datamodules import DataError
from datamodules.lookbacks import format_time
from datamodules.steps import Step
from runs.analysis import format_number, quantiles_of
from runs.comparison import TaskComparison
from runs.page.blocks import Chart, Choice, Section
from runs.page.charts import (
    Look,
    axis,
    band,
    by_part,
    diagonal,
    digits,
    figure,
    grid,
    line,
    looks,
    markers,
    pair,
    rounded,
)
from tasks.forecasting import central_intervals

WORST, TYPICAL = 3, 3  # windows shown of each kind
BINS = 61  # of the histogram of errors
NAIVE = Look("seasonal naive", "--muted", "dot")
PAST, TRUTH = Look("past", "--faint"), Look("truth", "--ink")
MAE = axis("mean absolute error")


@dataclass(frozen=True)
class Predictions:
    """What is kept of the predictions of a label's runs, which are long.

    Attributes:
        errors: of all forecasts.
        hours: by hour of day of the target, the mean absolute errors `model` and, if it is known, `naive`.
        first: those of its first run, with `time`, that of the target.
        hours_per_step: None if a step has no fixed length.
    """

    errors: np.ndarray
    hours: pd.DataFrame
    first: pd.DataFrame
    hours_per_step: float | None


def sections(found: TaskComparison) -> list[Section]:
    """Errors and windows."""
    known = {label: kept for label, folders in found.labels.items() if (kept := _predictions(folders)) is not None}
    config = OmegaConf.load(found.rows["folder"].iloc[0] / "config.yaml")
    target = str(OmegaConf.select(config, "data.target", default="target"))
    errors = [
        _by_step(found),
        by_part(found, "mae by season", "Error by season"),
        _by_hour(found, known),
        by_part(found, "mae by year", "Error by year"),
        _histogram(found, known, target),
        _quantiles(found),
    ]
    return [
        Section("errors", "Errors", [chart for chart in errors if chart is not None]),
        Section("windows", "Windows", [_windows(found, known, target)] if known else []),
    ]


def _predictions(folders: Sequence[Path]) -> Predictions | None:
    known = [folder for folder in folders if (folder / "predictions.parquet").exists()]
    if not known:
        return None
    runs = [_read(folder, quantiles=folder == known[0]) for folder in known]
    both = pd.concat(
        [run[run.columns.intersection(["time", "target", "prediction", "seasonal_naive"])] for run in runs]
    )
    errors = both["prediction"] - both["target"]
    names = {"prediction": "model", "seasonal_naive": "naive"}
    each = {names[name]: (both[name] - both["target"]).abs() for name in names if name in both}
    hours = pd.DataFrame(each)
    hours = hours.groupby(both["time"].dt.hour).mean() if _is_dated(both) else hours.iloc[:0]
    kept = errors.to_numpy(dtype=np.float32)
    return Predictions(kept[np.isfinite(kept)], hours, runs[0], _hours_per_step(folders[0]))


def _read(folder: Path, quantiles: bool) -> pd.DataFrame:
    """The predictions of a run; their quantiles are many, and shown of one run alone."""
    file = folder / "predictions.parquet"
    wanted = ("origin", "time", "step", "target", "prediction", "seasonal_naive")
    held = pq.read_schema(file).names
    names = [name for name in held if name in wanted] + ([*quantiles_of(held)] if quantiles else [])
    table = pd.read_parquet(file, columns=names)
    if "time" in table:
        return table
    microseconds = round((_hours_per_step(folder) or 0) * 3_600_000_000)
    return table.assign(time=table["origin"] + table["step"] * pd.Timedelta(microseconds, unit="us"))


def _hours_per_step(folder: Path) -> float | None:
    step = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "data.step", default="1h")
    try:
        return Step.parse("step", step).hours
    except DataError:  # of a data module of one's own
        return pd.Timedelta(step) / pd.Timedelta("1h")


def _is_dated(table: pd.DataFrame) -> bool:
    """Whether the targets have times, and not the numbers of rows alone."""
    return is_datetime64_any_dtype(table["time"])


def _by_step(found: TaskComparison) -> Chart | None:
    unit = "h" if all(_hours_per_step(folders[0]) for folders in found.labels.values()) else "steps"
    look, hover = looks(found.labels), f"%{{x:g}} {unit} ahead: %{{y:{digits(found.rows['mae'], 3)}}}"
    data: list[dict[str, Any]] = []
    naive: list[tuple[list[float], list[float]]] = []
    for label, folders in found.labels.items():
        runs = [found.metrics[folder] for folder in folders if "mae_by_step" in found.metrics[folder]]
        if len({len(run["mae_by_step"]) for run in runs}) != 1:
            continue
        errors = np.array([run["mae_by_step"] for run in runs])
        hours = (np.arange(1, errors.shape[1] + 1) * (_hours_per_step(folders[0]) if unit == "h" else 1)).tolist()
        if len(runs) > 1:
            data.append(band(hours, errors.min(axis=0), errors.max(axis=0), look[label]))
        data.append(line(hours, rounded(errors.mean(axis=0)), look[label], hover))
        naive.append((hours, runs[0]["seasonal_naive"]["mae_by_step"]))
    if not data:
        return None
    hours, errors = max(naive, key=lambda each: each[0][-1])
    if "seasonal_naive" not in set(found.rows["model"]):
        data.append(line(hours, rounded(errors), NAIVE, hover))
    x = axis(f"lead time ({unit})", **({"dtick": 6} if unit == "h" and 24 <= hours[-1] <= 96 else {}))
    note = "Means over a model's runs, and the range between them."
    return Chart("Error by lead time", figure(data, x, {**MAE, "rangemode": "tozero"}, 380), note)


def _by_hour(found: TaskComparison, known: dict[str, Predictions]) -> Chart | None:
    look, hover = looks(found.labels), f"%{{x}} o'clock: %{{y:{digits(found.rows['mae'], 3)}}}"
    data = [
        line(kept.hours.index.tolist(), rounded(kept.hours["model"]), look[label], hover, **markers(look[label], 5))
        for label, kept in known.items()
    ]
    naive = next((kept.hours["naive"] for kept in known.values() if "naive" in kept.hours), None)
    if naive is not None and "seasonal_naive" not in set(found.rows["model"]):
        data.append(line(naive.index.tolist(), rounded(naive), NAIVE, hover))
    if all(len(trace["x"]) < 2 for trace in data):  # daily readings have no hours
        return None
    x = axis("hour of day of the target", dtick=3, range=[-0.5, 23.5])
    return Chart("Error by hour of day", figure(data, x, MAE), half=True)


def _histogram(found: TaskComparison, known: dict[str, Predictions], target: str) -> Chart | None:
    look = looks(found.labels)
    widest = max((float(np.quantile(np.abs(kept.errors), 0.995)) for kept in known.values()), default=0.0)
    if not widest:
        return None
    edges = np.linspace(-widest, widest, BINS + 1)
    centers = rounded((edges[:-1] + edges[1:]) / 2)
    data = []
    for label, kept in known.items():
        shares = 100 * np.histogram(kept.errors, edges)[0] / len(kept.errors)
        steps = line(centers, rounded(shares, 4), look[label], f"error about %{{x:{digits(widest, 2)}}}: %{{y:.2f}}%")
        data.append({**steps, "line": {**steps["line"], "shape": "hvh"}})
    x = axis(f"forecast − truth, {target}", zeroline=True)
    note = "Forecasts of all steps; beyond the edges lie 0.5% of the widest model's."
    return Chart("Errors", figure(data, x, axis("% of forecasts", rangemode="tozero")), note, half=True)


def _quantiles(found: TaskComparison) -> Chart | None:
    look = looks(found.labels)
    data = [diagonal()]
    for label, folders in found.labels.items():
        shares = [found.metrics[folder].get("share_below_quantile") for folder in folders]
        table = pd.DataFrame([each for each in shares if each]).mean()
        levels = [float(str(level)) for level in table.index]
        hover = "quantile %{x:g}: %{y:.3f} of truths below it"
        data += [line(levels, rounded(table), look[label], hover, **markers(look[label], 7))] if levels else []
    if len(data) == 1:
        return None
    x, y = (axis(title, range=[0, 1.02]) for title in ("quantile", "share of truths below it"))
    return Chart("Reliability of the quantiles", figure(data, x, y), half=True)


# ---- windows ---------------------------------------------------------------------------------------------------------


def _windows(found: TaskComparison, known: dict[str, Predictions], target: str) -> Choice:
    """Worst and typical windows: of all labels by their mean error, and of each one."""
    look = looks(found.labels)
    errors = {
        label: (kept.first["prediction"] - kept.first["target"]).abs().groupby(kept.first["origin"]).mean()
        for label, kept in known.items()
    }
    shared = pd.concat(errors, axis=1).dropna().mean(axis=1)
    panels: dict[str, list[Chart]] = {}
    if len(known) > 1 and len(shared):
        panels["all models"] = [_panels(shared, known, look)]
    panels |= {label: [_panels(each, {label: known[label]}, look)] for label, each in errors.items()}
    note = (
        f"Those with the largest mean error, and those nearest to the median, in {target}; of several runs the first. "
        "What is known before the origin is put together from the targets of other windows. Drag to zoom, click twice "
        "to come back."
    )
    return Choice("Windows of", panels, note)


def _panels(errors: pd.Series, models: dict[str, Predictions], look: dict[str, Look]) -> Chart:
    some = next(iter(models.values()))
    truth = some.first.drop_duplicates("time").set_index("time")["target"].sort_index()
    ends = some.first.groupby("origin")["time"].max()
    steps = int(some.first["step"].max())
    data: list[dict[str, Any]] = []
    titles = []
    level, varied = float(truth.abs().max()), float(np.ptp(truth))
    # So many digits of a value, and decimals of it on a hover, that those in which the series varies are among them.
    many = 5 + max(0, math.floor(math.log10(level / varied))) if varied else 17
    at_time = "%{x|%Y-%m-%d %H:%M}" if _is_dated(some.first) else "row %{x}"
    hover = f"{at_time}: %{{y:.{max(2, 2 - math.floor(math.log10(varied))) if varied else 2}f}}"
    for at, (kind, origin) in enumerate(_chosen(errors, ends), 1):
        if some.hours_per_step:
            freq = pd.Timedelta(round(some.hours_per_step * 3_600_000_000), unit="us")
            past = truth.reindex(pd.date_range(end=origin, periods=2 * steps, freq=freq))  # with its gaps
            past = past.loc[past.first_valid_index() :]
        else:
            past = truth.loc[:origin].tail(2 * steps)
        future = truth.loc[origin : ends[origin]]
        traces = [line(_times(past.index), rounded(past, many), PAST, hover)] if past.notna().any() else []
        for label, kept in models.items():
            rows = kept.first[kept.first["origin"] == origin].sort_values("step")
            traces += _forecast(rows, look[label], many, hover, alone=len(models) == 1)
        traces.append(line(_times(future.index), rounded(future, many), TRUTH, hover))
        data += [trace | pair(at) | ({} if at == 1 else {"showlegend": False}) for trace in traces]
        titles.append(f"{kind}, {format_time(origin)}: MAE {format_number(errors[origin], 2)}")
    x = axis("", type="date", nticks=6) if _is_dated(some.first) else axis("row", nticks=6)
    return Chart("", grid(data, titles, 2, x, axis("")))


def _chosen(errors: pd.Series, ends: pd.Series) -> list[tuple[str, Any]]:
    """Windows by their mean error, none of which share a target; `ends` are the times of their last ones."""
    found: list[tuple[str, Any]] = []
    nearest = (errors - errors.median()).abs()
    for kind, order, count in (("worst", -errors, WORST), ("typical", nearest, TYPICAL)):
        taken = 0
        for origin in order.sort_values(kind="stable").index:
            if taken < count and all(origin >= ends[other] or other >= ends[origin] for _, other in found):
                found.append((kind, origin))
                taken += 1
    return found


def _forecast(rows: pd.DataFrame, look: Look, many: int, hover: str, alone: bool) -> list[dict[str, Any]]:
    """The forecast of one window; of a model alone, first its intervals, the widest first, and the seasonal naive."""
    times = _times(rows["time"])
    traces = []
    if alone:
        held = quantiles_of(rows.columns)
        names, levels = [*held], [*held.values()]
        for share, (low, high) in central_intervals(levels).items():
            interval = replace(look, label=f"{share}% interval")
            bounds = rows[names[low]], rows[names[high]]
            traces.append(band(times, *bounds, interval, 0.1 + 0.5 * levels[low], many) | {"showlegend": True})
        if "seasonal_naive" in rows and look.label != "seasonal_naive":
            traces.append(line(times, rounded(rows["seasonal_naive"], many), NAIVE, hover))
    return [*traces, line(times, rounded(rows["prediction"], many), look, hover)]


def _times(times: Any) -> list[Any]:
    return [f"{time:%Y-%m-%d %H:%M}" if isinstance(time, pd.Timestamp) else time for time in times]
