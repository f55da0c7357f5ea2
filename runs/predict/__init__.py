"""What a trained run makes of new reviews or readings."""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from datamodules import DataError
from datamodules.sources import archive_of
from runs.build import load_task, plain, read_config
from runs.checkpoints import BEST, LAST, read_json
from runs.checks import validate
from runs.errors import CheckpointError
from runs.predict import series, texts
from runs.schema import ConfigError
from runs.train import quieten
from tasks import Task

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".parquet")
OPTIONS = {
    "cls": ("text", "text_column", "target", "explain"),
    "forecast": ("time_column", "time_format", "decimal", "missing_words", "columns", "every", "max_age"),
}
"""Those that only one task has."""
SHARED = (
    *("encoding", "separator", "quote", "escape", "comment", "header", "names", "skip_lines", "skip_after_header"),
    *("decimal", "missing_words", "text_column", "time_column", "time_format", "allow_loss"),
)
"""Those that are called as in training, there with `data.` before."""


@dataclass(frozen=True)
class Trained:
    """A trained task, and the configuration of the data that it was trained on."""

    task: Task
    kind: str
    data: dict[str, Any]


def run(config: DictConfig) -> None:
    """Predict as the configuration says; see `predict`.

    Raises:
        ConfigError: an option is out of range.
        SystemExit: stopped by a signal.
    """
    validate(config)
    quieten()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # nothing half-written is left behind
    settings = plain(config)
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    predict(settings)


def predict(settings: dict[str, Any]) -> None:
    """Predict for the input, or for the single text, with the run's weights.

    Args:
        settings: the options of `PredictConfig`.

    Raises:
        ConfigError: an option is not for this run, or a file is in the way.
        CheckpointError: there are no weights that can be used.
        DataError: the input can't be used.
    """
    _check_request(settings)
    trained = load(settings)
    for kind, names in OPTIONS.items():
        if kind != trained.kind and (given := [name for name in names if settings[name]]):
            raise ConfigError(f"{given[0]} is no option for {settings['run']}, a run of task={trained.kind}")
    if settings["output"] is not None:
        _make_room(settings, trained.kind)
    with _options_of_predict():
        if trained.kind == "forecast":
            series.forecast_file(trained.task, settings)
        elif settings["text"] is not None:
            texts.predict_text(trained.task, settings)
        else:
            texts.predict_file(trained.task, trained.data, settings)


def _check_request(settings: dict[str, Any]) -> None:
    """Raise a ConfigError unless it is clear what to read and what to write."""
    if (settings["input"] is None) == (settings["text"] is None):
        raise ConfigError("give either input=FILE and output=FILE, or text=…")
    if settings["input"] is None:
        if settings["output"] is not None:
            raise ConfigError("output=… is for input=…: what becomes of a single text is printed")
        if settings["target"] is not None:
            raise ConfigError("target=… is for input=…: a single text has no column of labels")
        return
    if not archive_of(Path(settings["input"]))[0].is_file():
        raise ConfigError(f"input={settings['input']} is not a file")
    if settings["output"] is None:
        raise ConfigError("output is missing: give it as output=FILE.csv or output=FILE.parquet")
    output = Path(settings["output"])
    if output.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"output={output} must end in {' or '.join(SUFFIXES)}")


def _make_room(settings: dict[str, Any], kind: str) -> None:
    """Make the folder of the files to be written.

    Raises:
        ConfigError: one of them is the input, or is there already.
        OSError: one of them can't be replaced.
    """
    output = Path(settings["output"])
    scored = settings["every"] is not None or settings["target"] is not None
    suffixes = [".html"] * settings["explain"] + [".json"] * scored
    suffixes += [".png", ".svg"] if kind == "forecast" or scored else []
    for path in [output, *map(output.with_suffix, suffixes)]:
        if path.exists() and path.samefile(archive_of(Path(settings["input"]))[0]):
            raise ConfigError(f"{path} is the input, and would be overwritten: choose another output")
        if path.is_dir() or (path.exists() and not settings["overwrite"]):
            raise ConfigError(f"{path} is there already: choose another output, or say overwrite=true")
        if path.exists():
            with path.open("r+b"):  # an OSError now, not after hours, where it is locked: on Windows, by Excel
                pass
    output.parent.mkdir(parents=True, exist_ok=True)


def load(settings: dict[str, Any]) -> Trained:
    """The trained task of a run folder: of `settings` the options `run`, `checkpoint`, `trust`.

    Raises:
        ConfigError: it is no run folder, or its configuration is damaged.
        CheckpointError: there are no weights that can be used.
    """
    folder = Path(settings["run"])
    try:
        config = read_config(folder)
    except FileNotFoundError:
        runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        remedy = f"it holds several, choose one: {', '.join(runs[:8])}" if runs else "it has no config.yaml"
        raise ConfigError(f"run={folder} is not a run folder: {remedy}") from None
    kind, data = config["task"]["name"], config["data"]
    names = {"best": BEST, "last": LAST}
    chosen = settings["checkpoint"]
    path = folder / "checkpoints" / names[chosen] if chosen in names else Path(chosen)
    if not path.is_file():
        others = sorted(other.name for other in (folder / "checkpoints").glob("*.ckpt"))
        remedy = f"there are {', '.join(others)}" if others else "the run has not trained yet, or was a trial"
        raise CheckpointError(f"checkpoint={chosen}: {path} does not exist; {remedy}")
    try:
        task = load_task(path, settings["trust"])
    except (KeyError, RuntimeError) as error:  # weights that don't fit what the checkpoint says it is
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} does not fit this version of the project: {error}") from error
    for part in ("task", "model", "seed") if chosen in names else ("task",):
        trained, wanted = (
            each[part] if part == "seed" else each[part]["name"] for each in (task.blueprint["config"], config)
        )
        if trained != wanted:
            raise CheckpointError(f"{path} is of {part}={trained}, {folder} of {part}={wanted}")
    status = folder / "status.json"
    try:
        if not status.exists() or read_json(status).get("state") != "finished":
            log.warning(f"{folder} has not finished: these are the weights so far")
    except ConfigError as error:  # the weights are good all the same
        log.warning(f"{error}")
    if task.calibrates and task.is_calibrated is False:
        log.warning(f"{path} is not calibrated: {'quantiles' if kind == 'forecast' else 'probabilities'} may be off")
    return Trained(task, kind, data)


@contextmanager
def _options_of_predict() -> Iterator[None]:
    """Call options in messages as they are called here: `data.encoding` is `encoding`, and `data.path` is `input`."""
    try:
        yield
    except DataError as error:
        text = re.sub(rf"\bdata\.(?=({'|'.join(SHARED)})\b)", "", str(error))
        # The model is as it is.
        fixed = r"(,? or set data\.(step|duplicates|missing_values)\b|: set data\.step\b|: data\.resample=mean ).*"
        text = re.sub(fixed, "", text)
        raise DataError(text.replace("data.path", "input").replace("data.step=", "the model's step of ")) from error
