"""Runs of `run.py` in real processes, forked from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Settings under which a run takes a second or two; an epoch has 10 steps.
COMMON = (
    "trainer=cpu",
    "trainer.threads=1",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
    "callbacks.resume_every_n_steps=4",
    "model.encoder.hidden_size=8",
    "model.encoder.num_layers=2",
    "model.encoder.dropout=0.2",
)
SMALL = {
    "cls": (
        *("task=cls", "data=sample_reviews", "data.sample_size=400", "data.batch_size=32", "data.tokenizer=char"),
        *("model=gru", *COMMON),
    ),
    "forecast": ("task=forecast", "data=sample_climate", "data.stride=50", "data.batch_size=17", "model=lstm", *COMMON),
}
STEPS_PER_EPOCH = 10
SECRET = "hunter2-of-the-environment"
# What a run imports.
_PRELOADED = [
    "run",
    "runs.job",
    "runs.report",
    "runs.page",
    "plotly.offline",
    "rnn_cells",
    "datamodules",
    "tensorboard",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "tests.runs.lab",
]


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code (negative: a signal), and all it wrote."""

    code: int
    output: str


class Lab:
    """Starts runs under an environment of its own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()  # while this process has that environment, too: OpenMP looks at it only once

    def run(self, *words: str, folder: Path | str = ROOT, env: Mapping[str, str] | None = None) -> Outcome:
        """`python run.py *words` in `folder`."""
        with tempfile.NamedTemporaryFile(suffix=".txt") as output:
            arguments = (words, str(folder), {**self.environment, **(env or {})}, output.name)
            process = self._context.Process(target=_main, args=arguments)
            process.start()
            process.join(timeout=1200)
            if process.exitcode is None:
                process.kill()
                process.join()
                raise TimeoutError(f"run.py {' '.join(words)} took over 120 s:\n{Path(output.name).read_text()}")
            return Outcome(process.exitcode, Path(output.name).read_text(encoding="utf-8"))


def touch(path: str) -> None:
    """What a malicious configuration would call: leaves a file behind."""
    Path(path).touch()


def _main(words: tuple[str, ...], folder: str, environment: dict[str, str], output: str) -> None:
    with open(output, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, shells have it ignored
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [str(ROOT / "run.py"), *words]
    import run

    run.main()
