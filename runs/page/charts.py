"""Charts of any comparison, for plotly.js.

A colour is the name of a CSS property, `--series-0` and the like: the page fills it in, by its theme. Texts that come
from a user are escaped, for plotly reads some HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from runs.analysis import curve
from runs.comparison import MAIN, TaskComparison
from runs.page.blocks import Chart

SERIES = 7  # colours of the palette
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
UNITS = ((1e6, " M"), (1e3, " k"), (1, ""))
NAMES = {
    "accuracy": "accuracy",
    "precision_macro": "precision",
    "recall_macro": "recall",
    "f1_macro": "F1",
    "mae": "MAE",
    "median_ae": "median AE",
    "rmse": "RMSE",
    "bias": "bias",
    "skill": "skill",
}
"""Scores as people call them."""

Style = Mapping[str, str]


def styles(labels: Iterable[str]) -> dict[str, Style]:
    """A colour for each label; where there are more labels than colours, another dash and symbol, too."""
    found = {}
    for at, label in enumerate(labels):
        lap = at // SERIES % len(DASHES)
        found[label] = {"colour": f"--series-{at % SERIES}", "dash": DASHES[lap], "symbol": SYMBOLS[lap]}
    return found


def rounded(values: Any, digits: int = 5) -> list[float | None]:
    """Numbers with so many digits that count, as JSON knows them: what is none becomes null."""
    numbers = np.asarray(values, dtype=np.float64)
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in numbers]


def wrapped(text: str) -> str:
    """A tick's text, broken at its spaces."""
    return escape(text).replace(" ", "<br>")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def axis(title: str = "", **options: Any) -> dict[str, Any]:
    """An axis with its title."""
    return {"title": {"text": escape(title)}, **options}


def figure(
    data: Sequence[Mapping[str, Any]], x: Mapping[str, Any], y: Mapping[str, Any], height: int = 320, **layout: Any
) -> dict[str, Any]:
    """A figure with one pair of axes."""
    return {"data": [*data], "layout": {"xaxis": x, "yaxis": y, "height": height, **layout}, "narrow": {}}


def grid(
    data: Sequence[Mapping[str, Any]], titles: Sequence[str], columns: int, x: Mapping[str, Any], y: Mapping[str, Any]
) -> dict[str, Any]:
    """A figure of several pairs of axes, `x, y`, `x2, y2` and so on, in rows; on a narrow screen below each other."""
    wide, narrow = _places(len(titles), columns), _places(len(titles), 1)
    annotations = []
    for at, title in enumerate(titles, 1):
        xaxis, yaxis = pair(at).values()
        name = "" if at == 1 else str(at)
        wide[f"xaxis{name}"] |= {**x, "anchor": yaxis}
        wide[f"yaxis{name}"] |= {**y, "anchor": xaxis}
        place = {"xref": f"{xaxis} domain", "yref": f"{yaxis} domain", "x": 0, "y": 1, "xanchor": "left"}
        annotations.append({"text": escape(title), "yanchor": "bottom", "yshift": 5, "showarrow": False, **place})
    return {"data": [*data], "layout": {**wide, "annotations": annotations, "margin": {"t": 32}}, "narrow": narrow}


def _places(count: int, columns: int, tall: int = 210, gap: int = 80, between: float = 0.16) -> dict[str, Any]:
    """Height of a grid of so many panels in pixels, and the part of it that each pair of axes takes."""
    columns = min(columns, count)
    rows = -(-count // columns)
    inner = rows * tall + (rows - 1) * gap
    width = 1 / (columns + between * (columns - 1))
    found: dict[str, Any] = {"height": inner + 80}
    for at in range(count):
        row, column = divmod(at, columns)
        left, top = column * (1 + between) * width, 1 - row * (tall + gap) / inner
        name = "" if at == 0 else str(at + 1)
        found[f"xaxis{name}"] = {"domain": [round(left, 4), round(min(1, left + width), 4)]}
        found[f"yaxis{name}"] = {"domain": [round(max(0, top - tall / inner), 4), round(top, 4)]}
    return found


def pair(at: int) -> dict[str, str]:
    """The axes of the panel `at`, counted from 1, of a `grid`."""
    number = "" if at == 1 else str(at)
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


def heat(
    z: Any,
    text: Sequence[Sequence[str]],
    said: Sequence[Sequence[str]],
    x: Sequence[str],
    y: Sequence[str],
    **options: Any,
) -> dict[str, Any]:
    """A figure of coloured cells (rows by columns), each with its text, and what is `said` of it on a hover."""
    cells = {
        "type": "heatmap",
        "x": [*range(len(x))],
        "y": [*range(len(y))],
        "z": [rounded(row, 4) for row in z],
        "text": text,
        "texttemplate": "%{text}",
        "textfont": {"color": "--ink"},
        "customdata": said,
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": [[0, "--heat-low"], [1, "--heat-high"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    common = {"showgrid": False, "zeroline": False}
    across = axis(tickvals=cells["x"], ticktext=x, side="top", autotickangles=[0, -90], **common)
    down = axis(tickvals=cells["y"], ticktext=y, autorange="reversed", **common)
    chart = figure([cells | options], across, down, 60 + 38 * len(y), margin={"t": 40, "b": 4})
    one_line = [name.replace("<br>", " ") for name in x]  # it may have to be turned
    return {**chart, "narrow": {"xaxis": {"ticktext": one_line}, "height": 80 + 32 * len(y)}}


def line(x: Any, y: Any, label: str, style: Style, hover: str, **options: Any) -> dict[str, Any]:
    """A line of one label; `hover` is what is said of a point below its label."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": escape(label),
        "legendgroup": label,
        "line": {"color": style["colour"], "dash": style["dash"], "width": 2},
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>{hover}<extra></extra>",
        **options,
    }


def markers(style: Style, size: Any = 6) -> dict[str, Any]:
    """Points on a line."""
    return {"mode": "lines+markers", "marker": {"color": style["colour"], "symbol": style["symbol"], "size": size}}


def band(x: Sequence[Any], low: Any, high: Any, label: str, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """What lies between two lines."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*rounded(high), *reversed(rounded(low))],
        "name": escape(label),
        "legendgroup": label,
        "showlegend": False,
        "hoverinfo": "skip",
        "line": {"width": 0, "color": colour},
        "fill": "toself",
        "fillcolor": colour,
        "opacity": opacity,
    }


def scores_by_run(found: TaskComparison) -> Chart:
    """The main score of every run, a line of points per label, with the mean of each."""
    score = MAIN[found.task]
    labels = list(dict.fromkeys(found.rows["label"]))
    look = styles(labels)
    data = []
    for at, label in enumerate(labels):
        of_label = found.rows[found.rows["label"] == label]
        colour = look[label]["colour"]
        common = {"type": "scatter", "mode": "markers", "name": escape(label), "showlegend": False}
        hover = {"text": [f"seed {seed}" for seed in of_label["seed"]]}
        hover["hovertemplate"] = "<b>%{fullData.name}</b><br>%{text}: %{x:.4f}<extra></extra>"
        values = rounded(of_label[score])
        dots = {"color": colour, "size": 8, "opacity": 0.45}
        data.append({**common, "x": values, "y": [at] * len(values), "marker": dots, **hover})
        mean = {"color": colour, "symbol": "line-ns", "size": 20, "line": {"color": colour, "width": 3}}
        say = "<b>%{fullData.name}</b><br>mean %{x:.4f}<extra></extra>"
        center = rounded([of_label[score].mean()])
        data.append({**common, "x": center, "y": [at], "marker": mean, "hovertemplate": say})
    ticks = {"tickvals": [*range(len(labels))], "ticktext": [wrapped(label) for label in labels]}
    y = axis(range=[len(labels) - 0.5, -0.5], showgrid=False, zeroline=False, automargin=True, **ticks)
    chart = figure(data, axis(NAMES[score], zeroline=False), y, 60 + 36 * len(labels))
    note = "A dot per run; the bar is the mean of a model's runs."
    return Chart(f"{_upper(NAMES[score])} of every run", chart, note)


def learning_curves(found: TaskComparison) -> Chart | None:
    """Losses and the monitored score by epoch: means over the runs of a label, and their range; None without epochs."""
    histories, monitor = found.histories(), found.monitor
    look = styles(histories)
    tables = {
        name: {label: table for label, runs in histories.items() if len(table := curve(runs, name))}
        for name in dict.fromkeys(("train/loss", "val/loss", monitor))
    }
    lasts = {name: max((table.index.max() for table in each.values()), default=0) for name, each in tables.items()}
    names = [name for name, last in lasts.items() if last > 0]
    data: list[dict[str, Any]] = []
    for at, name in enumerate(names, 1):
        for label, table in tables[name].items():
            own = {**pair(at), "showlegend": all(trace["name"] != escape(label) for trace in data)}
            if table.index.max() > 0:
                epochs = [int(epoch) for epoch in table.index]
                if len(histories[label]) > 1:
                    low, high = table["low"], table["high"]
                    data.append({**band(epochs, low, high, label, look[label]["colour"]), **pair(at)})
                points = markers(look[label], 5)
                hover = "epoch %{x}: %{y:.4f}"
                data.append(line(epochs, rounded(table["mean"]), label, look[label], hover, **points, **own))
            elif name == monitor:  # a baseline knows no epochs, and the loss of a margin is no cross-entropy
                flat = rounded([table["mean"].iloc[0]] * 2)
                style = {**look[label], "dash": "dot"}
                data.append(line([1, int(lasts[name])], flat, label, style, "%{y:.4f}", **own))
    if not names:
        return None
    titles = [{"train/loss": "training loss", "val/loss": "validation loss"}.get(name, name) for name in names]
    x = axis("epoch", dtick=1 if max(lasts.values()) <= 5 else None, zeroline=False)
    note = "Means over a model's runs, and the range between them. Dotted: fitted in one go."
    return Chart("Learning curves", grid(data, titles, 3, x, axis(zeroline=False)), note)


def cost(found: TaskComparison, name: str, title: str) -> Chart:
    """The main score of each run against what it costs, on a logarithmic axis; what costs nothing is a line."""
    score = MAIN[found.task]
    rows = found.rows.assign(cost=found.rows[name].astype(float))
    look = styles(dict.fromkeys(rows["label"]))
    paid = rows.loc[rows["cost"] > 0, "cost"]
    ends = [float(paid.min()), float(paid.max())] if len(paid) else [1.0, 10.0]
    data = []
    for label, of_label in rows.groupby("label", sort=False):
        label, style = str(label), look[str(label)]
        if (of_label["cost"] <= 0).any():
            flat = rounded([of_label[score].mean()] * 2)
            data.append(line(ends, flat, label, {**style, "dash": "dot"}, f"%{{y:.4f}}, no {escape(title)}"))
            continue
        hover = f"%{{y:.4f}}<br>%{{x:,.4~g}} {escape(title)}"
        marker = {"color": style["colour"], "symbol": style["symbol"]}
        dots = {"mode": "markers", "marker": {**marker, "size": 7, "opacity": 0.4}, "showlegend": False}
        data.append(line(rounded(of_label["cost"]), rounded(of_label[score]), label, style, hover, **dots))
        mean = {"mode": "markers", "marker": {**marker, "size": 13, "line": {"color": "--paper", "width": 1.5}}}
        center = (rounded([of_label[each].mean()]) for each in ("cost", score))
        data.append(line(*center, label, style, f"mean {hover}", **mean))
    x = axis(title, type="log", zeroline=False, **_logarithmic(*ends))
    chart = figure(data, x, axis(NAMES[score], zeroline=False))
    return Chart(f"{_upper(NAMES[score])} by {title}", chart, "A point per run, a large one for the mean.", half=True)


def _logarithmic(low: float, high: float) -> dict[str, Any]:
    """Range and ticks of a logarithmic axis, at 1, 2 and 5, or where that is too few at each digit."""
    low, high = low / 1.25, high * 1.25
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= 3:
            break
    texts = [next(f"{tick / unit:g}{name}" for unit, name in UNITS if tick >= unit or unit == 1) for tick in ticks]
    return {"range": [float(np.log10(low)), float(np.log10(high))], "tickvals": ticks, "ticktext": texts}


def by_part(found: TaskComparison, title: str, heading: str, note: str = "") -> Chart | None:
    """One of the comparison's tables of parts, a line per label."""
    table = found.parts.get(title)
    if table is None:
        return None
    look = styles(dict.fromkeys(found.rows["label"]))
    names = [escape(str(part).replace("under ", "<").replace(" and more", "+")) for part in table.index]
    data = [
        line(names, rounded(table[label]), label, look[label], "%{x}: %{y:.4f}", **markers(look[label], 7))
        for label in table
    ]
    score, _, kind = title.partition(" by ")
    x = axis(kind, type="category", zeroline=False)
    return Chart(
        heading,
        figure(data, x, axis({"mae": "mean absolute error"}.get(score, score), zeroline=False)),
        note,
        half=True,
    )
