"""What only a comparison of forecasts shows: errors by time, the fan of quantiles, and the worst windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from runs.comparison import TaskComparison
from runs.page.blocks import Chart, Choice, Section
from runs.page.charts import (
    Style,
    axis,
    band,
    by_part,
    figure,
    grid,
    line,
    markers,
    pair,
    rounded,
    styles,
)

WORST, TYPICAL = 3, 3  # windows shown of each kind
BINS = 61  # of the histogram of errors
NAIVE: Style = {"colour": "--muted", "dash": "dot", "symbol": "circle"}


def sections(found: TaskComparison) -> list[Section]:
    """Errors and windows."""
    tables = {folder: _read(folder) for folder in found.rows["folder"]}
    config = OmegaConf.load(found.rows["folder"].iloc[0] / "config.yaml")
    target = str(OmegaConf.select(config, "data.target", default="target"))
    errors = [
        _by_step(found, tables),
        by_part(found, "mae by season", "Error by season"),
        _by_hour(found, tables),
        by_part(found, "mae by year", "Error by year"),
        _histogram(found, tables, target),
        _quantiles(found),
    ]
    return [
        Section("errors", "Errors", [chart for chart in errors if chart is not None]),
        Section("windows", "Windows", [choice] if (choice := _windows(found, tables, target)) else []),
    ]


def _read(folder: Path) -> pd.DataFrame:
    """Predictions with `time`, that of the target."""
    file = folder / "predictions.parquet"
    if not file.exists():
        return pd.DataFrame()
    wanted = ("origin", "step", "target", "prediction", "seasonal_naive")
    names = [name for name in pq.read_schema(file).names if name in wanted or name.startswith("q0.")]
    table = pd.read_parquet(file, columns=names)
    return table.assign(time=table["origin"] + table["step"] * _step(folder))


def _step(folder: Path) -> pd.Timedelta:
    return pd.Timedelta(OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "data.step", default="1h"))


def _by_step(found: TaskComparison, tables: dict[Path, pd.DataFrame]) -> Chart | None:
    look = styles(dict.fromkeys(found.rows["label"]))
    data, naive = [], {}
    for label, of_label in found.rows.groupby("label", sort=False):
        runs = [found.metrics[folder] for folder in of_label["folder"] if "mae_by_step" in found.metrics[folder]]
        if not runs or len({len(run["mae_by_step"]) for run in runs}) > 1:
            continue
        errors = np.array([run["mae_by_step"] for run in runs])
        hours = (np.arange(1, errors.shape[1] + 1) * _step(of_label["folder"].iloc[0]).total_seconds() / 3600).tolist()
        if len(runs) > 1:
            data.append(band(hours, errors.min(axis=0), errors.max(axis=0), str(label), look[str(label)]["colour"]))
        data.append(line(hours, rounded(errors.mean(axis=0)), str(label), look[str(label)], "%{x:g} h ahead: %{y:.3f}"))
        naive[len(hours)] = (hours, np.mean([run["seasonal_naive"]["mae_by_step"] for run in runs], axis=0))
    if not data:
        return None
    if "seasonal_naive" not in set(found.rows["model"]):
        hours, errors = naive[max(naive)]
        data.append(line(hours, rounded(errors), "seasonal naive", NAIVE, "%{x:g} h ahead: %{y:.3f}"))
    ticks = {"dtick": 6} if 24 <= max(naive) <= 96 else {}
    x = axis("lead time (h)", zeroline=False, **ticks)
    y = axis("mean absolute error", rangemode="tozero", zeroline=False)
    return Chart(
        "Error by lead time", figure(data, x, y, 380), "Means over a model's runs, and the range between them."
    )


def _by_hour(found: TaskComparison, tables: dict[Path, pd.DataFrame]) -> Chart | None:
    look = styles(dict.fromkeys(found.rows["label"]))
    data, naive = [], []
    for label, of_label in found.rows.groupby("label", sort=False):
        runs = [table for folder in of_label["folder"] if len(table := tables[folder])]
        if not runs:
            continue
        errors = pd.concat(
            [
                (run["prediction"] - run["target"]).abs().groupby(run["time"].dt.hour).agg(["sum", "size"])
                for run in runs
            ]
        )
        hourly = errors.groupby(level=0).sum()
        hover = "%{x} o'clock: %{y:.3f}"
        points = markers(look[str(label)], 5)
        data.append(
            line(
                hourly.index.tolist(),
                rounded(hourly["sum"] / hourly["size"]),
                str(label),
                look[str(label)],
                hover,
                **points,
            )
        )
        naive += [run for run in runs if "seasonal_naive" in run][:1]
    if not data or len(data[0]["x"]) < 2:
        return None
    if naive and "seasonal_naive" not in set(found.rows["model"]):
        hourly = (naive[0]["seasonal_naive"] - naive[0]["target"]).abs().groupby(naive[0]["time"].dt.hour).mean()
        data.append(line(hourly.index.tolist(), rounded(hourly), "seasonal naive", NAIVE, "%{x} o'clock: %{y:.3f}"))
    x = axis("hour of day of the target", dtick=3, range=[-0.5, 23.5], zeroline=False)
    return Chart("Error by hour of day", figure(data, x, axis("mean absolute error", zeroline=False)), half=True)


def _histogram(found: TaskComparison, tables: dict[Path, pd.DataFrame], target: str) -> Chart | None:
    look = styles(dict.fromkeys(found.rows["label"]))
    errors: dict[str, np.ndarray] = {}
    for label, of_label in found.rows.groupby("label", sort=False):
        if runs := [table for folder in of_label["folder"] if len(table := tables[folder])]:
            each = np.concatenate([(run["prediction"] - run["target"]).to_numpy(dtype=np.float64) for run in runs])
            errors[str(label)] = each[np.isfinite(each)]
    widest = max((float(np.quantile(np.abs(each), 0.995)) for each in errors.values() if len(each)), default=0)
    if not widest:
        return None
    edges = np.linspace(-widest, widest, BINS + 1)
    centers = rounded((edges[:-1] + edges[1:]) / 2)
    data = []
    for label, each in errors.items():
        shares = 100 * np.histogram(each, edges)[0] / max(1, len(each))
        shape = {"line": {"color": look[label]["colour"], "dash": look[label]["dash"], "width": 2, "shape": "hvh"}}
        data.append(line(centers, rounded(shares, 4), label, look[label], "error about %{x:.2f}: %{y:.2f}%", **shape))
    x, y = (
        axis(f"forecast − truth, {target}", zeroline=True),
        axis("% of forecasts", rangemode="tozero", zeroline=False),
    )
    return Chart(
        "Errors",
        figure(data, x, y),
        "Forecasts of all steps; beyond the edges lie 0.5% of the widest model's.",
        half=True,
    )


def _quantiles(found: TaskComparison) -> Chart | None:
    look = styles(dict.fromkeys(found.rows["label"]))
    perfect: Style = {"colour": "--muted", "dash": "dot"}
    data = [line([0, 1], [0, 1], "perfect", perfect, "", hoverinfo="skip", hovertemplate=None)]
    for label, of_label in found.rows.groupby("label", sort=False):
        shares = [found.metrics[folder].get("share_below_quantile") for folder in of_label["folder"]]
        table = pd.DataFrame([each for each in shares if each]).mean()
        if len(table):
            levels = [float(level) for level in table.index]
            hover = "quantile %{x:g}: %{y:.3f} of truths below it"
            data.append(
                line(levels, rounded(table), str(label), look[str(label)], hover, **markers(look[str(label)], 7))
            )
    if len(data) == 1:
        return None
    x, y = (axis(title, range=[0, 1.02], zeroline=False) for title in ("quantile", "share of truths below it"))
    return Chart("Reliability of the quantiles", figure(data, x, y), half=True)


# ---- windows ---------------------------------------------------------------------------------------------------------


def _windows(found: TaskComparison, tables: dict[Path, pd.DataFrame], target: str) -> Choice | None:
    """Worst and typical windows: of each label's first run, and of all labels by their mean error."""
    look = styles(dict.fromkeys(found.rows["label"]))
    first = {
        str(label): tables[folder]
        for label, folder in found.rows.groupby("label", sort=False)["folder"].first().items()
    }
    first = {label: table for label, table in first.items() if len(table)}
    errors = {
        label: (each["prediction"] - each["target"]).abs().groupby(each["origin"]).mean()
        for label, each in first.items()
    }
    panels: dict[str, list[Any]] = {}
    if len(first) > 1:
        shared = pd.concat(errors, axis=1).dropna().mean(axis=1)
        if len(shared):
            panels["all models"] = [_panels(shared, first, look, target)]
    for label, each in errors.items():
        panels[label] = [_panels(each, {label: first[label]}, look, target)]
    note = (
        f"Those with the largest mean error, and those nearest to the median, in {target}; of several runs the first. "
        "What is known before the origin is put together from the targets of other windows. Drag to zoom, click twice "
        "to come back."
    )
    return Choice("Windows of", panels, note) if panels else None


def _panels(errors: pd.Series, models: dict[str, pd.DataFrame], look: dict[str, Style], target: str) -> Chart:
    """A panel per window: past, truth, forecasts; of a single model also the fan of its quantiles."""
    some = next(iter(models.values()))
    truth = some.drop_duplicates("time").set_index("time")["target"].sort_index()
    reach = some["time"].max() - some["origin"].max()
    chosen = _chosen(errors, reach)
    data: list[dict[str, Any]] = []
    titles = []
    for at, (kind, origin) in enumerate(chosen, 1):
        own = {**pair(at), "showlegend": at == 1}
        past = truth[(truth.index > origin - 2 * reach) & (truth.index <= origin)]
        target_rows = some[some["origin"] == origin].sort_values("step")
        # From the last known value on, so that the lines hang together.
        known = past.iloc[-1:].to_dict()
        ink: Style = {"colour": "--ink", "dash": "solid"}
        if len(past):
            data.append(
                line(
                    _times(past.index), rounded(past), "past", {"colour": "--faint", "dash": "solid"}, "%{y:.2f}", **own
                )
            )
        for label, table in models.items():
            rows = table[table["origin"] == origin].sort_values("step")
            if len(models) == 1:
                data += [{**each, **pair(at), "showlegend": at == 1} for each in _fan(rows, look[label]["colour"])]
                if "seasonal_naive" in rows and label != "seasonal_naive":
                    data.append(
                        line(
                            _times(rows["time"]),
                            rounded(rows["seasonal_naive"]),
                            "seasonal naive",
                            NAIVE,
                            "%{y:.2f}",
                            **own,
                        )
                    )
            data.append(line(_times(rows["time"]), rounded(rows["prediction"]), label, look[label], "%{y:.2f}", **own))
        times, values = [*known, *target_rows["time"]], [*known.values(), *target_rows["target"]]
        data.append(line(_times(pd.Index(times)), rounded(values), "truth", ink, "%{y:.2f}", **own))
        titles.append(f"{kind}, {origin:%Y-%m-%d %H:%M}: MAE {errors[origin]:.2f}")
    return Chart("", grid(data, titles, 2, axis(type="date", zeroline=False, nticks=6), axis(zeroline=False)))


def _chosen(errors: pd.Series, reach: pd.Timedelta) -> list[tuple[str, pd.Timestamp]]:
    """Windows by their mean error, none of which share a target."""
    found: list[tuple[str, pd.Timestamp]] = []
    nearest = (errors - errors.median()).abs()
    for kind, order, count in (("worst", -errors, WORST), ("typical", nearest, TYPICAL)):
        taken = 0
        for origin in order.sort_values(kind="stable").index:
            if taken < count and all(abs(origin - other) >= reach for _, other in found):
                found.append((kind, origin))
                taken += 1
    return found


def _fan(rows: pd.DataFrame, colour: str) -> list[dict[str, Any]]:
    """Intervals between quantiles that lie as far from 0 as from 1, the widest first."""
    levels = {round(float(str(name)[1:]), 6): str(name) for name in rows if str(name).startswith("q0.")}
    drawn = []
    for low in sorted(level for level in levels if level < 0.5 and round(1 - level, 6) in levels):
        ends = (rows[levels[level]] for level in (low, round(1 - low, 6)))
        name = f"{100 * (1 - 2 * low):.0f}% interval"
        drawn.append({**band(_times(rows["time"]), *ends, name, colour, 0.14), "showlegend": True})
    return drawn


def _times(times: Any) -> list[str]:
    return [f"{time:%Y-%m-%d %H:%M}" for time in times]
