"""Figures of a run and of a comparison; every function returns a matplotlib figure, `save` writes PNG and SVG."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, Locator, MaxNLocator, MultipleLocator

from runs.analysis import curve, format_number
from runs.checkpoints import replacing
from tasks.forecasting import central_intervals

log = logging.getLogger(__name__)

# Fonts with Chinese glyphs, as Linux distributions, Windows and macOS ship them.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Heiti TC",
    "Arial Unicode MS",
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito 2008
MOST_CLASSES = 40  # whose names and counts a confusion matrix has room for


@functools.cache
def chinese_font() -> str | None:
    """A font on this machine that can show Chinese."""
    manager = font_manager.fontManager

    def known() -> str | None:
        names = {font.name for font in manager.ttflist}
        return next((name for name in CHINESE_FONTS if name in names), None)

    if known() is None:  # perhaps it was installed after matplotlib had made its list
        listed = {font.fname for font in manager.ttflist}
        for path in set(font_manager.findSystemFonts()) - listed:
            with contextlib.suppress(RuntimeError, OSError):  # not a font that matplotlib can read
                manager.addfont(path)
    return known()


def readable(labels: Sequence[str], english: Mapping[str, str]) -> list[str]:
    """The labels as they are where their characters can be shown, else in English, else numbered."""
    if chinese_font() is not None or all(label.isascii() for label in labels):
        return list(labels)
    if any(not label.isascii() and label not in english for label in labels):
        log.warning(
            "no font here shows Chinese, so that figures number the classes, in the order of metrics.json: install "
            "one (Debian: fonts-noto-cjk), or name the classes with data.english={...}"
        )
    return [
        label if label.isascii() else english.get(label, f"class {number}") for number, label in enumerate(labels, 1)
    ]


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the suffixes .png and .svg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once; `savefig` does it, and draws without need, for each file
    figure.dpi = 150
    with replacing(path.with_suffix(".png")) as file:
        FigureCanvasAgg(figure).print_png(file)
    with replacing(path.with_suffix(".svg")) as file:
        FigureCanvasSVG(figure).print_svg(file)


def loss_curves(history: pd.DataFrame, monitor: str, mode: str) -> Figure:
    """Training and validation loss by epoch, and the monitored score with its best epoch."""
    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    for name, colour in (("train/loss", COLOURS[0]), ("val/loss", COLOURS[1])):
        if name in history:
            left.plot(history["epoch"], history[name], marker="o", markersize=3, color=colour, label=name)
    left.set(xlabel="epoch", ylabel="loss", title="Loss")
    left.legend()
    if monitor in history and history[monitor].notna().any():
        scores = history[monitor]
        best = int(np.nanargmax(scores if mode == "max" else -scores))
        right.plot(history["epoch"], scores, marker="o", markersize=3, color=COLOURS[2])
        right.plot(history["epoch"][best], scores[best], marker="*", markersize=13, color=COLOURS[2])
        epoch = history["epoch"][best]
        right.set(xlabel="epoch", ylabel=monitor, title=f"Best {monitor}: {format_number(scores[best])}, epoch {epoch}")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def confusion_matrix(counts: Sequence[Sequence[int]], labels: Sequence[str], small: bool = False) -> Figure:
    """Counts of truth (rows) by prediction (columns), coloured by the share of the row; small: the colours alone.

    Of more than `MOST_CLASSES`, only the colours, too, and some of the names: the figure grows no further.
    """
    table = np.asarray(counts)
    shown, every = min(len(labels), MOST_CLASSES), math.ceil(len(labels) / MOST_CLASSES)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cell = (0.25, 0.2) if small else (0.72, 0.62)
    figure = _figure(1.8 + cell[0] * shown, 1.4 + cell[1] * shown)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in [] if small or every > 1 else np.ndindex(*table.shape):
        dark = share[row, column] > 0.5
        axes.text(
            column,
            row,
            f"{table[row, column]}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black" if table[row, column] else "#bbbbbb",
        )
    text: Any = {"fontsize": 7} if small else {}
    axes.set_xticks(range(0, len(labels), every), labels[::every], rotation=45, ha="right", **text)
    axes.set_yticks(range(0, len(labels), every), labels[::every], **text)
    axes.set(xlabel="prediction", ylabel="truth")
    axes.grid(visible=False)
    if small:
        return figure
    axes.set_title("Confusion matrix (counts)")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class (recall)")
    return figure


def error_by_step(metrics: Mapping[str, list[float]], model: str, hours_per_step: float | None, unit: str) -> Figure:
    """Mean absolute error by lead time, in hours or, where a step has no fixed length, in steps; model and naive."""
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    for number, (label, errors) in enumerate(metrics.items()):
        hours = np.arange(1, len(errors) + 1) * (hours_per_step or 1)
        mean = f"{format_number(float(np.mean(errors)), 2)} {unit}".rstrip()
        axes.plot(hours, errors, color=COLOURS[number], label=f"{label} (mean {mean})")
    axes.set(xlabel=f"lead time ({'h' if hours_per_step else 'steps'})", title=f"Error of {model} by lead time")
    axes.set_ylabel(f"mean absolute error ({unit})" if unit else "mean absolute error")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(_ticks(len(errors), hours_per_step))
    axes.legend(loc="lower right")
    return figure


def forecasts(windows: Sequence[Mapping[str, Any]], model: str, target: str) -> Figure:
    """Past, truth and forecast of some windows.

    Each has `origin`, `history`, `truth` (NaN where it isn't known), `forecast`, `hours` of a step or None, and
    in `quantiles` the forecast's by level: those that lie as far from 0 as from 1 are drawn as a fan of intervals.
    """
    columns = min(2, len(windows))
    rows = -(-len(windows) // columns)
    figure = _figure(11, 2.7 * rows + 0.5 if len(windows) > 1 else 4.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, window in zip(grid.flat, windows, strict=False):
        step = window["hours"] or 1
        past = np.arange(1 - len(window["history"]), 1) * step
        future = np.arange(1, len(window["truth"]) + 1) * step
        axes.plot(past, window["history"], color="#777777", linewidth=1, label="past")
        levels = sorted(window["quantiles"])
        for share, places in central_intervals(levels).items():
            low, high = (levels[place] for place in places)
            # Solid, each over the wider ones: the legend then has the colours of the fan.
            colour = 1 - (1 - np.array(to_rgb(COLOURS[1]))) * (0.1 + low)
            label = f"{share}% of outcomes" if share in ("90", "80", "50") else None
            bounds = (window["quantiles"][low], window["quantiles"][high])
            axes.fill_between(future, *bounds, color=colour, linewidth=0, label=label)
        known = ~np.isnan(window["truth"])
        if known.any():
            axes.plot(future, window["truth"], color="#000000", linewidth=1.4, label="truth")
        axes.plot(future, window["forecast"], color=COLOURS[1], linewidth=1.6, label=model)
        axes.axvline(0, color="#aaaaaa", linewidth=0.8, linestyle=":")
        error = np.abs(window["forecast"] - window["truth"])[known]
        scored = f", mean error {format_number(error.mean(), 2)}" if known.any() else ""
        axes.set_title(f"from {window['origin']}{scored}", fontsize=9)
        axes.set(xlabel=f"{'hours' if window['hours'] else 'steps'} from the forecast's origin", ylabel=target)
        axes.xaxis.set_major_locator(_ticks(len(past) + len(future), window["hours"]))
    for axes in grid.flat[len(windows) :]:
        axes.set_visible(False)
    first: Any = max(grid.flat, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    figure.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    return figure


def memory(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Norm of dh_T/ds_{T-k} by lag k (see `runs.memory`), the backward direction dashed; lines at a half and 1%."""
    figure = _figure(7.5, 4.2)
    axes = figure.subplots()
    longest, lowest = 1, 1e-5
    for number, (label, of_label) in enumerate(curves.items()):
        for direction, norms in of_label["norm"].items():
            shown = np.array(norms)
            shown = shown[: np.argmin(shown > 0) if (shown == 0).any() else None]  # a logarithm has no 0
            name = f"{label}, {direction}" if len(of_label["norm"]) > 1 else label
            style = "--" if direction == "backwards" else "-"
            axes.plot(range(len(shown)), shown, style, color=COLOURS[number % len(COLOURS)], label=name)
            longest = max(longest, int((shown > lowest).sum()))
    for share, name in ((0.5, "a half"), (0.01, "1%")):
        axes.axhline(share, color="#555555", linewidth=0.8, linestyle=":")
        axes.annotate(name, (1, share), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlim=(0, longest), xlabel="lag k (steps)")
    axes.set_ylabel(r"$\|\partial h_T / \partial s_{T-k}\|_F\, /\, \sqrt{H}$")
    axes.set_ylim(bottom=lowest)
    axes.set_title("What the last output still owes to the state k steps before")
    axes.legend()
    return figure


def learning_curves(curves: Mapping[str, Sequence[pd.DataFrame]], score: str) -> Figure:
    """Validation loss and score by epoch: the mean over runs of one label, and the range between them."""
    figure = _figure(11, 4.4)
    both = figure.subplots(1, 2)
    for axes, name in zip(both, ("val/loss", score), strict=True):
        for number, (label, histories) in enumerate(curves.items()):
            table = curve(histories, name)
            if table.empty:
                continue
            colour = COLOURS[number % len(COLOURS)]
            if table.index.max() == 0:  # a baseline knows no epochs, and the loss of a margin is no cross-entropy
                if name == score:
                    axes.axhline(table["mean"].iloc[0], color=colour, linestyle="--", label=label)
                continue
            axes.plot(table.index, table["mean"], color=colour, marker="o", markersize=3, label=label)
            if len(histories) > 1:
                axes.fill_between(table.index, table["low"], table["high"], color=colour, alpha=0.15)
        axes.set(xlabel="epoch", ylabel=name, title=f"{name} by epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = max((axes.get_legend_handles_labels() for axes in both), key=lambda found: len(found[0]))
    if handles:
        columns = max(1, min(len(labels), 110 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def ratios(cases: Mapping[str, Sequence[float]], labels: Sequence[str]) -> Figure:
    """Time of ours / time of torch.nn by shape, one line of points per layer and mode."""
    figure = _figure(10, 4.5)
    axes = figure.subplots()
    layers = list(dict.fromkeys(name.partition(",")[0] for name in cases))
    for name, values in cases.items():
        marker = "o" if name.endswith("train") else "s"
        colour = COLOURS[layers.index(name.partition(",")[0]) % len(COLOURS)]
        axes.plot(range(len(values)), values, marker=marker, linewidth=0.8, color=colour, label=name)
    axes.axhline(1, color="#555555", linestyle=":")
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel="steps, batch, input_size, hidden_size", ylabel="ours / torch.nn", title="Below 1: ours is faster")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=3, fontsize=8)
    return figure


def _ticks(steps: int, hours: float | None) -> Locator:
    """Ticks for steps of so many hours: parts of a day, days, weeks, or fours of these; of less than a day, as usual.

    Of steps without a fixed length, whole ones.
    """
    if hours is None:
        return MaxNLocator(integer=True)
    span = steps * hours
    if span < 24:
        return AutoLocator()
    return MultipleLocator(next(tick for tick in (6, 24, 168, 672, span / 12) if span / tick <= 12))


def _figure(width: float, height: float) -> Figure:
    """An empty figure in the house style, drawn without a screen."""
    # Some Chinese fonts have a single weight, and matplotlib mentions each time that it takes it.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    families = [name for name in (chinese_font(), "DejaVu Sans") if name]
    matplotlib.rcParams.update(
        {
            "font.family": families,
            "axes.unicode_minus": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.fonttype": "path",  # a reader of the SVG may lack the font
        }
    )
    return Figure(figsize=(width, height), layout="constrained")
