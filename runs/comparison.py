"""Runs side by side: one table with mean and standard deviation over seeds, one figure of learning curves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from runs.statistics import compare

log = logging.getLogger(__name__)

SCORES = {
    "cls": ("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    "forecast": ("mae", "median_ae", "rmse", "bias", "skill"),
}
TESTS = {
    "cls": "examples that only this model has right : that only the reference has; p of McNemar's exact test",
    "forecast": "difference of the mean errors with its 95% interval and p, from a bootstrap of weeks",
}
KEPT = ("task", "model", "data", "sample", "split", "seed", "backend", "parameters", "best_epoch")
"""What a row takes over from `metrics.json`."""


class CompareSweep(Callback):
    """At the end of a sweep, compares its runs: see `write_comparison`."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the comparison."""
        from pytorch_lightning.utilities import rank_zero_only

        from runs.job import failures

        if rank_zero_only.rank != 0:  # of several processes that train together, one compares
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            write_comparison(folder, sorted(path.parent for path in folder.glob("*/status.json")))
        except Exception:  # Hydra would log it and exit with 0
            log.exception("error: the comparison failed; the runs themselves are in %s", folder)
            failures.append("comparison")


def write_comparison(folder: Path, runs: list[Path]) -> None:
    """Write `comparison.csv`, `comparison.md` and `learning_curves.png/.svg` into `folder`, and print the table.

    Runs that differ only in their seed share a row. Each row is tested against a reference, the sweep's first baseline
    or else its first row. Runs that failed are listed under the table.
    """
    statuses = {run: json.loads((run / "status.json").read_text(encoding="utf-8")) for run in runs}
    # A run that was prolonged and then stopped has the scores of its shorter training: it isn't finished.
    finished = [run for run in runs if statuses[run]["state"] == "finished" and (run / "metrics.json").exists()]
    rows = pd.DataFrame([_row(run, label) for run, label in zip(finished, _labels(finished, statuses), strict=True)])
    failed = {run.name: statuses[run] for run in runs if run not in finished}
    texts = []
    for task, of_task in rows.groupby("task", sort=False) if len(rows) else []:
        table = summarise(of_task, SCORES[str(task)])
        reference = _add_differences(table, of_task, str(task))
        suffix = "" if rows["task"].nunique() == 1 else f"_{task}"
        table.to_csv(folder / f"comparison{suffix}.csv", index=False)
        shown = _shown(table, SCORES[str(task)], reference)
        split = " and ".join(sorted(set(of_task["split"])))
        title = f"Scores of the {split} split, {task}: mean ± standard deviation over runs"
        _print_table(shown, title)
        texts += [title, shown.to_markdown(index=False, disable_numparse=True)]
        if len(table) > 1:
            texts.append(f"against {reference}: {TESTS[str(task)]}")
        _draw(folder / f"learning_curves{suffix}", of_task)
    if sample := sorted(set(rows.loc[rows["sample"], "data"])) if len(rows) else []:
        texts.append(f"**{', '.join(sample)}: built-in sample data, not a real data set.**")
    texts += [f"- FAILED {name}: {status['state']}: {status['error']}" for name, status in failed.items()]
    (folder / "comparison.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for name, status in failed.items():
        log.error(f"failed: {name}: {status['error'] or status['state']}")
    log.info(f"{len(finished)} of {len(runs)} runs finished; comparison: {folder / 'comparison.md'}")


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


def _add_differences(table: pd.DataFrame, rows: pd.DataFrame, task: str) -> str:
    """Test each label against a reference, whose name is returned: columns `difference` and `p`."""
    fitted = rows.loc[rows["backend"].isna(), "label"]
    reference = str(fitted.iloc[0] if len(fitted) else rows["label"].iloc[0])
    runs = {label: group.sort_values("seed")["folder"].tolist() for label, group in rows.groupby("label")}
    found = [None if label == reference else compare(task, runs[label], runs[reference]) for label in table["label"]]
    table["difference"] = ["" if each is None else each.text for each in found]
    table["p"] = [float("nan") if each is None else each.p for each in found]
    return reference


def _row(run: Path, label: str) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {
        "label": label,
        "folder": run,
        **{name: metrics[name] for name in KEPT},
        "seconds_per_epoch": metrics["seconds"] / max(1, metrics["epochs"]),
        **metrics["test"],
    }


def _labels(runs: list[Path], statuses: dict[Path, dict[str, Any]]) -> list[str]:
    """What tells a run from the others, seeds aside: its model, and the overrides that not all runs share."""
    models = [json.loads((run / "metrics.json").read_text(encoding="utf-8"))["model"] for run in runs]
    overrides = [
        [word for word in statuses[run]["overrides"] if not word.startswith(("seed=", "model=", "task="))]
        for run in runs
    ]
    shared = set.intersection(*map(set, overrides)) if overrides else set()
    own = [[word for word in words if word not in shared] for words in overrides]
    return [" ".join([model, *words]) for model, words in zip(models, own, strict=True)]


def _shown(table: pd.DataFrame, scores: tuple[str, ...], reference: str) -> pd.DataFrame:
    """The table as people read it."""
    shown = table[["label", "data", "runs"]].rename(columns={"label": "model"})
    for score in scores:
        spread = table[f"{score}_std"].map(lambda value: "" if pd.isna(value) else f" ± {value:.4f}")
        shown[score] = table[score].map("{:.4f}".format) + spread
    if len(table) > 1:
        shown[f"against {reference}"] = table["difference"]
    shown["parameters"] = table["parameters"].map("{:,.0f}".format)
    shown["s/epoch"] = table["seconds_per_epoch"].map("{:.1f}".format)
    shown["epochs to best"] = table["best_epoch"].map("{:.1f}".format)
    return shown.astype(str)


def _print_table(shown: pd.DataFrame, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in shown:
        table.add_column(str(name), justify="left" if name in ("model", "data") else "right", overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)  # a log file wraps nothing


def _draw(path: Path, rows: pd.DataFrame) -> None:
    # matplotlib is slow to import; a process that composes a configuration and stops needs none of it
    from omegaconf import OmegaConf

    from runs import figures

    monitor = OmegaConf.load(rows["folder"].iloc[0] / "config.yaml").task.monitor
    curves = {
        str(label): [pd.read_csv(run / "history.csv") for run in group["folder"] if (run / "history.csv").exists()]
        for label, group in rows.groupby("label", sort=False)
    }
    figures.save(figures.learning_curves(curves, monitor), path)
