"""Runs side by side: what `compare_runs` finds, and the files that `write_comparison` makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runs import figures
from runs.analysis import average, format_number, quantiles_of, scores
from runs.checkpoints import read_json, write_atomically
from runs.labels import variants
from runs.statistics import Difference, compare

log = logging.getLogger(__name__)

SCORES = {
    "cls": ("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    "forecast": ("mae", "median_ae", "rmse", "bias", "skill"),
}
FURTHER = {"cls": (), "forecast": ("crps", "coverage_80")}
"""Scores that are shown if any run has them."""
MAIN = {"cls": "f1_macro", "forecast": "mae"}
"""The score that sums a model up."""
TESTED = {"cls": "accuracy", "forecast": "mae"}
"""The score whose differences are tested."""
TESTS = {
    "cls": "examples that only this model has right : that only the reference has; p of McNemar's exact test (of "
    "several seeds: the counts of the pair of runs with the median p, and p is twice that)",
    "forecast": "difference of the mean errors with its 95% interval and p, from a bootstrap of weeks",
}
KEPT = ("task", "model", "data", "sample", "split", "seed", "backend", "parameters", "best_epoch")
"""What a row takes over from `metrics.json`."""


def find_runs(folder: Path) -> list[Path]:
    """The runs of a sweep, in the order of its jobs: 10 behind 9, and last what was named otherwise."""

    def job(run: Path) -> tuple[float, Path]:
        number = run.name.partition("_")[0]
        return int(number) if number.isdecimal() else np.inf, run

    return sorted((path.parent for path in folder.glob("*/status.json")), key=job)


@dataclass(frozen=True)
class TaskComparison:
    """The finished runs of one task.

    Attributes:
        task: its name.
        rows: a row per run, with its `label`, `folder` and scores.
        metrics: what `metrics.json` holds, by folder.
        table: a row per label, as in `comparison.csv`: scores, costs, and the test against the reference.
        reference: what labels are tested against, in words.
        parts: scores of parts of the split (rows) by label (columns), by their titles.
    """

    task: str
    rows: pd.DataFrame
    metrics: dict[Path, dict[str, Any]]
    table: pd.DataFrame
    reference: str
    parts: dict[str, pd.DataFrame]

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that are shown."""
        return _shown_scores(self.task, self.rows)

    @property
    def split(self) -> str:
        """The split that was scored, or both."""
        return " and ".join(sorted(set(self.rows["split"])))

    @property
    def sample(self) -> list[str]:
        """Names of built-in sample data among the data sets."""
        return sorted(set(self.rows.loc[self.rows["sample"], "data"]))

    @property
    def curve(self) -> str:
        """The validation score whose curves are drawn beside the loss's, whichever of them was monitored."""
        return {"cls": "val/f1", "forecast": "val/mae"}[self.task]

    @property
    def labels(self) -> dict[str, list[Path]]:
        """The folders of each label's runs."""
        return {str(label): list(of_label) for label, of_label in self.rows.groupby("label", sort=False)["folder"]}

    def histories(self) -> dict[str, list[pd.DataFrame]]:
        """What `history.csv` holds of each run, by label."""
        files = {label: [run / "history.csv" for run in folders] for label, folders in self.labels.items()}
        return {label: [pd.read_csv(file) for file in each if file.exists()] for label, each in files.items()}


@dataclass(frozen=True)
class Comparison:
    """Runs of one task or of several, and the statuses of those that did not finish."""

    tasks: list[TaskComparison]
    failed: dict[Path, dict[str, Any]]

    @property
    def finished(self) -> int:
        """How many runs are compared."""
        return sum(len(each.rows) for each in self.tasks)

    @property
    def trials(self) -> list[str]:
        """Names of those of single batches."""
        return [run.name for each in self.tasks for run, of in each.metrics.items() if of.get("fast_dev_run")]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Read what some runs have left in their folders.

    Runs that differ only in their seed, or in the year of a backtest, share a label, in which each counts once; of
    several seeds, a further row of the table has the scores of their averaged predictions. Each row is tested against a
    reference: the first baseline among the runs, or else the first model, with the same other settings, or else as it
    stands first.
    """
    statuses: dict[Path, dict[str, Any]] = {}
    metrics: dict[Path, dict[str, Any]] = {}
    configs: dict[Path, Any] = {}
    for run in runs:
        try:
            statuses[run] = _read_json(run / "status.json", ("state", "overrides", "error"))
            # A run that was prolonged and then stopped has the scores of its shorter training: it isn't finished.
            if statuses[run]["state"] == "finished" and (run / "metrics.json").exists():
                configs[run] = _read_config(run / "config.yaml")
                _check_table(run / "predictions.parquet")
                metrics[run] = _read_json(run / "metrics.json", (*KEPT, "seconds", "epochs", "test"))
        except DamagedRun as error:
            statuses[run] = {"state": "failed", "overrides": [], "error": f"damaged: {error}"}
    tasks = []
    for task in dict.fromkeys(of_run["task"] for of_run in metrics.values()):
        of_task = {run: of_run for run, of_run in metrics.items() if of_run["task"] == task}
        told = variants(of_task, statuses, configs)
        rows = _once(pd.DataFrame([_row(run, of_run, told[run]) for run, of_run in of_task.items()]), configs)
        of_task = {run: of_task[run] for run in rows["folder"]}
        table, reference = _with_predictions(summarise(rows, _shown_scores(task, rows)), rows, task)
        tasks.append(TaskComparison(task, rows, of_task, table, reference, _parts(rows, of_task)))
    return Comparison(tasks, {run: status for run, status in statuses.items() if run not in metrics})


def _shown_scores(task: str, rows: pd.DataFrame) -> tuple[str, ...]:
    further = [name for name in FURTHER[task] if name in rows]
    if rows["levels"].nunique() > 1:  # the fewer levels, the lower the error that they are blind to
        further.remove("crps")
    return (*SCORES[task], *further)


def _read_json(file: Path, keys: Sequence[str]) -> dict[str, Any]:
    with _reading(file):
        content = read_json(file)
        return content | {key: content[key] for key in keys}  # all of them must be there


def _read_config(file: Path) -> Any:
    with _reading(file):
        config: Any = OmegaConf.load(file)
        for part in ("data", "task"):
            config[part].keys()
        return config


def _check_table(file: Path) -> None:
    """Of the predictions, which are long, only what says where they are."""
    with _reading(file):
        pq.read_schema(file).field("prediction")


def _once(rows: pd.DataFrame, configs: dict[Path, DictConfig]) -> pd.DataFrame:
    """The rows without those of a label's seed, and year of a backtest, that another run has already."""
    year = [OmegaConf.select(configs[run], "data.test_from") for run in rows["folder"]]
    again = rows.assign(year=year).duplicated(["label", "seed", "year"])
    for run, label, seed in rows.loc[again, ["folder", "label", "seed"]].itertuples(index=False):
        log.warning(f"{run}: left out, for another run is {label} with seed={seed}, too")
    return rows[~again].reset_index(drop=True)


class DamagedRun(ValueError):
    """A file of a run can't be read; the message is its name."""


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DamagedRun(file.name) from error


def write_comparison(folder: Path, runs: Sequence[Path]) -> Comparison:
    """Compare runs: `comparison.csv`, `comparison.md`, `learning_curves.png/.svg`, `report.html`, and a printed table.

    Below the table of `comparison.md` are scores by class and length of text, or by season and year, and the runs that
    failed. Of several tasks, each has files of its own, but for `comparison.md` and the page.
    """
    comparison = compare_runs(runs)
    texts = []
    for found in comparison.tasks:
        suffix = "" if len(comparison.tasks) == 1 else f"_{found.task}"
        write_atomically(folder / f"comparison{suffix}.csv", found.table.to_csv(index=False).encode())
        shown = _shown(found.table, found.scores, found.reference)
        title = f"Scores of the {found.split} split, {found.task}: mean ± standard deviation over runs"
        _print_table(shown, title)
        texts += [title, shown.to_markdown(index=False, disable_numparse=True)]
        if len(found.table) > 1:
            texts.append(f"against {found.reference}: {TESTS[found.task]}")
        for part, values in found.parts.items():
            shown = values.map(lambda value: "" if pd.isna(value) else format_number(value))
            texts += [part, shown.to_markdown(disable_numparse=True)]
        _draw(folder / f"learning_curves{suffix}", found)
    if sample := [name for found in comparison.tasks for name in found.sample]:
        texts.append(f"**{', '.join(sample)}: built-in sample data, not a real data set.**")
    if trials := comparison.trials:
        texts.append(f"**{', '.join(trials)}: a trial of single batches (fast_dev_run); its scores mean nothing.**")
    texts += [f"- FAILED {run.name}: {status['state']}: {status['error']}" for run, status in comparison.failed.items()]
    write_atomically(folder / "comparison.md", ("\n\n".join(texts) + "\n").encode())
    for run, status in comparison.failed.items():
        log.error(f"failed: {run.name}: {status['error'] or status['state']}")
    from runs.page import write_page  # which imports this module

    write_page(folder / "report.html", comparison)
    log.info(
        f"{comparison.finished} of {len(runs)} runs finished; comparison: {folder / 'comparison.md'}, and to look at: "
        f"{folder / 'report.html'}"
    )
    return comparison


def summarise(rows: pd.DataFrame, scores: tuple[str, ...]) -> pd.DataFrame:
    """One row per label: number of runs, mean and standard deviation of each score, size and cost."""
    groups = rows.groupby("label", sort=False)
    table = groups.agg(data=("data", "first"), runs=("seed", "size")).reset_index()
    for score in scores:
        table[score] = groups[score].mean().to_numpy()
        table[f"{score}_std"] = groups[score].std().to_numpy()  # NaN for a single run: there is nothing to spread
    for name in ("parameters", "seconds_per_epoch", "best_epoch"):
        table[name] = groups[name].mean().to_numpy()
    return table


def _with_predictions(table: pd.DataFrame, rows: pd.DataFrame, task: str) -> tuple[pd.DataFrame, str]:
    """The table with what takes the runs' predictions, and what its rows are tested against, in words.

    A row more for each label with several seeds of the same examples, the scores of their average; columns `reference`,
    `difference` and `p`.
    """
    groups = {label: group.sort_values("seed") for label, group in rows.groupby("label", sort=False)}
    opponents = _opponents(rows)
    lines: list[dict[str, Any]] = []
    for line in ({str(name): value for name, value in line.items()} for line in table.to_dict("records")):
        group, opponent = groups[line["label"]], opponents[line["label"]]
        several = len(group) > 1 and group["seed"].is_unique and group["backend"].notna().all()
        of_label = _predictions(task, group, with_quantiles=several) if several or opponent else []
        reference = _predictions(task, groups[opponent]) if opponent else []
        lines.append(line | _difference(task, of_label, reference, opponent))
        if several and (mean := average(task, of_label)) is not None:
            name = f"{line['label']}, {len(group)} seeds averaged"
            cost = {"parameters": group["parameters"].sum(), "seconds_per_epoch": group["seconds_per_epoch"].sum()}
            spread = dict.fromkeys((name for name in line if name.endswith("_std")), np.nan)
            reference = reference or of_label  # the reference's own seeds, apart
            tested = _difference(task, [mean], reference, opponent or line["label"])
            found = {score: value for score, value in scores(task, mean).items() if score in line}
            lines.append(line | {"label": name} | spread | cost | found | tested)
    against = {opponent for opponent in opponents.values() if opponent}
    words = against.pop() if len(against) == 1 else f"{_first(rows)['model']} with the same settings"
    return pd.DataFrame(lines), words


def _first(rows: pd.DataFrame) -> pd.Series:
    """The first run of a model without recurrence, a baseline, or else the first run."""
    baselines = rows[rows["backend"].isna() | (rows["backend"] == "none")]
    return (baselines if len(baselines) else rows).iloc[0]


def _opponents(rows: pd.DataFrame) -> dict[str, str | None]:
    """What each label is tested against: the first model with the same other settings, or else as it stands first."""
    first = _first(rows)
    same = {
        variant: label for variant, label in rows.loc[rows["model"] == first["model"], ["variant", "label"]].to_numpy()
    }
    found: dict[str, str | None] = {}
    for label, variant in rows[["label", "variant"]].drop_duplicates().to_numpy():
        opponent = same.get(variant, first["label"])
        found[label] = next((each for each in (opponent, first["label"]) if each != label), None)
    return found


def _difference(
    task: str, runs: list[pd.DataFrame], reference: list[pd.DataFrame], opponent: str | None
) -> dict[str, Any]:
    if opponent is None:
        return {"reference": "", "difference": "", "p": np.nan}
    found = compare(task, runs, reference) or Difference("other examples", np.nan)
    return {"reference": opponent, "difference": found.text, "p": found.p}


def _predictions(task: str, rows: pd.DataFrame, with_quantiles: bool = False) -> list[pd.DataFrame]:
    """The tables of some runs, without what no score needs: those of forecasts are long."""
    needed = {"forecast": {"origin", "step", "target", "prediction", "seasonal_naive"}}.get(task)
    files = [folder / "predictions.parquet" for folder in rows["folder"]]
    names = [pq.read_schema(file).names for file in files]
    quantiles = [quantiles_of(held) if with_quantiles and task == "forecast" else {} for held in names]
    return [
        pd.read_parquet(file, columns=[name for name in held if needed is None or name in needed or name in levels])
        for file, held, levels in zip(files, names, quantiles, strict=True)
    ]


def _row(run: Path, metrics: dict[str, Any], variant: str) -> dict[str, Any]:
    return {
        "label": f"{metrics['model']} {variant}".strip(),
        "variant": variant,
        "folder": run,
        **{name: metrics[name] for name in KEPT},
        "levels": " ".join(metrics.get("share_below_quantile", {})) or None,
        "seconds": metrics["seconds"],
        "seconds_per_epoch": metrics["seconds"] / max(1, metrics["epochs"]),
        **{name: np.nan if value is None else value for name, value in metrics["test"].items()},
    }


def _parts(rows: pd.DataFrame, metrics: dict[Path, dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Tables of parts of the split by label, by their titles: means over its runs, weighted with their examples."""
    found: list[tuple[str, str, str, float, int]] = []
    for run, label in zip(rows["folder"], rows["label"], strict=True):
        for each in metrics[run].get("per_class", []):
            found.append(("F1 by class", each["class"], label, each["f1"], each["support"]))
        for kind, parts in metrics[run].get("breakdown", {}).items():
            score, title = ("accuracy", "characters") if kind == "length" else ("mae", kind)
            found += [(f"{score} by {title}", part, label, of[score], of["examples"]) for part, of in parts.items()]
        for day, of_day in metrics[run].get("intervals", {}).get("80", {}).items():
            part, windows = day.replace("day", "day "), metrics[run]["windows"]
            found.append(("truths in the 80% interval by day", part, label, of_day["coverage"], windows))
    table = pd.DataFrame(found, columns=["title", "part", "label", "score", "examples"]).query("examples > 0")
    tables = {}
    for title, of_title in table.groupby("title", sort=False):
        sums = of_title.assign(score=of_title["score"] * of_title["examples"]).pivot_table(
            ["score", "examples"], "part", "label", aggfunc="sum", sort=False
        )
        means = (sums["score"] / sums["examples"]).rename_axis(index=None, columns=None)
        if len(means) > 1:
            tables[str(title)] = means.sort_index() if str(title).endswith("year") else means
    return tables


def _shown(table: pd.DataFrame, scores: tuple[str, ...], reference: str) -> pd.DataFrame:
    """The table as people read it."""
    shown = table[["label", "data", "runs"]].rename(columns={"label": "model"})
    for score in scores:
        shown[score] = [
            ("" if pd.isna(mean) else format_number(mean))
            + ("" if pd.isna(spread) else f" ± {format_number(spread, beside=[mean])}")
            for mean, spread in table[[score, f"{score}_std"]].to_numpy()
        ]
    if len(table) > 1:
        shown[f"against {reference}"] = table["difference"]
    shown["parameters"] = table["parameters"].map("{:,.0f}".format)
    shown["s/epoch"] = table["seconds_per_epoch"].map("{:.1f}".format)
    shown["epochs to best"] = table["best_epoch"].map(lambda epoch: f"{epoch:.1f}" if epoch > 0 else "")
    return shown.astype(str)


def _print_table(shown: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in shown:
        table.add_column(escape(str(name)), justify="left" if name in ("model", "data") else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*map(escape, row))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)  # a log file wraps nothing


def _draw(path: Path, found: TaskComparison) -> None:
    figures.save(figures.learning_curves(found.histories(), found.curve), path)
