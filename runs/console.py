"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from runs.analysis import format_number


def print_scores(metrics: dict[str, Any], folder: Path, console: Console) -> None:
    """The scores, per class where there are classes, and the run folder."""
    data = metrics["data"]
    if metrics["sample"]:
        data += " (BUILT-IN SAMPLE DATA, not a real data set)"
    split = {"test": "Test", "val": "Validation"}[metrics["split"]]
    table = Table(title=escape(f"{split} scores of {metrics['model']} on {data}"), title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in metrics["test"].items():
        table.add_row(name, "undefined" if value is None else format_number(value))
    console.print(table)
    if "per_class" in metrics:
        console.print(_class_table(metrics["per_class"]))
    if metrics["fast_dev_run"]:
        console.print("fast_dev_run: a trial of one batch; these scores mean nothing", style="bold")
    if metrics["backend"] is None:  # a baseline
        trained = f"fitted in {metrics['seconds']:.0f} s"
    else:
        kept = (
            f"best: {metrics['best_epoch']}" if metrics["best_epoch"] else "no score of a validation: the last weights"
        )
        trained = f"{metrics['epochs']} epochs in {metrics['seconds']:.0f} s ({kept}), backend {metrics['backend']}"
    console.print(f"{metrics['parameters']:,} parameters, {trained}")
    console.print(f"run folder: {folder}", soft_wrap=True, markup=False)


def _class_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="By class", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else escape(str(value)) for value in row.values()))
    return table
