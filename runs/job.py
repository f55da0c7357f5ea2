"""The life of a run folder: created, trained in, finished or failed, resumed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.console import Console

from runs import console
from runs.build import build_datamodule, check_targets, plain, read_config, refuse_download
from runs.checkpoints import BEST, LAST, progress, read_checkpoint, read_json, replacing, write_atomically
from runs.checks import INCONSEQUENTIAL, differing, validate
from runs.errors import CheckpointError, explain
from runs.report import write_json
from runs.schema import ConfigError
from runs.train import train

log = logging.getLogger(__name__)

_MAIN = rank_zero_only.rank == 0  # of several processes that train together, one writes
_PLACE = ("accelerator", "devices", "strategy")  # of a trainer: where it trains, not what
_ABSENT = object()
DEATHS = 2  # so often a run may end the process of its sweep
FATAL = f"it has ended the process of the sweep {DEATHS} times; delete its folder to have it tried again"
COPYING = "copying"  # state of a run that is being taken over from a finished one
failures: list[str] = []
"""The run folders of this process's jobs that failed."""


def run(config: DictConfig) -> float | None:
    """Run one composed configuration; a failure is reported and remembered, so that a sweep's other jobs go on.

    Returns:
        The best validation score, for sweepers that optimise it.
    """
    if not _MAIN:
        logging.disable(logging.WARNING)  # the first of several processes says the same
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    sweeping = settings.mode == RunMode.MULTIRUN
    overrides = list(settings.overrides.task)
    words = None if config.resume else overrides
    lock = _enter(folder)
    if sweeping and _is_fatal(folder):
        log.error(f"error in {folder.name}: {FATAL}")
        failures.append(folder.name)
        _release(lock)
        return None
    before = _status_as_it_stands(folder)
    signal.signal(signal.SIGTERM, _stop)
    if sweeping:  # Lightning starts further processes by these words: their sweep is to have the same folder
        place = "hydra.sweep.dir='" + Path(settings.sweep.dir).as_posix().replace("'", "\\'") + "'"
        if place not in sys.argv:
            sys.argv.append(place)
    try:
        if sweeping and folder.resolve().parent != Path(settings.sweep.dir).resolve():
            raise ConfigError(f"hydra.sweep.subdir={settings.sweep.subdir}: a run's folder lies right in its sweep's")
        metrics = _run(config, folder, overrides, sweeping)
    except BaseException as error:  # what a model raises to leave a generator, too, is no reason to end a sweep
        ours = _is_ours(folder, before, fresh=config.resume is None)
        if (code := _interruption(error)) is not None:  # ends a sweep, too
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever stops a group of processes may well say it twice
            advice = _how_to_continue(folder, sweeping)
            if ours:
                _write_status(folder, "interrupted", words, advice)
            log.warning(f"interrupted; {advice}")
            raise SystemExit(code) from error
        message = explain(error, overrides)
        if ours:
            with contextlib.suppress(OSError):  # a full disk takes no status either
                _write_status(folder, "failed", words, message or repr(error))
        failures.append(folder.name)
        where = f" in {folder.name}" if sweeping else ""
        where += "" if _MAIN else f" in process {rank_zero_only.rank + 1}"
        log.error(f"error{where}: {message or repr(error)}", exc_info=message is None or config.debug)
        return None
    finally:
        _release(lock)
    if _MAIN:
        console.print_scores(metrics, folder, Console())
    return metrics["best_score"]


def _enter(folder: Path) -> FileLock:
    """Keep others out of a run folder: two that train in it would overwrite each other's resume points.

    Raises:
        SystemExit: another process is in there, and, if this is a sweep, may well be in the other folders soon.
    """
    lock = FileLock(folder / ".lock", timeout=2)  # a killed run's loader workers outlive it by a moment
    if _MAIN:
        try:
            lock.acquire()
        except Timeout as error:
            remedy = "wait for its end, or stop it, before you go on"
            log.error(f"error: {folder} is in use: another process trains in it; {remedy}")
            raise SystemExit(1) from error
        except OSError as error:
            log.warning(f"a second process in {folder} wouldn't be noticed: {error}")
    return lock


def _release(lock: FileLock) -> None:
    if lock.is_locked:
        with contextlib.suppress(OSError):  # Windows deletes it when it is released, and not before
            os.unlink(lock.lock_file)
        lock.release()


def _run(config: DictConfig, folder: Path, overrides: list[str], sweeping: bool) -> dict[str, Any]:
    validate(config)
    if config.resume is not None:
        return _resume(config, folder, overrides)
    settings = plain(config)
    check_targets(settings, config.trust)
    if _begun(folder):
        others = [key for key in differing([read_config(folder), settings]) if key not in INCONSEQUENTIAL]
        if not sweeping or others:
            what = f"a run with another {', '.join(others)}" if sweeping else "a run already"
            place = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
            raise ConfigError(f"{folder} holds {what}: continue it with resume={folder}, or choose another {place}")
        # A sweep started again: what is finished is kept, the rest continues.
        return _resume(config, folder, [word for word in overrides if _key(word) in INCONSEQUENTIAL])
    if config.reuse is not None and (twin := _twin(settings, Path(config.reuse), folder)) is not None:
        return _copy(twin, settings, folder, overrides)
    if _MAIN:
        for name in (BEST, LAST):  # of half a copy: the other processes would take them for half a training
            (folder / "checkpoints" / name).unlink(missing_ok=True)
    return _start(settings, folder, overrides)


def _twin(settings: dict[str, Any], place: Path, folder: Path) -> Path | None:
    """A finished run of the same configuration and data, somewhere below `place`.

    Raises:
        ConfigError: there is no such place.
    """
    if not place.is_dir():
        raise ConfigError(f"reuse={place}: there is no such folder")
    source = getattr(build_datamodule(settings), "source", None)
    if source is None:  # one of your own: its files aren't known
        return None
    sha256 = source.digest()
    for path in sorted(place.rglob("metrics.json")):
        with contextlib.suppress(OSError, KeyError, CheckpointError, ConfigError):  # a damaged folder is nobody's twin
            twin = path.parent
            if twin == folder or not _finished(twin) or read_json(twin / "data_report.json")["sha256"] != sha256:
                continue
            if {*differing([read_config(twin), settings])} <= {*INCONSEQUENTIAL} and read_json(path):
                return twin
    return None


def _copy(twin: Path, settings: dict[str, Any], folder: Path, overrides: list[str]) -> dict[str, Any]:
    log.info(f"{twin} is a finished run of this configuration and data: copied")
    _write_config(folder, settings)
    _write_status(folder, COPYING, overrides)
    for source in twin.rglob("*"):
        if _MAIN and source.is_file() and source.name not in ("config.yaml", "status.json", "run.log", ".lock"):
            target = folder / source.relative_to(twin)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(source, "rb") as read, replacing(target) as write:
                shutil.copyfileobj(read, write)
    _write_status(folder, "finished", copied_from=str(twin))
    return read_json(twin / "metrics.json")


def _start(settings: dict[str, Any], folder: Path, overrides: list[str] | None) -> dict[str, Any]:
    _write_config(folder, settings)
    _write_running(folder, overrides)
    metrics = train(settings, folder)
    _write_status(folder, "finished")
    return metrics


def _resume(config: DictConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Continue the run of `folder` under its own configuration; see `merge_overrides` for what may change."""
    saved: Any = OmegaConf.create(read_config(folder))
    merged = merge_overrides(saved, config, overrides)
    settings = plain(merged)
    settings["trust"] = list(config.trust)  # said on the command line, never by a folder that may be anybody's
    check_targets(settings, settings["trust"])
    if not any(_key(override) == "data.urls" for override in overrides):
        refuse_download(settings, folder)
    finished = read_json(folder / "metrics.json") if _finished(folder) else None
    changed = set(differing([plain(saved), settings])) - {*INCONSEQUENTIAL, "trust"}
    if finished is not None and not changed:
        log.info(f"{folder} is finished already; here are its scores")
        return finished

    def began() -> None:  # until then, whatever fails leaves the folder as it is
        _write_running(folder)
        _write_config(folder, settings)

    if finished is not None and changed == {"score_on"}:
        metrics = train(settings, folder, trained=finished, began=began)
        _write_status(folder, "finished")
        return metrics
    if "baseline" in settings["model"]:  # fitted in one go: there is no half of it to continue
        return _start(settings, folder, None)
    if not (folder / "checkpoints" / LAST).exists():
        raise CheckpointError(
            f"nothing to resume from: {folder / 'checkpoints' / LAST} does not exist; the run stopped before its "
            "training began. Start it again without resume="
        )
    _check_length(saved, merged, folder)
    metrics = train(settings, folder, resume=True, began=began)
    _write_status(folder, "finished")
    return metrics


def merge_overrides(saved: DictConfig, asked: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration under which a run is resumed: the saved one, of which few things may change.

    These are the trainer's part, and `score_on`: what was chosen on the validation split is then tested. A group
    `trainer=…` says where to train; its other values are defaults that nobody asked for.

    Args:
        saved: the run's own configuration.
        asked: what the command line of the resumption composes.
        overrides: what that command line names.

    Raises:
        CheckpointError: a model or task other than the run's.
        ConfigError: anything else that a resumed run can't change.
    """
    merged = saved.copy()
    for override in overrides:
        named = _key(override)
        if named in ("resume", "debug", "trust"):
            continue
        for key in [f"trainer.{name}" for name in _PLACE] if named == "trainer" else [named]:
            wanted, held = (OmegaConf.select(config, key, default=_ABSENT) for config in (asked, saved))
            if wanted is held is _ABSENT:  # experiment=…: what it has set can't be told any more
                raise ConfigError(f"{override}: a resumed run keeps its configuration; leave this out")
            if wanted == held:
                continue
            if key in ("model", "task"):
                if wanted.name != held.name:
                    raise CheckpointError(f"this is a {held.name} run; it can't continue as {key}={wanted.name}")
            elif key == "score_on" and wanted != "test":  # it is calibrated on the validation split by now
                raise ConfigError(f"{override}: what has been tested can't be scored on the validation split any more")
            elif key.partition(".")[0] != "trainer" and key not in ("score_on", *INCONSEQUENTIAL):
                raise ConfigError(
                    f"{override}: a resumed run keeps its configuration; only trainer.… and score_on may change"
                )
            elif key == "trainer.fast_dev_run" and wanted:
                raise ConfigError(f"{override}: a trial keeps no resume points; start it without resume=")
            elif saved.scheduler is not None and key in ("trainer.max_epochs", "trainer.max_steps"):
                raise ConfigError(f"{override}: the learning rate schedule was laid out for another length of training")
            else:
                OmegaConf.update(merged, key, None if wanted is _ABSENT else wanted, force_add=True)
    return merged


def _check_length(saved: DictConfig, merged: DictConfig, folder: Path) -> None:
    """A new length of training must reach beyond what is trained already."""
    names = [name for name in ("max_epochs", "max_steps") if merged.trainer[name] != saved.trainer[name]]
    done = progress(read_checkpoint(folder / "checkpoints" / LAST)) if names else {}
    for name in names:
        if 0 <= merged.trainer[name] <= done[name]:
            unit = name.removeprefix("max_")
            raise ConfigError(
                f"trainer.{name}={merged.trainer[name]}: {folder} has trained {done[name]} {unit} already; ask for more"
            )


def _how_to_continue(folder: Path, sweeping: bool) -> str:
    if sweeping:  # finished runs are kept, this one continues, the others follow
        return f"to go on with the sweep, give its command again with hydra.sweep.dir={folder.parent}"
    if _begun(folder):
        return f"continue with: python run.py resume={folder}"
    return "there is nothing to continue from yet: start it again"


def _stop(number: int, frame: FrameType | None) -> None:
    """End the run at once, unless Lightning calls this from its own handler: that one ends it behind the batch."""
    if signal.getsignal(signal.SIGTERM) is _stop:
        raise SIGTERMException(128 + number)


def _interruption(error: BaseException) -> int | None:
    """The exit code of a run that was told to stop: 130 by Ctrl-C, 143 by SIGTERM."""
    if isinstance(error, SIGTERMException):
        return 143
    # Lightning turns Ctrl-C during a training into an exit with code 1.
    return 130 if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt) else None


def _write_config(folder: Path, settings: dict[str, Any]) -> None:
    if _MAIN:
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)).encode())


def _finished(folder: Path) -> bool:
    """Whether the scores there are those of the whole training: one that was prolonged has its old ones for a while."""
    return _read_status(folder).get("state") == "finished" and (folder / "metrics.json").exists()


def _begun(folder: Path) -> bool:
    """Whether there is something to go on from; half a copy is begun anew.

    All processes of a training find the same, though they don't look at the same time: there is no checkpoint before
    they have met.
    """
    copying = _read_status(folder).get("state") == COPYING
    return not copying and any((folder / "checkpoints" / name).exists() for name in (BEST, LAST))


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_ours(folder: Path, before: bytes | None, fresh: bool) -> bool:
    """Whether this process has begun the run of the folder: one that it refused to touch keeps the status it had.

    So does half a copy, which otherwise would look like half a training. A failure before anything had begun gives way
    to that of a fresh attempt.
    """
    if before is None or _status_as_it_stands(folder) != before:
        return _read_status(folder).get("state") != COPYING
    with contextlib.suppress(ConfigError):  # a damaged status stays
        return fresh and _read_status(folder).get("state") == "failed" and not _begun(folder)
    return False


def _status_as_it_stands(folder: Path) -> bytes | None:
    """Damaged or not."""
    path = folder / "status.json"
    return path.read_bytes() if path.exists() else None


def _read_status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    return read_json(path) if path.exists() else {}


def _is_fatal(folder: Path) -> bool:
    """Whether a run of a sweep has ended the process of the whole sweep so often that it counts as failed."""
    try:
        state, deaths = _read_status(folder).get("state"), _deaths(folder)
    except ConfigError:  # a damaged status: the run itself says so
        return False
    if deaths < DEATHS or (not _MAIN and state == "running"):  # the first of several processes has just begun it
        return False
    if state == "running":
        _write_status(folder, "failed", error=FATAL, deaths=deaths)
    return True


def _deaths(folder: Path) -> int:
    """How often the process of a run has ended without a word, one time after the other, with no new resume point."""
    status = _read_status(folder)
    deaths = status.get("deaths", 0)
    if status.get("state") == "running":
        return deaths + 1 if status.get("resume_point") == _progress_of(folder) else 1
    return deaths


def _progress_of(folder: Path) -> dict[str, int] | None:
    """How far the training had come at the last resume point; None if there is none to go on from."""
    path = folder / "checkpoints" / LAST
    try:
        return progress(read_checkpoint(path)) if path.exists() else None
    except CheckpointError:
        return None


def _write_running(folder: Path, overrides: list[str] | None = None) -> None:
    if _MAIN:
        _write_status(folder, "running", overrides, deaths=_deaths(folder), resume_point=_progress_of(folder))


def _write_status(
    folder: Path, state: str, overrides: list[str] | None = None, error: str | None = None, **more: Any
) -> None:
    """Write `status.json`; the overrides are those of the command that began the run."""
    if _MAIN:
        before = _read_status(folder).get("overrides")
        if overrides is None or (before is not None and _begun(folder)):
            overrides = before
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(
            folder / "status.json", {"state": state, "overrides": overrides, "error": error, "time": now, **more}
        )
