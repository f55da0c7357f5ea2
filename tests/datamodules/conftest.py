from __future__ import annotations

import io
import zipfile

import pytest

TABLE = "cat,review\n书籍,很好\n酒店,不错\n"


def zipped(text: str = TABLE, member: str = "reviews.csv") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, text)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and derived files of tests never meet those of the user."""
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
