"""The comparison page: one file that shows what some runs have found, and needs nothing beside it."""

from __future__ import annotations

import base64
import glob
import hashlib
import logging
from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup
from omegaconf import DictConfig

from runs.build import plain
from runs.checkpoints import write_atomically
from runs.checks import validate
from runs.comparison import MAIN, Comparison, TaskComparison, compare_runs, find_runs
from runs.page import charts, forecasts, tables, texts
from runs.page.blocks import Section
from runs.schema import ConfigError

log = logging.getLogger(__name__)

TITLES = {"cls": "Classification", "forecast": "Forecast"}


def run(config: DictConfig) -> None:
    """Write the page of the runs that are named.

    Raises:
        ConfigError: there is no run where `runs` says, or none of them has finished.
    """
    validate(config)
    settings = plain(config)
    named = settings["runs"] if isinstance(settings["runs"], list) else [settings["runs"]]
    folders = [folder for each in named for folder in _runs_of(str(each))]
    comparison = compare_runs(list(dict.fromkeys(folders)))
    if not comparison.tasks:
        states = ", ".join(f"{run.name} ({status['state']})" for run, status in list(comparison.failed.items())[:5])
        raise ConfigError(f"runs={settings['runs']}: none of these has finished: {states}")
    output = Path(settings["output"])
    write_page(output, comparison, settings["title"])
    log.info(f"{comparison.finished} runs; wrote {output}")


def _runs_of(named: str) -> list[Path]:
    """The run folders that a path or a pattern stands for: itself one, or somewhere below it."""
    literal = Path(named).expanduser()
    places = [literal] if literal.exists() else sorted(map(Path, glob.glob(str(literal), recursive=True)))
    found: list[Path] = []
    for place in filter(Path.is_dir, places):
        if (place / "status.json").exists():
            found.append(place.resolve())
        else:
            parents = {path.parent.parent for path in place.resolve().rglob("status.json")}
            found += [run for parent in sorted(parents) for run in find_runs(parent)]
    if not found:
        raise ConfigError(
            f"runs={named}: no run is there (a folder with status.json); name a run, a sweep or outputs, or quote a "
            "pattern: 'runs=outputs/sweeps/*'"
        )
    return found


def write_page(path: Path, comparison: Comparison, title: str | None = None) -> None:
    """Write `path`, whole or not at all: every chart, table and script within it, and no address of anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _render(comparison, title).encode())


def _render(comparison: Comparison, title: str | None) -> str:
    from plotly.offline import get_plotlyjs

    from runs.figures import COLOURS

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("runs.page", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # tojson escapes `<`, so that no text can end the script element that holds it.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    style, script = (environment.loader.get_source(environment, f"page.{kind}")[0] for kind in ("css", "js"))  # pyright: ignore
    scripts = [script, get_plotlyjs()]
    return environment.get_template("page.html").render(
        title=title or _title(comparison),
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        comparison=comparison,
        tasks=[{"task": found, "title": TITLES[found.task], "facts": _facts(found)} for found in comparison.tasks],
        groups=[(TITLES[found.task], _sections(found, len(comparison.tasks) > 1)) for found in comparison.tasks],
        colours=COLOURS[: charts.SERIES - 1],
        style=Markup(style),
        scripts=[Markup(each) for each in scripts],
        hashes=[_hash(each) for each in scripts],
    )


def _hash(script: str) -> str:
    """What the page's security policy knows a script by: any other is refused."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _title(comparison: Comparison) -> str:
    models = list(dict.fromkeys(model for found in comparison.tasks for model in found.rows["model"]))
    if not models:
        return "No run has finished"
    if len(models) > 6:
        return f"Comparison of {len(models)} models"
    return "Comparison of " + " and ".join(filter(None, [", ".join(models[:-1]), models[-1]]))


def _facts(found: TaskComparison) -> list[tuple[str, str]]:
    """What stands at the head of the page, by what it is called."""
    sizes = {
        sum(each["support"] for each in of["per_class"]) if "per_class" in of else of.get("windows", 0)
        for of in found.metrics.values()
    }
    size = " to ".join(f"{count:,}" for count in sorted({min(sizes), max(sizes)}))
    unit = "texts" if found.task == "cls" else "windows"
    models, seeds = found.rows["label"].nunique(), found.rows["seed"].nunique()
    counts = [f"{len(found.rows)} of {models} models" if models > 1 else f"{len(found.rows)} of one model"]
    counts += [f"{seeds} seeds"] if seeds > 1 else []
    best = tables.best(found)
    return [
        ("data", ", ".join(dict.fromkeys(found.rows["data"]))),
        ("split", f"{found.split}, {size} {unit}" if max(sizes) else found.split),
        ("runs", ", ".join(counts)),
        *([(f"best {charts.NAMES[MAIN[found.task]]}", best)] if best else []),
    ]


def _sections(found: TaskComparison, several: bool) -> list[Section]:
    """The tabs of one task; of several tasks, an anchor says whose it is."""
    specific = texts.sections(found) if found.task == "cls" else forecasts.sections(found)
    costs = [charts.cost(found, "seconds", "seconds of training"), charts.cost(found, "parameters", "parameters")]
    all_sections = [
        Section("scores", "Scores", [tables.scores(found), charts.scores_by_run(found)]),
        Section("learning", "Learning", [*filter(None, [charts.learning_curves(found), charts.memory(found)])]),
        Section("cost", "Cost", [*costs]),
        *specific,
        Section("settings", "Settings", [table] if (table := tables.settings(found)) else []),
        Section("data", "Data", [*tables.reports(found)]),
    ]
    for section in all_sections:
        section.anchor = f"{found.task}-{section.anchor}" if several else section.anchor
    return [section for section in all_sections if section.blocks]
