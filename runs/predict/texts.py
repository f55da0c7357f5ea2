"""Classes of reviews: of a file, row by row and in flat memory, or of a single one on the console."""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table

from datamodules import DataError
from datamodules.corpus import clean_text
from datamodules.encoding import EncodedTexts, TextEncoder
from datamodules.formats import CsvFormat
from datamodules.streaming import Row, TableStream
from runs import figures
from runs.analysis import class_scores, confusion_scores
from runs.predict import explain
from runs.predict.output import ahead, bar, console, table_writer
from runs.report import write_json

log = logging.getLogger(__name__)

ROWS, CHARACTERS = 8192, 4_000_000  # of a chunk at most
SHOWN = 8  # kinds of notes listed at the end
BAR = 30  # characters of the longest bar


@dataclass(frozen=True)
class Chunk:
    """Some rows of the file; each of its different texts is encoded once, and `which` of them is a row's (-1: none)."""

    rows: list[Row]
    texts: list[str]
    which: np.ndarray
    encoded: EncodedTexts
    position: int


def predict_file(task: Any, data: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the input's own columns, then `prediction`, `probability`, `p(class)` of each class, and `note`.

    If the input has a column of such a name, as one that was written here has, all of them end in `_2`, or `_3` and on.

    A row for each of the input, in its order. A row without a text that belongs to it has a note and no prediction.
    With `target`, the column of the true labels, the predictions are scored as a run's test is, in a JSON file beside
    the output, with a figure of the confusion matrix; a row whose label is no class of the run isn't scored.

    Args:
        task: the trained task.
        data: the configuration of its data, for the format of the file.
        settings: of the program.

    Raises:
        DataError: the input can't be read.
    """
    format = CsvFormat.merge(settings, data).state()
    text_column = settings["text_column"] or data["text_column"]
    output, encoder = Path(settings["output"]), TextEncoder(task.blueprint["facts"])
    explained: list[explain.Example] = []
    notes: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    labels: Counter[tuple[str | None, str]] = Counter()  # of truth (None: no class of the run) and prediction
    if settings["explain"]:
        explain.check(task)
    started = time.perf_counter()
    needed = {text_column: "text_column"} | ({target: "target"} if (target := settings["target"]) else {})
    with TableStream(settings["input"], needed, **format) as table, bar(bytes=True) as progress:
        schema = _schema(table, task.classes)
        shown = progress.add_task("predicting", total=table.size)
        with table_writer(output, schema, settings["escape_formulas"]) as writer:
            for chunk in ahead(chunks(table, table.header.index(text_column), encoder)):
                answers = np.full((len(chunk.texts) + 1, len(task.classes)), np.nan, dtype=np.float32)  # last: no text
                answers[:-1] = probabilities(task, chunk.encoded, settings["batch_size"])
                places = zip(chunk.rows, chunk.which.tolist(), strict=True)
                found = [_note(row, place, chunk.encoded, encoder) for row, place in places]
                predicted = _predicted(answers[chunk.which], task.classes)
                own = map(pa.array, zip(*(row.fields for row in chunk.rows), strict=True))
                writer.write(pa.Table.from_arrays([*own, *predicted, pa.array(found)], schema=schema))
                notes.update(part for note in found if note for part in note.split("; "))
                classes.update(predicted[0].drop_null().to_pylist())
                if target:
                    labels.update(_labels(chunk, table.header.index(target), predicted[0], task.classes))
                if settings["explain"]:
                    explained += _examples(chunk, predicted, settings["explain_limit"] - len(explained))
                progress.update(shown, completed=chunk.position)
    if settings["explain"]:
        explain.write_page(task, encoder, explained, output.with_suffix(".html"), settings["run"])
        log.info(f"explained {len(explained)} rows in {output.with_suffix('.html')}")
    _report(output, classes, notes, time.perf_counter() - started)
    if target:
        _score(labels, task, settings)


def predict_text(task: Any, settings: dict[str, Any]) -> None:
    """Print the classes of a single text, the likeliest first.

    Raises:
        DataError: there is nothing in it.
    """
    typed = re.sub("[\ud800-\udc7f]", "\ufffd", settings["text"])
    # Where the locale is not UTF-8, arguments come as bytes in disguise.
    text = clean_text(typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    encoder = TextEncoder(task.blueprint["facts"])
    if not text:
        raise DataError("text= is empty: there is nothing to predict from")
    if settings["explain"]:
        explain.check(task)
    encoded = encoder([text])
    (answer,) = probabilities(task, encoded, 1)
    table = Table("class", "probability", "", box=None)
    for number in np.argsort(-answer, kind="stable"):
        table.add_row(task.classes[number], f"{answer[number]:.4f}", "█" * round(BAR * float(answer[number])))
    shown = console()
    shown.print(table)
    if note := _note(Row(1, [text], "", True), 0, encoded, encoder):
        shown.print(f"note: {note}")
    if settings["explain"]:
        best = int(answer.argmax())
        example = explain.Example(1, text, task.classes[best], float(answer[best]))
        shown.print(explain.coloured(explain.explained(task, encoder, example)))


def chunks(table: TableStream, column: int, encoder: TextEncoder) -> Iterator[Chunk]:
    """The rows of a file, encoded by their texts in `column`."""
    rows: list[Row] = []
    size = 0
    for row in table.rows():
        rows.append(row)
        size += len(row.fields[column])
        if len(rows) == ROWS or size >= CHARACTERS:
            yield _encoded(rows, column, encoder, table.position)
            rows, size = [], 0
    if rows:
        yield _encoded(rows, column, encoder, table.position)


def _encoded(rows: list[Row], column: int, encoder: TextEncoder, position: int) -> Chunk:
    texts = [clean_text(row.fields[column]) if row.whole else "" for row in rows]
    places = {text: place for place, text in enumerate(dict.fromkeys(text for text in texts if text))}
    which = np.array([places.get(text, -1) for text in texts], dtype=np.int64)
    return Chunk(rows, list(places), which, encoder(list(places)), position)


@torch.inference_mode()
def probabilities(task: Any, encoded: EncodedTexts, batch_size: int) -> np.ndarray:
    """Class probabilities (B, classes); texts of similar length share a batch, so that little of it is padding."""
    lengths = encoded.dataset.lengths
    order = np.argsort(lengths, kind="stable")
    answers = np.empty((len(order), len(task.classes)), dtype=np.float32)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers[batch] = task.predict_step(encoded.dataset[batch.tolist()], 0).numpy()
    return answers


def _schema(table: TableStream, classes: Sequence[str]) -> pa.Schema:
    names = ["prediction", "probability", *(f"p({name})" for name in classes), "note"]
    if taken := set(table.header) & set(names):  # as in a file that was written here
        number = next(n for n in itertools.count(2) if not set(table.header) & {f"{name}_{n}" for name in names})
        names = [f"{name}_{number}" for name in names]
        log.warning(f"{table.path} has a column {min(taken)!r} already: those of the predictions end in _{number}")
    types = [pa.string(), *(pa.float32() for _ in range(len(classes) + 1)), pa.string()]
    own = [(name, pa.string()) for name in table.header]
    return pa.schema([*own, *zip(names, types, strict=True)])


def _predicted(answers: np.ndarray, classes: Sequence[str]) -> list[pa.Array]:
    """The columns `prediction`, `probability` and `p(class)` of probabilities (rows, classes), null where NaN."""
    none = np.isnan(answers[:, 0])
    best = np.where(none, 0, np.nan_to_num(answers).argmax(axis=1))
    prediction = pa.DictionaryArray.from_arrays(pa.array(best, mask=none), pa.array(classes)).cast(pa.string())
    values = [answers.max(axis=1), *answers.T]
    return [prediction, *(pa.array(np.ascontiguousarray(column), mask=none) for column in values)]


def _note(row: Row, place: int, encoded: EncodedTexts, encoder: TextEncoder) -> str:
    """What could not be used of a row."""
    parts = [row.note] if row.note else []
    if place < 0:
        parts += ["empty"] if row.whole else []
    elif encoded.known_counts[place] == 0:
        parts.append("no known word")
    if place >= 0 and encoded.cut[place]:
        parts.append(f"cut to {encoder.max_length} tokens")
    return "; ".join(parts)


def _examples(chunk: Chunk, predicted: list[pa.Array], limit: int) -> Iterable[explain.Example]:
    for row, (place, prediction, probability) in enumerate(
        zip(chunk.which, *(column.to_pylist() for column in predicted[:2]), strict=True)
    ):
        if limit > 0 and place >= 0:
            limit -= 1
            yield explain.Example(chunk.rows[row].line, chunk.texts[place], prediction, probability)


def _labels(
    chunk: Chunk, column: int, predictions: pa.Array, classes: Sequence[str]
) -> Iterator[tuple[str | None, str]]:
    """The label, None if it is no class, and the prediction of every row that has the latter."""
    for row, prediction in zip(chunk.rows, predictions.to_pylist(), strict=True):
        if prediction is not None:
            label = clean_text(row.fields[column])
            yield label if label in classes else None, prediction


def _score(labels: Counter[tuple[str | None, str]], task: Any, settings: dict[str, Any]) -> None:
    """Write and print the scores of predictions whose labels are classes of the run, and draw their confusion."""
    counts = np.zeros((len(task.classes), len(task.classes)), dtype=np.int64)
    for (label, prediction), count in labels.items():
        if label is not None:
            counts[task.classes.index(label), task.classes.index(prediction)] = count
    unknown = labels.total() - int(counts.sum())
    output, shown = Path(settings["output"]), console()
    each = class_scores(counts)
    report = {
        **{name: settings[name] for name in ("run", "checkpoint", "input", "target")},
        "scored": int(counts.sum()),
        "unknown_labels": unknown,
        "scores": confusion_scores(counts) if counts.any() else {},
        "per_class": [
            {"class": name, **{score: of[place] for score, of in each.items()}, "support": int(counts[place].sum())}
            for place, name in enumerate(task.classes)
        ],
        "confusion": counts.tolist(),
    }
    write_json(output.with_suffix(".json"), report)
    labels_shown = figures.readable(task.classes, task.blueprint["facts"].get("english") or {})
    figures.save(figures.confusion_matrix(counts.tolist(), labels_shown), output)
    table = Table("score", "value", box=None)
    for name, value in report["scores"].items():
        table.add_row(name, f"{value:.4f}")
    shown.print(table)
    if unknown:
        shown.print(
            f"{unknown:,} row(s) not scored: their {settings['target']!r} is no class of the run", highlight=False
        )
    beside = f"{output.with_suffix('.json')}, {output.with_suffix('.png')}"
    shown.print(f"{report['scored']:,} predictions scored: {beside}", soft_wrap=True)


def _report(output: Path, classes: Counter[str], notes: Counter[str], seconds: float) -> None:
    shown = console()
    table = Table("prediction", "rows", box=None)
    for name, count in classes.most_common():
        table.add_row(name, f"{count:,}")
    shown.print(table)
    for note, count in notes.most_common(SHOWN):
        shown.print(f"{count:,} row(s): {note}", highlight=False)
    rate = f"{classes.total() / seconds:,.0f}/s"
    shown.print(f"{classes.total():,} predictions in {seconds:.1f} s ({rate}): {output}", soft_wrap=True)
