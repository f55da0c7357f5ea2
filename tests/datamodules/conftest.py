from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and derived files of tests never meet those of the user."""
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
