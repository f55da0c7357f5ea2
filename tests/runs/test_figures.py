from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from runs import figures

ENGLISH = {"书籍": "books", "水果": "fruit"}
LABELS = ["书籍", "phones", "水果", "没有译名"]
HISTORY = pd.DataFrame(
    {"epoch": [1, 2, 3], "train/loss": [3.0, 2, 1], "val/loss": [3.0, 2, 2.5], "val/f1": [0.1, 0.4, 0.3]}
)
needs_font = pytest.mark.skipif(figures.chinese_font() is None, reason="no font with Chinese on this machine")


@pytest.fixture
def without_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "chinese_font", lambda: None)


def drawn(figure: Figure, path: Path) -> Figure:
    """Saved under the eyes of matplotlib, which warns of every glyph that a font lacks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.save(figure, path)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert path.with_suffix(".svg").stat().st_size > 0
    return figure


def points(line: Any, axis: str) -> list[float]:
    return np.asarray(line.get_xdata() if axis == "x" else line.get_ydata()).tolist()


def texts_of(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.usefixtures("without_font")
def test_without_a_chinese_font_labels_are_english_or_numbered(tmp_path: Path) -> None:
    labels = figures.readable(LABELS, ENGLISH)
    assert labels == ["books", "phones", "fruit", "class 4"]
    figure = drawn(figures.confusion_matrix(np.eye(4, dtype=int).tolist(), labels), tmp_path / "confusion")
    assert texts_of(figure) == labels


@needs_font
def test_with_a_chinese_font_labels_stay_as_they_are(tmp_path: Path) -> None:
    labels = figures.readable(LABELS, ENGLISH)
    assert labels == LABELS
    figure = drawn(figures.confusion_matrix(np.eye(4, dtype=int).tolist(), labels), tmp_path / "confusion")
    assert texts_of(figure) == LABELS


@pytest.mark.parametrize("font", [None, "Some Font"])
def test_labels_in_ascii_are_never_changed(font: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "chinese_font", lambda: font)
    assert figures.readable(["a", "b"], {"a": "c"}) == ["a", "b"]


def test_the_confusion_matrix_shows_the_counts_truth_by_row(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 5000, (5, 5))
    counts[2] = 0  # a class without support
    figure = drawn(figures.confusion_matrix(counts.tolist(), list("abcde")), tmp_path / "confusion")
    axes = figure.axes[0]
    shown = {text.get_position(): int(text.get_text()) for text in axes.texts}
    assert shown == {(column, row): counts[row, column] for row, column in np.ndindex(5, 5)}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth")
    coloured = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(coloured[0], counts[0] / counts[0].sum())
    assert not coloured[2].any()


@pytest.mark.parametrize("small", [True, False])
def test_the_confusion_matrix_of_very_many_classes_is_no_larger_and_has_some_of_the_names(small: bool) -> None:
    few, many = (
        figures.confusion_matrix(np.eye(count, dtype=int).tolist(), [f"class {at}" for at in range(count)], small)
        for count in (40, 300)
    )
    assert many.get_size_inches().tolist() == few.get_size_inches().tolist()
    axes = many.axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {at}" for at in range(0, 300, 8)]
    assert axes.get_yticks().tolist() == list(range(0, 300, 8))


def test_loss_curves_mark_the_best_epoch(tmp_path: Path) -> None:
    for monitor, mode, epoch, score in (("val/f1", "max", 2, 0.4), ("val/loss", "min", 2, 2.0)):
        figure = drawn(figures.loss_curves(HISTORY, monitor, mode), tmp_path / "loss")
        assert figure.axes[1].get_title() == f"Best {monitor}: {score:.4f}, epoch {epoch}"
        curves = {str(line.get_label()): points(line, "y") for line in figure.axes[0].lines}
        assert curves == {name: HISTORY[name].tolist() for name in ("train/loss", "val/loss")}


def test_loss_curves_do_without_scores_that_are_missing(tmp_path: Path) -> None:
    drawn(figures.loss_curves(HISTORY[["epoch", "train/loss"]], "val/f1", "max"), tmp_path / "loss")
    nothing = HISTORY.assign(**{"val/f1": np.nan})
    drawn(figures.loss_curves(nothing, "val/f1", "max"), tmp_path / "loss")
    partly = HISTORY.assign(**{"val/f1": [np.nan, 0.1, 0.3]})
    figure = drawn(figures.loss_curves(partly, "val/f1", "max"), tmp_path / "loss")
    assert "epoch 3" in figure.axes[1].get_title()


def test_the_error_by_lead_time_is_over_hours(tmp_path: Path) -> None:
    errors = {"lstm": [1.0] * 6, "seasonal naive": [2.0] * 6}
    figure = drawn(figures.error_by_step(errors, "lstm", 0.5, "°C"), tmp_path / "error")
    line = figure.axes[0].lines[1]
    assert points(line, "x") == [0.5, 1, 1.5, 2, 2.5, 3]
    assert line.get_label() == "seasonal naive (mean 2.00 °C)"


@pytest.mark.parametrize(("days", "between"), [(2, 6), (7, 24), (60, 168), (90, 672), (3650, 7300)])
def test_ticks_of_a_time_axis_are_whole_hours_days_or_weeks_and_not_too_many(days: int, between: float) -> None:
    figure = figures.error_by_step({"gru": [1.0] * days}, "gru", 24, "°C")
    ticks = figure.axes[0].xaxis.get_major_locator().tick_values(0, days * 24)
    assert np.diff(ticks) == pytest.approx(between)


@pytest.mark.parametrize("count", [1, 3])
def test_forecasts_show_past_truth_and_forecast_on_one_time_axis(count: int, tmp_path: Path) -> None:
    window = {"origin": "2016-01-01 00:00", "history": np.arange(4.0), "truth": np.ones(3), "forecast": np.zeros(3)}
    windows = [{**window, "hours": 2.0, "quantiles": {}}] * count
    figure = drawn(figures.forecasts(windows, "gru", "T (degC)"), tmp_path / "forecasts")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == count
    past, truth, forecast, _ = shown[0].lines
    assert points(past, "x") == [-6, -4, -2, 0]
    assert points(truth, "x") == points(forecast, "x") == [2, 4, 6]
    assert "mean error 1.00" in shown[0].get_title()


def test_a_figure_names_errors_of_any_unit(tmp_path: Path) -> None:
    window = {"origin": "2016-01-01 00:00", "history": 116.4 + 1e-6 * np.arange(4.0), "hours": 1.0, "quantiles": {}}
    window |= {"truth": np.full(3, 116.4), "forecast": np.full(3, 116.4 + 5e-7)}
    figure = drawn(figures.forecasts([window], "gru", "lon"), tmp_path / "forecasts")
    assert "mean error 5e-07" in figure.axes[0].get_title()
    low, high = figure.axes[0].get_ylim()
    assert 0 < high - low < 1e-5
    figure = drawn(figures.error_by_step({"gru": [5e-7, 6e-7]}, "gru", 1, "°"), tmp_path / "error")
    assert figure.axes[0].get_legend_handles_labels()[1] == ["gru (mean 5.5e-07 °)"]


def test_learning_curves_are_the_mean_over_runs_of_unequal_length(tmp_path: Path) -> None:
    other = HISTORY.assign(**{"val/loss": [5.0, 4, 3], "val/f1": 0.0})[:2]
    figure = drawn(figures.learning_curves({"gru": [HISTORY, other], "lstm": [HISTORY]}, "val/f1"), tmp_path / "curves")
    gru, lstm = figure.axes[0].lines
    assert points(gru, "y") == [4, 3, 2.5]
    assert points(lstm, "y") == HISTORY["val/loss"].tolist()
    assert [figure.axes[1].get_ylabel(), gru.get_label()] == ["val/f1", "gru"]


def test_quantiles_are_drawn_as_a_fan_of_the_intervals_between_them(tmp_path: Path) -> None:
    window = {"origin": "2016-01-01 00:00", "history": np.arange(4.0), "truth": np.ones(3), "forecast": np.zeros(3)}
    quantiles = {level: np.full(3, 10 * level) for level in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)}
    figure = drawn(
        figures.forecasts([{**window, "hours": 1.0, "quantiles": quantiles}], "gru", "T (degC)"), tmp_path / "fan"
    )
    bands = figure.axes[0].collections
    assert [band.get_label() for band in bands] == ["80% of outcomes", "50% of outcomes"]
    for band, (low, high) in zip(bands, ((1, 9), (2.5, 7.5)), strict=True):
        heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
        assert [heights.min(), heights.max()] == [low, high]


def test_a_baseline_is_a_level_line_among_the_monitored_scores(tmp_path: Path) -> None:
    fitted = pd.DataFrame({"epoch": [0], "val/loss": [1.5], "val/f1": [0.8]})
    figure = drawn(figures.learning_curves({"nb": [fitted], "gru": [HISTORY]}, "val/f1"), tmp_path / "curves")
    assert [line.get_label() for line in figure.axes[0].lines] == ["gru"]
    level, gru = figure.axes[1].lines
    assert points(level, "y") == [0.8, 0.8]
    assert level.get_label() == "nb"
    assert points(gru, "y") == HISTORY["val/f1"].tolist()


def test_the_memory_is_drawn_by_lag_until_it_is_nothing(tmp_path: Path) -> None:
    both = {"norm": {"forwards": [1, 0.1, 0.01, 0.0], "backwards": [1, 0.5, 0.25, 0.125]}}
    figure = drawn(figures.memory({"gru": {"norm": {"forwards": [1.0]}}, "bilstm": both}), tmp_path / "memory")
    axes = figure.axes[0]
    curves = {str(line.get_label()): points(line, "y") for line in axes.lines if str(line.get_label())[0] != "_"}
    expected = {"gru": [1], "bilstm, forwards": [1, 0.1, 0.01], "bilstm, backwards": [1, 0.5, 0.25, 0.125]}
    assert curves == expected
    assert axes.get_yscale() == "log"
    assert [points(line, "y")[0] for line in axes.lines if str(line.get_label())[0] == "_"] == [0.5, 0.01]
