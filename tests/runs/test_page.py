from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects
import pytest
import torch
from omegaconf import OmegaConf
from plotly.offline import get_plotlyjs
from torchmetrics.classification import MulticlassCalibrationError

from runs import comparison
from runs.analysis import reliability
from runs.comparison import SCORES, TaskComparison, compare_runs, write_comparison
from runs.page import charts, forecasts, tables, texts, write_page
from runs.page.blocks import Cell, Chart, Choice, Table
from tests.runs.lab import Lab
from tests.runs.made import cls_run, failed_run, forecast_run, rewrite

EVIL = "<script>alert(1)</script>"


class Document(HTMLParser):
    """What a page holds: its scripts by type, its tables as cells of (text, attributes), all attributes, its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []
        self.tables: list[list[list[tuple[str, dict[str, str | None]]]]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "text/javascript", ""))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            text, attributes = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, attributes)

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


def written(folder: Path, *runs: Path) -> Document:
    write_page(folder / "report.html", compare_runs(runs))
    return Document(folder / "report.html")


@pytest.fixture(autouse=True)
def _without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their five megabytes of plotly, but for the one of the fixture `page`."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "// plotly.js")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of both tasks, baselines among them, two seeds of the networks."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [cls_run(folder / "svm", "tfidf_svm"), forecast_run(folder / "naive", "seasonal_naive")]
    runs.append(forecast_run(folder / "ridge", "ridge"))
    for seed in (0, 1):
        runs += [cls_run(folder / f"{model}{seed}", model, seed) for model in ("gru", "lstm")]
        runs.append(forecast_run(folder / f"forecast{seed}", "gru", seed, quantiles=True))
    return runs


@pytest.fixture(scope="module")
def page(both: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Document:
    return written(tmp_path_factory.mktemp("page"), *both)


def test_the_table_of_scores_holds_the_numbers_of_comparison_csv(
    both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_draw", lambda *_: None)  # figures take their time
    write_comparison(tmp_path, both)
    document = Document(tmp_path / "report.html")
    held = [table for table in document.tables if table[0][0][0] == "model"]
    assert len(held) == 2
    for shown, task in zip(held, ("cls", "forecast"), strict=True):
        kept = pd.read_csv(tmp_path / f"comparison_{task}.csv")
        head = [text for text, _ in shown[0]]
        assert [row[0][0] for row in shown[1:]] == kept["label"].tolist()
        names = {charts.NAMES[score]: score for score in SCORES[task]}
        names |= {"runs": "runs", "parameters": "parameters", "s/epoch": "seconds_per_epoch"}
        for name, column in names.items():
            cells = [row[head.index(name)] for row in shown[1:]]
            assert [float(cell["data-value"] or "nan") for _, cell in cells] == pytest.approx(kept[column].tolist())
        for score in SCORES[task]:
            for (text, _), value, spread in zip(
                (row[head.index(charts.NAMES[score])] for row in shown[1:]),
                kept[score],
                kept[f"{score}_std"],
                strict=True,
            ):
                expected = f"{value:.4f}" + ("" if pd.isna(spread) else f" ± {spread:.4f}")
                assert text.replace("−", "-").rstrip("*") == expected
        against = next(at for at, text in enumerate(head) if text.startswith("against"))
        differences = [row[against][0].replace("\u00a0", " ").replace("−", "-") for row in shown[1:]]
        assert differences == kept["difference"].fillna("reference").tolist()


def test_the_best_of_a_score_is_marked_among_models_and_among_averages(both: list[Path]) -> None:
    for found in compare_runs(both).tasks:
        table = tables.scores(found)
        for score in SCORES[found.task]:
            at = table.head.index(charts.NAMES[score])
            best = [row[0].text for row in table.rows if isinstance(row[0], Cell) and row[at].kind == "best"]  # pyright: ignore
            single, winners = found.table["label"].isin(found.rows["label"]), []
            for part in (found.table[single], found.table[~single]):
                values = part.set_index("label")[score]
                wanted = {"mae": values.min(), "median_ae": values.min(), "rmse": values.min()}.get(score, values.max())
                wanted = min(values, key=abs) if score == "bias" else wanted
                winners += values.index[values == wanted].tolist()
            assert sorted(best) == sorted(winners)


def test_what_is_significant_is_marked_at_the_score_that_was_tested(both: list[Path]) -> None:
    for found, name in zip(compare_runs(both).tasks, ("accuracy", "MAE"), strict=True):
        table = tables.scores(found)
        for row, p in zip(table.rows, found.table["p"], strict=True):
            marks = {head: cell.mark for head, cell in zip(table.head, row, strict=True) if isinstance(cell, Cell)}
            stars = "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""
            assert {head: mark for head, mark in marks.items() if mark} == ({name: stars} if stars else {})


def test_every_figure_is_one_that_plotly_knows(page: Document) -> None:
    assert len(page.figures) > 20
    for figure in page.figures:
        text = re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(figure))
        known = json.loads(text)
        plotly.graph_objects.Figure(data=known["data"], layout=known["layout"])
        plotly.graph_objects.Layout(known["narrow"])
        for trace in figure["data"]:
            values = trace.get("z", trace["y"])
            assert len(values) > 0


def test_a_colour_of_a_figure_is_one_of_the_page(page: Document, tmp_path: Path) -> None:
    style = (Path(charts.__file__).parent / "page.css").read_text(encoding="utf-8")
    known = {*re.findall(r"(--[a-z0-9-]+):", style), *(f"--series-{at}" for at in range(charts.SERIES))}
    used = {name for figure in page.figures for name in re.findall(r'"(--[a-z0-9-]+)"', json.dumps(figure))}
    assert used
    assert used <= known


def test_texts_of_others_are_text(tmp_path: Path) -> None:
    texts_of_others = [EVIL, "</script><script>alert(2)</script>", "<!-- <script>", "a & b < c"]
    name = "</script><img src=x onerror=alert(3)>"
    model = "</script><script>alert(4)</script>"
    run = cls_run(tmp_path / "a", model, texts=texts_of_others, classes=[name, "<b>坏</b>", "c"])
    failed = failed_run(tmp_path / "b", f"no file {EVIL}")
    rewrite(run / "metrics.json", data=EVIL)
    rewrite(run / "data_report.json", name=EVIL, source="</style>")
    document = written(tmp_path, run, failed)
    kinds = [kind for kind, _ in document.scripts]
    assert kinds.count("text/javascript") == 2  # ours and plotly's
    assert not [tag for tag, _, _ in document.attributes if tag == "img"]
    assert not [name for _, name, _ in document.attributes if name.startswith("on")]
    shown = [text for table in document.tables for row in table for text, _ in row]
    assert set(texts_of_others) <= set(shown)
    assert f"no file {EVIL}" in document.text
    assert any(trace.get("legendgroup") == model for figure in document.figures for trace in figure["data"])
    ticks = next(figure["layout"]["xaxis"]["ticktext"] for figure in document.figures if "z" in figure["data"][0])
    assert ticks[1].startswith("&lt;b&gt;坏")  # plotly reads some HTML, too


def test_the_page_asks_nothing_of_any_other_place(page: Document) -> None:
    links = {(tag, name): value for tag, name, value in page.attributes if name in ("src", "href", "srcset", "action")}
    assert all(value is not None and value.startswith(("#", "data:")) for value in links.values())
    assert "url(" not in page.text  # of the style sheet
    assert "@import" not in page.text
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value and "default-src" in value)
    assert "default-src 'none'" in policy
    own = [text for kind, text in page.scripts if kind == "text/javascript"]
    for text in own:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == len(own)


@pytest.mark.slow
def test_a_page_of_twenty_runs_is_not_large(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / f"c{at}", f"gru{at // 5}", at % 5, examples=300) for at in range(10)]
    runs += [forecast_run(tmp_path / f"f{at}", f"gru{at // 5}", at % 5, quantiles=True) for at in range(10)]
    write_page(tmp_path / "report.html", compare_runs(runs))
    assert (tmp_path / "report.html").stat().st_size + len(get_plotlyjs()) < 8e6


def without_validation(run: Path) -> None:
    history = pd.read_csv(run / "history.csv")
    history[["epoch", "step"]].to_csv(run / "history.csv", index=False)
    rewrite(run / "metrics.json", best_epoch=None, best_score=None)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    (run / "metrics.json").write_text(json.dumps({**metrics, "best_epoch": None}), encoding="utf-8")


def without_details(run: Path) -> None:
    names = ("breakdown", "per_class", "confusion", "mae_by_step", "seasonal_naive", "windows")
    rewrite(run / "metrics.json", **dict.fromkeys(names))


def without_files(run: Path) -> None:
    (run / "data_report.json").unlink()
    (run / "history.csv").unlink()


def with_undefined_scores(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["test"] = dict.fromkeys(metrics["test"])
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [without_validation, without_details, without_files, with_undefined_scores],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("make", [cls_run, forecast_run], ids=["cls", "forecast"])
def test_what_a_run_lacks_is_left_out(
    make: Callable[..., Path], damage: Callable[[Path], None], tmp_path: Path
) -> None:
    run = make(tmp_path / "a")
    damage(run)
    document = written(tmp_path, run)
    assert document.tables[0][1][0][0] == "gru"
    for figure in document.figures:
        assert figure["data"]
    assert not re.search(r"\bnan\b|None", document.text)


def test_failed_runs_sample_data_and_trials_are_said_at_the_top(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / "a"), failed_run(tmp_path / "b", "the disk is full")]
    rewrite(runs[0] / "metrics.json", sample=True, data="sample_reviews", fast_dev_run=True)
    text = written(tmp_path, *runs).text
    assert "1 of 2 runs did not finish" in text
    assert "b: failed: the disk is full" in text
    assert "Built-in sample data. sample_reviews is invented" in text
    assert "A trial of single batches." in text


def test_a_page_of_nothing_but_failures_says_so(tmp_path: Path) -> None:
    document = written(tmp_path, failed_run(tmp_path / "a", "no room"))
    assert "No run has finished" in document.text
    assert "a: failed: no room" in document.text


def test_the_settings_are_those_that_differ(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / "a", "gru"), cls_run(tmp_path / "b", "gru", 1), cls_run(tmp_path / "c", "lstm")]
    config = OmegaConf.load(runs[2] / "config.yaml")
    config.trainer.max_epochs = 9
    OmegaConf.save(config, runs[2] / "config.yaml")
    table = tables.settings(compare_runs(runs).tasks[0])
    assert table is not None
    assert list(table.head) == ["key", "gru", "lstm"]
    shown = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert shown == [["model.name", "gru", "lstm"], ["trainer.max_epochs", "4", "9"], ["seed", "0, 1", "0"]]
    assert tables.settings(compare_runs(runs[:1]).tasks[0]) is None


def test_a_data_report_is_shown_once_for_all_runs_that_share_it(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / name, name) for name in ("gru", "lstm", "rnn")]
    rewrite(runs[2] / "data_report.json", rows_read=7)
    found, splits, other, _ = tables.reports(compare_runs(runs).tasks[0])
    assert found.title == "mine, for gru, lstm"
    assert other.title == "mine, for rnn"
    shown = {str(row[0]): row[1] for row in found.rows}
    assert shown["rows read"] == Cell("12,345")
    assert shown["empty dropped"] == Cell("0", kind="quiet")
    assert shown["gaps"] == Cell("1: after 2016-01-01 00:10, minutes 80")
    assert [*splits.head] == ["of the split", "train", "val", "test"]
    assert splits.rows[1] == ["classes · 书籍", Cell("3"), Cell("3"), Cell("3")]


def test_a_damaged_data_report_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [cls_run(tmp_path / name, name) for name in ("gru", "lstm")]
    (runs[1] / "data_report.json").write_text('{"name": "mi', encoding="utf-8")
    found, _ = tables.reports(compare_runs(runs).tasks[0])
    assert found.title == "mine"
    assert f"{runs[1] / 'data_report.json'} is damaged" in caplog.text


def test_bins_of_reliability_make_up_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(500, 4, generator=generator).softmax(dim=1) ** 3
    chances /= chances.sum(dim=1, keepdim=True)
    targets = torch.randint(4, (500,), generator=generator)
    best = chances.max(dim=1)
    bins = reliability(pd.Series(best.values.numpy()), pd.Series((best.indices == targets).numpy()))
    error = ((bins["accuracy"] - bins["probability"]).abs() * bins["examples"]).sum() / bins["examples"].sum()
    assert error == pytest.approx(MulticlassCalibrationError(4, n_bins=15)(chances, targets).item(), abs=1e-6)
    assert bins["examples"].sum() == 500


def found_of(*runs: Path) -> TaskComparison:
    return compare_runs(runs).tasks[0]


def named(blocks: Any, title: str) -> Any:
    return next(block for section in blocks for block in section.blocks if block.title == title)


def test_the_confusion_matrix_is_the_sum_over_seeds(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / str(seed), "gru", seed) for seed in (0, 1, 2)]
    choice: Choice = named(texts.sections(found_of(*runs)), "Mistakes of")
    chart, examples = choice.panels["gru"]
    both = pd.concat([pd.read_parquet(run / "predictions.parquet") for run in runs])
    assert isinstance(chart, Chart)
    assert isinstance(examples, Table)
    (trace,) = chart.figure["data"]
    names = chart.figure["layout"]["xaxis"]["ticktext"]
    for row, truth in enumerate(names):
        for column, answer in enumerate(names):
            count = ((both["target"] == truth) & (both["prediction"] == answer)).sum()
            assert trace["text"][row][column] == (f"{count}" if count else "")
            assert trace["z"][row][column] == pytest.approx(count / (both["target"] == truth).sum(), abs=1e-4)
            assert f"{count} of" in trace["customdata"][row][column]
    wrong = both[both["target"] != both["prediction"]]
    pairs = wrong.groupby(["target", "prediction"]).size()
    assert [cell.text if isinstance(cell, Cell) else cell for cell in examples.rows[0]][1:3] == [*pairs.idxmax()]  # pyright: ignore
    of_pair = wrong[(wrong["target"] == pairs.idxmax()[0]) & (wrong["prediction"] == pairs.idxmax()[1])]  # pyright: ignore
    first = examples.rows[0][3]
    assert isinstance(first, Cell)
    assert first.value == pytest.approx(of_pair["probability"].max())


def test_the_error_by_hour_is_that_of_the_targets_hour(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "a", "gru")
    chart = named(forecasts.sections(found_of(run)), "Error by hour of day")
    errors: dict[int, list[float]] = {}
    for each in pd.read_parquet(run / "predictions.parquet").to_dict("records"):
        hour = (each["origin"] + pd.Timedelta(hours=each["step"])).hour
        errors.setdefault(hour, []).append(abs(each["prediction"] - each["target"]))
    trace, naive = chart.figure["data"]
    assert trace["x"] == list(range(24))
    assert trace["y"] == pytest.approx([np.mean(errors[hour]) for hour in range(24)], rel=1e-4)
    assert naive["name"] == "seasonal naive"


def test_the_error_by_lead_time_has_the_range_of_the_seeds_and_the_seasonal_naive(tmp_path: Path) -> None:
    runs = [forecast_run(tmp_path / str(seed), "gru", seed) for seed in (0, 1)]
    chart = named(forecasts.sections(found_of(*runs)), "Error by lead time")
    metrics = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in runs]
    band, mean, naive = chart.figure["data"]
    steps = np.array([each["mae_by_step"] for each in metrics])
    assert mean["x"] == list(range(1, 25))
    assert mean["y"] == pytest.approx(steps.mean(axis=0), rel=1e-4)
    assert band["y"] == pytest.approx([*steps.max(axis=0), *steps.min(axis=0)[::-1]], rel=1e-4)
    assert naive["y"] == pytest.approx(metrics[0]["seasonal_naive"]["mae_by_step"], rel=1e-4)


def test_of_several_runs_quantiles_are_read_of_the_one_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [forecast_run(tmp_path / str(seed), "gru", seed, quantiles=True) for seed in (0, 1, 2)]
    (found,) = compare_runs(runs).tasks
    read, original = {}, pd.read_parquet

    def note(file: Path, columns: list[str]) -> pd.DataFrame:
        read[file.parent.name] = sum(name.startswith("q0.") for name in columns)
        return original(file, columns=columns)

    monkeypatch.setattr(pd, "read_parquet", note)
    forecasts.sections(found)
    assert read == {"0": 5, "1": 0, "2": 0}


def test_the_worst_windows_are_the_worst_that_share_no_target_and_have_their_past(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "a", "gru", quantiles=True)
    choice: Choice = named(forecasts.sections(found_of(run)), "Windows of")
    (chart,) = choice.panels["gru"]
    assert isinstance(chart, Chart)
    table = pd.read_parquet(run / "predictions.parquet")
    errors = (table["prediction"] - table["target"]).abs().groupby(table["origin"]).mean().sort_values()
    titles = [each["text"] for each in chart.figure["layout"]["annotations"]]
    origins = [pd.Timestamp(title.partition(", ")[2][:16]) for title in titles]
    assert titles[0] == f"worst, {errors.index[-1]:%Y-%m-%d %H:%M}: MAE {errors.iloc[-1]:.2f}"
    assert [title.partition(",")[0] for title in titles] == ["worst"] * 3 + ["typical"] * 3
    assert all(abs(one - other) >= pd.Timedelta("24h") for one, other in combinations(origins, 2))
    assert (errors[origins[3:]] - errors.median()).abs().max() < (errors[origins[:3]] - errors.median()).abs().min()
    truth = {
        f"{row['origin'] + pd.Timedelta(hours=row['step']):%Y-%m-%d %H:%M}": row["target"]
        for row in table.to_dict("records")
    }
    lines = {name: [t for t in chart.figure["data"] if t["name"] == name] for name in ("past", "truth", "gru")}
    for name in ("past", "truth"):
        for trace in lines[name]:
            assert trace["y"] == pytest.approx([truth[time] for time in trace["x"]], rel=1e-4)
    for trace, origin in zip(lines["gru"], origins, strict=True):
        rows = table[table["origin"] == origin]
        assert trace["y"] == pytest.approx(rows["prediction"].tolist(), rel=1e-4)
    fans = [trace for trace in chart.figure["data"] if trace["name"] == "80% interval"]
    assert len(fans) == 6
    assert np.array(fans[0]["y"][:24]) - np.array(fans[0]["y"][:23:-1]) == pytest.approx(np.full(24, 6.0), abs=0.01)


def test_windows_of_a_small_variation_around_a_large_value_are_drawn_with_all_their_digits(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "a", "gru", quantiles=True)
    table = pd.read_parquet(run / "predictions.parquet")
    names = [str(name) for name in table if table[name].dtype == np.float64]
    table[names] = 116.4 + 1e-7 * table[names]
    table.to_parquet(run / "predictions.parquet", index=False)
    choice: Choice = named(forecasts.sections(found_of(run)), "Windows of")
    (chart,) = choice.panels["gru"]
    assert isinstance(chart, Chart)
    truth = dict(zip(table["origin"] + pd.to_timedelta(table["step"], unit="h"), table["target"], strict=True))
    traces = [trace for trace in chart.figure["data"] if trace["name"] == "truth"]
    assert len(traces) == 6
    for trace in traces:
        expected = [truth[pd.Timestamp(time)] for time in trace["x"]]
        np.testing.assert_allclose(trace["y"], expected, rtol=0, atol=1e-9)
        assert "%{y:.8f}" in trace["hovertemplate"]
    fan = next(trace["y"] for trace in chart.figure["data"] if trace["name"] == "80% interval")
    np.testing.assert_allclose(np.array(fan[:24]) - np.array(fan[:23:-1]), 6e-7, rtol=0, atol=1e-9)
    titles = [each["text"] for each in chart.figure["layout"]["annotations"]]
    assert all(float(title.rpartition(" ")[2]) > 0 for title in titles)


def test_more_models_than_colours_differ_in_their_dashes() -> None:
    look = charts.looks(f"model {at}" for at in range(20))
    assert len({(each.colour, each.dash, each.symbol) for each in look.values()}) == 20


def test_a_label_holds_only_what_tells_runs_of_its_model_apart(tmp_path: Path) -> None:
    runs = [cls_run(tmp_path / "svm", "tfidf_svm", overrides=["data.limit=400"])]
    runs += [cls_run(tmp_path / f"gru{size}", "gru", overrides=["model.encoder.hidden_size=" + size]) for size in "48"]
    runs += [cls_run(tmp_path / "lstm", "lstm", overrides=["model.encoder.hidden_size=4", "trainer=cpu"])]
    runs += [forecast_run(tmp_path / "ridge", "ridge", overrides=["data.stride=10"])]
    labels = [label for found in compare_runs(runs).tasks for label in found.rows["label"]]
    size = "model.encoder.hidden_size="
    assert labels == ["tfidf_svm", f"gru {size}4", f"gru {size}8", f"lstm {size}4", "ridge"]


def test_a_page_of_any_runs_is_written_by_a_command(lab: Lab, tmp_path: Path) -> None:
    for seed in (0, 1):
        cls_run(tmp_path / "扫 one" / f"{seed}_cls_gru", "gru", seed)
    forecast_run(tmp_path / "two" / "0_forecast_gru")
    outcome = lab.run(
        "-cn", "report", "runs=['扫 one',tw*]", "output=页/report.html", "title=两个任务", folder=tmp_path
    )
    assert outcome.code == 0, outcome.output
    assert "3 runs; wrote" in outcome.output
    document = Document(tmp_path / "页" / "report.html")
    assert "两个任务" in document.text
    assert {path.name for path in tmp_path.iterdir()} == {"扫 one", "two", "页"}  # no log file


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs=nowhere"], "runs=nowhere: no run is there"),
        (["runs=bad"], "runs=bad: none of these has finished: 0_cls (failed)"),
        ([], "runs is missing"),
    ],
)
def test_without_a_finished_run_the_command_says_what_to_do(
    words: list[str], said: str, lab: Lab, tmp_path: Path
) -> None:
    failed_run(tmp_path / "bad" / "0_cls", "no room")
    outcome = lab.run("-cn", "report", *words, folder=tmp_path)
    assert outcome.code == 1
    assert said in outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "report.html").exists()


def test_the_memory_of_a_label_is_the_mean_of_its_runs_by_lag_and_direction(tmp_path: Path) -> None:
    norms = {"forwards": ([1.0, 0.5, 1e-6, 0.0], [1.0, 0.25, 1e-6]), "backwards": ([1.0, 0.1, 0.01], [1.0, 0.3, 0.03])}
    runs = [cls_run(tmp_path / str(seed), "bilstm", seed) for seed in range(2)]
    for seed, run in enumerate(runs):
        kept = {direction: of_seeds[seed] for direction, of_seeds in norms.items()}
        rewrite(run / "metrics.json", memory={"lags": [0, 1, 2], "norm": kept, "sequences": 8})
    (found,) = compare_runs([*runs, cls_run(tmp_path / "old", "rnn")]).tasks
    chart = charts.memory(found)
    assert chart is not None
    forwards, backwards = chart.figure["data"]
    assert forwards["y"] == [1.0, 0.375, None]  # too faint to be drawn
    assert backwards["y"] == [1.0, 0.2, 0.02]
    assert (forwards["line"]["dash"], backwards["line"]["dash"]) == ("solid", "dash")
    (bare,) = compare_runs([cls_run(tmp_path / "bare", "rnn")]).tasks
    assert charts.memory(bare) is None
