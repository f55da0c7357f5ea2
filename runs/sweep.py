"""What Hydra calls before and behind a sweep. Every configuration imports it: heavy imports stay inside functions."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from runs.checks import validate
from runs.schema import ConfigError

log = logging.getLogger(__name__)


class CompareSweep(Callback):
    """Tells, as a sweep begins, which jobs will fail, and compares its runs at its end: see `runs.comparison`."""

    began = ""  # as `status.json` has times

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Warn of jobs that ask for something impossible: the turn of some comes after hours."""
        self.began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            self._warn_of_jobs(config, kwargs["config_name"])
        except Exception:  # what can't be composed, the sweeper itself refuses before its first job
            return

    def _warn_of_jobs(self, config: DictConfig, config_name: str) -> None:
        sweeper = config.hydra.sweeper
        if not sweeper._target_.endswith(".BasicSweeper"):  # others choose their jobs on the way
            return
        words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()] + [*config.hydra.overrides.task]
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), max_batch_size=None)
        seen = set()
        for number, job in enumerate(jobs):
            kind = tuple(word for word in job if not word.startswith("seed="))
            if kind in seen:
                continue
            seen.add(kind)
            try:
                validate(compose(config_name, job))
            except ConfigError as error:
                log.warning(f"job {number} will fail: {error}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the comparison."""
        from pytorch_lightning.utilities import rank_zero_only

        from runs.job import failures

        if rank_zero_only.rank != 0:  # of several processes that train together, one compares
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            from runs.comparison import find_runs, write_comparison

            runs = find_runs(folder)
            if not runs:
                log.error("error: the sweep has no job: a choice such as glob(…) or range(…) stands for nothing")
                failures.append("no job")
                return
            comparison = write_comparison(folder, runs)
            lately = {run.name for run, status in comparison.failed.items() if status.get("time", "") >= self.began}
            failures.extend(sorted(lately - {*failures}))  # those of other processes
        except Exception:  # Hydra would log it and exit with 0
            log.exception("error: the comparison failed; the runs themselves are in %s", folder)
            failures.append("comparison")
