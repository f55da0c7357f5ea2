"""Runs side by side: one table with mean and standard deviation over seeds, one figure of learning curves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from runs.analysis import average, scores
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
REPEATED = ("seed=", "data.test_from=")
"""Overrides whose values a row averages over."""
OWN = ("model=", "task=", *REPEATED)
"""Overrides that don't say what tells a row from others of its model."""


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

    Runs that differ only in their seed, or in where the test begins, share a row; of several seeds, a further row has
    the scores of their averaged predictions. Each row is tested against a reference: the sweep's first baseline with
    the same other settings, or else its first row. Below the table are scores by class and length of text, or by season
    and year, and the runs that failed.
    """
    statuses = {run: json.loads((run / "status.json").read_text(encoding="utf-8")) for run in runs}
    # A run that was prolonged and then stopped has the scores of its shorter training: it isn't finished.
    finished = [run for run in runs if statuses[run]["state"] == "finished" and (run / "metrics.json").exists()]
    metrics = {run: json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in finished}
    variants = _variants([statuses[run]["overrides"] for run in finished])
    rows = pd.DataFrame([_row(run, metrics[run], variant) for run, variant in zip(finished, variants, strict=True)])
    failed = {run.name: statuses[run] for run in runs if run not in finished}
    texts = []
    for task, of_task in rows.groupby("task", sort=False) if len(rows) else []:
        table = summarise(of_task, SCORES[str(task)])
        table, reference = _with_predictions(table, of_task, str(task))
        suffix = "" if rows["task"].nunique() == 1 else f"_{task}"
        table.to_csv(folder / f"comparison{suffix}.csv", index=False)
        shown = _shown(table, SCORES[str(task)], reference)
        split = " and ".join(sorted(set(of_task["split"])))
        title = f"Scores of the {split} split, {task}: mean ± standard deviation over runs"
        _print_table(shown, title)
        texts += [title, shown.to_markdown(index=False, disable_numparse=True)]
        if len(table) > 1:
            texts.append(f"against {reference}: {TESTS[str(task)]}")
        for part, shown_part in _parts(of_task, metrics).items():
            texts += [part, shown_part.to_markdown(floatfmt=".4f")]
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


def _with_predictions(table: pd.DataFrame, rows: pd.DataFrame, task: str) -> tuple[pd.DataFrame, str]:
    """The table with what takes the runs' predictions, and the name of the model that all are tested against.

    A row more for each label with several seeds, the scores of their average; columns `difference` and `p`.
    """
    fitted = rows.loc[rows["backend"].isna(), "model"]
    reference = str(fitted.iloc[0] if len(fitted) else rows["model"].iloc[0])
    of_reference = rows[rows["model"] == reference].drop_duplicates("variant")
    references = dict(zip(of_reference["variant"], of_reference["label"], strict=True))
    default = of_reference["label"].iloc[0]
    groups = {label: group.sort_values("seed") for label, group in rows.groupby("label", sort=False)}
    opponents = {label: _predictions(groups[label]) for label in references.values()}
    lines: list[dict[str, Any]] = []
    for line in ({str(name): value for name, value in line.items()} for line in table.to_dict("records")):
        group = groups[line["label"]]
        of_label = opponents.get(line["label"]) or _predictions(group)
        opponent = references.get(group["variant"].iloc[0], default)
        lines.append({**line, **_difference(task, of_label, opponents[opponent], line["label"] == opponent)})
        if len(group) > 1 and group["seed"].is_unique and group["backend"].notna().all():
            mean = average(task, of_label)
            name = f"{line['label']}, {len(group)} seeds averaged"
            size = {"parameters": group["parameters"].sum(), "seconds_per_epoch": group["seconds_per_epoch"].sum()}
            lines.append(
                {**line, "label": name, **dict.fromkeys((f"{score}_std" for score in SCORES[task]), np.nan)}
                | {**scores(task, mean), **size, **_difference(task, [mean], opponents[opponent], False)}
            )
    return pd.DataFrame(lines), reference


def _difference(
    task: str, runs: list[pd.DataFrame], reference: list[pd.DataFrame], same: bool
) -> dict[str, str | float]:
    found = None if same else compare(task, runs, reference)
    return {"difference": "", "p": np.nan} if found is None else {"difference": found.text, "p": found.p}


def _predictions(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [pd.read_parquet(folder / "predictions.parquet") for folder in rows["folder"]]


def _row(run: Path, metrics: dict[str, Any], variant: str) -> dict[str, Any]:
    return {
        "label": f"{metrics['model']} {variant}".strip(),
        "variant": variant,
        "folder": run,
        **{name: metrics[name] for name in KEPT},
        "seconds_per_epoch": metrics["seconds"] / max(1, metrics["epochs"]),
        **metrics["test"],
    }


def _variants(overrides: list[list[str]]) -> list[str]:
    """What tells each run from the others beside its model and seed: the overrides that not all of them share."""
    others = [[word for word in words if not word.startswith(OWN)] for words in overrides]
    shared = set.intersection(*map(set, others)) if others else set()
    return [" ".join(word for word in words if word not in shared) for words in others]


def _parts(rows: pd.DataFrame, metrics: dict[Path, dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Tables of parts of the split by label, each a mean over its runs, by their titles."""
    found: list[tuple[str, str, str, float]] = []  # table, part, label, score
    for run, label in zip(rows["folder"], rows["label"], strict=True):
        for each in metrics[run].get("per_class", []):
            found.append(("F1 by class", each["class"], label, each["f1"]))
        for kind, parts in metrics[run]["breakdown"].items():
            score, title = ("accuracy", "characters") if kind == "length" else ("mae", kind)
            found += [(f"{score} by {title}", part, label, values[score]) for part, values in parts.items()]
    table = pd.DataFrame(found, columns=["table", "part", "label", "score"])
    return {
        str(title): of_title.pivot_table("score", "part", "label", sort=False).rename_axis(index=None, columns=None)
        for title, of_title in table.groupby("table", sort=False)
        if of_title["part"].nunique() > 1
    }


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
