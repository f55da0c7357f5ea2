"""All studies of the project, and the page that says what they found."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from runs.analysis import format_number
from runs.build import plain
from runs.checkpoints import read_json, write_atomically
from runs.checks import validate
from runs.comparison import MAIN
from runs.schema import ConfigError

log = logging.getLogger(__name__)

INTERRUPTED = (130, 143, -2, -15)  # exit codes
PROGRAM = Path(__file__).parents[1] / "run.py"
ARCHITECTURES = ("rnn", "gru", "lstm", "bilstm")
WITHOUT = "fasttext_like"
"""The model that is trained like these, without recurrence."""


def run(config: DictConfig) -> None:
    """Run the studies that aren't finished, one after the other, and write the page.

    A study without runs in `folder` keeps the section that the page has of it, if that is of the same command, and so
    does one that isn't known here. One that failed has none.

    Raises:
        ConfigError: an option is out of range, or `only` names an unknown study.
        SystemExit: with 1, a study failed; the page holds the others.
    """
    validate(config)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the study ends with us
    settings = plain(config)
    studies, folder = settings["studies"], Path(settings["folder"])
    if unknown := set(settings["only"]) - set(studies):
        raise ConfigError(f"only={sorted(unknown)} is unknown; studies are {', '.join(studies)}")
    for name, study in studies.items():
        if missing := {"title", "command"} - set(study):
            raise ConfigError(f"studies.{name} has no {' and no '.join(sorted(missing))}")
        if unknown := [*set(study) - {"title", "command", "note", "source"}]:  # behind commas, if it isn't in quotes
            raise ConfigError(f"studies.{name} has {unknown[0]!r}: it may have title, command, note, source, in quotes")
    failed = []
    for number, name in enumerate(chosen := settings["only"] or list(studies), 1):
        if not settings["train"]:
            break
        command = studies[name]["command"]
        log.info(f"study {number} of {len(chosen)}, {name}: python run.py -m {command}")
        folder.mkdir(parents=True, exist_ok=True)
        place, all_runs = (
            "'" + path.as_posix().replace("'", "\\'") + "'" for path in (_folder(folder, name, command), folder)
        )
        words = ["-m", *shlex.split(command), f"hydra.sweep.dir={place}", f"reuse={all_runs}"]
        code = _sweep(words)
        if code in INTERRUPTED:
            raise SystemExit(code)
        if code:
            failed.append(name)
            log.error(
                f"error: {name} failed, and its section is left out; if its recipe has changed since its first runs, "
                f"delete {_folder(folder, name, command)} or choose another folder=…"
            )
    page = Path(settings["output"])
    before = _sections(page)
    sections = [INTRODUCTION]
    for name, study in studies.items():
        if name in failed:  # what its folder or the page holds may be of another recipe
            continue
        try:
            found = _section(study, _folder(folder, name, study["command"]), page)
        except Exception as error:  # the other studies are worth their page all the same
            log.error(f"error: {name} can't be summarised: {error}", exc_info=not isinstance(error, ConfigError))
            failed.append(name)
            found = ""
        sections.append(found or before.get(_head(study), ""))
    known = ("# ", *(f"## {study['title']}\n" for study in studies.values()))
    sections += [section for section in before.values() if not section.startswith(known)]
    text = "\n\n".join(filter(None, sections))
    write_atomically(page, (text + "\n").encode())
    log.info(f"wrote {page}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if failed:
        raise SystemExit(1)


def _sweep(words: list[str]) -> int:
    """The exit code of a sweep in a process of its own, which is told to stop, and waited for, when this one is."""
    with subprocess.Popen([sys.executable, str(PROGRAM), *words]) as process:
        try:
            return process.wait()
        except SystemExit:
            process.terminate()
            process.wait()
            raise
        except KeyboardInterrupt:  # which it got, too
            process.wait()
            raise


INTRODUCTION = """# Results

Written by `make results`, which runs every command below that hasn't finished yet and draws this page from what the
runs left in their folders. A run that several studies have in common, such as the recipe itself in its ablations, is
trained once and counts in each. Scores are means ± standard deviations over runs: over seeds, and in a backtest over
years. Each table names its split. Another processor or version rounds otherwise, which changes the scores of a run as
another seed does. Seconds are those of the runs as they went, whatever else the machine did meanwhile; the layers are
timed fairly by `python run.py -cn benchmark`."""


def _head(study: dict[str, Any]) -> str:
    """How a study's section begins: with what makes it another study if it is changed."""
    return f"## {study['title']}\n\n```\npython run.py -m {study['command']}\n```"


def _sections(page: Path) -> dict[str, str]:
    """The sections of a page by their heads: what isn't run here, perhaps was elsewhere, and stays as it is."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    sections = [section.strip() for section in re.split(r"^(?=## )", text, flags=re.MULTILINE)]
    return {"```".join(section.split("```")[:2]) + "```": section for section in sections}


def _folder(folder: Path, name: str, command: str) -> Path:
    """A study's own: under another command it is another study, whose runs don't mix with those of the old one."""
    return folder / f"{name}-{hashlib.sha256(command.encode()).hexdigest()[:8]}"


def _section(study: dict[str, Any], folder: Path, page: Path) -> str:
    """A study's title, command, tables, figure and what follows from them; empty if nothing has finished yet."""
    table = folder / "comparison.csv"
    if not table.exists():
        if any(folder.glob("comparison_*.csv")):
            raise ConfigError(f"a study is of one task: make two of {study['command']!r}")
        return ""
    rows = pd.read_csv(table).set_index("label")
    metrics = [read_json(path) for path in sorted(folder.glob("*/metrics.json"))]
    task = metrics[0]["task"]
    parts = [_head(study)]
    parts += [note] if (note := study.get("note")) else []
    parts.append((folder / "comparison.md").read_text(encoding="utf-8").strip())
    if source := study.get("source"):
        parts.append(_beside_source(rows, **source))
    if set(ARCHITECTURES) <= set(rows.index) and rows.loc[[*ARCHITECTURES], "best_epoch"].notna().all():
        parts.append(_analysis(rows, metrics, task))
    if (figure := folder / "learning_curves.svg").exists():
        copy = page.parent / "docs" / "results" / f"{folder.name.rpartition('-')[0]}.svg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(figure, copy)
        parts.append(f"![learning curves]({copy.relative_to(page.parent).as_posix()})")
    return "\n\n".join(parts)


def _beside_source(rows: pd.DataFrame, score: str, values: dict[str, float]) -> str:
    found = [(name, value, rows.loc[name, score]) for name, value in values.items() if name in rows.index]
    table = pd.DataFrame(found, columns=["model", f"{score}, the source report", "here"])
    return f"Beside the source report:\n\n{table.to_markdown(index=False, floatfmt='.4f')}"


def _analysis(rows: pd.DataFrame, metrics: list[dict[str, Any]], task: str) -> str:
    """Convergence, cost, the gain of recurrence, gates and a second direction, and where each architecture fails."""
    score = MAIN[task]
    names = {"parameters": "parameters", "best_epoch": "epochs to best", "seconds_per_epoch": "seconds per epoch"}
    cost = rows.reindex(ARCHITECTURES)[list(names)].rename(columns=names).rename_axis("model")
    cost["seconds to best"] = cost["epochs to best"] * cost["seconds per epoch"]
    soonest, fastest = (
        ", ".join(map(_upper, cost.index[cost[name] == cost[name].min()]))
        for name in ("epochs to best", "seconds to best")
    )
    gru, lstm, bilstm = (
        _gain(rows, name, other, score) for name, other in (("gru", "rnn"), ("lstm", "rnn"), ("bilstm", "lstm"))
    )
    recurrence = ""
    if WITHOUT in rows.index:
        gains = ", ".join(f"{_gain(rows, name, WITHOUT, score)} with the {_upper(name)}" for name in ARCHITECTURES)
        recurrence = f"**Recurrence.** Against {WITHOUT}, the mean of the word vectors, {score} changes by {gains}."
    failures = _failures_of_texts if task == "cls" else _failures_of_forecasts
    lines = [
        f"**Convergence and cost.** Fewest epochs to the best validation score: {soonest}. "
        f"Least time, as these runs went: {fastest}.",
        cost.to_markdown(floatfmt=("", ",.0f", ".1f", ".1f", ".1f")),
        recurrence,
        f"**Gates.** Against the RNN, {score} changes by {gru} with the GRU's gates and by {lstm} with the LSTM's.",
        f"**Direction.** Against the LSTM, {score} changes by {bilstm} with a second direction.",
        "**Where each fails.**",
        pd.DataFrame(
            {_upper(n): failures([m for m in metrics if m["model"] == n]) for n in ARCHITECTURES}
        ).T.to_markdown(disable_numparse=True),
    ]
    return "\n\n".join(filter(None, lines))


def _gain(rows: pd.DataFrame, name: str, other: str, score: str) -> str:
    """The difference of two means with its standard error over seeds."""
    (mean, spread, runs), (mean2, spread2, runs2) = (
        rows.loc[each, [score, f"{score}_std", "runs"]].astype(float) for each in (name, other)
    )
    error = math.sqrt(spread**2 / runs + spread2**2 / runs2)
    gain = mean - mean2
    certainty = "" if math.isnan(error) else f" (standard error {format_number(error, beside=[gain])})"
    return format_number(gain, sign="+") + certainty


def _failures_of_texts(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Of one architecture: its worst class, its most frequent mistake, and its accuracy on the shortest texts."""
    classes = [each["class"] for each in runs[0]["per_class"]]
    recall = np.mean([[each["recall"] if each["support"] else 1 for each in run["per_class"]] for run in runs], axis=0)
    mistakes = np.mean([run["confusion"] for run in runs], axis=0) * (1 - np.eye(len(classes)))
    truth, answer = np.unravel_index(mistakes.argmax(), mistakes.shape)
    shortest = next(iter(runs[0]["breakdown"]["length"]))
    accuracy = np.mean([run["breakdown"]["length"][shortest]["accuracy"] for run in runs])
    return {
        "least recall": f"{recall.min():.3f}, {classes[recall.argmin()]}",
        "most frequent mistake": f"{classes[truth]} taken for {classes[answer]}, {mistakes.max():.0f} times",
        f"accuracy {shortest} characters": f"{accuracy:.3f}",
    }


def _failures_of_forecasts(runs: list[dict[str, Any]]) -> dict[str, str]:
    """Of one architecture: its mean error in its worst and best season, and at the first and last step."""
    known = [run["breakdown"]["season"] for run in runs]
    seasons = {name: np.mean([season[name]["mae"] for season in known if name in season]) for name in known[0]}
    steps = np.mean([run["mae_by_step"] for run in runs], axis=0)
    worst, best = max(seasons, key=lambda name: seasons[name]), min(seasons, key=lambda name: seasons[name])
    return {
        "worst season": f"{format_number(float(seasons[worst]), 2)}, {worst}",
        "best season": f"{format_number(float(seasons[best]), 2)}, {best}",
        "first step": format_number(float(steps[0]), 2),
        "last step": format_number(float(steps[-1]), 2),
    }


def _upper(name: Any) -> str:
    return {"bilstm": "BiLSTM"}.get(name, str(name).upper())
