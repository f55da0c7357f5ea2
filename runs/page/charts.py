"""Charts of any comparison, for plotly.js.

A colour is the name of a CSS property, `--series-0` and the like: the page fills it in, by its theme. Texts that come
from a user are escaped, for plotly reads some HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from runs.analysis import curve
from runs.comparison import MAIN, TaskComparison
from runs.page.blocks import Chart

SERIES = 7  # colours of the palette
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
UNITS = ((1e6, " M"), (1e3, " k"), (0, ""))
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
    "crps": "CRPS",
    "coverage_80": "80% coverage",
}
"""Scores as people call them."""


@dataclass(frozen=True)
class Look:
    """How a label is drawn, in every chart alike."""

    label: str
    colour: str
    dash: str = "solid"
    symbol: str = "circle"


PERFECT = Look("perfect", "--muted", "dot")


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A colour for each label; where there are more labels than colours, another dash and symbol, too."""
    found = {}
    for at, label in enumerate(labels):
        lap = at // SERIES % len(DASHES)
        found[label] = Look(label, f"--series-{at % SERIES}", DASHES[lap], SYMBOLS[lap])
    return found


def rounded(values: Any, digits: int = 5) -> list[float | None]:
    """Numbers with so many digits that count, as JSON knows them: what is none becomes null."""
    numbers = np.asarray(values, dtype=np.float64)
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in numbers]


def digits(values: Any, decimals: int = 4) -> str:
    """The format, as d3 writes it, that `format_number` gives the largest of the values."""
    numbers = np.abs(np.asarray(values, dtype=np.float64))
    largest = numbers.max(initial=0, where=np.isfinite(numbers))
    return f".{decimals}{'f' if largest == 0 or largest >= 10 ** (1 - decimals) else 'g'}"


def wrapped(text: str) -> str:
    """A tick's text, broken at its spaces."""
    return escape(text).replace(" ", "<br>")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def axis(title: str, **options: Any) -> dict[str, Any]:
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
    across = axis("", tickvals=cells["x"], ticktext=x, showgrid=False, side="top", autotickangles=[0, -90])
    down = axis("", tickvals=cells["y"], ticktext=y, showgrid=False, autorange="reversed")
    chart = figure([cells | options], across, down, 60 + 38 * len(y), margin={"t": 40, "b": 4})
    one_line = [name.replace("<br>", " ") for name in x]  # it may have to be turned
    return {**chart, "narrow": {"xaxis": {"ticktext": one_line}, "height": 80 + 32 * len(y)}}


def line(x: Any, y: Any, look: Look, hover: str, **options: Any) -> dict[str, Any]:
    """A line of one label; `hover` is what is said of a point below its label."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": escape(look.label),
        "legendgroup": look.label,
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "hovertemplate": f"<b>%{{fullData.name}}</b><br>{hover}<extra></extra>",
        **options,
    }


def markers(look: Look, size: Any = 6) -> dict[str, Any]:
    """Points on a line."""
    marker = {"color": look.colour, "symbol": look.symbol, "size": size, "line": {"width": 0}}
    return {"mode": "lines+markers", "marker": marker}


def diagonal() -> dict[str, Any]:
    """Where a share is as it was foretold."""
    return line([0, 1], [0, 1], PERFECT, "", hoverinfo="skip", hovertemplate=None)


def band(x: Sequence[Any], low: Any, high: Any, look: Look, opacity: float = 0.16, many: int = 5) -> dict[str, Any]:
    """What lies between two lines."""
    fill = {"fill": "toself", "fillcolor": look.colour, "opacity": opacity, "hoverinfo": "skip", "showlegend": False}
    border = {"width": 0, "color": look.colour}
    y = [*rounded(high, many), *reversed(rounded(low, many))]
    return line([*x, *reversed(x)], y, look, "", line=border, hovertemplate=None, **fill)


def scores_by_run(found: TaskComparison) -> Chart:
    """The main score of every run, a line of points per label, with the mean of each."""
    score, look = MAIN[found.task], looks(found.labels)
    form, data = digits(found.rows[score]), []
    for at, (label, drawn) in enumerate(look.items()):
        of_label = found.rows[found.rows["label"] == label]
        values = rounded(of_label[score])
        dots = {"color": drawn.colour, "size": 8, "opacity": 0.45}
        bar = {"color": drawn.colour, "symbol": "line-ns", "size": 20, "line": {"color": drawn.colour, "width": 3}}
        own = {"mode": "markers", "showlegend": False}
        seeds = {"text": [f"seed {seed}" for seed in of_label["seed"]], "marker": dots}
        data.append(line(values, [at] * len(values), drawn, f"%{{text}}: %{{x:{form}}}", **own, **seeds))
        data.append(line(rounded([of_label[score].mean()]), [at], drawn, f"mean %{{x:{form}}}", **own, marker=bar))
    ticks = {"tickvals": [*range(len(look))], "ticktext": [wrapped(label) for label in look]}
    y = axis("", range=[len(look) - 0.5, -0.5], showgrid=False, **ticks)
    chart = figure(data, axis(NAMES[score]), y, 60 + 36 * len(look))
    return Chart(f"{_upper(NAMES[score])} of every run", chart, "A dot per run; the bar is the mean of a model's runs.")


def learning_curves(found: TaskComparison) -> Chart | None:
    """Losses and the main score by epoch: means over the runs of a label, and their range; None without epochs."""
    histories, score, look = found.histories(), found.curve, looks(found.labels)
    tables = {
        name: {label: table for label, runs in histories.items() if len(table := curve(runs, name))}
        for name in ("train/loss", "val/loss", score)
    }
    lasts = {name: int(max((max(table.index) for table in each.values()), default=0)) for name, each in tables.items()}
    names = [name for name, last in lasts.items() if last > 0]
    if not names:
        return None
    data: list[dict[str, Any]] = []
    for at, name in enumerate(names, 1):
        for label, table in tables[name].items():
            own = {**pair(at), "showlegend": all(trace["legendgroup"] != label for trace in data)}
            mean, form = rounded(table["mean"]), digits(table["mean"])
            if max(table.index) > 0:
                epochs = [int(epoch) for epoch in table.index]
                if len(histories[label]) > 1:
                    data.append(band(epochs, table["low"], table["high"], look[label]) | pair(at))
                hover = f"epoch %{{x}}: %{{y:{form}}}"
                data.append(line(epochs, mean, look[label], hover, **markers(look[label], 5), **own))
            elif name == score:  # a baseline knows no epochs, and the loss of a margin is no cross-entropy
                dotted = replace(look[label], dash="dot")
                data.append(line([1, lasts[name]], mean * 2, dotted, f"%{{y:{form}}}", **own))
    titles = [{"train/loss": "training loss", "val/loss": "validation loss"}.get(name, name) for name in names]
    few = {"dtick": 1} if max(lasts.values()) <= 5 else {}
    note = "Means over a model's runs, and the range between them. Dotted: fitted in one go."
    return Chart("Learning curves", grid(data, titles, 3, axis("epoch", **few), axis("")), note)


FAINT = 1e-5  # norms below it are not drawn


def memory(found: TaskComparison) -> Chart | None:
    """How far back the networks remember, means over the runs of a label; None where no run has kept it.

    See `runs.memory`.
    """
    look, data, longest = looks(found.labels), [], 0
    for label, runs in found.rows.groupby("label", sort=False)["folder"]:
        kept = [of["memory"]["norm"] for of in (found.metrics[run] for run in runs) if of.get("memory")]
        for direction in kept[0] if kept else ():
            lags = min(len(norms[direction]) for norms in kept)
            mean = np.mean([norms[direction][:lags] for norms in kept], axis=0)
            drawn = replace(look[str(label)], dash="dash") if direction == "backwards" else look[str(label)]
            seen = np.where(mean > FAINT, mean, np.nan)
            longest = max(longest, int(np.isfinite(seen).sum()))
            own = {"showlegend": direction == "forwards"}
            data.append(line([*range(lags)], rounded(seen), drawn, f"{direction}, lag %{{x}}: %{{y:.3g}}", **own))
    if not data:
        return None
    y = axis("norm of dh_T / ds_T−k", type="log", **_logarithmic(10 * FAINT, 1))
    chart = figure(data, axis("lag k (steps)", range=[0, longest]), y)
    note = "What the last output still owes to the state k steps before, on inputs of the split. Dashed: backwards."
    return Chart("Memory", chart, note)


def cost(found: TaskComparison, name: str, title: str) -> Chart:
    """The main score of each run against what it costs, on a logarithmic axis; what costs nothing is a line."""
    score, look = MAIN[found.task], looks(found.labels)
    paid = found.rows.loc[found.rows[name] > 0, name]
    ends = (float(paid.min()), float(paid.max())) if len(paid) else (1.0, 10.0)
    form, data = digits(found.rows[score]), []
    for label, drawn in look.items():
        of_label = found.rows[found.rows["label"] == label]
        mean = rounded([of_label[score].mean()])
        if (of_label[name] <= 0).any():
            data.append(line([*ends], mean * 2, replace(drawn, dash="dot"), f"%{{y:{form}}}, no {escape(title)}"))
            continue
        hover = f"%{{y:{form}}}<br>%{{x:,.4~g}} {escape(title)}"
        marker = {"color": drawn.colour, "symbol": drawn.symbol}
        dots = {"mode": "markers", "marker": {**marker, "size": 7, "opacity": 0.4}, "showlegend": False}
        data.append(line(rounded(of_label[name]), rounded(of_label[score]), drawn, hover, **dots))
        large = {"mode": "markers", "marker": {**marker, "size": 13, "line": {"color": "--paper", "width": 1.5}}}
        data.append(line(rounded([of_label[name].mean()]), mean, drawn, f"mean {hover}", **large))
    chart = figure(data, axis(title, type="log", **_logarithmic(*ends)), axis(NAMES[score]))
    return Chart(f"{_upper(NAMES[score])} by {title}", chart, "A point per run, a large one for the mean.", half=True)


def _logarithmic(low: float, high: float) -> dict[str, Any]:
    """Range and ticks of a logarithmic axis, at 1, 2 and 5, or where that is too few at each digit."""
    low, high = low / 1.25, high * 1.25
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= 3:
            break
    texts = [next(f"{tick / (unit or 1):g}{name}" for unit, name in UNITS if tick >= unit) for tick in ticks]
    return {"range": [float(np.log10(low)), float(np.log10(high))], "tickvals": ticks, "ticktext": texts}


def by_part(found: TaskComparison, title: str, heading: str, note: str = "") -> Chart | None:
    """One of the comparison's tables of parts, a line per label."""
    table = found.parts.get(title)
    if table is None:
        return None
    look, form = looks(found.labels), digits(table)
    parts = [escape(str(part).replace("under ", "<").replace(" and more", "+")) for part in table.index]
    data = [
        line(parts, rounded(table[label]), look[label], f"%{{x}}: %{{y:{form}}}", **markers(look[label], 7))
        for label in map(str, table)
    ]
    score, _, kind = title.partition(" by ")
    y = axis({"mae": "mean absolute error"}.get(score, score))
    return Chart(heading, figure(data, axis(kind, type="category"), y), note, half=True)
