"""The life of a run folder: created, trained in, finished or failed, resumed."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.console import Console

from runs import console
from runs.build import plain
from runs.checkpoints import LAST, write_atomically
from runs.errors import CheckpointError, explain
from runs.schema import ConfigError, validate
from runs.train import train

log = logging.getLogger(__name__)

_MAIN = rank_zero_only.rank == 0  # of several processes that train together, one writes
failures: list[str] = []
"""The run folders of this process's jobs that failed."""


def run(config: DictConfig) -> float | None:
    """Run one composed configuration; a failure is reported and remembered, so that a sweep's other jobs go on.

    Returns:
        The validation score that the run is judged by, for sweepers that optimise it.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweeping = settings.mode == RunMode.MULTIRUN
    overrides = list(settings.overrides.task)
    try:
        metrics = _run(config, folder, overrides, sweeping)
    except (KeyboardInterrupt, SIGTERMException) as stop:  # ends a sweep, too
        _write_status(folder, "interrupted", overrides, f"continue with: python run.py resume={folder}")
        log.warning(f"interrupted; continue with: python run.py resume={folder}")
        raise SystemExit(143 if isinstance(stop, SIGTERMException) else 130) from stop
    except (Exception, SystemExit) as error:
        message = explain(error, overrides)
        _write_status(folder, "failed", overrides, message or repr(error))
        failures.append(folder.name)
        where = f" in {folder.name}" if sweeping else ""
        log.error(f"error{where}: {message or repr(error)}", exc_info=message is None or config.debug)
        return None
    if _MAIN:
        console.print_scores(metrics, folder, Console())
    return metrics["test"].get("f1_macro", metrics["test"].get("mae"))


def _run(config: DictConfig, folder: Path, overrides: list[str], sweeping: bool) -> dict[str, Any]:
    if config.resume is not None:
        return _resume(folder, overrides, list(config.trust))
    validate(config)
    settings = plain(config)
    if _MAIN and (folder / "checkpoints").exists():
        same = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == settings
        if not (sweeping and same):
            raise ConfigError(
                f"{folder} holds a run already: continue it with resume={folder}, or choose another hydra.run.dir"
            )
        # A sweep started again: what is finished is kept, the rest continues.
        return _resume(folder, [], list(config.trust))
    if _MAIN:
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)).encode())
    _write_status(folder, "running", overrides)
    metrics = train(settings, folder)
    _write_status(folder, "finished", overrides)
    return metrics


def _resume(folder: Path, overrides: list[str], trust: list[str]) -> dict[str, Any]:
    """Continue the run of `folder` under its own configuration, of which only the trainer's part may change."""
    if not (folder / "config.yaml").exists():
        raise CheckpointError(f"nothing to resume from: {folder} is not a run folder (it has no config.yaml)")
    saved: Any = OmegaConf.load(folder / "config.yaml")
    changes = [override for override in overrides if not override.startswith("resume=")]
    for change in changes:
        key, _, value = change.partition("=")
        if key in ("model", "task") and value != saved[key].name:
            raise CheckpointError(f"{folder} holds a {saved[key].name} run; it can't continue as {key}={value}")
        if not key.lstrip("+").startswith("trainer.") and key not in ("model", "task", "debug", "trust"):
            raise ConfigError(f"{change}: a resumed run keeps its configuration; only trainer.… may change")
    dotlist = [change.lstrip("+") for change in changes if change.lstrip("+").startswith("trainer.")]
    settings = plain(OmegaConf.merge(saved, OmegaConf.from_dotlist(dotlist)))  # type: ignore[arg-type]
    settings["trust"] = trust  # what to trust is said on the command line, never by a folder that may be anybody's
    if (folder / "metrics.json").exists() and not dotlist:
        log.info(f"{folder} is finished already; here are its scores")
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if not (folder / "checkpoints" / LAST).exists():
        raise CheckpointError(
            f"nothing to resume from: {folder / 'checkpoints' / LAST} does not exist; the run stopped before its "
            "training began. Start it again without resume="
        )
    started_with = json.loads((folder / "status.json").read_text(encoding="utf-8"))["overrides"]
    _write_status(folder, "running", started_with)
    metrics = train(settings, folder, resume=True)
    _write_status(folder, "finished", started_with)
    return metrics


def _write_status(folder: Path, state: str, overrides: list[str], error: str | None = None) -> None:
    if not _MAIN:
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    status = {"state": state, "overrides": overrides, "error": error, "time": now}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "status.json", json.dumps(status, ensure_ascii=False, indent=2).encode())
