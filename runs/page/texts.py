"""What only a comparison of classifications shows: classes, mistakes, lengths, and how far probabilities are true."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from runs.analysis import reliability
from runs.comparison import TaskComparison
from runs.page.blocks import Cell, Chart, Choice, Section, Table, number
from runs.page.charts import axis, by_part, diagonal, figure, heat, line, looks, markers, rounded, wrapped

PAIRS, EXAMPLES, SHOWN = 6, 3, 160  # most confused pairs, reviews of each, and their characters


def sections(found: TaskComparison) -> list[Section]:
    """Classes and mistakes."""
    tables = {folder: _read(folder) for folder in found.rows["folder"]}
    lengths = by_part(found, "accuracy by characters", "Accuracy by length of text", "Characters of a text.")
    classes = [_f1_by_class(found), lengths, _reliability(found, tables)]
    return [
        Section("classes", "Classes", [block for block in classes if block is not None]),
        Section("mistakes", "Mistakes", [choice] if (choice := _mistakes(found, tables)) else []),
    ]


def _read(folder: Path) -> pd.DataFrame:
    file = folder / "predictions.parquet"
    return pd.read_parquet(file) if file.exists() else pd.DataFrame()


def _f1_by_class(found: TaskComparison) -> Chart | None:
    table = found.parts.get("F1 by class")
    if table is None:
        return None
    support: dict[str, list[int]] = {}
    for of_run in found.metrics.values():
        for each in of_run.get("per_class", []):
            support.setdefault(each["class"], []).append(each["support"])
    spans = (sorted({min(support[name]), max(support[name])}) for name in table.index)
    counts = ["–".join(f"{count:,}" for count in span) for span in spans]
    values = table.T.to_numpy(dtype=float)
    text = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in values]
    said = [
        [
            f"<b>{escape(label)}</b><br>{escape(str(name))}: F1 {value:.4f}, {count} examples"
            for name, value, count in zip(table.index, row, counts, strict=True)
        ]
        for label, row in zip(map(str, table), values, strict=True)
    ]
    x = [f"{escape(str(name))}<br>{count}" for name, count in zip(table.index, counts, strict=True)]
    chart = heat(values, text, said, x, [wrapped(str(label)) for label in table])
    return Chart("F1 by class", chart, "Below each class, how many examples of it the split has.")


def _reliability(found: TaskComparison, tables: dict[Path, pd.DataFrame]) -> Chart | None:
    look = looks(found.labels)
    data = [diagonal()]
    for label, folders in found.labels.items():
        both = pd.concat([tables[folder] for folder in folders])
        if "probability" not in both:
            continue
        bins = reliability(both["probability"], both["prediction"] == both["target"])
        hover = "probability %{x:.3f}<br>right %{y:.3f}<br>%{customdata:,} answers"
        points = markers(look[label], _sizes(bins["examples"])) | {"customdata": bins["examples"].tolist()}
        data.append(line(rounded(bins["probability"]), rounded(bins["accuracy"]), look[label], hover, **points))
    if len(data) == 1:
        return None
    x, y = (axis(title, range=[0, 1.02]) for title in ("probability of the answer", "share that is right"))
    note = "Answers by their probability; the larger the point, the more. Below the dotted line a model is too sure."
    return Chart("Reliability", figure(data, x, y), note, half=True)


def _sizes(examples: pd.Series) -> list[float | None]:
    """Diameters of points whose areas grow with the examples."""
    return rounded(4 + 10 * np.sqrt(examples / examples.max()), 3)


def _mistakes(found: TaskComparison, tables: dict[Path, pd.DataFrame]) -> Choice | None:
    panels: dict[str, list[Chart | Table]] = {}
    for label, folders in found.labels.items():
        known = [found.metrics[folder] for folder in folders if "confusion" in found.metrics[folder]]
        classes = [[each["class"] for each in of_run["per_class"]] for of_run in known]
        if not known or any(each != classes[0] for each in classes):  # matrices of other classes can't be added
            continue
        counts = np.sum([of_run["confusion"] for of_run in known], axis=0)
        predictions = pd.concat([tables[folder] for folder in folders])
        panels[label] = [
            _confusion(counts, classes[0], len(known)),
            _most_confused(counts, classes[0], len(known), predictions),
        ]
    return Choice("Mistakes of", panels) if panels else None


def _confusion(counts: np.ndarray, classes: list[str], runs: int) -> Chart:
    held = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(held, 1)
    names = [escape(name) for name in classes]
    text = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    said = [
        [
            f"<b>{truth}</b>, answered <b>{answer}</b><br>{counts[i, j]:,} of {held[i, 0]:,} ({share[i, j]:.1%})"
            for j, answer in enumerate(names)
        ]
        for i, truth in enumerate(names)
    ]
    chart = heat(share, text, said, names, names, zmin=0, zmax=1)
    summed = f"Counts of {runs} runs together" if runs > 1 else "Counts"
    note = f"{summed}: truth by row, answer by column. Colour is the share of the row."
    return Chart("Confusion matrix", chart, note)


def _most_confused(counts: np.ndarray, classes: list[str], runs: int, predictions: pd.DataFrame) -> Table:
    mistakes = counts * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(mistakes, axis=None, kind="stable")[::-1][:PAIRS]
    rows: list[list[Cell | str]] = []
    for truth, answer in (np.unravel_index(at, mistakes.shape) for at in order if mistakes.flat[at]):
        names = classes[truth], classes[answer]
        count = number(mistakes[truth, answer] / runs, "{:.1f}" if runs > 1 else "{:.0f}")
        found = pd.DataFrame()
        if {"text", "target", "prediction", "probability"} <= set(predictions):
            found = predictions[(predictions["target"] == names[0]) & (predictions["prediction"] == names[1])]
            found = found.sort_values("probability", ascending=False, kind="stable")
            found = found.drop_duplicates("text").head(EXAMPLES)
        for each in found.to_dict("records"):
            text = str(each["text"])
            shown = Cell(text[:SHOWN] + ("…" if len(text) > SHOWN else ""), kind="text")
            rows.append([shown, *names, number(each["probability"], "{:.3f}"), count])
        if found.empty:
            rows.append([Cell("–", kind="quiet"), *names, number(None), count])
    each = "mistakes per run" if runs > 1 else "mistakes"
    head = ["text", "truth", "answer", "probability", each]
    return Table("Most confused, with the mistakes it was surest of", head, rows, frozenset({"probability", each}))
