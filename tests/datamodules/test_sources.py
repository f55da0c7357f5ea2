from __future__ import annotations

import hashlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules import sources
from datamodules.sources import DataError, Source
from datamodules.streaming import read_table
from tests.datamodules.conftest import TABLE, zipped

GOOD = zipped()
SHA256 = hashlib.sha256(GOOD).hexdigest()


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        kind = self.path.split("/")[1]
        if kind == "silent":
            time.sleep(2)
            return
        content = {"good": GOOD, "tampered": zipped(TABLE + "x,y\n"), "login": b"<html>", "cut": GOOD[:60]}.get(kind)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(GOOD if kind == "cut" else content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNN_LAB_DATA", raising=False)


def source(tmp_path: Path, urls: list[str] | None = None, **options: object) -> Source:
    keys = {"on_missing": "error", "sample": "sample_reviews", "cache_dir": str(tmp_path / "cache")} | options
    return Source("reviews", files=["reviews.zip"], urls=urls or [], **keys)  # type: ignore[arg-type]


def left_in_cache(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").glob("*")]


# --- where the file is found ---


def test_a_source_without_path_files_and_urls_is_the_sample_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert Source("sample_reviews", sample="sample_reviews").locate() is None
    assert not caplog.records


def test_a_file_of_the_users_own_gives_its_name_and_a_folder_or_known_file_that_of_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "reviews.zip").write_bytes(GOOD)
    (tmp_path / "mine.csv").write_text(TABLE, encoding="utf-8")
    for path, title in (
        (None, "reviews"),
        ("~/folder", "reviews"),
        ("~/folder/reviews.zip", "reviews"),
        ("~/mine.csv", "mine"),
    ):
        assert source(tmp_path, path=path).title == title
    assert source(tmp_path, path="~/folder").locate() == tmp_path / "folder" / "reviews.zip"


def test_path_wins_over_data_folder_and_data_folder_over_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("given", "data", "cache"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "reviews.zip").write_bytes(GOOD)
    assert source(tmp_path).locate() == tmp_path / "cache" / "reviews.zip"
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path / "data"))
    assert source(tmp_path).locate() == tmp_path / "data" / "reviews.zip"
    assert source(tmp_path, path=str(tmp_path / "given")).locate() == tmp_path / "given" / "reviews.zip"


def test_an_absent_path_is_an_error_and_never_the_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv does not exist.*data\.path"):
        source(tmp_path, path=str(tmp_path / "nowhere.csv"), on_missing="sample").locate()


def test_a_folder_without_the_files_lists_the_tables_it_has(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(DataError, match=r"none of \['reviews\.zip'\]; its tables are \['other\.csv'\]"):
        source(tmp_path, path=str(tmp_path)).locate()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + b"?" + b[41:]], ids=["truncated", "altered"])
def test_a_known_file_with_another_hash_is_an_error_with_both_hashes(tmp_path: Path, damage) -> None:
    (tmp_path / "reviews.zip").write_bytes(damage(GOOD))
    with pytest.raises(DataError, match=f"expected {SHA256}") as caught:
        source(tmp_path, path=str(tmp_path), sha256={"reviews.zip": SHA256}).locate()
    assert hashlib.sha256(damage(GOOD)).hexdigest() in str(caught.value)


def test_a_data_folder_that_does_not_exist_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RNN_LAB_DATA", str(tmp_path / "gone"))
    source(tmp_path, on_missing="sample").locate()
    assert "RNN_LAB_DATA" in caplog.records[0].message


def test_spaces_and_chinese_in_paths_work(tmp_path: Path, server: str) -> None:
    folder = tmp_path / "我的 数据"
    found = source(tmp_path, [f"{server}/good/reviews.zip"], cache_dir=str(folder)).locate()
    assert found == folder / "reviews.zip"
    assert read_table(folder / "reviews.zip", columns=["cat"])["review"].tolist() == ["很好", "不错"]


# --- downloads ---


def test_a_download_is_kept_and_used_again_without_the_network(tmp_path: Path, server: str) -> None:
    found = source(tmp_path, [f"{server}/good/reviews.zip"], sha256={"reviews.zip": SHA256}).locate()
    assert found is not None
    assert found.read_bytes() == GOOD
    assert source(tmp_path, [f"http://127.0.0.1:{closed_port()}/reviews.zip"]).locate() == found


def test_a_source_of_addresses_alone_is_cached_under_the_name_in_the_address(tmp_path: Path, server: str) -> None:
    def locate(address: str) -> Path | None:
        return Source("reviews", urls=[address], on_missing="error", cache_dir=str(tmp_path)).locate()

    assert locate(f"{server}/good/some.zip") == tmp_path / "some.zip"
    assert locate(f"http://127.0.0.1:{closed_port()}/some.zip") == tmp_path / "some.zip"


@pytest.mark.parametrize(
    ("kind", "hashed"), [("tampered", True), ("login", False), ("login", True), ("cut", False), ("404", False)]
)
def test_a_bad_download_is_rejected_and_leaves_the_cache_clean(
    tmp_path: Path, server: str, kind: str, hashed: bool
) -> None:
    known = {"reviews.zip": SHA256} if hashed else {}
    with pytest.raises(DataError, match=f"{server}/{kind}/reviews.zip: "):
        source(tmp_path, [f"{server}/{kind}/reviews.zip"], sha256=known).locate()
    assert left_in_cache(tmp_path) == []


def test_the_next_mirror_is_tried(tmp_path: Path, server: str) -> None:
    urls = [f"http://127.0.0.1:{closed_port()}/reviews.zip", f"{server}/tampered/reviews.zip", f"{server}/good/x.zip"]
    found = source(tmp_path, urls, sha256={"reviews.zip": SHA256}).locate()
    assert found is not None
    assert found.read_bytes() == GOOD


def test_without_a_connection_the_error_says_all_a_user_needs(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/reviews.zip"
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        source(tmp_path, [url], sha256={"reviews.zip": SHA256}).locate()
    assert time.monotonic() - start < 10
    for needed in (url, str(tmp_path / "cache" / "reviews.zip"), SHA256, "data=sample_reviews", "RNN_LAB_DATA"):
        assert needed in str(caught.value)


def test_without_a_connection_the_sample_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/reviews.zip"
    assert source(tmp_path, [url], on_missing="sample").locate() is None
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for needed in ("reviews IS MISSING", "sample_reviews", url, "data.on_missing=error"):
        assert needed in warning.getMessage()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROBE_SECONDS", 0.3)  # the deadline over all addresses, name look-up included
    start = time.monotonic()
    with pytest.raises(DataError, match="no answer"):
        source(tmp_path, [f"{server}/silent/reviews.zip"]).locate()
    assert time.monotonic() - start < 1.5


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, datamodules\n"
        "assert not {'torch', 'pandas', 'pytorch_lightning'} & set(sys.modules)\n"
        "datamodules.DataError\n"
        "assert not {'torch', 'pytorch_lightning', 'jieba', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["../evil.csv", "/tmp/evil.csv", "a/b.csv", "a\\b.csv", "C:evil.csv", "..", ""])
def test_a_download_has_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no plain file name"):
        Source("evil", files=(name,), urls=("https://127.0.0.1/evil.csv",), cache_dir=str(tmp_path / "cache"))


def test_an_address_gives_a_download_a_plain_name() -> None:
    with pytest.raises(DataError, match="is no plain file name"):
        Source("evil", urls=("https://127.0.0.1/..\\..\\evil.csv",))
