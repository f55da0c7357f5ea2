from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs.lab import ROOT, SECRET, SMALL, Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Runs processes that know neither the user's data nor their cache, and hold a secret in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("SOME_TOKEN", SECRET)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        patch.delenv("RNN_LAB_DATA", raising=False)
        own = Lab(os.environ)
    return own  # other tests of this process have the user's environment


@pytest.fixture(scope="session")
def finished(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a task; look, don't touch."""
    folders: dict[str, Path] = {}

    def run_once(task: str) -> Path:
        if task not in folders:
            folder = tmp_path_factory.mktemp("finished") / task
            outcome = lab.run(*SMALL[task], f"hydra.run.dir={folder}")
            assert outcome.code == 0, outcome.output
            (folder.parent / "output.txt").write_text(outcome.output, encoding="utf-8")
            folders[task] = folder
        return folders[task]

    return run_once


@pytest.fixture(autouse=True)
def _without_real_data(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("RNN_LAB_DATA", raising=False)
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
